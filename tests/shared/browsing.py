"""Waiting in a browser's tests, and what axe finds on a page."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import axe_core_python
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.ui import WebDriverWait

LONG_S = 40.0  # on a busy machine


def wait_until(browser: WebDriver, holds: Callable[[WebDriver], Any], seconds: float = LONG_S) -> Any:
    """What `holds` gives once it is true; elements that scripts replace meanwhile are looked up again."""
    passed_over = [StaleElementReferenceException]
    return WebDriverWait(browser, seconds, poll_frequency=0.05, ignored_exceptions=passed_over).until(holds)


_AXE = """
const done = arguments[arguments.length - 1];
axe.run(document, {resultTypes: ["violations"]}).then((found) => done(found.violations.map(
  (each) => [each.impact, each.id, each.nodes.slice(0, 3).map((node) => node.html.slice(0, 160))])));
"""


def axe_findings(browser: WebDriver) -> list[list[Any]]:
    """What keeps people from reading or working the page: impact, rule and the first elements of each."""
    browser.execute_script((Path(axe_core_python.__file__).parent / "axe.min.js").read_text())
    found: list[list[Any]] = browser.execute_async_script(_AXE)
    return found

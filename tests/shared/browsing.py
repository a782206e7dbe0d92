"""Waiting in a browser's tests."""

from collections.abc import Callable
from typing import Any

from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.ui import WebDriverWait

LONG_S = 40.0  # on a busy machine


def wait_until(browser: WebDriver, holds: Callable[[WebDriver], Any], seconds: float = LONG_S) -> Any:
    """What `holds` gives once it is true; elements that scripts replace meanwhile are looked up again."""
    passed_over = [StaleElementReferenceException]
    return WebDriverWait(browser, seconds, poll_frequency=0.05, ignored_exceptions=passed_over).until(holds)

"""Every page by axe: nothing that keeps people from reading or working it."""

import pytest
from browsing import axe_findings, wait_until
from selenium.webdriver.common.by import By

PAGES = (
    "/",
    "/features",
    "/f/0",
    "/f/95",
    "/i/0",
    "/c",
    "/c/1",
    "/atlas",
    "/game",
    "/compare",
    "/compare/run-2",
    "/neurons",
    "/notes",
    "/upload",
    "/no-such-page",
)


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (375, "dark")])
def test_axe_finds_nothing_serious_on_any_page(browser, explorer_url, width, scheme):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    serious = {}
    try:
        for page in PAGES:
            browser.get(explorer_url + page)
            wait_until(browser, lambda b: b.find_element(By.TAG_NAME, "h1"))
            wait_until(browser, lambda b: b.execute_script("return document.readyState === 'complete'"))
            if grave := [each for each in axe_findings(browser) if each[0] in ("serious", "critical")]:
                serious[page] = grave
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
        browser.get_log("browser")  # a page that is not there is one of them
    assert not serious, serious


def test_axe_sees_a_page_that_fails(browser):
    browser.get("data:text/html,<html><body><img src='x'><a href='y'></a></body></html>")
    assert {"image-alt", "link-name"} <= {each[1] for each in axe_findings(browser)}

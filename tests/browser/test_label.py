"""Class pages in a browser."""

from browsing import wait_until
from selenium.webdriver.common.by import By


def wait(browser, holds):
    return wait_until(browser, holds)


def visible(browser) -> list[str]:
    script = "return [...document.querySelectorAll('#classes li:not([hidden]) a')].map((a) => a.textContent)"
    return browser.execute_script(script)


def test_the_list_of_classes_is_narrowed_as_one_types_and_leads_to_a_class(browser, explorer_url):
    browser.get(f"{explorer_url}/c")
    assert len(visible(browser)) == 7
    browser.find_element(By.CSS_SELECTOR, "#classes-form input").send_keys("CLASS")
    wait(browser, lambda b: visible(b) == ["class 5", "class 6"])
    browser.refresh()
    assert visible(browser) == ["class 5", "class 6"]
    browser.find_element(By.LINK_TEXT, "class 5").click()
    wait(browser, lambda b: b.find_element(By.TAG_NAME, "h1").text == "class 5")


def test_a_class_shows_more_pictures_that_a_feature_takes(browser, explorer_url):
    browser.get(f"{explorer_url}/c/5")
    line = browser.find_element(By.CSS_SELECTOR, ".taken tbody tr")
    before = len(line.find_elements(By.TAG_NAME, "img"))
    line.find_element(By.TAG_NAME, "button").click()
    wait(browser, lambda b: len(line.find_elements(By.TAG_NAME, "img")) > before)
    loaded = """return [...document.querySelectorAll(".taken tr:first-child img")]
        .every((image) => image.complete && image.naturalWidth > 0)"""
    wait(browser, lambda b: b.execute_script(loaded))
    browser.find_element(By.CSS_SELECTOR, ".taken th a").click()
    wait(browser, lambda b: "/f/" in b.current_url)
    browser.back()
    browser.find_element(By.LINK_TEXT, "precision").click()
    wait(browser, lambda b: "sort=precision" in b.current_url)

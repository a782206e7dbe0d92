"""What every page has, in a real browser: keys, search, theme, the choice of runs."""

import pytest
from browsing import wait_until
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys


def body(browser):
    return browser.find_element(By.TAG_NAME, "body")


def until(browser, condition):
    return wait_until(browser, condition)


def test_slash_goes_to_the_search_and_a_number_opens_that_feature(browser, explorer_url):
    browser.get(explorer_url)
    body(browser).send_keys("/")
    field = browser.switch_to.active_element
    assert field.get_attribute("name") == "q"
    field.send_keys("5", Keys.ENTER)
    until(browser, lambda b: b.current_url == f"{explorer_url}/f/5")


def test_the_theme_is_remembered_and_told_to_the_page(browser, explorer_url):
    browser.get(explorer_url)
    browser.execute_script("window.told = 0; window.addEventListener('themechange', () => { window.told += 1; });")
    before = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    browser.find_element(By.ID, "theme").click()
    after = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert before != after
    assert browser.execute_script("return window.told") == 1
    browser.refresh()
    assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") == after


def test_the_question_mark_lists_the_keys_and_escape_closes_them(browser, explorer_url):
    browser.get(explorer_url)
    body(browser).send_keys("?")
    dialog = browser.find_element(By.ID, "help")
    assert dialog.is_displayed()
    dialog.send_keys(Keys.ESCAPE)
    until(browser, lambda b: not dialog.is_displayed())


def test_another_run_is_chosen_in_the_bar(browser, explorer_url):
    browser.get(explorer_url)
    chooser = browser.find_element(By.ID, "runs")
    next(option for option in chooser.find_elements(By.TAG_NAME, "option") if option.text == "run-2").click()
    until(browser, lambda b: b.current_url == f"{explorer_url}/runs/run-2/")
    assert browser.find_element(By.TAG_NAME, "html").get_attribute("data-run") == "run-2"


@pytest.mark.parametrize("width", [1280, 375])
def test_the_bar_fits_the_screen(browser, explorer_url, width):
    browser.set_window_size(width, 800)
    browser.get(explorer_url)
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")

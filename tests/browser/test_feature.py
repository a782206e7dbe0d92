"""The page of a feature in a real browser: tabs, plots, keys, labels, heat maps."""

import numpy as np
import pytest
from browsing import wait_until
from explored import make_explored_run
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from thresher.analysis.stored_statistics import open_statistics


def until(browser, condition):
    return wait_until(browser, condition)


def pictures(browser):
    return [link.get_attribute("href") for link in browser.find_elements(By.CSS_SELECTOR, "#pictures li a")]


def is_drawn(browser, canvas):
    """Whether a canvas holds anything but transparency."""
    return browser.execute_script(
        """const canvas = document.querySelector(arguments[0]);
        if (!canvas || !canvas.width) return false;
        const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        return data.some((part) => part > 0);""",
        canvas,
    )


def test_tabs_show_other_images_and_stand_in_the_address(browser, explorer_url):
    browser.get(f"{explorer_url}/f/0")
    top = pictures(browser)
    assert len(top) == 16
    browser.find_element(By.ID, "tab-q50").click()
    until(browser, lambda b: pictures(b) != top)
    middle = pictures(browser)
    assert browser.current_url == f"{explorer_url}/f/0?group=q50"
    assert browser.find_element(By.ID, "pictures").get_attribute("aria-labelledby") == "tab-q50"
    browser.refresh()
    assert pictures(browser) == middle
    assert browser.find_element(By.ID, "tab-q50").get_attribute("aria-selected") == "true"
    browser.find_element(By.ID, "tab-top").click()
    until(browser, lambda b: pictures(b) == top)
    assert browser.current_url == f"{explorer_url}/f/0"


def test_arrow_keys_walk_along_the_tabs(browser, explorer_url):
    browser.get(f"{explorer_url}/f/0")
    browser.find_element(By.ID, "tab-top").send_keys(Keys.ARROW_RIGHT)
    assert browser.switch_to.active_element.get_attribute("id") == "tab-q75"
    browser.switch_to.active_element.send_keys(Keys.ARROW_LEFT)
    browser.switch_to.active_element.send_keys(Keys.ARROW_LEFT)  # from the first to the last
    assert browser.switch_to.active_element.get_attribute("id") == "tab-random"
    browser.switch_to.active_element.send_keys(Keys.HOME)
    assert browser.switch_to.active_element.get_attribute("id") == "tab-top"
    browser.switch_to.active_element.send_keys(Keys.END)
    assert browser.switch_to.active_element.get_attribute("id") == "tab-random"
    assert browser.current_url.endswith("?group=random")
    tabbable = browser.find_elements(By.CSS_SELECTOR, "[role=tab][tabindex='0']")
    assert [tab.get_attribute("id") for tab in tabbable] == ["tab-random"]


def test_the_histogram_is_drawn_in_both_themes(browser, explorer_url):
    browser.get(f"{explorer_url}/f/0")
    until(browser, lambda b: is_drawn(b, "#histogram"))
    picture = "return document.querySelector('#histogram').toDataURL()"
    before = browser.execute_script(picture)
    browser.find_element(By.ID, "theme").click()
    until(browser, lambda b: b.execute_script(picture) != before)


def test_j_and_k_walk_along_the_browsed_features(browser, explorer_url):
    browser.get(f"{explorer_url}/f/2")
    body = browser.find_element(By.TAG_NAME, "body")
    body.send_keys("j")
    until(browser, lambda b: b.current_url == f"{explorer_url}/f/3")
    browser.find_element(By.TAG_NAME, "body").send_keys("k")
    until(browser, lambda b: b.current_url == f"{explorer_url}/f/2")


def test_a_click_on_a_neighbour_opens_it(browser, explorer_url):
    browser.get(f"{explorer_url}/f/0")
    card = browser.find_element(By.CSS_SELECTOR, ".cards a")
    address = card.get_attribute("href")
    card.click()
    until(browser, lambda b: b.current_url == address)
    assert browser.find_element(By.TAG_NAME, "h1").text.startswith(f"Feature {address.rsplit('/', 1)[1]}")


def test_partners_are_ordered_by_pmi(browser, explorer_url):
    browser.get(f"{explorer_url}/f/0")
    cards = "#partners .cards li"

    def pmis():
        texts = [card.text for card in browser.find_elements(By.CSS_SELECTOR, cards)]
        return [float(text.split("PMI ")[1].split(" ")[0]) for text in texts]

    unordered = pmis()
    browser.find_element(By.CSS_SELECTOR, "[data-by=pmi]").click()
    assert pmis() == sorted(unordered, reverse=True)
    browser.find_element(By.CSS_SELECTOR, "[data-by=jaccard]").click()
    assert pmis() == unordered


@pytest.mark.parametrize("feature", [0, 5, 95])
@pytest.mark.parametrize("width", [1280, 375])
def test_the_page_fits_the_screen(browser, explorer_url, feature, width):
    browser.set_window_size(width, 800)
    browser.get(f"{explorer_url}/f/{feature}")
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")


def test_heat_maps_lie_over_the_images_of_a_patch_store(browser, serve, tmp_path):
    made = make_explored_run(tmp_path, n_features=80, n_images=72, tokens=16, n_labels=24)
    address = serve([made.path])
    browser.get(f"{address}/f/30")
    until(browser, lambda b: len(b.find_elements(By.CSS_SELECTOR, "#pictures canvas")) > 0)
    until(browser, lambda b: is_drawn(b, "#pictures canvas"))
    assert len(browser.find_elements(By.CSS_SELECTOR, "#pictures canvas")) == len(pictures(browser))
    button = browser.find_element(By.ID, "heat")
    button.click()
    assert not browser.find_element(By.CSS_SELECTOR, "#pictures canvas").is_displayed()
    button.click()
    assert browser.find_element(By.CSS_SELECTOR, "#pictures canvas").is_displayed()


def test_a_button_shows_all_labels(browser, serve, tmp_path):
    made = make_explored_run(tmp_path, n_features=80, n_images=700, n_labels=24)
    n_labels = np.diff(open_statistics(made.path).details.array("labels/indptr")[:].astype(int))
    address = serve([made.path])
    browser.get(f"{address}/f/{n_labels.argmax()}")

    def names():
        cells = "[...document.querySelectorAll('#labels tbody td:first-child')].map((cell) => cell.innerText)"
        return browser.execute_script(f"return {cells}")  # at once: the table may be replaced between two questions

    first = names()
    assert len(first) == 20
    browser.find_element(By.ID, "all-labels").click()
    until(browser, lambda b: len(names()) == n_labels.max())
    assert names()[:20] == first
    assert len(set(names())) == n_labels.max() > 20

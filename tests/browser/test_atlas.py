"""The atlas in Chromium: the map appears, moves, shows cards, opens features, and makes lists."""

import time
from collections.abc import Callable

import numpy as np
import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

_STATE = "return {...document.getElementById('atlas').dataset}"


def _until(found: Callable[[], object], seconds: float = 60) -> object:
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)
    return value


@pytest.fixture
def atlas(browser, explorer_url: str):
    """The page with its map drawn."""
    browser.get(f"{explorer_url}/atlas")
    _until(lambda: browser.execute_script("return document.getElementById('atlas').dataset.across"))
    return browser


def _press(browser, *keys: str) -> None:
    browser.find_element(By.ID, "atlas").send_keys(*keys)


def test_the_map_is_drawn_within_a_frame_or_so_and_not_blank(atlas) -> None:
    assert float(atlas.execute_script(_STATE)["drawMs"]) < 300
    colours = atlas.execute_script(
        "const c = document.querySelector('#atlas canvas');"
        "return new Set(new Uint32Array(c.getContext('2d').getImageData(0, 0, c.width, c.height).data.buffer)).size"
    )
    assert colours > 10


def test_zooming_in_makes_the_cells_finer_and_whole_brings_all_back(atlas) -> None:
    before = int(atlas.execute_script(_STATE)["across"])
    for _ in range(3):
        atlas.find_element(By.NAME, "in").click()
    _until(lambda: int(atlas.execute_script(_STATE)["across"]) >= 4 * before)
    atlas.find_element(By.NAME, "fit").click()
    _until(lambda: int(atlas.execute_script(_STATE)["across"]) == before)


def test_the_pointer_shows_a_card_and_a_click_opens_the_feature(atlas) -> None:
    element = atlas.find_element(By.ID, "atlas")
    _press(atlas, "0")  # hovers the feature nearest to the middle
    _until(lambda: atlas.execute_script(_STATE).get("hovered"))
    ActionChains(atlas).move_to_element_with_offset(element, 200, 0).perform()
    found = _until(lambda: _sweep(atlas, element))
    assert f"Feature {found}" in atlas.find_element(By.ID, "atlas-card").text
    ActionChains(atlas).click().perform()
    _until(lambda: atlas.current_url.endswith(f"/f/{found}"))


def _sweep(browser, element) -> str | None:
    """Moves over the map until some feature is under the pointer."""
    for left in range(-160, 161, 20):
        for top in (-80, 0, 80):
            ActionChains(browser, 0).move_to_element_with_offset(element, left, top).perform()
            if hovered := browser.execute_script(_STATE).get("hovered"):
                return hovered
    return None


def test_the_map_is_used_with_keys_alone(atlas) -> None:
    _press(atlas, "+", "+", Keys.ARROW_LEFT)
    found = _until(lambda: atlas.execute_script(_STATE).get("hovered"))
    assert atlas.find_element(By.ID, "atlas-said").text.startswith("Feature ")
    time.sleep(0.2)
    found = atlas.execute_script(_STATE)["hovered"]
    _press(atlas, Keys.ENTER)
    _until(lambda: atlas.current_url.endswith(f"/f/{found}"))


def _lasso(browser) -> None:
    element = browser.find_element(By.ID, "atlas")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    size = element.size
    w, h = int(size["width"] / 2) - 6, int(size["height"] / 2) - 6
    chain = ActionChains(browser).move_to_element_with_offset(element, -w, -h).click_and_hold()
    for dx, dy in ((2 * w, 0), (0, 2 * h), (-2 * w, 0)):
        chain = chain.move_by_offset(dx, dy)
    chain.release().perform()
    _until(lambda: browser.find_element(By.ID, "atlas-list").is_displayed())


def test_a_lasso_around_all_makes_a_list_of_all(atlas) -> None:
    atlas.find_element(By.NAME, "lasso").click()
    _lasso(atlas)
    n = int(atlas.execute_script(_STATE)["n"])
    assert atlas.find_element(By.ID, "atlas-list-title").text == f"{n} features in the lasso"
    link = atlas.find_element(By.LINK_TEXT, "Open as a list")
    assert len(link.get_attribute("href").split("ids=")[1].split("&")[0].split(",")) == n
    atlas.find_element(By.NAME, "walk").click()
    _until(lambda: "/f/" in atlas.current_url)
    kept = atlas.execute_script(
        "return JSON.parse(sessionStorage.getItem(`thresher-list-${document.documentElement.dataset.run}`))"
    )
    assert len(kept) == n


def test_a_lasso_is_in_the_address_and_a_reload_keeps_it(atlas) -> None:
    atlas.find_element(By.NAME, "lasso").click()
    element = atlas.find_element(By.ID, "atlas")
    atlas.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    chain = ActionChains(atlas).move_to_element_with_offset(element, -180, -90).click_and_hold()
    for i in range(60):  # many small steps, as a hand draws
        chain = chain.move_by_offset(6, 3 if i % 2 else -3)
    chain.move_by_offset(0, 200).move_by_offset(-360, 0).release().perform()
    title = _until(lambda: atlas.find_element(By.ID, "atlas-list-title").text)
    listed = [each.text for each in atlas.find_elements(By.CSS_SELECTOR, "#atlas-list .found li")]
    assert listed
    address = atlas.current_url
    assert "lasso=" in address
    assert len(address) < 1500
    for visit in (atlas.refresh, lambda: atlas.get("about:blank") or atlas.get(address)):
        visit()
        _until(lambda: atlas.find_elements(By.CSS_SELECTOR, "#atlas-list .found li"))
        assert atlas.find_element(By.ID, "atlas-list-title").text == title
        found = [each.text for each in atlas.find_elements(By.CSS_SELECTOR, "#atlas-list .found li")]
        assert len(found) == len(listed)
    atlas.find_element(By.NAME, "close").click()
    assert "lasso" not in atlas.current_url


@pytest.mark.parametrize("lasso", ["", "1_2_3_4", "a_b_c_d_e_f", "1_2_3_4_5_6_7", "<script>", "_".join(["1"] * 1000)])
def test_a_lasso_that_is_none_in_the_address_shows_the_map_alone(browser, explorer_url, lasso) -> None:
    browser.get(f"{explorer_url}/atlas?lasso={lasso}")
    _until(lambda: browser.execute_script("return document.getElementById('atlas').dataset.across"))
    assert not browser.find_element(By.ID, "atlas-list").is_displayed()
    assert [each for each in browser.get_log("browser") if each["level"] == "SEVERE"] == []


def test_points_within_a_drawn_line_are_found_by_the_even_odd_rule(atlas) -> None:
    """Against the winding of a concave polygon by hand: an L."""
    found = atlas.execute_async_script(
        "const done = arguments[0];"
        "import(document.documentElement.dataset.static + '/lasso.js').then(({ inside }) => done(Array.from("
        "inside([[0, 0], [2, 0], [2, 1], [1, 1], [1, 2], [0, 2]],"
        "Float32Array.of(0.5, 1.5, 1.5, 0.5, 3), Float32Array.of(0.5, 0.5, 1.5, 1.5, 0.5)))));"
    )
    assert found == [1, 1, 0, 1, 0]


def test_colours_follow_the_choice(atlas) -> None:
    for value, words in (("density", "share of rows"), ("meanTop", "mean top"), ("entropy", "nats")):
        atlas.find_element(By.CSS_SELECTOR, f"#atlas-tools option[value={value}]").click()
        assert words in atlas.find_element(By.ID, "atlas-legend").text


def test_a_phrase_colours_the_map_and_lists_the_nearest(atlas, monkeypatch: pytest.MonkeyPatch) -> None:
    from thresher.analysis.explorer import phrases

    def rank(run, text: str):
        return run.shown, np.linspace(0.9, -0.2, len(run.shown), dtype=np.float32)

    monkeypatch.setattr(phrases, "rank", rank)
    monkeypatch.setattr(phrases, "scores", lambda run, text: rank(run, text)[1])
    monkeypatch.setattr(
        phrases, "phrase_space", lambda run: phrases.PhraseSpace(run.shown, np.zeros((1, 1)), np.zeros(1), True)
    )
    atlas.find_element(By.NAME, "phrase").send_keys("a <b>red</b> heart", Keys.ENTER)
    _until(lambda: "Nearest to" in atlas.find_element(By.ID, "atlas-list-title").text)
    assert atlas.find_element(By.ID, "atlas-list-title").text == "Nearest to “a <b>red</b> heart”"
    assert atlas.find_element(By.ID, "atlas-legend").text.count("cosine with the phrase") == 1
    assert len(atlas.find_elements(By.CSS_SELECTOR, "#atlas-list .found li")) == 12
    assert "q=a+%3Cb%3Ered" in atlas.current_url

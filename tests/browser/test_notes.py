"""Tags, notes and sensitive marks made in a browser."""

import json
from pathlib import Path

import pytest
from browsing import wait_until
from explored import make_explored_run
from selenium.webdriver.common.by import By


def wait(browser, holds):
    return wait_until(browser, holds)


def fields(browser) -> dict[str, object]:
    form = browser.find_element(By.CSS_SELECTOR, "#notes form")
    return {name: form.find_element(By.NAME, name) for name in ("tags", "note", "sensitive")}


def saved(browser) -> bool:
    return browser.find_element(By.CSS_SELECTOR, "#notes .state").text == "Saved."


@pytest.fixture(scope="module")
def noted(tmp_path_factory) -> Path:
    return make_explored_run(tmp_path_factory.mktemp("noted"), name="noted").path


@pytest.fixture(scope="module")
def url(noted, serve) -> str:
    return serve([noted])


def test_tags_and_a_note_are_saved_and_survive_reload(browser, url, noted):
    browser.get(f"{url}/f/3")
    fields(browser)["tags"].send_keys("Ears, dogs")
    fields(browser)["note"].send_keys("only <b>side</b> views")
    wait(browser, saved)
    wait(browser, lambda b: "side" in (noted / "annotations.json").read_text())
    browser.refresh()
    assert fields(browser)["tags"].get_attribute("value") == "dogs, ears"
    assert fields(browser)["note"].get_attribute("value") == "only <b>side</b> views"
    browser.get(f"{url}/features?tag=dogs&set=all")
    assert browser.find_element(By.CSS_SELECTOR, "#table tbody th").text == "3"
    browser.get(f"{url}/notes")
    assert "only <b>side</b> views" in browser.find_element(By.TAG_NAME, "table").text


def test_what_was_typed_just_before_the_page_is_left_is_kept(browser, url, noted):
    browser.get(f"{url}/f/4")
    fields(browser)["note"].send_keys("in haste")
    browser.get(f"{url}/features")
    wait(browser, lambda b: "in haste" in (noted / "annotations.json").read_text())


def test_a_sensitive_feature_is_blurred_until_x_is_pressed(browser, url, noted):
    blur = "return getComputedStyle(document.querySelector(arguments[0])).filter"
    browser.get(f"{url}/f/5")
    assert browser.execute_script(blur, "main .grid img") == "none"
    fields(browser)["sensitive"].click()
    wait(browser, saved)
    assert browser.execute_script(blur, "main .grid img") == "blur(14px)"
    browser.get(f"{url}/features?ids=5,6")
    assert browser.execute_script(blur, "#table tr:nth-child(1) img") == "blur(14px)"
    assert browser.execute_script(blur, "#table tr:nth-child(2) img") == "none"
    browser.find_element(By.TAG_NAME, "body").send_keys("x")
    assert browser.execute_script(blur, "#table tr:nth-child(1) img") == "none"
    browser.find_element(By.TAG_NAME, "body").send_keys("x")
    assert browser.execute_script(blur, "#table tr:nth-child(1) img") == "blur(14px)"


def test_a_note_changed_in_another_tab_is_not_written_over(browser, url, noted):
    browser.get(f"{url}/f/7")
    first = browser.current_window_handle
    browser.switch_to.new_window("tab")
    browser.get(f"{url}/f/7")
    fields(browser)["note"].send_keys("from the second tab")
    wait(browser, saved)
    browser.close()
    browser.switch_to.window(first)
    fields(browser)["note"].send_keys("from the first tab")
    wait(browser, lambda b: "was changed elsewhere" in b.find_element(By.CSS_SELECTOR, "#notes .state").text)
    browser.get_log("browser")  # the refused request is logged as such
    fields(browser)["note"].clear()
    fields(browser)["note"].send_keys("from the second tab")
    wait(browser, saved)
    features = json.loads((noted / "annotations.json").read_text())["features"]
    assert features["7"]["note"] == "from the second tab"


def test_annotations_of_another_machine_are_added_from_a_file(browser, url, noted, tmp_path):
    features = {"9": {"tags": ["from afar"]}}
    file = tmp_path / "theirs.json"
    file.write_text(json.dumps({"format": "thresher-annotations", "format_version": 1, "features": features}))
    browser.get(f"{url}/notes")
    browser.find_element(By.CSS_SELECTOR, "#import input").send_keys(str(file))
    wait(browser, lambda b: "from afar" in b.find_element(By.TAG_NAME, "main").text)
    assert json.loads((noted / "annotations.json").read_text())["features"]["9"] == {"tags": ["from afar"]}

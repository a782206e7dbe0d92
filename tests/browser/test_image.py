"""The page of an image, in a real browser."""

import pytest
from browsing import wait_until
from live_run import make_live_run
from selenium.webdriver.common.by import By


@pytest.fixture(scope="module")
def live_url(tmp_path_factory, serve):
    return serve([make_live_run(tmp_path_factory.mktemp("live"))])


def until(browser, condition, seconds=10):
    return wait_until(browser, condition, seconds)


def all_of(browser, selector):
    return browser.find_elements(By.CSS_SELECTOR, selector)


def test_an_image_shows_its_features_its_picture_and_similar_images_that_lead_on(browser, explorer_url):
    browser.get(f"{explorer_url}/i/5")
    until(browser, lambda b: all_of(b, "#similar img"))
    until(browser, lambda b: all_of(b, "#picture.full"))
    assert "32 × 32 pixels" in browser.find_element(By.ID, "size").text
    values = [float(each.text.replace(",", "")) for each in all_of(browser, ".firings .value")]
    assert values == sorted(values, reverse=True)
    assert len(values) > 2
    widths = [each.size["width"] for each in all_of(browser, ".firings rect")]
    assert widths == pytest.approx([widths[0] * value / values[0] for value in values], rel=0.02, abs=1)
    target = all_of(browser, "#similar a")[0].get_attribute("href")
    all_of(browser, "#similar a")[0].click()
    until(browser, lambda b: b.current_url == target)


def test_the_arrows_lead_to_the_images_before_and_after(browser, explorer_url):
    browser.get(f"{explorer_url}/i/0")
    assert not all_of(browser, "a[rel=prev]")
    browser.find_element(By.CSS_SELECTOR, "a[rel=next]").click()
    until(browser, lambda b: b.current_url.endswith("/i/1"))
    browser.find_element(By.CSS_SELECTOR, "a[rel=prev]").click()
    until(browser, lambda b: b.current_url.endswith("/i/0"))


@pytest.mark.parametrize("row", [17, 239])
def test_an_unreadable_image_and_the_last_one_have_pages(browser, explorer_url, row):
    browser.get(f"{explorer_url}/i/{row}")
    assert f"Image {row}" in browser.find_element(By.TAG_NAME, "h1").text


def test_on_a_phone_nothing_is_wider_than_the_screen(browser, explorer_url):
    browser.set_window_size(500, 800)  # the narrowest window that Chromium makes
    browser.get(f"{explorer_url}/i/5")
    until(browser, lambda b: all_of(b, "#similar img"))
    script = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert browser.execute_script(script) <= 0


def test_more_features_come_by_a_button_and_the_first_of_them_has_the_focus(browser, live_url):
    browser.get(f"{live_url}/i/3")
    lines = len(all_of(browser, "#firings > li"))
    assert lines == 6  # all that a TopK SAE of k = 6 has: no button
    assert not all_of(browser, "#more")
    line = {"value": 0.5, "share": 0.1, "name": "<b>", "density": 0.1, "is_uld": True, "is_sensitive": True}
    more = [{**line, "feature": i, "images": [{"row": 0, "value": 1, "name": "<i>"}]} for i in range(30)]
    browser.execute_script(
        """
        document.querySelector("#firings").insertAdjacentHTML("afterend", '<p><button id="more" hidden></button></p>');
        const data = document.createElement("script");
        Object.assign(data, { type: "application/json", id: "more-features" });
        data.textContent = JSON.stringify(arguments[0]);
        document.body.append(data);
        const again = document.createElement("script");
        Object.assign(again, { type: "module", src: "/static/image.js?again" });
        document.head.append(again);
        """,
        more,
    )
    button = browser.find_element(By.ID, "more")
    until(browser, lambda b: button.is_displayed())
    button.click()
    assert len(all_of(browser, "#firings > li")) == lines + 24
    assert browser.switch_to.active_element.text == "0"
    assert all_of(browser, "#firings .name")[0].text == "<b>"
    button.click()
    assert len(all_of(browser, "#firings > li")) == lines + 30
    assert not button.is_displayed()


def test_zero_shot_runs_the_tower_on_demand(browser, live_url):
    browser.get(f"{live_url}/i/3")
    assert not all_of(browser, ".chances")
    browser.find_element(By.ID, "zero-shot-run").click()
    until(browser, lambda b: all_of(b, ".chances"), 120)
    assert [each.text for each in all_of(browser, ".chances thead th")] == ["Class", "original", "with the SAE"]
    assert len(all_of(browser, ".chances tbody tr")) == 4
    assert len(all_of(browser, ".chances tr.own")) == 1
    assert "Among 4 classes" in browser.find_element(By.ID, "zero-shot-status").text


def test_where_the_tower_is_not_at_hand_the_reason_is_shown(browser, explorer_url):
    browser.get(f"{explorer_url}/i/5")
    browser.find_element(By.ID, "zero-shot-run").click()
    status = browser.find_element(By.ID, "zero-shot-status")
    until(browser, lambda b: "made up" in status.text)
    until(browser, lambda b: all_of(b, "#similar img"))
    complaints = browser.get_log("browser")  # of the answer 503, which is what this is about
    assert [entry for entry in complaints if "503" not in entry["message"]] == []


def test_features_are_ordered_by_what_they_contribute_to_a_class_and_back(browser, live_url):
    browser.get(f"{live_url}/i/0")
    ids = "return [...document.querySelectorAll('#firings > li a.id')].map((each) => each.textContent)"
    before = browser.execute_script(ids)
    field = browser.find_element(By.NAME, "class")
    field.clear()
    field.send_keys("zebra")
    browser.find_element(By.CSS_SELECTOR, "#contributions button").click()
    wait_until(browser, lambda b: b.find_elements(By.CSS_SELECTOR, "#firings .gives"), 120)
    given = (
        "return [...document.querySelectorAll('#firings .gives .value')].map((e) => +e.textContent.replace('−', '-'))"
    )
    values = browser.execute_script(given)
    assert values == sorted(values, reverse=True)
    assert sorted(browser.execute_script(ids)) == sorted(before)
    assert "through the tower's head alone" in browser.find_element(By.CSS_SELECTOR, "#contributions .soft").text
    browser.find_element(By.NAME, "back").click()
    assert browser.execute_script(ids) == before
    assert browser.find_elements(By.CSS_SELECTOR, "#firings .gives") == []

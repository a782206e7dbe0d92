"""Your image, in a real browser: chosen, dropped and pasted, sliders, refusals."""

import base64
import io

import numpy as np
import pytest
from browsing import wait_until
from live_run import make_live_run
from PIL import Image
from selenium.webdriver.common.by import By


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("live")


@pytest.fixture(scope="module")
def live_url(folder, serve):
    return serve([make_live_run(folder)])


@pytest.fixture
def page(browser, live_url):
    browser.get(f"{live_url}/upload")
    until(browser, lambda b: "loaded" not in b.find_element(By.ID, "status").text, 120)
    return browser


def until(browser, condition, seconds=20):
    return wait_until(browser, condition, seconds)


def all_of(browser, selector):
    return browser.find_elements(By.CSS_SELECTOR, selector)


def is_shown(browser):
    return all_of(browser, "#firings li") and all_of(browser, "#similar img")


def column(browser, place):
    script = "return [...document.querySelectorAll(arguments[0])].map((each) => each.textContent)"
    return browser.execute_script(script, f".chances tbody td:nth-child({place})")  # at once: tables are replaced


def give(browser, folder, name="zebra/1.png"):
    browser.find_element(By.ID, "file").send_keys(str(folder / "pictures" / name))
    until(browser, is_shown)


def test_a_chosen_picture_is_shown_with_its_features_and_is_most_like_itself(page, folder):
    give(page, folder)
    assert len(all_of(page, "#firings > li")) == 6
    assert all_of(page, "#similar .value")[0].text == "1"
    assert page.execute_script("return document.getElementById('seen').naturalWidth") == 64
    assert page.execute_script("return document.getElementById('own').naturalWidth") == 80
    assert [each.text for each in all_of(page, ".chances thead th")] == ["Class", "original", "with the SAE"]
    assert page.find_element(By.ID, "status").text == ""


def move(browser, slider, value):
    browser.execute_script(
        "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input', { bubbles: true }))",
        slider,
        value,
    )


def test_sliders_and_boxes_change_what_clip_sees_and_are_undone(page, folder):
    give(page, folder)
    original = column(page, 2)
    sliders = all_of(page, ".edit input[type=range]")
    assert len(sliders) == 6
    move(page, sliders[0], 3)
    all_of(page, ".edit input[type=checkbox]")[1].click()
    until(page, lambda b: len(all_of(b, ".chances thead th")) == 4)
    assert not sliders[1].is_enabled()
    assert [each.text for each in all_of(page, ".edit output")[:3]] == ["× 3", "× 0", "× 1"]
    until(page, lambda b: column(b, 4) != original)
    changed = page.find_element(By.ID, "zero-shot-status").text
    assert "with and without your changes" in changed
    page.find_element(By.ID, "reset").click()
    until(page, lambda b: column(b, 4) == original)
    assert "changes: 1." in page.find_element(By.ID, "zero-shot-status").text
    assert not page.find_element(By.ID, "reset").is_enabled()
    page.find_element(By.ID, "keep-error").click()
    until(page, lambda b: column(b, 4) == column(b, 3))


def test_a_picture_that_the_server_let_go_of_is_sent_again(page, folder):
    give(page, folder)
    sent = base64.b64encode((folder / "pictures" / "apple" / "0.png").read_bytes()).decode()
    for _ in range(9):
        script = """
            const [text, done] = arguments;
            const body = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
            fetch("/upload/picture.json", { method: "POST", body }).then((r) => r.json()).then((r) => done(r.l0));
            """
        assert page.execute_async_script(script, sent) == 6
    move(page, all_of(page, ".edit input[type=range]")[0], 0)
    until(page, lambda b: len(all_of(b, ".chances thead th")) == 4)


@pytest.mark.parametrize("how", ["drop", "paste"])
def test_a_picture_may_be_dropped_or_pasted(page, how):
    saved = io.BytesIO()
    Image.fromarray(np.full((50, 60, 3), 90, np.uint8)).save(saved, "PNG")
    page.execute_script(
        """
        const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0));
        const data = new DataTransfer();
        data.items.add(new File([bytes], "grey.png", { type: "image/png" }));
        const how = { bubbles: true, cancelable: true };
        document.body.dispatchEvent(arguments[1] === "drop" ? new DragEvent("drop", { ...how, dataTransfer: data })
          : new ClipboardEvent("paste", { ...how, clipboardData: data }));
        """,
        base64.b64encode(saved.getvalue()).decode(),
        how,
    )
    until(page, is_shown)
    assert page.execute_script("return document.getElementById('own').naturalWidth") == 60


def test_what_is_no_picture_is_refused_in_words(page, folder):
    other = folder / "other.png"
    other.write_bytes(b"not a picture")
    page.find_element(By.ID, "file").send_keys(str(other))
    until(page, lambda b: "no picture in one of the formats" in b.find_element(By.ID, "status").text)
    assert not page.find_element(By.ID, "result").is_displayed()
    large = folder / "large.png"
    large.write_bytes(b"x" * ((10 << 20) + 1))
    page.find_element(By.ID, "file").send_keys(str(large))
    until(page, lambda b: "at most 10 are taken" in b.find_element(By.ID, "status").text)
    complaints = page.get_log("browser")  # of the answer 400, which is what this is about
    assert [entry for entry in complaints if "400" not in entry["message"]] == []


def test_without_the_tower_the_page_says_so_and_takes_nothing(browser, explorer_url):
    browser.get(f"{explorer_url}/upload")
    status = browser.find_element(By.ID, "status")
    until(browser, lambda b: "tiny" in status.text, 120)
    assert not browser.find_element(By.ID, "file").is_enabled()


def test_on_a_phone_nothing_is_wider_than_the_screen(page, folder):
    page.set_window_size(500, 800)  # the narrowest window that Chromium makes
    give(page, folder)
    script = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.execute_script(script) <= 0

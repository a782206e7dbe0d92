"""A static export opened from its folder: scatter, search, keys, the list, the game, both runs."""

import time

import pytest
from browsing import wait_until
from explored import make_explored_run
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select
from thresher.analysis.explorer.export import export_site
from thresher.analysis.explorer.options import ExportOptions
from thresher.analysis.explorer.runs import ExploredRun


@pytest.fixture(scope="module")
def run(made):
    return ExploredRun(made.path)


@pytest.fixture(scope="module")
def site(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site") / "site"
    export_site([made.path, made.path.with_name("run-2")], folder, ExportOptions(images=60, rounds=4))
    return folder.as_uri()


def wait(browser, until, seconds=20):
    return wait_until(browser, until, seconds)


def press(browser, keys):
    browser.find_element(By.TAG_NAME, "body").send_keys(keys)


def test_every_kind_of_page_opens_without_a_complaint(browser, site, run):
    row = next(iter(sorted(run.stored.statistics.top_row[run.shown, 0].tolist())))
    for page in ("index", "features", "game", "compare", "notes", "c", f"f/{run.shown[0]}", f"i/{row}", "c/5"):
        browser.get(f"{site}/{page}.html")
        time.sleep(0.3)
        assert browser.find_element(By.TAG_NAME, "h1").text, page
        broken = browser.execute_script(
            "return [...document.images].filter((i) => i.complete && i.getAttribute('src') && i.naturalWidth === 0)"
            ".map((i) => i.src)"
        )
        assert broken == [], page


def test_j_and_k_walk_along_the_exported_features(browser, site, run):
    first, second = run.shown[:2].tolist()
    browser.get(f"{site}/f/{first}.html")
    press(browser, "j")
    wait(browser, lambda b: b.current_url.endswith(f"/f/{second}.html"))
    press(browser, "k")
    wait(browser, lambda b: b.current_url.endswith(f"/f/{first}.html"))


def test_a_number_is_searched_and_leads_to_its_feature(browser, site, run):
    wanted = int(run.shown[5])
    browser.get(f"{site}/index.html")
    press(browser, "/")
    browser.switch_to.active_element.send_keys(str(wanted), Keys.ENTER)
    wait(browser, lambda b: b.current_url.endswith(f"/f/{wanted}.html"))


@pytest.mark.parametrize(("text", "said"), [("99999", "feature 99999"), ("img:99999", "image 99999")])
def test_what_has_no_page_in_the_export_is_said_where_it_is_typed(browser, site, text, said):
    browser.get(f"{site}/index.html")
    press(browser, "/")
    field = browser.switch_to.active_element
    field.send_keys(text, Keys.ENTER)
    wait(browser, lambda b: field.get_property("validationMessage"))
    assert field.get_property("validationMessage") == f"This export holds no page of {said}."
    assert browser.current_url == f"{site}/index.html"
    field.send_keys("x")
    assert field.get_property("validationMessage") == ""


def test_words_are_searched_in_the_list(browser, site):
    browser.get(f"{site}/index.html")
    press(browser, "/")
    browser.switch_to.active_element.send_keys("class 6", Keys.ENTER)
    wait(browser, lambda b: "features.html?" in b.current_url)
    wait(browser, lambda b: b.find_elements(By.CSS_SELECTOR, "table tbody tr"))
    rows = browser.find_elements(By.CSS_SELECTOR, "table tbody tr")
    assert all("class 6" in row.text for row in rows)


def test_a_point_of_the_scatter_opens_its_feature(browser, site, run):
    browser.get(f"{site}/index.html")
    scatter = wait(browser, lambda b: b.find_element(By.CSS_SELECTOR, ".scatter[data-draw-ms]"))
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", scatter)
    for _ in range(40):  # a point is somewhere along this way
        scatter.send_keys(Keys.ARROW_RIGHT)
        scatter.send_keys(Keys.ENTER)
        if "/f/" in browser.current_url:
            break
    else:
        pytest.fail("no key led to a feature")
    assert int(browser.current_url.rsplit("/", 1)[1].removesuffix(".html")) in run.shown


def test_the_game_is_played_to_its_answer(browser, tmp_path):
    run = make_explored_run(tmp_path, n_features=256, n_images=600, n_labels=24).path  # it takes some to have a game
    export_site([run], tmp_path / "site", ExportOptions(features="0,1,2", images=5, rounds=2))
    site = (tmp_path / "site").as_uri()
    browser.get(f"{site}/game.html?n=0&mode=four")
    wait(browser, lambda b: len(b.find_elements(By.CSS_SELECTOR, "#guess button img")) == 4)
    wait(browser, lambda b: b.execute_script("return document.querySelector('#guess img').naturalWidth > 0"))
    press(browser, "c")  # the next grid
    press(browser, "2")
    wait(browser, lambda b: b.find_element(By.CSS_SELECTOR, "#result .verdict").text)
    assert browser.find_element(By.ID, "played").text == "1"
    wait(browser, lambda b: b.execute_script("return document.getElementById('sharp').naturalWidth > 0"))


def test_the_other_run_is_chosen_in_the_bar_and_has_its_own_pages(browser, site):
    browser.get(f"{site}/index.html")
    Select(browser.find_element(By.ID, "runs")).select_by_visible_text("run-2")
    wait(browser, lambda b: b.current_url.endswith("/runs/run-2/index.html"))
    press(browser, "r")
    wait(browser, lambda b: "/runs/run-2/f/" in b.current_url)


def test_two_runs_are_compared(browser, site):
    browser.get(f"{site}/compare.html")
    before = browser.find_element(By.ID, "recovered-a").text
    slider = browser.find_element(By.ID, "threshold")
    for _ in range(20):
        slider.send_keys(Keys.ARROW_RIGHT)
    assert browser.find_element(By.ID, "threshold-text").text == "0.90"
    assert float(browser.find_element(By.ID, "recovered-a").text.split()[0]) <= float(before.split()[0])
    assert browser.find_elements(By.CSS_SELECTOR, "#scatter canvas")

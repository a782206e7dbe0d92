"""Names and pictures in a browser: a name of one's own, the best and worst named, filters, pictures, the atlas."""

import json
from pathlib import Path

import pytest
from browsing import axe_findings, wait_until
from explored import give_meaning, make_explored_run
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select
from thresher.analysis.explorer.export import export_site
from thresher.analysis.explorer.feature_query import read_filters
from thresher.analysis.explorer.options import ExportOptions
from thresher.analysis.explorer.page import Query
from thresher.analysis.explorer.pages.features import selected
from thresher.analysis.explorer.runs import ExploredRun

N = 60


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    made = make_explored_run(tmp_path_factory.mktemp("meaning"), n_features=N, n_images=200, name="meant")
    give_meaning(made.path, N)
    return made.path


@pytest.fixture(scope="module")
def url(path, serve) -> str:
    return serve([path])


def heading(browser) -> str:
    return browser.find_element(By.TAG_NAME, "h1").text


def state(browser) -> str:
    return browser.find_element(By.CSS_SELECTOR, "#naming .state").text


def own(browser):
    return browser.find_element(By.NAME, "own")


def shown_ids(browser) -> list[int]:
    return browser.execute_script(
        "return [...document.querySelectorAll('#table tbody th a')].map((a) => Number(a.textContent))"
    )


def test_a_name_that_is_typed_is_kept_undone_and_removed(browser, url, path):
    browser.get(f"{url}/f/12")
    assert heading(browser) == "Feature 12 striped flag 12"
    own(browser).send_keys("my <b>flag</b>\n")
    wait_until(browser, lambda b: state(b) == "Saved.")
    assert heading(browser) == "Feature 12 my <b>flag</b>"
    assert browser.find_element(By.ID, "own-badge").is_displayed()
    own(browser).send_keys(" again")
    browser.find_element(By.CSS_SELECTOR, "#naming [type=submit]").click()
    wait_until(browser, lambda b: heading(b) == "Feature 12 my <b>flag</b> again")
    browser.find_element(By.NAME, "undo").click()
    wait_until(browser, lambda b: heading(b) == "Feature 12 my <b>flag</b>")
    browser.refresh()
    assert own(browser).get_attribute("value") == "my <b>flag</b>"
    assert json.loads((path / "annotations.json").read_text())["features"]["12"] == {"name": "my <b>flag</b>"}
    browser.get(f"{url}/features?set=all&q=my")
    assert shown_ids(browser) == [12]
    assert "yours" in browser.find_element(By.CSS_SELECTOR, "td.name").text
    browser.get(f"{url}/f/12")
    browser.find_element(By.NAME, "clear").click()
    wait_until(browser, lambda b: state(b) == "Removed.")
    assert heading(browser) == "Feature 12 striped flag 12"
    assert not browser.find_element(By.ID, "own-badge").is_displayed()
    browser.find_element(By.NAME, "undo").click()
    wait_until(browser, lambda b: heading(b) == "Feature 12 my <b>flag</b>")
    browser.find_element(By.NAME, "clear").click()
    wait_until(browser, lambda b: state(b) == "Removed.")
    assert json.loads((path / "annotations.json").read_text())["features"] == {}


def test_the_best_and_the_worst_named_stand_at_either_end(browser, url):
    browser.get(f"{url}/features?set=all")
    browser.find_element(By.LINK_TEXT, "Best named").click()
    wait_until(browser, lambda b: shown_ids(b)[:3] == [0, 1, 2])
    browser.find_element(By.LINK_TEXT, "Worst named").click()
    wait_until(browser, lambda b: shown_ids(b)[0] > 3)
    scores = browser.execute_script("return [...document.querySelectorAll('td.name_score')].map((c) => +c.textContent)")
    assert scores == sorted(scores)
    browser.find_element(By.CSS_SELECTOR, "[data-sort=name_score]").click()
    wait_until(browser, lambda b: shown_ids(b)[:3] == [0, 1, 2])
    assert browser.find_element(By.CSS_SELECTOR, "th.name_score").get_attribute("aria-sort") == "descending"


def test_filters_by_agreement_verdict_and_name_survive_reload(browser, url):
    browser.get(f"{url}/features?set=all")
    browser.find_element(By.NAME, "a").send_keys("30:")
    wait_until(browser, lambda b: shown_ids(b)[:2] == [18, 20])
    Select(browser.find_element(By.NAME, "verdict")).select_by_value("passed")
    wait_until(browser, lambda b: shown_ids(b) == [20, 30, 40, 50])
    Select(browser.find_element(By.NAME, "named")).select_by_visible_text("named")
    wait_until(browser, lambda b: "named=1" in b.current_url)
    browser.refresh()
    assert shown_ids(browser) == [20, 30, 40, 50]
    assert browser.find_element(By.NAME, "a").get_attribute("value") == "30:"
    assert Select(browser.find_element(By.NAME, "verdict")).first_selected_option.text == "passed"
    assert {cell.text for cell in browser.find_elements(By.CSS_SELECTOR, "td.verdict")} == {"passed"}


def test_pictures_of_all_seeds_are_shown_with_their_verdict(browser, url):
    browser.get(f"{url}/f/20")
    loaded = "return [...document.querySelectorAll('.made img')].map((i) => i.complete && i.naturalWidth)"
    browser.find_element(By.ID, "visualised").location_once_scrolled_into_view  # noqa: B018 (they load when seen)
    wait_until(browser, lambda b: b.execute_script(loaded) == [32, 32, 32])
    assert "passed" in browser.find_element(By.ID, "visualised").text
    browser.get(f"{url}/f/21")
    assert "striped flag are larger on it" in browser.find_element(By.ID, "visualised").text


def test_the_atlas_names_what_is_pointed_at_and_what_the_lasso_holds(browser, url):
    browser.get(f"{url}/atlas")
    wait_until(browser, lambda b: b.find_element(By.ID, "atlas").get_attribute("data-named") is not None)
    browser.find_element(By.ID, "atlas").send_keys("+")
    wait_until(browser, lambda b: b.find_element(By.ID, "atlas-said").text.startswith("Feature "))
    said = browser.find_element(By.ID, "atlas-said").text
    feature = int(said.removeprefix("Feature ").split(",")[0])
    assert said.endswith(f"striped flag {feature}") == (feature % 10 < 4)


@pytest.fixture(scope="module")
def site(path, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "site"
    export_site([path], folder, ExportOptions(features="all", images=0, rounds=0))
    return folder


@pytest.mark.parametrize(
    "query",
    [
        "named=1&sort=name_score",
        "named=1&sort=name_score&order=asc",
        "named=unnamed",
        "verdict=failed",
        "verdict=passed&a=30:",
        "s=0.97:0.98",
        "sort=agreement",
        "sort=verdict&order=asc",
        "q=flag 2",
    ],
)
def test_a_static_site_filters_and_sorts_by_names_and_pictures_as_the_server_does(browser, path, site, query):
    values = dict(each.split("=") for each in query.split("&"))
    wanted = selected(ExploredRun(path), read_filters(Query(values={**values, "set": "all"}))).ids.tolist()
    browser.get(f"{(site / 'features.html').as_uri()}?set=all&{query}")
    wait_until(browser, lambda b: shown_ids(b) == wanted)


def test_a_static_site_shows_names_and_pictures_without_a_server(browser, site):
    browser.get((site / "f" / "20.html").as_uri())
    assert heading(browser) == "Feature 20 striped flag 20"
    browser.find_element(By.ID, "visualised").location_once_scrolled_into_view  # noqa: B018 (they load when seen)
    loaded = "return [...document.querySelectorAll('.made img')].map((i) => i.complete && i.naturalWidth)"
    wait_until(browser, lambda b: b.execute_script(loaded) == [32, 32, 32])
    assert not browser.find_elements(By.NAME, "own")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "dark"), (375, "light")])
def test_axe_finds_nothing_serious_where_there_are_names_and_pictures(browser, url, width, scheme):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        for page in ("/f/20", "/f/21", "/f/4", "/features?set=all", "/notes"):
            browser.get(url + page)
            wait_until(browser, lambda b: b.execute_script("return document.readyState === 'complete'"))
            assert [each for each in axe_findings(browser) if each[0] in ("serious", "critical")] == [], page
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width, page
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})

"""The table of features in a browser: filtered as one types, its state in the address."""

import csv
import io
import urllib.request
from urllib.parse import urlencode

import pytest
from browsing import wait_until
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from thresher.analysis.explorer.export import export_site
from thresher.analysis.explorer.feature_query import read_filters
from thresher.analysis.explorer.options import ExportOptions
from thresher.analysis.explorer.page import Query
from thresher.analysis.explorer.pages.features import selected
from thresher.analysis.explorer.runs import ExploredRun


def wait(browser, holds):
    return wait_until(browser, holds)


def shown_ids(browser) -> list[int]:
    return browser.execute_script(
        "return [...document.querySelectorAll('#table tbody th a')].map((a) => Number(a.textContent))"
    )


def count(browser) -> str:
    return browser.find_element(By.ID, "count").text


def test_a_filter_typed_into_the_form_survives_reload_and_back(browser, explorer_url):
    browser.get(f"{explorer_url}/features?set=all")
    assert count(browser) == "96 features"
    browser.find_element(By.NAME, "e").send_keys("0:0")
    wait(browser, lambda b: "e=0:0" in b.current_url and count(b) != "96 features")
    found, filtered = count(browser), shown_ids(browser)
    browser.refresh()
    assert browser.find_element(By.NAME, "e").get_attribute("value") == "0:0"
    assert (count(browser), shown_ids(browser)) == (found, filtered)
    browser.find_element(By.CSS_SELECTOR, "#table tbody th a").click()
    wait(browser, lambda b: "/f/" in b.current_url)
    browser.back()
    wait(browser, lambda b: "/features" in b.current_url)
    assert (count(browser), shown_ids(browser)) == (found, filtered)


def test_a_columns_head_sorts_both_ways_and_back_undoes_it(browser, explorer_url):
    browser.get(f"{explorer_url}/features?set=all")
    first = shown_ids(browser)
    browser.find_element(By.CSS_SELECTOR, "[data-sort=density]").click()
    wait(browser, lambda b: shown_ids(b) != first)
    falling = shown_ids(browser)
    assert browser.find_element(By.CSS_SELECTOR, "th.density").get_attribute("aria-sort") == "descending"
    browser.find_element(By.CSS_SELECTOR, "[data-sort=density]").click()
    wait(browser, lambda b: shown_ids(b) != falling)
    assert "sort=density&order=asc" in browser.current_url
    rows = browser.execute_script("return [...document.querySelectorAll('td.density')].map((c) => c.textContent)")
    numbers = [float(text) for text in rows if text != "–"]
    assert numbers == sorted(numbers)
    assert rows[len(numbers) :] == ["–"] * (len(rows) - len(numbers))
    assert len(numbers) < len(rows)
    browser.back()
    wait(browser, lambda b: shown_ids(b) == falling)
    browser.back()
    wait(browser, lambda b: shown_ids(b) == first)


def test_rows_made_by_the_script_are_those_of_the_server(browser, explorer_url):
    browser.get(f"{explorer_url}/features?set=all&sort=entropy")
    text = "return [document.querySelector('#table').innerText, document.querySelectorAll('#table img').length]"
    of_server = browser.execute_script(text)
    browser.get(f"{explorer_url}/features?set=all")
    browser.find_element(By.CSS_SELECTOR, "[data-sort=entropy]").click()
    wait(browser, lambda b: b.find_elements(By.CSS_SELECTOR, "th.entropy[aria-sort=ascending]"))
    assert browser.execute_script(text) == of_server


def test_j_and_k_walk_along_the_filtered_list(browser, explorer_url):
    browser.get(f"{explorer_url}/features?set=all&sort=max")
    order = shown_ids(browser)
    key = "return JSON.parse(sessionStorage.getItem('thresher-list-run') ?? '[]')"
    wait(browser, lambda b: b.execute_script(key) == order)
    browser.find_element(By.CSS_SELECTOR, "#table tbody tr:nth-child(3) th a").click()
    wait(browser, lambda b: b.current_url.endswith(f"/f/{order[2]}"))
    browser.find_element(By.TAG_NAME, "body").send_keys("j")
    wait(browser, lambda b: b.current_url.endswith(f"/f/{order[3]}"))
    browser.find_element(By.TAG_NAME, "body").send_keys("k")
    wait(browser, lambda b: b.current_url.endswith(f"/f/{order[2]}"))


def test_the_csv_link_gives_the_list_that_is_shown(browser, explorer_url):
    browser.get(f"{explorer_url}/features?set=all")
    browser.find_element(By.NAME, "d").send_keys("-1:")
    wait(browser, lambda b: "d=-1:" in b.current_url and count(b) != "96 features")
    address = browser.find_element(By.LINK_TEXT, "CSV").get_attribute("href")
    with urllib.request.urlopen(address) as answer:
        lines = list(csv.DictReader(io.StringIO(answer.read().decode())))
    assert [int(line["feature"]) for line in lines] == shown_ids(browser)


def test_a_range_that_makes_no_sense_is_named_and_the_table_stays(browser, explorer_url):
    browser.get(f"{explorer_url}/features")
    before = shown_ids(browser)
    browser.find_element(By.NAME, "d").send_keys("-4")
    message = browser.find_element(By.ID, "message")
    wait(browser, lambda b: "d must be two numbers" in message.text)
    assert shown_ids(browser) == before
    browser.get_log("browser")  # the refused request is logged as such
    browser.find_element(By.NAME, "d").send_keys(":")
    wait(browser, lambda b: not message.is_displayed())


def test_words_in_the_bar_lead_to_the_list(browser, explorer_url):
    browser.get(f"{explorer_url}/features")
    browser.find_element(By.TAG_NAME, "body").send_keys("/")
    browser.switch_to.active_element.send_keys("class 5", Keys.ENTER)
    wait(browser, lambda b: "q=class" in b.current_url)
    labels = browser.execute_script("return [...document.querySelectorAll('td.label a')].map((a) => a.textContent)")
    assert labels
    assert set(labels) == {"class 5"}


@pytest.fixture(scope="module")
def site(made, tmp_path_factory) -> str:
    """Address of an export of the first run's features, all of them."""
    folder = tmp_path_factory.mktemp("exported") / "site"
    export_site([made.path], folder, ExportOptions(features="all", images=2, rounds=1))
    return folder.as_uri()


@pytest.mark.parametrize(
    "values",
    [
        {"set": "all", "sort": "entropy", "order": "desc"},
        {"set": "all", "sort": "label"},
        {"set": "post", "sort": "density"},
        {"set": "uld", "m": ":-1"},
        {"d": "-1.2:-0.5", "e": "0.1:", "sort": "max", "order": "asc"},
        {"set": "all", "ids": "40,7,3,90"},
        {"set": "all", "label": "5"},
        {"q": "class 5"},
    ],
)
def test_an_export_lists_what_the_server_lists(browser, made, site, values):
    run = ExploredRun(made.path)
    expected = selected(run, read_filters(Query(values=values))).ids.tolist()
    assert expected
    browser.get(f"{site}/features.html?{urlencode(values)}")
    wait(browser, lambda b: count(b) == f"{len(expected)} features")
    wait(browser, lambda b: shown_ids(b) == expected)


def test_a_filter_in_an_export_survives_reload(browser, site):
    browser.get(f"{site}/features.html")
    before = count(browser)
    browser.find_element(By.NAME, "e").send_keys("0:0")
    wait(browser, lambda b: count(b) != before)
    found = shown_ids(browser)
    browser.refresh()
    wait(browser, lambda b: shown_ids(b) == found)

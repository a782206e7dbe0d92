"""The game in a real browser, to its end in both modes, from a server and from files."""

import hashlib
import json
import re
from importlib.resources import files
from pathlib import Path

import pytest
from browsing import wait_until
from explored import make_explored_run
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from thresher.analysis.explorer.bundle import bundle
from thresher.analysis.explorer.game_choice import game_of
from thresher.analysis.explorer.game_export import export_rounds
from thresher.analysis.explorer.page import Query
from thresher.analysis.explorer.pages.game import CHAPTER
from thresher.analysis.explorer.render import render_page
from thresher.analysis.explorer.runs import ExploredRun
from thresher.analysis.explorer.several import Explorer
from thresher.analysis.explorer.urls import Urls


@pytest.fixture(scope="module")
def explorer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("game")
    return Explorer([make_explored_run(folder, n_features=256, n_images=600, n_labels=24).path])


@pytest.fixture(scope="module")
def run(explorer) -> ExploredRun:
    return explorer.runs[0]


@pytest.fixture(scope="module")
def game_url(run, serve):
    return serve([run.path])


def until(browser, condition):
    return wait_until(browser, condition)


def at(browser, name):
    return until(browser, lambda b: b.find_element(By.ID, name))


def click(browser, name):
    until(browser, lambda b: b.find_element(By.ID, name).is_displayed())
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", at(browser, name))
    at(browser, name).click()


def verdict(browser):
    return until(browser, lambda b: b.find_element(By.CSS_SELECTOR, "#result .verdict")).text


def all_pictures_load(browser):
    script = "return [...document.querySelectorAll('main img')].every((i) => i.complete && i.naturalWidth > 0)"
    return until(browser, lambda b: b.execute_script(script))


def test_four_choices_are_played_to_their_end(browser, game_url, run):
    game, points = game_of(run), 0
    browser.get(f"{game_url}/game?seed=3")
    for n in range(3):
        choices = game.choices(3, n)
        until(browser, lambda b, n=n: f"n={n}" in b.current_url)
        assert f"Round {n + 1} of seed 3" in at(browser, "where").text
        for clue in range(n):
            click(browser, f"open-{clue}")
            until(browser, lambda b, clue=clue: b.find_elements(By.CSS_SELECTOR, f"#clue-{clue} img"))
        assert len(browser.find_elements(By.CSS_SELECTOR, "#clues button:enabled")) == 1, "one by one"
        all_pictures_load(browser)
        is_right = n != 1
        click(browser, f"choice-{choices.place if is_right else (choices.place + 1) % 4}")
        assert verdict(browser) == ("Right." if is_right else "Wrong.")
        assert "is-answer" in at(browser, f"choice-{choices.place}").get_attribute("class")
        assert at(browser, "answer").get_attribute("href") == f"{game_url}/i/{choices.rows[choices.place]}"
        points += is_right * (5 - n) * 1.5
        assert float(at(browser, "points").text) == points
        assert at(browser, "streak").text == str(int(is_right))
        all_pictures_load(browser)
        click(browser, "next")
    until(browser, lambda b: "n=3" in b.current_url)
    assert at(browser, "accuracy").text.startswith("Human accuracy: 2 of 3 right among four (chance: 25 %): 67 %")
    assert "(95 % interval 21 % to 94 %), with 1.0 of 5 grids open" in at(browser, "accuracy").text  # Wilson's, by hand


def test_the_blurred_picture_costs_nothing_among_four_and_its_rounds_count_apart(browser, game_url, run):
    browser.get(f"{game_url}/game?seed=4&mode=four")
    assert "worth 5 now, 7.5" in at(browser, "worth").text
    click(browser, "show-blurred")
    all_pictures_load(browser)
    assert "worth 5 now, 7.5" in at(browser, "worth").text
    click(browser, f"choice-{game_of(run).choices(4, 0).place}")
    assert verdict(browser) == "Right."
    assert at(browser, "points").text == "7.5"
    assert "1 of 1 right among four with the blurred image seen" in at(browser, "accuracy").text


def test_a_round_counts_once(browser, game_url, run):
    place = game_of(run).choices(5, 0).place
    for wrong in (1, 0):
        browser.get(f"{game_url}/game?seed=5&mode=four")
        click(browser, f"choice-{(place + wrong) % 4}")
        verdict(browser)
        assert at(browser, "points").text == "0"
        assert at(browser, "played").text == "1"
    assert "counts once" in at(browser, "result").text
    click(browser, "forget")
    assert at(browser, "played").text == "0"
    assert at(browser, "accuracy").text == "No round played yet."


def test_free_mode_is_played_with_a_typed_label_and_in_the_mind(browser, game_url, run):
    game = game_of(run)
    seed = next(seed for seed in range(99) if game.round(seed, 0).label >= 5)
    browser.get(f"{game_url}/game?seed={seed}&mode=free")
    click(browser, "open-0")
    until(browser, lambda b: b.find_elements(By.CSS_SELECTOR, "#clue-0 img"))
    blurred = at(browser, "blurred-place").find_element(By.TAG_NAME, "img").get_attribute("src")
    click(browser, "typed")
    name = run.label_name(game.round(seed, 0).label)
    until(
        browser, lambda b: name in [o.get_attribute("value") for o in b.find_elements(By.CSS_SELECTOR, "#known option")]
    )
    at(browser, "typed").send_keys(name.upper(), Keys.ENTER)
    assert verdict(browser) == "Right."
    assert at(browser, "points").text == "4"
    assert at(browser, "sharp").get_attribute("src") != blurred
    all_pictures_load(browser)
    click(browser, "next")
    until(browser, lambda b: "n=1" in b.current_url)
    click(browser, "unblur")
    assert verdict(browser).startswith("It was: ")
    click(browser, "was-wrong")
    assert verdict(browser) == "Wrong."
    assert at(browser, "streak").text == "0"
    text = at(browser, "accuracy").text
    assert "1 of 1 right with a typed label" in text
    assert "0 of 1 right by own judgement" in text


def test_the_game_is_played_by_keys(browser, game_url, run):
    browser.get(f"{game_url}/game?seed=6&mode=four")
    at(browser, "choice-0")
    page = browser.find_element(By.TAG_NAME, "body")
    page.send_keys("c")
    until(browser, lambda b: b.find_elements(By.CSS_SELECTOR, "#clue-0 img"))
    page.send_keys(str(game_of(run).choices(6, 0).place + 1))
    assert verdict(browser) == "Right."
    page.send_keys("n")
    until(browser, lambda b: "seed=6&n=1&mode=four" in b.current_url)


def test_hovering_the_plot_says_the_features_number_alone(browser, game_url, run):
    browser.get(f"{game_url}/game?seed=7")
    plot, target = at(browser, "plot"), game_of(run).round(7, 0)
    until(browser, lambda b: plot.size["width"] > 100)
    feature = target.clues[0]
    left, right = 50, plot.size["width"] - 10  # as drawn
    x = left + feature / run.d_sae * (right - left)
    ActionChains(browser).move_to_element_with_offset(plot, round(x - plot.size["width"] / 2), -60).perform()
    until(browser, lambda b: plot.get_attribute("data-pointed") != "")
    found = int(plot.get_attribute("data-pointed"))
    assert found in target.features
    assert abs(found - feature) <= 256 * 15 / (right - left)


@pytest.mark.parametrize("width", [1280, 375])
@pytest.mark.parametrize("mode", ["four", "free"])
def test_the_page_fits_the_screen(browser, game_url, width, mode):
    browser.set_window_size(width, 800)
    browser.get(f"{game_url}/game?seed=8&mode={mode}")
    click(browser, "open-0")
    until(browser, lambda b: b.find_elements(By.CSS_SELECTOR, "#clue-0 img"))
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")


def test_an_address_of_a_server_that_was_started_again_says_so(browser, game_url, monkeypatch):
    browser.get(f"{game_url}/game?seed=9")
    at(browser, "open-0")
    monkeypatch.setattr("thresher.analysis.explorer.pages.game._KEY", b"another")
    click(browser, "open-0")
    until(browser, lambda b: "reload the page" in at(b, "trouble").text)
    refused = [entry["message"] for entry in browser.get_log("browser")]
    assert refused
    assert all("/game/" in message and "403" in message for message in refused)


def exported(folder: Path, explorer: Explorer, run: ExploredRun, seed: int) -> None:
    """The game's page and three rounds as files, with modules as one script and documents as scripts."""
    static = {path.name: path for path in (files("thresher.analysis.explorer") / "static").iterdir()}
    sources = {name: path.read_text() for name, path in static.items() if name.endswith(".js")}
    page = next(page for page in CHAPTER.pages if page.name == "game")
    urls = Urls(root=".", static_root="static", suffix=".html")
    html = render_page(explorer, run, page, page.view(run, Query()), urls, "game.html").decode()
    html = re.sub(r'<script type="module" src="static/(shell|game).js"></script>\n', "", html)
    html = html.replace("</body>", '<script src="static/all.js"></script></body>')
    found = export_rounds(run, 3, seed)
    contents = found.files | {
        "game.html": html.encode(),
        "static/all.js": bundle(["shell.js", "game.js"], sources).encode(),
    }
    contents |= {
        f"static/{name}": path.read_bytes() for name, path in static.items() if name.endswith((".css", ".svg"))
    }
    contents["data/export.js"] = b"window.thresherExport = {features: [], rows: [], labels: [], neurons: []};"
    for path, document in found.documents.items():
        name = re.sub(r"[^A-Za-z0-9._-]", "_", path)
        text = f"(window.thresherData ??= {{}})[{json.dumps(path)}] = {{value: {json.dumps(document)}}};"
        contents[f"data/{name}.js"] = text.encode()
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def test_the_game_is_played_from_files(browser, explorer, run, tmp_path):
    exported(tmp_path, explorer, run, 11)
    game, address = game_of(run), f"file://{tmp_path}/game.html"
    browser.get(f"{address}?n=1&mode=four")
    choices = game.choices(11, 1)
    click(browser, "open-0")
    until(browser, lambda b: b.find_elements(By.CSS_SELECTOR, "#clue-0 img"))
    all_pictures_load(browser)
    click(browser, f"choice-{(choices.place + 1) % 4}")
    assert verdict(browser) == "Wrong."
    assert f"row {choices.rows[choices.place]}" in at(browser, "result").text
    assert "is-answer" in at(browser, f"choice-{choices.place}").get_attribute("class")
    n = next(n for n in range(3) if game.round(11, n).label >= 5)
    browser.get(f"{address}?n={n}&mode=free")
    click(browser, "typed")
    at(browser, "typed").send_keys(run.label_name(game.round(11, n).label), Keys.ENTER)
    assert verdict(browser) == "Right."
    assert at(browser, "result").text.splitlines()[1] == "5 points."
    all_pictures_load(browser)
    click(browser, "next")
    until(browser, lambda b: f"n={n + 1}" in b.current_url)


@pytest.mark.parametrize("text", ["", "abc", "a" * 55, "b" * 56, "c" * 64, "né€😀" * 40])
def test_digests_of_the_page_are_sha256(browser, game_url, text):
    browser.get(f"{game_url}/game?seed=1")
    script = (
        f"const done = arguments[1]; import('{game_url}/static/sha256.js').then((m) => done(m.sha256(arguments[0])));"
    )
    assert browser.execute_async_script(script, text) == hashlib.sha256(text.encode()).hexdigest()

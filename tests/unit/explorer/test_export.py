"""A static export: every link and picture is there, nothing else is touched, a killed one leaves nothing."""

import json
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser

import numpy as np
import pytest
from explored import make_explored_run
from thresher.analysis.explorer import export as module
from thresher.analysis.explorer.export import export_site
from thresher.analysis.explorer.options import ExportOptions
from thresher.analysis.explorer.runs import ExploredRun
from thresher.progress import Reporter
from thresher.store.errors import StoreError


class Said(Reporter):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


class Links(HTMLParser):
    """Addresses that a page refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found += [value for name, value in attrs if name in ("href", "src", "action") and value]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    return [make_explored_run(folder, name=name, seed=seed).path for name, seed in (("a", 0), ("b", 1))]


@pytest.fixture(scope="module")
def said():
    return Said()


@pytest.fixture(scope="module")
def site(runs, said, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site") / "site"
    export_site(runs, folder, ExportOptions(images=40, rounds=5), said)
    return folder


def test_every_link_picture_script_and_style_sheet_of_every_page_is_there(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 100
    missing = []
    for page in pages:
        for link in Links(page.read_text()).found:
            target = re.split("[?#]", link)[0]
            assert not target.startswith("/"), (page, link)
            assert "://" not in target, (page, link)
            if target and not (page.parent / target).resolve().is_file():
                missing.append((page.relative_to(site), link))
    assert missing == []


def test_every_address_in_a_style_sheet_is_there(site):
    for sheet in (site / "static").glob("*.css"):
        for address in re.findall(r"url\(['\"]?([^'\")]+)", sheet.read_text()):
            assert address.startswith("data:") or (sheet.parent / address).is_file(), (sheet, address)


def test_pages_hold_one_classic_script_and_no_module(site):
    for page in site.rglob("*.html"):
        text = page.read_text()
        assert 'type="module"' not in text
        assert len(re.findall(r"<script defer ", text)) == 1, page
    for script in (site / "static").glob("*.js"):
        assert not re.search(r"^(import|export)\b", script.read_text(), re.MULTILINE), script


def test_the_pages_are_those_of_features_that_are_shown_and_of_their_largest_images(site, runs):
    run = ExploredRun(runs[0])
    assert sorted(int(page.stem) for page in (site / "f").glob("*.html")) == run.shown.tolist()
    listed = json.loads((site / "data" / "export.js").read_text().split(" = ")[1].rstrip(";\n"))
    assert listed["features"] == run.shown.tolist()
    assert sorted(int(page.stem) for page in (site / "i").glob("*.html")) == listed["rows"]
    assert len(listed["rows"]) == 40
    # every feature's first image comes before any feature's second
    first = np.unique(run.stored.statistics.top_row[run.shown, 0])
    assert set(listed["rows"]) <= set(first.tolist()) or set(first.tolist()) <= set(listed["rows"])
    assert listed["runs"] == ["b"]


def test_what_scripts_load_has_the_names_by_which_they_ask(site):
    for file in (site / "data").glob("*.js"):
        if file.name == "export.js":
            continue
        path, value = re.fullmatch(
            r"\(window\.thresherData \?\?= \{\}\)\[(\".*?\")\] = (.*);\n", file.read_text(), re.DOTALL
        ).groups()
        assert file.name == re.sub(r"[^A-Za-z0-9._-]", "_", json.loads(path)) + ".js"
        assert list(json.loads(value)) in (["value"], ["base64"])


def test_thumbnails_of_rows_that_data_name_are_there(site):
    held = {int(file.stem) for file in (site / "t").glob("*.webp")}
    for file in (site / "data").glob("card_*.js"):
        card = json.loads(file.read_text().split(" = ", 1)[1].rstrip(";\n"))["value"]
        for picture in card["top"]:
            assert picture["row"] in held
    assert (site / "t" / f"{min(held)}.webp").read_bytes()[8:12] == b"WEBP"


def test_the_other_run_lies_below_and_both_are_compared(site, runs):
    assert (site / "runs" / "b" / "index.html").is_file()
    assert 'value="./runs/b/index.html"' in (site / "index.html").read_text()
    assert 'value="../../index.html"' in (site / "runs" / "b" / "index.html").read_text()
    assert "Features that split" in (site / "compare.html").read_text()
    assert "Features that split" in (site / "runs" / "b" / "compare.html").read_text()


def test_the_size_is_said_before_and_after(site, said):
    before = next(line for line in said.lines if line.startswith("writing "))
    after = said.lines[-1]
    sizes = [float(re.search(r"([\d.]+) MB", line)[1]) for line in (before, after)]
    held = sum(file.stat().st_size for file in site.rglob("*") if file.is_file()) / 1e6
    assert sizes[1] == pytest.approx(held, rel=0.01)
    assert sizes[0] == pytest.approx(sizes[1], rel=0.15)
    blocks = sum(-(-file.stat().st_size // 4096) * 4096 for file in site.rglob("*") if file.is_file()) / 1e6
    on_disk = [float(re.search(r"\(([\d.]+) MB of a disk", line)[1]) for line in (before, after)]
    assert on_disk[1] == pytest.approx(blocks, rel=0.01)
    assert on_disk[0] == pytest.approx(blocks, rel=0.15)


def test_the_counts_that_are_said_are_those_of_the_statistics_and_of_the_files(site, runs, said):
    line = next(line for line in said.lines if line.startswith("a: pages of "))
    n_features, n_images, n_labels, n_neurons = map(int, re.findall(r"\d+", line))
    run = ExploredRun(runs[0])
    n_active = np.zeros(run.d_sae, np.int64)
    for feature in range(run.d_sae):
        n_active[feature] = len(run.features.feature(feature)[0])
    assert n_features == int(((n_active > 0) & ~run.is_uld).sum()) == len(list((site / "f").glob("*.html")))
    assert n_images == 40 == len(list((site / "i").glob("*.html")))
    labels = run.store.labels(0, run.store.n_rows)
    assert n_labels == len(np.unique(labels[labels >= 0])) == len(list((site / "c").glob("*.html")))
    assert n_neurons == 0
    before = next(line for line in said.lines if line.startswith("writing "))
    n_pages, n_thumbnails = (int(each.replace(",", "")) for each in re.findall(r"([\d,]+) (?:pages|thumb)", before))
    assert n_pages == len(list(site.rglob("*.html")))
    assert n_thumbnails == pytest.approx(len(list(site.rglob("t/*.webp"))), rel=0.15)


def test_named_features_alone_have_pages(runs, tmp_path):
    export_site(runs[:1], tmp_path / "site", ExportOptions(features="3,0,3", images=5))
    assert sorted(page.name for page in (tmp_path / "site" / "f").glob("*.html")) == ["0.html", "3.html"]
    text = (tmp_path / "site" / "f" / "3.html").read_text()
    assert 'href="../f/0.html"' in text or 'href="../f/3.html"' not in text
    assert "../f/5.html" not in text


def test_of_another_run_the_features_nearest_to_the_named_ones_have_pages(runs, tmp_path):
    said = Said()
    export_site(runs, tmp_path / "site", ExportOptions(features="0,3,5", images=1, rounds=0), said)
    a, b = (ExploredRun(path) for path in runs)
    of_a, of_b = (each.run.load_sae().W_dec.detach().numpy().astype(np.float64)[: each.d_sae] for each in (a, b))
    of_a, of_b = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (of_a, of_b))
    cosine = np.where(b.is_dead, -np.inf, of_a[[0, 3, 5]] @ of_b.T)
    cosine = cosine[~a.is_dead[[0, 3, 5]]]
    pages = sorted(int(page.stem) for page in (tmp_path / "site" / "runs" / "b" / "f").glob("*.html"))
    assert pages == np.unique(cosine.argmax(axis=1)).tolist()
    assert any("nearest to those named of a" in line for line in said.lines)


def test_an_export_of_some_features_says_what_its_counts_are_of(site, runs, tmp_path):
    export_site(runs[:1], tmp_path / "site", ExportOptions(features="0", images=1, rounds=0))
    n = len(ExploredRun(runs[0]).shown)
    said = f"This export holds the pages of 1 of {n} features. Counts and plots are of the whole run."
    for name in ("index", "features", "atlas", "f/0"):
        assert said in (tmp_path / "site" / f"{name}.html").read_text()
    assert "This export holds" not in (site / "index.html").read_text()


def test_an_export_is_replaced_only_when_told_and_nothing_else_is(runs, tmp_path):
    options = ExportOptions(features="0", images=1)
    export_site(runs[:1], tmp_path / "site", options)
    with pytest.raises(StoreError, match="--overwrite"):
        export_site(runs[:1], tmp_path / "site", options)
    export_site(runs[:1], tmp_path / "site", ExportOptions(features="1", images=1, overwrite=True))
    assert [page.name for page in (tmp_path / "site" / "f").glob("*.html")] == ["1.html"]
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    with pytest.raises(StoreError, match="is no export"):
        export_site(runs[:1], mine, ExportOptions(features="0", overwrite=True))
    assert (mine / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize(
    ("place", "why"),
    [("store.zarr/site", "inside the store"), ("a/site", "inside the run"), ("a", "inside the run")],
)
def test_a_place_in_a_store_or_a_run_is_refused(runs, place, why):
    before = sorted(runs[0].parent.iterdir())
    with pytest.raises(StoreError, match=why):
        export_site(runs[:1], runs[0].parent / place, ExportOptions(features="0", overwrite=True))
    assert sorted(runs[0].parent.iterdir()) == before


def test_a_disk_without_room_is_said_before_anything_is_written(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "free_bytes", lambda path: 1000)
    with pytest.raises(StoreError, match="its disk has 1 kB: choose fewer"):
        export_site(runs[:1], tmp_path / "site", ExportOptions(features="0"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("features", ["", "1;2", "-1", "1,,2", "many"])
def test_features_that_are_none_are_refused(features):
    with pytest.raises(ValueError, match="--features must be numbers with commas"):
        ExportOptions(features=features)


def test_a_feature_that_the_run_lacks_is_named(runs, tmp_path):
    with pytest.raises(ValueError, match="96 is not one of the 96 features of a"):
        export_site(runs[:1], tmp_path / "site", ExportOptions(features="1,96"))
    assert list(tmp_path.iterdir()) == []


def test_a_killed_export_leaves_no_half_of_one_and_the_next_clears_up(runs, tmp_path):
    site = tmp_path / "site"
    text = (
        "import sys; from thresher.analysis.explorer.export import export_site\n"
        "from thresher.analysis.explorer.options import ExportOptions\n"
        "export_site([sys.argv[1]], sys.argv[2], ExportOptions(features='all'))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", text, str(runs[0]), str(site)])
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".site.tmp/f/*.html")) and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait(20)
    assert [each.name for each in tmp_path.iterdir()] == [".site.tmp"]
    export_site(runs[:1], site, ExportOptions(features="0", images=1))
    assert [each.name for each in tmp_path.iterdir()] == ["site"]

"""Names, pictures and agreement in the explorer: shown, filtered, sorted, edited, exported; hostile ones harmless."""

import csv
import io
import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from explored import HOSTILE_WORDS, give_meaning, make_explored_run
from starlette.testclient import TestClient
from thresher.analysis.explorer.annotations import Annotation, Annotations, Conflict
from thresher.analysis.explorer.app import make_app
from thresher.analysis.explorer.export import export_site
from thresher.analysis.explorer.feature_names import FeatureNames
from thresher.analysis.explorer.feature_query import read_filters
from thresher.analysis.explorer.options import ExportOptions
from thresher.analysis.explorer.page import BadQuery, Query
from thresher.analysis.explorer.pages.feature import view
from thresher.analysis.explorer.pages.features import selected
from thresher.analysis.explorer.runs import ExploredRun
from thresher.analysis.explorer.several import Explorer
from thresher.analysis.explorer.visualised import visualised
from thresher.analysis.naming.names_file import Name, write_names
from thresher.analysis.naming.options import NameOptions

N = 60


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = make_explored_run(tmp_path_factory.mktemp("meaning"), n_features=N, n_images=80)
    give_meaning(made.path, N)
    return made.path


@pytest.fixture
def run(path: Path, tmp_path: Path) -> ExploredRun:
    """A run that a test may write annotations into."""
    shutil.copytree(path, tmp_path / "run")
    return ExploredRun(tmp_path / "run")


@pytest.fixture
def client(run: ExploredRun) -> Iterator[TestClient]:
    with TestClient(make_app(Explorer([run.path])), base_url="http://127.0.0.1") as client:
        yield client


def ids(run: ExploredRun, **values: str) -> list[int]:
    return selected(run, read_filters(Query(values={"set": "all", **values}))).ids.tolist()


NAMED = [i for i in range(N) if i % 10 < 4]


def test_filters_by_name_score_verdict_and_agreement_hold_what_they_say(run: ExploredRun) -> None:
    score = {i: (0.99 - i / 1000 + 0.99) / 2 for i in NAMED}
    assert ids(run, named="1") == NAMED
    assert ids(run, named="unnamed") == [i for i in range(N) if i not in NAMED]
    assert ids(run, named="own") == []
    assert ids(run, s="0.97:0.98") == [i for i in NAMED if 0.97 <= round(score[i], 6) <= 0.98]
    assert ids(run, verdict="passed") == list(range(0, N, 10))
    assert ids(run, verdict="failed") == list(range(1, N, 10))
    assert ids(run, a="50:80") == [i for i in range(0, N, 2) if 50 <= 100 * i / N <= 80]
    assert ids(run, a="50:80", verdict="passed", named="1") == [30, 40]


def test_the_overview_counts_names_and_pictures(client: TestClient) -> None:
    found = client.get("/index.json").json()
    assert (found["n_named"], found["n_pictures"], found["n_passed"]) == (len(NAMED), 2 * N // 10, N // 10)
    html = client.get("/").text
    assert "24 have a name" in html
    assert "Of the pictures made for 12 of them" in html
    assert "6 passed every check" in html


def test_best_and_worst_named_come_first_and_those_without_a_score_last(run: ExploredRun) -> None:
    without = [i for i in range(N) if i not in NAMED]
    assert ids(run, sort="name_score") == NAMED + without  # scores fall with the number
    assert ids(run, sort="name_score", order="asc") == NAMED[::-1] + without
    assert ids(run, named="1", sort="name_score", order="asc")[:3] == [53, 52, 51]
    of_agreement = [i for i in range(0, N, 2)]
    assert ids(run, sort="agreement")[: N // 2] == of_agreement[::-1]
    assert ids(run, sort="verdict") == [*range(0, N, 10), *range(1, N, 10), *(i for i in range(N) if i % 10 > 1)]


def test_a_number_that_misses_a_threshold_never_reads_as_the_threshold(tmp_path: Path) -> None:
    path = make_explored_run(tmp_path, n_features=N, n_images=80).path
    numbers = {"auroc": 0.64996, "ablation_z": 0.99961, "q_value": 0.050004}
    write_names(path, {4: Name("striped flag", 0.7, "data", "unnamed", **numbers)})
    found = view(ExploredRun(path), Query({"feature": 4})).naming.why
    assert found == [
        "AUROC 0.64996; 0.65 is asked",
        "ablation z 0.9996; 1 is asked",
        "q 0.050004; at most 0.05 is allowed",
    ]


def test_a_rejected_phrase_is_nowhere_a_name(run: ExploredRun, client: TestClient) -> None:
    found = view(run, Query({"feature": 4}))
    assert (found.name, found.naming.automatic, found.naming.status) == ("", "", "unnamed")
    assert found.naming.rejected == "striped flag 4"
    record = run.path / "naming" / "name.json"
    record.parent.mkdir()
    record.write_text(json.dumps({"thresholds": {"min_auroc": 0.7, "min_z": 2.0, "fdr": 0.05}}))
    why = ["AUROC 0.600; 0.7 is asked", "ablation z 1.25; 2 is asked", "q 0.200; at most 0.05 is allowed"]
    assert view(run, Query({"feature": 4})).naming.why == why
    record.write_text('{"thresholds": {"min_auroc": 0.5, "min_z": 3, "fdr": "much"}}')
    assert "ablation z 1.25; 3 is asked" in view(run, Query({"feature": 4})).naming.why
    for damaged in ("{", '{"thresholds": [1]}', "[]"):
        record.write_text(damaged)
        why = view(run, Query({"feature": 4})).naming.why
        assert f"AUROC 0.600; {NameOptions().min_auroc:g} is asked" in why
    html = client.get("/f/4").text
    assert "striped flag 4" not in re.search("<h1>.*</h1>", html)[0]
    assert "<title>Feature 4 · run · Thresher</title>" in html
    assert 'The phrase that was rejected: <q dir="auto">striped flag 4</q>' in html
    assert ids(run, q="flag 4") == [i for i in NAMED if "4" in str(i)]
    assert "striped flag 4" not in client.get("/features?set=all&ids=4").text
    assert client.get("/card/4.json").json()["name"] == ""
    assert "Not tested" in client.get("/f/6").text
    assert "has not looked at it" in client.get("/f/7").text


def test_a_feature_page_shows_score_parts_pictures_verdict_and_agreement(run: ExploredRun, client: TestClient) -> None:
    found = view(run, Query({"feature": 10}))
    assert found.visualisation is not None
    assert (found.visualisation.seeds, found.visualisation.verdict) == ([0, 1, 2], "passed")
    assert found.visualisation.checks["retention_crop"] == 0.75
    assert found.agreement is not None
    assert found.agreement.all == pytest.approx(100 * 10 / N, rel=1e-6)
    html = " ".join(client.get("/f/10").text.split())
    for text in ("AUROC</abbr></dt><dd>0.980", "Ablation z</abbr></dt><dd>4.50", "q</abbr></dt><dd>0.0040", "seed 2"):
        assert text in html, text
    assert "Next best: <bdi>striped flag or so</bdi>; <bdi>second best</bdi>" in html
    assert "picture passed" in html
    assert client.get("/f/10/picture-2.webp").headers["content-type"] == "image/webp"
    failed = client.get("/f/11").text
    assert "picture failed" in failed
    assert "striped flag are larger on it" in failed
    assert view(run, Query({"feature": 12})).visualisation is None


def test_an_own_name_stands_in_the_place_of_the_automatic_one_everywhere(run: ExploredRun, client: TestClient) -> None:
    tsv = (run.path / "names.tsv").read_bytes()
    assert client.post("/annotations/2", json={"name": " my \n own\x07 ", "name_before": ""}).json()["name"] == "my own"
    assert client.post("/annotations/7", json={"name": "another"}).status_code == 200
    document = client.get("/f/2.json").json()
    assert (document["name"], document["naming"]["own"], document["naming"]["automatic"]) == (
        "my own",
        "my own",
        "striped flag 2",
    )
    assert client.get("/card/2.json").json()["name"] == "my own"
    assert client.get("/names.json").json()["names"]["2"] == "my own"
    listed = {row["id"]: row for row in client.get("/features.json?set=all&named=own").json()["rows"]}
    assert {i: (row["name"], row["name_score"]) for i, row in listed.items()} == {
        2: ("my own", None),
        7: ("another", None),
    }
    assert ids(run, q="my own") == [2]
    assert 2 not in ids(run, q="flag")
    assert ids(run, named="1", sort="name", order="asc")[:2] == [7, 2]
    assert 7 in ids(run, named="1")
    header, first = csv.reader(io.StringIO(client.get("/features/list.csv?set=all&ids=2").text))
    line = dict(zip(header, first, strict=True))
    assert (line["name"], line["own_name"], line["automatic_name"]) == ("my own", "my own", "striped flag 2")
    assert (line["name_status"], line["agreement"], line["picture_verdict"]) == ("named", "3.3333333", "")
    assert (run.path / "names.tsv").read_bytes() == tsv, "people's names are kept apart"
    client.post("/annotations/2", json={"name": "", "name_before": "my own"})
    assert client.get("/f/2.json").json()["name"] == "striped flag 2"
    assert ids(run, q="flag 2")[0] == 2


def test_a_name_given_elsewhere_meanwhile_is_not_written_over(tmp_path: Path) -> None:
    said = Annotations(tmp_path)
    said.change(1, name="mine")
    with pytest.raises(Conflict, match="name of feature 1 was changed elsewhere"):
        said.change(1, name="yours", name_before="")
    assert said.of(1).name == "mine"
    said.change(1, name="mine", name_before="")  # the same twice
    with pytest.raises(BadQuery, match="at most 200 characters, not 201"):
        said.change(1, name="x" * 201)
    with pytest.raises(BadQuery, match="at most 200 characters, not 1,000,000"):
        said.change(1, name=" " * 1_000_000)
    assert said.change(1, tags=["t"]).name == "mine"


def test_names_of_another_machine_are_added_and_none_is_lost(tmp_path: Path) -> None:
    said = Annotations(tmp_path)
    said.change(1, name="mine")
    features = {"1": {"name": "theirs"}, "2": {"name": "new"}}
    document = {"format": "thresher-annotations", "format_version": 1, "features": features}
    for _ in range(2):  # again changes nothing
        said.merge(document, d_sae=4)
        assert said.of(1) == Annotation((), "Also called theirs.", False, "mine")
        assert said.of(2) == Annotation((), "", False, "new")
    assert json.loads(said.path.read_text())["features"]["2"] == {"name": "new"}
    with pytest.raises(BadQuery, match="name and note must be strings"):
        said.merge({**document, "features": {"1": {"name": 3}}}, d_sae=4)


def test_columns_of_names_follow_what_is_said(tmp_path: Path) -> None:
    said = Annotations(tmp_path)
    lines = {0: Name("b", 0.5, "m"), 1: Name("a", None, "m"), 2: Name("c", 0.75, "m", "unnamed")}
    names = FeatureNames(lines, said, 5)
    columns = names.columns(said.features)
    assert columns.is_named.tolist() == [True, True, False, False, False]
    assert [None if math.isnan(each) else each for each in columns.score] == [0.5, None, None, None, None]
    assert columns is names.columns(said.features)
    said.change(0, name="Z")
    said.change(4, name="y")
    columns = names.columns(said.features)
    assert columns.is_own.tolist() == [True, False, False, False, True]
    assert columns.order("name", False).tolist() == [1, 4, 0, 2, 3]
    assert columns.order("name_score", True).tolist() == [0, 1, 2, 3, 4]
    assert [names.now().of(i) for i in range(5)] == ["Z", "a", "", "", "y"]
    assert FeatureNames({}, Annotations(tmp_path / "none"), 5).are_any is False


def test_pictures_that_are_made_while_a_run_is_explored_are_found(run: ExploredRun) -> None:
    found = visualised(run)
    assert found.pictures(12) == []
    folder = run.path / "visualisations"
    (folder / "12.tmp").write_bytes((folder / "10.webp").read_bytes())
    (folder / "12.tmp").rename(folder / "12.webp")
    assert [file.path.name for file in found.pictures(12)] == ["12.webp"]
    text = (folder / "visualisations.tsv").read_text().replace("\n10\t10.webp", "\n12\t12.webp")
    (folder / "new").write_text(text)
    (folder / "new").rename(folder / "visualisations.tsv")
    assert 12 in ids(run, verdict="passed")
    assert 10 not in ids(run, verdict="passed")
    shutil.rmtree(folder)
    assert found.pictures(12) == []
    with pytest.raises(BadQuery, match="cannot be sorted by 'verdict'"):
        ids(run, sort="verdict")


def test_hostile_words_and_files_are_harmless(path: Path, tmp_path: Path) -> None:
    shutil.copytree(path, tmp_path / "run", ignore=shutil.ignore_patterns("visualisations", "names.tsv", "stats.zarr"))
    shutil.copytree(path / "stats.zarr", tmp_path / "run" / "stats.zarr", ignore=shutil.ignore_patterns("agreement*"))
    give_meaning(tmp_path / "run", N, HOSTILE_WORDS)
    folder = tmp_path / "run" / "visualisations"
    with open(tmp_path / "run" / "names.tsv", "a") as file:
        file.write(f"7\t{'x' * 1_000_000}\t1\tm\tnamed\n8\ty\t1\tm\t<b>named</b>\n\x00\xff\t\t\n9" + "\t" * 1_000_000)
    with open(folder / "visualisations.tsv", "a") as file:
        file.write(
            f"20\t../../secret\t\n22\t22.webp\tmaco\t0{chr(9) * 11}nan\tpassed\t{'z' * 1_000_000}\n" + "\t" * 10**6
        )
    for name in ("5<b>.webp", "99999999.webp", "6-x.webp", "1e3.webp"):
        (folder / name).write_bytes(b"x")
    (folder / "3.webp").mkdir()
    os.mkfifo(folder / "5.webp")
    with TestClient(make_app(Explorer([tmp_path / "run"])), base_url="http://127.0.0.1") as client:
        for address in ("/f/0", "/f/1", "/f/4", "/f/7", "/features?set=all", "/features?set=all&sort=name", "/f/3"):
            html = client.get(address).text
            assert "<img src=x" not in html, address
            assert not re.search("[\x00-\x08\x0b-\x1f]|\u202eword", html), address
            assert len(html) < 300_000
        assert "&lt;img src=x onerror=alert(1)&gt; word [31m {{ 7 * 7 }} &#39;quoted&#39; 0" in client.get("/f/0").text
        assert len(client.get("/f/7.json").json()["name"]) == 200
        assert client.get("/f/3/picture-0.webp").status_code == 503
        assert client.get("/f/5/picture-0.webp").status_code == 503
        assert client.get("/f/8.json").json()["naming"]["status"] == ""
        notes = client.get("/").text
        assert "lines of names.tsv are left out" in notes
        text = client.get("/features/list.csv?set=all&ids=0").text
        assert not re.search("[\x00-\x08\x0b-\x1f]|\u202eword", text)


def test_an_export_carries_names_pictures_and_verdicts(run: ExploredRun, tmp_path: Path) -> None:
    run.annotations.change(2, name="my <own>")
    export_site([run.path], tmp_path / "site", ExportOptions(features="0,2,11", images=0, rounds=0))
    page = (tmp_path / "site" / "f" / "0.html").read_text()
    assert 'src="../f/0/picture-2.webp"' in page
    assert (tmp_path / "site" / "f" / "0" / "picture-2.webp").read_bytes() == (
        run.path / "visualisations" / "0-2.webp"
    ).read_bytes()
    assert "picture failed" in (tmp_path / "site" / "f" / "11.html").read_text()
    own = (tmp_path / "site" / "f" / "2.html").read_text()
    assert "my &lt;own&gt;" in own
    assert '<form method="post"' not in own
    table = (tmp_path / "site" / "data" / "features_table.json.js").read_text()
    rows = {row["id"]: row for row in json.loads(table.split(" = ", 1)[1].rstrip(";\n"))["value"]["features"]}
    assert (rows[2]["name"], rows[2]["is_own_name"]) == ("my <own>", True)
    assert (rows[0]["verdict"], rows[11]["verdict"], rows[0]["agreement"]) == ("passed", "failed", 0.0)
    names = (tmp_path / "site" / "data" / "names.json.js").read_text()
    assert json.loads(names.split(" = ", 1)[1].rstrip(";\n"))["value"]["names"]["0"] == "striped flag 0"

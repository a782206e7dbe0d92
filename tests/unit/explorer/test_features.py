"""The table of features: filters and sorts against numpy, its address, its pages, its lists as files."""

import csv
import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from explored import HOSTILE_LABELS, Explored, make_explored_run
from starlette.testclient import TestClient
from thresher.analysis.explorer import phrases
from thresher.analysis.explorer.app import make_app
from thresher.analysis.explorer.feature_query import address, read_filters, sort_changes, values_of
from thresher.analysis.explorer.page import BadQuery, Query, Unavailable
from thresher.analysis.explorer.pages.features import selected, view
from thresher.analysis.explorer.runs import ExploredRun
from thresher.analysis.explorer.several import Explorer

HOSTILE_NAMES = ("=1+1", "@sum(a1)", "<b>bold</b>", "plain dog", "Dogs and cats")


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> ExploredRun:
    """A run of 230 features with names, annotations and a label table."""
    made = make_explored_run(tmp_path_factory.mktemp("named"), n_features=230)
    lines = ["feature\tname\tscore\tmethod", *(f"{i}\t{name}\t0.{i}\tby hand" for i, name in enumerate(HOSTILE_NAMES))]
    (made.path / "names.tsv").write_text("\n".join(lines))
    run = ExploredRun(made.path)
    run.annotations.change(5, tags=["dog", "ear"], note="+cmd|' /c calc'!a1", sensitive=True)
    run.annotations.change(40, tags=["ear"])
    return run


def columns(run: ExploredRun) -> dict[str, np.ndarray]:
    """The numbers of all features in float64, from the stored statistics alone."""
    of = run.stored.statistics
    with np.errstate(divide="ignore", invalid="ignore"):
        found = {
            "density": np.log10(of.n_active / of.n_rows),
            "log_mean_top": np.log10(of.mean_top.astype(np.float64)),
            "mean_top": of.mean_top.astype(np.float64),
            "max": of.max.astype(np.float64),
            "entropy": of.label_entropy.astype(np.float64),
        }
    found["density"][of.n_active == 0] = np.nan
    return found


def ids(run: ExploredRun, **values: str) -> list[int]:
    return selected(run, read_filters(Query(values=values))).ids.tolist()


def in_set(run: ExploredRun, made_set: str) -> np.ndarray:
    of, by = run.stored.statistics, columns(run)
    with np.errstate(invalid="ignore"):
        return {
            "shown": (of.n_active > 0) & ~run.stored.is_uld,
            "post": (by["density"] > -4) & (by["log_mean_top"] > -0.7) & np.isfinite(by["entropy"]),
            "dense": of.n_active / of.n_rows > 0.1,
            "uld": run.stored.is_uld,
            "dead": of.n_active == 0,
            "all": np.ones(run.d_sae, bool),
        }[made_set]


@pytest.mark.parametrize("name", ["shown", "post", "dense", "uld", "dead", "all"])
def test_a_set_holds_the_features_of_its_definition(named: ExploredRun, name: str) -> None:
    assert ids(named, set=name) == np.flatnonzero(in_set(named, name)).tolist()


def test_every_set_of_the_made_run_but_all_leaves_some_out_and_holds_some(named: ExploredRun) -> None:
    for name in ("shown", "post", "dense", "uld", "dead"):
        assert 0 < len(ids(named, set=name)) < named.d_sae, name


@pytest.mark.parametrize(
    ("name", "column", "text", "low", "high"),
    [
        ("d", "density", "-1.5:-0.8", -1.5, -0.8),
        ("d", "density", ":-1", -np.inf, -1),
        ("m", "log_mean_top", "-0.5:", -0.5, np.inf),
        ("e", "entropy", "0:0", 0, 0),
        ("e", "entropy", ":", -np.inf, np.inf),
        ("e", "entropy", " .5 : 1e1 ", 0.5, 10),
    ],
)
def test_a_range_keeps_what_lies_within_and_nothing_undefined(
    named: ExploredRun, name: str, column: str, text: str, low: float, high: float
) -> None:
    values = columns(named)[column].astype(np.float32).astype(np.float64)
    expected = [i for i in range(named.d_sae) if not math.isnan(values[i]) and low <= values[i] <= high]
    assert ids(named, set="all", **{name: text}) == expected
    assert expected


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("sort", ["density", "mean_top", "max", "entropy"])
def test_a_sort_puts_undefined_last_and_ties_by_number(named: ExploredRun, sort: str, order: str) -> None:
    values = columns(named)[sort]
    sign = -1 if order == "desc" else 1

    def key(feature: int) -> tuple[bool, float, int]:
        value = values[feature]
        return math.isnan(value), 0.0 if math.isnan(value) else sign * float(value), feature

    assert ids(named, set="all", sort=sort, order=order) == sorted(range(named.d_sae), key=key)
    if sort != "max":
        assert np.isnan(values).any()


def test_names_sort_in_their_order_without_regard_to_case_and_unnamed_last(named: ExploredRun) -> None:
    found = ids(named, set="all", sort="name")
    assert found[:5] == [2, 0, 1, 4, 3]  # < = @ D p
    assert found[5:] == [i for i in range(5, named.d_sae)]
    assert ids(named, set="all", sort="name", order="desc")[:6] == [3, 4, 1, 0, 2, 5]


def test_words_are_looked_for_in_number_name_label_and_tags(named: ExploredRun) -> None:
    top = named.listing.top_label
    assert ids(named, set="all", q="DOG") == [3, 4, 5]
    assert ids(named, set="all", q="dog cats") == [4]
    assert ids(named, set="all", q="17") == [17]
    of_label = [i for i in range(named.d_sae) if top[i] >= 0 and "script" in named.label_name(int(top[i])).lower()]
    assert ids(named, set="all", q="script") == of_label
    assert of_label
    assert ids(named, set="all", q="no such thing") == []


def test_tags_names_labels_and_given_ids_filter(named: ExploredRun) -> None:
    assert ids(named, set="all", tag="EAR") == [5, 40]
    assert ids(named, set="all", named="1") == [0, 1, 2, 3, 4]
    top = named.listing.top_label
    assert ids(named, set="all", label="2") == [i for i in range(named.d_sae) if top[i] == 2]
    assert ids(named, set="all", ids="40,7, 7,3,99999") == [40, 7, 3]
    assert ids(named, set="all", ids="40,7,3", sort="id") == [3, 7, 40]
    assert ids(named, set="all", ids="40,7,3", order="desc") == [3, 7, 40]
    assert ids(named, set="all", ids="40,5,3", tag="ear", q="dog") == [5]


def test_a_changed_annotation_changes_the_list(named: ExploredRun) -> None:
    assert ids(named, set="all", tag="new") == []
    named.annotations.change(60, tags=["new"])
    try:
        assert ids(named, set="all", tag="new") == [60]
    finally:
        named.annotations.change(60, tags=[])
    assert ids(named, set="all", tag="new") == []


def test_the_top_label_has_the_largest_share_of_all_firings(named: ExploredRun) -> None:
    features = named.require_features()
    labels = features.row_numbers("label", 0, features.n_rows)
    for feature in range(named.d_sae):
        row, value = features.feature(feature)
        total: dict[int, float] = {}
        for label, each in zip(labels[row].tolist(), value.tolist(), strict=True):
            if label >= 0:
                total[label] = total.get(label, 0.0) + each
        best = min(total, key=lambda label: (-total[label], label)) if total else -1
        assert named.listing.top_label[feature] == best
        share = named.listing.top_share[feature]
        assert share == pytest.approx(total[best] / sum(total.values()), rel=1e-6) if total else math.isnan(share)


def test_without_a_label_table_the_top_label_is_of_the_top_rows() -> None:
    from thresher.analysis.explorer.top_labels import of_top_rows

    label = np.array([[3, 1, 1], [-1, -1, -1], [2, 5, -1], [7, -1, 7]], np.int32)
    value = np.array([[3, 2, 2], [9, 8, 7], [4, 4, 3], [1, 5, 0.5]], np.float32)
    found, share = of_top_rows(label, value)
    assert found.tolist() == [1, -1, 2, 7]
    np.testing.assert_allclose(share, [4 / 7, np.nan, 0.5, 1])


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"d": "1"}, "d must be two numbers"),
        ({"d": "1:2:3"}, "d must be two numbers"),
        ({"m": "a:b"}, "m must be two numbers"),
        ({"e": "nan:"}, "e must be of finite numbers"),
        ({"e": ":1e999"}, "e must be of finite numbers"),
        ({"sort": "price"}, "sort must be one of"),
        ({"order": "up"}, "order must be one of asc, desc"),
        ({"set": "none"}, "set must be one of"),
        ({"ids": "1;2"}, "ids must be features parted by commas"),
        ({"ids": "-1"}, "ids must be features parted by commas"),
        ({"label": "cat"}, "label must be an integer"),
        ({"page": "0"}, "page must be 1 to"),
        ({"q": "a b c d e f g h i"}, "q has 9 words"),
        ({"q": "x" * 201}, "q has 201 characters"),
        ({"sort": "monosemanticity"}, "cannot be sorted by"),
    ],
)
def test_what_makes_no_sense_is_named(named: ExploredRun, values: dict[str, str], complaint: str) -> None:
    with pytest.raises(BadQuery, match=re.escape(complaint)):
        view(named, Query(values=values))


def test_the_table_comes_a_hundred_rows_at_a_time(named: ExploredRun) -> None:
    pages = [view(named, Query(values={"set": "all", "page": str(page)})) for page in (1, 2, 3, 4)]
    assert [len(page.rows) for page in pages] == [100, 100, 30, 30]
    assert [page.page for page in pages] == [1, 2, 3, 3]
    assert [row.id for page in pages[:3] for row in page.rows] == list(range(230))
    assert (pages[0].previous, pages[0].next) == (None, "?set=all&page=2")
    assert (pages[1].previous, pages[1].next) == ("?set=all", "?set=all&page=3")


def test_a_row_shows_the_stored_numbers(named: ExploredRun) -> None:
    of = named.stored.statistics
    for row in view(named, Query(values={"set": "all"})).rows:
        assert [thumb.row for thumb in row.thumbs] == [r for r in of.top_row[row.id, :4].tolist() if r >= 0]
        assert row.n_labelled == of.n_labelled[row.id]
        np.testing.assert_equal(row.entropy, float(of.label_entropy[row.id]))
    five = next(row for row in view(named, Query(values={"ids": "5"})).rows)
    assert five.sensitive
    assert five.tags == ["dog", "ear"]


def test_equal_addresses_are_written_alike() -> None:
    values = values_of(Query(values={"page": "1", "sort": "id", "set": "shown", "d": "-4:", "q": " dog ", "x": "y"}))
    assert values == {"q": "dog", "d": "-4:"}
    assert address(values, page="3") == "?q=dog&d=-4:&page=3"
    assert address({**values, "page": "3"}, set="all") == "?q=dog&d=-4:&set=all"
    assert address({"q": "a&b=c #"}) == "?q=a%26b%3Dc+%23"


def test_a_columns_head_sorts_the_natural_way_and_then_the_other() -> None:
    assert sort_changes("density", "id", False) == {"sort": "density", "order": None}
    assert sort_changes("density", "density", True) == {"sort": "density", "order": "asc"}
    assert sort_changes("entropy", "density", True) == {"sort": "entropy", "order": None}
    assert sort_changes("entropy", "entropy", False) == {"sort": "entropy", "order": "desc"}


def test_a_phrase_ranks_by_its_scores(named: ExploredRun, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def rank(run: ExploredRun, text: str) -> tuple[np.ndarray, np.ndarray]:
        asked.append(text)
        return np.array([9, 2, 30]), np.array([0.5, 0.25, -0.1], np.float32)

    monkeypatch.setattr(phrases, "rank", rank)
    query = Query(values={"q": "~ a red dog ", "set": "all"})
    found = view(named, query)
    assert [(row.id, row.score) for row in found.rows] == [(9, 0.5), (2, 0.25), (30, pytest.approx(-0.1))]
    assert asked == ["a red dog"]
    assert found.heads[-1].key == "score"
    assert found.heads[-1].direction == "descending"
    assert ids(named, q="~a red dog", set="all", sort="id") == [2, 9, 30]
    assert ids(named, q="~a red dog", set="all", order="asc") == [30, 2, 9]


def test_without_a_text_tower_a_phrase_gives_a_message_above_the_table(
    named: ExploredRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rank(run: ExploredRun, text: str) -> None:
        raise Unavailable("the tower is not there")

    monkeypatch.setattr(phrases, "rank", rank)
    found = view(named, Query(values={"q": "~dog"}))
    assert found.message == "the tower is not there"
    assert len(found.rows) > 0
    with TestClient(make_app(Explorer([named.path])), base_url="http://127.0.0.1") as client:
        page = client.get("/features?q=~dog")
        assert page.status_code == 200
        assert "the tower is not there" in page.text
        assert client.get("/features/ids.json?q=~dog").status_code == 503


def test_the_ids_of_a_list_are_all_of_it_in_order(client: TestClient, run: ExploredRun) -> None:
    found = client.get("/features/ids.json?set=all&sort=entropy&order=desc").json()["ids"]
    assert found == ids(run, set="all", sort="entropy", order="desc")
    assert len(found) == run.d_sae


def test_csv_is_read_back_with_every_number_and_no_formula(named: ExploredRun) -> None:
    with TestClient(make_app(Explorer([named.path])), base_url="http://127.0.0.1") as client:
        answer = client.get("/features/list.csv?set=all&sort=density")
        assert answer.headers["content-type"] == "text/csv; charset=utf-8"
        assert 'filename="run-features.csv"' in answer.headers["content-disposition"]
        lines = list(csv.DictReader(io.StringIO(answer.text)))
    assert [int(line["feature"]) for line in lines] == ids(named, set="all", sort="density")
    of = named.stored.statistics
    for line in lines:
        feature = int(line["feature"])
        assert float(line["density"]) == of.n_active[feature] / of.n_rows
        assert np.float32(line["max"]) == of.max[feature]
        entropy = line["label_entropy"]
        assert (
            np.isnan(of.label_entropy[feature]) if entropy == "" else np.float32(entropy) == of.label_entropy[feature]
        )
        for name in ("name", "top_label_name", "tags", "note"):
            assert not line[name].startswith(("=", "+", "-", "@"))
    by_id = {int(line["feature"]): line for line in lines}
    assert [by_id[i]["name"] for i in range(5)] == ["'=1+1", "'@sum(a1)", *HOSTILE_NAMES[2:]]
    assert by_id[5]["tags"] == "dog, ear"
    assert by_id[5]["note"] == "'+cmd|' /c calc'!a1"
    assert by_id[5]["sensitive"] == "1"


def test_json_of_a_list_says_what_it_is_of(named: ExploredRun) -> None:
    with TestClient(make_app(Explorer([named.path])), base_url="http://127.0.0.1") as client:
        document = client.get("/features/list.json?ids=5,0&set=all").json()
    assert document["n"] == 2
    assert document["sae_sha256"] == named.summary["sae_sha256"]
    assert document["query"] == {"ids": "5,0", "set": "all"}
    five, zero = document["features"]
    assert (five["feature"], five["tags"], five["note"]) == (5, ["dog", "ear"], "+cmd|' /c calc'!a1")
    assert (zero["name"], zero["name_score"]) == ("=1+1", 0.0)


def test_the_page_escapes_names_labels_and_what_was_asked_for(named: ExploredRun) -> None:
    with TestClient(make_app(Explorer([named.path])), base_url="http://127.0.0.1") as client:
        text = client.get("/features", params={"set": "all", "q": '"><script>x</script>'}).text
        assert "<script>x" not in text
        text = client.get("/features?set=all").text
    assert "<b>bold" not in text
    assert "&lt;b&gt;bold" in text
    assert HOSTILE_LABELS[0] not in text
    assert 'class="thumbs sensitive" href="/f/5"' in text


def test_its_twin_is_json_without_nan(client: TestClient) -> None:
    answer = client.get("/features.json?set=dead")
    document = json.loads(answer.content, parse_constant=lambda name: pytest.fail(name))
    assert document["total"] == len(document["rows"]) > 0
    assert all(row["density"] is None and row["is_dead"] for row in document["rows"])
    assert client.get("/features.json?d=x").status_code == 400


def test_a_run_without_labels_lists_its_features(tmp_path: Path) -> None:
    made: Explored = make_explored_run(tmp_path, is_labelled=False, thumbnails=False)
    run = ExploredRun(made.path)
    found = view(run, Query(values={"sort": "label"}))
    assert [row.id for row in found.rows] == run.shown[:100].tolist()
    assert all(row.label == -1 and not row.thumbs for row in found.rows)
    with TestClient(make_app(Explorer([made.path])), base_url="http://127.0.0.1") as client:
        assert client.get("/features").status_code == 200
        assert client.get("/features/list.csv").status_code == 200

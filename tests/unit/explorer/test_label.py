"""Class pages: counts against brute force over the stored activations, own features, what `classes` wrote."""

from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from explored import HOSTILE_LABELS, QUICK, make_explored_run
from starlette.testclient import TestClient
from thresher.analysis.classes import classes
from thresher.analysis.explorer.app import make_app
from thresher.analysis.explorer.class_tables import Part, read_class_tables, tree
from thresher.analysis.explorer.label_index import by_label
from thresher.analysis.explorer.page import NotHere, Query
from thresher.analysis.explorer.pages import label as pages
from thresher.analysis.explorer.pages.label import view, view_all
from thresher.analysis.explorer.runs import ExploredRun
from thresher.analysis.explorer.several import Explorer


@pytest.fixture(scope="module")
def classed(tmp_path_factory: pytest.TempPathFactory) -> ExploredRun:
    """A run for which `classes` was run."""
    made = make_explored_run(tmp_path_factory.mktemp("classed"))
    classes(made.path)
    return ExploredRun(made.path)


def dense(run: ExploredRun) -> tuple[np.ndarray, np.ndarray]:
    """All activations, `(n_rows, d_sae)`, and the rows' labels, from features.zarr."""
    features = run.require_features()
    indptr, index, value = features.rows(0, features.n_rows)
    x = np.zeros((features.n_rows, run.d_sae))
    x[np.repeat(np.arange(features.n_rows), np.diff(indptr)), index] = value
    return x, features.row_numbers("label", 0, features.n_rows)


def at(run: ExploredRun, label: int, **values: str) -> pages.Label:
    return view(run, Query(path={"label": label}, values=values))


def test_what_features_take_of_a_class_is_counted_right(classed: ExploredRun) -> None:
    x, labels = dense(classed)
    for label in range(7):
        here = x[labels == label]
        found = at(classed, label)
        counts = (here > 0).sum(axis=0)
        n_labelled = (x[labels >= 0] > 0).sum(axis=0)
        valid = classed.require_features().row_numbers("valid", 0, len(x))
        assert found.n_rows == int(((labels == label) & valid).sum())
        expected = sorted(np.flatnonzero(counts).tolist(), key=lambda j: (-counts[j], j))
        assert found.n_taken == len(expected)
        assert [each.feature.id for each in found.taken] == expected[:50]
        for each in found.taken:
            j = each.feature.id
            assert each.n == counts[j]
            assert each.share == pytest.approx(counts[j] / found.n_rows)
            assert each.precision == pytest.approx(counts[j] / n_labelled[j])
            assert each.sum == pytest.approx(here[:, j].sum(), rel=1e-5)
            assert {picture.row for picture in each.pictures} <= set(np.flatnonzero(labels == label).tolist())


@pytest.mark.parametrize("sort", ["share", "precision", "sum"])
def test_features_of_a_class_are_sorted_falling_with_ties_by_count_and_number(classed: ExploredRun, sort: str) -> None:
    found = at(classed, 1, sort=sort).taken
    keys = [(-getattr(each, sort), -each.n, each.feature.id) for each in found]
    assert keys == sorted(keys)
    assert len(found) > 5


def test_own_features_are_those_whose_top_rows_are_all_of_the_class(classed: ExploredRun) -> None:
    of = classed.stored.statistics
    n_own = 0
    for label in range(7):
        found = at(classed, label)
        expected = set()
        for j in range(classed.d_sae):
            known = of.top_label[j][of.top_label[j] >= 0]
            if len(known) >= of.min_labelled and (known == label).all():
                expected.add(j)
        assert {each.feature.id for each in found.own} == expected
        assert found.n_own == len(expected)
        assert [each.n for each in found.own] == sorted((each.n for each in found.own), reverse=True)
        for each in found.own:
            top = of.top_row[each.feature.id]
            assert [picture.row for picture in each.pictures] == [
                row for row, of_row in zip(top, of.top_label[each.feature.id], strict=True) if of_row == label
            ][: pages.OWN_ROWS]
        n_own += len(expected)
    assert n_own > 0


def test_more_pictures_are_the_strongest_of_all_firings_on_the_class(classed: ExploredRun) -> None:
    x, labels = dense(classed)
    with TestClient(make_app(Explorer([classed.path])), base_url="http://127.0.0.1") as client:
        found = client.get("/c/2/f/2.json").json()
        assert client.get("/c/2/f/99999.json").status_code == 404
    rows = np.flatnonzero((labels == 2) & (x[:, 2] > 0))
    expected = rows[np.lexsort((rows, -x[rows, 2]))]
    assert len(expected) > pages.ROWS_SHOWN
    assert [each["row"] for each in found["pictures"]] == expected[: pages.ROWS_SHOWN].tolist()


def test_structure_and_related_classes_are_what_classes_found(classed: ExploredRun) -> None:
    known = classes(classed.path, "5").structures[0]
    found = at(classed, 5)
    assert found.messages == []
    assert found.share_covered == pytest.approx(known.n_covered / known.n_rows, rel=1e-5)
    assert found.n_parts == len(known.parts)
    assert {group.feature for group in found.groups} == {own.leader for own in known.features}
    assert {j for group in found.groups for j in group.doubles} == {
        own.feature for own in known.features if own.leader != own.feature
    }


def test_a_part_has_the_rows_of_its_doubles_too(classed: ExploredRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row belongs to the part with the strongest activation on it: 4 to feature 1, 3 to 2 that doubles it."""
    parts = [
        Part(1, 9, 1, -1, is_part=True, n_strongest=4),
        Part(2, 8, 1, -1, is_part=True, n_strongest=3),
        Part(3, 5, 3, -1, is_part=True, n_strongest=2),
    ]
    monkeypatch.setattr(classed, "class_tables", replace(classed.class_tables, parts={5: parts}))
    found = at(classed, 5).groups
    assert [(group.feature, group.doubles, group.n_strongest) for group in found] == [(1, [2], 7), (3, [], 2)]


def test_a_tree_of_groups_goes_from_the_widest_down() -> None:
    def part(feature: int, n: int, leader: int, inside: int = -1) -> Part:
        return Part(feature, n, leader, inside, is_part=True, n_strongest=0)

    parts = [part(1, 9, 1), part(2, 8, 1), part(3, 5, 3, 1), part(4, 2, 4, 3), part(5, 9, 5), part(6, 6, 6, 1)]
    found = [(depth, each.feature, [other.feature for other in doubles]) for depth, each, doubles in tree(parts)]
    assert found == [(0, 1, [2]), (1, 6, []), (1, 3, []), (2, 4, []), (0, 5, [])]
    assert tree([part(1, 1, 1, 2), part(2, 1, 2, 1)]) == []  # a circle


def test_places_by_label_are_a_stable_sort_whatever_the_number_taken_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    label = rng.choice([0, 1, 4, 5, 9], 1000).astype(np.int32)
    for at_once in (1, 7, 999, 1000, 5000):
        monkeypatch.setattr("thresher.analysis.explorer.label_index._PAIRS_AT_ONCE", at_once)
        order, starts = by_label(label)
        assert order.tolist() == np.argsort(label, kind="stable").tolist()
        assert starts.tolist() == np.searchsorted(np.sort(label), np.arange(11)).tolist()
    assert by_label(label[:0])[1].tolist() == [0]


def test_the_list_of_classes_counts_and_searches(classed: ExploredRun) -> None:
    of = classed.stored.statistics
    found = view_all(classed, Query(values={"sort": "label"}))
    assert [each.label for each in found.classes] == list(range(7))
    assert [each.n_rows for each in found.classes] == of.label_rows.tolist()
    assert sum(each.n_own for each in found.classes) == int((of.label_entropy == 0).sum())
    assert [each.n_top for each in found.classes] == [int((classed.listing.top_label == i).sum()) for i in range(7)]
    for each in found.classes:
        slots = (of.top_label[:, 0] == each.label).nonzero()[0]
        best = slots[np.argmax(of.top_value[slots, 0])]
        assert of.top_value[best, 0] == of.top_value[slots][of.top_row[slots, 0] == each.row, 0].max()
    assert [each.label for each in view_all(classed, Query(values={"q": "CLASS"})).classes] == [5, 6]
    assert [each.label for each in view_all(classed, Query(values={"q": "3"})).classes] == [3]
    assert view_all(classed, Query(values={"q": "zebra"})).total == 0
    by_rows = view_all(classed, Query(values={"sort": "rows"})).classes
    assert [each.n_rows for each in by_rows] == sorted(of.label_rows.tolist(), reverse=True)


def test_pages_of_classes_escape_their_names(classed: ExploredRun) -> None:
    with TestClient(make_app(Explorer([classed.path])), base_url="http://127.0.0.1") as client:
        for path in ("/c", *(f"/c/{label}" for label in range(7))):
            answer = client.get(path)
            assert answer.status_code == 200
            assert HOSTILE_LABELS[0] not in answer.text
            assert "{% raw %}</title>" not in answer.text
            assert client.get(f"{path}.json").status_code == 200
        for path in ("/c/7", "/c/99999999", "/c/-1", "/c/x"):
            assert client.get(path).status_code == 404


def test_many_classes_come_some_at_a_time(monkeypatch: pytest.MonkeyPatch, classed: ExploredRun) -> None:
    monkeypatch.setattr(pages, "CLASSES_PER_PAGE", 3)
    found = [view_all(classed, Query(values={"page": str(page)})) for page in (1, 2, 3)]
    assert [len(each.classes) for each in found] == [3, 3, 1]
    assert len({each.label for page in found for each in page.classes}) == 7
    assert found[1].next == "?page=3"


def test_a_run_without_labels_says_so(tmp_path: Path) -> None:
    made = make_explored_run(tmp_path, is_labelled=False, thumbnails=False)
    run = ExploredRun(made.path)
    assert view_all(run, Query()).problem == "No row of run has a label: it was harvested without classes."
    with pytest.raises(NotHere, match="No row of run has a label"):
        at(run, 0)
    with TestClient(make_app(Explorer([made.path])), base_url="http://127.0.0.1") as client:
        assert "No row of run has a label" in client.get("/c").text
        assert client.get("/c/0").status_code == 404


def test_without_a_label_table_own_features_are_shown_and_the_rest_is_explained(
    tmp_path: Path, classed: ExploredRun
) -> None:
    run = ExploredRun(make_explored_run(tmp_path, options=replace(QUICK, samples=0)).path)
    found = at(run, 0)
    assert [each.feature.id for each in found.own] == sorted(each.feature.id for each in at(classed, 0).own)
    assert found.own[0].n is None
    assert found.taken == []
    assert len(found.messages) == 2
    assert "thresher classes" in found.messages[1]
    with TestClient(make_app(Explorer([run.path])), base_url="http://127.0.0.1") as client:
        assert found.messages[0] in unescape(client.get("/c/0").text)


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("classes.tsv", "label\tclass\n1\tcat\n", "no column 'n_rows'|no column 'n_own_features'"),
        ("class_features.tsv", "label\tfeature\nx\t1\n", "no column|invalid literal"),
        ("class_pairs.tsv", "a\tb\n1\n", "shorter|longer"),
    ],
)
def test_damaged_tables_are_named(classed: ExploredRun, tmp_path: Path, name: str, text: str, complaint: str) -> None:
    import re

    for each in ("stats.json", "classes.tsv", "class_features.tsv", "class_pairs.tsv"):
        (tmp_path / each).write_bytes((classed.path / each).read_bytes())
    assert read_class_tables(tmp_path).problem is None
    (tmp_path / name).write_text(text)
    assert re.search(complaint, read_class_tables(tmp_path).problem or "")
    (tmp_path / name).unlink()
    assert "run `thresher classes`" in (read_class_tables(tmp_path).problem or "")

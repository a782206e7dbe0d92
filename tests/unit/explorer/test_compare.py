"""Two runs on one page: shares, histograms, trees, as counted by hand from the matches."""

import time

import numpy as np
import pytest
from explored import make_explored_run
from starlette.testclient import TestClient
from thresher.analysis.explorer import match_runs
from thresher.analysis.explorer.app import make_app
from thresher.analysis.explorer.match_runs import job_of, match_all
from thresher.analysis.explorer.page import NotHere, Query
from thresher.analysis.explorer.pages.compare import match, view
from thresher.analysis.explorer.several import Explorer
from thresher.progress import Reporter


@pytest.fixture(scope="module")
def explorer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    paths = [
        make_explored_run(folder, name=name, seed=s, n_features=n).path for name, s, n in (("a", 0, 96), ("b", 1, 150))
    ]
    explorer = Explorer(paths)
    match_all(explorer, Reporter())
    return explorer


@pytest.fixture(scope="module")
def matches(explorer):
    return job_of(*explorer.runs).matches


@pytest.fixture(scope="module")
def shown(explorer):
    return view(explorer.runs[0], Query())


def test_the_recovered_share_is_that_of_the_features_shown(explorer, matches, shown):
    a, b = explorer.runs
    for threshold in (0.5, 0.7, 0.95):
        found = view(a, Query(values={"t": str(round(100 * threshold))})).runs
        assert found[0].recovered == np.mean(matches.cosine[a.shown, 0] > threshold)
        assert found[1].recovered == np.mean(matches.back_cosine[b.shown] > threshold)
    assert shown.threshold == 0.7
    assert 0 < shown.runs[0].recovered < 1


def test_the_histogram_holds_every_feature_shown_once(explorer, matches, shown):
    a = explorer.runs[0]
    assert shown.runs[0].counts.sum() == len(a.shown)
    best = matches.cosine[a.shown, 0].astype(float)
    assert shown.runs[0].counts[80:90].sum() == ((best > 0.8) & (best <= 0.9)).sum()


def test_trees_are_those_of_the_children_with_the_most_first(matches, shown):
    children = matches.children(0.4)
    split = {f: g for f, g in children.items() if len(g) > 1}
    assert shown.n_trees == len(split)
    assert [tree.n_children for tree in shown.trees] == sorted(map(len, split.values()), reverse=True)[:6]
    for tree in shown.trees:
        listed = [pair.b.feature for pair in tree.children]
        assert set(listed) <= set(split[tree.root.feature].tolist())
        cosines = [pair.cosine for pair in tree.children]
        assert cosines == sorted(cosines, reverse=True)
        assert cosines[0] == pytest.approx(matches.back_cosine[split[tree.root.feature]].max())


def test_what_is_least_like_the_other_run_stands_first(explorer, matches, shown):
    a, b = explorer.runs
    assert shown.lost[0].feature in a.shown
    assert matches.cosine[shown.lost[0].feature, 0] == matches.cosine[a.shown, 0].min()
    assert matches.back_cosine[shown.new[0].feature] == matches.back_cosine[b.shown].min()


def test_uld_features_and_dead_ones_are_counted(explorer, shown):
    for run, found in zip(explorer.runs, shown.runs, strict=True):
        assert (found.d_sae, found.n_uld) == (run.d_sae, int(run.is_uld.sum()))
        assert found.n_alive == run.d_sae - int(run.is_dead.sum())


def test_a_feature_knows_its_best_match_in_the_other_run(explorer, matches):
    (found,) = match(explorer.runs[0], Query({"feature": 4}))
    assert (found["run"], found["feature"]) == ("b", matches.feature[4, 0])
    assert found["cosine"] == matches.cosine[4, 0]
    assert match(explorer.runs[0], Query({"feature": 95})) == []  # dead


def test_matches_are_kept_beside_the_run_and_read_again(explorer, matches, monkeypatch):
    a, b = (run.path for run in explorer.runs)
    assert len(list(a.glob("matches-*.npz"))) == 1
    monkeypatch.setattr(match_runs, "nearest_directions", None)  # would fail if it were called
    again = Explorer([a, b])
    match_all(again, Reporter())
    found = job_of(*again.runs).matches
    for name, values in matches.to_arrays().items():
        np.testing.assert_array_equal(found.to_arrays()[name], values)


def test_a_damaged_file_of_matches_is_computed_again(explorer, matches):
    a, b = (run.path for run in explorer.runs)
    (place,) = a.glob("matches-*.npz")
    place.write_bytes(place.read_bytes()[:1000])
    again = Explorer([a, b])
    match_all(again, Reporter())
    np.testing.assert_array_equal(job_of(*again.runs).matches.cosine, matches.cosine)


def test_one_run_is_told_how_to_compare(explored):
    assert "Give thresher explore two or more" in view(explored.runs[0], Query()).problem


def test_runs_of_other_lengths_say_so(tmp_path):
    paths = [make_explored_run(tmp_path / name, name=name, d_in=d).path for name, d in (("a", 24), ("b", 20))]
    explorer = Explorer(paths)
    with TestClient(make_app(explorer), base_url="http://127.0.0.1") as client:
        answer = client.get("/compare")
    assert answer.status_code == 200
    assert "a reads vectors of length 24, b of length 20." in answer.text


def test_a_run_that_is_not_explored_is_not_here(explorer):
    with pytest.raises(NotHere, match="No other run 'c' is explored here; there is b"):
        view(explorer.runs[0], Query({"run": "c"}))


def test_pages_are_answered_while_the_matching_runs_and_after(explorer):
    again = Explorer([run.path for run in explorer.runs])
    with TestClient(make_app(again), base_url="http://127.0.0.1") as client:
        assert client.get("/compare").status_code == 200
        deadline = time.monotonic() + 30
        while not client.get("/compare-status/b.json").json()["is_done"]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        for path in ("/compare", "/compare/b", "/runs/b/compare/a", "/compare?t=50&page=1"):
            answer = client.get(path)
            assert answer.status_code in (200, 202), path
            assert "<script>alert" not in answer.text
        assert client.get("/compare.json").json()["other"] == "b"
        assert client.get("/compare?t=500").status_code == 400
        assert client.get("/compare/zz").status_code == 404
        assert len(client.get("/compare-points/b.bin").content) == 12 * 150

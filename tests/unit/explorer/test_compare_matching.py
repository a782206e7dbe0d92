"""Features of two runs are matched as dense float64 products and correlations would."""

import numpy as np
import pytest
import torch
from explored import make_explored_run
from thresher.analysis.cosines import unit_rows
from thresher.analysis.explorer import matching
from thresher.analysis.explorer.matching import Matches, chance_cosines, correlations, nearest_directions
from thresher.analysis.features import open_features


@pytest.fixture
def made(monkeypatch):
    """Vectors with equal ones, a zero row on each side, dead ones; and their cosines, -inf where there is none."""
    monkeypatch.setattr(matching, "_BLOCK", 7)
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((40, 6)), rng.standard_normal((25, 6))
    a[11] = a[30] = b[4]  # two of A equal one of B, in different blocks
    b[9] = b[20] = a[2]  # two of B equal one of A
    a[5], b[3] = 0, 0
    alive_a, alive_b = np.ones(40, bool), np.ones(25, bool)
    alive_a[[0, 17]] = alive_b[24] = False
    with np.errstate(invalid="ignore"):
        cosine = (a / np.linalg.norm(a, axis=1, keepdims=True)) @ (b / np.linalg.norm(b, axis=1, keepdims=True)).T
    cosine[~alive_a], cosine[:, ~alive_b] = -np.inf, -np.inf
    cosine[np.isnan(cosine)] = -np.inf
    return unit_rows(torch.from_numpy(a)), unit_rows(torch.from_numpy(b)), alive_a, alive_b, cosine


def matched(made):
    a, b, alive_a, alive_b, _ = made
    feature, cosine, back, back_cosine = nearest_directions(a, b, alive_a, alive_b)
    none = np.full(feature.shape, np.nan, np.float32)
    return Matches(feature, cosine, none, back, back_cosine, np.zeros(1, np.float32), 0, 0.0)


def test_the_candidates_are_those_of_the_dense_matrix_of_cosines(made):
    found, cosine = matched(made), made[4]
    for f in range(40):
        if not np.isfinite(cosine[f]).any():
            assert (found.feature[f] == -1).all()
            assert np.isnan(found.cosine[f]).all()
            continue
        np.testing.assert_allclose(found.cosine[f], np.sort(cosine[f])[::-1][:8], atol=1e-6)
        np.testing.assert_allclose(found.cosine[f], cosine[f, found.feature[f]], atol=1e-6)
    assert np.flatnonzero(found.feature[:, 0] == -1).tolist() == [0, 5, 17]


def test_of_equal_directions_the_lowest_stands_first_both_ways(made):
    found = matched(made)
    assert found.feature[2, :2].tolist() == [9, 20]
    assert found.back_feature[4] == 11
    np.testing.assert_allclose(found.cosine[2, :2], 1, atol=1e-6)


def test_each_feature_of_b_knows_the_nearest_of_a(made):
    found, cosine = matched(made), made[4]
    known = np.isfinite(cosine).any(axis=0)
    assert np.flatnonzero(~known).tolist() == [3, 24]
    assert (found.back_feature[~known] == -1).all()
    assert np.isnan(found.back_cosine[~known]).all()
    np.testing.assert_allclose(found.back_cosine[known], cosine.max(axis=0)[known], atol=1e-6)
    others = np.flatnonzero(known & (np.arange(25) != 4))
    np.testing.assert_array_equal(found.back_feature[others], cosine.argmax(axis=0)[others])


def test_children_are_those_of_brute_force(made):
    found, cosine = matched(made), made[4]
    expected: dict[int, list[int]] = {}
    for g in range(25):
        parents = [f for f in range(40) if np.isfinite(cosine[f, g])]
        if not parents:
            continue
        best = 11 if g == 4 else max(parents, key=lambda f: cosine[f, g])
        if cosine[best, g] > 0.4:
            expected.setdefault(best, []).append(g)
    assert {f: list(g) for f, g in found.children(0.4).items()} == expected
    assert {9, 20} <= set(expected[2])
    assert found.children(1.5) == {}


def test_fewer_features_than_candidates_leave_places_unfilled():
    a, b = torch.eye(3), torch.eye(3)[:2]
    feature, cosine, back, back_cosine = nearest_directions(a, b, np.ones(3, bool), np.ones(2, bool))
    assert feature[0, :3].tolist() == [0, 1, -1]
    assert feature[2, :2].tolist() == [0, 1]
    assert np.isnan(cosine[:, 2:]).all()
    assert back.tolist() == [0, 1]
    assert back_cosine.tolist() == [1, 1]


def test_chance_is_the_largest_cosine_of_directions_that_know_nothing():
    # in one dimension every direction is one of two: with both there its largest cosine is 1
    np.testing.assert_array_equal(chance_cosines(torch.tensor([[1.0], [-1.0]]), np.ones(2, bool)), np.ones(2048))
    # of one axis in d dimensions the squared cosine has the mean 1 / d
    found = chance_cosines(torch.eye(16)[:1], np.ones(1, bool))
    assert np.mean(found.astype(float) ** 2) == pytest.approx(1 / 16, abs=0.005)
    assert (np.diff(found) >= 0).all()
    assert len(chance_cosines(torch.eye(3), np.zeros(3, bool))) == 0


def test_correlations_are_those_of_dense_codes(tmp_path, monkeypatch):
    monkeypatch.setattr(matching, "_RANGE_BYTES", 2000)
    runs = [make_explored_run(tmp_path, name=name, seed=seed, n_features=40) for name, seed in (("a", 0), ("b", 1))]
    a, b = (open_features(run.path) for run in runs)
    dense = [np.zeros((each.n_rows, each.d_sae)) for each in (a, b)]
    for each, codes in zip((a, b), dense, strict=True):
        indptr, index, value = each.rows(0, each.n_rows)
        codes[np.repeat(np.arange(each.n_rows), np.diff(indptr)), index] = value
    encoded = a.row_numbers("split", 0, a.n_rows) != 0
    assert not encoded.all()  # an unreadable image is of no row that counts
    candidates = np.random.default_rng(2).integers(-1, 40, (40, 8)).astype(np.int32)
    found, n = correlations(a, b, candidates)
    assert n == encoded.sum()
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = np.corrcoef(dense[0][encoded].T, dense[1][encoded].T)[:40, 40:]
    for f in range(40):
        for place, g in enumerate(candidates[f]):
            if g < 0 or np.isnan(expected[f, g]):
                assert np.isnan(found[f, place])
            else:
                assert found[f, place] == pytest.approx(expected[f, g], abs=1e-5)
    assert np.isfinite(found).sum() > 100
    assert np.isnan(expected[-1]).all()  # a dead feature

"""Bootstrap intervals, against bootstraps of single rows by hand and against the normal distribution."""

import json

import numpy as np
import pytest
from scipy.stats import norm
from thresher.analysis.bootstrap import interval, mean_intervals, resampled_sums
from thresher.analysis.encode import encode
from thresher.analysis.features import HELD_OUT, open_features
from thresher.analysis.options import EncodeOptions, StatsOptions
from thresher.analysis.quality_intervals import quality_intervals
from thresher.analysis.stats import stats
from thresher.store.format import Site


def test_sums_are_those_of_the_units_drawn(monkeypatch):
    values = np.random.default_rng(1).standard_normal((37, 3))
    drawn = np.random.default_rng(5).integers(37, size=(50, 37))
    expected = np.stack([values[units].sum(0) for units in drawn])
    np.testing.assert_allclose(resampled_sums(values, seed=5, n_resamples=50), expected, rtol=0, atol=1e-12)
    monkeypatch.setattr("thresher.analysis.bootstrap._COUNTS_AT_ONCE", 100)  # two sets at a time
    np.testing.assert_allclose(resampled_sums(values, seed=5, n_resamples=50), expected, rtol=0, atol=1e-12)


def test_the_interval_of_a_mean_is_the_normal_one_for_many_rows():
    draw = np.random.default_rng(2)
    values = np.column_stack([draw.standard_normal(2000) * 3 + 1, draw.random(2000) < 0.2])
    for column, (low, high) in zip(values.T, mean_intervals(values), strict=True):
        width = norm.ppf(0.975) * column.std(ddof=1) / np.sqrt(2000)
        assert low == pytest.approx(column.mean() - width, abs=0.1 * width)
        assert high == pytest.approx(column.mean() + width, abs=0.1 * width)


def test_nineteen_sets_in_twenty_have_the_true_mean_in_their_interval():
    draw = np.random.default_rng(3)
    found = [mean_intervals(draw.exponential(size=(60, 1)), seed=i)[0] for i in range(200)]
    assert 0.90 <= np.mean([low <= 1 <= high for low, high in found]) <= 0.98


@pytest.mark.parametrize("values", [np.zeros((19, 1)), np.full((30, 1), np.nan)])
def test_few_units_and_undefined_numbers_have_no_interval(values):
    assert mean_intervals(values) == [None]


def test_units_that_are_all_alike_have_an_interval_of_no_width():
    assert mean_intervals(np.full((20, 1), 2.5)) == [(2.5, 2.5)]
    assert interval(np.array([])) is None


def _by_hand(x, x_hat, f, draws):
    """Numbers of sets of rows, one after the other."""
    found = {name: [] for name in ("mse", "normalized_mse", "explained_variance", "explained_energy", "l1", "l0_mean")}
    for rows in draws:
        a, e = x[rows], (x_hat - x)[rows]
        size = np.linalg.norm(a, axis=1, keepdims=True)
        found["mse"].append((e**2).mean())
        found["normalized_mse"].append((e**2 / size).mean())
        found["explained_variance"].append(1 - (e**2).sum() / ((a - a.mean(0)) ** 2).sum())
        found["explained_energy"].append((1 - (e**2).sum(1) / size[:, 0] ** 2).mean())
        found["l1"].append(f[rows].sum(1).mean())
        found["l0_mean"].append((f[rows] > 0).sum(1).mean())
    return {name: np.quantile(values, [0.025, 0.975]) for name, values in found.items()}


def test_held_out_intervals_are_those_of_resampling_single_rows(make_store, make_run, dense):
    run = make_run(make_store(3000, dtype="float32").path)
    features = open_features(encode(run.path).features_path)
    found = quality_intervals(features)["splits"]["heldout"]
    exact = dense(run)
    held_out = np.flatnonzero(features.row_numbers("split", 0, 3000) == HELD_OUT)
    n = len(held_out)
    assert found["n_sections"] == n == 30  # a row each
    draws = held_out[np.random.default_rng(0).integers(n, size=(1000, n))]
    for name, (low, high) in _by_hand(exact["x"], exact["x_hat"], exact["f"], draws).items():
        assert found[name] == pytest.approx((low, high), rel=1e-5), name


def test_sections_of_many_rows_give_the_width_that_rows_give(make_store, make_run, dense):
    run = make_run(make_store(3000, dtype="float32").path)
    features = open_features(encode(run.path).features_path)
    found = quality_intervals(features)["splits"]["all"]
    assert found["n_sections"] < 300
    exact = dense(run)
    draws = np.random.default_rng(7).integers(3000, size=(400, 3000))
    for name, (low, high) in _by_hand(exact["x"], exact["x_hat"], exact["f"], draws).items():
        # 248 sections tell a width to 4.5 %, 400 sets of rows its ends to as much again
        assert found[name][1] - found[name][0] == pytest.approx(high - low, rel=0.25), name
        assert sum(found[name]) == pytest.approx(low + high, abs=0.5 * (high - low)), name


def test_patches_of_one_image_are_drawn_together(make_store, make_run):
    site = Site(1, token="patch")
    image = np.random.default_rng(4).standard_normal((250, 1, 8))
    rows = np.tile(image, (1, 16, 1)).reshape(-1, 8)  # every patch of an image is the same: 16 rows say what one says
    run = make_run(make_store(250, sites=(site,), tokens=16, rows=rows, dtype="float32", labels=np.zeros(250)).path)
    found = quality_intervals(open_features(encode(run.path).features_path))["splits"]["all"]
    features = open_features(run.path)
    l0 = features.l0(0, 4000)
    single = mean_intervals(l0[::16].astype(float)[:, None])[0]
    assert found["l0_mean"] == pytest.approx(single, abs=0.25 * (single[1] - single[0]))


def test_training_and_held_out_rows_that_are_mixed_are_counted_apart(make_store, make_run):
    run = make_run(make_store(2500, order="source").path)
    features = open_features(encode(run.path, EncodeOptions(block_rows=300)).features_path)
    found = quality_intervals(features)["splits"]
    split, l0 = features.row_numbers("split", 0, 2500), features.l0(0, 2500)
    assert found["heldout"]["n_sections"] == (split == HELD_OUT).sum() == 25
    low, high = found["heldout"]["l0_mean"]
    assert low < l0[split == HELD_OUT].mean() < high


def test_stats_writes_the_intervals_beside_the_numbers(make_store, make_run):
    run = make_run(make_store(2400).path)
    encode(run.path)
    stats(run.path, StatsOptions(figures=False))
    written = json.loads((run.path / "stats.json").read_text())
    low, high = written["intervals"]["splits"]["all"]["explained_variance"]
    assert low < written["explained_variance"] < high
    low, high = written["intervals"]["splits"]["all"]["l0_mean"]
    assert low < written["l0"]["mean"] < high
    assert written["intervals"]["method"] == "percentile bootstrap"


def test_a_handful_of_rows_has_no_intervals(make_store, make_run):
    run = make_run(make_store(12).path)
    found = quality_intervals(open_features(encode(run.path).features_path))["splits"]
    assert found["all"]["explained_variance"] is None
    assert found["heldout"]["l0_mean"] is None

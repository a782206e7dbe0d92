"""Bootstrap of attribute scores and p-values, against resamples that are spelt out and against permutations."""

import math

import numpy as np
import pytest
from scipy.stats import kstest
from thresher.analysis.attribute_intervals import GroupBootstrap, association_p_values, interval
from thresher.analysis.attributes import SparseActivations, score_attributes, split_groups


def _case(seed: int = 0, n: int = 240, n_groups: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    dense = np.maximum(0, np.round(rng.standard_normal((n, 12)) * 2) / 2).astype(np.float32)
    group = rng.integers(0, n_groups, n)
    has = rng.random((n, 4)) < [0.3, 0.2, 0.5, 0.1]
    has[:, 0] |= dense[:, 3] > 1
    return dense, has, group, split_groups(group)


def test_scores_of_a_resample_are_those_of_its_rows_spelt_out() -> None:
    dense, has, group, is_fit = _case()
    source = SparseActivations.of_dense(dense)
    scores = score_attributes(source, has, is_fit)
    bootstrap = GroupBootstrap(group, has, ~is_fit, 30, seed=3)
    drawn = bootstrap.scores(source, scores)
    scored_groups = np.unique(group[~is_fit])
    for resample in range(30):
        weight_of = dict(zip(scored_groups.tolist(), bootstrap._weights[resample].astype(int).tolist(), strict=True))
        rows = [row for row in np.flatnonzero(~is_fit) for _ in range(weight_of[group[row]])]
        for a in range(4):
            values, hits = dense[rows, scores.feature[a]], has[rows, a]
            predicted = values > scores.threshold[a]
            expected = 2 * (predicted & hits).sum() / (predicted.sum() + hits.sum())
            assert drawn.f1[resample, a] == pytest.approx(expected, abs=1e-6)
            order = [i for i in np.argsort(-values, kind="stable") if values[i] > 0][:20]
            assert drawn.precision[resample, a] == pytest.approx(hits[order].sum() / 20, abs=1e-6)
    assert drawn.mean_f1[4] == pytest.approx(drawn.f1[4].mean(), abs=1e-6)


def test_the_interval_is_the_middle_of_the_resamples_and_leaves_undefined_ones_out() -> None:
    drawn = np.random.default_rng(0).normal(size=1000)
    assert interval(np.append(drawn, np.nan)) == pytest.approx(tuple(np.quantile(drawn, (0.025, 0.975))))
    assert all(math.isnan(edge) for edge in interval(np.full(3, np.nan)))


def test_an_attribute_of_few_groups_has_no_interval_and_one_that_is_not_scored_has_nothing() -> None:
    dense, has, group, is_fit = _case()
    scored = np.unique(group[~is_fit])
    has[:, 1] = np.isin(group, scored[:4])  # four groups
    has[:, 3] = False
    source = SparseActivations.of_dense(dense)
    drawn = GroupBootstrap(group, has, ~is_fit, 50, seed=0).scores(source, score_attributes(source, has, is_fit))
    assert drawn.n_groups.tolist()[1] == 4
    assert all(math.isnan(edge) for pair in drawn.intervals(1) for edge in pair)
    assert all(math.isnan(edge) for pair in drawn.intervals(3) for edge in pair)
    assert np.isnan(drawn.p[3])
    low, high = drawn.intervals(0)[0]
    assert 0 < low < high < 1


def test_the_interval_covers_the_score_of_all_groups_about_as_often_as_it_says() -> None:
    """Groups drawn from a large population: the population's F1 lies in 95 % of the intervals, give or take."""
    rng = np.random.default_rng(1)
    covered, n_trials = 0, 60
    truth = 2 * 0.8 * 0.3 / (0.3 + 0.8 * 0.3 + 0.1 * 0.7)  # F1 of a feature with hit rates 0.8 and 0.1, share 0.3
    for _ in range(n_trials):
        group = np.arange(2400) // 4
        has = rng.random((2400, 1)) < 0.3
        value = np.where(rng.random(2400) < np.where(has[:, 0], 0.8, 0.1), 1.0, 0.0)
        source = SparseActivations.of_dense(value[:, None])
        is_fit = split_groups(group)
        drawn = GroupBootstrap(group, has, ~is_fit, 200, seed=0)
        low, high = interval(drawn.scores(source, score_attributes(source, has, is_fit)).f1[:, 0])
        covered += low <= truth <= high
    assert covered >= 0.85 * n_trials


def test_p_values_are_even_without_association_though_rows_of_a_group_go_together() -> None:
    rng = np.random.default_rng(2)
    n_groups, per_group, trials = 300, 6, 400
    predicted = np.repeat(rng.random((n_groups, trials)) < 0.3, per_group, axis=0)  # whole groups alike
    actual = np.repeat(rng.random((n_groups, trials)) < 0.4, per_group, axis=0)
    group = np.repeat(np.arange(n_groups), per_group)

    def by_group(rows: np.ndarray) -> np.ndarray:
        return np.stack([np.bincount(group, column, n_groups) for column in rows.T.astype(float)], axis=1)

    size = np.full(n_groups, float(per_group))
    p = association_p_values(by_group(predicted & actual), by_group(predicted), by_group(actual), size)
    assert kstest(p, "uniform").pvalue > 0.01
    of_rows = association_p_values(  # control: rows taken as independent find associations that are not there
        (predicted & actual).astype(float), predicted.astype(float), actual.astype(float), np.ones(len(group))
    )
    assert (of_rows < 0.05).mean() > 3 * (p < 0.05).mean()


def test_p_values_of_perfect_and_of_no_prediction() -> None:
    hits = np.array([[1.0, 0.0]] * 50 + [[0.0, 0.0]] * 50)
    p = association_p_values(hits, hits, np.array([[1.0, 1.0]] * 50 + [[0.0, 0.0]] * 50), np.ones(100))
    assert p[0] < 1e-10
    assert p[1] == 0.5

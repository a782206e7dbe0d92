import math

import numpy as np
import pytest
from scipy import stats
from thresher.analysis.significance import adjusted_p_values, median_difference, p_values, rank_sum


def test_a_p_value_counts_the_null_values_that_are_as_large():
    null = np.array([0.1, 0.2, 0.2, 0.3], np.float32)
    observed = np.array([0.0, 0.1, 0.2, np.float32(0.25), 0.3, 0.4, np.nan], np.float32)
    by_hand = [5 / 5, 5 / 5, 4 / 5, 2 / 5, 2 / 5, 1 / 5, np.nan]
    np.testing.assert_allclose(p_values(observed, null), by_hand)


def test_p_values_of_draws_from_the_null_are_uniform():
    rng = np.random.default_rng(1)
    p = p_values(rng.standard_normal(2000), rng.standard_normal(50_000))
    assert stats.kstest(p, "uniform").pvalue > 0.01
    shifted = p_values(rng.standard_normal(2000) + 0.2, rng.standard_normal(50_000))
    assert stats.kstest(shifted, "uniform").pvalue < 1e-6


@pytest.mark.parametrize("any_dependence", [False, True])
def test_adjusted_p_values_are_those_of_scipy(any_dependence):
    rng = np.random.default_rng(2)
    p = np.concatenate((rng.uniform(size=200), rng.uniform(size=50) / 500, [0.01, 0.01, 1.0]))
    expected = stats.false_discovery_control(p, method="by" if any_dependence else "bh")
    np.testing.assert_allclose(adjusted_p_values(p, any_dependence=any_dependence), expected, rtol=1e-12)


def test_of_the_features_called_aligned_the_share_of_chance_is_what_was_asked_for():
    rng = np.random.default_rng(4)
    shares = []
    for _ in range(200):  # 800 features of chance and 200 others, against one sample of chance
        observed = rng.standard_normal(1000) + np.repeat([0, 3], [800, 200])
        called = adjusted_p_values(p_values(observed, rng.standard_normal(5000))) <= 0.1
        shares.append(called[:800].sum() / max(1, called.sum()))
    assert 0.06 < np.mean(shares) < 0.09  # 0.1 times the share of chance, 0.8


def test_what_has_no_p_value_is_no_hypothesis():
    p = np.array([np.nan, 0.01, np.nan, 0.04])
    found = adjusted_p_values(p)
    assert np.isnan(found[[0, 2]]).all()
    np.testing.assert_allclose(found[[1, 3]], stats.false_discovery_control(p[[1, 3]]))
    assert np.isnan(adjusted_p_values(np.full(3, np.nan))).all()


@pytest.mark.parametrize(("n", "m", "ties"), [(40, 60, False), (40, 60, True), (1, 1, False), (3, 500, True)])
def test_the_rank_sum_test_is_that_of_scipy(n, m, ties):
    rng = np.random.default_rng(n + m)
    first, second = rng.standard_normal(n), rng.standard_normal(m) + 0.3
    if ties:
        first, second = first.round(), second.round()
    expected = stats.mannwhitneyu(first, second, method="asymptotic", alternative="two-sided", use_continuity=True)
    found = rank_sum(first, second)
    assert found.u == expected.statistic
    assert found.p == pytest.approx(expected.pvalue, rel=1e-10)
    smaller = (first[:, None] < second).mean() + (first[:, None] == second).mean() / 2
    assert found.p_first_smaller == pytest.approx(smaller)


def test_equal_samples_do_not_differ_and_an_empty_one_is_not_compared():
    assert rank_sum(np.zeros(5), np.zeros(7)).p == 1.0
    assert rank_sum(np.zeros(5), np.zeros(7)).p_first_smaller == 0.5
    assert math.isnan(rank_sum(np.zeros(0), np.zeros(7)).p)
    assert math.isnan(median_difference(np.zeros(0), np.zeros(7), seed=0).value)


@pytest.mark.parametrize(("n", "m"), [(31, 40), (200, 51), (1, 2)])
def test_the_interval_of_a_difference_of_medians_is_that_of_resampling(n, m):
    rng = np.random.default_rng(3)
    first, second = rng.exponential(size=n), rng.exponential(size=m).round(1)
    drawn = [
        np.median(sample[rng.integers(0, len(sample), (20_000, len(sample)))], axis=1) for sample in (first, second)
    ]
    difference = drawn[0] - drawn[1]
    found = median_difference(first, second, seed=0, resamples=20_000)
    assert found.value == np.median(first) - np.median(second)
    spread = max(float(difference.std()), 1e-12)
    for bound, q in ((found.low, 0.025), (found.high, 0.975)):
        assert abs(bound - np.quantile(difference, q)) < 0.12 * spread + 1e-9

"""Scores of names, against scikit-learn, scipy and hand calculations."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu, percentileofscore
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from thresher.analysis.naming.scores import (
    auroc,
    balanced_accuracy,
    best_thresholds,
    combined_score,
    effect_scores,
    equal_controls,
    negatives,
    rank_sum_p_values,
    statuses,
)

NAN = np.nan
_few = st.lists(st.integers(0, 6), min_size=1, max_size=12)  # few values: many ties


def _labels(positive: list[int], negative: list[int]) -> np.ndarray:
    return np.array([1] * len(positive) + [0] * len(negative))


@settings(max_examples=60, deadline=None)
@given(_few, _few)
def test_auroc_with_ties_is_scikit_learns(positive: list[int], negative: list[int]) -> None:
    wanted = roc_auc_score(_labels(positive, negative), positive + negative)
    assert auroc(np.array(positive, float), np.array(negative, float)) == pytest.approx(wanted, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(_few, _few)
def test_p_values_with_ties_are_scipys(positive: list[int], negative: list[int]) -> None:
    found = float(rank_sum_p_values(np.array(positive, float), np.array(negative, float)))
    if len(set(positive + negative)) == 1:
        assert found == 1
    else:
        wanted = mannwhitneyu(positive, negative, alternative="greater", method="asymptotic").pvalue
        assert found == pytest.approx(wanted, rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(_few, _few)
def test_no_other_threshold_is_better(positive: list[int], negative: list[int]) -> None:
    p, q = np.array(positive, float), np.array(negative, float)
    cut = best_thresholds(p, q)
    found = float(balanced_accuracy(p, q, cut))
    assert found == pytest.approx(balanced_accuracy_score(_labels(positive, negative), np.append(p, q) > cut))
    if len(set(positive + negative)) > 1:
        # cuts between two values; a threshold below or above all of them has 0.5
        inner = [value + 0.5 for value in range(6) if min(positive + negative) <= value < max(positive + negative)]
        tried = [balanced_accuracy_score(_labels(positive, negative), np.append(p, q) > each) for each in inner]
        assert found == pytest.approx(max(tried))


def test_features_and_phrases_are_scored_together_as_one_by_one() -> None:
    rng = np.random.default_rng(0)
    positive, negative = rng.integers(0, 9, (3, 4, 7)).astype(float), rng.integers(0, 9, (3, 4, 11)).astype(float)
    positive[0, :, 5:] = NAN  # a feature of fewer images
    negative[2, :, 3] = NAN
    area, p, cut = auroc(positive, negative), rank_sum_p_values(positive, negative), best_thresholds(positive, negative)
    share = balanced_accuracy(positive, negative, cut)
    for at in np.ndindex(3, 4):
        one, other = (x[at][~np.isnan(x[at])] for x in (positive, negative))
        assert area[at] == auroc(one, other)
        assert p[at] == pytest.approx(float(rank_sum_p_values(one, other)), rel=1e-12)
        assert cut[at] == best_thresholds(one, other)
        assert share[at] == balanced_accuracy(one, other, cut[at])


def test_a_side_without_images_has_no_score() -> None:
    nothing, some = np.full((2, 3), NAN), np.arange(6.0).reshape(2, 3)
    for positive, negative in ((nothing, some), (some, nothing), (some[:, :0], some), (some, some[:, :0])):
        for score in (auroc, rank_sum_p_values, best_thresholds):
            assert np.isnan(score(positive, negative)).all()
        assert np.isnan(balanced_accuracy(positive, negative, np.zeros(2))).all()


def test_p_values_are_uniform_where_phrase_and_firing_have_nothing_in_common() -> None:
    drawn = np.random.default_rng(1).standard_normal((4000, 60))
    p = rank_sum_p_values(drawn[:, :20], drawn[:, 20:])
    for level in (0.01, 0.05, 0.5):
        assert (p <= level).mean() == pytest.approx(level, abs=4 * np.sqrt(level * (1 - level) / 4000))


def test_hard_negatives_are_of_the_most_similar_tenth_of_the_images_that_were_not_drawn() -> None:
    similar = np.stack([np.arange(206.0), -np.arange(206.0)])  # two phrases, opposite
    found = negatives(similar, np.random.default_rng(3), random=6, hard=8)
    images = found.random[0].astype(int)
    assert np.array_equal(found.random[1], -found.random[0])  # the same images for every phrase
    left = np.setdiff1d(np.arange(206), images)  # 200
    assert found.hard.shape == (2, 8)
    assert len(set(found.hard[0])) == 8
    assert np.isin(found.hard[0], left[-20:]).all()
    assert np.isin(-found.hard[1], left[:20]).all()
    few = negatives(similar[:, :26], np.random.default_rng(3), random=6, hard=8)  # a tenth would be 2
    left = np.setdiff1d(np.arange(26), few.random[0].astype(int))
    assert sorted(few.hard[0]) == left[-8:].tolist()
    assert few.all.shape == (2, 14)


def test_hardness_does_not_depend_on_how_many_images_there_are() -> None:
    rng = np.random.default_rng(0)
    firing = rng.standard_normal((300, 50)) + 1.5
    few, many = (
        np.mean([auroc(one, negatives(rng.standard_normal(m), rng).all) for one in firing]) for m in (600, 6000)
    )
    assert few == pytest.approx(many, abs=0.01)


@pytest.mark.parametrize(("m", "n_random", "n_hard"), [(0, 0, 0), (1, 1, 0), (7, 4, 3), (11, 6, 5), (12, 6, 6)])
def test_few_images_are_shared_out_and_none_is_taken_twice(m: int, n_random: int, n_hard: int) -> None:
    found = negatives(np.arange(m, dtype=float)[None], np.random.default_rng(0), random=6, hard=8)
    assert (found.random.shape[1], found.hard.shape[1]) == (n_random, n_hard)
    assert len(set(found.all[0].tolist())) == n_random + n_hard


def test_effects_are_scored_against_random_phrases_by_hand() -> None:
    effects = np.array([[2.0, 0.0], [0.0, -1.0]])
    random = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [-1.0, 0.0]])
    texts = np.array([[[1.0, 0.0], [0.6, 0.8]], [[0.0, 1.0], [0.0, -1.0]]])
    found = effect_scores(effects, texts, random)
    assert found.score.tolist() == [[2.0, 1.2], [-1.0, 1.0]]
    # of the first feature the random phrases have 2, 0, 1.2, -2; of the second 0, -1, -0.8, 0
    chance = np.array([[2.0, 0, 1.2, -2], [0, -1, -0.8, 0]])
    z = (found.score - chance.mean(1, keepdims=True)) / chance.std(1, ddof=1, keepdims=True)
    np.testing.assert_allclose(found.z, z, rtol=1e-12)
    wanted = [[percentileofscore(c, s, kind="mean") for s in own] for c, own in zip(chance, found.score, strict=True)]
    assert found.percentile.tolist() == wanted
    single = effect_scores(effects, texts[:, 1], random)
    assert single.z.tolist() == found.z[:, 1].tolist()


def test_length_of_an_effect_does_not_matter_and_no_effect_has_no_z() -> None:
    rng = np.random.default_rng(2)
    effects, texts, random = (rng.standard_normal(shape) for shape in ((3, 5), (3, 4, 5), (50, 5)))
    effects[1] = NAN
    effects[2] = 0
    found, scaled = effect_scores(effects, texts, random), effect_scores(1e-6 * effects, texts, random)
    np.testing.assert_allclose(found.z[0], scaled.z[0], rtol=1e-9)
    assert found.percentile[0].tolist() == scaled.percentile[0].tolist()
    assert np.isnan(found.z[1:]).all()
    assert np.isnan(found.percentile[1]).all()
    assert found.percentile[2].tolist() == [50] * 4  # all tied


def test_one_phrase_against_one_random_phrase_has_no_z() -> None:
    found = effect_scores(np.ones((1, 2)), np.ones((1, 2)), np.ones((1, 2)))
    assert np.isnan(found.z[0]) and found.percentile[0] == 50  # noqa: PT018


def test_a_name_passes_at_its_thresholds_and_not_below() -> None:
    area = np.array([0.7, 0.69, 0.9, 0.9, NAN, 0.9, 0.9])
    z = np.array([2.0, 5.0, 1.9, 5.0, 5.0, NAN, 5.0])
    q = np.array([0.05, 0.01, 0.01, 0.06, 0.01, 0.01, NAN])
    found = statuses(area, z, q, min_auroc=0.7, min_z=2, fdr=0.05)
    assert found.tolist() == ["named", "unnamed", "unnamed", "unnamed", "untested", "untested", "untested"]


def test_the_combined_score_is_the_mean_of_both_and_lies_between_0_and_1() -> None:
    found = combined_score(np.array([1.0, 0.0, 0.8, NAN]), np.array([100.0, 0.0, 50.0, 50.0]))
    assert found[:3].tolist() == [1.0, 0.0, 0.65]
    assert np.isnan(found[3])


def test_controls_are_other_features_at_the_same_length_of_change() -> None:
    features, norms = np.array([4, 0, 2, 7]), np.array([1.0, 9, 2, 9, 0.5, 9, 9, 0])
    others, factors = equal_controls(features, norms, np.random.default_rng(0))
    assert (others != features).all()
    assert np.isin(others, features).all()
    for own, other, factor in zip(features, others, factors, strict=True):
        if norms[other]:
            assert factor * norms[other] == pytest.approx(norms[own])
    assert equal_controls(np.array([3]), norms, np.random.default_rng(0))[0].tolist() == [3]
    assert len(equal_controls(features[:0], norms, np.random.default_rng(0))[0]) == 0

"""Scores of known attributes, against brute force over every feature and every threshold."""

import numpy as np
import pytest
from thresher.analysis.attributes import (
    PRECISION_AT,
    Attributes,
    SparseActivations,
    emoji_attributes,
    score_attributes,
    split_groups,
)


def brute_force_best(dense: np.ndarray, has: np.ndarray) -> list[tuple[float, int, set[int]]]:
    """Of each attribute: the best F1, its feature, and the rows predicted, over all cuts between distinct values."""
    best = []
    for column in has.T:
        top: tuple[float, int, set[int]] = (0.0, -1, set())
        for feature in range(dense.shape[1]):
            values = dense[:, feature]
            for cut in sorted(set(values[values > 0].tolist()), reverse=True):
                predicted = values >= cut
                f1 = 2 * int((predicted & column).sum()) / (int(predicted.sum()) + int(column.sum()))
                if f1 > top[0]:
                    top = (f1, feature, set(np.flatnonzero(predicted).tolist()))
        best.append(top)
    return best


def with_ties(seed: int, n: int = 120, d_sae: int = 9) -> np.ndarray:
    """Activations rounded so that many are equal; feature 4 never fires, feature 2 fires on one row only."""
    rng = np.random.default_rng(seed)
    dense = np.maximum(0, np.round(rng.standard_normal((n, d_sae)) * 2) / 2)
    dense[:, 4] = 0
    dense[:, 2] = 0
    dense[7, 2] = 3.5
    return dense


@pytest.mark.parametrize("seed", range(6))
def test_the_chosen_cut_is_the_best_of_all_cuts_of_all_features(seed: int) -> None:
    dense = with_ties(seed)
    rng = np.random.default_rng(100 + seed)
    has = rng.random((len(dense), 7)) < [0.5, 0.2, 0.05, 0.3, 0.1, 0.0, 0.4]
    has[:, 1] |= dense[:, 6] >= 1.5
    is_fit = split_groups(np.arange(len(dense)) // 3, seed)
    scores = score_attributes(SparseActivations.of_dense(dense), has, is_fit, min_scored=1)
    for a, (f1, feature, predicted) in enumerate(brute_force_best(dense[is_fit], has[is_fit])):
        assert scores.fit_f1[a] == pytest.approx(f1, abs=1e-12)
        assert scores.feature[a] == feature
        if feature >= 0:
            assert set(np.flatnonzero(dense[is_fit, feature] > scores.threshold[a]).tolist()) == predicted


@pytest.mark.parametrize("seed", range(6))
def test_the_score_on_the_other_half_is_that_of_the_chosen_feature_and_threshold(seed: int) -> None:
    dense = with_ties(seed, n=200)
    has = np.random.default_rng(seed).random((200, 5)) < 0.3
    has[:, 3] = dense[:, 5] > 1
    is_fit = split_groups(np.arange(200) // 2, seed)
    scores = score_attributes(SparseActivations.of_dense(dense), has, is_fit, min_scored=1)
    others, actual = dense[~is_fit], has[~is_fit]
    for a in range(5):
        values = others[:, scores.feature[a]]
        predicted = values > scores.threshold[a]
        hits = int((predicted & actual[:, a]).sum())
        precision, recall = hits / max(1, predicted.sum()), hits / actual[:, a].sum()
        assert scores.f1[a] == pytest.approx(2 * precision * recall / (precision + recall) if hits else 0.0)
        top = sorted(range(len(values)), key=lambda r: (-values[r], r))[:PRECISION_AT]
        assert scores.precision_at_20[a] == sum(actual[r, a] and values[r] > 0 for r in top) / PRECISION_AT
    np.testing.assert_array_equal(scores.n_fit, has[is_fit].sum(0))
    np.testing.assert_array_equal(scores.n_scored, actual.sum(0))


def test_many_pairs_are_cut_into_runs_of_features_without_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = with_ties(3)
    has = np.random.default_rng(0).random((len(dense), 6)) < 0.3
    is_fit = split_groups(np.arange(len(dense)))
    features = SparseActivations.of_dense(dense)
    whole = score_attributes(features, has, is_fit)
    for at_once in (1, 40, 100):
        monkeypatch.setattr("thresher.analysis.attributes._PAIRS_AT_ONCE", at_once)
        cut = score_attributes(features, has, is_fit)
        for name in ("feature", "threshold", "fit_f1", "f1", "precision_at_20"):
            np.testing.assert_array_equal(getattr(cut, name), getattr(whole, name))


def test_a_planted_feature_is_found_and_scores_one_on_both_halves() -> None:
    rng = np.random.default_rng(5)
    dense = np.maximum(0, rng.standard_normal((400, 12)))
    has = rng.random((400, 3)) < 0.25
    dense[:, 8] = np.where(has[:, 1], 2 + rng.random(400), rng.random(400))
    scores = score_attributes(SparseActivations.of_dense(dense), has, split_groups(np.arange(400) // 4))
    assert scores.feature[1] == 8
    assert 1 < scores.threshold[1] < 2
    assert (scores.f1[1], scores.precision_at_20[1]) == (1.0, 1.0)
    assert scores.count_f1(0.9) == 1


def test_attributes_permuted_across_groups_give_no_hit() -> None:
    rng = np.random.default_rng(6)
    group = np.repeat(np.arange(300), 5)  # five drawings of one emoji share its attributes and its features
    known = rng.random((300, 8)) < 0.08
    dense = np.repeat(known, 5, axis=0) * (1 + rng.random((1500, 8)))
    is_fit = split_groups(group)
    true = score_attributes(SparseActivations.of_dense(dense), known[group], is_fit)
    permuted = score_attributes(SparseActivations.of_dense(dense), known[rng.permutation(300)][group], is_fit)
    assert true.count_f1(0.5) == 8
    assert permuted.count_f1(0.5) == 0
    assert permuted.count_precision(0.9) == 0


def test_no_group_is_on_both_sides_and_the_split_does_not_depend_on_the_order_of_rows() -> None:
    rng = np.random.default_rng(7)
    group = rng.integers(0, 31, 500).astype(str)
    is_fit = split_groups(group, seed=3)
    assert not set(group[is_fit]) & set(group[~is_fit])
    assert len(set(group[is_fit])) == 15
    order = rng.permutation(500)
    np.testing.assert_array_equal(split_groups(group[order], seed=3), is_fit[order])
    assert (split_groups(group, seed=4) != is_fit).any()


def test_an_attribute_that_nothing_fires_on_has_no_feature_and_scores_zero() -> None:
    dense = np.zeros((40, 3))
    dense[:20, 0] = 1
    has = np.zeros((40, 2), bool)
    has[20:, 0] = True
    scores = score_attributes(SparseActivations.of_dense(dense), has, np.arange(40) % 2 == 0)
    assert scores.feature.tolist() == [-1, -1]
    assert scores.f1[0] == 0
    assert scores.precision_at_20[0] == 0
    assert np.isnan(scores.f1[1])  # no row has it: nothing to score
    assert scores.is_scored.tolist() == [True, False]


def test_precision_counts_places_that_no_firing_row_fills_as_misses() -> None:
    dense = np.zeros((60, 1))
    dense[:14, 0] = np.arange(14, 0, -1)  # seven rows of either half fire, all of them hits
    has = np.zeros((60, 1), bool)
    has[:14, 0] = True
    scores = score_attributes(SparseActivations.of_dense(dense), has, np.arange(60) % 2 == 0, min_scored=5)
    assert scores.f1[0] == 1
    assert scores.precision_at_20[0] == 7 / 20


def test_an_attribute_too_rare_on_the_scored_half_is_left_out_of_counts_and_mean() -> None:
    rng = np.random.default_rng(8)
    dense = np.maximum(0, rng.standard_normal((100, 4)))
    has = np.zeros((100, 2), bool)
    has[:50, 0] = True
    has[50:59, 1] = True  # four of them on the scored half
    scores = score_attributes(SparseActivations.of_dense(dense), has, np.arange(100) % 2 == 0)
    assert scores.is_scored.tolist() == [True, False]
    assert scores.mean_f1 == scores.f1[0]
    assert scores.count_f1(0) == 1


@pytest.mark.parametrize("n", [0, 1])
def test_none_or_one_row_gives_scores_that_are_undefined(n: int) -> None:
    features = SparseActivations.of_dense(np.ones((n, 2)))
    scores = score_attributes(features, np.ones((n, 1), bool), split_groups(np.arange(n)))
    assert np.isnan(scores.f1).tolist() == [True]
    assert np.isnan(scores.mean_f1)
    assert scores.count_f1(0.0) == 0


def test_the_same_rows_in_another_order_of_entries_give_the_same_scores() -> None:
    dense = with_ties(9)
    has = np.random.default_rng(1).random((len(dense), 4)) < 0.3
    is_fit = split_groups(np.arange(len(dense)))
    sorted_by_feature = SparseActivations.of_dense(dense)
    rng = np.random.default_rng(2)
    order = np.lexsort((rng.random(len(sorted_by_feature.index)), sorted_by_feature.row))
    shuffled = SparseActivations(
        sorted_by_feature.indptr, sorted_by_feature.index[order], sorted_by_feature.value[order], 9
    )
    for name in ("feature", "threshold", "f1", "precision_at_20"):
        np.testing.assert_array_equal(
            getattr(score_attributes(shuffled, has, is_fit), name),
            getattr(score_attributes(sorted_by_feature, has, is_fit), name),
        )


def test_dense_activations_keep_what_is_above_zero() -> None:
    features = SparseActivations.of_dense([[0.0, 2.0, -1.0], [0.0, 0.0, 0.0], [3.0, 0.0, 0.5]])
    assert features.indptr.tolist() == [0, 1, 1, 3]
    assert features.index.tolist() == [1, 0, 2]
    assert features.value.tolist() == [2.0, 3.0, 0.5]
    assert features.row.tolist() == [0, 2, 2]


def test_activations_that_do_not_fit_together_are_refused() -> None:
    index, value = np.array([0, 1]), np.array([1.0, 2.0], np.float32)
    with pytest.raises(ValueError, match="must run from 0 to the number of activations"):
        SparseActivations(np.array([0, 3]), index, value, 2)
    with pytest.raises(ValueError, match="from 0 to 0"):
        SparseActivations(np.array([0, 2]), index, value, 1)
    with pytest.raises(ValueError, match="not above 0"):
        SparseActivations(np.array([0, 2]), index, value - 1, 2)
    features = SparseActivations(np.array([0, 2]), index, value, 2)
    with pytest.raises(ValueError, match="do not fit activations of 1 rows"):
        score_attributes(features, np.ones((2, 1), bool), np.ones(2, bool))


def test_attributes_are_those_of_enough_rows_but_not_of_most() -> None:
    columns = [
        {"kind": "a" if row < 45 else "b", "word": ["all", "rare"] if row < 5 else ["all"]} for row in range(100)
    ]
    attributes = Attributes.of_columns(columns)
    assert attributes.names == [("kind", "a"), ("kind", "b")]  # "all" is on more than 60 %, "rare" on five rows
    np.testing.assert_array_equal(attributes.has[:, 0], np.arange(100) < 45)
    assert Attributes.of_columns(columns, min_rows=5, max_share=1.0).names == [
        ("kind", "a"),
        ("kind", "b"),
        ("word", "all"),
        ("word", "rare"),
    ]


def test_a_picture_has_its_subgroup_group_tone_vendor_and_the_words_of_its_caption() -> None:
    said = {
        "caption": "woman: dark skin tone, red hair of it",
        "label": "person",
        "group": "people-body",
        "tone": 5,
        "vendor": "noto",
    }
    other = {"caption": "key", "label": "lock", "group": "objects", "tone": 0, "vendor": "twemoji"}
    attributes = emoji_attributes([said] * 50 + [other] * 50)
    of_said = {name for name, has in zip(attributes.names, attributes.has[0], strict=True) if has}
    words = {("word", w) for w in ("woman", "dark", "skin", "tone", "red", "hair")}
    assert of_said == words | {("subgroup", "person"), ("group", "people-body"), ("tone", "5"), ("vendor", "noto")}

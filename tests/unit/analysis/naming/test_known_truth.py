"""Which phrase is right for a feature: F1 against scikit-learn's, phrases by hand."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score
from thresher.analysis.naming.known_truth import FeatureTruth, feature_truth, known_phrases


class _Dense:
    """What `feature_truth` reads of features, from a matrix."""

    def __init__(self, f: np.ndarray) -> None:
        self.f = f

    def feature_pieces(self, feature: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        rows = np.flatnonzero(self.f[:, feature] > 0)
        for some in np.split(rows, [17, 40]) if len(rows) else ():
            yield some, self.f[some, feature].astype(np.float32)


def test_values_become_phrases_that_can_be_said() -> None:
    values: list[dict[str, Any]] = [
        {"group": ["animal-mammal"], "tone": ["3"], "striped": ["true"], "word": ["Striped", "big"]},
        {"group": ["place_sky"], "tone": ["4"], "striped": [], "word": ["big"]},
    ] * 30
    known = known_phrases(values, np.arange(60) < 30, max_share=0.6)
    # a number is no phrase, `big` is true of all; the column `striped` and the word are one phrase
    assert known.phrases == ("animal mammal", "place sky", "striped")
    assert known.kinds == ("group", "group", "striped")
    assert known.is_true[:2].tolist() == [[True, False, True], [False, True, False]]


def test_phrases_of_too_few_rows_on_either_side_are_left_out() -> None:
    is_naming = np.arange(80) < 40
    values = [{"word": [w for w, rows in _ROWS.items() if row in rows]} for row in range(80)]
    assert known_phrases(values, is_naming).phrases == ("enough",)


_ROWS = {"enough": {*range(10), *range(40, 50)}, "few here": {*range(9), *range(40, 60)}, "few there": {*range(20), 41}}


@pytest.mark.parametrize("seed", range(3))
def test_f1_is_scikit_learns_at_the_threshold_that_is_best_on_the_other_side(seed: int) -> None:
    rng = np.random.default_rng(seed)
    m, n_phrases = 120, 4
    f = np.maximum(rng.integers(-6, 5, (m + 7, 5)), 0) / 4  # ties and zeros
    f[:, 4] = 0  # dead
    f[:, 3] += 0.25  # dense
    line = rng.permutation(np.concatenate((np.arange(m), np.full(7, -1))))
    values = [{"w": [f"phrase {chr(97 + a)}" for a in range(n_phrases) if rng.random() < 0.3]} for _ in range(m)]
    is_naming = rng.random(m) < 0.5
    known = known_phrases(values, is_naming)
    found = feature_truth(_Dense(f), np.arange(5), line, known, is_naming)  # type: ignore[arg-type]
    dense = np.zeros((m, 5))
    dense[line[line >= 0]] = f[line >= 0]
    for feature in range(5):
        for a in range(len(known.phrases)):
            truth, fires = known.is_true[:, a], dense[:, feature]
            cuts = [0.0, *(np.unique(fires[is_naming])[1:] - 0.125)]
            scores = [f1_score(truth[is_naming], fires[is_naming] > cut, zero_division=0.0) for cut in cuts]
            assert found.naming_f1[feature, a] == pytest.approx(max(scores), rel=1e-6)
            at_best = [
                f1_score(truth[~is_naming], fires[~is_naming] > cut, zero_division=0.0)
                for cut, score in zip(cuts, scores, strict=True)
                if score == max(scores)
            ]
            assert any(found.f1[feature, a] == pytest.approx(each, rel=1e-6) for each in at_best)


def test_a_name_is_right_when_no_phrase_has_a_larger_f1_and_nearly_so_at_a_share_of_it() -> None:
    f1 = np.array([[0.9, 0.8, 0.1], [0.5, 0.5, 0.0], [0.0, 0.0, 0.0]], np.float32)
    truth = FeatureTruth(f1, f1)
    assert truth.best().tolist() == [0, 0, 0]
    assert truth.is_right(np.array([0, 1, 0])).tolist() == [True, True, False]  # a feature that knows nothing
    assert truth.is_right(np.array([1, 2, -1])).tolist() == [False, False, False]
    assert truth.is_right(np.array([1, 2, 1]), share=0.8).tolist() == [True, False, False]
    every = np.tile(np.arange(3), (3, 1))
    assert truth.is_right(every).tolist() == [[True, False, False], [True, True, False], [False] * 3]

"""Which phrase is right for a feature, where it is known which images each phrase is true of.

Every phrase is a value of a table of attributes, so that for each row and phrase the truth is known. How well a feature
knows a phrase is the F1 of "activation > threshold" for "the phrase is true", the threshold being the best one on the
naming side of the rows and the F1 being of the scoring side.

Shapes: n features, A phrases, m rows whose truth is known.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..features import FeatureActivations
from .vocabulary import cleaned

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

FEWEST = 10
"""Rows on each side of which a phrase must be true."""
LENIENT = 0.8
"""Share of the best phrase's F1 that a name must reach to be nearly right."""


@dataclass(frozen=True)
class KnownPhrases:
    """Phrases and the rows that they are true of."""

    phrases: tuple[str, ...]
    kinds: tuple[str, ...]
    """Of each: the column that it is a value of; of several the first."""
    is_true: NDArray[np.bool_]
    """`(m, A)`."""

    def take(self, kept: NDArray[np.bool_]) -> "KnownPhrases":
        """Some of the phrases, `(A,)` bool."""
        chosen = np.flatnonzero(kept).tolist()
        return KnownPhrases(
            tuple(self.phrases[a] for a in chosen), tuple(self.kinds[a] for a in chosen), self.is_true[:, chosen]
        )


def known_phrases(
    values: Sequence[Mapping[str, Sequence[str]]], is_naming: NDArray[np.bool_], *, max_share: float = 0.6
) -> KnownPhrases:
    """The attributes that can be said: each value as a phrase, a column of true and false by its own name.

    Hyphens and underscores read as blanks. Values that become one phrase are one, true where any of them is. Left out
    are values without a letter, and phrases that are true of fewer than `FEWEST` rows of a side or of more than
    `max_share` of all.

    Parameters
    ----------
    values
        `(m,)`: of each row its values by kind, as `AttributeTable` has them.
    is_naming
        `(m,)`.
    """
    rows_of: dict[str, set[int]] = {}
    said: dict[str, tuple[str, str]] = {}
    for row, of_kind in enumerate(values):
        for kind, of_row in of_kind.items():
            for value in of_row:
                text = cleaned((kind if value == "true" else value).replace("_", " ").replace("-", " "))
                if any(c.isalpha() for c in text):
                    rows_of.setdefault(text.casefold(), set()).add(row)
                    said[text.casefold()] = min(said.get(text.casefold(), (kind, text)), (kind, text))
    names = sorted(rows_of)
    is_true = np.zeros((len(values), len(names)), bool)
    for column, name in enumerate(names):
        is_true[list(rows_of[name]), column] = True
    found = KnownPhrases(tuple(said[name][1] for name in names), tuple(said[name][0] for name in names), is_true)
    enough = (is_true[is_naming].sum(0) >= FEWEST) & (is_true[~is_naming].sum(0) >= FEWEST)
    return found.take(enough & (is_true.sum(0) <= max_share * len(values)))


@dataclass(frozen=True)
class FeatureTruth:
    """How well features know phrases."""

    naming_f1: Floats
    """`(n, A)`: the best F1 on the naming side."""
    f1: Floats
    """`(n, A)`: on the scoring side, at the threshold that was best on the naming side."""

    def best(self) -> Ints:
        """The phrase that each feature knows best on the scoring side, `(n,)`: what it should be called."""
        return np.asarray(self.f1.argmax(axis=1), np.int64)

    def is_right(self, names: Ints, *, share: float = 1.0) -> NDArray[np.bool_]:
        """Whether names `(n,)` or `(n, c)`, -1 for none, reach a share of the best phrase's F1, above 0."""
        columns = names if names.ndim == 2 else names[:, None]
        reached = np.take_along_axis(self.f1, np.maximum(columns, 0), axis=1)
        best = self.f1.max(axis=1, keepdims=True)
        right = (columns >= 0) & (best > 0) & (reached >= share * best)
        return right if names.ndim == 2 else right[:, 0]


def feature_truth(
    features: FeatureActivations, chosen: Ints, line: Ints, known: KnownPhrases, is_naming: NDArray[np.bool_]
) -> FeatureTruth:
    """Hold features to phrases; one feature's activations are in memory at a time.

    Parameters
    ----------
    chosen
        `(n,)` features.
    line
        `(N,)`: which of the m rows each row of the store is; -1 for none.
    is_naming
        `(m,)`.
    """
    n_true = [known.is_true[side].sum(axis=0) for side in (is_naming, ~is_naming)]
    shape = (len(chosen), len(known.phrases))
    naming_f1, f1 = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for at, feature in enumerate(chosen.tolist()):
        of_row, values = _known_entries(features, feature, line)
        sides = []
        for side in (is_naming, ~is_naming):
            here = side[of_row]
            order = np.argsort(-values[here], kind="stable")
            sides.append((of_row[here][order], values[here][order]))
        naming_f1[at], thresholds = _best_cuts(*sides[0], known.is_true, n_true[0])
        f1[at] = _f1_above(*sides[1], thresholds, known.is_true, n_true[1])
    return FeatureTruth(naming_f1, f1)


def _known_entries(features: FeatureActivations, feature: int, line: Ints) -> tuple[Ints, Floats]:
    """A feature's activations on the rows whose truth is known: which of the m rows, how large."""
    pieces = ((line[rows], values) for rows, values in features.feature_pieces(feature))
    kept = [(of_row[of_row >= 0], values[of_row >= 0]) for of_row, values in pieces]
    if not kept:
        return np.zeros(0, np.int64), np.zeros(0, np.float32)
    return np.concatenate([of_row for of_row, _ in kept]), np.concatenate([values for _, values in kept])


def _best_cuts(
    rows: Ints, values: Floats, is_true: NDArray[np.bool_], n_true: Ints
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of each phrase the best F1 and its threshold, by activations `(k,)` in falling order."""
    if not len(rows):
        return np.zeros(len(n_true)), np.zeros(len(n_true))
    cuts = np.flatnonzero(np.append(values[1:] != values[:-1], True))  # no cut between equal activations
    hits = is_true[rows].cumsum(axis=0, dtype=np.int32)[cuts]
    f1 = 2 * hits / (cuts[:, None] + 1 + n_true)
    best = f1.argmax(axis=0)
    # halfway to the next lower activation; below the last one all rows that fire count
    lower = np.append(values[1:], 0.0)[cuts].astype(np.float64)
    halfway = np.where(cuts == len(values) - 1, 0.0, (values[cuts].astype(np.float64) + lower) / 2)
    return f1.max(axis=0), halfway[best]


def _f1_above(
    rows: Ints, values: Floats, thresholds: NDArray[np.float64], is_true: NDArray[np.bool_], n_true: Ints
) -> NDArray[np.float64]:
    """F1 of "activation > threshold" of each phrase, by activations `(k,)` in falling order."""
    hits = np.concatenate((np.zeros((1, len(n_true)), np.int32), is_true[rows].cumsum(axis=0, dtype=np.int32)))
    n_above = np.searchsorted(-values.astype(np.float64), -thresholds, side="left")
    return np.asarray(2 * hits[n_above, np.arange(len(n_true))] / (n_above + n_true))

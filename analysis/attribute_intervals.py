"""How sure the scores of known attributes are: bootstrap intervals over groups, and p-values against no association.

The chosen feature and threshold stay as they are; what is drawn again, with replacement, are the groups of the half
that they are scored on. So an interval tells how the score would vary with other groups of the same kind.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .attributes import PRECISION_AT, AttributeScores, FeatureSource, predictions

Interval = tuple[float, float]
_ATTRIBUTES_AT_ONCE = 128
MIN_GROUPS = 5
"""Scored groups that have an attribute below which its intervals are undefined: two or three, drawn again, tell of
nothing but themselves."""


class GroupBootstrap:
    """Resamples of the groups of the rows that attributes are scored on, the same for every source of features."""

    def __init__(self, groups: ArrayLike, has: NDArray[np.bool_], is_scored: NDArray[np.bool_], n: int, seed: int):
        """Draw the resamples.

        Parameters
        ----------
        groups
            `(n_rows,)`: what each row belongs to.
        has
            `(n_rows, A)`.
        is_scored
            `(n_rows,)`.
        n
            Resamples.
        """
        self._has, self._is_scored = has, is_scored
        self._group = np.full(len(has), -1, np.int64)
        _, self._group[is_scored] = np.unique(np.asarray(groups)[is_scored], return_inverse=True)
        self.n_groups = int(self._group.max(initial=-1)) + 1
        rng, size = np.random.default_rng([seed, 1]), self.n_groups
        self._weights = np.empty((n, size), np.float32)  # how often each group was drawn
        for weights in self._weights:
            weights[:] = np.bincount(rng.integers(0, size, size), minlength=size) if size else 0

    def scores(self, features: FeatureSource, scores: AttributeScores) -> "Resampled":
        """F1, precision and p-value of each attribute by the feature that was chosen for it."""
        n_attributes, n = self._has.shape[1], len(self._weights)
        f1 = np.zeros((n, n_attributes), np.float32)
        precision = np.zeros((n, n_attributes), np.float32)
        p = np.ones(n_attributes)
        tests: list[tuple[int, NDArray[np.int64], NDArray[np.int64]]] = []
        for column, found in predictions(features, self._has, self._is_scored, scores):
            predicted = found.row[: found.n_predicted]
            tests.append((column, predicted, predicted[found.is_hit[: found.n_predicted]]))
            precision[:, column] = self._precision(found.row, found.is_hit)
        size = np.bincount(self._group[self._is_scored], minlength=self.n_groups).astype(np.float64)
        for first in range(0, len(tests), _ATTRIBUTES_AT_ONCE):
            some = tests[first : first + _ATTRIBUTES_AT_ONCE]
            columns = [column for column, _, _ in some]
            n_predicted = np.stack([self._by_group(rows) for _, rows, _ in some], axis=1)  # (G, some)
            n_hits = np.stack([self._by_group(rows) for _, _, rows in some], axis=1)
            n_actual = np.stack([self._by_group(self._rows_of(column)) for column in columns], axis=1)
            drawn = [self._weights @ each.astype(np.float32) for each in (n_hits, n_predicted, n_actual)]
            f1[:, columns] = 2 * drawn[0] / np.maximum(drawn[1] + drawn[2], 1)
            f1[:, columns] = np.where(drawn[2] > 0, f1[:, columns], np.nan)  # the attribute was not drawn
            p[columns] = association_p_values(n_hits, n_predicted, n_actual, size)
        undefined = ~scores.is_scored
        f1[:, undefined], precision[:, undefined], p[undefined] = np.nan, np.nan, np.nan
        n_groups = [len(np.unique(self._group[self._rows_of(column)])) for column in range(n_attributes)]
        return Resampled(f1, precision, p, np.array(n_groups, np.int64))

    def _rows_of(self, column: int) -> NDArray[np.int64]:
        return np.flatnonzero(self._has[:, column] & self._is_scored)

    def _by_group(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.bincount(self._group[rows], minlength=self.n_groups).astype(np.float64)

    def _precision(self, row: NDArray[np.int64], is_hit: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Precision at 20 of each resample: its rows in falling order, each as often as its group was drawn."""
        looked_at = 2 * PRECISION_AT
        while True:
            weights = self._weights[:, self._group[row[:looked_at]]]  # (n, looked_at)
            total = np.cumsum(weights, axis=1)
            if looked_at >= len(row) or (total[:, -1] >= PRECISION_AT).all():
                break
            looked_at *= 2
        counted = np.diff(np.minimum(total, PRECISION_AT), axis=1, prepend=0)
        return np.asarray(counted @ is_hit[:looked_at].astype(np.float32) / PRECISION_AT, np.float32)


class Resampled:
    """Scores of every resample."""

    def __init__(
        self,
        f1: NDArray[np.float32],
        precision: NDArray[np.float32],
        p: NDArray[np.float64],
        n_groups: NDArray[np.int64],
    ) -> None:
        """Keep them.

        Parameters
        ----------
        f1, precision
            `(n, A)`; F1 is NaN where no group that has the attribute was drawn.
        p
            `(A,)`: of the hypothesis that prediction and attribute have nothing to do with each other.
        n_groups
            `(A,)`: scored groups that have the attribute.
        """
        self.f1, self.precision, self.p, self.n_groups = f1, precision, p, n_groups

    @property
    def mean_f1(self) -> NDArray[np.float64]:
        """`(n,)`: mean over the scored attributes that were drawn."""
        scored = self.f1[:, ~np.isnan(self.p)]
        known = ~np.isnan(scored)
        total, n = np.where(known, scored, 0).sum(axis=1, dtype=np.float64), known.sum(axis=1)
        return np.divide(total, n, out=np.full(len(n), np.nan), where=n > 0)

    def intervals(self, attribute: int) -> tuple[Interval, Interval]:
        """Of F1 and precision at 20; NaN where fewer than 5 scored groups have the attribute."""
        if self.n_groups[attribute] < MIN_GROUPS:
            return (math.nan, math.nan), (math.nan, math.nan)
        return interval(self.f1[:, attribute]), interval(self.precision[:, attribute])


def interval(drawn: NDArray[np.floating[Any]]) -> Interval:
    """The middle 95 % of the resamples that are defined."""
    drawn = drawn[~np.isnan(drawn)].astype(np.float64)
    if not len(drawn):
        return math.nan, math.nan
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(low), float(high)


def association_p_values(
    n_hits: NDArray[np.float64],
    n_predicted: NDArray[np.float64],
    n_actual: NDArray[np.float64],
    size: NDArray[np.float64],
) -> NDArray[np.float64]:
    """One-sided p-values, `(A,)`, that predictions hit the attribute more often than without association.

    The score test of the covariance of prediction and attribute, its variance summed over groups, within which rows
    may depend on each other in any way. Normal approximation: it wants some ten groups that have the attribute.

    Parameters
    ----------
    n_hits, n_predicted, n_actual
        `(G, A)`: rows of each group that are predicted and have the attribute, are predicted, have it.
    size
        `(G,)`: rows of each group.
    """
    n = size.sum()
    predicted, actual = n_predicted.sum(axis=0) / n, n_actual.sum(axis=0) / n
    of_group = n_hits - predicted * n_actual - actual * n_predicted + size[:, None] * predicted * actual
    total, variance = of_group.sum(axis=0), np.square(of_group).sum(axis=0)
    z = np.divide(total, np.sqrt(variance), out=np.zeros_like(total), where=variance > 0)
    return np.array([math.erfc(each / math.sqrt(2)) / 2 for each in z.tolist()])

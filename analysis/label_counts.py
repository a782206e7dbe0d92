"""How often and how strongly each feature fires on the rows of each label: over all its firing rows, sparse."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from .exact_sums import SumUnits, in_units
from .split_entries import SplitEntries

Array = NDArray[Any]


@dataclass(frozen=True)
class LabelCounts:
    """Labels on which features fire, as CSR by feature, and the entropy of their weights."""

    indptr: NDArray[np.int64]
    """`(n_features + 1,)`, from 0."""
    label: NDArray[np.int32]
    """`(pairs,)`: labels of a feature's firing rows, ascending within a feature; unlabelled rows are left out."""
    count: NDArray[np.uint32]
    """`(pairs,)`: firing rows with that label."""
    sum: NDArray[np.float64]
    """`(pairs,)`: sum of the feature's activations on them."""
    n_labelled: NDArray[np.uint64]
    """`(n_features,)`: firing labelled rows."""
    entropy: NDArray[np.float32]
    """`(n_features,)`: label entropy in nats over all firing rows, weighted by activation; NaN below the minimum."""
    effective_n: NDArray[np.float32]
    """`(n_features,)`: effective sample size of those rows' weights."""


@dataclass(frozen=True)
class LabelSums:
    """What the labelled entries of some features add up to, by feature and label; the same in any order."""

    feature: NDArray[np.int32]
    """`(pairs,)`: from 0, ascending."""
    label: NDArray[np.int32]
    """`(pairs,)`: ascending within a feature."""
    count: NDArray[np.int64]
    """`(pairs,)`: entries."""
    sum: NDArray[np.float64]
    """`(pairs,)`: of their values, in units of the feature (`exact_sums.py`)."""
    squares: NDArray[np.float64]
    """`(n_features,)`: sum of the squares of a feature's values, in its units."""

    @classmethod
    def zero(cls, n_features: int) -> Self:
        """Sums of no entries."""
        none = np.zeros(0, np.int32)
        return cls(none, none, np.zeros(0, np.int64), np.zeros(0), np.zeros(n_features))

    @classmethod
    def of(cls, entries: SplitEntries, labels: Array, units: SumUnits) -> Self:
        """Sums of the entries whose row has a label; `labels` `(nnz,)` are -1 for none."""
        entries, labels = entries.keep(labels >= 0), labels[labels >= 0]
        value, local = entries.value.astype(np.float64), entries.local
        squares = _sums(local, in_units(value * value, units.of_squares[local]), entries.n_features)
        return cls._of_runs(
            local, labels, np.ones(len(labels), np.int64), in_units(value, units.of_values[local]), squares
        )

    @classmethod
    def union(cls, parts: Sequence[Self]) -> Self:
        """Sums of the entries of all parts."""
        feature, label, count, total = (
            np.concatenate([getattr(part, name) for part in parts]) for name in ("feature", "label", "count", "sum")
        )
        return cls._of_runs(feature, label, count, total, np.sum([part.squares for part in parts], axis=0))

    @classmethod
    def _of_runs(cls, feature: Array, label: Array, count: Array, value: Array, squares: Array) -> Self:
        small = np.uint16 if len(label) == 0 or label.max() < 1 << 16 else np.int64  # 16 bits are sorted by radix
        order = np.lexsort((label.astype(small), feature))
        feature, label = feature[order].astype(np.int32), label[order].astype(np.int32)
        is_new = np.ones(len(order), bool)
        is_new[1:] = (feature[1:] != feature[:-1]) | (label[1:] != label[:-1])
        start = np.flatnonzero(is_new)
        if not len(start):
            return cls(feature, label, count, value, squares)
        count, total = (np.add.reduceat(x[order], start) for x in (count, value))
        return cls(feature[start], label[start], count, total, squares)

    def finish(self, units: SumUnits, *, min_labelled: int) -> LabelCounts:
        """The counts and entropies; the entropy is undefined below `min_labelled` firing labelled rows."""
        n_features = len(self.squares)
        total = self.sum * units.of_values[self.feature]
        mass = _sums(self.feature, self.sum, n_features) * units.of_values
        share = total / mass[self.feature]
        entropy = -_sums(self.feature, share * np.log(share), n_features)
        n_pairs = np.bincount(self.feature, minlength=n_features)
        entropy[n_pairs <= 1] = 0.0  # of one label exactly, whatever the rounding
        n_labelled = _sums(self.feature, self.count, n_features)
        entropy[n_labelled < max(min_labelled, 1)] = np.nan
        squares = self.squares * units.of_squares
        effective = np.divide(mass**2, squares, out=np.full(n_features, np.nan), where=squares > 0)
        return LabelCounts(
            indptr=np.concatenate(([0], np.cumsum(n_pairs))),
            label=self.label,
            count=self.count.astype(np.uint32),
            sum=total,
            n_labelled=n_labelled.astype(np.uint64),
            entropy=entropy.astype(np.float32),
            effective_n=effective.astype(np.float32),
        )


def _sums(feature: Array, weights: Array, n_features: int) -> NDArray[np.float64]:
    return np.bincount(feature, weights=weights, minlength=n_features).astype(np.float64, copy=False)

"""How often and how strongly each feature fires on the rows of each label: over all its firing rows, sparse."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

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
    """What the labelled entries of some features add up to, by feature and label."""

    feature: NDArray[np.int64]
    """`(pairs,)`: from 0, ascending."""
    label: NDArray[np.int64]
    """`(pairs,)`: ascending within a feature."""
    count: NDArray[np.int64]
    """`(pairs,)`: entries."""
    sum: NDArray[np.float64]
    """`(pairs,)`: of their values."""
    squares: NDArray[np.float64]
    """`(n_features,)`: sum of the squares of a feature's values."""

    @classmethod
    def of(cls, entries: SplitEntries, labels: Array) -> Self:
        """Sums of the entries whose row has a label; `labels` `(nnz,)` are -1 for none."""
        entries, labels = entries.keep(labels >= 0), labels[labels >= 0]
        value = entries.value.astype(np.float64)
        squares = _sums(entries.local, value * value, entries.n_features)
        return cls._of_runs(entries.local, labels, np.ones(len(labels), np.int64), value, squares)

    def plus(self, other: Self) -> Self:
        """Sums of both."""
        return self._of_runs(
            np.concatenate((self.feature, other.feature)),
            np.concatenate((self.label, other.label)),
            np.concatenate((self.count, other.count)),
            np.concatenate((self.sum, other.sum)),
            self.squares + other.squares,
        )

    @classmethod
    def _of_runs(cls, feature: Array, label: Array, count: Array, value: Array, squares: Array) -> Self:
        small = np.uint16 if len(label) == 0 or label.max() < 1 << 16 else np.int64  # 16 bits are sorted by radix
        order = np.lexsort((label.astype(small), feature))
        feature, label = feature[order].astype(np.int64), label[order].astype(np.int64)
        is_new = np.ones(len(order), bool)
        is_new[1:] = (feature[1:] != feature[:-1]) | (label[1:] != label[:-1])
        start = np.flatnonzero(is_new)
        if not len(start):
            return cls(feature, label, count, value, squares)
        count, total = (np.add.reduceat(x[order], start) for x in (count, value))
        return cls(feature[start], label[start], count, total, squares)

    def finish(self, *, min_labelled: int) -> LabelCounts:
        """The counts and entropies; the entropy is undefined below `min_labelled` firing labelled rows."""
        n_features = len(self.squares)
        mass = _sums(self.feature, self.sum, n_features)
        share = self.sum / mass[self.feature]
        entropy = -_sums(self.feature, share * np.log(share), n_features)
        n_pairs = np.bincount(self.feature, minlength=n_features)
        entropy[n_pairs <= 1] = 0.0  # of one label exactly, whatever the rounding
        n_labelled = _sums(self.feature, self.count, n_features)
        entropy[n_labelled < max(min_labelled, 1)] = np.nan
        effective = np.divide(mass**2, self.squares, out=np.full(n_features, np.nan), where=self.squares > 0)
        return LabelCounts(
            indptr=np.concatenate(([0], np.cumsum(n_pairs))),
            label=self.label.astype(np.int32),
            count=self.count.astype(np.uint32),
            sum=self.sum,
            n_labelled=n_labelled.astype(np.uint64),
            entropy=entropy.astype(np.float32),
            effective_n=effective.astype(np.float32),
        )


def _sums(feature: Array, weights: Array, n_features: int) -> NDArray[np.float64]:
    return np.bincount(feature, weights=weights, minlength=n_features).astype(np.float64, copy=False)

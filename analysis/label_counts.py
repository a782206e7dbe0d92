"""How often and how strongly each feature fires on the rows of each label: over all its firing rows, sparse."""

from dataclasses import dataclass
from typing import Any

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


def count_labels(entries: SplitEntries, labels: Array, *, min_labelled: int) -> LabelCounts:
    """Count the labels of the firing rows of a range of features.

    Parameters
    ----------
    entries
        Of the features.
    labels
        `(nnz,)`: label of each entry's row, -1 for none.
    min_labelled
        Below this many firing labelled rows the entropy is undefined.
    """
    entries, labels = entries.keep(labels >= 0), labels[labels >= 0]
    n_features, feature = entries.n_features, entries.local
    small = np.uint16 if len(labels) == 0 or labels.max() < 1 << 16 else np.int64  # 16 bits are sorted by radix
    order = np.lexsort((labels.astype(small), feature))
    feature, label = feature[order].astype(np.int64), labels[order]
    value = entries.value[order].astype(np.float64)
    is_new = np.ones(len(order), bool)
    is_new[1:] = (feature[1:] != feature[:-1]) | (label[1:] != label[:-1])
    start = np.flatnonzero(is_new)
    total = np.add.reduceat(value, start) if len(start) else np.zeros(0)
    feature_of_pair = feature[start]
    by_feature = _sums(feature_of_pair, total, n_features)
    share = total / by_feature[feature_of_pair]
    entropy = -_sums(feature_of_pair, share * np.log(share), n_features)
    n_pairs = np.bincount(feature_of_pair, minlength=n_features)
    entropy[n_pairs <= 1] = 0.0  # of one label exactly, whatever the rounding
    n_labelled = np.diff(entries.indptr)
    entropy[n_labelled < max(min_labelled, 1)] = np.nan
    squares = _sums(feature, value * value, n_features)
    effective = np.divide(by_feature**2, squares, out=np.full(n_features, np.nan), where=squares > 0)
    return LabelCounts(
        indptr=np.concatenate(([0], np.cumsum(n_pairs))),
        label=label[start].astype(np.int32),
        count=np.diff(np.append(start, len(order))).astype(np.uint32),
        sum=total,
        n_labelled=n_labelled.astype(np.uint64),
        entropy=entropy.astype(np.float32),
        effective_n=effective.astype(np.float32),
    )


def _sums(feature: Array, weights: Array, n_features: int) -> NDArray[np.float64]:
    return np.bincount(feature, weights=weights, minlength=n_features).astype(np.float64, copy=False)

"""Histograms of L0, the number of features active on a row: how many rows have exactly 0, 1, 2, ... of them."""

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..train.l0 import L0_THRESHOLD
from .features import FeatureActivations, open_features
from .scheduler import Compute

L0_THRESHOLDS = (L0_THRESHOLD, 0.5, 1.0)
"""L0 is counted for features above 0 and above each of these: ULD features fire far below the first."""

Array = NDArray[Any]


def add_counts(a: Array, b: Array) -> Array:
    """Sum of two histograms, or rows of them, that may differ in length."""
    if a.shape[-1] < b.shape[-1]:
        a, b = b, a
    out = a.astype(np.int64)
    out[..., : b.shape[-1]] += b
    return out


def counts_above(indptr: Array, value: Array, valid: NDArray[np.bool_]) -> NDArray[np.int64]:
    """`(thresholds, up to the largest + 1)`: rows of a CSR block with exactly i values above each threshold."""
    out = np.zeros((len(L0_THRESHOLDS), 0), np.int64)
    for i, threshold in enumerate(L0_THRESHOLDS):
        counts = np.bincount(row_counts(indptr, value > threshold)[valid])
        out = add_counts(out, np.zeros((len(L0_THRESHOLDS), len(counts)), np.int64))
        out[i, : len(counts)] += counts
    return out


def row_counts(indptr: Array, is_counted: NDArray[np.bool_]) -> NDArray[np.int64]:
    """`(n,)`: how many entries of each row of a CSR block are counted."""
    before = np.concatenate(([0], np.cumsum(is_counted, dtype=np.int64)))
    return np.diff(before[np.asarray(indptr, np.int64) - int(indptr[0])])


def count_l0_of(
    features: FeatureActivations, is_counted: NDArray[np.bool_], split: str, *, task_bytes: int, compute: Compute
) -> NDArray[np.int64]:
    """How many rows of a split have exactly i of some features > 0, up to the largest: a second pass over the rows.

    Parameters
    ----------
    is_counted
        `(d_sae,)`: which features.
    """
    start, stop = features.row_range(split)
    call = partial(_count_range, str(features.path.absolute()), is_counted, split)
    total = np.zeros(0, np.int64)
    for part in compute.each(call, features.ranges(start, stop, task_bytes)):
        total = add_counts(total, part)
    return total


def _count_range(
    features_path: str, is_counted: NDArray[np.bool_], split: str, start: int, stop: int
) -> NDArray[np.int64]:
    total = np.zeros(0, np.int64)
    for block in open_features(features_path).blocks(start, stop, split=split):
        counts = row_counts(block.indptr, is_counted[block.index])
        total = add_counts(total, np.bincount(counts[block.valid]))
    return total

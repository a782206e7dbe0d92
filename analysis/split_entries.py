"""The entries of a range of features on the rows of a split, each with numbers of its row."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .features import SPLIT_CODES, FeatureActivations

MOST_HELD = 1 << 24
"""Entries of one feature that are read at once, some 800 MB while they are sorted; of more, a few megabytes."""
_ROWS_AT_ONCE = 1 << 24  # 64 MB of labels

Array = NDArray[Any]


@dataclass(frozen=True)
class SplitEntries:
    """Feature activations of consecutive features, by feature."""

    first: int
    """First feature."""
    indptr: NDArray[np.int64]
    """`(n_features + 1,)`, from 0."""
    row: NDArray[np.int64]
    """`(nnz,)`, ascending within a feature."""
    value: NDArray[np.float32]
    """`(nnz,)`."""

    @property
    def n_features(self) -> int:
        """Number of features."""
        return len(self.indptr) - 1

    @property
    def local(self) -> Array:
        """`(nnz,)`: feature of each entry, from 0; in 16 bits where they do, which sort five times as fast as 64."""
        dtype = np.uint16 if self.n_features <= 1 << 16 else np.int64
        return np.repeat(np.arange(self.n_features, dtype=dtype), np.diff(self.indptr))

    def keep(self, kept: NDArray[np.bool_]) -> "SplitEntries":
        """Only the entries marked."""
        before = np.concatenate(([0], np.cumsum(kept, dtype=np.int64)))
        return SplitEntries(self.first, before[self.indptr], self.row[kept], self.value[kept])


def is_held_whole(features: FeatureActivations, first: int, stop: int) -> bool:
    """Whether the entries of some features are read at once: those of one feature may be too many."""
    return stop - first > 1 or features.n_entries(first, stop) <= MOST_HELD


def entries_of_split(features: FeatureActivations, first: int, stop: int, split: str) -> SplitEntries:
    """Read the features `[first, stop)` on the rows of a split."""
    return _of_split(features, SplitEntries(first, *features.feature_range(first, stop)), split)


def pieces_of_split(features: FeatureActivations, first: int, stop: int, split: str) -> Iterator[SplitEntries]:
    """The same, a few megabytes at a time where it is one feature with too many entries to hold."""
    if is_held_whole(features, first, stop):
        yield entries_of_split(features, first, stop, split)
        return
    for row, value in features.feature_pieces(first):
        yield _of_split(features, SplitEntries(first, np.array([0, len(row)]), row, value), split)


def _of_split(features: FeatureActivations, entries: SplitEntries, split: str) -> SplitEntries:
    if split == "all":
        return entries
    start_row, stop_row = features.row_range(split)
    kept = (entries.row >= start_row) & (entries.row < stop_row)
    if features.info.held_out_start is None:  # the splits lie among each other
        kept &= np.isin(row_numbers_at(features, "split", entries.row), SPLIT_CODES[split])
    return entries if kept.all() else entries.keep(kept)


def row_numbers_at(features: FeatureActivations, name: str, rows: NDArray[np.int64]) -> Array:
    """`(n,)`: a number of each of some rows, in whatever order; read a window of rows at a time."""
    if not len(rows):
        return features.row_numbers(name, 0, 0)
    out: Array | None = None
    low, high = int(rows.min()), int(rows.max()) + 1
    for first in range(low, high, _ROWS_AT_ONCE):
        numbers = features.row_numbers(name, first, min(first + _ROWS_AT_ONCE, high))
        if high - low <= _ROWS_AT_ONCE:
            return numbers[rows - low]
        out = np.empty(len(rows), numbers.dtype) if out is None else out
        within = np.flatnonzero((rows >= first) & (rows < first + _ROWS_AT_ONCE))
        out[within] = numbers[rows[within] - first]
    assert out is not None
    return out

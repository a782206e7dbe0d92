"""What a range of rows adds to the per-feature statistics: counts, exact sums, the largest values with their rows.

Totals of two ranges merge into those of their union, and every field comes out the same whatever the ranges, their
number and the order of merging: counts are integers, sums are kept in two limbs whose additions are exact, ties among
the largest values go to the lower row.

Shapes: `d_sae` features, `k` largest values kept per feature, `nnz` stored entries of a block of rows.
"""

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .activation_bins import N_BINS, bins_of
from .l0_counts import L0_THRESHOLDS, add_counts, counts_above

_ENTRIES_AT_ONCE = 1 << 20  # working memory of one step: some 60 bytes an entry

# A float32 value v is kept as integers coarse = rint(v 2^20) and fine = rint((v 2^20 - coarse) 2^24), each summed as
# float64. Integers below 2^53 add without rounding, so the sums do not depend on their order while a feature's total
# stays below 2^33 over fewer than 2^30 rows; what is cut off is below 2^-45 an entry.
_COARSE_SCALE = float(1 << 20)
_FINE_SCALE = float(1 << 24)

Array = NDArray[Any]


@dataclass
class FeatureTotals:
    """Counts, sums and largest values of every feature over a set of rows."""

    n_rows: int
    """Valid rows counted."""
    n_invalid: int
    """Rows passed over: unreadable, or not encoded."""
    n_labelled: int
    """Valid rows that carry a label."""
    n_active: NDArray[np.int64]
    """`(d_sae,)`: rows on which the feature is > 0."""
    sum_coarse: NDArray[np.float64]
    """`(d_sae,)`: the upper limb of the sum of the values, in units of 2^-20."""
    sum_fine: NDArray[np.float64]
    """`(d_sae,)`: the lower limb, in units of 2^-44."""
    top_value: NDArray[np.float32]
    """`(d_sae, k)`: the largest positive values in falling order, 0 where fewer than k rows fire."""
    top_row: NDArray[np.int64]
    """`(d_sae, k)`: their rows, the lower first among equals; -1 unfilled."""
    top_label: NDArray[np.int32]
    """`(d_sae, k)`: the labels of those rows; -1 none, or unfilled."""
    l0_counts: NDArray[np.int64]
    """Number of rows with exactly i features > 0, up to the largest seen."""
    l0_counts_above: NDArray[np.int64]
    """`(thresholds, up to the largest + 1)`: the same for features above each of `L0_THRESHOLDS`."""
    histogram: NDArray[np.unsignedinteger[Any]]
    """`(d_sae, 64)`: how many of the values fall into each of `BIN_EDGES`; 32 bits each, 64 from 2^32 rows on."""
    label_ids: NDArray[np.int32]
    """The labels that valid rows carry, ascending."""
    label_rows: NDArray[np.int64]
    """How many valid rows carry each."""
    max_l0: int = -1
    """Largest L0; -1 before the first row."""
    max_l0_row: int = -1
    """The first row that has it."""
    workers: frozenset[str] = field(default_factory=frozenset)
    """`host:process` of each process that counted a part."""

    @classmethod
    def zero(cls, d_sae: int, k: int) -> "FeatureTotals":
        """Totals of no rows at all."""
        return cls(
            n_rows=0,
            n_invalid=0,
            n_labelled=0,
            n_active=np.zeros(d_sae, np.int64),
            sum_coarse=np.zeros(d_sae),
            sum_fine=np.zeros(d_sae),
            top_value=np.zeros((d_sae, k), np.float32),
            top_row=np.full((d_sae, k), -1, np.int64),
            top_label=np.full((d_sae, k), -1, np.int32),
            l0_counts=np.zeros(0, np.int64),
            l0_counts_above=np.zeros((len(L0_THRESHOLDS), 0), np.int64),
            histogram=np.zeros((d_sae, N_BINS), np.uint32),
            label_ids=np.zeros(0, np.int32),
            label_rows=np.zeros(0, np.int64),
            workers=frozenset([f"{socket.gethostname()}:{os.getpid()}"]),
        )

    @property
    def d_sae(self) -> int:
        """Number of features."""
        return len(self.n_active)

    @property
    def k(self) -> int:
        """Number of largest values kept per feature."""
        return self.top_value.shape[1]

    @property
    def sum(self) -> NDArray[np.float64]:
        """`(d_sae,)`: the sum of each feature's values."""
        return self.sum_coarse / _COARSE_SCALE + self.sum_fine / (_COARSE_SCALE * _FINE_SCALE)

    def add(
        self,
        row_start: int,
        indptr: Array,
        index: Array,
        value: NDArray[np.float32],
        *,
        labels: Array,
        valid: NDArray[np.bool_],
    ) -> None:
        """Count the rows `row_start, row_start + 1, ...` given as CSR.

        Parameters
        ----------
        row_start
            Number of the first row.
        indptr
            `(n + 1,)`: where each row's entries begin; an invalid row has none.
        index, value
            `(nnz,)`: features and their values, all > 0.
        labels
            `(n,)`: class of each row, -1 for none.
        valid
            `(n,)`: whether the row counts at all.
        """
        indptr = np.asarray(indptr, np.int64)
        self._add_rows(row_start, indptr, value, labels, valid)
        for first, last in _row_slices(indptr):
            entries = slice(int(indptr[first] - indptr[0]), int(indptr[last] - indptr[0]))
            rows = np.repeat(np.arange(first, last), np.diff(indptr[first : last + 1]))  # (entries,), from row_start
            self._add_entries(row_start, rows, index[entries], value[entries], labels)

    def _add_rows(self, row_start: int, indptr: Array, value: Array, labels: Array, valid: Array) -> None:
        l0 = np.diff(indptr)
        if l0[~valid].any():
            raise ValueError(f"row {row_start + int(np.flatnonzero(~valid & (l0 > 0))[0])} is invalid but has entries")
        self.n_rows += int(valid.sum())
        self.n_invalid += int((~valid).sum())
        of_rows = np.unique(labels[valid & (labels >= 0)], return_counts=True)
        self.n_labelled += int(of_rows[1].sum())
        self._add_labels(*of_rows)
        self.l0_counts = add_counts(self.l0_counts, np.bincount(l0[valid]))
        self.l0_counts_above = add_counts(self.l0_counts_above, counts_above(indptr, value, valid))
        self._widen_histogram()
        if valid.any():
            most = int(np.argmax(np.where(valid, l0, -1)))  # the first of equals
            self._offer_max_l0(int(l0[most]), row_start + most)

    def _add_labels(self, ids: Array, rows: Array) -> None:
        all_ids, place = np.unique(np.concatenate((self.label_ids, ids)), return_inverse=True)
        counts = np.zeros(len(all_ids), np.int64)
        np.add.at(counts, place, np.concatenate((self.label_rows, rows)))
        self.label_ids, self.label_rows = all_ids.astype(np.int32), counts

    def _widen_histogram(self) -> None:
        if self.n_rows >= 1 << 32 and self.histogram.dtype == np.uint32:
            self.histogram = self.histogram.astype(np.uint64)

    def _offer_max_l0(self, l0: int, row: int) -> None:
        if l0 > self.max_l0 or (l0 == self.max_l0 and row < self.max_l0_row):
            self.max_l0, self.max_l0_row = l0, row

    def _add_entries(self, row_start: int, rows: Array, index: Array, value: Array, labels: Array) -> None:
        self.n_active += np.bincount(index, minlength=self.d_sae)
        scaled = value.astype(np.float64) * _COARSE_SCALE
        coarse = np.rint(scaled)
        self.sum_coarse += np.bincount(index, weights=coarse, minlength=self.d_sae)
        self.sum_fine += np.bincount(index, weights=np.rint((scaled - coarse) * _FINE_SCALE), minlength=self.d_sae)
        # Added in place: `bincount` would make and add an array of 64 d_sae counts for each block of a million entries.
        np.add.at(
            self.histogram.reshape(-1), index.astype(np.int64) * N_BINS + bins_of(value), self.histogram.dtype.type(1)
        )
        self._offer_top(row_start, rows, index, value, labels)

    def _offer_top(self, row_start: int, rows: Array, index: Array, value: Array, labels: Array) -> None:
        # After the first blocks few entries reach their feature's k-th value: only those are sorted. Equal ones stay
        # in, so that the lower row wins whatever the order of the blocks.
        reach = np.flatnonzero(value >= self.top_value[index, -1])
        if len(reach) == 0:
            return
        rows, index, value = rows[reach], index[reach], value[reach]
        # Positive float32 compare as their bits do: feature first, then falling value; stable, so rising row.
        falling = ~value.view(np.uint32)
        order = np.argsort(index.astype(np.uint64) << np.uint64(32) | falling.astype(np.uint64), kind="stable")
        rows, index, value = rows[order], index[order], value[order]
        features, first, count = np.unique(index, return_index=True, return_counts=True)
        rank = np.arange(len(index)) - np.repeat(first, count)
        kept = np.flatnonzero(rank < self.k)
        slot = (np.repeat(np.arange(len(features)), count)[kept], rank[kept])
        shape = (len(features), self.k)
        new_value, new_row, new_label = np.zeros(shape, np.float32), np.full(shape, -1), np.full(shape, -1, np.int32)
        new_value[slot], new_row[slot], new_label[slot] = value[kept], row_start + rows[kept], labels[rows[kept]]
        self.top_value[features], self.top_row[features], self.top_label[features] = _merge_top(
            (self.top_value[features], self.top_row[features], self.top_label[features]),
            (new_value, new_row, new_label),
        )


def merge_totals(parts: list[FeatureTotals]) -> FeatureTotals:
    """Totals of the union of the parts' rows. The parts must not share rows; they are left as they were."""
    first = parts[0]
    total = FeatureTotals.zero(first.d_sae, first.k)
    total.workers = frozenset().union(*(p.workers for p in parts))
    for part in parts:
        total.n_rows += part.n_rows
        total.n_invalid += part.n_invalid
        total.n_labelled += part.n_labelled
        total.n_active += part.n_active
        total.sum_coarse += part.sum_coarse
        total.sum_fine += part.sum_fine
        total.top_value, total.top_row, total.top_label = _merge_top(
            (total.top_value, total.top_row, total.top_label), (part.top_value, part.top_row, part.top_label)
        )
        total.l0_counts = add_counts(total.l0_counts, part.l0_counts)
        total.l0_counts_above = add_counts(total.l0_counts_above, part.l0_counts_above)
        total._add_labels(part.label_ids, part.label_rows)
        total._widen_histogram()
        total.histogram += part.histogram
        total._offer_max_l0(part.max_l0, part.max_l0_row)
    return total


def _merge_top(a: tuple[Array, Array, Array], b: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    """The k largest of two `(features, k)` triples of value, row, label; ties to the lower row."""
    k = a[0].shape[1]
    value, row, label = (np.concatenate(pair, axis=1) for pair in zip(a, b, strict=True))
    order = np.lexsort((row, -value), axis=1)[:, :k]
    return tuple(np.take_along_axis(x, order, axis=1) for x in (value, row, label))  # type: ignore[return-value]


def _row_slices(indptr: Array) -> Iterator[tuple[int, int]]:
    """Cut rows into slices of at most `_ENTRIES_AT_ONCE` entries, or one row where that alone has more."""
    n_rows = len(indptr) - 1
    first = 0
    while first < n_rows:
        last = int(np.searchsorted(indptr, indptr[first] + _ENTRIES_AT_ONCE, side="right")) - 1
        last = min(max(last, first + 1), n_rows)
        yield first, last
        first = last

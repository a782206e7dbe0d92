"""Which features fire on the same rows: each feature's best partners, with their support."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..progress import Reporter
from .features import FeatureActivations, FeaturesInfo, open_features
from .scheduler import Compute

MIN_SUPPORT = 2
"""Rows on which two features must fire together to be partners: once tells nothing of rare features."""
ENTRIES_KEPT = 1 << 23
"""Entries that the rows used by default have at most: their features are 32 MB, held by each process."""
_RUNS = 64  # places of the store that the rows come from, where they are not all: stores may be sorted by class
_PAIRS_AT_ONCE = 1 << 22  # working memory of one step: some 100 MB
_TASK_PAIRS = 1 << 26

Array = NDArray[Any]


@dataclass(frozen=True)
class Partners:
    """Best partners of a range of features by Jaccard index, falling; the lower feature first among equals."""

    first: int
    feature: NDArray[np.int32]
    """`(n_features, m)`: partners, -1 unfilled."""
    jaccard: NDArray[np.float32]
    """`(n_features, m)`: rows on which both fire, of those on which either does; NaN unfilled."""
    pmi: NDArray[np.float32]
    """`(n_features, m)`: pointwise mutual information in nats, ln(n n_both / (n_a n_b)); NaN unfilled."""
    n_both: NDArray[np.uint32]
    """`(n_features, m)`: rows on which both fire; 0 unfilled."""


@dataclass(frozen=True)
class CofiringRows:
    """The rows that partners are counted on."""

    runs: list[tuple[int, int]]
    """First row of each run and the row after its last."""
    n_rows: int
    """Rows among them that are of the split."""
    n_active: NDArray[np.int64]
    """`(d_sae,)`: those on which each feature fires."""
    n_pairs: NDArray[np.float64]
    """`(d_sae,)`: sum of the L0 of those: pairs to count."""

    @classmethod
    def of_entries(cls, runs: list[tuple[int, int]], n_rows: int, indptr: Array, index: Array, d_sae: int) -> Self:
        """Of the entries of those rows, as CSR."""
        l0 = np.diff(indptr)
        n_active = np.bincount(index, minlength=d_sae)
        n_pairs = np.bincount(index, weights=np.repeat(l0, l0), minlength=d_sae)
        return cls(runs, n_rows, n_active, n_pairs.astype(np.float64, copy=False))


def choose_runs(start: int, stop: int, per_row: float, n_wanted: int | None) -> list[tuple[int, int]]:
    """Evenly spaced runs among the rows `[start, stop)`, or all of them.

    Parameters
    ----------
    per_row
        Mean number of entries of a row.
    n_wanted
        Rows to take; None for as many as have `ENTRIES_KEPT` entries.
    """
    if n_wanted is None:
        n_wanted = int(ENTRIES_KEPT / max(per_row, 1e-9))
    if n_wanted >= stop - start:
        return [(start, stop)]
    edges = np.linspace(start, stop, min(_RUNS, n_wanted) + 1).astype(np.int64)
    lengths = np.diff(np.linspace(0, n_wanted, len(edges)).astype(np.int64))
    return [(int(a), int(min(a + n, b))) for a, b, n in zip(edges[:-1], edges[1:], lengths, strict=True)]


def choose_rows(features: FeatureActivations, start: int, stop: int, split: str, n_wanted: int | None) -> CofiringRows:
    """Evenly spaced runs among the rows `[start, stop)` of a split, or all of them; `n_wanted` as in `choose_runs`."""
    runs = choose_runs(start, stop, entries_per_row(features.info), n_wanted)
    n_rows, n_active, n_pairs = 0, np.zeros(features.d_sae, np.int64), np.zeros(features.d_sae)
    for first, last in runs:
        for block in features.blocks(first, last, split=split):
            n_rows += int(block.valid.sum())
            n_active += np.bincount(block.index, minlength=features.d_sae)
            l0 = np.diff(block.indptr)
            n_pairs += np.bincount(block.index, weights=np.repeat(l0, l0), minlength=features.d_sae)
    return CofiringRows(runs, n_rows, n_active, n_pairs)


def entries_per_row(info: FeaturesInfo) -> float:
    """Mean number of entries of the rows among which those encoded are."""
    return info.nnz / max(1, info.row_stop - info.row_start)


def cofiring(
    read: Callable[[], tuple[Array, Array]], rows: CofiringRows, m: int, *, compute: Compute, reporter: Reporter
) -> Iterator[Partners]:
    """The `m` best partners of every feature, a range of features at a time, in order.

    Parameters
    ----------
    read
        Gives the entries of the rows as CSR, indptr and index, in any process: `stored_entries`, or another like it.
    """
    with reporter.task("co-firing", len(rows.n_active), "features") as task:
        for found in compute.each(partial(_partners_of_range, read, rows, m), _ranges(rows.n_pairs)):
            task.advance(len(found.feature))
            yield found


def _ranges(n_pairs: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Runs of features with some `_TASK_PAIRS` pairs each: every task reads all the rows once."""
    n_tasks = max(1, round(float(n_pairs.sum()) / _TASK_PAIRS))
    before = np.cumsum(n_pairs)
    inner = np.searchsorted(before, before[-1] * np.arange(1, n_tasks) / n_tasks)
    edges = np.unique(np.concatenate(([0], inner, [len(n_pairs)])))
    return list(pairwise(edges.tolist()))


def stored_entries(
    features: FeatureActivations, rows: CofiringRows, split: str
) -> Callable[[], tuple[NDArray[np.int64], Array]]:
    """Reads the entries of rows of a split of stored features."""
    return partial(_read_rows, str(features.path.absolute()), rows.runs, split)


def _partners_of_range(
    read: Callable[[], tuple[Array, Array]], rows: CofiringRows, m: int, first: int, stop: int
) -> Partners:
    indptr, index = read()
    of_range = np.flatnonzero((index >= first) & (index < stop))
    row = np.searchsorted(indptr, of_range, side="right") - 1
    local = (index[of_range] - first).astype(np.uint16 if stop - first <= 1 << 16 else np.int64)
    row = row[np.argsort(local, kind="stable")]  # (entries of the range,), by feature
    return partners(indptr, index, row, rows, m, first=first, stop=stop)


def _read_rows(features_path: str, runs: list[tuple[int, int]], split: str) -> tuple[Array, Array]:
    features = open_features(features_path)
    counts, indices = [], []
    for first, last in runs:
        for block in features.blocks(first, last, split=split):
            counts.append(np.diff(block.indptr))
            indices.append(block.index)
    indptr = np.concatenate(([0], np.cumsum(np.concatenate(counts)))) if counts else np.zeros(1, np.int64)
    return indptr, np.concatenate(indices) if indices else np.zeros(0, np.uint32)


def partners(indptr: Array, index: Array, row: Array, rows: CofiringRows, m: int, *, first: int, stop: int) -> Partners:
    """Best partners of the features `[first, stop)`.

    Parameters
    ----------
    indptr, index
        All rows used, as CSR.
    row
        The rows on which each feature of the range fires, by feature.
    """
    d_sae, n_features = len(rows.n_active), stop - first
    out = Partners(
        first,
        np.full((n_features, m), -1, np.int32),
        np.full((n_features, m), np.nan, np.float32),
        np.full((n_features, m), np.nan, np.float32),
        np.zeros((n_features, m), np.uint32),
    )
    own = np.concatenate(([0], np.cumsum(rows.n_active[first:stop])))  # where each feature's rows begin in `row`
    n_pairs = rows.n_pairs[first:stop]
    may_have = rows.n_active[first:stop] >= MIN_SUPPORT
    # A feature with many pairs is counted in an array of d_sae counts; those with few are sorted together.
    is_many = n_pairs > d_sae // 8
    for feature in np.flatnonzero(may_have & is_many).tolist():
        counts = np.zeros(d_sae, np.int64)
        for part in _parts(row[own[feature] : own[feature + 1]], indptr):
            counts += np.bincount(index[_entries_of_rows(indptr, part)], minlength=d_sae)
        found = np.flatnonzero(counts >= MIN_SUPPORT)
        _keep_best(out, np.full(len(found), feature), found, counts[found], rows, m)
    few = np.flatnonzero(may_have & ~is_many)
    for some in np.split(few, np.flatnonzero(np.diff(np.cumsum(n_pairs[few]) // _PAIRS_AT_ONCE)) + 1):
        of = np.repeat(some, rows.n_active[first:stop][some])
        part = np.concatenate([row[own[f] : own[f + 1]] for f in some.tolist()]) if len(some) else row[:0]
        key = np.repeat(of, np.diff(indptr)[part]) * d_sae + index[_entries_of_rows(indptr, part)]
        key, counts = np.unique(key, return_counts=True)
        kept = counts >= MIN_SUPPORT
        _keep_best(out, key[kept] // d_sae, key[kept] % d_sae, counts[kept], rows, m)
    return out


def _parts(row: Array, indptr: Array) -> list[Array]:
    """Cut rows into parts of some `_PAIRS_AT_ONCE` entries."""
    place = np.cumsum(np.diff(indptr)[row]) // _PAIRS_AT_ONCE
    return np.split(row, np.flatnonzero(np.diff(place)) + 1)


def _entries_of_rows(indptr: Array, row: Array) -> Array:
    """Places of all entries of some rows, one row after another."""
    lengths = indptr[row + 1] - indptr[row]
    before = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum())) + np.repeat(indptr[row] - before, lengths)


def _keep_best(out: Partners, local: Array, partner: Array, n_both: Array, rows: CofiringRows, m: int) -> None:
    """Write the best `m` of the pairs of some features."""
    other = local != partner - out.first
    local, partner, n_both = local[other], partner[other], n_both[other]
    n_a, n_b = rows.n_active[local + out.first], rows.n_active[partner]
    jaccard = n_both / (n_a + n_b - n_both)
    if len(local) > m and local[0] == local[-1]:  # one feature with many partners: sort no more than the best
        best = jaccard >= np.partition(jaccard, -m)[-m]
        local, partner, n_both, n_a, n_b, jaccard = (x[best] for x in (local, partner, n_both, n_a, n_b, jaccard))
    order = np.lexsort((partner, -jaccard, local))
    local = local[order]
    _, start, count = np.unique(local, return_index=True, return_counts=True)
    rank = np.arange(len(local)) - np.repeat(start, count)
    kept = rank < m
    slot, order = (local[kept], rank[kept]), order[kept]
    out.feature[slot] = partner[order]
    out.jaccard[slot] = jaccard[order]
    out.pmi[slot] = np.log(rows.n_rows * n_both[order] / (n_a[order] * n_b[order].astype(np.float64)))
    out.n_both[slot] = n_both[order]

"""Rows whose codes are most alike one code, by the cosine of their feature activations.

Shapes: N rows, n features > 0 in the code asked about. A row's code is its d_sae feature activations, nearly all 0, and
cosines are taken through the features that fire in both, from the lists of rows by feature.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .page import Unavailable
from .runs import ExploredRun

MOST_ROWS = 1 << 24
"""Stores with more rows are left out: a number for each is held while they are compared."""
MOST_ENTRIES = 1 << 25
"""Activations that are read for one code: 256 MB, a second or two."""
_GAP = 1 << 16
"""Activations between two features' lists that are read along rather than passed over."""
_AT_ONCE = 1 << 21
_COMPARED_AGAIN = 128
_NEAREST = 512

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Similar:
    """Rows by falling cosine; ties by ascending row."""

    rows: list[int]
    cosines: list[float]
    """Exact, whichever rows they are of."""
    is_exact: bool
    """Whether no other row can be nearer."""


def similar_rows(
    run: ExploredRun,
    index: Indices,
    value: NDArray[np.float32],
    *,
    n: int = 12,
    besides: int | None = None,
    most_entries: int = MOST_ENTRIES,
) -> Similar:
    """The rows nearest to a code, one of each image.

    Exact where the features of the code fire at most `most_entries` times in all, over float64. Else the densest
    features are left out of a first comparison; the 128 nearest by the others are compared again in full, and
    `is_exact` says whether what was left out could have brought another row among the n: with r the norm of the left
    out part of the code over that of the whole code, no cosine grows by more than r.

    Parameters
    ----------
    index, value
        `(n,)` features > 0 and their values.
    besides
        A row whose image is left out: the one asked about.

    Raises
    ------
    Unavailable
        When the store has too many rows, or the run no stored activations.
    """
    features = run.require_features()
    if features.n_rows > MOST_ROWS:
        raise Unavailable(
            f"Codes are compared in stores of up to {MOST_ROWS:,} rows; this one has {features.n_rows:,}."
        )
    length = math.sqrt(float(np.square(value, dtype=np.float64).sum()))
    if length == 0:
        return Similar([], [], True)
    starts, norms = _starts(run), _norms(run)
    sizes = starts[index + 1] - starts[index]
    order = np.argsort(sizes, kind="stable")
    is_read = np.zeros(len(index), np.bool_)
    is_read[order[np.cumsum(sizes[order]) <= most_entries]] = True
    dot = _products(run, index[is_read], value[is_read].astype(np.float64), starts)
    cosines = np.divide(dot, norms * length, out=np.zeros_like(dot), where=norms > 0)
    skipped = _rows_of_image(run, besides)
    cosines[skipped] = -1
    if is_read.all():
        nearest = _nearest(cosines, _NEAREST)
        rows = _first_of_images(run, nearest, n)
        is_exact = len(rows) == n or len(nearest) < _NEAREST  # many tokens of few images may fill the list
        return Similar(rows, [_at_most_one(cosines[row]) for row in rows], is_exact)
    left = math.sqrt(float(np.square(value[~is_read], dtype=np.float64).sum())) / length
    again = np.setdiff1d(_nearest(cosines, _COMPARED_AGAIN, least=-0.5), skipped)
    whole = np.zeros(run.d_sae)
    whole[index] = value / length
    exact = np.zeros(len(again))
    for place, row in enumerate(again.tolist()):
        _, its_index, its_value = features.rows(row, row + 1)
        exact[place] = whole[its_index] @ its_value / norms[row] if norms[row] else 0
    by_cosine = np.lexsort((again, -exact))
    rows = _first_of_images(run, again[by_cosine][exact[by_cosine] > 0], n)
    found = dict(zip(again.tolist(), exact.tolist(), strict=True))
    cosines[again] = -1
    others = float(cosines.max(initial=-1))
    is_exact = others < 0 or (len(rows) == n and found[rows[-1]] >= others + left)
    return Similar(rows, [_at_most_one(found[row]) for row in rows], is_exact)


def _at_most_one(cosine: float) -> float:
    return min(1.0, float(cosine))  # the last bit of a code's cosine with itself


def _nearest(cosines: NDArray[np.float64], n: int, *, least: float = 0.0) -> Indices:
    """Up to n rows with a cosine above `least`, by falling cosine, then ascending row."""
    if len(cosines) > n:
        threshold = np.partition(cosines, len(cosines) - n)[len(cosines) - n]
        rows = np.flatnonzero((cosines >= threshold) & (cosines > least))
    else:
        rows = np.flatnonzero(cosines > least)
    return rows[np.lexsort((rows, -cosines[rows]))][:n]


def _rows_of_image(run: ExploredRun, row: int | None) -> Indices:
    """The rows of a row's image; that row alone where its store is out of reach."""
    if row is None:
        return np.zeros(0, np.int64)
    return np.array([row] if run.store is None else run.rows_of_image(row), np.int64)


def _first_of_images(run: ExploredRun, rows: Indices, n: int) -> list[int]:
    """The first n rows that are of different images."""
    if run.store is None or run.store.tokens_per_image == 1:
        return [int(row) for row in rows[:n]]
    found: dict[int, int] = {}
    for row in rows.tolist():
        found.setdefault(int(run.store.images(row, row + 1)[0]), row)
        if len(found) == n:
            break
    return list(found.values())


def _products(run: ExploredRun, index: Indices, value: NDArray[np.float64], starts: Indices) -> NDArray[np.float64]:
    """`(N,)` sums over some features of the code's value times each row's."""
    features = run.require_features()
    dot = np.zeros(features.n_rows)
    order = np.argsort(index)
    index, value = index[order], value[order]
    for first, last, start, stop in _stretches(starts[index], starts[index + 1]):
        row = features._read("by_feature/row", start, stop)
        of_row = features._read("by_feature/value", start, stop)
        for place in range(first, last):
            own = slice(max(starts[index[place]], start) - start, min(starts[index[place] + 1], stop) - start)
            dot[row[own]] += value[place] * of_row[own]  # a feature has a row once
    return dot


def _stretches(begins: Indices, ends: Indices) -> Iterator[tuple[int, int, int, int]]:
    """Lists that are read together: the first and the one after the last, and where the reading begins and ends."""
    first = 0
    while first < len(begins):
        last = first + 1
        while last < len(begins) and begins[last] - ends[last - 1] <= _GAP and ends[last] - begins[first] <= _AT_ONCE:
            last += 1
        for start in range(int(begins[first]), int(ends[last - 1]), _AT_ONCE):
            yield first, last, start, min(start + _AT_ONCE, int(ends[last - 1]))
        first = last


@lru_cache(maxsize=4)
def _starts(run: ExploredRun) -> Indices:
    """`(d_sae + 1,)` where each feature's list of rows begins."""
    return run.require_features().feature_starts()


@lru_cache(maxsize=4)
def _norms(run: ExploredRun) -> NDArray[np.float64]:
    """`(N,)` norm of each row's code."""
    features, starts = run.require_features(), run.row_starts
    found = np.zeros(features.n_rows)
    step = max(1, features.n_rows * _AT_ONCE // max(1, features.info.nnz))
    for first in range(0, features.n_rows, step):
        last = min(first + step, features.n_rows)
        _, _, value = features.rows(first, last)
        before = np.concatenate(([0.0], np.cumsum(np.square(value, dtype=np.float64))))
        edges = starts[first : last + 1] - starts[first]
        found[first:last] = np.sqrt(before[edges[1:]] - before[edges[:-1]])
    return found

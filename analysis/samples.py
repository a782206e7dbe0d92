"""Which of a feature's firing rows stand for it: around quantiles of its activations, and drawn at random."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .split_entries import SplitEntries

SAMPLE_GROUPS = ("top", "q75", "q50", "q25", "random")
_QUANTILES = (1.0, 0.75, 0.5, 0.25)
N_QUANTILES = len(_QUANTILES)

ROW_BITS = 33
_INFINITY = np.uint64(0x7F800000)  # bits of the largest float32

Array = NDArray[Any]


def sample_starts(n_firing: NDArray[np.int64], m: int) -> NDArray[np.int64]:
    """`(n_features, 4)`: first place, in falling order of activation from 0, of the m rows around each quantile.

    Around a quantile q stand the m consecutive places whose middle is nearest to (1 - q) (n - 1), moved so that they
    lie within the n firing rows.
    """
    last_start = np.maximum(n_firing - m, 0)
    middles = [(1 - q) * (n_firing - 1) for q in _QUANTILES]
    starts = [np.floor(middle - (m - 1) / 2 + 0.5).astype(np.int64) for middle in middles]
    return np.stack([np.clip(start, 0, last_start) for start in starts], axis=1)


def sample_ranks(n_firing: NDArray[np.int64], m: int) -> NDArray[np.int64]:
    """`(n_features, 4, m)`: all those places; -1 where fewer than m rows fire."""
    ranks = sample_starts(n_firing, m)[:, :, None] + np.arange(m)
    return np.where(np.arange(m) < n_firing[:, None, None], ranks, -1)


def random_keys(features: Array, rows: Array, seed: int) -> NDArray[np.uint64]:
    """Random numbers that the firings of each feature are drawn by: those with the smallest are its sample.

    A feature's are all different. They depend on the feature, the row and the seed alone: a sample does not change with
    the order in which firings are seen, and any m of them are as likely as any other m.
    """
    seeded = _mixed(np.full(1, seed % (1 << 64), np.uint64))
    # Added to a feature's random number, rows are inputs that differ; the mixing is one-to-one.
    return _mixed(_mixed(seeded + features.astype(np.uint64)) + rows.astype(np.uint64))


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64 (Steele, Lea and Flood 2014): bits that depend on all bits of each number."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def falling_keys(value: NDArray[np.float32], row: Array) -> NDArray[np.uint64]:
    """Numbers that ascend as activations fall; among equal activations, as rows ascend, which are below 2^33."""
    falling = _INFINITY - np.ascontiguousarray(value).view(np.uint32)  # positive float32 compare as their bits do
    return falling << np.uint64(ROW_BITS) | row.astype(np.uint64)


def key_after(value: NDArray[np.float32]) -> NDArray[np.uint64]:
    """The key below which those of all activations of at least `value` are."""
    return (_INFINITY + np.uint64(1) - value.view(np.uint32)) << np.uint64(ROW_BITS)


def smallest_of_each(slot: Array, key: NDArray[np.uint64], n_kept: Array) -> tuple[NDArray[np.int64], Array]:
    """Where the smallest keys of each slot are, by slot and key, and the rank of each in its slot.

    Parameters
    ----------
    slot, key
        `(n,)`.
    n_kept
        `(n_slots,)`: how many of each slot.
    """
    order = np.lexsort((key, slot))
    _, first, count = np.unique(slot[order], return_index=True, return_counts=True)
    rank = np.arange(len(order)) - np.repeat(first, count)
    kept = rank < n_kept[slot[order]]
    return order[kept], rank[kept]


def entries_at(entries: SplitEntries, ranks: NDArray[np.int64]) -> NDArray[np.int64]:
    """`(n_features, ...)`: which entry is at each rank of its feature's falling values; -1 where the rank is.

    Among equal values the lower row comes first.
    """
    falling = ~entries.value.view(np.uint32)  # positive float32 compare as their bits do
    # By halves: numpy sorts 16 bits by radix.
    order = np.lexsort(((falling & 0xFFFF).astype(np.uint16), (falling >> 16).astype(np.uint16), entries.local))
    start = entries.indptr[:-1].reshape(-1, *(1,) * (ranks.ndim - 1))
    filled = ranks >= 0
    out = np.full(ranks.shape, -1)
    out[filled] = order[(start + ranks)[filled]]
    return out


def random_entries(entries: SplitEntries, m: int, seed: int) -> NDArray[np.int64]:
    """`(n_features, m)`: entries of each feature drawn at random, by falling activation; -1 where fewer fire."""
    n, local = np.diff(entries.indptr), entries.local
    key = random_keys(entries.first + local.astype(np.int64), entries.row, seed)
    # Twice as many as are wanted are below this share of all numbers: most are not sorted.
    share = np.minimum(1.0, (2 * m + 16) / np.maximum(n, 1))
    is_near = key.astype(np.float64) <= (share * 2.0**64)[local]
    is_short = np.bincount(local[is_near], minlength=len(n)) < np.minimum(m, n)
    near = np.flatnonzero(is_near | is_short[local])
    kept, rank = smallest_of_each(local[near], key[near], np.full(len(n), m))
    kept = near[kept]
    out = np.full((len(n), m), -1)
    out[local[kept], rank] = kept
    falling = np.full(out.shape, np.iinfo(np.uint64).max, np.uint64)
    falling[out >= 0] = falling_keys(entries.value[out[out >= 0]], entries.row[out[out >= 0]])
    return np.take_along_axis(out, np.argsort(falling, axis=1, kind="stable"), axis=1)

"""Which of a feature's firing rows stand for it: around quantiles of its activations, and drawn at random."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .split_entries import SplitEntries

SAMPLE_GROUPS = ("top", "q75", "q50", "q25", "random")
_QUANTILES = (1.0, 0.75, 0.5, 0.25)

Array = NDArray[Any]


def sample_ranks(n_firing: NDArray[np.int64], m: int, *, first_feature: int, seed: int) -> NDArray[np.int64]:
    """`(n_features, 5, m)`: places, in falling order of activation from 0, of the rows of each of `SAMPLE_GROUPS`.

    Around a quantile q stand the m consecutive places whose middle is nearest to (1 - q) (n - 1), moved so that they
    lie within the n firing rows. The random ones are drawn without replacement and are the same for a feature
    whatever range it is computed in. -1 where fewer than m rows fire.

    Parameters
    ----------
    n_firing
        `(n_features,)`: firing rows of each feature.
    m
        Rows of each group.
    first_feature
        Number of the first feature.
    seed
        Of the random ones.
    """
    last_start = np.maximum(n_firing - m, 0)
    groups = []
    for q in _QUANTILES:
        middle = (1 - q) * (n_firing - 1)
        start = np.clip(np.floor(middle - (m - 1) / 2 + 0.5).astype(np.int64), 0, last_start)
        groups.append(start[:, None] + np.arange(m))
    groups.append(_random_ranks(n_firing, m, first_feature, seed))
    ranks = np.stack(groups, axis=1)
    return np.where(np.arange(m) < n_firing[:, None, None], ranks, -1)


def _random_ranks(n_firing: NDArray[np.int64], m: int, first_feature: int, seed: int) -> NDArray[np.int64]:
    """`(n_features, m)`: m of each feature's n places, ascending, any such set as likely as any other.

    Floyd's sampling (Bentley and Floyd 1987), one step for all features at a time.
    """
    chosen = np.full((len(n_firing), m), np.iinfo(np.int64).max)
    feature = np.arange(first_feature, first_feature + len(n_firing), dtype=np.uint64)
    state = _mixed(_mixed(np.full(len(n_firing), seed % (1 << 64), np.uint64)) + feature)
    for i in range(m):
        last = n_firing - m + i  # with fewer than m firing rows, every place is taken
        uniform = (_mixed(state + np.uint64(i + 1)) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        drawn = np.floor(uniform * (last + 1)).astype(np.int64)
        drawn = np.where((chosen == drawn[:, None]).any(axis=1), last, drawn)
        chosen[:, i] = np.where(n_firing <= m, i, drawn)
    return np.sort(chosen, axis=1)


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64 (Steele, Lea and Flood 2014): bits that depend on all bits of each number."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


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

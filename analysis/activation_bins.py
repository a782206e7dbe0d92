"""The bins of activation histograms: the same for every feature, run and store, so that histograms add and compare."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

N_BINS = 64
_PER_DECADE = 8
_LOWEST_DECADE = -4

BIN_EDGES: NDArray[np.float32] = np.concatenate(
    ([0.0], 10.0 ** (np.arange(N_BINS - 1) / _PER_DECADE + _LOWEST_DECADE), [np.inf])
).astype(np.float32)
"""`(65,)`: bin i counts BIN_EDGES[i] <= value < BIN_EDGES[i + 1]. The first takes all positive values below 10^-4, the
last all from 10^3.75 on; those between are an eighth of a decade wide."""

# The upper half of a positive float32's bits names a cell some 2^-7 of the value wide. No cell holds two edges, so a
# table of the cells' first bins and one comparison find the bin: a fifth of a binary search's time.
_CELLS = np.arange(0x7F80, dtype=np.uint32)  # up to the infinity
_FIRST_BIN = (np.searchsorted(BIN_EDGES, (_CELLS << 16).view(np.float32), side="right") - 1).astype(np.uint8)


def bins_of(value: NDArray[np.float32]) -> NDArray[np.uint8]:
    """`(n,)`: the bin of each value; all must be finite and >= 0."""
    first = _FIRST_BIN[np.ascontiguousarray(value).view(np.uint32) >> np.uint32(16)]
    return first + (value >= BIN_EDGES[1:][first])


def quantile_from_bins(histogram: NDArray[Any], q: float) -> NDArray[np.float64]:
    """`(d_sae,)`: the quantile of each feature's firing activations, as exact as its bin is wide (15 % either way).

    Parameters
    ----------
    histogram
        `(d_sae, 64)`.
    q
        0 to 1. Between the edges of a bin, values are taken as spread evenly in their logarithm; NaN where nothing
        fires, the one finite edge in the two outer bins.
    """
    if not 0 <= q <= 1:
        raise ValueError(f"q must be from 0 to 1; got {q}")
    total = histogram.sum(axis=1, dtype=np.float64)
    wanted = q * total
    cumulative = np.cumsum(histogram, axis=1, dtype=np.float64)
    place = np.minimum((cumulative < wanted[:, None]).sum(axis=1), N_BINS - 1)
    place = np.maximum(place, np.argmax(histogram > 0, axis=1))  # q = 0: the first bin that holds anything
    held = np.take_along_axis(histogram, place[:, None], axis=1)[:, 0].astype(np.float64)
    before = np.take_along_axis(cumulative, place[:, None], axis=1)[:, 0] - held
    share = np.divide(wanted - before, held, out=np.zeros_like(total), where=held > 0).clip(0, 1)
    edges = BIN_EDGES.astype(np.float64)
    low, high = edges[np.maximum(place, 1)], edges[np.minimum(place + 1, N_BINS - 1)]
    return np.where(total > 0, low * (high / low) ** share, np.nan)

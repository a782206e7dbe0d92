"""The distribution of L0, the number of active features on a row; without torch, for processes that only count."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

L0_THRESHOLD = 0.1
"""L0 is reported again for activations above this."""


@dataclass(frozen=True, kw_only=True)
class L0Summary:
    """Distribution over rows of the number of active features."""

    mean: float
    median: float
    p99: float
    max: int

    @classmethod
    def of_counts(cls, counts: NDArray[np.int64]) -> "L0Summary":
        """Summarise a histogram of L0: `counts[i]` rows with exactly i features. Quantiles interpolate as numpy's."""
        n = int(counts.sum())
        if n == 0:
            return cls(mean=math.nan, median=math.nan, p99=math.nan, max=0)
        return cls(
            mean=int(counts @ np.arange(len(counts))) / n,
            median=_quantile(counts, 0.5),
            p99=_quantile(counts, 0.99),
            max=int(np.flatnonzero(counts)[-1]),
        )


def _quantile(counts: NDArray[np.int64], q: float) -> float:
    """Quantile of integers given as a histogram, interpolated linearly between order statistics (numpy's default)."""
    cumulative = np.cumsum(counts)
    place = (int(cumulative[-1]) - 1) * q
    low, high = math.floor(place), math.ceil(place)
    at = [int(np.searchsorted(cumulative, i, side="right")) for i in (low, high)]
    return at[0] + (at[1] - at[0]) * (place - low)

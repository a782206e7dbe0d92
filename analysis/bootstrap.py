"""Bootstrap intervals: how far a number would move on other rows, images or batches drawn from where these came from.

Of units (rows, sections of rows, images, batches) that were drawn independently, as many are drawn again with
replacement, many times; the middle 95 % of what a number is on those sets is its interval (the percentile bootstrap,
Efron 1979). A number is here a function of sums over units, so that a set is one row of counts and a product.

Shapes: n units, k sums, R resampled sets.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

N_RESAMPLES = 1000
LEVEL = 0.95
MIN_UNITS = 20
"""Units below which no interval is given: of m units the bootstrap's is too narrow by about sqrt((m - 1) / m), and
percentiles of few distinct sets mean little."""

_COUNTS_AT_ONCE = 1 << 21

Floats = NDArray[np.float64]


def resampled_sums(values: Floats, *, seed: int = 0, n_resamples: int = N_RESAMPLES) -> Floats:
    """Sums `(R, k)` of values `(n, k)` over sets of n units drawn with replacement."""
    n = len(values)
    draw = np.random.default_rng(seed)
    at_once = max(1, _COUNTS_AT_ONCE // n)
    sums = np.empty((n_resamples, values.shape[1]))
    for start in range(0, n_resamples, at_once):
        b = min(at_once, n_resamples - start)
        drawn = draw.integers(n, size=(b, n)) + n * np.arange(b)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=b * n).reshape(b, n)
        sums[start : start + b] = counts @ values
    return sums


def interval(replicates: Floats, level: float = LEVEL) -> tuple[float, float] | None:
    """The middle `level` of what a number was on resampled sets; None where it was undefined on any of them."""
    if not len(replicates) or not np.isfinite(replicates).all():
        return None
    low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean_intervals(values: Floats, *, seed: int = 0) -> list[tuple[float, float] | None]:
    """Interval of the mean of each column of values `(n, k)`; None of fewer than `MIN_UNITS` units."""
    if len(values) < MIN_UNITS:
        return [None] * values.shape[1]
    return [interval(column) for column in resampled_sums(values, seed=seed).T / len(values)]


def described(level: float = LEVEL, n_resamples: int = N_RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """How intervals were made, for a document that holds some."""
    return {"method": "percentile bootstrap", "level": level, "n_resamples": n_resamples, "seed": seed}

"""Whether numbers are larger than chance would have it: p-values, false discovery rates, the rank-sum test."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]


def p_values(observed: Floats, null: Floats) -> NDArray[np.float64]:
    """Share of a null sample that is as large as each observation, the observation counted in: (1 + #) / (1 + n).

    Never 0, and uniform on its steps where observations are drawn as the sample was (Phipson and Smyth 2010). NaN of an
    observation that is NaN.

    Parameters
    ----------
    observed, null
        `(m,)`, `(n,)`.
    """
    in_order = np.sort(null.astype(np.float64))
    as_large = len(in_order) - np.searchsorted(in_order, observed.astype(np.float64), side="left")
    return np.where(np.isnan(observed), np.nan, (1 + as_large) / (1 + len(in_order)))


def adjusted_p_values(p: NDArray[np.float64], *, any_dependence: bool = False) -> NDArray[np.float64]:
    """The smallest false discovery rate at which each hypothesis is rejected, by the step-up rule.

    Of Benjamini and Hochberg (1995), which holds for p-values that are independent or positively dependent, as those
    are that one null sample gives; with `any_dependence` of Benjamini and Yekutieli (2001), times 1 + 1/2 + ... + 1/m.
    NaN is no hypothesis and stays.
    """
    known = np.flatnonzero(~np.isnan(p))
    m = len(known)
    adjusted = np.full(len(p), np.nan)
    if m == 0:
        return adjusted
    order = known[np.argsort(p[known], kind="stable")]
    factor = float((1 / np.arange(1, m + 1)).sum()) if any_dependence else 1.0
    steps = p[order] * factor * m / np.arange(1, m + 1)
    adjusted[order] = np.minimum(1.0, np.minimum.accumulate(steps[::-1])[::-1])
    return adjusted


@dataclass(frozen=True, kw_only=True)
class RankSum:
    """The rank-sum test of Wilcoxon, Mann and Whitney of two samples."""

    u: float
    """Pairs in which the first sample's value is larger, ties counted half."""
    p: float
    """Two-sided, by the normal approximation with correction for ties and continuity; NaN where a sample is empty."""
    p_first_smaller: float
    """Share of pairs in which the first sample's value is smaller, ties counted half."""


def rank_sum(first: Floats, second: Floats) -> RankSum:
    """Compare two samples `(n,)`, `(m,)` by their ranks."""
    n, m = len(first), len(second)
    if n == 0 or m == 0:
        return RankSum(u=math.nan, p=math.nan, p_first_smaller=math.nan)
    _, place, count = np.unique(np.concatenate((first, second)), return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(count) - (count - 1) / 2  # of each distinct value
    u = float(mean_rank[place[:n]].sum()) - n * (n + 1) / 2
    total = n + m
    ties = float((count.astype(np.float64) ** 3 - count).sum())
    variance = n * m / 12 * ((total + 1) - ties / (total * (total - 1))) if total > 1 else 0.0
    away = max(0.0, abs(u - n * m / 2) - 0.5)
    p = math.erfc(away / math.sqrt(2 * variance)) if variance > 0 else 1.0
    return RankSum(u=u, p=p, p_first_smaller=1 - u / (n * m))


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def median_difference(first: Floats, second: Floats, *, seed: int, resamples: int = 2000) -> Interval:
    """Median of the first sample less that of the second, each drawn again with replacement; NaN where one is empty."""
    if len(first) == 0 or len(second) == 0:
        return Interval(value=math.nan, low=math.nan, high=math.nan)
    generator = np.random.default_rng([seed, 3])
    drawn = [_bootstrap_medians(sample, generator, resamples) for sample in (first, second)]
    low, high = np.quantile(drawn[0] - drawn[1], (0.025, 0.975))
    return Interval(value=float(np.median(first) - np.median(second)), low=float(low), high=float(high))


def _bootstrap_medians(sample: Floats, generator: np.random.Generator, resamples: int) -> NDArray[np.float64]:
    """Medians of samples drawn with replacement, by the distribution of the middle order statistics.

    The k-th smallest of n drawn values is the sample's value at the k-th smallest of n uniform draws, which is
    Beta(k, n + 1 - k): two numbers a resample, where drawing would take n.
    """
    in_order = np.sort(sample.astype(np.float64))
    n = len(in_order)
    lower, upper = (n + 1) // 2, n // 2 + 1  # 1-based ranks whose mean is the median
    u = generator.beta(lower, n + 1 - lower, resamples)
    if upper > lower:  # given the lower one, the next is the least of n - lower uniform draws above it
        v = u + (1 - u) * generator.beta(1, n - lower, resamples)
    else:
        v = u
    places = [np.minimum((each * n).astype(np.int64), n - 1) for each in (u, v)]
    return (in_order[places[0]] + in_order[places[1]]) / 2

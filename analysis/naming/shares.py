"""A share of features with its interval."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_Z95 = 1.959963984540054


@dataclass(frozen=True)
class Share:
    """A share of features with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int


def share_of(right: NDArray[np.bool_]) -> Share:
    """Share of True, with Wilson's score interval (1927); NaN of none.

    It counts features as independent. They share images, so that it is, if anything, narrow.
    """
    n = len(right)
    if not n:
        return Share(math.nan, math.nan, math.nan, 0)
    share, z2 = float(right.mean()), _Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return Share(share, max(0.0, centre - half), min(1.0, centre + half), n)


def shown(share: Share) -> str:
    """Percent, `53 [47, 60]`; nothing of no features."""
    return "" if share.n == 0 else f"{100 * share.value:.0f} [{100 * share.low:.0f}, {100 * share.high:.0f}]"

"""Sums of feature activations that come out the same in whatever order, and however parted, they are added.

Each feature has a unit, a power of two so small that its largest possible sum is below 2^52 units. What is added is
rounded to whole units first; integers below 2^53 add without rounding in float64. Rounding costs half a unit an entry:
2^-53 of the sum.
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

_BITS = 52
_UNSEEN = 2.0**-44  # what an activation may be short of in the stored sums (`totals.py`)

Array = NDArray[Any]


@dataclass(frozen=True)
class SumUnits:
    """Units in which what belongs to features is summed."""

    of_values: NDArray[np.float64]
    """`(d_sae,)`: for sums of a feature's activations, or of its activations times numbers from -1 to 1."""
    of_squares: NDArray[np.float64]
    """`(d_sae,)`: for sums of their squares."""

    @classmethod
    def of_features(cls, n_active: Array, total: NDArray[np.float64], largest: Array) -> Self:
        """Units for features of these numbers of firings, sums and largest activations."""
        most = largest.astype(np.float64)
        bound = total + n_active.astype(np.float64) * np.minimum(most, _UNSEEN)
        return cls(_unit(bound), _unit(bound * most))

    def part(self, first: int, stop: int) -> "SumUnits":
        """Those of the features `[first, stop)`."""
        return SumUnits(self.of_values[first:stop], self.of_squares[first:stop])


def in_units(values: NDArray[np.float64], unit: Array) -> NDArray[np.float64]:
    """Values as whole numbers of units."""
    return np.rint(values / unit)


def _unit(bound: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.ldexp(1.0, np.frexp(bound)[1] - _BITS)

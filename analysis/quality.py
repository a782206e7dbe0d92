"""How well an SAE reconstructs a set of rows: exact for any split, from float64 sums over runs of rows.

Definitions, for rows x (d_in), reconstructions x_hat and activations f > 0:

    mse                 mean over rows and coordinates of (x_hat - x)^2
    normalized_mse      mean over rows and coordinates of (x_hat - x)^2 / ||x_row||_2  (the norm, not its square)
    explained_variance  1 - SSE / SST, SST about the mean of the set
    explained_energy    mean over rows of 1 - ||x - x_hat||^2 / ||x||^2, uncentred
                        (rows of norm zero are left out of this and of normalized_mse)
    l1                  mean over rows of sum_k f_k
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

SUMS = ("sse", "sse_over_norm", "sse_over_energy", "l1", "scatter", "n_nonzero")
"""Sums over a section's rows: ||e||^2, ||e||^2 / ||x||, ||e||^2 / ||x||^2, sum_k f_k, ||x - mean of the section||^2,
with e = x_hat - x; the two ratios over the rows of norm above zero only, and the number of those."""

_MAX_SECTIONS = 256  # of a whole store, and again of its held-out rows: what their sums of x take is bounded


def section_edges(n_rows: int, tokens_per_image: int, held_out_start: int | None) -> NDArray[np.int64]:
    """First row of each section, and the row after the last: up to 256 before the held-out rows and as many of them.

    They depend on the store alone, so that sums do not depend on how the encoder cuts blocks, and hold whole images, so
    that sections can be resampled (`bootstrap.py`).

    Parameters
    ----------
    held_out_start
        The first held-out row, where one row divides a store.
    """
    middle = n_rows if held_out_start is None else min(held_out_start, n_rows)
    edges: list[int] = []
    for start, stop in ((0, middle), (middle, n_rows)):
        n_images = -(-(stop - start) // tokens_per_image)
        edges += range(start, stop, max(1, -(-n_images // _MAX_SECTIONS)) * tokens_per_image)
    return np.array([*edges, n_rows], np.int64)


@dataclass
class SectionSums:
    """Sums over the rows of one split within a run of physical rows."""

    split: int
    row_start: int
    row_stop: int
    n: int
    sums: NDArray[np.float64]
    """In the order of `SUMS`."""
    x_sum: NDArray[np.float64]
    """`(d_in,)`: sum of x."""
    n_active: int = 0
    """Activations > 0, where they are counted here: `features.zarr` has those of each row, and no sum."""

    @classmethod
    def zero(cls, split: int, row_start: int, row_stop: int, d_in: int) -> Self:
        """Sums of no rows."""
        return cls(split, row_start, row_stop, 0, np.zeros(len(SUMS)), np.zeros(d_in))

    def add(
        self,
        x: NDArray[np.floating[Any]],
        norm: NDArray[np.float64],
        sse: NDArray[np.float64],
        l1: NDArray[np.float64],
        n_active: int = 0,
    ) -> None:
        """Add rows: x `(n, d_in)`; norm, squared error and sum of activations of each, `(n,)`; activations of all."""
        nonzero = norm > 0
        ratio = np.divide(sse, norm, out=np.zeros_like(sse), where=nonzero)
        over_energy = np.divide(ratio, norm, out=np.zeros_like(sse), where=nonzero)
        x_sum = x.sum(axis=0, dtype=np.float64)
        # About the mean from the start (Chan, Golub and LeVeque 1983): a difference of large sums of squares would
        # leave rounding noise for a variance where there is one row or all are alike.
        centred = x - x_sum / len(x)  # (n, d_in) float64
        scatter = float(np.einsum("nd,nd->", centred, centred))
        sums = np.array([sse.sum(), ratio.sum(), over_energy.sum(), l1.sum(), scatter, nonzero.sum()])
        self.merge(replace(self, n=len(x), sums=sums, x_sum=x_sum, n_active=n_active))

    def merge(self, other: "SectionSums") -> None:
        """Add other rows of the same section and split."""
        scatter = 0.0
        if self.n:
            shift = other.x_sum / other.n - self.x_sum / self.n
            scatter = float(shift @ shift) * self.n * other.n / (self.n + other.n)
        self.n += other.n
        self.n_active += other.n_active
        self.sums += other.sums
        self.sums[SUMS.index("scatter")] += scatter
        self.x_sum += other.x_sum


@dataclass(frozen=True, kw_only=True)
class Quality:
    """How well an SAE reconstructs a set of `n_rows` rows."""

    n_rows: int
    mse: float
    normalized_mse: float
    explained_variance: float
    explained_energy: float
    l1: float

    @classmethod
    def of_sections(cls, sections: dict[str, NDArray[Any]], splits: tuple[int, ...]) -> "Quality | None":
        """Quality over the rows of some splits; None where there are none.

        Parameters
        ----------
        sections
            The arrays of `features.zarr/sections`.
        splits
            Values of `rows/split`.
        """
        of = np.flatnonzero(np.isin(sections["split"], splits))
        n = int(sections["n"][of].sum())
        if n == 0:
            return None
        # fsum rounds once, whatever the number of sections.
        total = {name: math.fsum(sections[name][of]) for name in SUMS}
        mean = np.array([math.fsum(column) for column in sections["x_sum"][of].T]) / n  # (d_in,)
        counts = sections["n"][of]  # (sections,)
        shift = sections["x_sum"][of] / counts[:, None] - mean
        sst = total["scatter"] + math.fsum(counts * np.square(shift).sum(axis=1))
        d_in, n_nonzero = len(mean), total["n_nonzero"]
        return cls(
            n_rows=n,
            mse=total["sse"] / (n * d_in),
            normalized_mse=total["sse_over_norm"] / (n_nonzero * d_in) if n_nonzero else float("nan"),
            explained_variance=1 - total["sse"] / sst if sst > 0 else float("nan"),  # one row, or all alike
            explained_energy=1 - total["sse_over_energy"] / n_nonzero if n_nonzero else float("nan"),
            l1=total["l1"] / n,
        )


def section_arrays(sections: list[SectionSums]) -> dict[str, NDArray[Any]]:
    """The sums of sections with rows, by name, as `sections/` of a group of feature activations holds them."""
    return {
        "split": np.array([s.split for s in sections], np.uint8),
        "row_start": np.array([s.row_start for s in sections], np.uint64),
        "row_stop": np.array([s.row_stop for s in sections], np.uint64),
        "n": np.array([s.n for s in sections], np.int64),
        "x_sum": np.array([s.x_sum for s in sections]),
        **{name: np.array([s.sums[i] for s in sections]) for i, name in enumerate(SUMS)},
    }


def write_sections(group: Any, arrays: dict[str, NDArray[Any]]) -> None:
    """Write the arrays of `sections/` of a group of feature activations."""
    from .columns import codecs

    for name, values in arrays.items():
        group.create_array(f"sections/{name}", data=values, chunks=values.shape, compressors=codecs("float"))

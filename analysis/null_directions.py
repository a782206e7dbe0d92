"""Random directions, isotropic or shaped as the activations are: what features would be by chance.

Shapes: d the length of a vector.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..store.reader import ActivationArray

BLOCK = 1024
"""Directions drawn at a time, each block by its own generator: the first n do not depend on how many follow."""
_RUN_ROWS = 16  # rows are read in short runs: 32 KB of d = 1024
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class RandomDirections:
    """A seeded sequence of random unit vectors."""

    kind: str
    """`isotropic`, or `covariance`: Gaussian with the covariance of the activations."""
    d: int
    seed: int
    root: NDArray[np.float64] | None = None
    """`(d, d)` with root @ root.T the covariance; None of isotropic ones."""

    def blocks(self, n: int) -> Iterator[NDArray[np.float32]]:
        """The first `n` as blocks of `(BLOCK, d)`, the last one shorter."""
        for number, start in enumerate(range(0, n, BLOCK)):
            family = 0 if self.root is None else 1
            generator = np.random.default_rng([self.seed, family, number])
            drawn = generator.standard_normal((min(BLOCK, n - start), self.d))
            vectors = drawn if self.root is None else drawn @ self.root.T
            yield (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@dataclass(frozen=True)
class SampleMoments:
    """Mean and covariance of a sample of stored rows."""

    n_rows: int
    mean: NDArray[np.float64]
    """`(d,)`."""
    covariance: NDArray[np.float64]
    """`(d, d)`, about that mean."""

    @property
    def effective_dimensions(self) -> float:
        """Participation ratio (trace C)^2 / trace C^2: d where all directions vary alike, 1 where one does."""
        trace = float(np.trace(self.covariance))
        return trace**2 / float((self.covariance**2).sum()) if trace > 0 else float("nan")

    def directions(self, seed: int) -> RandomDirections | None:
        """Random directions of this covariance; None where the rows do not vary."""
        values, vectors = np.linalg.eigh(self.covariance)
        if not values[-1] > 0:
            return None
        return RandomDirections("covariance", len(self.mean), seed, vectors * np.sqrt(np.maximum(values, 0)))


def sample_moments(array: ActivationArray, n_rows: int, seed: int) -> SampleMoments:
    """Mean and covariance, in float64, of up to `n_rows` readable rows of a site, in runs drawn without replacement."""
    n_valid = array.store.n_valid
    n_runs = -(-n_valid // _RUN_ROWS)
    wanted = min(n_runs, -(-n_rows // _RUN_ROWS))
    runs = np.sort(np.random.default_rng([seed, 2]).choice(n_runs, size=wanted, replace=False))
    total, products, n = np.zeros(array.d_in), np.zeros((array.d_in, array.d_in)), 0
    origin: NDArray[np.float64] | None = None  # near the mean, so that no digits cancel
    at_once = _ROWS_AT_ONCE // _RUN_ROWS
    for first in range(0, wanted, at_once):
        starts = runs[first : first + at_once] * _RUN_ROWS
        lengths = np.minimum(_RUN_ROWS, n_valid - starts)
        rows = np.empty((int(lengths.sum()), array.d_in), array.stored_dtype)
        array.read_runs(starts, lengths, rows)
        wide = array.tensor(rows).double().numpy()
        origin = wide.mean(axis=0) if origin is None else origin
        wide -= origin
        total += wide.sum(axis=0)
        products += wide.T @ wide
        n += len(wide)
    assert origin is not None, "a finished store has a readable row"
    shift = total / n
    return SampleMoments(n, origin + shift, products / n - np.outer(shift, shift))

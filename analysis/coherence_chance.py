"""What coherence random directions have: as many as a cluster has features, isotropic or shaped like the activations.

The mean pairwise cosine of n unit vectors follows from the length of their sum, (||sum u||^2 - n) / (n (n - 1)). For
independent directions of either sign the cosines of different pairs are uncorrelated with mean 0 and variance tr(S^2),
S the mean of u u^T. The sum of many is a Gaussian of covariance n S; a few are drawn as they are.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ..store.reader import ActivationArray
    from ..train.models import SparseAutoencoder

COVARIANCE_ROWS = 16_384
"""Rows that the covariance of the activations is taken from, at most."""
_RUN_ROWS = 128
_DRAWS = 4_000
"""Random sets of directions: their 99th percentile is then known to some 3 %."""
_DRAWS_AT_ONCE = 500
_FEW = 32
"""Directions up to which their sum is drawn as such: of five, the Gaussian's 99th percentile is a fifth too high."""
_FEW_DRAWS = 2_000


@dataclass(frozen=True, kw_only=True)
class ChanceCoherence:
    """Mean pairwise cosine of n random directions; its mean is 0."""

    sd: float
    """Standard deviation; NaN below two directions."""
    p99: float
    """99th percentile."""


def isotropic_chance(n: int, d_in: int, seed: int = 0) -> ChanceCoherence:
    """Of n directions drawn evenly from the sphere of `d_in` dimensions."""
    return _chance(n, np.ones(d_in), np.full(d_in, 1 / d_in), seed)


def matched_chance(n: int, variances: NDArray[np.floating[Any]], seed: int = 0) -> ChanceCoherence:
    """Of n directions of Gaussian vectors.

    Parameters
    ----------
    variances
        `(d_in,)`: eigenvalues of the vectors' covariance, in any order.
    """
    return _chance(n, variances, unit_variances(variances, seed), seed)


def unit_variances(variances: NDArray[np.floating[Any]], seed: int = 0) -> NDArray[np.float64]:
    """Variances of a Gaussian's direction along the axes of its covariance, by simulation; they add up to 1.

    The axes stay, but a direction's length is 1: strong axes lose to weak ones.
    """
    variances = np.maximum(np.asarray(variances, np.float64), 0)
    if not variances.any():
        raise ValueError("the variances are all 0: vectors that do not vary have no random direction")
    rng, total = np.random.default_rng(seed), np.zeros(len(variances))
    for _ in range(0, _DRAWS, _DRAWS_AT_ONCE):
        squares = rng.chisquare(1, (_DRAWS_AT_ONCE, len(variances))) * variances
        total += (squares / squares.sum(axis=1, keepdims=True)).sum(axis=0)
    return total / total.sum()


def _chance(
    n: int, variances: NDArray[np.floating[Any]], of_directions: NDArray[np.float64], seed: int
) -> ChanceCoherence:
    """Of n directions of Gaussian vectors of these variances, `of_directions` when scaled to length 1."""
    if n < 2:
        return ChanceCoherence(sd=float("nan"), p99=float("nan"))
    sd = float(np.sqrt(2 * np.square(of_directions).sum() / (n * (n - 1))))
    rng = np.random.default_rng(seed + 1)
    if n <= _FEW:
        at_once = max(1, _DRAWS_AT_ONCE // n)
        squares = [_squared_sums(rng, at_once, n, variances) for _ in range(0, _FEW_DRAWS, at_once)]
    else:
        squares = [
            n * (rng.chisquare(1, (_DRAWS_AT_ONCE, len(variances))) @ of_directions)
            for _ in range(0, _DRAWS, _DRAWS_AT_ONCE)
        ]
    return ChanceCoherence(sd=sd, p99=float((np.quantile(np.concatenate(squares), 0.99) - n) / (n * (n - 1))))


def _squared_sums(
    rng: np.random.Generator, draws: int, n: int, variances: NDArray[np.floating[Any]]
) -> NDArray[np.float64]:
    """||sum u||^2 of n directions, so many times."""
    x = rng.standard_normal((draws, n, len(variances))) * np.sqrt(np.maximum(variances, 0))
    x /= np.linalg.norm(x, axis=2, keepdims=True)
    return np.asarray(np.square(x.sum(axis=1)).sum(axis=1))


def input_variances(activations: "ActivationArray", sae: "SparseAutoencoder") -> NDArray[np.float64]:
    """Eigenvalues, `(d_in,)`, of the covariance of what the SAE's encoder is given: the scaled training rows.

    Of up to 16,384 rows, runs of 128 spread evenly over the training positions, accumulated in float64.
    """
    n_train = activations.store.n_train
    n_runs = max(1, min(COVARIANCE_ROWS, n_train) // _RUN_ROWS)
    length = min(_RUN_ROWS, n_train)
    starts = np.linspace(0, n_train - length, n_runs).astype(np.int64)
    rows = np.empty((n_runs * length, activations.d_in), activations.stored_dtype)
    activations.read_runs(starts, np.full(n_runs, length), rows)
    z = sae.scale(activations.tensor(rows).float()).double().numpy()
    z -= z.mean(axis=0)
    return np.linalg.eigvalsh(z.T @ z / len(z))

"""Two clusters on a line: a Gaussian mixture by EM, and whether the data really part into two."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_ITERATIONS = 500
_TOLERANCE = 1e-7  # mean log-likelihood per point at which EM stops: 65,536 points of one mode take a second
_STARTS = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)
"""Shares of the points that the lower component starts from: a cluster of 2 % is found from either side."""
_GRID = 4001  # places between the means at which the valley is sought


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Two Gaussian components on a line, the lower first."""

    weights: tuple[float, float]
    means: tuple[float, float]
    deviations: tuple[float, float]
    log_likelihood: float
    """Of all points, natural logarithm."""

    def density(self, at: NDArray[np.float64]) -> NDArray[np.float64]:
        """Probability density at places on the line."""
        return np.exp(_component_log_densities(at, self.weights, self.means, self.deviations)).sum(axis=0)

    @property
    def valley(self) -> float | None:
        """The place of least density between the means; None where the density has no dip between them."""
        grid = np.linspace(*self.means, _GRID)
        density = self.density(grid)
        least = int(np.argmin(density))
        return float(grid[least]) if 0 < least < _GRID - 1 else None


def fit_mixture(points: NDArray[np.float64]) -> Mixture:
    """The two-component mixture of greatest likelihood over several starts.

    Parameters
    ----------
    points
        `(n,)`, n >= 2, not all equal.
    """
    points = np.sort(np.asarray(points, np.float64))
    # A component must not shrink onto one point, where the likelihood has no bound.
    least_deviation = 1e-3 * float(points.std())
    fits = [_fit_from(points, share, least_deviation) for share in _STARTS]
    best = max(fits, key=lambda m: m.log_likelihood)
    if best.means[0] <= best.means[1]:
        return best
    return Mixture(
        weights=best.weights[::-1],
        means=best.means[::-1],
        deviations=best.deviations[::-1],
        log_likelihood=best.log_likelihood,
    )


def _fit_from(points: NDArray[np.float64], share: float, least_deviation: float) -> Mixture:
    n = len(points)
    cut = min(max(1, round(share * n)), n - 1)
    halves = (points[:cut], points[cut:])
    weight = np.array([cut / n, 1 - cut / n])
    mean = np.array([half.mean() for half in halves])
    deviation = np.maximum([half.std() for half in halves], least_deviation)
    previous = -np.inf
    for _ in range(_ITERATIONS):
        log_density = _component_log_densities(points, weight, mean, deviation)  # (2, n)
        log_total = np.logaddexp(*log_density)
        log_likelihood = float(log_total.sum())
        if log_likelihood - previous < _TOLERANCE * n:
            break
        previous = log_likelihood
        responsibility = np.exp(log_density - log_total)  # (2, n)
        size = np.maximum(responsibility.sum(axis=1), 1e-300)
        weight = size / n
        mean = responsibility @ points / size
        variance = (responsibility * np.square(points - mean[:, None])).sum(axis=1) / size
        deviation = np.maximum(np.sqrt(variance), least_deviation)
    return Mixture(
        weights=(float(weight[0]), float(weight[1])),
        means=(float(mean[0]), float(mean[1])),
        deviations=(float(deviation[0]), float(deviation[1])),
        log_likelihood=log_likelihood,
    )


def _component_log_densities(
    points: NDArray[np.float64],
    weight: NDArray[np.float64] | tuple[float, float],
    mean: NDArray[np.float64] | tuple[float, float],
    deviation: NDArray[np.float64] | tuple[float, float],
) -> NDArray[np.float64]:
    """Logarithm of each component's share of the density: `(2, n)`."""
    weight, mean, deviation = (np.asarray(v, np.float64)[:, None] for v in (weight, mean, deviation))
    with np.errstate(divide="ignore"):  # a component that lost every point has weight 0
        log_weight = np.log(weight)
    return log_weight - np.square((points - mean) / deviation) / 2 - np.log(deviation) - 0.5 * np.log(2 * np.pi)


def one_gaussian_log_likelihood(points: NDArray[np.float64]) -> float:
    """Greatest log-likelihood of the points under a single Gaussian."""
    return -0.5 * len(points) * (float(np.log(2 * np.pi * points.var())) + 1)


def empirical_dip(points: NDArray[np.float64], mixture: Mixture, valley: float) -> tuple[float, float]:
    """How far the data themselves fall at the valley: 1 - density there / density at the lower of the two peaks.

    The mixture alone does not tell: two Gaussians fitted to evenly spread points have a deep valley that the points do
    not. Here the density is a Gaussian kernel estimate with, on either side, Silverman's bandwidth for that
    component. Returned with its standard error, which is large where a cluster holds few points.
    """
    n = len(points)
    square_of_kernel = 1 / (2 * np.sqrt(np.pi))  # integral of the squared Gaussian kernel: variance f / (n h) times it

    def kernel_density(at: NDArray[np.float64], bandwidth: float) -> NDArray[np.float64]:
        z = (at[:, None] - points[None, :]) / bandwidth
        return np.exp(-0.5 * np.square(z)).sum(axis=1) / (n * bandwidth * np.sqrt(2 * np.pi))

    dips = []
    for weight, mean, deviation in zip(mixture.weights, mixture.means, mixture.deviations, strict=True):
        bandwidth = 0.9 * deviation * max(weight * n, 1.0) ** -0.2
        peak_at = np.linspace(mean - deviation, mean + deviation, 41)
        peak = float(kernel_density(peak_at, bandwidth).max())
        dip = 1 - float(kernel_density(np.array([valley]), bandwidth)[0]) / peak
        dips.append((dip, float(np.sqrt(square_of_kernel / (n * bandwidth * peak)))))
    return min(dips, key=lambda pair: pair[0] - pair[1])

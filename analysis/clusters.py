"""The ultra-low-density cluster: which features are in it, how much they fire, how alike their directions are."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .coherence_chance import isotropic_chance, matched_chance
from .mixture import Mixture, empirical_dip, fit_mixture, one_gaussian_log_likelihood

MIN_FEATURES = 20
"""Alive features below which no cluster is sought."""
MIN_CLUSTER = 5
"""Features below which a side of the threshold is no cluster."""
MIN_BIC_GAIN = 10.0
"""By how much the Bayesian information criterion must favour two components ("very strong", Kass and Raftery 1995)."""
MIN_DIP = 0.4
"""How far the density must fall in the valley, against the lower peak, by more than its standard error. Normal,
uniform, skewed and heavy-tailed samples of one mode stay below (tested); two equal Gaussians 3.2 standard deviations
apart reach it; the post's two clusters are above 0.9."""


@dataclass(frozen=True, kw_only=True)
class UldSplit:
    """The two-cluster split of the mean top activations, or why there is none."""

    threshold: float | None
    """Log10 of the mean top activation that divides the clusters; None where there is one cluster."""
    reason: str | None
    """Why there is no ULD cluster."""
    is_uld: NDArray[np.bool_]
    """`(d_sae,)`: alive features below the threshold."""
    mixture: Mixture | None
    """Fitted to log10 of the mean top activation."""
    bic_gain: float | None
    """BIC of one Gaussian less that of two."""
    dip: float | None
    """How far the density falls at the threshold, against the lower peak: 0 not at all, 1 to nothing."""


def find_uld_cluster(mean_top: NDArray[np.floating[Any]]) -> UldSplit:
    """Part the alive features into two clusters by log10 of their mean top activation, if the data say so.

    Parameters
    ----------
    mean_top
        `(d_sae,)`: mean top activation; NaN for dead features, which are in no cluster.
    """
    alive = np.flatnonzero(np.isfinite(mean_top) & (mean_top > 0))
    points = np.log10(mean_top[alive].astype(np.float64))

    def none(reason: str, **found: Any) -> UldSplit:
        empty = {"mixture": None, "bic_gain": None, "dip": None} | found
        return UldSplit(threshold=None, reason=reason, is_uld=np.zeros(len(mean_top), bool), **empty)

    if len(points) < MIN_FEATURES:
        return none(f"{len(points)} alive features are too few to part ({MIN_FEATURES} are needed)")
    if np.ptp(points) < 1e-6:  # float32 rounding of equal values
        return none("every feature has the same mean top activation")
    mixture = fit_mixture(points)
    one = one_gaussian_log_likelihood(points)
    bic_gain = 2 * (mixture.log_likelihood - one) - 3 * float(np.log(len(points)))  # 5 parameters against 2
    if bic_gain < MIN_BIC_GAIN:
        return none("one Gaussian describes the mean top activations as well", mixture=mixture, bic_gain=bic_gain)
    valley = mixture.valley
    if valley is None:
        return none("the fitted density has a single peak", mixture=mixture, bic_gain=bic_gain)
    dip, dip_error = empirical_dip(points, mixture, valley)
    if dip - dip_error < MIN_DIP:
        reason = "the density of mean top activations has no valley between the fitted components"
        return none(reason, mixture=mixture, bic_gain=bic_gain, dip=dip)
    is_uld = np.zeros(len(mean_top), bool)
    is_uld[alive[points < valley]] = True
    smaller = min(int(is_uld.sum()), len(alive) - int(is_uld.sum()))
    if smaller < MIN_CLUSTER:
        reason = f"the smaller cluster would hold {smaller} features ({MIN_CLUSTER} are needed)"
        return none(reason, mixture=mixture, bic_gain=bic_gain, dip=dip)
    return UldSplit(threshold=valley, reason=None, is_uld=is_uld, mixture=mixture, bic_gain=bic_gain, dip=dip)


@dataclass(frozen=True, kw_only=True)
class Coherence:
    """Mean pairwise cosines of encoder vectors, of the ULD cluster and of the other alive features."""

    within: float
    """Of pairs in the cluster; NaN below two vectors."""
    rest: float
    """Of pairs outside it."""
    between: float
    """Of one in it and one outside."""
    chance_sd: float
    """Standard deviation of `within` for as many directions drawn evenly from the sphere, whose mean is 0."""
    chance_p99: float
    """99th percentile of the same."""
    matched_chance_sd: float
    """As `chance_sd`, of directions with the covariance of the activations; NaN where that is not known."""
    matched_chance_p99: float
    """99th percentile of the same."""


def coherence(
    encoder: NDArray[np.floating[Any]],
    is_uld: NDArray[np.bool_],
    is_alive: NDArray[np.bool_],
    input_variances: NDArray[np.floating[Any]] | None = None,
) -> Coherence:
    """Mean pairwise cosines, in time linear in the features: the sum over pairs is that of the summed unit vectors.

    Parameters
    ----------
    encoder
        `(d_sae, d_in)`: one encoder vector a row.
    is_uld, is_alive
        `(d_sae,)`.
    input_variances
        `(d_in,)`: eigenvalues of the covariance of what is encoded, for the chance level of directions shaped like it.
    """
    sums, counts = [], []
    for of in (is_uld & is_alive, is_alive & ~is_uld):
        vectors = encoder[of].astype(np.float64)
        norm = np.linalg.norm(vectors, axis=1, keepdims=True)
        unit = vectors[norm[:, 0] > 0] / norm[norm[:, 0] > 0]
        sums.append(unit.sum(axis=0))
        counts.append(len(unit))

    def within(total: NDArray[np.float64], n: int) -> float:
        return float((total @ total - n) / (n * (n - 1))) if n > 1 else float("nan")

    n, d_in = counts[0], encoder.shape[1]
    even = isotropic_chance(n, d_in)
    matched = None if input_variances is None else matched_chance(n, input_variances)
    return Coherence(
        within=within(sums[0], counts[0]),
        rest=within(sums[1], counts[1]),
        between=float(sums[0] @ sums[1] / (counts[0] * counts[1])) if min(counts) > 0 else float("nan"),
        chance_sd=even.sd,
        chance_p99=even.p99,
        matched_chance_sd=float("nan") if matched is None else matched.sd,
        matched_chance_p99=float("nan") if matched is None else matched.p99,
    )


@dataclass(frozen=True, kw_only=True)
class UldSummary:
    """Size and weight of a ULD cluster."""

    n_features: int
    threshold: float
    """Mean top activation that divides the clusters."""
    share_of_alive: float
    share_of_firings: float
    """Of all activations > 0, counted."""
    share_of_mass: float
    """Of all activations, summed."""
    median_density: float
    median_density_rest: float


def summarise_uld(
    split: UldSplit, n_active: NDArray[Any], activation_sum: NDArray[np.float64], n_rows: int
) -> UldSummary | None:
    """Size of the ULD cluster and its share of what fires; None where there is none."""
    if split.threshold is None:
        return None
    rest = (n_active > 0) & ~split.is_uld
    return UldSummary(
        n_features=int(split.is_uld.sum()),
        threshold=float(10**split.threshold),
        share_of_alive=float(split.is_uld.sum() / (n_active > 0).sum()),
        share_of_firings=float(n_active[split.is_uld].sum() / n_active.sum()),
        share_of_mass=float(activation_sum[split.is_uld].sum() / activation_sum.sum()),
        median_density=float(np.median(n_active[split.is_uld]) / n_rows),
        median_density_rest=float(np.median(n_active[rest]) / n_rows),
    )

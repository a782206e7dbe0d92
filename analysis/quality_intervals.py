"""Intervals of reconstruction quality and mean L0, by resampling the sections of rows that `encode` summed over.

A section holds consecutive rows, of whole images: of a store in random order a random sample, so that sections are as
good as independent, while the patches of one image are not. In a store that is in its source's order, neighbours that
are alike stay together, which makes intervals as wide as they must be.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bootstrap import MIN_UNITS, described, interval, resampled_sums
from .features import SPLIT_CODES, FeatureActivations
from .quality import SUMS

_ROWS_AT_ONCE = 1 << 20


def quality_intervals(features: FeatureActivations, *, seed: int = 0) -> dict[str, Any]:
    """Intervals of the quality numbers and the mean L0 of each split with rows, as JSON holds them.

    A split of fewer than 20 sections has None for each: a few rows, or features that an earlier version encoded.
    """
    return intervals_of_sections(features.sections, _l0_of_sections(features), seed=seed)


def intervals_of_sections(sections: dict[str, NDArray[Any]], l0: NDArray[np.int64], *, seed: int = 0) -> dict[str, Any]:
    """As `quality_intervals`, of the arrays of `sections/` and the activations > 0 on the rows of each."""
    splits = {}
    for name, codes in SPLIT_CODES.items():
        of = np.isin(sections["split"], codes)
        if of.any():
            splits[name] = {"n_sections": int(of.sum()), **_intervals(sections, l0, np.flatnonzero(of), seed)}
    return {**described(seed=seed), "resampled": "sections of rows", "splits": splits}


def _intervals(
    sections: dict[str, NDArray[Any]], l0: NDArray[np.int64], of: NDArray[np.intp], seed: int
) -> dict[str, tuple[float, float] | None]:
    names = ("mse", "normalized_mse", "explained_variance", "explained_energy", "l1", "l0_mean")
    if len(of) < MIN_UNITS:
        return dict.fromkeys(names)
    n = sections["n"][of].astype(np.float64)
    sums = {name: sections[name][of] for name in SUMS}
    d_in = sections["x_sum"].shape[1]
    # Of a resampled set SST = sum of (scatter + n ||m||^2) - ||sum of n m||^2 / sum of n, with m a section's mean
    # less that of all: small numbers, so that nothing cancels.
    shift = sections["x_sum"][of] - n[:, None] * (sections["x_sum"][of].sum(axis=0) / n.sum())  # (sections, d_in): n m
    around = sums["scatter"] + np.square(shift).sum(axis=1) / n
    columns = [n, sums["n_nonzero"], sums["sse"], sums["sse_over_norm"], sums["sse_over_energy"], sums["l1"], l0[of]]
    drawn = resampled_sums(np.column_stack([*columns, around, shift]), seed=seed)
    rows, nonzero, sse, over_norm, over_energy, l1, active, scatter = drawn[:, :8].T
    sst = scatter - np.square(drawn[:, 8:]).sum(axis=1) / rows
    with np.errstate(divide="ignore", invalid="ignore"):
        replicates = (
            sse / (rows * d_in),
            over_norm / (nonzero * d_in),
            np.where(sst > 0, 1 - sse / sst, np.nan),
            1 - over_energy / nonzero,
            l1 / rows,
            active / rows,
        )
    return {name: interval(values) for name, values in zip(names, replicates, strict=True)}


def _l0_of_sections(features: FeatureActivations) -> NDArray[np.int64]:
    """Activations > 0 on the rows of each section."""
    sections = features.sections
    start, stop = (sections[name].astype(np.int64) for name in ("row_start", "row_stop"))
    total = np.zeros(len(start), np.int64)
    for first in range(0, features.n_rows, _ROWS_AT_ONCE):
        last = min(first + _ROWS_AT_ONCE, features.n_rows)
        l0, split = features.l0(first, last), features.row_numbers("split", first, last)
        for i in np.flatnonzero((start < last) & (stop > first)).tolist():
            rows = slice(max(0, int(start[i]) - first), int(stop[i]) - first)
            total[i] += int(l0[rows][split[rows] == sections["split"][i]].sum())
    return total

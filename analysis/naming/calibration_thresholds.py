"""What thresholds of "named" let pass: names that are right, and names that are there by chance."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..description import table_lines
from ..significance import adjusted_p_values
from .best_phrases import NamedFeatures
from .known_truth import LENIENT, FeatureTruth
from .names_file import NAMED
from .options import NameOptions
from .scores import statuses
from .shares import Share, share_of, shown

DEALT, UNTRAINED = "dealt out", "untrained"
"""Names that pass by chance: right ones given to other features, and those of features of an untrained tower."""
MOST_BY_CHANCE = 0.05
"""Share of such names that good thresholds let pass at most."""
_AREAS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8)
_ZS = (0.0, 1.0, 2.0)


@dataclass(frozen=True)
class Thresholds:
    """What one pair of thresholds lets pass."""

    min_auroc: float
    min_z: float
    named: Share
    """Of the features that know a phrase."""
    right: Share
    """Of the named ones."""
    nearly: Share
    by_chance: dict[str, float]
    """Share of names by chance that pass, by where they come from."""

    @property
    def is_safe(self) -> bool:
        """Whether few names by chance pass."""
        return all(share <= MOST_BY_CHANCE for share in self.by_chance.values())


def is_named(found: NamedFeatures, *, min_auroc: float, min_z: float, fdr: float) -> NDArray[np.bool_]:
    """Which names pass, `(n,)`."""
    q = adjusted_p_values(found.p_value)
    return statuses(found.auroc, found.ablation_z, q, min_auroc=min_auroc, min_z=min_z, fdr=fdr) == NAMED


def compare_thresholds(
    truth: FeatureTruth, found: NamedFeatures, by_chance: Mapping[str, NamedFeatures], options: NameOptions
) -> list[Thresholds]:
    """What each pair of some thresholds lets pass.

    Parameters
    ----------
    found
        Names whose truth is known.
    by_chance
        Names that say nothing, by where they come from.
    """
    right, nearly = (truth.is_right(found.phrases[:, 0], share=share) for share in (1.0, LENIENT))
    rows = []
    for area in _AREAS:
        for z in _ZS:
            passed = is_named(found, min_auroc=area, min_z=z, fdr=options.fdr)
            wrongly = {}
            for name, each in by_chance.items():
                was_tested = ~np.isnan(each.auroc)
                passes = is_named(each, min_auroc=area, min_z=z, fdr=options.fdr)[was_tested]
                wrongly[name] = float(passes.mean()) if len(passes) else 0.0
            rows.append(
                Thresholds(area, z, share_of(passed), share_of(right[passed]), share_of(nearly[passed]), wrongly)
            )
    return rows


def loosest(rows: list[Thresholds]) -> Thresholds | None:
    """The thresholds that name most features while few names by chance pass; None where there are none."""
    safe = [row for row in rows if row.is_safe]
    return max(safe, key=lambda row: (row.named.value, -row.min_z), default=None)


def thresholds_table(rows: list[Thresholds]) -> list[str]:
    """A line for each pair of thresholds, and which are the loosest that are safe."""
    names = list(rows[0].by_chance)
    header = ["AUROC, z >=", "named", "right", "right or nearly", *names]
    lines = table_lines(
        header,
        [
            [
                f"{row.min_auroc:.2f}, {row.min_z:g}",
                f"{100 * row.named.value:.0f}",
                shown(row.right),
                shown(row.nearly),
                *(f"{100 * row.by_chance[name]:.1f}" for name in names),
            ]
            for row in rows
        ],
    )
    best = loosest(rows)
    if best is None:
        return [*lines, f"None of them keeps names by chance to {MOST_BY_CHANCE:.0%}."]
    said = f"{best.min_auroc:g} and {best.min_z:g}"
    return [*lines, f"The loosest that keep names by chance to {MOST_BY_CHANCE:.0%}: {said}"]

"""The features that fire on one picture, each with pictures on which it fires most."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .runs import ExploredRun

PICTURES = 4
"""Pictures beside each feature."""


@dataclass(frozen=True)
class TopPicture:
    """A picture on which a feature fires."""

    row: int
    value: float
    name: str
    """Of its label."""


@dataclass(frozen=True)
class FiringFeature:
    """A feature > 0 on a picture."""

    feature: int
    value: float
    share: float
    """Of the largest value on the picture."""
    name: str
    """Empty where the run's features have no names."""
    density: float
    """Share of all rows on which it is > 0."""
    is_uld: bool
    is_sensitive: bool
    images: list[TopPicture]
    """On which it is largest."""


def firing_features(
    run: ExploredRun, index: NDArray[np.int64], value: NDArray[np.float32], start: int, stop: int
) -> list[FiringFeature]:
    """The firing features of the places `[start, stop)` in the order of falling value.

    Parameters
    ----------
    index, value
        `(n,)`, as `ExploredRun.code` gives them.
    """
    if not len(index):
        return []
    statistics, names, sensitive = run.stored.statistics, run.names.now(), run.annotations.sensitive
    largest = float(value[0])
    chosen = index[start:stop]
    rows, values, labels = (
        array[chosen, :PICTURES].tolist() for array in (statistics.top_row, statistics.top_value, statistics.top_label)
    )
    found = []
    for place, feature in enumerate(chosen.tolist()):
        pictures = zip(rows[place], values[place], labels[place], strict=True)
        found.append(
            FiringFeature(
                feature=feature,
                value=float(value[start + place]),
                share=float(value[start + place]) / largest,
                name=names.of(feature),
                density=float(run.density[feature]),
                is_uld=bool(run.is_uld[feature]),
                is_sensitive=feature in sensitive,
                images=[TopPicture(row, of, run.label_name(label)) for row, of, label in pictures if row >= 0],
            )
        )
    return found


@dataclass(frozen=True)
class Counts:
    """L0 of a code: features > 0, above 0.1, > 0 in the post's dense set, and > 0 outside the ULD cluster."""

    all: int
    above: int
    dense: int
    without_uld: int | None
    """None where the run has no ULD cluster."""


ABOVE = 0.1


def counts(run: ExploredRun, index: NDArray[np.int64], value: NDArray[np.float32]) -> Counts:
    """L0 of a code in four ways."""
    uld = run.is_uld
    without = None if run.summary["uld"] is None else int((~uld[index]).sum())
    dense = int(run.listing.of_set("post")[index].sum())
    return Counts(len(index), int((value > np.float32(ABOVE)).sum()), dense, without)

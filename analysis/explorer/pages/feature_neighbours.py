"""The features beside a feature: with similar directions, and those that fire on the same rows."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..runs import ExploredRun

_THUMBNAILS = 4


@dataclass(frozen=True)
class Neighbour:
    """Another feature, with what it has in common with this one; numbers of the other kind are None."""

    feature: int
    name: str
    """Empty for none."""
    is_sensitive: bool
    rows: list[int]
    """Up to four on which it is largest."""
    cosine: float | None = None
    jaccard: float | None = None
    """Rows on which both fire over rows on which either does."""
    pmi: float | None = None
    """log of how many times as often both fire as they would independently, in nats."""
    n_both: int | None = None
    """Rows on which both fire."""


def nearest_by(run: ExploredRun, feature: int, side: str) -> list[Neighbour]:
    """The features whose rows of W_dec (`decoder`) or columns of W_enc (`encoder`) are nearest to its own by cosine."""
    found, cosine = (run.array(f"nearest/{side}_{what}")[feature] for what in ("feature", "cosine"))
    is_one = found >= 0
    rows, names, sensitive = _rows(run, found[is_one]), run.names.now(), run.annotations.sensitive
    return [
        Neighbour(other, names.of(other), other in sensitive, own, cosine=value)
        for other, value, own in zip(found[is_one].tolist(), cosine[is_one].tolist(), rows, strict=True)
    ]


def partners(run: ExploredRun, feature: int) -> list[Neighbour]:
    """The features that fire on the same rows, by falling Jaccard index."""
    found, *numbers = (run.array(f"cofiring/{what}")[feature] for what in ("feature", "jaccard", "pmi", "n_both"))
    is_one = found >= 0
    rows, names, sensitive = _rows(run, found[is_one]), run.names.now(), run.annotations.sensitive
    columns = (values[is_one].tolist() for values in (found, *numbers))
    return [
        Neighbour(other, names.of(other), other in sensitive, own, jaccard=jaccard, pmi=pmi, n_both=n_both)
        for (other, jaccard, pmi, n_both), own in zip(zip(*columns, strict=True), rows, strict=True)
    ]


def _rows(run: ExploredRun, features: NDArray[np.integer]) -> list[list[int]]:
    top = run.stored.statistics.top_row[features, :_THUMBNAILS].tolist()
    return [[row for row in rows if row >= 0] for rows in top]

"""The label that each feature takes most of: the largest share of its activation."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .runs import ExploredRun

_PAIRS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class TopLabels:
    """By feature."""

    label: NDArray[np.int64]
    """`(d_sae,)`, -1 where no labelled row was counted; of equal shares the lowest label."""
    share: NDArray[np.float64]
    """`(d_sae,)` of the summed activations on labelled rows that fall on that label; NaN where there are none."""
    is_of_all_firings: bool
    """Over all firing rows; else over the top rows, where no label table was stored."""


def top_labels(run: "ExploredRun") -> TopLabels:
    """Of a run's features, from its label table or else from its top rows."""
    if run.has("labels"):
        indptr, label, total = (run.array(f"labels/{name}") for name in ("indptr", "label", "sum"))
        return TopLabels(*_of_table(indptr, label, total, run.d_sae), True)
    statistics = run.stored.statistics
    return TopLabels(*of_top_rows(statistics.top_label, statistics.top_value), False)


def _of_table(
    indptr: NDArray[np.uint64], label: NDArray[np.int32], total: NDArray[np.float64], d_sae: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """From pairs of a feature and a label; some features at a time, so that what is held does not grow with them."""
    edges = indptr.astype(np.int64)
    found, share = np.full(d_sae, -1, np.int64), np.full(d_sae, np.nan)
    first = 0
    while first < d_sae:
        stop = max(first + 1, int(np.searchsorted(edges, edges[first] + _PAIRS_AT_ONCE, side="right")) - 1)
        stop = min(stop, d_sae)
        low, high = int(edges[first]), int(edges[stop])
        n = np.diff(edges[first : stop + 1])
        features = first + np.flatnonzero(n)
        if len(features):
            sums, labels = total[low:high], label[low:high]
            starts = edges[features] - low
            best = np.maximum.reduceat(sums, starts)
            place = np.where(sums == np.repeat(best, n[n > 0]), np.arange(high - low), high - low)
            found[features] = labels[np.minimum.reduceat(place, starts)]
            share[features] = best / np.add.reduceat(sums, starts)
        first = stop
    return found, share


def of_top_rows(label: NDArray[np.int32], value: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """From the top rows of each feature: `(d_sae, k)` labels, -1 for none, and activations."""
    weights = np.where(label >= 0, value, 0).astype(np.float64)
    of_slot = np.stack([(weights * (label == label[:, [i]])).sum(axis=1) for i in range(label.shape[1])], axis=1)
    of_slot[label < 0] = -1
    best = of_slot.max(axis=1)
    found = np.where(of_slot == best[:, None], label, np.iinfo(np.int32).max).min(axis=1).astype(np.int64)
    total = weights.sum(axis=1)
    has_any = total > 0
    return np.where(has_any, found, -1), np.where(has_any, best / np.where(has_any, total, 1), np.nan)

"""What all firing rows of a feature tell: samples by quantile, its labels; one Dask task a range of features."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..progress import Reporter
from .features import FeatureActivations, open_features
from .label_counts import LabelCounts, count_labels
from .samples import entries_at, sample_ranks
from .scheduler import Compute
from .split_entries import entries_of_split, row_numbers_at

_MOST_FEATURES = 1 << 14  # a task gives back at most their samples: 10 MB at 8 rows a group

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class FiringsSpec:
    """What is wanted of the firing rows."""

    split: str
    samples: int
    """Rows of each group of samples; 0 leaves them out."""
    seed: int
    """Of the random samples."""
    min_labelled: int
    """Label entropy is undefined below this many firing labelled rows."""


@dataclass(frozen=True)
class Firings:
    """Of a range of features."""

    first: int
    """First feature."""
    sample_row: NDArray[np.int64]
    """`(n_features, 5, samples)`: rows of the store, -1 unfilled; the groups are `SAMPLE_GROUPS`."""
    sample_value: NDArray[np.float32]
    """The same shape: the activations there, falling; 0 unfilled."""
    sample_label: NDArray[np.int32]
    """The same shape: labels of those rows; -1 none, or unfilled."""
    labels: LabelCounts


def firings(
    features: FeatureActivations, spec: FiringsSpec, *, task_bytes: int, compute: Compute, reporter: Reporter
) -> Iterator[Firings]:
    """Samples and labels of every feature, a range of features at a time, in order."""
    ranges = features.feature_ranges(task_bytes, _MOST_FEATURES)
    path = str(features.path.absolute())
    with reporter.task("firing rows", features.d_sae, "features") as task:
        for found in compute.each(partial(firings_of_range, path, spec), ranges):
            task.advance(len(found.sample_row))
            yield found


def firings_of_range(features_path: str, spec: FiringsSpec, first: int, stop: int) -> Firings:
    """Samples and labels of the features `[first, stop)`."""
    features = open_features(features_path)
    entries = entries_of_split(features, first, stop, spec.split)
    labels = row_numbers_at(features, "label", entries.row)
    ranks = sample_ranks(np.diff(entries.indptr), spec.samples, first_feature=first, seed=spec.seed)
    at = entries_at(entries, ranks)
    filled = at >= 0

    def of_entries(values: Array, empty: float, dtype: Any) -> Array:
        out = np.full(at.shape, empty, dtype)
        out[filled] = values[at[filled]]
        return out

    return Firings(
        first,
        of_entries(entries.row, -1, np.int64),
        of_entries(entries.value, 0, np.float32),
        of_entries(labels, -1, np.int32),
        count_labels(entries, labels, min_labelled=spec.min_labelled),
    )

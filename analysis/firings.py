"""What all firing rows of a feature tell: samples by quantile, its labels; one Dask task a range of features."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..progress import Reporter
from .exact_sums import SumUnits
from .features import FeatureActivations, open_features
from .label_counts import LabelCounts, LabelSums
from .samples import entries_at, random_entries, sample_ranks
from .scheduler import Compute
from .split_entries import SplitEntries, entries_of_split, is_held_whole, pieces_of_split, row_numbers_at

_WORKING_COPIES = 4  # sorting takes ten times the bytes of the entries
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
    features: FeatureActivations,
    spec: FiringsSpec,
    units: SumUnits,
    *,
    task_bytes: int,
    compute: Compute,
    reporter: Reporter,
) -> Iterator[Firings]:
    """Samples and labels of every feature, a range of features at a time, in order; `units` are theirs."""
    ranges = features.feature_ranges(task_bytes // _WORKING_COPIES, _MOST_FEATURES)
    path = str(features.path.absolute())
    with reporter.task("firing rows", features.d_sae, "features") as task:
        for found in compute.each(
            partial(firings_of_range, path, spec), ((units.part(*some), *some) for some in ranges)
        ):
            task.advance(len(found.sample_row))
            yield found


def firings_of_range(features_path: str, spec: FiringsSpec, units: SumUnits, first: int, stop: int) -> Firings:
    """Samples and labels of the features `[first, stop)`."""
    features = open_features(features_path)
    if is_held_whole(features, first, stop):
        entries = entries_of_split(features, first, stop, spec.split)
        labels = row_numbers_at(features, "label", entries.row)
        around = entries_at(entries, sample_ranks(np.diff(entries.indptr), spec.samples))
        at = np.concatenate((around, random_entries(entries, spec.samples, spec.seed)[:, None]), axis=1)
        counts = LabelSums.of(entries, labels, units).finish(units, min_labelled=spec.min_labelled)
        return _firings(first, at, entries.row, entries.value, labels, counts)
    return _firings_of_many(features, spec, units, first)


def _firings(first: int, at: Array, row: Array, value: Array, label: Array, labels: LabelCounts) -> Firings:
    """Samples `at` (n_features, 5, samples) of the entries given, -1 unfilled."""
    filled = at >= 0

    def sampled(values: Array, empty: float, dtype: Any) -> Array:
        out = np.full(at.shape, empty, dtype)
        out[filled] = values[at[filled]]
        return out

    return Firings(
        first, sampled(row, -1, np.int64), sampled(value, 0, np.float32), sampled(label, -1, np.int32), labels
    )


def _firings_of_many(features: FeatureActivations, spec: FiringsSpec, units: SumUnits, feature: int) -> Firings:
    """The same of one feature with too many firing rows to hold: read twice, a few megabytes at a time.

    The first pass counts values by the upper half of their bits, which makes cells some 2^-7 of the value wide; the
    second keeps the entries of the cells in which the samples lie, a tenth of all where they are spread evenly.
    """
    cells, sums, drawn = np.zeros(1 << 15, np.int64), LabelSums.zero(1), _joined([], feature)
    for piece in pieces_of_split(features, feature, feature + 1, spec.split):
        cells += np.bincount(_cell(piece.value), minlength=1 << 15)
        sums = LabelSums.union([sums, LabelSums.of(piece, row_numbers_at(features, "label", piece.row), units)])
        some = random_entries(piece, spec.samples, spec.seed)[0]
        drawn = _joined([drawn, _at(piece, np.sort(some[some >= 0]))], feature)
    ranks = sample_ranks(cells.sum(keepdims=True), spec.samples)
    before = np.cumsum(cells[::-1])[::-1] - cells  # entries in higher cells
    cell_of_rank = (1 << 15) - 1 - np.searchsorted(np.cumsum(cells[::-1]), ranks.clip(min=0), side="right")
    is_wanted = np.zeros(1 << 15, bool)
    is_wanted[cell_of_rank[ranks >= 0]] = True
    held = _joined(
        [
            piece.keep(is_wanted[_cell(piece.value)])
            for piece in pieces_of_split(features, feature, feature + 1, spec.split)
        ],
        feature,
    )
    # a rank among all, less the entries of higher cells that were not kept
    missing = before - (np.cumsum((cells * is_wanted)[::-1])[::-1] - cells * is_wanted)
    around = entries_at(held, np.where(ranks >= 0, ranks - missing[cell_of_rank], -1))
    chosen = random_entries(drawn, spec.samples, spec.seed)
    at = np.concatenate((around, np.where(chosen >= 0, len(held.row) + chosen, -1)[:, None]), axis=1)
    both = _joined([held, drawn], feature)
    labels = np.full(len(both.row), -1, np.int32)
    labels[at[at >= 0]] = row_numbers_at(features, "label", both.row[at[at >= 0]])
    return _firings(feature, at, both.row, both.value, labels, sums.finish(units, min_labelled=spec.min_labelled))


def _at(entries: SplitEntries, places: NDArray[np.int64]) -> SplitEntries:
    """Some entries of one feature."""
    return SplitEntries(entries.first, np.array([0, len(places)]), entries.row[places], entries.value[places])


def _joined(parts: list[SplitEntries], feature: int) -> SplitEntries:
    """The entries of one feature, part after part."""
    row = np.concatenate([np.zeros(0, np.int64), *(part.row for part in parts)])
    value = np.concatenate([np.zeros(0, np.float32), *(part.value for part in parts)])
    return SplitEntries(feature, np.array([0, len(row)]), row, value)


def _cell(value: NDArray[np.float32]) -> NDArray[np.int64]:
    return (value.view(np.uint32) >> np.uint32(16)).astype(np.int64)

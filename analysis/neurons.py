"""The rows on which each MLP neuron is largest, and the label entropy of those: what a neuron means, as of a feature.

Shapes: n rows, m neurons, u units (m, or 2 m where both signs count), k largest rows of each.

A neuron's activation is what the store holds of it (`mlp_act`: after the non-linearity), or the projection of a row of
the residual stream, less the mean row, on the neuron's unit output vector. A unit fires where it is above 0: a neuron
itself, or with both signs its negative too, as unit m + j. From there every number is a feature's: `FeatureTotals`
over the same rows, label entropy over the same k rows with the same minimum.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..progress import Reporter
from ..store.errors import StoreError
from ..store.format import Site
from ..store.reader import ActivationStore, open_store
from .features import SPLIT_CODES, open_features
from .scheduler import Compute
from .statistics import FeatureStatistics, reduce_totals
from .totals import FeatureTotals

_VALUES_AT_ONCE = 1 << 21  # activations of a block of rows: 8 MB, and some 60 bytes for each that fires


@dataclass(frozen=True, kw_only=True)
class NeuronSource:
    """Where the activations of neurons are, and the rows that count. Travels to Dask's workers as it is."""

    features_path: str
    """Of the features whose rows these are."""
    split: str
    store: str
    """Of the vectors that are read."""
    n_parts: int
    site: str
    both_signs: bool
    vectors: NDArray[np.float32] | None = None
    """`(m, d)` unit output vectors on which the rows are projected; None where the rows are the neurons."""
    mean: NDArray[np.float32] | None = None
    """`(d,)`: subtracted before, where there are vectors."""
    images_of: tuple[str, int] | None = None
    """Store, and its parts, whose rows must be of the same images; None where it is the store that is read."""

    def units(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Activations of the units `(n, u)` of rows `(n, d)`; those that do not fire are <= 0."""
        values: NDArray[Any] = rows
        if self.vectors is not None:
            assert self.mean is not None
            values = (rows - self.mean) @ self.vectors.T
        return np.concatenate((values, -values), axis=1) if self.both_signs else values


def neuron_statistics(
    source: NeuronSource,
    n_units: int,
    *,
    k: int,
    min_labelled: int,
    task_bytes: int,
    compute: Compute,
    reporter: Reporter,
) -> FeatureStatistics:
    """The per-feature numbers of neurons in place of features, over the rows of a split, by Dask.

    Raises
    ------
    StoreError
        When a row of the store is of another image than the same row of the features.
    """
    from dask import delayed

    features = open_features(source.features_path)
    start, stop = features.row_range(source.split)
    array = open_store(source.store, n_parts=source.n_parts).activations(Site.parse(source.site))
    step = max(1, task_bytes // array.row_bytes)
    shared = delayed(source)  # once in the graph, not once a task: the vectors alone are 16 MB of ViT-L/14
    leaves = [
        delayed(_range_totals, pure=False)(shared, first, min(first + step, stop), n_units, k)
        for first in range(start, stop, step)
    ]
    reporter.say(f"counting {n_units:,} neurons over {stop - start:,} rows on {compute.description}")
    return FeatureStatistics.of_totals(reduce_totals(leaves, compute, reporter), min_labelled=min_labelled)


def _range_totals(source: NeuronSource, start: int, stop: int, n_units: int, k: int) -> FeatureTotals:
    features = open_features(source.features_path)
    store = open_store(source.store, n_parts=source.n_parts)
    array = store.activations(Site.parse(source.site))
    totals = FeatureTotals.zero(n_units, k)
    _require_same_images(source, store, start, stop)
    step = max(1, _VALUES_AT_ONCE // n_units)
    for first in range(start, stop, step):
        last = min(first + step, stop)
        valid = np.isin(features.row_numbers("split", first, last), SPLIT_CODES[source.split])
        rows = array.tensor(array.read(first, last)).float().numpy()
        rows[~valid] = 0  # an unreadable image's are NaN
        _add_rows(totals, first, source.units(rows), features.row_numbers("label", first, last), valid)
    return totals


def _add_rows(
    totals: FeatureTotals,
    first: int,
    values: NDArray[np.float32],
    labels: NDArray[np.int32],
    valid: NDArray[np.bool_],
) -> None:
    fires = (values > 0) & valid[:, None]
    row, unit = np.nonzero(fires)
    indptr = np.concatenate(([0], np.cumsum(np.bincount(row, minlength=len(values)))))
    totals.add(first, indptr, unit, values[fires], labels=labels, valid=valid)


def _require_same_images(source: NeuronSource, store: ActivationStore, start: int, stop: int) -> None:
    if source.images_of is None:
        return
    place, n_parts = source.images_of
    other = open_store(place, n_parts=n_parts)
    if not np.array_equal(other.images(start, stop), store.images(start, stop)):
        raise StoreError(_other_order(store.url, other.url))


def require_same_rows(neurons: ActivationStore, rows: ActivationStore) -> None:
    """Raise `StoreError` where a store of neurons is not of the same tower, images and order as that of the features.

    What it cannot see here, the image of each row, is compared as the rows are read.
    """
    what = f"{neurons.url} does not hold the neurons of {rows.url}"
    rows.provenance.require_same_space(neurons.provenance, what)
    images = [[part.provenance.keys_sha256 for part in store.parts] for store in (rows, neurons)]
    if images[0] != images[1]:
        raise StoreError(f"{what}: it is of other images (keys_sha256 differs). Harvest the same IMAGES.")
    if neurons.n_rows != rows.n_rows or neurons.tokens_per_image != rows.tokens_per_image:
        raise StoreError(f"{what}: it has {neurons.n_rows:,} rows, not {rows.n_rows:,}. Harvest the same --token.")
    order = [[(p.row_order, p.provenance.seed) for p in store.parts] for store in (rows, neurons)]
    if order[0] != order[1]:
        raise StoreError(_other_order(neurons.url, rows.url))


def _other_order(neurons: str, rows: str) -> str:
    return (
        f"{neurons} holds its images in another order than {rows}: harvest it with the same --order, --seed and "
        "--rows-per-chunk."
    )

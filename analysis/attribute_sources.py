"""What known attributes are sought in: stored features, coordinates of a store, random directions.

Each gives activations of n images. Where an image has several rows (its patches), its activation is the largest among
them. Coordinates are standardised over the rows used, and both signs of each count as a feature.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .attributes import Entries, SparseActivations
from .features import FeatureActivations

if TYPE_CHECKING:
    from ..store.reader import ActivationArray

_ENTRIES_AT_ONCE = 4_000_000
_ROWS_AT_ONCE = 1024
_ROW_COUNTS_AT_ONCE = 1 << 20
RANDOM, NEURONS = "random dictionary, same sparsity", "the tower's neurons, both signs"


@dataclass(frozen=True)
class MatchedRows:
    """The rows of a store that show n images."""

    rows: NDArray[np.int64]
    """`(m,)`, rising."""
    image: NDArray[np.int64]
    """`(m,)`: which of the n images each shows."""
    n_images: int


class StoredFeatures:
    """The stored activations of a run on matched rows, read some features at a time."""

    def __init__(self, features: FeatureActivations, matched: MatchedRows) -> None:
        self._features, self._matched = features, matched
        self._indptr = features.feature_starts()

    @property
    def n_rows(self) -> int:
        """Images."""
        return self._matched.n_images

    @property
    def n_features(self) -> int:
        """Features of the SAE."""
        return self._features.d_sae

    def blocks(self) -> Iterator[Entries]:
        """Every activation, some millions at a time."""
        first = 0
        while first < self.n_features:
            beyond = self._indptr[first] + _ENTRIES_AT_ONCE
            last = max(first + 1, int(np.searchsorted(self._indptr, beyond, side="right")) - 1)
            yield self._read(first, last)
            first = last

    def of_features(self, features: NDArray[np.int64]) -> Entries:
        """Every activation of some features."""
        found = [self._read(feature, feature + 1) for feature in features.tolist()]
        if not found:
            return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32)
        row, index, value = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return row, index, value

    def mean_l0(self) -> float:
        """Mean number of features on one of the rows."""
        rows, n = self._matched.rows, 0
        for first in range(0, self._features.n_rows, _ROW_COUNTS_AT_ONCE):
            last = min(first + _ROW_COUNTS_AT_ONCE, self._features.n_rows)
            here = rows[np.searchsorted(rows, first) : np.searchsorted(rows, last)]
            n += int(self._features.row_counts(first, last)[here - first].sum())
        return n / max(1, len(rows))

    def _read(self, first: int, last: int) -> Entries:
        indptr, row, value = self._features.features(first, last)
        index = np.repeat(np.arange(first, last), np.diff(indptr))
        place = np.searchsorted(self._matched.rows, row)
        kept = place < len(self._matched.rows)
        kept[kept] = self._matched.rows[place[kept]] == row[kept]
        return _largest_of_image(self._matched.image[place[kept]], index[kept], value[kept])


class Coordinates:
    """The coordinates of a store's vectors on matched rows, standardised; 2 i and 2 i + 1 are the signs of number i.

    Held in the stored dtype: two bytes a number of a float16 store.
    """

    def __init__(self, activations: "ActivationArray", matched: MatchedRows) -> None:
        self._activations, self._matched = activations, matched
        self._stored = read_rows(activations, matched.rows)
        self.mean, self.deviation = moments(activations, self._stored)

    @property
    def n_rows(self) -> int:
        """Images."""
        return self._matched.n_images

    @property
    def n_features(self) -> int:
        """Both signs of every coordinate."""
        return 2 * self._stored.shape[1]

    def blocks(self) -> Iterator[Entries]:
        """Every activation, some coordinates at a time."""
        step = max(1, _ENTRIES_AT_ONCE // max(1, len(self._stored)))
        for first in range(0, self._stored.shape[1], step):
            yield self._read(np.arange(first, min(first + step, self._stored.shape[1])))

    def of_features(self, features: NDArray[np.int64]) -> Entries:
        """Every activation of some features."""
        row, index, value = self._read(np.unique(features // 2))
        kept = np.isin(index, features)
        return row[kept], index[kept], value[kept]

    def _read(self, coordinates: NDArray[np.int64]) -> Entries:
        columns = np.ascontiguousarray(self._stored[:, coordinates])
        x = self._activations.tensor(columns).double().numpy()
        z = ((x - self.mean[coordinates]) / self.deviation[coordinates]).astype(np.float32)
        row, place = np.nonzero(z)
        value = z[row, place]
        return _largest_of_image(self._matched.image[row], 2 * coordinates[place] + (value < 0), np.abs(value))


def random_dictionary(
    activations: "ActivationArray", matched: MatchedRows, d_sae: int, k: int, seed: int
) -> SparseActivations:
    """Activations of `d_sae` random unit directions on standardised coordinates, the k largest kept on each row.

    What an SAE of the same sparsity has without having learnt anything.
    """
    import torch

    from ..train.models import TopKSae

    stored = read_rows(activations, matched.rows)
    mean, deviation = moments(activations, stored)
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(d_sae, activations.d_in, generator=generator), dim=1)
    dictionary = TopKSae(
        *(directions, torch.zeros(d_sae), directions, torch.zeros(activations.d_in)),
        k=min(k, d_sae),
        input_mean=torch.from_numpy(mean).float(),
        input_scale=torch.from_numpy(deviation).float(),
    )
    found = []
    for first in range(0, len(stored), _ROWS_AT_ONCE):
        f = dictionary.encode_sparse(activations.tensor(stored[first : first + _ROWS_AT_ONCE]).float())
        row = np.repeat(np.arange(len(f.indptr) - 1), np.diff(f.indptr.numpy()))
        found.append((matched.image[first + row], f.index.numpy().astype(np.int64), f.value.numpy()))
    row, index, value = _largest_of_image(*(np.concatenate(parts) for parts in zip(*found, strict=True)))
    order = np.argsort(row, kind="stable")
    indptr = np.concatenate(([0], np.cumsum(np.bincount(row, minlength=matched.n_images))))
    return SparseActivations(indptr.astype(np.int64), index[order], value[order], d_sae)


def read_rows(activations: "ActivationArray", rows: NDArray[np.int64]) -> NDArray[Any]:
    """Rows of readable images, `(m, d)`, in the stored dtype."""
    stored = np.empty((len(rows), activations.d_in), activations.stored_dtype)
    positions = activations.store.positions_of(rows)
    if (positions < 0).any():
        raise ValueError(f"row {int(rows[positions < 0][0])} is of an image that could not be read")
    activations.read_runs(positions, np.ones(len(rows), np.int64), stored)
    return stored


def moments(activations: "ActivationArray", stored: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of each coordinate, float64; the deviation of one that does not vary is 1."""
    total, squares, shift = np.zeros(activations.d_in), np.zeros(activations.d_in), np.zeros(activations.d_in)
    for first in range(0, len(stored), _ROWS_AT_ONCE):
        x = activations.tensor(stored[first : first + _ROWS_AT_ONCE]).double().numpy()
        if first == 0:
            shift = x.mean(axis=0)  # far from 0 the squares would cancel
        total += (x - shift).sum(axis=0)
        squares += np.square(x - shift).sum(axis=0)
    n = max(1, len(stored))
    mean = total / n
    deviation = np.sqrt(np.maximum(squares / n - np.square(mean), 0))
    return shift + mean, np.where(deviation > 0, deviation, 1)


def _largest_of_image(image: NDArray[np.int64], index: NDArray[np.int64], value: NDArray[np.float32]) -> Entries:
    """The largest activation of each feature on each image."""
    order = np.lexsort((image, index))
    image, index, value = image[order], index[order], value[order]
    is_first = np.ones(len(image), np.bool_)
    is_first[1:] = (np.diff(image) != 0) | (np.diff(index) != 0)
    starts = np.flatnonzero(is_first)
    if len(starts) == len(image):
        return image, index, value
    return image[starts], index[starts], np.maximum.reduceat(value, starts)

"""Monosemanticity score: how alike the images are on which a feature fires, by an image encoder's embeddings."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..progress import Reporter
from ..store.errors import StoreError
from .exact_sums import SumUnits, in_units
from .features import FeatureActivations, open_features
from .scheduler import Compute
from .split_entries import SplitEntries, pieces_of_split

_SUMS_BYTES = 1 << 26  # weighted sums of embeddings that a task holds
_WINDOW_BYTES = 1 << 26  # embeddings read at a time
_PRODUCTS_BYTES = 1 << 25  # weighted embeddings held at a time

Array = NDArray[Any]


def monosemanticity(
    features: FeatureActivations,
    embeddings_path: str,
    units: SumUnits,
    *,
    split: str,
    task_bytes: int,
    compute: Compute,
    reporter: Reporter,
) -> NDArray[np.float32]:
    """`(d_sae,)`: mean cosine of the embeddings of two different firing rows, pairs weighed by both activations.

    MS = sum_{i != j} a_i a_j <e_i, e_j> / sum_{i != j} a_i a_j (Pach et al. 2025), in time linear in the
    firings: ||sum a_i e_i||^2 - sum a_i^2 over (sum a_i)^2 - sum a_i^2, since the e_i are scaled to unit length. NaN
    where fewer than two rows with an embedding fire. The paper first scales activations to [0, 1], which for
    activations that are 0 somewhere divides all by their largest and leaves the ratio as it is.

    Parameters
    ----------
    features
        Feature activations.
    embeddings_path
        `.npy` file or zarr array `(rows, dim)`: one embedding a row of the store, of any length; rows of zeros or with
        a value that is not finite count as rows without one.
    units
        Of the features.
    """
    dim = require_embeddings_of(embeddings_path, features.n_rows, features.info.store)
    ranges = features.feature_ranges(task_bytes, max(1, _SUMS_BYTES // (8 * dim)))
    call = partial(_scores_of_range, str(features.path.absolute()), embeddings_path, split)
    parts = []
    with reporter.task("monosemanticity", features.d_sae, "features") as task:
        for part in compute.each(call, ((units.part(*some), *some) for some in ranges)):
            task.advance(len(part))
            parts.append(part)
    return np.concatenate(parts)


def embeddings_shape(path: str) -> tuple[int, int]:
    """Rows and dimensions of embeddings; `StoreError` where there are none."""
    array = open_embeddings(path)
    if len(array.shape) != 2 or array.dtype.kind != "f":
        raise StoreError(f"{path} holds {array.dtype} of shape {array.shape}; floats of shape (rows, dim) are wanted.")
    return int(array.shape[0]), int(array.shape[1])


def require_embeddings_of(path: str, n_rows: int, store: str) -> int:
    """Dimensions of embeddings; `StoreError` where they are not one a row of a store."""
    found, dim = embeddings_shape(path)
    if found != n_rows:
        raise StoreError(
            f"{path} holds {found:,} embeddings; one for each of the {n_rows:,} rows of {store} is wanted, in their "
            "order."
        )
    return dim


def open_embeddings(path: str) -> Any:
    """Embeddings, to be sliced by rows."""
    if Path(path).is_file():
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:  # numpy's own text would advise to unpickle
            raise StoreError(f"{path} is not a .npy file of embeddings.") from error
        if not isinstance(array, np.ndarray):
            array.close()
            raise StoreError(f"{path} is an archive of arrays; a .npy file of shape (rows, dim) is wanted.")
        return array
    import zarr

    try:
        return zarr.open_array(path, mode="r")
    except (FileNotFoundError, KeyError, ValueError, TypeError) as error:
        raise StoreError(f"{path} is neither a .npy file nor a zarr array of embeddings: {error}") from error


def _scores_of_range(
    features_path: str, embeddings_path: str, split: str, units: SumUnits, first: int, stop: int
) -> NDArray[np.float32]:
    pieces = pieces_of_split(open_features(features_path), first, stop, split)
    embeddings = open_embeddings(embeddings_path)
    sums = SimilaritySums.zero(stop - first, int(embeddings.shape[1]))
    for entries in pieces:
        sums.add(entries, embeddings, units)
    return sums.scores(units)


@dataclass(frozen=True)
class SimilaritySums:
    """What the scores of some features are made of, in units of each feature: the same in any order of adding."""

    vector: NDArray[np.float64]
    """`(n_features, dim)`: sum of the embeddings of firing rows, each times the activation there."""
    mass: NDArray[np.float64]
    """`(n_features,)`: sum of the activations on rows with an embedding."""
    squares: NDArray[np.float64]
    """`(n_features,)`: of their squares."""
    count: NDArray[np.int64]
    """`(n_features,)`: such rows."""

    @classmethod
    def zero(cls, n_features: int, dim: int) -> Self:
        """Sums of no rows."""
        return cls(
            np.zeros((n_features, dim)), np.zeros(n_features), np.zeros(n_features), np.zeros(n_features, np.int64)
        )

    @classmethod
    def union(cls, parts: Sequence[Self]) -> Self:
        """Sums of the rows of all parts."""
        total = cls(*(getattr(parts[0], name).copy() for name in ("vector", "mass", "squares", "count")))
        for part in parts[1:]:
            for name in ("vector", "mass", "squares", "count"):
                getattr(total, name)[:] += getattr(part, name)
        return total

    def add(self, entries: SplitEntries, embeddings: Any, units: SumUnits) -> None:
        """Add entries, a window of rows of `embeddings` `(n_rows, dim)` at a time."""
        dim = self.vector.shape[1]
        window = max(1, _WINDOW_BYTES // (8 * dim))
        place = entries.row // window
        n_windows = int(place.max()) + 1 if len(place) else 0
        small = np.uint16 if n_windows <= 1 << 16 else np.int64  # 16 bits are sorted by radix
        order = np.argsort(place.astype(small), kind="stable")  # by window, feature, row
        bounds = np.searchsorted(place[order], np.arange(n_windows + 1))
        feature_of = entries.local.astype(np.int64)
        at_once = max(1, _PRODUCTS_BYTES // (8 * dim))
        for i in np.flatnonzero(np.diff(bounds)).tolist():
            of_window = order[bounds[i] : bounds[i + 1]]
            low, high = int(entries.row[of_window].min()), int(entries.row[of_window].max()) + 1
            unit, has_one = _unit(np.asarray(embeddings[low:high], np.float64))
            of_window = of_window[has_one[entries.row[of_window] - low]]
            for start in range(0, len(of_window), at_once):
                some = of_window[start : start + at_once]
                self._add(
                    feature_of[some], entries.value[some].astype(np.float64), unit[entries.row[some] - low], units
                )

    def _add(self, feature: Array, value: Array, products: Array, units: SumUnits) -> None:
        n_features = len(self.mass)
        begins = np.flatnonzero(np.append(True, feature[1:] != feature[:-1]))
        products *= (value / units.of_values[feature])[:, None]
        self.vector[feature[begins]] += np.add.reduceat(np.rint(products, out=products), begins, axis=0)
        whole = in_units(value, units.of_values[feature])
        self.mass[:] += np.bincount(feature, weights=whole, minlength=n_features)
        squares = in_units(value**2, units.of_squares[feature])
        self.squares[:] += np.bincount(feature, weights=squares, minlength=n_features)
        self.count[:] += np.bincount(feature, minlength=n_features)

    def scores(self, units: SumUnits) -> NDArray[np.float32]:
        """`(n_features,)`: the score of each feature."""
        squares = self.squares * units.of_squares
        of_pairs = (self.mass * units.of_values) ** 2 - squares
        similarity = np.einsum("ij,ij->i", self.vector, self.vector) * units.of_values**2 - squares
        is_defined = (self.count >= 2) & (of_pairs > 0)
        out = np.divide(similarity, of_pairs, out=np.full(len(squares), np.nan), where=is_defined)
        return out.astype(np.float32)


def _unit(embeddings: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Embeddings of length 1, and which are any."""
    norm = np.sqrt(np.einsum("ij,ij->i", embeddings, embeddings))
    has_one = np.isfinite(norm) & (norm > 0)
    return np.divide(embeddings, norm[:, None], out=np.zeros_like(embeddings), where=has_one[:, None]), has_one

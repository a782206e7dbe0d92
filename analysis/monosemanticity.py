"""Monosemanticity score: how alike the images are on which a feature fires, by an image encoder's embeddings."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..progress import Reporter
from ..store.errors import StoreError
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
    """
    n_rows, dim = embeddings_shape(embeddings_path)
    if n_rows != features.n_rows:
        raise StoreError(
            f"{embeddings_path} holds {n_rows:,} embeddings; one for each of the {features.n_rows:,} rows of "
            f"{features.info.store} is wanted, in their order."
        )
    ranges = features.feature_ranges(task_bytes, max(1, _SUMS_BYTES // (8 * dim)))
    call = partial(_scores_of_range, str(features.path.absolute()), embeddings_path, split)
    parts = []
    with reporter.task("monosemanticity", features.d_sae, "features") as task:
        for part in compute.each(call, ranges):
            task.advance(len(part))
            parts.append(part)
    return np.concatenate(parts)


def embeddings_shape(path: str) -> tuple[int, int]:
    """Rows and dimensions of embeddings; `StoreError` where there are none."""
    array = _open(path)
    if len(array.shape) != 2 or array.dtype.kind != "f":
        raise StoreError(f"{path} holds {array.dtype} of shape {array.shape}; floats of shape (rows, dim) are wanted.")
    return int(array.shape[0]), int(array.shape[1])


def _open(path: str) -> Any:
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
    features_path: str, embeddings_path: str, split: str, first: int, stop: int
) -> NDArray[np.float32]:
    pieces = pieces_of_split(open_features(features_path), first, stop, split)
    return scores(pieces, stop - first, _open(embeddings_path))


def scores(pieces: Iterable[SplitEntries], n_features: int, embeddings: Any) -> NDArray[np.float32]:
    """`(n_features,)`: the score of each feature of a range.

    Parameters
    ----------
    pieces
        Entries of the features, all of them or a part at a time.
    embeddings
        `(n_rows, dim)`, sliced by rows; any number of them is held only a window at a time.
    """
    vector = np.zeros((n_features, int(embeddings.shape[1])))  # sum a e
    mass, squares, count = (np.zeros(n_features) for _ in range(3))
    for entries in pieces:
        _add(entries, embeddings, vector, mass, squares, count)
    of_pairs = mass**2 - squares
    similarity = np.einsum("ij,ij->i", vector, vector) - squares
    out = np.divide(similarity, of_pairs, out=np.full(n_features, np.nan), where=(count >= 2) & (of_pairs > 0))
    return out.astype(np.float32)


def _add(entries: SplitEntries, embeddings: Any, vector: Array, mass: Array, squares: Array, count: Array) -> None:
    """Add sum a e `(n_features, dim)`, sum a, sum a^2 and the rows with an embedding, a window of rows at a time."""
    dim = vector.shape[1]
    window = max(1, _WINDOW_BYTES // (8 * dim))
    place = entries.row // window
    n_windows = int(place.max()) + 1 if len(place) else 0
    small = np.uint16 if n_windows <= 1 << 16 else np.int64  # 16 bits are sorted by radix
    order = np.argsort(place.astype(small), kind="stable")  # by window, feature, row
    bounds = np.searchsorted(place[order], np.arange(n_windows + 1))
    feature_of = entries.local.astype(np.int64)
    at_once = max(1, _PRODUCTS_BYTES // (8 * dim))
    for i in np.flatnonzero(np.diff(bounds)).tolist():
        unit, has_one = _unit(np.asarray(embeddings[i * window : (i + 1) * window], np.float64))
        of_window = order[bounds[i] : bounds[i + 1]]
        of_window = of_window[has_one[entries.row[of_window] - i * window]]
        for start in range(0, len(of_window), at_once):
            some = of_window[start : start + at_once]
            feature, value = feature_of[some], entries.value[some].astype(np.float64)
            begins = np.flatnonzero(np.append(True, feature[1:] != feature[:-1]))
            products = unit[entries.row[some] - i * window]
            products *= value[:, None]
            vector[feature[begins]] += np.add.reduceat(products, begins, axis=0)
            mass += np.bincount(feature, weights=value, minlength=entries.n_features)
            squares += np.bincount(feature, weights=value**2, minlength=entries.n_features)
            count += np.bincount(feature, minlength=entries.n_features)


def _unit(embeddings: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Embeddings of length 1, and which are any."""
    norm = np.sqrt(np.einsum("ij,ij->i", embeddings, embeddings))
    has_one = np.isfinite(norm) & (norm > 0)
    return np.divide(embeddings, norm[:, None], out=np.zeros_like(embeddings), where=has_one[:, None]), has_one

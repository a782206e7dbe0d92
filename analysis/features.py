"""The stored feature activations of a run: what `features.zarr` holds, read by rows and by feature.

One zarr v3 group that any zarr reader opens. N physical rows of the activation store, nnz activations > 0.

    indptr             (N + 1,) uint64    row r has the entries indptr[r] to indptr[r + 1]
    index, value       (nnz,) uint32, float32    feature, ascending within a row; activation
    by_feature/indptr  (d_sae + 1,) uint64
    by_feature/row     (nnz,) uint32 (uint64 from 2^32 rows on), ascending within a feature
    by_feature/value   (nnz,) float32
    rows/split         (N,) uint8    0 not encoded, 1 training, 2 held out, 3 of a store that the run was not trained on
    rows/valid         (N,) bool     whether the row was encoded; rows that were not have no entries
    rows/label         (N,) int32    -1 for none
    rows/x_norm        (N,) float32  ||x||_2 of what is reconstructed: of a transcoder the rows of its target site
    rows/sse           (N,) float32  ||x_hat - x||^2
    rows/cosine        (N,) float32  of x and x_hat; these three are NaN on rows that were not encoded
    sections/...       float64 sums over runs of rows, one set a split (see `quality.py`)
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, fields
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..store.errors import DamagedStoreError, StoreError, UnfinishedStoreError
from .direct_chunks import DirectArray
from .quality import SUMS

FORMAT_NAME = "thresher-features"
FORMAT_VERSION = 1
FEATURES_ZARR = "features.zarr"

NOT_ENCODED, TRAIN, HELD_OUT, OTHER_STORE = range(4)
SPLIT_CODES = {"train": (TRAIN,), "heldout": (HELD_OUT,), "all": (TRAIN, HELD_OUT, OTHER_STORE)}
"""Name of a split -> the values of `rows/split` that it holds."""

_ENTRY_BYTES = 8  # index and value
_BLOCK_ENTRIES = 1 << 20  # entries read at a time: 8 MB
_KEPT_BYTES = 128 << 20  # of decoded chunks, so that reading rows here and there decodes few of them

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class FeaturesInfo:
    """What stored feature activations are of: the group's attributes."""

    n_rows: int
    """Physical rows of the activation store."""
    n_encoded: int
    """Rows that were encoded."""
    n_train: int
    """Encoded rows that the SAE was trained on."""
    n_held_out: int
    """Encoded rows of the training store that it was not trained on."""
    n_unreadable: int
    """Rows of the store without an activation."""
    nnz: int
    """Stored activations."""
    d_in: int
    d_sae: int
    split: str
    """The split that was asked for."""
    row_start: int
    """First row that was encoded."""
    row_stop: int
    """The row after the last that was encoded."""
    held_out_start: int | None
    """Every held-out row is at or after this one and every training row before it; None where the store is in source
    order (there `rows/split` alone says) or is not the training store."""
    store: str
    """Absolute path, or URL, of the activation store."""
    store_fingerprint: str
    n_store_parts: int
    """Parts that the store had then; others may have been added since."""
    is_training_store: bool
    """Whether the SAE was trained on this store."""
    site: str
    """Path of the site in the store; its layer is 0-based."""
    sae_sha256: str
    """Of the file of the SAE's weights."""
    thresher: str
    """Version that wrote it."""
    precision: str = "fp32"
    """How active features were found; their values are float32 either way."""
    target_site: str | None = None
    """What a transcoder reconstructs, of which norms, errors and cosines are; None of an SAE."""
    n_asked: int | None = None
    """The number of rows that was asked for; None for all of the split."""

    @classmethod
    def of_attributes(cls, attributes: dict[str, Any]) -> Self:
        """Read the group's attributes back; what an earlier version did not write has its default."""
        missing = {f.name for f in fields(cls) if f.default is not MISSING} - set(attributes)
        return cls(**{f.name: attributes[f.name] for f in fields(cls) if f.name not in missing})

    def to_attributes(self) -> dict[str, Any]:
        """The group's attributes, the mark of completeness included."""
        return {"format": FORMAT_NAME, "format_version": FORMAT_VERSION, **asdict(self), "complete": True}


@dataclass(frozen=True)
class FeatureBlock:
    """Feature activations of consecutive rows, as CSR."""

    start: int
    """First row."""
    indptr: NDArray[np.int64]
    """`(n + 1,)`, from 0."""
    index: NDArray[np.uint32]
    """`(nnz,)`."""
    value: NDArray[np.float32]
    """`(nnz,)`, all > 0."""
    labels: NDArray[np.int32]
    """`(n,)`."""
    valid: NDArray[np.bool_]
    """`(n,)`: rows that were encoded and are of the split asked for; the others have no entries here."""


def open_features(path: str | Path) -> "FeatureActivations":
    """Open the feature activations of a run.

    Parameters
    ----------
    path
        A run directory or its `features.zarr`.

    Raises
    ------
    StoreError
        When there are none, or they are of another format.
    UnfinishedStoreError
        When they were not written to the end.
    """
    path = Path(path)
    if path.name != FEATURES_ZARR and (path / FEATURES_ZARR).exists():
        path = path / FEATURES_ZARR
    return FeatureActivations(path)


class FeatureActivations:
    """Stored feature activations, opened for reading."""

    def __init__(self, path: Path) -> None:
        import zarr

        self.path = path
        try:
            with _damage_named(path, "zarr.json"):
                self._group = zarr.open_group(str(path), mode="r")
        except (FileNotFoundError, NotADirectoryError) as error:
            raise StoreError(f"{path} holds no feature activations: run `thresher encode` first.") from error
        attributes = dict(self._group.attrs)
        if attributes.get("format") != FORMAT_NAME:
            raise StoreError(f"{path} is not a group of feature activations (format {attributes.get('format')!r}).")
        if attributes.get("format_version") != FORMAT_VERSION:
            raise StoreError(
                f"{path} is of format version {attributes.get('format_version')}; this version reads {FORMAT_VERSION}. "
                "Encode again with --overwrite."
            )
        if attributes.get("complete") is not True:
            raise UnfinishedStoreError(f"{path} was not written to the end: run `thresher encode` again.")
        with _damage_named(path, "zarr.json"):
            self.info = FeaturesInfo.of_attributes(attributes)

    @property
    def n_rows(self) -> int:
        """Physical rows, encoded or not."""
        return self.info.n_rows

    @property
    def d_sae(self) -> int:
        """Number of features."""
        return self.info.d_sae

    def rows(self, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.uint32], NDArray[np.float32]]:
        """Activations of the rows `[start, stop)` as CSR: indptr from 0, index, value."""
        if not 0 <= start <= stop <= self.n_rows:
            raise ValueError(f"rows {start} to {stop} are not within the {self.n_rows} rows of {self.path}")
        indptr = self._read("indptr", start, stop + 1).astype(np.int64)
        first, last = int(indptr[0]), int(indptr[-1])
        return indptr - first, self._read("index", first, last), self._read("value", first, last)

    def entries(self, start: int, stop: int) -> tuple[NDArray[np.uint32], NDArray[np.float32]]:
        """Index and value of a few entries, such as a row's, among all: a tenth of the time that zarr takes."""
        with _damage_named(self.path, "index"):
            return self._direct("index").read(start, stop), self._direct("value").read(start, stop)

    def feature(self, feature: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Every row on which a feature is > 0, ascending, with its value there."""
        if not 0 <= feature < self.d_sae:
            raise ValueError(f"feature {feature} is not one of the {self.d_sae} of {self.path}")
        first, last = (int(edge) for edge in self._read("by_feature/indptr", feature, feature + 2))
        return self._read("by_feature/row", first, last).astype(np.int64), self._read("by_feature/value", first, last)

    def feature_range(self, first: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """Activations of the features `[first, stop)` by feature: indptr from 0, row (ascending), value."""
        if not 0 <= first <= stop <= self.d_sae:
            raise ValueError(f"features {first} to {stop} are not within the {self.d_sae} of {self.path}")
        indptr: NDArray[np.int64] = self._read("by_feature/indptr", first, stop + 1).astype(np.int64)
        start, end = int(indptr[0]), int(indptr[-1])
        row = self._read("by_feature/row", start, end).astype(np.int64)
        return np.subtract(indptr, start), row, self._read("by_feature/value", start, end)

    def feature_pieces(self, feature: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Rows and values of one feature, ascending, a few megabytes at a time."""
        first, last = (int(edge) for edge in self._read("by_feature/indptr", feature, feature + 2))
        for start in range(first, last, _BLOCK_ENTRIES):
            stop = min(start + _BLOCK_ENTRIES, last)
            yield (
                self._read("by_feature/row", start, stop).astype(np.int64),
                self._read("by_feature/value", start, stop),
            )

    def n_entries(self, first: int, stop: int) -> int:
        """Activations of the features `[first, stop)` on all rows."""
        start, last = (int(self._read("by_feature/indptr", at, at + 1)[0]) for at in (first, stop))
        return last - start

    def feature_ranges(self, range_bytes: int, most_features: int) -> list[tuple[int, int]]:
        """Cut the features into ranges of at most some `range_bytes` of entries, or one feature that has more."""
        indptr = self._read("by_feature/indptr", 0, self.d_sae + 1).astype(np.int64)
        edges = [0]
        while edges[-1] < self.d_sae:
            held = int(np.searchsorted(indptr, indptr[edges[-1]] + range_bytes // _ENTRY_BYTES, side="right")) - 1
            edges.append(min(max(held, edges[-1] + 1), edges[-1] + most_features))
        return list(pairwise(edges))

    def features(self, first: int, last: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """Activations of the features `[first, last)` as CSR by feature: indptr from 0, row, value."""
        if not 0 <= first <= last <= self.d_sae:
            raise ValueError(f"features {first} to {last} are not within the {self.d_sae} of {self.path}")
        indptr = self._read("by_feature/indptr", first, last + 1).astype(np.int64)
        start, stop = int(indptr[0]), int(indptr[-1])
        row = self._read("by_feature/row", start, stop).astype(np.int64)
        return np.subtract(indptr, start), row, self._read("by_feature/value", start, stop)

    def l0(self, start: int, stop: int) -> NDArray[np.int64]:
        """Number of features > 0 on each of the rows `[start, stop)`."""
        edges: NDArray[np.int64] = self._read("indptr", start, stop + 1).astype(np.int64)
        return edges[1:] - edges[:-1]

    def feature_starts(self) -> NDArray[np.int64]:
        """Where the activations of each feature start among all, and where the last ones end: `(d_sae + 1,)`."""
        return self._read("by_feature/indptr", 0, self.d_sae + 1).astype(np.int64)

    def row_counts(self, start: int, stop: int) -> NDArray[np.int64]:
        """Number of features > 0 on each row `[start, stop)`."""
        edges = self._read("indptr", start, stop + 1).astype(np.int64)
        return edges[1:] - edges[:-1]

    def row_numbers(self, name: str, start: int, stop: int) -> Array:
        """One number a row, `[start, stop)`: `split`, `valid`, `label`, `x_norm`, `sse` or `cosine`."""
        return self._read(f"rows/{name}", start, stop)

    @cached_property
    def sections(self) -> dict[str, Array]:
        """The float64 sums over runs of rows from which quality numbers are made, by name."""
        with _damage_named(self.path, "sections"):
            sections: Any = self._group["sections"]
            found = {name: array[:] for name, array in sections.arrays()}
        missing = sorted({*SUMS, "split", "n", "x_sum", "row_start", "row_stop"} - set(found))
        if missing:
            raise DamagedStoreError(f"{self.path} has no sections/{missing[0]}: encode again with --overwrite.")
        return found

    def row_range(self, split: str) -> tuple[int, int]:
        """The rows among which those of a split are: the whole encoded range where no shorter one is known.

        Raises
        ------
        StoreError
            When no row of the split was encoded.
        """
        info = self.info
        n = {"train": info.n_train, "heldout": info.n_held_out, "all": info.n_encoded}[split]
        if n == 0:
            why = "" if info.is_training_store else ", which is not the store that the SAE was trained on"
            raise StoreError(f"{self.path} holds no rows of the split {split!r} of {info.store}{why}.")
        if split == "all" or info.held_out_start is None:
            return info.row_start, info.row_stop
        if split == "train":
            return info.row_start, min(info.row_stop, info.held_out_start)
        return max(info.row_start, info.held_out_start), info.row_stop

    def ranges(self, start: int, stop: int, range_bytes: int) -> list[tuple[int, int]]:
        """Cut the rows `[start, stop)` into ranges of some `range_bytes` of entries each."""
        mean_bytes = max(1.0, _ENTRY_BYTES * self.info.nnz / max(1, self.info.row_stop - self.info.row_start))
        step = max(1, int(range_bytes / mean_bytes))
        return [(first, min(first + step, stop)) for first in range(start, stop, step)]

    def blocks(self, start: int, stop: int, *, split: str = "all") -> Iterator[FeatureBlock]:
        """Read the rows `[start, stop)` a few megabytes at a time; rows outside the split come without entries."""
        for first, last in self.ranges(start, stop, _BLOCK_ENTRIES * _ENTRY_BYTES):
            indptr, index, value = self.rows(first, last)
            valid = np.isin(self.row_numbers("split", first, last), SPLIT_CODES[split])
            counts = np.diff(indptr)
            if counts[~valid].any():  # encoded rows of the other split
                kept = np.repeat(valid, counts)
                index, value = index[kept], value[kept]
                indptr = np.concatenate(([0], np.cumsum(np.where(valid, counts, 0))))
            yield FeatureBlock(first, indptr, index, value, self.row_numbers("label", first, last), valid)

    def _read(self, name: str, start: int, stop: int) -> Array:
        with _damage_named(self.path, name):
            array = self._arrays.get(name)
            if array is None:
                array = self._arrays.setdefault(name, self._group[name])
            self._require_chunks(array, name, start, stop)
            return array[start:stop]

    def _direct(self, name: str) -> DirectArray:
        found = self._direct_arrays.get(name)
        if found is None:
            found = self._direct_arrays.setdefault(name, DirectArray(self.path / name, _KEPT_BYTES))
        return found

    def _require_chunks(self, array: Any, name: str, start: int, stop: int) -> None:
        """Raise `DamagedStoreError` where a chunk is gone, which zarr would read as its fill value in silence."""
        size = array.chunks[0]
        for chunk in range(start // size, -(-min(stop, array.shape[0]) // size)):
            if not (self.path / name / "c" / str(chunk)).exists():
                raise DamagedStoreError(
                    f"{self.path} is damaged: chunk {chunk} of {name} is gone. Encode again with --overwrite."
                )

    @cached_property
    def _arrays(self) -> dict[str, Any]:
        return {}

    @cached_property
    def _direct_arrays(self) -> dict[str, DirectArray]:
        return {}


@contextmanager
def _damage_named(path: Path, name: str) -> Iterator[None]:
    """Turn what zarr and its codecs raise on bytes that are not those written into `DamagedStoreError`."""
    try:
        yield
    except OSError:
        raise
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        raise DamagedStoreError(
            f"{path} is damaged: {name} cannot be read ({reason}). Encode again with --overwrite."
        ) from error


def read_entries(group: Any, info: FeaturesInfo) -> Iterator[tuple[int, Array, Array, Array]]:
    """First row, indptr from 0, index and value of consecutive blocks of rows of a group, complete or not."""
    indptr_array, index_array, value_array = group["indptr"], group["index"], group["value"]
    step = max(1, _BLOCK_ENTRIES * info.n_rows // max(info.nnz, 1))
    for first in range(0, info.n_rows, step):
        indptr = indptr_array[first : min(first + step, info.n_rows) + 1].astype(np.int64)
        entries = slice(int(indptr[0]), int(indptr[-1]))
        yield first, indptr - indptr[0], index_array[entries], value_array[entries]


def refuse_other_weights(run_path: Path, features: FeatureActivations) -> None:
    """Raise `StoreError` where a run's SAE is not the one that its features were encoded by."""
    weights = hashlib.sha256((run_path / "sae.safetensors").read_bytes()).hexdigest()
    if weights != features.info.sae_sha256:
        raise StoreError(
            f"{features.path} was encoded by other weights than {run_path} holds: run `thresher encode --overwrite`."
        )

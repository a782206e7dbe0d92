"""Opens a finished store, reads its rows: the committed ones, in any place, each chunk checked once."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import format as f
from .chunks import ChunkReader
from .codec import unseal
from .errors import DamagedStoreError, StoreError, UnfinishedStoreError
from .provenance import Provenance
from .records import VERIFY, crc32c, read_record, to_hex
from .shuffle import position_order
from .writer import read_group_attributes

if TYPE_CHECKING:
    import torch

HELD_OUT_SHARE = 0.01


@dataclass(frozen=True)
class Unreadable:
    """An image that could not be read: its row is NaN."""

    row: int
    key: str
    reason: str


def open_store(path: str | Path) -> "ActivationStore":
    """Open a finished store.

    Raises
    ------
    StoreError
        When there is no store at `path`.
    UnfinishedStoreError
        When its harvest has not committed every chunk.
    DamagedStoreError
        When its metadata is not what was committed.
    """
    return ActivationStore(Path(path))


class ActivationStore:
    """A finished store of activations.

    A *row* is a place in the store's arrays; a *position* counts the rows whose image could be read, in the store's
    order. Training, encoding and the split between training and held-out rows all speak of positions, so an
    unreadable image never leaves a gap in a batch.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if (path / f.CREATING).exists() and not (path / f.GROUP_JSON).exists():
            raise UnfinishedStoreError(f"{path} was not made whole: run the same `thresher harvest` again.")
        attributes = read_group_attributes(path)
        self._attributes = attributes
        self.n_rows: int = attributes["n_rows"]
        self.d_in: int = attributes["d_in"]
        self.rows_per_chunk: int = attributes["rows_per_chunk"]
        self.row_order: str = attributes["row_order"]
        self.seed: int = attributes["seed"]
        self.codec: str = attributes["codec"]
        self.thumbnail_px: int | None = attributes["thumbnail_px"]
        self.label_names: list[str] | None = attributes["label_names"]
        self.sites = tuple(f.Site.parse(name) for name in attributes["arrays"])
        self.n_chunks = f.n_chunks(self.n_rows, self.rows_per_chunk)
        self._check_metadata()
        self.provenance = Provenance.from_json(attributes["provenance"])
        self._require_committed()
        self._valid = ChunkReader(path, f.ROW_VALID)
        invalid = [row for chunk in range(self.n_chunks) for row, _ in self._valid.record(chunk)["unreadable"]]
        self.invalid_rows: NDArray[np.int64] = np.array(invalid, np.int64)
        """Rows whose image could not be read, ascending."""
        self.n_valid = self.n_rows - len(invalid)
        """Rows whose image could be read: the number of positions."""

    def activations(self, site: f.Site | None = None) -> "ActivationArray":
        """The rows of one site; of the only one where `site` is None.

        Raises
        ------
        StoreError
            When the store does not hold the site, or holds several and none is named.
        """
        held = ", ".join(str(held) for held in self.sites)
        if site is None:
            if len(self.sites) > 1:
                raise StoreError(f"{self.path} holds {held}: say which with --layer.")
            site = self.sites[0]
        if site not in self.sites:
            raise StoreError(f"{self.path} does not hold {site}; it holds {held}.")
        return ActivationArray(self, site)

    def images(self, start: int, stop: int) -> NDArray[np.uint32]:
        """Position in the source of the image of each row `[start, stop)`."""
        return self._array(f.ROW_IMAGE).read(start, stop)

    def labels(self, start: int, stop: int) -> NDArray[np.int32]:
        """Label of each row `[start, stop)`; -1 where there is none."""
        return self._array(f.ROW_LABEL).read(start, stop)

    def valid(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Whether the image of each row `[start, stop)` could be read."""
        return self._valid.read(start, stop)

    def keys(self, rows: Iterable[int] | NDArray[np.integer[Any]]) -> list[str]:
        """The stable id of each row's image; bytes that are not UTF-8 come as surrogates (`os.fsdecode`)."""
        image, offset, blob = (self._array(name) for name in (f.ROW_IMAGE, f.KEY_OFFSET, f.KEY_BLOB))
        keys = []
        for row in rows:
            at = int(image.read(int(row), int(row) + 1)[0])
            start, stop = (int(edge) for edge in offset.read(at, at + 2))
            keys.append(os.fsdecode(blob.read(start, stop).tobytes()))
        return keys

    def thumbnail(self, row: int) -> bytes | None:
        """WebP bytes of the row's image, None where the store holds none.

        Raises
        ------
        DamagedStoreError
            When the bytes are not those that were committed.
        """
        if self.thumbnail_px is None:
            return None
        chunk, place = divmod(row, self.rows_per_chunk)
        record = read_record(self.path / f.thumbs_record_file(chunk))
        folder = f"{f.THUMBS}/{chunk}"
        blob, offset = (self._thumbs_array(f"{folder}/{name}", record["chunks"][name]) for name in ("blob", "offset"))
        start, stop = (int(edge) for edge in np.frombuffer(offset, np.uint64)[place : place + 2])
        return bytes(blob[start:stop]) or None

    @cached_property
    def unreadable(self) -> list[Unreadable]:
        """Every image that could not be read, with the reason."""
        found = [pair for chunk in range(self.n_chunks) for pair in self._valid.record(chunk)["unreadable"]]
        keys = self.keys([row for row, _ in found])
        return [Unreadable(row, key, reason) for (row, reason), key in zip(found, keys, strict=True)]

    @property
    def n_held_out(self) -> int:
        """Positions that are never trained on: the last 1 %, at least one where there are two."""
        return min(self.n_valid - 1, max(1, -(-self.n_valid // round(1 / HELD_OUT_SHARE)))) if self.n_valid > 1 else 0

    def split(self, name: str) -> tuple[int, int]:
        """First position of a split, and the position after its last.

        Parameters
        ----------
        name
            `train`, `heldout` or `all`.
        """
        edge = self.n_valid - self.n_held_out
        splits = {"train": (0, edge), "heldout": (edge, self.n_valid), "all": (0, self.n_valid)}
        if name not in splits:
            raise ValueError(f"split must be train, heldout or all, not {name!r}")
        return splits[name]

    def rows_of(self, positions: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """The rows of positions, `(k,)`.

        In a store in random order positions ascend with rows. In one in source order they are a fixed pseudo-random
        permutation of them, so that a split is a fair sample there too.
        """
        nth = np.asarray(positions, np.int64)
        if self.row_order == "source":
            nth = position_order(self.n_valid)(nth)
        if not len(self.invalid_rows):
            return nth
        # The n-th readable row has as many unreadable rows before it as there are with (row - rank) <= n.
        return nth + np.searchsorted(self.invalid_rows - np.arange(len(self.invalid_rows)), nth, side="right")

    @cached_property
    def fingerprint(self) -> str:
        """What tells this store from every other: a digest of its metadata, provenance and images included."""
        return to_hex(crc32c((self.path / f.METADATA_RECORD).read_bytes())) + self.provenance.keys_sha256[:24]

    def _array(self, name: str) -> ChunkReader:
        if name not in self.__dict__.setdefault("_readers", {}):
            self.__dict__["_readers"][name] = ChunkReader(self.path, name)
        return self.__dict__["_readers"][name]

    def _thumbs_array(self, name: str, record: dict[str, Any]) -> memoryview:
        path = self.path / f.chunk_file(name, 0, 1)
        try:
            return unseal(path.read_bytes(), int(record["crc32c"], 16), str(path))
        except FileNotFoundError:
            raise DamagedStoreError(f"{path} is missing, though it was committed. {VERIFY}") from None

    def _check_metadata(self) -> None:
        try:
            files = read_record(self.path / f.METADATA_RECORD)["files"]
        except FileNotFoundError:
            raise DamagedStoreError(f"{self.path}/{f.METADATA_RECORD} is missing. {VERIFY}") from None
        for name, checksum in files.items():
            try:
                found = to_hex(crc32c((self.path / name).read_bytes()))
            except FileNotFoundError:
                raise DamagedStoreError(f"{self.path}/{name} is missing. {VERIFY}") from None
            if found != checksum:
                raise DamagedStoreError(
                    f"{self.path}/{name} is damaged: it has checksum {found}, {checksum} was committed. {VERIFY}"
                )

    def _require_committed(self) -> None:
        missing: set[int] = set()
        folders = [f"commits/{site.path}" for site in self.sites] + [f"commits/{f.ROW_VALID}"]
        if self.thumbnail_px is not None:
            folders.append(f"commits/{f.THUMBS}")
        for folder in folders:
            try:
                names = {entry.name for entry in os.scandir(self.path / folder)}
            except FileNotFoundError:
                names = set()
            missing |= {chunk for chunk in range(self.n_chunks) if f"{chunk}.json" not in names}
        if missing:
            done = self.n_rows - sum(
                min(self.rows_per_chunk, self.n_rows - chunk * self.rows_per_chunk) for chunk in missing
            )
            raise UnfinishedStoreError(
                f"{self.path} holds {done:,} of {self.n_rows:,} rows: the harvest did not finish. "
                "Run the same `thresher harvest` again to resume it."
            )


class ActivationArray:
    """The stored vectors of one site."""

    def __init__(self, store: ActivationStore, site: f.Site) -> None:
        self.store, self.site = store, site
        self.d_in = store.d_in
        self.dtype: str = store.provenance.dtype
        """Logical dtype: `float16`, `float32`, or `bfloat16` whose bits numpy sees as uint16."""
        self._chunks = ChunkReader(store.path, site.path)
        self.stored_dtype = self._chunks.dtype

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Rows `[start, stop)` in the stored dtype, `(n, d_in)`; NaN where the image could not be read."""
        return self._chunks.read(start, stop)

    def read_positions(self, start: int, stop: int) -> NDArray[Any]:
        """Positions `[start, stop)` in the stored dtype, `(n, d_in)`."""
        out = np.empty((stop - start, self.d_in), self.stored_dtype)
        self.read_runs(np.array([start]), np.array([stop - start]), out)
        return out

    def read_runs(self, starts: NDArray[np.integer[Any]], lengths: NDArray[np.integer[Any]], out: NDArray[Any]) -> None:
        """Fill `out` with runs of positions, one after the other.

        Parameters
        ----------
        starts, lengths
            `(k,)`: run i is positions `[starts[i], starts[i] + lengths[i])`.
        out
            `(sum(lengths), d_in)`, C-contiguous, of the stored dtype.
        """
        shape = (int(np.sum(lengths)), self.d_in)
        if out.dtype != self.stored_dtype or out.shape != shape:
            raise ValueError(f"out must be {shape} of {self.stored_dtype}, not {out.shape} of {out.dtype}")
        run_starts, run_lengths = np.asarray(starts, np.int64), np.asarray(lengths, np.int64)
        if self.store.row_order == "source" or len(self.store.invalid_rows):
            run_starts, run_lengths = self._row_runs(run_starts, run_lengths)
        filled = 0
        for start, length in zip(run_starts.tolist(), run_lengths.tolist(), strict=True):
            self._chunks.read_into(start, out[filled : filled + length])
            filled += length

    def tensor(self, rows: NDArray[Any]) -> "torch.Tensor":
        """Stored rows as a tensor of the logical dtype that shares their memory."""
        import torch

        tensor = torch.from_numpy(rows)
        return tensor.view(torch.bfloat16) if self.dtype == "bfloat16" else tensor

    def _row_runs(
        self, starts: NDArray[np.int64], lengths: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Runs of positions as maximal runs of rows, in the same order."""
        ends = np.cumsum(lengths)
        positions = np.arange(ends[-1]) + np.repeat(starts - (ends - lengths), lengths)
        rows = self.store.rows_of(positions)
        breaks = np.concatenate(([0], np.flatnonzero(np.diff(rows) != 1) + 1, [len(rows)]))
        return rows[breaks[:-1]], np.diff(breaks)

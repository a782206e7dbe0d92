"""Opens a finished store, reads its rows: the committed ones, in any place, each chunk checked once."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import format as f
from .errors import StoreError
from .objects import Objects, open_objects
from .part import StorePart
from .parts import open_parts
from .row_order import Indices

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Unreadable:
    """An image that could not be read: its rows are NaN."""

    image: int
    """Its number in the store: in the order of the source, part after part."""
    key: str
    reason: str


def open_store(place: str | Path | Objects, *, n_parts: int | None = None) -> "ActivationStore":
    """Open a finished store.

    Parameters
    ----------
    place
        Path, or URL that fsspec opens.
    n_parts
        Only its first parts: the store as it was before others were added.

    Raises
    ------
    StoreError
        When there is no store at `place`.
    UnfinishedStoreError
        When its harvest has not committed every chunk.
    DamagedStoreError
        When its metadata is not what was committed.
    """
    return ActivationStore(open_objects(place), n_parts=n_parts)


class ActivationStore:
    """A finished store of activations.

    A *row* is a place in the store's arrays, those of its parts end to end. A *position* counts the rows whose image
    could be read: the training rows of every part first, then the held-out rows of every part, so that a split is one
    range of positions, and an unreadable image never leaves a gap in a batch.
    """

    def __init__(self, objects: Objects, *, n_parts: int | None = None) -> None:
        self.objects = objects
        self.url = objects.url
        """As the user named it: a path or a URL."""
        self.parts: tuple[StorePart, ...] = tuple(open_parts(objects)[:n_parts])
        first = self.parts[0]
        self.sites = first.sites
        self.tokens_per_image = first.tokens_per_image
        self.rows_per_chunk = first.rows_per_chunk
        """Of the first part."""
        self.thumbnail_px: int | None = first.thumbnail_px
        self.codec: str = first.attributes["codec"]
        self.provenance = first.provenance
        """Of the first part; the others' agree in what decides the rows' kind."""
        self.row_order = "random" if all(part.row_order == "random" for part in self.parts) else "source"
        self.n_rows = sum(part.n_rows for part in self.parts)
        self.n_images = sum(part.n_images for part in self.parts)
        self.n_valid = sum(part.positions.n_valid for part in self.parts)
        """Rows whose image could be read: the number of positions."""
        self.n_train = sum(part.positions.n_train for part in self.parts)
        self._row_edges = np.cumsum([0, *(part.n_rows for part in self.parts)])
        self._image_edges = np.cumsum([0, *(part.n_images for part in self.parts)])
        train = [part.positions.n_train for part in self.parts]
        held_out = [part.positions.n_valid - part.positions.n_train for part in self.parts]
        self._position_edges = np.cumsum([0, *train, *held_out])  # (2 n_parts + 1,)
        self.label_names, self._label_tables = _join_label_names(self.parts)

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
                raise StoreError(f"{self.url} holds {held}: say which with --layer or --site.")
            site = self.sites[0]
        if site not in self.sites:
            raise StoreError(f"{self.url} does not hold {site}; it holds {held}.")
        return ActivationArray(self, site)

    def images(self, start: int, stop: int) -> NDArray[np.int64]:
        """The image of each row `[start, stop)`, numbered in the order of the source, part after part."""

        def read(number: int, first: int, last: int) -> NDArray[Any]:
            return self.parts[number].array(f.ROW_IMAGE).read(first, last) + self._image_edges[number]

        return self._join(start, stop, np.int64, read)

    def labels(self, start: int, stop: int) -> NDArray[np.int32]:
        """Label of each row `[start, stop)`, a number into `label_names`; -1 where there is none."""

        def read(number: int, first: int, last: int) -> NDArray[Any]:
            labels = self.parts[number].array(f.ROW_LABEL).read(first, last)
            table = self._label_tables[number]
            return labels if table is None else np.where(labels < 0, -1, table[labels])

        return self._join(start, stop, np.int32, read)

    def tokens(self, start: int, stop: int) -> NDArray[np.uint16]:
        """Place in the tower's sequence of the token of each row `[start, stop)`: 0 is the class token.

        0 too in a store of patches' means, which have no place.
        """
        return self._join(start, stop, np.uint16, lambda number, *rows: self.parts[number].tokens(*rows))

    def valid(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Whether the image of each row `[start, stop)` could be read."""
        return self._join(
            start, stop, np.bool_, lambda number, *rows: self.parts[number].array(f.ROW_VALID).read(*rows)
        )

    def keys(self, rows: Iterable[int] | Indices) -> list[str]:
        """The stable id of each row's image; bytes that are not UTF-8 come as surrogates (`os.fsdecode`)."""
        keys = []
        for row in rows:
            number, local = self._part_of_row(int(row))
            image = int(self.parts[number].array(f.ROW_IMAGE).read(local, local + 1)[0])
            keys += self.parts[number].keys([image])
        return keys

    def thumbnails(self, rows: Sequence[int] | Indices) -> list[bytes | None]:
        """WebP bytes of each row's image, None where the store holds none.

        A window's thumbnails are read once: ask for many at a time.

        Raises
        ------
        DamagedStoreError
            When the bytes are not those that were committed.
        """
        found: list[bytes | None] = [None] * len(rows)
        places = [self._part_of_row(int(row)) for row in rows]
        for number in {number for number, _ in places}:
            here = [i for i, (part, _) in enumerate(places) if part == number]
            part = self.parts[number]
            image = part.array(f.ROW_IMAGE)
            images = np.array([image.read(places[i][1], places[i][1] + 1)[0] for i in here], np.int64)
            for i, picture in zip(here, part.thumbnails(images), strict=True):
                found[i] = picture
        return found

    def thumbnail(self, row: int) -> bytes | None:
        """WebP bytes of one row's image; see `thumbnails`."""
        return self.thumbnails([row])[0]

    @cached_property
    def unreadable(self) -> list[Unreadable]:
        """Every image that could not be read, with the reason."""
        found = []
        for part, first in zip(self.parts, self._image_edges.tolist(), strict=False):
            keys = part.keys([image for image, _ in part.unreadable])
            found += [
                Unreadable(first + image, key, reason)
                for (image, reason), key in zip(part.unreadable, keys, strict=True)
            ]
        return found

    @cached_property
    def invalid_rows(self) -> NDArray[np.int64]:
        """Rows whose image could not be read, ascending."""
        edges = self._row_edges.tolist()
        rows = [part.positions.invalid_rows + first for part, first in zip(self.parts, edges, strict=False)]
        return np.concatenate(rows)

    @property
    def n_held_out(self) -> int:
        """Positions that are never trained on: 1 % of each part, see `Positions`."""
        return self.n_valid - self.n_train

    def split(self, name: str) -> tuple[int, int]:
        """First position of a split, and the position after its last.

        Parameters
        ----------
        name
            `train`, `heldout` or `all`.
        """
        splits = {"train": (0, self.n_train), "heldout": (self.n_train, self.n_valid), "all": (0, self.n_valid)}
        if name not in splits:
            raise ValueError(f"split must be train, heldout or all, not {name!r}")
        return splits[name]

    def rows_of(self, positions: Indices) -> NDArray[np.int64]:
        """The row of each position; see `Positions`."""
        position = np.asarray(positions, np.int64)
        if len(self.parts) == 1:
            return self.parts[0].positions.rows(position)
        rows = np.empty_like(position)
        stretch = np.searchsorted(self._position_edges, position, side="right") - 1
        for each in np.unique(stretch).tolist():
            here, number = stretch == each, each % len(self.parts)
            ours = self.parts[number].positions
            local = position[here] - self._position_edges[each] + (ours.n_train if each >= len(self.parts) else 0)
            rows[here] = ours.rows(local) + self._row_edges[number]
        return rows

    def positions_of(self, rows: Indices) -> NDArray[np.int64]:
        """The position of each row; -1 where its image could not be read."""
        row = np.asarray(rows, np.int64)
        if len(self.parts) == 1:
            return self.parts[0].positions.of_rows(row)
        positions = np.empty_like(row)
        part = np.searchsorted(self._row_edges, row, side="right") - 1
        for number in np.unique(part).tolist():
            here, ours = part == number, self.parts[number].positions
            local = ours.of_rows(row[here] - self._row_edges[number])
            held_out = self._position_edges[len(self.parts) + number] - ours.n_train
            first = np.where(local >= ours.n_train, held_out, self._position_edges[number])
            positions[here] = np.where(local < 0, -1, local + first)
        return positions

    @cached_property
    def fingerprint(self) -> str:
        """What tells this store from every other: a digest of its metadata, provenance and images included."""
        prints = [part.fingerprint for part in self.parts]
        return prints[0] if len(prints) == 1 else hashlib.sha256(" ".join(prints).encode()).hexdigest()[:32]

    def _part_of_row(self, row: int) -> tuple[int, int]:
        if not 0 <= row < self.n_rows:
            raise ValueError(f"row {row} is not among the {self.n_rows} rows of {self.url}")
        number = int(np.searchsorted(self._row_edges, row, side="right")) - 1
        return number, row - int(self._row_edges[number])

    def _pieces(self, start: int, stop: int) -> Iterable[tuple[int, int, int]]:
        """(part, first row in it, row after the last) of each part that rows `[start, stop)` touch."""
        if not 0 <= start <= stop <= self.n_rows:
            raise ValueError(f"rows {start} to {stop} are not within the {self.n_rows} rows of {self.url}")
        for number, (first, last) in enumerate(zip(self._row_edges[:-1], self._row_edges[1:], strict=True)):
            if start < last and stop > first:
                yield number, max(start, int(first)) - int(first), min(stop, int(last)) - int(first)

    def _join(
        self, start: int, stop: int, dtype: type[np.generic], read: Callable[[int, int, int], NDArray[Any]]
    ) -> NDArray[Any]:
        pieces = [read(*piece) for piece in self._pieces(start, stop)]
        return pieces[0].astype(dtype, copy=False) if len(pieces) == 1 else np.concatenate([*pieces, []]).astype(dtype)


def _join_label_names(
    parts: tuple[StorePart, ...],
) -> tuple[list[str] | None, list[NDArray[np.int32] | None]]:
    """The names of all parts, each once, and for each part the number of its labels among them (None: its own)."""
    first: list[str] | None = parts[0].attributes["label_names"]
    tables: list[NDArray[np.int32] | None] = [None]
    if first is None:
        return None, [None] * len(parts)
    numbers: dict[tuple[str, int], int] = {}

    def number_of(names: list[str]) -> NDArray[np.int32]:
        seen: dict[str, int] = {}
        found = []
        for name in names:  # ImageNet has two classes named crane: the second of one name is the second of the other
            seen[name] = seen.get(name, 0) + 1
            found.append(numbers.setdefault((name, seen[name]), len(numbers)))
        return np.array(found, np.int32)

    number_of(first)
    for part in parts[1:]:
        names = part.attributes["label_names"]
        tables.append(None if names == first else number_of(names))
    return [name for name, _ in numbers], tables


class ActivationArray:
    """The stored vectors of one site."""

    def __init__(self, store: ActivationStore, site: f.Site) -> None:
        self.store, self.site = store, site
        self.dtype: str = store.provenance.dtype
        """Logical dtype: `float16`, `float32`, or `bfloat16` whose bits numpy sees as uint16."""
        self._chunks = [part.array(site.path) for part in store.parts]
        self.d_in: int = self._chunks[0].shape[1]
        self.stored_dtype = self._chunks[0].dtype
        self.row_bytes = self._chunks[0].row_bytes
        self.reads_in_place = all(chunks.reads_in_place for chunks in self._chunks)
        """Whether a few rows can be read without the rest of their chunk: on a disk, without compression."""
        self._is_plain = len(store.parts) == 1 and store.row_order == "random" and not len(store.invalid_rows)

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Rows `[start, stop)` in the stored dtype, `(n, d_in)`; NaN where the image could not be read."""
        if not 0 <= start <= stop <= self.store.n_rows:
            raise ValueError(f"rows {start} to {stop} are not within the {self.store.n_rows} rows of {self.store.url}")
        out = np.empty((stop - start, self.d_in), self.stored_dtype)
        self._read_rows([start], [stop - start], out)
        return out

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
        if not self._is_plain and len(out):
            run_starts, run_lengths = self._row_runs(run_starts, run_lengths)
        self._read_rows(run_starts.tolist(), run_lengths.tolist(), out)

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

    def _read_rows(self, starts: list[int], lengths: list[int], out: NDArray[Any]) -> None:
        if len(self._chunks) == 1:
            self._chunks[0].read_runs(starts, lengths, out)
            return
        edges, at = self.store._row_edges, 0
        for start, length in zip(starts, lengths, strict=True):
            while length:
                number, local = self.store._part_of_row(start)
                n = min(length, int(edges[number + 1]) - start)
                self._chunks[number].read_runs([local], [n], out[at : at + n])
                at, start, length = at + n, start + n, length - n

"""Writes a store: its metadata and keys once, then each window of rows once, in any order, by one process."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import format as f
from .attributes import read_group_attributes
from .codec import ChunkCodec, encode_chunk
from .errors import DamagedStoreError, StoreError
from .layout import StoreSpec, metadata_documents, metadata_record, static_arrays, thumbnail_documents
from .objects import Begun, Lock, Objects, open_objects
from .provenance import Provenance
from .records import VERIFY, crc32c, encode_record, read_record, to_hex
from .static import write_static_array

_SERIAL = 1 << 14  # numbers that torch computes in one thread: half its grain
_LARGEST = {"float16": 65504.0, "bfloat16": 255 * 2.0**120}  # finite value; beyond, some values round to inf
_ROWS_CAST = 128  # and moved to their places, before the next
_BYTES_AT_ONCE = 64 << 20  # of chunks handed to the disk or bucket together

Files = dict[str, Sequence[bytes | memoryview]]
Blocks = dict[f.Site, NDArray[Any]]


def create_store(
    place: str | Path | Objects,
    spec: StoreSpec,
    *,
    keys: Sequence[bytes],
    labels: NDArray[np.signedinteger[Any]],
    overwrite: bool = False,
) -> "StoreWriter":
    """Make a store that has no committed row yet.

    Parameters
    ----------
    place
        Path or URL of the store to make.
    spec
        Of the store.
    keys
        Stable ids of the images in source order.
    labels
        `(n_images,)` in source order; -1: none.
    overwrite
        Remove a store that stands there.

    Raises
    ------
    StoreError
        When something else stands there, or a store without `overwrite`.
    """
    if len(keys) != spec.n_images or len(labels) != spec.n_images:
        raise ValueError(f"{spec.n_images} images, but {len(keys)} keys and {len(labels)} labels")
    objects = open_objects(place)
    _clear(objects, overwrite)
    lock = objects.lock()
    objects.write(f.CREATING, b"")
    n_key_bytes = sum(map(len, keys))
    documents = metadata_documents(spec, n_key_bytes)
    objects.write_all({name: [document] for name, document in documents.items() if name != f.GROUP_JSON})
    record = metadata_record(documents)
    objects.write(f.METADATA_RECORD, record)
    metadata_crc32c = to_hex(crc32c(record))
    for name in static_arrays(spec, n_key_bytes):
        write_static_array(objects, spec, name, keys, labels, metadata_crc32c)
    objects.write(f.GROUP_JSON, documents[f.GROUP_JSON])
    objects.delete([f.CREATING])
    return StoreWriter(objects, spec, metadata_crc32c, lock)


def resume_store(place: str | Path | Objects, spec: StoreSpec, *, lock: bool = True) -> "StoreWriter":
    """Open a store that an earlier process began, to write the windows that it did not commit.

    Parameters
    ----------
    place
        Of the store.
    spec
        That the store must have.
    lock
        Whether to hold the place against other writers. Processes that share a harvest each write their own windows;
        one of them holds it.

    Raises
    ------
    StoreError
        When the store there would not hold the same rows, naming the first field that differs.
    """
    objects = open_objects(place)
    found = read_group_attributes(objects)
    again = f"run it with the same options, with another STORE, or with --overwrite to replace {objects}"
    if not found["arrays"]:
        raise StoreError(f"{objects} only joins other stores: {again}.")
    theirs = Provenance.from_json(found["provenance"])
    try:
        theirs.require_same_rows(spec.provenance, f"{objects} was begun with other settings")
    except StoreError as error:
        raise StoreError(f"{error} To go on, {again}.") from None
    wanted = spec.attributes()
    for name in wanted:
        if name != "provenance" and wanted[name] != found.get(name):
            raise StoreError(
                f"{objects} was begun with other settings: {name} is {found.get(name)!r} there and {wanted[name]!r} "
                f"here. To go on, {again}."
            )
    record = objects.read_many([f.METADATA_RECORD])[0]
    if record is None:
        raise DamagedStoreError(f"{objects}/{f.METADATA_RECORD} is missing. {VERIFY}")
    held = objects.lock() if lock else None
    return StoreWriter(objects, spec, to_hex(crc32c(record)), held)


class StoreWriter:
    """Writes and commits the windows of one store.

    A chunk is committed when it has a commit record in each array; the records of a window are written after all of
    its bytes.
    """

    def __init__(self, objects: Objects, spec: StoreSpec, metadata_crc32c: str, lock: Lock | None) -> None:
        self.objects, self.spec, self.order = objects, spec, spec.order()
        self.n_windows = self.order.n_windows
        self.metadata_crc32c = metadata_crc32c
        self._lock = lock
        self._chunks_per_window = spec.tokens_per_image
        self._spare: list[Blocks] = []
        committed = self._committed()
        self.pending = [window for window in range(self.n_windows) if window not in committed]
        """Numbers of the windows that are not committed, ascending."""

    def window_images(self, window: int) -> tuple[int, int]:
        """First place of a window's images in the row order, and the place after its last."""
        return self.order.window_images(window)

    def window_rows(self, window: int) -> tuple[int, int]:
        """First row of a window, and the row after its last."""
        return self.order.window_rows(window)

    def window_bytes(self) -> int:
        """Memory that a window takes while it is filled."""
        itemsize = np.dtype(f.DTYPES[self.spec.dtype]).itemsize
        rows = min(self.spec.rows_per_chunk, self.spec.n_images) * self.spec.tokens_per_image
        return rows * sum(self.spec.sites.values()) * itemsize

    def window(self, window: int) -> "WindowWriter":
        """Begin a window."""
        return WindowWriter(self, window)

    def blocks(self) -> Blocks:
        """Memory for the rows of a window, holding anything: that of an earlier one where it was taken back."""
        if self._spare:
            return self._spare.pop()
        rows, dtype = self.spec.rows_per_chunk * self.spec.tokens_per_image, f.DTYPES[self.spec.dtype]
        return {site: np.empty((rows, width), dtype) for site, width in self.spec.sites.items()}

    def take_back(self, blocks: Blocks) -> None:
        """Take the memory of a window that is written: new memory costs more time than its rows' way into it."""
        self._spare.append(blocks)

    def close(self) -> None:
        """Let another process write here."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _committed(self) -> set[int]:
        """The windows of which every chunk is recorded in every array."""
        n_chunks = f.n_chunks(self.spec.n_rows, self.spec.rows_per_chunk)
        missing: set[int] = set()
        for array in [*(site.path for site in self.spec.sites), f.ROW_VALID]:
            names = self.objects.names(f"commits/{array}")
            missing |= {chunk // self._chunks_per_window for chunk in range(n_chunks) if f"{chunk}.json" not in names}
        if self.spec.thumbnail_px is not None:
            names = self.objects.names(f"commits/{f.THUMBS}")
            missing |= {window for window in range(self.n_windows) if f"{window}.json" not in names}
        return set(range(self.n_windows)) - missing


class WindowWriter:
    """The rows of one window, gathered as they come, then written and committed together.

    Parameters
    ----------
    writer
        Of the store.
    window
        Its number.
    """

    def __init__(self, writer: StoreWriter, window: int) -> None:
        spec, order = writer.spec, writer.order
        self._writer, self._spec, self._order, self.number = writer, spec, order, window
        self._first_place, self._stop_place = order.window_images(window)
        self._start, self._stop = order.window_rows(window)
        n_images, n_rows = self._stop_place - self._first_place, self._stop - self._start
        padded = f.n_chunks(n_rows, spec.rows_per_chunk) * spec.rows_per_chunk
        self._whole = writer.blocks()
        self._blocks = {site: block[:padded] for site, block in self._whole.items()}
        for block in self._blocks.values():
            block[n_rows:] = f.FILL[spec.dtype]  # the rest is put, or not valid and filled then
        self._max_abs = {site: np.zeros(padded, np.float32) for site in spec.sites}
        self._valid = np.zeros(padded, np.bool_)
        self._unreadable: list[tuple[int, str]] = []
        self._thumbnails: list[bytes | None] = [None] * n_images
        self._is_there = np.zeros(n_images, np.bool_)
        self._begun: Begun | None = None

    def put(
        self,
        first_place: int,
        values: dict[f.Site, NDArray[np.float32]],
        valid: NDArray[np.bool_],
        unreadable: Iterable[tuple[int, str]] = (),
        thumbnails: Sequence[bytes | None] | None = None,
    ) -> None:
        """Take the rows of some consecutive places.

        Parameters
        ----------
        first_place
            The place of the first image.
        values
            `(n, T, d)` float32 for each site, or `(n, d)` where T is 1. Images that are not valid may hold anything.
        valid
            `(n,)`; False where the image could not be read.
        unreadable
            (image, reason) of each image that is not valid; images are numbered in source order.
        thumbnails
            WebP bytes of each image, None where there is none.

        Raises
        ------
        StoreError
            On a valid row that is not finite, or does not fit the store's dtype.
        """
        n, t = len(valid), self._spec.tokens_per_image
        first = first_place - self._first_place
        if set(values) != set(self._spec.sites) or first < 0 or first_place + n > self._stop_place:
            raise ValueError(f"window {self.number} takes {len(self._spec.sites)} sites of its own images")
        rows = self._order.rows_at(np.arange(first_place, first_place + n)) - self._start  # (n, T)
        where: slice | NDArray[np.int64] = rows.ravel() if t > 1 else slice(first, first + n)
        row_valid = np.repeat(valid, t)
        for site, tokens in values.items():
            width = self._spec.sites[site]
            if tokens.size != n * t * width:
                raise ValueError(f"{site} needs values of shape {(n, t, width)}, not {tokens.shape}")
            tokens, block = tokens.reshape(n * t, width), self._blocks[site]
            self._max_abs[site][where] = self._magnitude(tokens, row_valid, site, rows.ravel())
            if not row_valid.all():
                self._scatter(tokens[row_valid], block, rows.ravel()[row_valid])
                block[rows.ravel()[~row_valid]] = f.FILL[self._spec.dtype]
            elif isinstance(where, slice) and self._spec.dtype == "float16":
                to_float16(tokens, out=block[where])
            else:
                self._scatter(tokens, block, rows.ravel())
        self._valid[where] = row_valid
        self._unreadable += [(int(image), reason) for image, reason in unreadable]
        if thumbnails is not None:
            self._thumbnails[first : first + n] = thumbnails
        self._is_there[first : first + n] = True

    def commit(self) -> None:
        """Write the window, then record it; when this returns, both are durable."""
        self._writer.objects.settle(self.write())

    def begin(self) -> None:
        """Give the window's bytes to the disk under other names, so that `write` has less to wait for.

        A window of many bytes, which go to the disk some at a time, is left to `write`.
        """
        if self._begun is None and sum(block.nbytes for block in self._blocks.values()) <= _BYTES_AT_ONCE:
            files: Files = {}
            records: Files = {}
            for chunk in self.encoded():
                files |= chunk.files
                records |= chunk.record_files
            self._begun = self._writer.objects.begin(files, records)

    def abandon(self) -> None:
        """Let go of what `begin` wrote."""
        if self._begun is not None:
            self._begun.abandon()

    def write(self, settle: Collection[str] = ()) -> Collection[str]:
        """Write the window, then record it; gives what is not durable yet of its records' names.

        Parameters
        ----------
        settle
            What an earlier window gave; see `Begun.finish`.
        """
        objects = self._writer.objects
        self.begin()
        if self._begun is None:
            records: Files = {}
            files: Files = {}
            for chunk in self.encoded():
                files |= chunk.files
                records |= chunk.record_files
                if sum(len(part) for parts in files.values() for part in parts) > _BYTES_AT_ONCE:
                    objects.write_all(files)
                    files = {}
            self._begun = objects.begin(files, records)
        left = self._begun.finish(settle)
        self._writer.take_back(self._whole)
        if self.number in self._writer.pending:
            self._writer.pending.remove(self.number)
        return left

    def encoded(self) -> Iterator["EncodedChunk"]:
        """Each chunk of each array of the window, and its thumbnails, as they are to be written."""
        if not self._is_there.all():
            raise ValueError(f"window {self.number} lacks {int((~self._is_there).sum())} of its images")
        codec, plain = ChunkCodec(self._spec.codec), ChunkCodec("none")
        n = self._spec.rows_per_chunk
        for local in range(len(self._valid) // n):
            here = slice(local * n, (local + 1) * n)
            chunk = self._start // n + local
            rows = [self._start + here.start, min(self._start + here.stop, self._stop)]
            n_valid = int(self._valid[here].sum())
            for site, block in self._blocks.items():
                parts, committed = encode_chunk(block[here], codec)
                record = {
                    **self._identity(site.path, chunk),
                    **committed,
                    "rows": rows,
                    "max_abs": float(self._max_abs[site][here].max()),
                    "valid_rows": n_valid,
                }
                yield EncodedChunk(site.path, chunk, {f.chunk_file(site.path, chunk, 2): parts}, record)
            parts, committed = encode_chunk(self._valid[here], plain)
            record = {
                **self._identity(f.ROW_VALID, chunk),
                **committed,
                "rows": rows,
                "valid_rows": n_valid,
                "unreadable": [] if local else [list(pair) for pair in self._unreadable],
            }
            yield EncodedChunk(f.ROW_VALID, chunk, {f.chunk_file(f.ROW_VALID, chunk, 1): parts}, record)
        if self._spec.thumbnail_px is not None:
            pictures, committed = _encode_thumbnails(self.number, self._thumbnails)
            record = {**self._identity(f.THUMBS, self.number), **committed}
            yield EncodedChunk(f.THUMBS, self.number, pictures, record)

    def _identity(self, array: str, chunk: int) -> dict[str, Any]:
        return {"array": array, "chunk": chunk, "metadata_crc32c": self._writer.metadata_crc32c}

    def _scatter(self, rows: NDArray[np.float32], block: NDArray[Any], places: NDArray[np.int64]) -> None:
        """Put rows into places of a block, a piece at a time: what is cast is still in the cache when it is moved."""
        for start in range(0, len(rows), _ROWS_CAST):
            piece = slice(start, start + _ROWS_CAST)
            block[places[piece]] = self._cast(rows[piece])

    def _cast(self, rows: NDArray[np.float32]) -> NDArray[Any]:
        """Rows in the stored dtype."""
        if self._spec.dtype == "bfloat16":
            return to_bfloat16(rows)
        return to_float16(rows) if self._spec.dtype == "float16" else rows

    def _magnitude(
        self, rows: NDArray[np.float32], valid: NDArray[np.bool_], site: f.Site, places: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """The largest magnitude of each row, 0 for those not valid; `StoreError` where one cannot be stored."""
        magnitude = np.maximum(rows.max(axis=1), -rows.min(axis=1))  # (n,), NaN where a coordinate is
        magnitude[~valid] = 0.0
        if not np.isfinite(magnitude).all():
            row = self._start + int(places[np.flatnonzero(~np.isfinite(magnitude))[0]])
            raise StoreError(
                f"{site}: the activation of row {row} is not finite; the tower or its precision is at fault."
            )
        largest = _LARGEST.get(self._spec.dtype, np.inf)
        if magnitude.max(initial=0.0) > largest:
            row = self._start + int(places[magnitude.argmax()])
            remedy = "--dtype bfloat16 or --dtype float32" if self._spec.dtype == "float16" else "--dtype float32"
            raise StoreError(
                f"{site}: the activation of row {row} reaches {magnitude.max():.6g}, beyond {self._spec.dtype}'s "
                f"{largest:.6g}. Harvest with {remedy}."
            )
        return magnitude


@dataclass(frozen=True)
class EncodedChunk:
    """One chunk of an array, or the thumbnails of a window, as it is written."""

    array: str
    """Path of the array, or `thumbs`."""
    number: int
    """Of the chunk, or the window."""
    files: Files
    record: dict[str, Any]
    """Its commit record."""

    @property
    def record_files(self) -> Files:
        """The file of the record."""
        return {f.record_file(self.array, self.number): [encode_record(self.record)]}


def _encode_thumbnails(window: int, thumbnails: Sequence[bytes | None]) -> tuple[Files, dict[str, Any]]:
    """The files of a window's thumbnails by name, and what their commit record says of them."""
    blobs = [blob or b"" for blob in thumbnails]
    arrays: dict[str, NDArray[Any]] = {
        "blob": np.frombuffer(b"".join(blobs) or b"\0", np.uint8),
        "offset": np.concatenate(([0], np.cumsum([len(blob) for blob in blobs]))).astype(np.uint64),
    }
    documents = thumbnail_documents(window, len(arrays["blob"]), len(arrays["offset"]))
    files: Files = {name: [document] for name, document in documents.items()}
    chunks = {}
    for name, path in f.thumbs_chunks(window).items():
        files[path], chunks[name] = encode_chunk(arrays[name], ChunkCodec("none"))
    return files, {"files": {name: to_hex(crc32c(text)) for name, text in documents.items()}, "chunks": chunks}


def to_float16(rows: NDArray[np.float32], out: NDArray[np.float16] | None = None) -> NDArray[np.float16]:
    """float16 values, rounded to nearest even; infinite beyond its range. Into `out`, contiguous, where it is given.

    By torch, in a fifth of the time that numpy's cast takes (0.5 against 2.7 ms for 1,024 rows of 1,024), which was
    more than all else that is computed for a chunk. In pieces so small that torch leaves its threads asleep: their
    waking and waiting costs more than they save.
    """
    import torch

    held = rows if rows.flags.writeable else rows.copy()  # torch takes no array that it might not write
    source = torch.from_numpy(np.ascontiguousarray(held)).view(-1)
    cast = np.empty(rows.shape, np.float16) if out is None else out
    target = torch.from_numpy(cast).view(-1)
    for start in range(0, len(source), _SERIAL):
        target[start : start + _SERIAL] = source[start : start + _SERIAL]
    return cast


def to_bfloat16(rows: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bits of bfloat16 values, rounded to nearest even; finite values only."""
    bits = np.ascontiguousarray(rows, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)


def _clear(objects: Objects, overwrite: bool) -> None:
    if objects.local is not None and objects.local.exists() and not objects.local.is_dir():
        raise StoreError(f"{objects} exists and is not a folder: name another STORE.")
    if not objects.names():
        return
    is_begun = objects.exists(f.CREATING)
    if not is_begun:
        _require_store(objects)
        if not overwrite:
            raise StoreError(f"{objects} exists. Name another STORE, or replace it with --overwrite.")
    with closing(objects.lock()):  # the mark would have the next harvest remove what another process writes now
        if not is_begun:
            objects.write(f.CREATING, b"")
        objects.delete([f.GROUP_JSON])
        objects.delete_all(keep=[f.CREATING])


def remove_store(objects: Objects) -> None:
    """Remove a store; one that is killed on the way leaves what the next harvest there clears away."""
    _clear(objects, overwrite=True)
    objects.delete([f.CREATING])
    if objects.local is not None:
        objects.local.rmdir()


def _require_store(objects: Objects) -> None:
    """Check that what stands there is an activation store, so that it may be replaced.

    Raises
    ------
    StoreError
        When it is anything else.
    """
    try:
        read_group_attributes(objects)
    except DamagedStoreError:
        read_record(objects, f.METADATA_RECORD)  # it was one, as this tells
    except StoreError:
        raise StoreError(
            f"{objects} is not empty and is not an activation store, so it is not replaced: name another STORE."
        ) from None

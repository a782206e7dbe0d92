"""The files of one part of a store, known from its metadata even where some of them are damaged."""

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import format as f
from .codec import CHECKSUM_BYTES, ChunkCodec
from .errors import DamagedStoreError
from .layout import StoreSpec, static_arrays
from .metadata import Metadata, array_size
from .objects import Objects
from .records import crc32c, decode_record, to_hex

_buffers = threading.local()


class NoRecordError(DamagedStoreError):
    """A chunk has no commit record."""


@dataclass(frozen=True)
class ArrayFiles:
    """One chunked array of a part."""

    name: str
    shape: tuple[int, ...]
    chunk_shape: tuple[int, ...]
    dtype: np.dtype[Any]
    codec: ChunkCodec

    @property
    def n_chunks(self) -> int:
        """Number of its chunks."""
        return f.n_chunks(self.shape[0], self.chunk_shape[0])

    @property
    def chunk_bytes(self) -> int:
        """Of a chunk in memory."""
        return int(np.prod(self.chunk_shape, dtype=np.int64)) * self.dtype.itemsize

    @property
    def has_rows(self) -> bool:
        """Whether its elements are the rows of the part."""
        return not self.name.startswith("images/")

    @property
    def is_static(self) -> bool:
        """Whether it is written when the store is made, not window by window."""
        return self.name != f.ROW_VALID and not self.name.startswith("layers/")

    def chunk_file(self, chunk: int) -> str:
        """Path of a chunk's file."""
        return f.chunk_file(self.name, chunk, len(self.shape))

    def extent(self, chunk: int) -> tuple[int, int]:
        """First element of a chunk, and the element after its last: rows, where the array has rows."""
        start = chunk * self.chunk_shape[0]
        return start, min(start + self.chunk_shape[0], self.shape[0])


class PartFiles:
    """One part's files.

    Parameters
    ----------
    objects
        Of the part.
    metadata
        As `recover_metadata` gives it; of a part that holds rows.
    """

    def __init__(self, objects: Objects, metadata: Metadata) -> None:
        assert metadata.spec is not None
        self.objects, self.metadata, self.metadata_crc32c = objects, metadata, metadata.crc32c
        self.spec: StoreSpec = metadata.spec
        self.order = self.spec.order()
        self.n_thumbnail_windows = self.order.n_windows if self.spec.thumbnail_px is not None else 0

    @cached_property
    def fingerprint(self) -> str:
        """As `StorePart` has it."""
        return self.metadata_crc32c + self.spec.provenance.keys_sha256[:24]

    @cached_property
    def row_arrays(self) -> list[ArrayFiles]:
        """The arrays that are written window by window: which rows are valid, then the activations."""
        spec, plain = self.spec, ChunkCodec("none")
        dtype, n = np.dtype(f.DTYPES[spec.dtype]), spec.rows_per_chunk
        valid = ArrayFiles(f.ROW_VALID, (spec.n_rows,), (n,), np.dtype(np.bool_), plain)
        codec = ChunkCodec(spec.codec)
        return [valid] + [
            ArrayFiles(site.path, (spec.n_rows, width), (n, width), dtype, codec) for site, width in spec.sites.items()
        ]

    @cached_property
    def static_arrays(self) -> list[ArrayFiles]:
        """The arrays that are written when the store is made; those of the keys only if their size is known."""
        document = self.metadata.documents.get(f"{f.KEY_BLOB}/zarr.json")
        sizes = static_arrays(self.spec, array_size(document) if document is not None else 0)
        return [
            ArrayFiles(name, (size,), (min(f.STATIC_CHUNK, size),), dtype, ChunkCodec("none"))
            for name, (size, dtype, _, _) in sizes.items()
            if name != f.KEY_BLOB or document is not None
        ]

    def array(self, name: str) -> ArrayFiles:
        """The array of a name; `KeyError` where there is none, or its size is lost."""
        return {array.name: array for array in [*self.row_arrays, *self.static_arrays]}[name]

    def parse_record(self, array: str, chunk: int, data: bytes | None) -> dict[str, Any]:
        """The commit record of a chunk, or of a window's thumbnails (array `thumbs`).

        Raises
        ------
        NoRecordError
            When there is none.
        DamagedStoreError
            When it has changed, or is that of another chunk; in words that go after the chunk's name.
        """
        if data is None:
            raise NoRecordError("its commit record is missing")
        try:
            record = decode_record(data, "")
        except DamagedStoreError:
            raise DamagedStoreError("its commit record is damaged: the checksum does not match the text") from None
        for field, wanted in (("array", array), ("chunk", chunk), ("metadata_crc32c", self.metadata_crc32c)):
            if record.get(field) != wanted:
                raise DamagedStoreError(
                    f"its commit record belongs elsewhere: its {field} is {record.get(field)!r}, not {wanted!r}"
                )
        return record

    def read_chunk(self, array: ArrayFiles, chunk: int) -> NDArray[Any]:
        """A chunk, whole with its padding; the record and the bytes are checked.

        Raises
        ------
        DamagedStoreError
            When either is not as it was committed.
        """
        data = self.objects.read_many([f.record_file(array.name, chunk)])[0]
        record = self.parse_record(array.name, chunk, data)
        name = array.chunk_file(chunk)
        return decoded(array, record, fetched(self.objects, [name])(name, record["bytes"])).copy()


Fetch = Callable[[str, int], bytes | memoryview]


def fetched(objects: Objects, names: Sequence[str]) -> Fetch:
    """Gives the bytes of each of some files by its name and the number of bytes that it must have.

    On a disk a file is read when it is asked for, into memory that the thread's next one uses again; elsewhere all are
    read now, side by side. What is asked for raises `DamagedStoreError` where the file is missing, of another size, or
    cannot be read, in words that go after the chunk's name.
    """
    if objects.local is not None:
        return partial(_read_file, objects.local)
    found = dict(zip(names, objects.read_many(names), strict=True))

    def fetch(name: str, n_bytes: int) -> bytes:
        data = found[name]
        if data is None:
            raise DamagedStoreError(f"{name} is missing")
        if len(data) != n_bytes:
            raise DamagedStoreError(f"{name} has {len(data):,} bytes, {n_bytes:,} were committed")
        return data

    return fetch


def _read_file(folder: Path, name: str, n_bytes: int) -> memoryview:
    try:
        descriptor = os.open(folder / name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(descriptor).st_size
            if size != n_bytes:
                raise DamagedStoreError(f"{name} has {size:,} bytes, {n_bytes:,} were committed")
            buffer: bytearray = getattr(_buffers, "file", bytearray())
            if len(buffer) < n_bytes:
                # Fresh memory for each file would cost as much as reading it from the page cache.
                _buffers.file = buffer = bytearray(n_bytes)
            view, at = memoryview(buffer)[:n_bytes], 0
            while at < n_bytes and (got := os.preadv(descriptor, [view[at:]], at)):
                at += got
            return view[:at]
        finally:
            os.close(descriptor)
    except (FileNotFoundError, NotADirectoryError):
        raise DamagedStoreError(f"{name} is missing") from None
    except OSError as error:
        raise DamagedStoreError(f"{name} cannot be read: {error.strerror or error}") from None


def unsealed(data: bytes | memoryview, checksum: str, name: str = "") -> memoryview:
    """What a file holds before its own checksum; `DamagedStoreError` where it is not what was committed."""
    payload = memoryview(data)[:-CHECKSUM_BYTES]
    found, own = to_hex(crc32c(payload)), to_hex(int.from_bytes(data[-CHECKSUM_BYTES:], "little"))
    which = f"{name} is damaged: " if name else ""
    if found != checksum:
        raise DamagedStoreError(f"{which}its bytes have checksum {found}, {checksum} was committed")
    if own != checksum:
        raise DamagedStoreError(f"{which}the checksum that ends its file is {own}, {checksum} was committed")
    return payload


def decoded(array: ArrayFiles, record: dict[str, Any], data: bytes | memoryview) -> NDArray[Any]:
    """The values of a chunk's file, in its memory where there is no compressor; `DamagedStoreError` as `unsealed`."""
    return array.codec.decode(unsealed(data, record["crc32c"]), array.chunk_shape, array.dtype)

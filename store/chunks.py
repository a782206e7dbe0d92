"""Reads one array of a store: each chunk checked against its commit record on its first use in this process."""

import json
import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import format as f
from .codec import ChunkCodec, unseal
from .errors import DamagedStoreError, StoreError
from .objects import Objects
from .records import VERIFY, decode_record

_OPEN_FILES = min(1024, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
_KEPT_CHUNKS = 8  # of an array that is compressed or remote, so that neighbouring reads do not fetch a chunk again
_RECORDS_AT_ONCE = 1024
_CHUNKS_AT_ONCE = 32  # of an array that is read chunk by chunk, asked for together by one read ...
_BYTES_AT_ONCE = 64 << 20  # ... unless they are large

_BYTES_ANNOUNCED = 256 << 20  # that one read tells a disk of
_CHUNKS_AHEAD = 2  # that a disk is told of, where a thread reads chunk after chunk: 0.54 to 0.75 GB/s from a cold disk

_scratch = threading.local()


class ChunkReader:
    """One chunked array of a store, read by rows along its first axis, by any number of threads.

    On a disk and without compression, rows are read from their place in the chunk's file; else chunks are read whole.

    Parameters
    ----------
    objects
        Of the store.
    name
        Path of the array in it.
    metadata_crc32c
        Checksum of the store's metadata record, which each chunk's record must name.

    Raises
    ------
    StoreError
        When the array is not there, or its layout is not this format's.
    """

    def __init__(self, objects: Objects, name: str, metadata_crc32c: str) -> None:
        self.objects, self.name, self.metadata_crc32c = objects, name, metadata_crc32c
        try:
            metadata = json.loads(objects.read(f"{name}/zarr.json"))
            self.shape: tuple[int, ...] = tuple(metadata["shape"])
            chunk_shape = tuple(metadata["chunk_grid"]["configuration"]["chunk_shape"])
            self.dtype = np.dtype(metadata["data_type"])
            codecs = metadata["codecs"]
        except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
            raise DamagedStoreError(f"{objects}/{name} has no readable zarr.json ({error}). {VERIFY}") from None
        if chunk_shape[1:] != self.shape[1:]:
            raise StoreError(f"{objects}/{name} has chunks of {chunk_shape}: this format does not cut rows.")
        self.chunk_rows: int = chunk_shape[0]
        self.codec = ChunkCodec.of_metadata(codecs, f"{objects}/{name}")
        self.n_chunks = f.n_chunks(self.shape[0], self.chunk_rows)
        self.row_shape = self.shape[1:]
        self.row_bytes = int(np.prod(self.row_shape, dtype=np.int64)) * self.dtype.itemsize
        self.reads_in_place = objects.local is not None and self.codec.name == "none"
        """Whether a few rows can be read without the rest of their chunk."""
        self._checked, self._announced = bytearray(self.n_chunks), bytearray(self.n_chunks)
        self._n_checked = 0  # one that two threads checked at once counts twice: only announcements depend on it
        # What the commit record of a chunk says, where chunks are read whole; size 0 before that was read.
        self._sizes = np.zeros(0 if self.reads_in_place else self.n_chunks, np.int64)
        self._crcs = np.zeros(0 if self.reads_in_place else self.n_chunks, np.uint32)
        self._files: dict[int, int] = {}
        self._kept: OrderedDict[int, NDArray[Any]] = OrderedDict()
        self._records: dict[int, bytes | None] = {}
        self._mutex = threading.Lock()

    def __del__(self) -> None:
        for descriptor in getattr(self, "_files", {}).values():
            os.close(descriptor)

    def __getstate__(self) -> dict[str, Any]:
        return {"objects": self.objects, "name": self.name, "metadata_crc32c": self.metadata_crc32c}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Rows `[start, stop)`, a new array."""
        if not 0 <= start <= stop <= self.shape[0]:
            raise ValueError(f"rows {start} to {stop} are not within the {self.shape[0]} rows of {self.name}")
        out = np.empty((stop - start, *self.row_shape), self.dtype)
        self.read_runs([start], [stop - start], out)
        return out

    def read_runs(self, starts: Sequence[int], lengths: Sequence[int], out: NDArray[Any]) -> None:
        """Fill a C-contiguous `out` with runs of rows, one after the other."""
        if self.reads_in_place:
            self._read_in_place(starts, lengths, out)
            return
        pieces: dict[int, list[tuple[int, int, int]]] = {}  # of each chunk: first row in it, rows, place in `out`
        at = 0
        for start, length in zip(starts, lengths, strict=True):
            while length:
                chunk, first = divmod(start, self.chunk_rows)
                n = min(length, self.chunk_rows - first)
                pieces.setdefault(chunk, []).append((first, n, at))
                at, start, length = at + n, start + n, length - n
        chunks = list(pieces)
        together = max(1, min(_CHUNKS_AT_ONCE, _BYTES_AT_ONCE // max(1, self.chunk_rows * self.row_bytes)))
        for begin in range(0, len(chunks), together):
            some = chunks[begin : begin + together]
            for chunk, rows in zip(some, self._whole_chunks(some), strict=True):
                for first, n, at in pieces[chunk]:
                    out[at : at + n] = rows[first : first + n]

    def _load_chunks(self, chunks: Sequence[int]) -> list[NDArray[Any]]:
        """Some chunks, each whole with its padding, checked against its commit record.

        From afar the chunks come side by side, with the records of those that are read for the first time.
        """
        new = [chunk for chunk in chunks if not self._sizes[chunk]]
        names = [f.chunk_file(self.name, chunk, len(self.shape)) for chunk in chunks]
        found = self.objects.read_many([f.record_file(self.name, chunk) for chunk in new] + names)
        for chunk, data in zip(new, found, strict=False):
            record = self._parse_record(chunk, data)
            self._crcs[chunk] = int(record["crc32c"], 16)
            self._sizes[chunk] = record["bytes"]
        return [
            self._decode(chunk, name, data) for chunk, name, data in zip(chunks, names, found[len(new) :], strict=True)
        ]

    def _decode(self, chunk: int, name: str, data: bytes | None) -> NDArray[Any]:
        if data is None:
            raise DamagedStoreError(f"{self.objects}/{name} is missing, though it was committed. {VERIFY}")
        if len(data) != self._sizes[chunk]:
            raise DamagedStoreError(
                f"{self.objects}/{name} has {len(data)} bytes, {self._sizes[chunk]} were committed. {VERIFY}"
            )
        payload = unseal(data, int(self._crcs[chunk]), f"{self.objects}/{name}")
        return self.codec.decode(payload, (self.chunk_rows, *self.row_shape), self.dtype)

    def record(self, chunk: int) -> dict[str, Any]:
        """The commit record of a chunk.

        Raises
        ------
        StoreError
            When the chunk was never committed.
        DamagedStoreError
            When the record is damaged, or belongs to another chunk, array or store.
        """
        return self._parse_record(chunk, self._record_bytes(chunk))

    def records(self, chunks: Sequence[int]) -> Iterator[dict[str, Any]]:
        """The commit records of some chunks, from afar many at a time; see `record`."""
        for begin in range(0, len(chunks), _RECORDS_AT_ONCE):
            some = chunks[begin : begin + _RECORDS_AT_ONCE]
            found = self.objects.read_many([f.record_file(self.name, chunk) for chunk in some])
            yield from map(self._parse_record, some, found)

    def _parse_record(self, chunk: int, data: bytes | None) -> dict[str, Any]:
        name = f.record_file(self.name, chunk)
        if data is None:
            raise StoreError(f"chunk {chunk} of {self.name} in {self.objects} was never committed.")
        record = decode_record(data, f"{self.objects}/{name}")
        for field, wanted in (("array", self.name), ("chunk", chunk), ("metadata_crc32c", self.metadata_crc32c)):
            if record.get(field) != wanted:
                raise DamagedStoreError(
                    f"{self.objects}/{name} belongs elsewhere: its {field} is {record.get(field)!r}, not {wanted!r}. "
                    f"{VERIFY}"
                )
        return record

    def _record_bytes(self, chunk: int) -> bytes | None:
        if self.objects.local is not None:
            return self.objects.read_many([f.record_file(self.name, chunk)])[0]
        with self._mutex:
            if chunk in self._records:
                return self._records[chunk]
        # Far away, a round trip for each chunk would double the latency: their neighbours' records come along.
        first = chunk // _RECORDS_AT_ONCE * _RECORDS_AT_ONCE
        chunks = range(first, min(first + _RECORDS_AT_ONCE, self.n_chunks))
        found = self.objects.read_many([f.record_file(self.name, each) for each in chunks])
        with self._mutex:
            self._records = dict(zip(chunks, found, strict=True))
        return self._records[chunk]

    def _read_in_place(self, starts: Sequence[int], lengths: Sequence[int], out: NDArray[Any]) -> None:
        chunk_rows, row_bytes, files = self.chunk_rows, self.row_bytes, self._files
        if len(starts) > 1:
            self._announce_unchecked(starts)
        target = out.data.cast("B") if out.nbytes else memoryview(b"")
        at = 0
        for start, length in zip(starts, lengths, strict=True):
            while length:
                chunk = start // chunk_rows
                first = start - chunk * chunk_rows
                n = min(length, chunk_rows - first)
                end = at + n * row_bytes
                descriptor = files.get(chunk)
                if descriptor is not None:
                    got = os.preadv(descriptor, [target[at:end]], first * row_bytes)
                else:
                    got = self._read_new_file(chunk, target[at:end], first * row_bytes)
                if got != n * row_bytes:
                    raise DamagedStoreError(
                        f"chunk {chunk} of {self.name} in {self.objects} became shorter while in use. {VERIFY}"
                    )
                at, start, length = end, start + n, length - n

    def _read_new_file(self, chunk: int, target: memoryview, offset: int) -> int:
        """Read from a chunk whose file is not open, checked first unless it was; keep it open if there is room."""
        assert self.objects.local is not None
        name = f.chunk_file(self.name, chunk, len(self.shape))
        try:
            descriptor = os.open(self.objects.local / name, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise DamagedStoreError(f"{self.objects}/{name} is missing, though it was committed. {VERIFY}") from None
        keep = False
        try:
            if not self._checked[chunk]:
                got = self._check(chunk, name, descriptor, target, offset)
                self._checked[chunk] = 1
                self._n_checked += 1
            else:
                got = os.preadv(descriptor, [target], offset)
            with self._mutex:
                keep = chunk not in self._files and len(self._files) < _OPEN_FILES
                if keep:
                    self._files[chunk] = descriptor
            return got
        finally:
            if not keep:
                os.close(descriptor)

    def _announce_unchecked(self, starts: Sequence[int]) -> None:
        """Have the disk begin with the chunks of some runs that are read for the first time, since they are read whole.

        On a disk that is not in the page cache yet this keeps its queue full: from 0.8 to 1.1 GB/s.
        """
        if self._n_checked < self.n_chunks:
            new = [chunk for chunk in (start // self.chunk_rows for start in starts) if not self._checked[chunk]]
            self._announce(new[: max(1, _BYTES_ANNOUNCED // max(1, self.chunk_rows * self.row_bytes))])

    def _announce(self, chunks: Iterable[int]) -> None:
        """Have the disk begin with chunks that are likely to be read next, and with their records."""
        assert self.objects.local is not None
        if not hasattr(os, "posix_fadvise"):
            return
        for chunk in chunks:
            if self._announced[chunk]:
                continue
            self._announced[chunk] = 1
            for name in (f.record_file(self.name, chunk), f.chunk_file(self.name, chunk, len(self.shape))):
                try:
                    descriptor = os.open(self.objects.local / name, os.O_RDONLY | os.O_CLOEXEC)
                except OSError:
                    return  # the read itself will say what is wrong
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
                os.close(descriptor)

    def _check(self, chunk: int, name: str, descriptor: int, target: memoryview, offset: int) -> int:
        """Compare an open chunk file with its commit record, in memory that the thread uses again.

        `target` is filled from there, as by a read at `offset`.
        """
        if getattr(_scratch, "checked", None) == (id(self), chunk - 1):
            self._announce(range(chunk + 1, min(chunk + 1 + _CHUNKS_AHEAD, self.n_chunks)))
        _scratch.checked = (id(self), chunk)
        record = self.record(chunk)
        n_bytes = os.fstat(descriptor).st_size
        if n_bytes != record["bytes"]:
            raise DamagedStoreError(
                f"{self.objects}/{name} has {n_bytes} bytes, {record['bytes']} were committed. {VERIFY}"
            )
        scratch = getattr(_scratch, "memory", None)
        if scratch is None or len(scratch) < n_bytes:
            scratch = _scratch.memory = bytearray(n_bytes)
        data = memoryview(scratch)[:n_bytes]
        got = 0
        while got < n_bytes:
            n = os.preadv(descriptor, [data[got:]], got)
            if not n:
                raise DamagedStoreError(f"{self.objects}/{name} became shorter while in use. {VERIFY}")
            got += n
        unseal(data, int(record["crc32c"], 16), f"{self.objects}/{name}")
        found = data[offset : offset + len(target)]
        target[: len(found)] = found
        return len(found)

    def _whole_chunks(self, chunks: Sequence[int]) -> list[NDArray[Any]]:
        """Chunks that are kept from earlier reads, or loaded now and kept for later ones."""
        with self._mutex:
            found = {chunk: self._kept[chunk] for chunk in chunks if chunk in self._kept}
        missing = [chunk for chunk in chunks if chunk not in found]
        found |= zip(missing, self._load_chunks(missing), strict=True) if missing else ()
        with self._mutex:
            for chunk in chunks:
                self._kept[chunk] = found[chunk]
                self._kept.move_to_end(chunk)
            while len(self._kept) > _KEPT_CHUNKS:
                self._kept.popitem(last=False)
        return [found[chunk] for chunk in chunks]

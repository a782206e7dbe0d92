"""Reads a few entries of a chunked array straight from its chunks' files.

zarr hands every read to a thread with an event loop of its own and decodes a chunk anew each time: 3 ms for thirty
numbers, of which the chunk's decoding is one.
"""

import json
import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..store.codec import CHECKSUM_BYTES, ChunkCodec
from ..store.errors import DamagedStoreError
from ..store.records import crc32c


class DirectArray:
    """A one-dimensional zarr v3 array, read by any number of threads; every chunk is checked on its first use.

    Of an array without compression the bytes that are asked for are read from their place in the chunk's file; else
    chunks are decoded whole, and the last ones kept.

    Parameters
    ----------
    path
        Of the array.
    kept_bytes
        Decoded chunks are kept up to so many.

    Raises
    ------
    StoreError
        When its codecs are not those that Thresher writes.
    """

    def __init__(self, path: Path, kept_bytes: int) -> None:
        metadata = json.loads((path / "zarr.json").read_text())
        self.path = path
        self.size: int = metadata["shape"][0]
        self.chunk_size: int = metadata["chunk_grid"]["configuration"]["chunk_shape"][0]
        self.dtype = np.dtype(metadata["data_type"])
        self.codec = ChunkCodec.of_metadata(metadata["codecs"], str(path))
        self._n_kept = max(1, kept_bytes // (self.chunk_size * self.dtype.itemsize))
        self._kept: OrderedDict[int, NDArray[Any]] = OrderedDict()
        self._checked: set[int] = set()
        self._lock = threading.Lock()

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Entries `[start, stop)`.

        Raises
        ------
        DamagedStoreError
            When a chunk is gone or its checksum does not match.
        """
        if not 0 <= start <= stop <= self.size:
            raise ValueError(f"entries {start} to {stop} are not within the {self.size} of {self.path}")
        pieces = []
        while start < stop:
            chunk, first = divmod(start, self.chunk_size)
            last = min(self.chunk_size, first + stop - start)
            pieces.append(self._of_chunk(chunk, first, last))
            start += last - first
        return pieces[0] if len(pieces) == 1 else np.concatenate([np.zeros(0, self.dtype), *pieces])

    def _of_chunk(self, chunk: int, first: int, last: int) -> NDArray[Any]:
        file = self.path / "c" / str(chunk)
        try:
            if chunk in self._checked and self.codec.name == "none":
                return self._in_place(file, first, last)
            with self._lock:
                found = self._kept.get(chunk)
                if found is not None:
                    self._kept.move_to_end(chunk)
            if found is None:
                found = self._decoded(file)
                self._keep(chunk, found)
        except FileNotFoundError:
            raise DamagedStoreError(f"chunk {chunk} of {self.path} is gone. Encode again with --overwrite.") from None
        return found[first:last].copy()

    def _in_place(self, file: Path, first: int, last: int) -> NDArray[Any]:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = os.pread(descriptor, (last - first) * self.dtype.itemsize, first * self.dtype.itemsize)
        finally:
            os.close(descriptor)
        if len(data) != (last - first) * self.dtype.itemsize:
            raise DamagedStoreError(f"{file} became shorter while in use. Encode again with --overwrite.")
        return np.frombuffer(data, self.dtype)

    def _decoded(self, file: Path) -> NDArray[Any]:
        data = memoryview(file.read_bytes())
        payload, checksum = data[:-CHECKSUM_BYTES], int.from_bytes(data[-CHECKSUM_BYTES:], "little")
        try:
            if crc32c(payload) != checksum:
                raise ValueError(f"its bytes have checksum {crc32c(payload):08x}, {checksum:08x} was written")
            return self.codec.decode(payload, (self.chunk_size,), self.dtype)
        except (ValueError, RuntimeError) as error:
            raise DamagedStoreError(f"{file} is damaged ({error}). Encode again with --overwrite.") from error

    def _keep(self, chunk: int, found: NDArray[Any]) -> None:
        with self._lock:
            self._checked.add(chunk)
            if self.codec.name != "none":
                self._kept[chunk] = found
                while len(self._kept) > self._n_kept:
                    self._kept.popitem(last=False)

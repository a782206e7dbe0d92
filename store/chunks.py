"""Reads one array of a store: each chunk checked against its commit record on its first use in this process."""

import json
import os
import resource
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import format as f
from .codec import CHECKSUM_BYTES, ChunkCodec, unseal
from .errors import DamagedStoreError, StoreError
from .records import VERIFY, read_record

_OPEN_FILES = min(1024, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
_DECODED_CHUNKS = 8  # of a compressed array, kept so that neighbouring reads do not decode a chunk again


class ChunkReader:
    """One chunked array of a store, read by rows along its first axis.

    Parameters
    ----------
    root
        Folder of the store.
    name
        Path of the array in it.

    Raises
    ------
    StoreError
        When the array is not there, or its layout is not this format's.
    """

    def __init__(self, root: Path, name: str) -> None:
        self.root, self.name = root, name
        try:
            metadata = json.loads((root / name / "zarr.json").read_bytes())
            self.shape: tuple[int, ...] = tuple(metadata["shape"])
            chunk_shape = tuple(metadata["chunk_grid"]["configuration"]["chunk_shape"])
            self.dtype = np.dtype(metadata["data_type"])
            codecs = metadata["codecs"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DamagedStoreError(f"{root}/{name} has no readable zarr.json ({error}). {VERIFY}") from None
        if chunk_shape[1:] != self.shape[1:]:
            raise StoreError(f"{root}/{name} has chunks of {chunk_shape}: this format does not cut rows.")
        self.chunk_rows: int = chunk_shape[0]
        self.codec = ChunkCodec.of_metadata(codecs, f"{root}/{name}")
        self.n_chunks = f.n_chunks(self.shape[0], self.chunk_rows)
        self.row_shape = self.shape[1:]
        self.row_bytes = int(np.prod(self.row_shape, dtype=np.int64)) * self.dtype.itemsize
        self._checked = np.zeros(self.n_chunks, np.bool_)
        self._files: dict[int, int] = {}
        self._decoded: OrderedDict[int, NDArray[Any]] = OrderedDict()
        self._mutex = threading.Lock()

    def __del__(self) -> None:
        for descriptor in getattr(self, "_files", {}).values():
            os.close(descriptor)

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "name": self.name}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["root"], state["name"])  # type: ignore[misc]

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Rows `[start, stop)`, a new array."""
        if not 0 <= start <= stop <= self.shape[0]:
            raise ValueError(f"rows {start} to {stop} are not within the {self.shape[0]} rows of {self.name}")
        out = np.empty((stop - start, *self.row_shape), self.dtype)
        self.read_into(start, out)
        return out

    def read_into(self, start: int, out: NDArray[Any]) -> None:
        """Fill a contiguous `out` with the rows from `start` on."""
        filled = 0
        while filled < len(out):
            chunk, first = divmod(start + filled, self.chunk_rows)
            n = min(len(out) - filled, self.chunk_rows - first)
            self._read_piece(chunk, first, out[filled : filled + n])
            filled += n

    def load_chunk(self, chunk: int) -> NDArray[Any]:
        """One chunk, whole with its padding, checked against its commit record now."""
        record = self.record(chunk)
        path = self.root / f.chunk_file(self.name, chunk, len(self.shape))
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise DamagedStoreError(f"{path} is missing, though it was committed. {VERIFY}") from None
        if len(data) != record["bytes"]:
            raise DamagedStoreError(f"{path} has {len(data)} bytes, {record['bytes']} were committed. {VERIFY}")
        payload = unseal(data, int(record["crc32c"], 16), str(path))
        return self.codec.decode(payload, (self.chunk_rows, *self.row_shape), self.dtype)

    def record(self, chunk: int) -> dict[str, Any]:
        """The commit record of a chunk."""
        path = self.root / f.record_file(self.name, chunk)
        try:
            return read_record(path)
        except FileNotFoundError:
            raise StoreError(f"chunk {chunk} of {self.name} in {self.root} was never committed.") from None

    def _read_piece(self, chunk: int, first: int, out: NDArray[Any]) -> None:
        if self.codec.name != "none":
            out[:] = self._decoded_chunk(chunk)[first : first + len(out)]
            return
        if not self._checked[chunk]:
            out[:] = self.load_chunk(chunk)[first : first + len(out)]
            self._checked[chunk] = True
            return
        descriptor = self._file(chunk)
        try:
            got = os.preadv(descriptor, [out.data.cast("B")], first * self.row_bytes)
        finally:
            if chunk not in self._files:
                os.close(descriptor)
        if got != out.nbytes:
            raise DamagedStoreError(
                f"chunk {chunk} of {self.name} in {self.root} became shorter while in use. {VERIFY}"
            )

    def _file(self, chunk: int) -> int:
        with self._mutex:
            if chunk not in self._files:
                path = self.root / f.chunk_file(self.name, chunk, len(self.shape))
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                if len(self._files) >= _OPEN_FILES:
                    return descriptor
                self._files[chunk] = descriptor
            return self._files[chunk]

    def _decoded_chunk(self, chunk: int) -> NDArray[Any]:
        with self._mutex:
            if chunk in self._decoded:
                self._decoded.move_to_end(chunk)
                return self._decoded[chunk]
        decoded = self.load_chunk(chunk)
        with self._mutex:
            self._decoded[chunk] = decoded
            while len(self._decoded) > _DECODED_CHUNKS:
                self._decoded.popitem(last=False)
        return decoded

    @property
    def stored_bytes(self) -> int:
        """Bytes of a whole chunk file without codec."""
        return self.chunk_rows * self.row_bytes + CHECKSUM_BYTES

"""Long one-dimensional zarr arrays written front to back, their length unknown until the end."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

CHUNK = 1 << 18
"""Entries a chunk: 1 MB of float32, so that one feature's or one row's entries cost one short read."""
_ARRAY_CHUNK_BYTES = 1 << 20
_CHUNKS_AT_ONCE = 8  # written together: zarr encodes them side by side


def codecs(kind: str) -> tuple[Any, ...]:
    """Codecs after the bytes of an array: `integer` or `float`, each ending in crc32c.

    Measured on entries with a log-normal spread of densities and values, at d_sae 1,536 and 65,536: blosc zstd 1 with
    byte shuffle makes feature ids 3.4 and 2.0 times smaller (lz4 2.8 and 2.0, plain zstd 2.8 and 1.7) at the writing
    speed of no codec; of float32 activations the best, zstd 3 with bit shuffle, takes a tenth. They are left alone.
    """
    from zarr.codecs import BloscCodec, Crc32cCodec

    if kind == "float":
        return (Crc32cCodec(),)
    return (BloscCodec(cname="zstd", clevel=1, shuffle="shuffle"), Crc32cCodec())


@dataclass(frozen=True)
class ColumnState:
    """Where a column stands: enough to go on writing it."""

    n_written: int
    """Values in whole chunks, which are in their files."""
    tail: NDArray[Any]
    """The values after them, fewer than a chunk."""


class Column:
    """An array that grows at its end, through a buffer of whole chunks.

    Parameters
    ----------
    state
        Go on with the array that is there, from here; what was written after it is written again.
    """

    def __init__(
        self, group: Any, path: str, dtype: Any, *, chunk: int = CHUNK, state: ColumnState | None = None
    ) -> None:
        dtype = np.dtype(dtype)
        self.path, self._chunk = path, chunk
        self._buffer = np.empty(chunk * _CHUNKS_AT_ONCE, dtype)
        if state is not None:
            self._array = group[path]
            self._written, self._held = state.n_written, len(state.tail)
            self._reserved = self._array.shape[0]
            self._buffer[: self._held] = state.tail
            return
        self._array = group.create_array(
            path,
            shape=(0,),
            chunks=(chunk,),
            dtype=dtype,
            compressors=codecs("float" if dtype.kind == "f" else "integer"),
            fill_value=np.nan if dtype.kind == "f" else 0,
            # zarr would leave out chunks that hold only the fill value: a chunk that is not there would mean nothing
            config={"write_empty_chunks": True},
        )
        self._held = 0
        self._written = 0
        self._reserved = 0

    def __len__(self) -> int:
        return self._written + self._held

    def append(self, values: NDArray[Any]) -> None:
        """Add values at the end."""
        done = 0
        while done < len(values):
            n = min(len(values) - done, len(self._buffer) - self._held)
            self._buffer[self._held : self._held + n] = values[done : done + n]
            self._held += n
            done += n
            if self._held == len(self._buffer):
                self._flush(self._held)

    def settle(self) -> ColumnState:
        """Write the whole chunks that are held and say where the column stands."""
        n = self._held - self._held % self._chunk
        if n:
            self._flush(n)
        return ColumnState(self._written, self._buffer[: self._held].copy())

    def chunk_files(self, n_before: int) -> list[str]:
        """Files, below the group's folder, of the whole chunks that hold values from `n_before` on."""
        return [f"{self.path}/c/{i}" for i in range(n_before // self._chunk, self._written // self._chunk)]

    def close(self) -> None:
        """Write what is still held; the array takes its final length."""
        self._flush(self._held)
        self._array.resize((self._written,))

    def _flush(self, n: int) -> None:
        stop = self._written + n
        if stop > self._reserved:
            # Doubled, since zarr lists every chunk of the array each time that its length changes.
            self._reserved = max(stop, 2 * self._reserved)
            self._array.resize((self._reserved,))
        self._array[self._written : stop] = self._buffer[:n]
        self._buffer[: self._held - n] = self._buffer[n : self._held].copy()
        self._written, self._held = stop, self._held - n


def write_array(group: Any, name: str, values: NDArray[Any]) -> None:
    """Write a whole array into a group, in chunks of about a megabyte along its first axis."""
    row_bytes = values.itemsize * int(np.prod(values.shape[1:]))
    chunk = max(1, min(len(values), _ARRAY_CHUNK_BYTES // max(1, row_bytes)))
    group.create_array(
        name,
        data=values,
        chunks=(chunk, *(max(1, size) for size in values.shape[1:])),
        compressors=codecs("float" if values.dtype.kind == "f" else "integer"),
        fill_value=np.nan if values.dtype.kind == "f" else 0,
    )

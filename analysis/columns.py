"""Long one-dimensional zarr arrays written front to back, their length unknown until the end."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

CHUNK = 1 << 18
"""Entries a chunk: 1 MB of float32, so that one feature's or one row's entries cost one short read."""
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


class Column:
    """An array that grows at its end, through a buffer of whole chunks."""

    def __init__(self, group: Any, path: str, dtype: Any, *, chunk: int = CHUNK) -> None:
        dtype = np.dtype(dtype)
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
        self._buffer = np.empty(chunk * _CHUNKS_AT_ONCE, dtype)
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
                self._flush()

    def close(self) -> None:
        """Write what is still held; the array takes its final length."""
        self._flush()
        self._array.resize((self._written,))

    def _flush(self) -> None:
        stop = self._written + self._held
        if stop > self._reserved:
            # Doubled, since zarr lists every chunk of the array each time that its length changes.
            self._reserved = max(stop, 2 * self._reserved)
            self._array.resize((self._reserved,))
        self._array[self._written : stop] = self._buffer[: self._held]
        self._written, self._held = stop, 0

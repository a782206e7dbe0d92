"""The arrays of `features.zarr` that go by rows, written block by block."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .columns import CHUNK, Column
from .features import NOT_ENCODED

if TYPE_CHECKING:
    from .encoded_block import EncodedBlock


class RowColumns:
    """The arrays of `features.zarr` that grow row by row."""

    def __init__(self, group: Any, n_rows: int) -> None:
        chunk = min(CHUNK, n_rows + 1)  # a chunk is written whole: short arrays are not padded to a megabyte
        self._row = {
            "split": Column(group, "rows/split", np.uint8, chunk=chunk),
            "valid": Column(group, "rows/valid", np.bool_, chunk=chunk),
            "label": Column(group, "rows/label", np.int32, chunk=chunk),
            "x_norm": Column(group, "rows/x_norm", np.float32, chunk=chunk),
            "sse": Column(group, "rows/sse", np.float32, chunk=chunk),
            "cosine": Column(group, "rows/cosine", np.float32, chunk=chunk),
        }
        self._indptr = Column(group, "indptr", np.uint64, chunk=chunk)
        self._index = Column(group, "index", np.uint32)
        self._value = Column(group, "value", np.float32)
        self._indptr.append(np.zeros(1, np.uint64))
        self._nnz = 0

    def append(self, split: NDArray[np.uint8], label: NDArray[np.int32], block: "EncodedBlock | None") -> None:
        """Add consecutive physical rows; `block` holds those whose split says that they were encoded."""
        encoded = split != NOT_ENCODED
        counts = np.zeros(len(split), np.uint64)
        self._row["split"].append(split)
        self._row["valid"].append(encoded)
        self._row["label"].append(label)
        for name in ("x_norm", "sse", "cosine"):
            numbers = np.full(len(split), np.nan, np.float32)
            if block is not None:
                numbers[encoded] = block.norm if name == "x_norm" else getattr(block, name)
            self._row[name].append(numbers)
        if block is not None:
            counts[encoded] = block.counts
            self._index.append(block.index)
            self._value.append(block.value)
        self._indptr.append(np.cumsum(counts) + np.uint64(self._nnz))
        self._nnz += int(counts.sum())

    def close(self) -> None:
        """Write what is still held."""
        for column in (*self._row.values(), self._indptr, self._index, self._value):
            column.close()

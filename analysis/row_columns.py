"""The arrays of `features.zarr` that go by rows, written block by block."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .columns import CHUNK, Column, ColumnState
from .features import NOT_ENCODED

if TYPE_CHECKING:
    from .encoded_block import EncodedBlock


class RowColumns:
    """The arrays of `features.zarr` that grow row by row.

    Parameters
    ----------
    states
        Of each by its path, from an earlier `settle`: goes on from there.
    """

    def __init__(self, group: Any, n_rows: int, states: Mapping[str, ColumnState] | None = None) -> None:
        chunk = min(CHUNK, n_rows + 1)  # a chunk is written whole: short arrays are not padded to a megabyte

        def column(path: str, dtype: Any, **size: int) -> Column:
            return Column(group, path, dtype, state=None if states is None else states[path], **size)

        self._row = {
            "split": column("rows/split", np.uint8, chunk=chunk),
            "valid": column("rows/valid", np.bool_, chunk=chunk),
            "label": column("rows/label", np.int32, chunk=chunk),
            "x_norm": column("rows/x_norm", np.float32, chunk=chunk),
            "sse": column("rows/sse", np.float32, chunk=chunk),
            "cosine": column("rows/cosine", np.float32, chunk=chunk),
        }
        self._indptr = column("indptr", np.uint64, chunk=chunk)
        self._index = column("index", np.uint32)
        self._value = column("value", np.float32)
        if states is None:
            self._indptr.append(np.zeros(1, np.uint64))
        self._nnz = len(self._value)
        self._settled = {column.path: 0 for column in self._columns()}

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

    def settle(self) -> tuple[dict[str, ColumnState], list[str]]:
        """Write the whole chunks that are held; where each column stands, and the files written since the last time."""
        states = {column.path: column.settle() for column in self._columns()}
        files = [file for column in self._columns() for file in column.chunk_files(self._settled[column.path])]
        self._settled = {path: state.n_written for path, state in states.items()}
        return states, files

    def close(self) -> None:
        """Write what is still held."""
        for column in self._columns():
            column.close()

    def _columns(self) -> tuple[Column, ...]:
        return (*self._row.values(), self._indptr, self._index, self._value)

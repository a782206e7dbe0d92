"""Unit vectors that calls keep in a `.npy` file between them, and which of them a kill or damage has spoilt.

Shapes: n vectors of length e.
"""

import os
import stat
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..whole_file import npy_header

_ROWS_AT_ONCE = 8192

Floats = NDArray[np.float32]


def kept_rows(path: Path, n: int, mode: Literal["r", "r+"]) -> Floats | None:
    """A file's `(n, e)` vectors in its memory; None where it is not there, or is no such file."""
    try:
        found = os.stat(path)
        if not n or not stat.S_ISREG(found.st_mode):
            return None
        with open(path, "rb") as file:
            e, left = divmod(found.st_size - len(npy_header((n, 1))), 4 * n)  # headers are padded to one length
            header = npy_header((n, e))
            if left or e < 1 or file.read(len(header)) != header:
                return None
    except OSError:
        return None
    return np.memmap(path, np.float32, mode, len(header), (n, e))


def are_whole(vectors: Floats) -> NDArray[np.bool_]:
    """`(n,)`: which are of length 1. A new file is all zeros, and a vector that a kill cut short is not of length 1."""
    found = np.empty(len(vectors), bool)
    for start in range(0, len(vectors), _ROWS_AT_ONCE):
        with np.errstate(over="ignore", invalid="ignore"):  # damaged bytes may be numbers of any size
            norms = np.linalg.norm(vectors[start : start + _ROWS_AT_ONCE], axis=1)
        found[start : start + len(norms)] = np.abs(norms - 1) < 1e-3
    return found


def keep(kept: Floats, rows: NDArray[np.integer], vectors: Floats) -> None:
    """Write some vectors `(k, e)` into the file of `kept_rows`, which shows them; `OSError` where the disk is full."""
    assert isinstance(kept, np.memmap)
    assert kept.filename is not None
    n_bytes, data = kept.shape[1] * 4, np.ascontiguousarray(vectors, np.float32)
    # written through memory, a new page on a full disk would end the process without a word
    with open(kept.filename, "r+b") as file:
        for row, vector in zip(rows.tolist(), data, strict=True):
            os.pwrite(file.fileno(), vector.tobytes(), kept.offset + row * n_bytes)

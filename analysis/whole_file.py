"""Small files of a run, which people edit and receive from others: read whole, without waiting for a named pipe."""

import errno
import json
import os
import stat
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

MOST_BYTES = 256 << 20
NO_SENSE = (LookupError, TypeError, ValueError, ArithmeticError, AttributeError)
"""What reading a document that is not as it should be raises."""


def read_whole(path: Path, most_bytes: int = MOST_BYTES) -> bytes:
    """All bytes of a file; `OSError` where it cannot be read, is no file, or is larger than `most_bytes`."""
    # without O_NONBLOCK, opening a named pipe waits for someone to write to it
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is no file", str(path))
        if found.st_size > most_bytes:
            raise OSError(errno.EFBIG, f"it is larger than {most_bytes >> 20} MiB", str(path))
        return file.read()


def read_json(path: Path) -> Any:
    """The document of a JSON file; `ValueError` where it is none, `OSError` as `read_whole`."""
    try:
        return json.loads(read_whole(path))
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply") from None


def npy_header(shape: tuple[int, ...]) -> bytes:
    """The first bytes of a `.npy` file of float32 in C order, as numpy writes them."""
    buffer = BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return buffer.getvalue()

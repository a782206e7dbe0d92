"""The floor of writing: the same chunk files, each written, checksummed and synced, one after the other.

Options: `slab` rows a file; `cast` False: float16 rows from memory; `rename` True: under a temporary name first, the
folder synced after, as a file must be written that no kill may leave half.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import google_crc32c
import numpy as np
from passes import Job
from writing import serve_writer


def write(job: Job, slabs: Iterator[np.ndarray]) -> None:
    folder = Path(job.data)
    folder.mkdir(parents=True)
    ready = None
    for number, slab in enumerate(slabs):
        if job.options.get("cast", True) or ready is None:
            ready = slab.astype(np.float16)
        checksum = google_crc32c.value(ready.view(np.uint8).reshape(-1)).to_bytes(4, "little")
        path = folder / str(number)
        temporary = folder / f".{number}.tmp"
        with open(temporary if job.options.get("rename") else path, "wb", buffering=0) as file:
            os.writev(file.fileno(), [ready.data.cast("B"), checksum])
            os.fsync(file.fileno())
        if job.options.get("rename"):
            os.replace(temporary, path)
            _sync_folder(folder)
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


serve_writer(write)

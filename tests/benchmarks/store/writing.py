"""What the writers of `bench_store_writing.py` share: float32 rows in memory, as a tower gives them, and a clock."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from data import D_IN
from passes import Job, serve

_ROWS_IN_MEMORY = 16384
_WARM_FILES = 4  # times the size of the files: other memory is taken from the same

Write = Callable[[Job, Iterator[np.ndarray]], None]
"""Writes slabs of `(slab, D_IN)` float32, one after the other, as float16 into `job.data`; all durable at its end."""


def serve_writer(write: Write, prepare: Callable[[Job], object] = id) -> None:
    """Write when the benchmark asks for it, and answer with seconds.

    What `prepare` does, such as making up names of images, is no writing and not timed.
    """

    def make(job: Job) -> dict[str, float]:
        slab = job.options["slab"]
        source = np.random.default_rng(0).standard_normal((_ROWS_IN_MEMORY, D_IN), np.float32)
        prepare(job)
        warm_memory(_WARM_FILES * job.rows * D_IN * 2)
        slabs = (source[start % _ROWS_IN_MEMORY : start % _ROWS_IN_MEMORY + slab] for start in range(0, job.rows, slab))
        cpu, started = time.process_time(), time.perf_counter()
        write(job, slabs)
        return {"writing_s": time.perf_counter() - started, "cpu_s": time.process_time() - cpu}

    serve(None, make)


def warm_memory(n_bytes: int) -> None:
    """Have as much of the machine's memory at hand as the files take in its page cache.

    A virtual machine gives what it frees back to its host a few seconds later. To get it again costs several times what
    a copy does, and falls on whoever writes next: a plain file was written at 0.24 or at 0.90 GB/s by turns.
    """
    np.ones(n_bytes, np.uint8)


def sync_files(folder: str) -> None:
    """Make durable what a library wrote below a folder without doing so itself."""
    for path in Path(folder).rglob("*"):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)

"""Thresher's writer: each window put, written, synced and committed by its record.

Options: `slab` rows a chunk; `at_once` windows in as many threads, as several processes of a harvest have them.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from make_thresher import SITE, keys_of, spec_of
from passes import Job
from thresher.store.writer import create_store
from writing import serve_writer


def write(job: Job, slabs: Iterator[np.ndarray]) -> None:
    keys, labels = keys_of(job.rows), np.zeros(job.rows, np.int32)
    spec = spec_of(labels, "random", rows_per_chunk=job.options["slab"])
    with create_store(job.data, spec, keys=keys, labels=labels) as writer:

        def write_window(number: int, rows: np.ndarray) -> None:
            window = writer.window(number)
            window.put(writer.window_images(number)[0], {SITE: rows}, np.ones(len(rows), np.bool_), [], None)
            window.commit()

        with ThreadPoolExecutor(job.options.get("at_once", 1)) as pool:
            list(pool.map(write_window, range(writer.n_windows), slabs))


serve_writer(write)

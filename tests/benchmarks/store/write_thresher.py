"""Thresher's writer: each window put, then written, synced and recorded in the background, as a harvest does it.

Options: `slab` rows a chunk; `together` False: each window is committed before the next is filled.
"""

from collections.abc import Iterator
from contextlib import closing

import numpy as np
from make_thresher import SITE, keys_of, spec_of
from passes import Job
from thresher.store.commits import Commits
from thresher.store.writer import create_store
from writing import serve_writer


def write(job: Job, slabs: Iterator[np.ndarray]) -> None:
    keys, labels = keys_of(job.rows), np.zeros(job.rows, np.int32)
    spec = spec_of(labels, "random", rows_per_chunk=job.options["slab"])
    with create_store(job.data, spec, keys=keys, labels=labels) as writer, closing(Commits(writer)) as commits:
        for number, rows in enumerate(slabs):
            window = writer.window(number)
            window.put(writer.window_images(number)[0], {SITE: rows}, np.ones(len(rows), np.bool_), [], None)
            if job.options.get("together", True):
                commits.begin(window)
            else:
                window.commit()
        commits.wait()


serve_writer(write)

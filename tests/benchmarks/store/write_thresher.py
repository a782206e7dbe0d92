"""Thresher's writer: each window put, then written, synced and recorded in the background, as a harvest does it.

Options: `slab` rows a chunk; `tokens` rows an image, so many chunks a window; `together` False: each window committed
before the next is filled.
"""

from collections.abc import Iterator
from contextlib import closing
from functools import cache

import numpy as np
from make_thresher import SITE, keys_of, spec_of
from passes import Job
from thresher.store.commits import Commits
from thresher.store.layout import StoreSpec
from thresher.store.writer import create_store
from writing import serve_writer


@cache
def made_up(rows: int, tokens: int, chunk: int) -> tuple[StoreSpec, list[bytes]]:
    labels = np.zeros(rows // tokens, np.int32)
    return spec_of(labels, "random", rows_per_chunk=chunk, tokens_per_image=tokens), keys_of(len(labels))


def of_job(job: Job) -> tuple[StoreSpec, list[bytes]]:
    tokens = job.options.get("tokens", 1)
    return made_up(job.rows, tokens, job.options["slab"] // tokens)


def write(job: Job, slabs: Iterator[np.ndarray]) -> None:
    spec, keys = of_job(job)
    with (
        create_store(job.data, spec, keys=keys, labels=np.zeros(len(keys), np.int32)) as writer,
        closing(Commits(writer)) as commits,
    ):
        for number, rows in enumerate(slabs):
            window = writer.window(number)
            first, stop = writer.window_images(number)
            window.put(first, {SITE: rows}, np.ones(stop - first, np.bool_), [], None)
            if job.options.get("together", True):
                commits.begin(window)
            else:
                window.commit()
        commits.wait()


serve_writer(write, of_job)

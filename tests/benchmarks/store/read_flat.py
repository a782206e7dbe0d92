"""The floor: `os.preadv` from a flat file into reused buffers, by runs at random places or from end to end.

Options: `order` runs | scan; `run` rows a run. With one thread the consumer reads; with more, each reads a batch.
"""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from data import D_IN, Source
from passes import Job, serve

ROW_BYTES = D_IN * 2


def make(job: Job) -> None:
    """The source as one flat file of float16."""
    with open(job.data, "wb") as file:
        for block in Source(job.source_rows).blocks(65536, job.rows):
            file.write(block.data)


class Flat:
    def __init__(self, job: Job) -> None:
        self.job, self.descriptor = job, os.open(job.data, os.O_RDONLY)
        n_buffers = 1 if job.threads == 1 else job.threads + 2  # one at the consumer, one read in advance
        self.buffers = [np.ones((job.batch, D_IN), np.float16) for _ in range(n_buffers)]
        self.pool = ThreadPoolExecutor(job.threads)

    def batches(self, epoch: int) -> Iterator[np.ndarray]:
        n_batches = self.job.rows // self.job.batch
        run = self.job.batch if self.job.options["order"] == "scan" else self.job.options["run"]
        starts = np.arange(0, n_batches * self.job.batch, run)
        if self.job.options["order"] == "runs":
            np.random.default_rng((self.job.seed, epoch)).shuffle(starts)
        per_batch = starts.reshape(n_batches, -1)
        if self.job.threads == 1:
            for places in per_batch:
                yield self._fill(self.buffers[0], places, run)
            return
        waiting: deque[Future[np.ndarray]] = deque()
        for step, places in enumerate(per_batch):
            waiting.append(self.pool.submit(self._fill, self.buffers[step % len(self.buffers)], places, run))
            if len(waiting) == len(self.buffers) - 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _fill(self, buffer: np.ndarray, starts: np.ndarray, run: int) -> np.ndarray:
        target, n_bytes = memoryview(buffer).cast("B"), run * ROW_BYTES
        for place, start in enumerate(starts.tolist()):
            got = os.preadv(self.descriptor, [target[place * n_bytes : (place + 1) * n_bytes]], start * ROW_BYTES)
            assert got == n_bytes
        return buffer


serve(Flat, make)

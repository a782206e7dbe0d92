"""numpy's memmap: a gather of random rows, or blocks from end to end. Options: `order` random | scan."""

from collections.abc import Iterator

import numpy as np
from data import D_IN
from passes import Job, serve


class Memmap:
    def __init__(self, job: Job) -> None:
        self.job, self.rows = job, np.memmap(job.data, np.float16, "r", shape=(job.rows, D_IN))

    def batches(self, epoch: int) -> Iterator[np.ndarray]:
        size = self.job.batch
        if self.job.options.get("order") == "scan":
            for start in range(0, self.job.rows, size):
                yield np.array(self.rows[start : start + size])
            return
        order = np.random.default_rng((self.job.seed, epoch)).permutation(self.job.rows)
        for start in range(0, self.job.rows, size):
            yield self.rows[order[start : start + size]]


serve(Memmap)

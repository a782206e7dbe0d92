"""Thresher's own reader: the batches of a pass, or the rows from end to end.

Options: `order` scan, else batches; `mixing` False turns it off.
"""

from collections.abc import Iterator

import numpy as np
from data import D_IN
from passes import Job, serve
from thresher.store.batches import BatchReader
from thresher.store.reader import open_store


class Thresher:
    def __init__(self, job: Job) -> None:
        self.job, self.array = job, open_store(job.data).activations()
        if job.options.get("order") == "scan":
            self.out = np.ones((job.batch, D_IN), np.float16)
            return
        # With no memory for a buffer and any mixing allowed, a batch is one stretch of the source.
        off = {} if job.options.get("mixing", True) else {"memory_bytes": 1, "mixing": 1e9}
        self.reader = BatchReader([self.array], batch_size=job.batch, seed=job.seed, last="drop", **off)

    def batches(self, epoch: int) -> Iterator[np.ndarray]:
        if self.job.options.get("order") == "scan":
            for start in range(0, self.job.rows // self.job.batch * self.job.batch, self.job.batch):
                self.array.read_runs(np.array([start]), np.array([self.job.batch]), self.out)
                yield self.out
            return
        steps = self.reader.steps_per_epoch
        assert steps is not None
        for batch in self.reader.batches(epoch * steps, (epoch + 1) * steps):
            yield batch.values[0]


serve(Thresher)

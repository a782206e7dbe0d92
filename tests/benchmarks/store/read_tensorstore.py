"""tensorstore, from the source sorted by class or from a Thresher store.

Options: `array` path in the data; `order` buffer | runs | scan; `run` rows a run.
"""

from collections.abc import Iterator

import numpy as np
import tensorstore as ts
from buffered import ShuffleBuffer
from data import D_IN
from passes import Job, serve


class TensorStore:
    def __init__(self, job: Job) -> None:
        self.job = job
        path = "/".join([job.data, *([job.options["array"]] if "array" in job.options else [])])
        self.array = ts.open({"driver": "zarr3", "kvstore": {"driver": "file", "path": path}}).result()
        if job.options["order"] == "buffer":
            self.buffered = ShuffleBuffer(job, job.options["run"], self._read_into)
        self.out = np.ones((job.batch, D_IN), np.float16)

    def batches(self, epoch: int) -> Iterator[np.ndarray]:
        job, order = self.job, self.job.options["order"]
        if order == "buffer":
            yield from self.buffered.batches(epoch)
            return
        run = job.batch if order == "scan" else job.options["run"]
        starts = np.arange(0, job.rows // job.batch * job.batch, run)
        if order == "runs":
            np.random.default_rng((job.seed, epoch)).shuffle(starts)
        for places in starts.reshape(-1, job.batch // run):
            target = ts.array(self.out)
            pieces = [
                target[i * run : (i + 1) * run].write(self.array[start : start + run].translate_to[i * run, 0])
                for i, start in enumerate(places.tolist())
            ]
            for piece in pieces:
                piece.result()
            yield self.out

    def _read_into(self, start: int, out: np.ndarray) -> None:
        ts.array(out).write(self.array[start : start + len(out)].translate_to[0, 0]).result()


serve(TensorStore)

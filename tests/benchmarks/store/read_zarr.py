"""zarr-python, from the source sorted by class or from a Thresher store.

Options: `array` path in the data; `order` buffer | runs | scan; `run` rows a run.
"""

from collections.abc import Iterator

import numpy as np
import zarr
from buffered import ShuffleBuffer
from data import D_IN, Source
from passes import Job, serve
from zarr.core.buffer import default_buffer_prototype

CHUNK = 4096


def make(job: Job) -> None:
    """The source as a plain zarr array in source order: chunks of 4,096 rows, no compressor."""
    array = zarr.create_array(
        job.data, shape=(job.rows, D_IN), chunks=(CHUNK, D_IN), dtype="float16", compressors=None, overwrite=True
    )
    start = 0
    for block in Source(job.source_rows).blocks(65536, job.rows):
        array[start : start + len(block)] = block
        start += len(block)


class Zarr:
    def __init__(self, job: Job) -> None:
        self.job = job
        opened = zarr.open(job.data, mode="r")
        self.array = opened[job.options["array"]] if "array" in job.options else opened
        assert isinstance(self.array, zarr.Array)
        self.buffer_of = default_buffer_prototype().nd_buffer.from_numpy_array
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
            for i, start in enumerate(places.tolist()):
                self._read_into(start, self.out[i * run : (i + 1) * run])
            yield self.out

    def _read_into(self, start: int, out: np.ndarray) -> None:
        self.array.get_basic_selection(slice(start, start + len(out)), out=self.buffer_of(out))


serve(Zarr, make)

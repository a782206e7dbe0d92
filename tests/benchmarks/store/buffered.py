"""The shuffle buffer that libraries without one need: groups of runs, permuted in memory.

65,536 rows a group, so two groups of 134 MB in memory: what a careful user of such a library would write.
While batches are drawn from one, threads read the other.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from data import D_IN
from passes import Job

GROUP_ROWS = 65536
_READERS = 4


class ShuffleBuffer:
    """Batches from a buffer of runs.

    Parameters
    ----------
    job
        Its rows, batch and seed.
    run
        Rows read as one piece: whole chunks of the array.
    read_into
        Fills an array with the rows from a place on.
    """

    def __init__(self, job: Job, run: int, read_into: Callable[[int, np.ndarray], None]) -> None:
        self.job, self.read_into = job, read_into
        self.group = min(GROUP_ROWS, job.rows)
        self.run = min(run, self.group)
        self.pool = ThreadPoolExecutor(_READERS)
        self.buffers = [np.ones((self.group, D_IN), np.float16) for _ in range(2)]
        self.batch = np.ones((job.batch, D_IN), np.float16)

    def batches(self, epoch: int) -> Iterator[np.ndarray]:
        rng = np.random.default_rng((self.job.seed, epoch))
        runs = rng.permutation(self.job.rows // self.run) * self.run
        groups = [runs[i : i + self.group // self.run] for i in range(0, len(runs), self.group // self.run)]
        reading = self._read(groups[0], self.buffers[0])
        for number, group in enumerate(groups):
            for piece in reading:
                piece.result()
            buffer = self.buffers[number % 2]
            if number + 1 < len(groups):
                reading = self._read(groups[number + 1], self.buffers[(number + 1) % 2])
            order = rng.permutation(len(group) * self.run)
            for start in range(0, len(order) - self.job.batch + 1, self.job.batch):
                # mode="clip" takes straight into `out`; the default goes through a copy.
                np.take(buffer, order[start : start + self.job.batch], axis=0, out=self.batch, mode="clip")
                yield self.batch

    def _read(self, starts: np.ndarray, buffer: np.ndarray) -> "list[Future[None]]":
        pieces = (buffer[i * self.run : (i + 1) * self.run] for i in range(len(starts)))
        return [
            self.pool.submit(self.read_into, start, piece) for start, piece in zip(starts.tolist(), pieces, strict=True)
        ]

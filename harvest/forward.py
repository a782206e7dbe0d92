"""Runs decoded batches through the tower, several at a time where the tower runs on the CPU.

On a CPU, n batches in n threads with one core each are faster than one batch after another on n cores: 1.3 to 1.6 times
for the embedded 64-pixel tower on two cores (2,200 against 1,640 images/s in bf16), since no core waits for another at
the end of each operation, and decoding processes that share the cores hold up one batch and not all of them.
"""

import copy
import queue
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor

from ..store.format import Site
from .sites import capture
from .vision import Tower

_MAX_PARALLEL = 8  # batches at once: ViT-L/14 takes half a gigabyte for each batch of 64

Rows = dict[Site, Tensor]


class TowerRunner:
    """The forward passes of a harvest, in order.

    How the cores are divided follows from torch's thread count (OMP_NUM_THREADS) and the number of batches of the whole
    store, so that a resumed harvest computes the same bits.
    """

    def __init__(self, tower: Tower, sites: Sequence[Site], n_batches: int) -> None:
        self._tower, self._sites = tower, sites
        self._running: deque[Future[Rows]] = deque()
        self._n_threads = torch.get_num_threads()
        self._threads: ThreadPoolExecutor | None = None
        self.n_parallel = 1
        """Batches computed at a time."""
        if tower.device.type == "cpu":
            self.n_parallel = max(1, min(self._n_threads, n_batches, _MAX_PARALLEL))
            # Hooks belong to a module: each thread reads its own copy of the modules, which share the weights.
            self._towers: queue.SimpleQueue[Tower] = queue.SimpleQueue()
            for _ in range(self.n_parallel):
                self._towers.put(_with_own_modules(tower))
            self._threads = ThreadPoolExecutor(
                self.n_parallel,
                thread_name_prefix="tower",
                initializer=torch.set_num_threads,
                initargs=(self._n_threads // self.n_parallel,),
            )

    def submit(self, pixels: Tensor) -> "Future[Rows]":
        """Begin a batch; waits while more than `n_parallel` earlier ones are not done.

        Parameters
        ----------
        pixels
            `(n, height, width, 3)`, uint8.

        Returns
        -------
        rows
            To come: `(n, d)` float32 on the tower's device for each site.
        """
        if self._threads is None:  # a GPU queues the work itself
            done: Future[Rows] = Future()
            done.set_result(capture(self._tower, self._tower.normalise(pixels), self._sites))
            return done
        while len(self._running) > self.n_parallel:
            self._running.popleft().result()
        self._running.append(self._threads.submit(self._compute, pixels))
        return self._running[-1]

    def close(self) -> None:
        """End the threads; batches that have not begun are dropped."""
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
            torch.set_num_threads(self._n_threads)  # threads that torch starts from now on begin as before

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _compute(self, pixels: Tensor) -> Rows:
        tower = self._towers.get()
        try:
            return capture(tower, tower.normalise(pixels), self._sites)
        finally:
            self._towers.put(tower)


def _with_own_modules(tower: Tower) -> Tower:
    shared = {id(tensor): tensor for tensor in (*tower.visual.parameters(), *tower.visual.buffers())}
    return replace(tower, visual=copy.deepcopy(tower.visual, shared))

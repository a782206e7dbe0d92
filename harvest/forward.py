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
from .ranks import Ranks
from .sites import capture
from .vision import Tower

_MAX_PARALLEL = 8  # batches at once: ViT-L/14 takes half a gigabyte for each batch of 64

Rows = dict[Site, Tensor]


def divide_threads(n_threads: int, n_batches: int) -> tuple[int, int]:
    """Batches at a time, and threads for each, on a machine with `n_threads` for a store of `n_batches`.

    The threads of a batch decide how its sums are split, hence their last bits. They follow from the machine and the
    whole store alone, so that a resumed harvest, and one of several processes, computes the same bits.
    """
    n_parallel = max(1, min(n_threads, n_batches, _MAX_PARALLEL))
    return n_parallel, max(1, n_threads // n_parallel)


class TowerRunner:
    """The forward passes of a harvest, in order.

    Parameters
    ----------
    tower, sites
        What `capture` reads.
    n_batches
        Of the whole store.
    ranks
        The processes that share the store, and the cores with it.
    """

    def __init__(self, tower: Tower, sites: Sequence[Site], n_batches: int, ranks: Ranks | None = None) -> None:
        self._tower, self._sites = tower, sites
        self._running: deque[Future[Rows]] = deque()
        self._n_threads = torch.get_num_threads()
        self._threads: ThreadPoolExecutor | None = None
        self.n_parallel = 1
        """Batches computed at a time, in this process."""
        if tower.device.type == "cpu":
            ranks = ranks or Ranks()
            n_parallel, self.threads_per_batch = divide_threads(ranks.threads(), n_batches)
            self.n_parallel = max(1, ranks.share(n_parallel))
            # Hooks belong to a module: each thread reads its own copy of the modules, which share the weights.
            self._towers: queue.SimpleQueue[Tower] = queue.SimpleQueue()
            for _ in range(self.n_parallel):
                self._towers.put(_with_own_modules(tower))
            self._threads = ThreadPoolExecutor(
                self.n_parallel,
                thread_name_prefix="tower",
                initializer=torch.set_num_threads,
                initargs=(self.threads_per_batch,),
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
            To come: what `capture` gives, on the CPU.
        """
        if self._threads is None:  # a GPU queues the work itself
            return _OnItsWay(capture(self._tower, self._tower.normalise(pixels), self._sites))
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


class _OnItsWay(Future[Rows]):
    """Rows that a GPU is computing and then copies into memory of its own accord.

    The copy is queued with the batch: asked for later, it would wait for the batches that were queued since.
    """

    def __init__(self, rows: Rows) -> None:
        super().__init__()
        device = next(iter(rows.values())).device
        self._arrived: torch.cuda.Event | None = None
        if device.type == "cuda":
            copies = {site: torch.empty_like(row, device="cpu", pin_memory=True) for site, row in rows.items()}
            for site, row in rows.items():
                copies[site].copy_(row, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(device))
            rows = copies
        self.set_result(rows)

    def result(self, timeout: float | None = None) -> Rows:
        """The rows, on the CPU."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return {site: row.cpu() for site, row in super().result(timeout).items()}


def _with_own_modules(tower: Tower) -> Tower:
    shared = {id(tensor): tensor for tensor in (*tower.visual.parameters(), *tower.visual.buffers())}
    return replace(tower, visual=copy.deepcopy(tower.visual, shared))

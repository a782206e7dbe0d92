"""Shuffled batches of stored rows on the training device, read ahead by threads.

A batch is a function of (store, seed, batch size, step): the loader's state is the step.
"""

from collections import deque
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from ..store.batches import Allocate, Batch, BatchReader
from ..store.loading import MEMORY_BYTES, LoadingPlan
from ..store.reader import ActivationArray


class BatchLoader:
    """Batches of training rows, from any step on.

    Parameters
    ----------
    arrays
        The stored vectors of one or several sites of a store.
    batch_size, seed
        Of the order.
    device
        Where the batches go, as float32.
    memory_bytes
        For the buffer that a store needs which is not in random order.
    plan
        How to read, in place of the plan for `memory_bytes`: that of a run which goes on.
    rank, n_ranks
        This process's share of each batch.
    """

    def __init__(
        self,
        arrays: Sequence[ActivationArray],
        *,
        batch_size: int,
        seed: int,
        device: torch.device,
        memory_bytes: int = MEMORY_BYTES,
        plan: LoadingPlan | None = None,
        rank: int = 0,
        n_ranks: int = 1,
    ) -> None:
        self._arrays, self._device = list(arrays), device
        self._reader = self._make_reader(
            batch_size=batch_size,
            seed=seed,
            memory_bytes=memory_bytes,
            plan=plan,
            rank=rank,
            n_ranks=n_ranks,
            equal_shares=False,  # the trainer adds up what its processes find, over all rows
        )
        self._samples: dict[tuple[int, int], list[Tensor]] = {}
        self.n_rows = self._reader.n_rows
        self.plan = self._reader.plan
        # Of whole batches, of which `_reader` may give a share.
        self._whole = self._reader
        if n_ranks > 1:
            self._whole = self._make_reader(batch_size=batch_size, seed=seed, plan=self.plan)

    def _make_reader(self, **settings: Any) -> BatchReader:
        return BatchReader(self._arrays, allocate=allocator(self._device), **settings)

    def positions(self, step: int) -> NDArray[np.int64]:
        """Positions of the rows of batch `step`, of every rank, in their order."""
        return self._whole.read(step).positions()

    def read(self, step: int) -> list[Tensor]:
        """Batch `step`, of every rank: `(batch_size, d_in)` float32 on the device, one an array."""
        return [values.to(self._device) for values in self._host(self._whole.read(step))]

    def sample(self, n: int, step: int = 0) -> list[Tensor]:
        """The first `n` rows of the stream from a step on: `(n, d_in)` float32 on the CPU, one an array.

        At most those of one pass, so that each comes once. Kept, for whoever else asks for it, until the next one or
        the next of `batches`.
        """
        n, batch = min(n, self.n_rows), self._whole.batch_size
        if (n, step) not in self._samples:
            self._samples.clear()
            read = list(map(self._host, self._whole.batches(step, step - (-n // batch))))
            self._samples[n, step] = [torch.cat(parts)[:n] for parts in zip(*read, strict=True)]
        return self._samples[n, step]

    def batches(self, first: int, stop: int) -> Generator[list[Tensor], None, None]:
        """Batches `first` to `stop`, this rank's share, read ahead. Close the iterator to end the reading."""
        self._samples.clear()
        with closing(self._reader.batches(first, stop)) as batches:
            for _, values in on_device(batches, self._arrays, self._device):
                yield values
                self._samples.clear()

    def _host(self, batch: Batch) -> list[Tensor]:
        return [array.tensor(values).float() for array, values in zip(self._arrays, batch.values, strict=True)]


def on_device(
    batches: Iterable[Batch],
    arrays: Sequence[ActivationArray],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Generator[tuple[Batch, list[Tensor]], None, None]:
    """Each batch, which lets go of its values, and these as tensors on the device: `(n, d_in)` for each array.

    To a GPU they are copied from the pinned memory that `allocator` gives, in turn with its kernels, and nobody waits:
    1,024 rows of 1,024 float16 take 0.1 ms at PCIe 4's 25 GB/s.
    """
    copies: deque[tuple[torch.cuda.Event, list[Tensor]]] = deque()
    for batch in batches:
        hosts = [array.tensor(values) for array, values in zip(arrays, batch.values, strict=True)]
        batch = replace(batch, values=[])  # its memory is free for the next one as soon as it is copied
        if device.type != "cuda":
            yield batch, [host.to(device, dtype, copy=True) for host in hosts]
            continue
        there = [host.to(device, non_blocking=True) for host in hosts]
        copied = torch.cuda.Event()
        copied.record(torch.cuda.current_stream(device))  # the process's own device may be another
        copies.append((copied, hosts))  # held until the copy is done
        while copies and (len(copies) > 2 or copies[0][0].query()):
            copies.popleft()[0].synchronize()
        yield batch, [tensor.to(dtype) for tensor in there]


def allocator(device: torch.device) -> Allocate | None:
    """What gives a batch's memory before it is copied to the device: pinned for CUDA, else that of `BatchReader`."""
    return _allocate_pinned if device.type == "cuda" else None


def _allocate_pinned(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Page-locked memory, from which a GPU copies by itself; torch keeps it for the next batch."""
    n_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    return torch.empty(n_bytes, dtype=torch.uint8, pin_memory=True).numpy().view(dtype).reshape(shape)

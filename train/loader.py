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
    activations
        The stored vectors of one site.
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
        activations: ActivationArray,
        *,
        batch_size: int,
        seed: int,
        device: torch.device,
        memory_bytes: int = MEMORY_BYTES,
        plan: LoadingPlan | None = None,
        rank: int = 0,
        n_ranks: int = 1,
    ) -> None:
        self._activations, self._device = activations, device
        self._reader = BatchReader(
            [activations],
            batch_size=batch_size,
            seed=seed,
            rank=rank,
            n_ranks=n_ranks,
            memory_bytes=memory_bytes,
            plan=plan,
            allocate=allocator(device),
        )
        self.n_rows = self._reader.n_rows
        self.plan = self._reader.plan

    def positions(self, step: int) -> NDArray[np.int64]:
        """Positions of the rows of batch `step`, in their order."""
        return self._reader.read(step).positions()

    def read(self, step: int) -> Tensor:
        """Batch `step`, `(batch_size, d_in)` float32 on the device."""
        return self._host(self._reader.read(step).values[0]).to(self._device).float()

    def sample(self, n: int) -> Tensor:
        """The first `n` rows of the stream, each once, or all where fewer: `(n, d_in)` float32, on the CPU."""
        n, batch = min(n, self.n_rows), self._reader.batch_size
        steps = self._reader.batches(0, -(-n // batch))
        return torch.cat([self._host(batch.values[0]).float() for batch in steps])[:n]

    def batches(self, first: int, stop: int) -> Generator[Tensor, None, None]:
        """Batches `first` to `stop`, read ahead. Close the iterator to end the reading."""
        with closing(self._reader.batches(first, stop)) as batches:
            for _, values in on_device(batches, [self._activations], self._device):
                yield values.pop()

    def _host(self, values: NDArray[Any]) -> Tensor:
        return self._activations.tensor(values)


def on_device(
    batches: Iterable[Batch],
    arrays: Sequence[ActivationArray],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Generator[tuple[Batch, list[Tensor]], None, None]:
    """Each batch, which lets go of its values, and these as tensors on the device: `(n, d_in)` for each array.

    To a GPU they are copied beside the kernels, from the pinned memory that `allocator` gives.
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
        copied.record()
        copies.append((copied, hosts))  # held until the copy, which runs beside the kernels, is done
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

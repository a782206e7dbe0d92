"""Shuffled batches of stored rows on the training device, read ahead by a thread.

A batch is a function of (store, seed, batch size, step): the loader's state is the step.
"""

import queue
import threading
from collections.abc import Generator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..store.reader import ActivationArray
from ..store.shuffle import EpochOrder


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
    prefetch
        Batches read ahead.
    """

    def __init__(
        self, activations: ActivationArray, *, batch_size: int, seed: int, device: torch.device, prefetch: int = 4
    ) -> None:
        self._activations, self._device, self._prefetch = activations, device, prefetch
        start, stop = activations.store.split("train")
        assert start == 0  # the order counts from the first position
        self.n_rows = stop
        self._order = EpochOrder(stop, batch_size, seed)

    def positions(self, step: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Positions of the rows of batch `step`, in their order."""
        starts, lengths = self._order.runs(step)
        return np.concatenate([np.arange(s, s + n) for s, n in zip(starts, lengths, strict=True)])

    def read(self, step: int) -> Tensor:
        """Batch `step`, `(batch_size, d_in)` float32 on the device."""
        return self._to_device(self._read_host(step))

    def sample(self, n: int) -> Tensor:
        """The first `n` rows of the stream, each once, or all where fewer: `(n, d_in)` float32, on the CPU."""
        n, batch = min(n, self.n_rows), self._order.batch_size
        steps = range(-(-n // batch))
        return torch.cat([self._read_host(step).float() for step in steps])[:n]

    def batches(self, first: int, stop: int) -> Generator[Tensor, None, None]:
        """Batches `first` to `stop`, read ahead. Close the iterator to end the reading."""
        ready: queue.Queue[Tensor | Exception] = queue.Queue(maxsize=self._prefetch)
        ended = threading.Event()

        def read_ahead() -> None:
            for step in range(first, stop):
                try:
                    item: Tensor | Exception = self._read_host(step)
                except Exception as error:  # raised again where the batch is wanted
                    item = error
                while not ended.is_set():
                    try:
                        ready.put(item, timeout=0.1)
                        break
                    except queue.Full:
                        continue
                if ended.is_set() or isinstance(item, Exception):
                    return

        thread = threading.Thread(target=read_ahead, name="thresher-loader", daemon=True)
        thread.start()
        try:
            for _ in range(first, stop):
                item = ready.get()
                if isinstance(item, Exception):
                    raise item
                yield self._to_device(item)
        finally:
            ended.set()
            thread.join()

    def _read_host(self, step: int) -> Tensor:
        starts, lengths = self._order.runs(step)
        shape, dtype = (self._order.batch_size, self._activations.d_in), self._activations.stored_dtype
        n_bytes = shape[0] * shape[1] * dtype.itemsize
        # Pinned, so that the copy to the GPU runs beside the kernels; torch keeps such a buffer until it is copied.
        buffer = torch.empty(n_bytes, dtype=torch.uint8, pin_memory=self._device.type == "cuda")
        out = buffer.numpy().view(dtype).reshape(shape)
        self._activations.read_runs(starts, lengths, out)
        return self._activations.tensor(out)

    def _to_device(self, host: Tensor) -> Tensor:
        return host.to(self._device, non_blocking=self._device.type == "cuda").float()

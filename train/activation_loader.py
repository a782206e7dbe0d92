"""Shuffled epochs of a store for a training loop in torch, to go on at any batch."""

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..devices import choose_device
from ..store.batches import Batch, BatchReader
from ..store.errors import StoreError
from ..store.loading import MEMORY_BYTES, LoadingPlan
from ..store.provenance import differences
from ..store.reader import ActivationArray
from .loader import allocator, on_device


@dataclass(frozen=True)
class ActivationBatch:
    """Some training rows on the device."""

    epoch: int
    step: int
    """Number of the batch in its epoch."""
    values: list[Tensor]
    """`(n, d_in)` in the loader's dtype, one an array; row i of each is the same row of the store."""
    _batch: Batch

    @property
    def x(self) -> Tensor:
        """The rows of the first array, `(n, d_in)`."""
        return self.values[0]

    def labels(self) -> Tensor:
        """Label of each row, `(n,)` int64 on the device; -1 where there is none."""
        return self._moved(self._batch.labels())

    def rows(self) -> NDArray[np.int64]:
        """Number of each row in the store, `(n,)`: what `store.keys` and `store.thumbnails` take."""
        return self._batch.rows()

    def images(self) -> NDArray[np.int64]:
        """Image of each row, `(n,)`."""
        return self._batch.images()

    def _moved(self, numbers: NDArray[Any]) -> Tensor:
        return torch.from_numpy(numbers.astype(np.int64)).to(self.x.device)


class ActivationLoader:
    """Epochs of shuffled training rows; iterate it once for each epoch.

    An iteration gives what is left of the current epoch: all of it, unless an earlier one was given up on the way or
    `load_state_dict` said where to go on. Either costs nothing, and gives exactly the next batch.

    Parameters
    ----------
    arrays
        What to read of each row: an array of a store, or several of one store.
    batch_size
        Rows of a global batch.
    seed
        Of the order.
    device
        Where the batches go: as `choose_device` takes it, or a torch device. For CUDA they are read into pinned memory.
    dtype
        Of the batches, whatever that of the store.
    last
        The last batch of an epoch: `drop` leaves it out, `keep` leaves it short.
    rank, n_ranks
        This process's share of each batch.
    memory_bytes
        For the buffer, where the store needs one; `plan.notes` says whether it should be larger.
    """

    def __init__(
        self,
        arrays: ActivationArray | Sequence[ActivationArray],
        *,
        batch_size: int,
        seed: int = 0,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        last: str = "drop",
        rank: int = 0,
        n_ranks: int = 1,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        if last not in ("drop", "keep"):
            raise ValueError(f"last is {last!r}; of an epoch's last batch it is drop or keep")
        self.device, self.dtype, self._last = choose_device(str(device)), dtype, last
        self._arrays = [arrays] if isinstance(arrays, ActivationArray) else _listed(arrays)
        self._options: dict[str, Any] = {
            **{"batch_size": batch_size, "seed": seed, "last": last, "rank": rank, "n_ranks": n_ranks},
            **{"memory_bytes": memory_bytes, "allocate": allocator(self.device)},
        }
        self._reader = BatchReader(self._arrays, **self._options)
        self._next = 0

    def __len__(self) -> int:
        """Batches an epoch."""
        assert self._reader.steps_per_epoch is not None
        return self._reader.steps_per_epoch

    @property
    def epoch(self) -> int:
        """The epoch of the next batch."""
        return self._next // len(self)

    @property
    def plan(self) -> LoadingPlan:
        """How the store is read, and how well its batches mix."""
        return self._reader.plan

    def __iter__(self) -> Generator[ActivationBatch, None, None]:
        """What is left of the current epoch."""
        reader, n = self._reader, len(self)
        with closing(reader.batches(self._next, (self.epoch + 1) * n)) as batches:
            for batch, values in on_device(batches, self._arrays, self.device, self.dtype):
                self._next = batch.step + 1
                yield ActivationBatch(batch.step // n, batch.step % n, values, batch)

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch is, and what its rows follow from, as JSON takes it: some hundred bytes.

        It is the same on every rank, and may be loaded by any number of them.
        """
        epoch, step = divmod(self._next, len(self))
        return {"epoch": epoch, "step": step} | self._identity() | {"plan": self.plan.to_json()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was asked for, exactly, also where the store has been moved to another place.

        Raises
        ------
        StoreError
            When the loader's store, batch size, seed or last batch is another one, naming it.
        """
        for name, value in self._identity().items():
            if found := differences(name, state.get(name), value):
                raise StoreError(f"the state is of a loader with another order of rows: {found[0]}.")
        self._reader = BatchReader(self._arrays, plan=LoadingPlan.from_json(state["plan"]), **self._options)
        self._next = int(state["epoch"]) * len(self) + int(state["step"])

    def _identity(self) -> dict[str, Any]:
        reader = self._reader
        own = {"seed": reader.seed, "batch_size": reader.batch_size, "last": self._last}
        return own | {"store": reader.store.fingerprint}


def _listed(arrays: Sequence[ActivationArray]) -> list[ActivationArray]:
    """The arrays; `ValueError` where they are something else, such as a store or its path."""
    if isinstance(arrays, Sequence) and arrays and all(isinstance(array, ActivationArray) for array in arrays):
        return list(arrays)
    raise ValueError(
        f"arrays is {type(arrays).__name__}, and arrays of a store are read: thresher.open_store(path).activations()"
    )

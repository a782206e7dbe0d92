"""The processes of one training run: sums and collections over them.

Under `torchrun` each process takes its share of every batch; what a step needs of the others passes through here.
"""

from typing import Protocol

import torch
from torch import Tensor


class Ranks(Protocol):
    """Some processes that train together."""

    rank: int
    n_ranks: int

    def add(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its sum over the processes, the same in all of them."""

    def collect(self, values: Tensor) -> Tensor:
        """The values `(m,)`, m of any length in each process, of all processes end to end."""

    def any(self, name: str | None) -> str | None:
        """The name that some process gives, in all of them alike; None where none does."""

    def wait(self) -> None:
        """Go on when all processes have come here."""


class OneProcess:
    """A run in a single process."""

    rank, n_ranks = 0, 1

    def add(self, tensors: list[Tensor]) -> None:
        """Nothing to add."""

    def collect(self, values: Tensor) -> Tensor:
        """The values themselves."""
        return values

    def any(self, name: str | None) -> str | None:
        """The name itself."""
        return name

    def wait(self) -> None:
        """Go on."""


ALONE = OneProcess()


class DistributedRanks:
    """The processes of a `torch.distributed` group that was opened before (gloo on CPUs, nccl on GPUs)."""

    def __init__(self) -> None:
        from torch import distributed

        self._distributed = distributed
        self.rank, self.n_ranks = distributed.get_rank(), distributed.get_world_size()

    def add(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its sum over the processes, the same in all of them."""
        for tensor in tensors:
            self._distributed.all_reduce(tensor)

    def collect(self, values: Tensor) -> Tensor:
        """The values `(m,)`, m of any length in each process, of all processes end to end."""
        lengths = [torch.zeros(1, dtype=torch.int64, device=values.device) for _ in range(self.n_ranks)]
        self._distributed.all_gather(lengths, torch.tensor([len(values)], device=values.device))
        longest = int(torch.cat(lengths).max())
        padded = values.new_zeros(longest)
        padded[: len(values)] = values
        gathered = [torch.empty_like(padded) for _ in range(self.n_ranks)]
        self._distributed.all_gather(gathered, padded)
        return torch.cat([each[: int(n)] for each, n in zip(gathered, lengths, strict=True)])

    def any(self, name: str | None) -> str | None:
        """The name that some process gives, in all of them alike; None where none does."""
        given: list[str | None] = [None] * self.n_ranks
        self._distributed.all_gather_object(given, name)
        return next((each for each in given if each), None)

    def wait(self) -> None:
        """Go on when all processes have come here."""
        self._distributed.barrier()

"""The processes of one training run: sums and collections over them.

Under `torchrun` each process takes its share of every batch; what a step needs of the others passes through here. All
of them hold the same weights at every step: whatever moves a weight comes from numbers that were added up here, or from
the first process.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Protocol

import torch
from torch import Tensor

from ..devices import choose_device
from ..launch import read_launch
from ..store.errors import StoreError

_START = timedelta(minutes=5)  # for all processes to be there
_ANSWER = timedelta(minutes=30)  # the first one may evaluate on all held-out rows while the others wait
_LARGE = 1 << 20  # elements; below, tensors are added up in one message: each costs a latency, these cost bandwidth
_n_joined = 0  # names the keys of each run of a process apart


class Ranks(Protocol):
    """Some processes that train together."""

    rank: int
    n_ranks: int

    def device(self, name: str) -> torch.device:
        """The device of this process, of a name as `choose_device` takes it."""

    def add(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its sum over the processes, the same in all of them."""

    def take_first(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by that of the first process."""

    def collect(self, values: Tensor) -> Tensor:
        """The values `(m,)`, m of any length in each process, of all processes end to end."""

    def any(self, name: str | None) -> str | None:
        """The name of a signal that some process has received, in all of them alike; None where none has.

        A signal may be told one call late.
        """

    def tell(self, text: str) -> str:
        """The text of the first process."""

    def wait(self) -> None:
        """Go on when all processes have come here."""


class OneProcess:
    """A run in a single process."""

    rank, n_ranks = 0, 1

    def device(self, name: str) -> torch.device:
        """The device of a name."""
        return choose_device(name)

    def add(self, tensors: list[Tensor]) -> None:
        """Nothing to add."""

    def take_first(self, tensors: list[Tensor]) -> None:
        """Nothing to take."""

    def collect(self, values: Tensor) -> Tensor:
        """The values themselves."""
        return values

    def any(self, name: str | None) -> str | None:
        """The name itself."""
        return name

    def tell(self, text: str) -> str:
        """The text itself."""
        return text

    def wait(self) -> None:
        """Go on."""


ALONE = OneProcess()


class DistributedRanks:
    """The processes of a `torch.distributed` group that was opened before: gloo for CPUs, nccl for GPUs.

    Every method raises `StoreError` when another process is gone.
    """

    def __init__(self) -> None:
        from torch import distributed

        self._distributed = distributed
        self.rank, self.n_ranks = distributed.get_rank(), distributed.get_world_size()
        self._signals: tuple[Tensor, Any] | None = None  # on their way: number of each, and the work that adds them up

    def device(self, name: str) -> torch.device:
        """The device of this process: of the GPUs of its machine, the one with its local number."""
        device = choose_device(name)
        if device.type == "mps":
            raise ValueError(f"--device {name}: processes cannot share their work on it; give --device cpu")
        if device.type == "cuda":
            if device.index is not None:
                raise ValueError(f"--device {name} under torchrun: give --device cuda, and each process takes its own")
            local, n_devices = int(os.environ.get("LOCAL_RANK", self.rank)), torch.cuda.device_count()
            if local >= n_devices:
                raise ValueError(
                    f"this machine has {n_devices} CUDA devices, too few for process {local}: --nproc-per-node "
                    f"{n_devices}, or --device cpu"
                )
            device = torch.device("cuda", local)
            torch.cuda.set_device(device)  # nccl's, and that of whatever names none
        return device

    def add(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its sum over the processes, the same in all of them."""
        large = [tensor for tensor in tensors if tensor.numel() >= _LARGE]
        small = [tensor for tensor in tensors if tensor.numel() < _LARGE]
        with _answered():
            works = [self._distributed.all_reduce(tensor, async_op=True) for tensor in large]
            if small:
                together = torch.cat([tensor.reshape(-1).double() for tensor in small])
                self._distributed.all_reduce(together)
                parts = together.split([tensor.numel() for tensor in small])
                for tensor, part in zip(small, parts, strict=True):
                    tensor.copy_(part.view_as(tensor))
            for work in works:
                work.wait()

    def take_first(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by that of the first process."""
        with _answered():
            for tensor in tensors:
                self._distributed.broadcast(tensor, 0)

    def collect(self, values: Tensor) -> Tensor:
        """The values `(m,)`, m of any length in each process, of all processes end to end."""
        with _answered():
            lengths = [torch.zeros(1, dtype=torch.int64, device=values.device) for _ in range(self.n_ranks)]
            self._distributed.all_gather(lengths, torch.tensor([len(values)], device=values.device))
            longest = int(torch.cat(lengths).max())  # a GPU waits here, as it does for the threshold's own comparisons
            padded = values.new_zeros(longest)
            padded[: len(values)] = values
            gathered = [torch.empty_like(padded) for _ in range(self.n_ranks)]
            self._distributed.all_gather(gathered, padded)
        return torch.cat([each[: int(n)] for each, n in zip(gathered, lengths, strict=True)])

    def any(self, name: str | None) -> str | None:
        """The name of a signal that some process had received at the last call; None where none had.

        Their numbers travel beside the next step, over the CPU: no step waits for them, and no GPU.
        """
        with _answered():
            before, number = self._signals, 0
            if before is not None:
                before[1].wait()
                number = int(before[0])
            given = torch.tensor([signal.Signals[name].value if name else 0])
            work = self._distributed.all_reduce(given, op=self._distributed.ReduceOp.MAX, async_op=True)
            self._signals = given, work
        return signal.Signals(number).name if number else None

    def tell(self, text: str) -> str:
        """The text of the first process."""
        data = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
        n = torch.tensor([len(data)])
        self.take_first([n])
        if self.rank != 0:
            data = torch.empty(int(n), dtype=torch.uint8)
        self.take_first([data])
        return bytes(data.numpy()).decode()

    def wait(self) -> None:
        """Go on when all processes have come here."""
        with _answered():
            self._distributed.all_reduce(torch.zeros(1))  # over the CPU, where `barrier` would choose a device


@contextmanager
def _answered() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise StoreError(
            "another process of this run has ended, or does not answer; what it did not say itself torchrun says. "
            f"Go on from the last checkpoint with the same command and --resume. ({_first_sentence(error)})"
        ) from error


def _first_sentence(error: Exception) -> str:
    return " ".join(str(error).split()).split(". ")[0][:200]


@contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """The processes that torchrun started with this one, from its environment; this one alone where it started none.

    The first error of any of them ends all, and is the only one that is told: the others leave by SystemExit. The
    group is closed at the end.

    Raises
    ------
    ValueError
        When the environment is half of torchrun's.
    StoreError
        From the body, when another process ended without a word.
    """
    global _n_joined
    launch = read_launch()
    if launch is None:
        yield ALONE
        return
    from torch import distributed

    with _answered():
        store, rank, n_ranks = next(iter(distributed.rendezvous("env://", timeout=_START)))
    _n_joined += 1
    store = distributed.PrefixStore(f"thresher/train/{launch.attempt}/{_n_joined}", store)
    has_gpus = torch.cuda.is_available() and distributed.is_nccl_available()
    backend = "cpu:gloo,cuda:nccl" if has_gpus else "gloo"
    try:
        with _answered():  # one that is there sooner may have failed and gone before this one is
            distributed.init_process_group(backend, store=store, rank=rank, world_size=n_ranks, timeout=_ANSWER)
        yield DistributedRanks()
    except SystemExit:
        raise
    except BaseException:
        # torchrun ends the others by SIGTERM as soon as one has ended; the first to fail has a line to say.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        if not _is_first_to_fail(store, rank):
            raise SystemExit(1) from None
        raise
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def _is_first_to_fail(store: Any, rank: int) -> bool:
    try:
        return int(store.add("failed", 1)) == 1
    except RuntimeError:  # the key-value store is gone, and with it torchrun or the first process
        return rank == 0

"""The processes of one `torchrun` that harvest into one store, each its own share of it.

They agree on little, through the key-value store that torchrun runs beside them: when the store's metadata stands, how
many images are done, who failed first. All waiting is polling, so that Ctrl-C, a signal or another process's error ends
it at once.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch

from ..launch import read_launch

_POLL_S = 0.05
_ANSWER = timedelta(minutes=5)  # of the key-value store; it answers in under a millisecond
_n_joined = 0  # names the keys of each harvest of a process apart


class Ranks:
    """One of the processes that share a harvest: here the only one. `join_ranks` gives the right kind."""

    rank, n_ranks = 0, 1
    """Number of this process among all of them, and how many they are."""
    local_rank, n_local = 0, 1
    """The same on this machine."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    @property
    def is_first(self) -> bool:
        """Whether this is the process that makes the store and speaks to the user."""
        return self.rank == 0

    def share(self, n: int) -> int:
        """How many of `n` things of this machine are this process's."""
        return n // self.n_local + (self.local_rank < n % self.n_local)

    def threads(self) -> int:
        """Threads that all processes of this machine together may compute with.

        Sums differ in the last bits with the number of threads, so this is what one process alone would take.
        """
        return torch.get_num_threads()

    def came(self, point: str) -> None:
        """Say that this process has come to a point; each point has its own name."""

    def all_came(self, point: str) -> bool:
        """Whether every process has come to a point."""
        return True

    def wait_for_all(self, point: str) -> None:
        """Come to a point, and return when every process has."""

    @contextmanager
    def first_on_machine(self, point: str) -> Iterator[None]:
        """Let one process of each machine do what follows before the others do it."""
        yield

    def leave(self) -> None:
        """Be the last call: the process that may keep the key-value store goes last."""

    @property
    def another_failed(self) -> bool:
        """Whether another process has failed, and says why."""
        return False

    def count(self, name: str, n: int) -> int:
        """Add to a number that the processes keep together; gives it."""
        self._counts[name] = self._counts.get(name, 0) + n
        return self._counts[name]

    @contextmanager
    def ending_together(self) -> Iterator[None]:
        """End all processes with the first error of any, the only one that is told; the others leave by SystemExit."""
        yield


class _Joined(Ranks):
    """One of several processes.

    Parameters
    ----------
    store
        The key-value store that all of them reach.
    rank, n_ranks, local_rank, n_local
        As `Ranks` has them.
    """

    def __init__(self, store: Any, rank: int, n_ranks: int, local_rank: int, n_local: int) -> None:
        super().__init__()
        self._store = store
        self._n_threads: int | None = None
        self.rank, self.n_ranks, self.local_rank, self.n_local = rank, n_ranks, local_rank, n_local

    def threads(self) -> int:
        """Threads that all processes of this machine together may compute with.

        torchrun gives each process one thread where the user has chosen nothing. Then it is as many as torch takes in a
        process of its own; else as many as it takes there when given what the user gave each, times their number. One
        process finds out for all.
        """
        if self._n_threads is None:
            if self.is_first:
                text = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
                given = int(text) if text.isdecimal() else 1  # OpenMP too ignores what is no number
                n_threads = _threads_of_a_fresh_process(given * self.n_local if given > 1 else None)
                self._store.set("threads", str(n_threads))
            self._wait(lambda: self._store.check(["threads"]))
            self._n_threads = int(self._store.get("threads"))
        return self._n_threads

    def came(self, point: str) -> None:
        self._store.add(f"at/{point}", 1)

    def all_came(self, point: str) -> bool:
        self._end_where_another_failed()
        return int(self._store.add(f"at/{point}", 0)) >= self.n_ranks

    def wait_for_all(self, point: str) -> None:
        self.came(point)
        self._wait(lambda: self.all_came(point))

    @contextmanager
    def first_on_machine(self, point: str) -> Iterator[None]:
        done = f"done/{point}/{self.rank - self.local_rank}"  # torchrun numbers the processes machine by machine
        if self.local_rank:
            self._wait(lambda: bool(self._store.check([done])))
        yield
        if not self.local_rank:
            self._store.set(done, "1")

    def leave(self) -> None:
        self.came("end")
        if self.is_first:
            self._wait(lambda: self.all_came("end"))

    @property
    def another_failed(self) -> bool:
        return self._n_failed(0) > 0

    def count(self, name: str, n: int) -> int:
        self._end_where_another_failed()
        return int(self._store.add(f"count/{name}", n))

    @contextmanager
    def ending_together(self) -> Iterator[None]:
        try:
            yield
        except SystemExit:
            raise
        except KeyboardInterrupt:  # a signal, which comes to all of them: one says it
            if self.is_first and not self._n_failed(0):
                raise
            raise SystemExit(1) from None
        except BaseException:
            # torchrun ends the others by SIGTERM as soon as one has ended; the first to fail has a line to say
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            if self._n_failed(1) == 1:
                raise
            raise SystemExit(1) from None

    def _wait(self, is_over: Callable[[], bool]) -> None:
        while not is_over():
            self._end_where_another_failed()
            time.sleep(_POLL_S)

    def _end_where_another_failed(self) -> None:
        if self._n_failed(0):
            raise SystemExit(1)

    def _n_failed(self, more: int) -> int:
        try:
            return int(self._store.add("failed", more))
        except RuntimeError:  # the key-value store is gone, and with it torchrun or the first process
            return 1 if self.is_first else 2


def join_ranks() -> Ranks:
    """The processes that torchrun started with this one, from its environment; this one alone where it started none.

    Raises
    ------
    ValueError
        When the environment is half of torchrun's, or holds numbers that are none.
    """
    global _n_joined
    launch = read_launch()
    if launch is None:
        return Ranks()
    from torch.distributed import PrefixStore, rendezvous

    store, rank, n_ranks = next(iter(rendezvous("env://", timeout=_ANSWER)))
    _n_joined += 1
    return _Joined(
        PrefixStore(f"thresher/harvest/{launch.attempt}/{_n_joined}", store),
        rank,
        n_ranks,
        launch.local_rank,
        launch.n_local,
    )


def _threads_of_a_fresh_process(chosen: int | None) -> int:
    """Threads that torch takes in a process that is given so many, or no number; it may take fewer than given."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    if chosen is not None:
        environment["OMP_NUM_THREADS"] = str(chosen)
    code = "import torch; print(torch.get_num_threads())"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout)

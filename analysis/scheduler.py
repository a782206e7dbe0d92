"""Where Dask computes: threads of this process, local worker processes, or a cluster that is already there."""

import logging
import os
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from multiprocessing import resource_tracker
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

_CONNECT_TIMEOUT_S = 20.0


class Compute(Protocol):
    """A place to compute Dask graphs."""

    description: str
    """`threads of this process`, `2 local processes`, `the cluster at tcp://...`."""

    def run(self, root: Any, leaves: Sequence[Any], on_leaf: Callable[[], None]) -> Any:
        """Compute the delayed `root`; call `on_leaf` as each of the delayed `leaves` below it is done."""

    def each(self, function: Callable[..., T], calls: Iterable[tuple[Any, ...]]) -> Iterator[T]:
        """Compute `function(*call)` of each call; the results in order, few of them held at a time.

        The arguments are given to every process by value: numbers and paths, not arrays of rows.
        """


@contextmanager
def open_compute(*, workers: int | None = None, scheduler: str | None = None) -> Iterator[Compute]:
    """Open a place to compute and close what it started.

    Parameters
    ----------
    workers
        Start this many local processes, on loopback only. They are spawned: a script that calls this guards its entry
        point with `if __name__ == "__main__"`.
    scheduler
        Join the cluster at this address instead. It is left running.

    Raises
    ------
    ConnectionError
        When nothing answers at `scheduler`.
    """
    if scheduler is not None:
        with _joined(scheduler) as client:
            yield _ClientCompute(client, f"the cluster at {scheduler}")
    elif workers is not None:
        with _local_cluster(workers) as client:
            yield _ClientCompute(client, f"{workers} local process{'es' if workers > 1 else ''}")
    else:
        yield _ThreadCompute()


class _ThreadCompute:
    description = "threads of this process"

    def run(self, root: Any, leaves: Sequence[Any], on_leaf: Callable[[], None]) -> Any:
        from dask.callbacks import Callback

        keys = {leaf.key for leaf in leaves}

        def after(key: Any, _result: object, _graph: object, _state: object, _worker: object) -> None:
            if key in keys:
                on_leaf()

        with Callback(posttask=after):
            return root.compute(scheduler="threads", optimize_graph=False)

    def each(self, function: Callable[..., T], calls: Iterable[tuple[Any, ...]]) -> Iterator[T]:
        from dask import compute, delayed

        of_one = delayed(function, pure=False)
        for some in _batched(calls, 2 * (os.cpu_count() or 1)):
            yield from compute(*(of_one(*call) for call in some), scheduler="threads", optimize_graph=False)


class _ClientCompute:
    def __init__(self, client: Any, description: str) -> None:
        self._client, self.description = client, description

    def run(self, root: Any, leaves: Sequence[Any], on_leaf: Callable[[], None]) -> Any:
        from distributed import as_completed

        futures = self._client.compute([root, *leaves], optimize_graph=False)
        result, *done = futures
        del futures
        # Each leaf is let go as it is done: the merges hold what they still need, so a worker's memory does not grow
        # with the number of ranges.
        waiting = as_completed(done, loop=self._client.loop)  # else it looks for a default client: there is none
        del done
        for future in waiting:
            if future.key != result.key:  # of one range, that leaf is the root
                future.release()
            on_leaf()
        return result.result()

    def each(self, function: Callable[..., T], calls: Iterable[tuple[Any, ...]]) -> Iterator[T]:
        at_once = 2 * max(1, sum(self._client.nthreads().values()))  # those computed, and as many in waiting
        waiting: deque[Any] = deque()
        for call in calls:
            waiting.append(self._client.submit(function, *call, pure=False))
            if len(waiting) >= at_once:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _batched(items: Iterable[T], n: int) -> Iterator[tuple[T, ...]]:
    """Give the items n at a time."""
    iterator = iter(items)
    while some := tuple(islice(iterator, n)):
        yield some


@contextmanager
def _local_cluster(workers: int) -> Iterator[Any]:
    import dask
    from distributed import Client, LocalCluster

    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="thresher-dask-"))
        # The default limits restart a worker at a share of the machine's memory that other users' jobs may have taken.
        limits = {"distributed.worker.memory.terminate": False, "distributed.worker.memory.pause": False}
        stack.enter_context(dask.config.set(limits))
        with _signals_held():  # distributed cannot close what has half started
            cluster = LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                host="127.0.0.1",
                # ports of their own, on loopback: the default is 8787, of every interface
                dashboard_address="127.0.0.1:0",
                worker_dashboard_address="127.0.0.1:0",
                silence_logs=logging.ERROR,
                local_directory=folder,
            )
            stack.enter_context(cluster)
            client = stack.enter_context(Client(cluster, timeout=_CONNECT_TIMEOUT_S))
        yield client


@contextmanager
def _signals_held() -> Iterator[None]:
    """Deliver SIGINT and SIGTERM at the end of the block; processes started inside it never see SIGINT.

    Ctrl-C reaches every process of a terminal. This one ends its workers; they would each print a traceback.
    """
    if threading.current_thread() is not threading.main_thread():  # Python's handlers run in the main thread alone
        yield
        return
    came: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _frame: came.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    # Its start would undo the mask in the thread that starts the workers.
    resource_tracker.ensure_running()
    # Threads and processes inherit the mask; the handler notes what another thread of this process is given.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, handler)
    for caught in came:
        signal.raise_signal(caught)


@contextmanager
def _joined(address: str) -> Iterator[Any]:
    from distributed import Client

    try:
        client = Client(address, timeout=_CONNECT_TIMEOUT_S, set_as_default=False)
    except ValueError as error:
        raise ValueError(f"scheduler {address} is no address of one ({error}): it is like tcp://host:8786") from error
    except OSError as error:
        raise ConnectionError(
            f"no Dask scheduler answers at {address} ({error}). Start one with `dask scheduler`, "
            "or leave the option out."
        ) from error
    with client:
        yield client

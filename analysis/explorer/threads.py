"""Threads for answers that take long; a process that is stopped does not wait for them.

Python's own pool of threads is waited for at the end of a process, and a tower that computes cannot be interrupted.
"""

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeVar

_THREADS = 6
"""Answers that take long at once; others wait."""

MATCHING = "match-"
"""How the names of the threads begin that match runs, which also compute."""

T = TypeVar("T")
_jobs: "SimpleQueue[Callable[[], None]]" = SimpleQueue()
_lock = threading.Lock()
_n_threads = _n_waited_for = 0


async def in_thread(function: Callable[..., T], *arguments: Any) -> T:
    """What a function gives, called in one of these threads."""
    global _n_threads, _n_waited_for
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(set_result: Callable[[Any], None], found: Any) -> None:
        if not future.done():  # the visitor left, or the server was stopped
            set_result(found)

    def job() -> None:
        global _n_waited_for
        try:
            settled = future.set_result, function(*arguments)
        except Exception as error:
            settled = future.set_exception, error  # type: ignore[assignment]
        with suppress(RuntimeError):  # the loop is closed: no one waits any more
            loop.call_soon_threadsafe(settle, *settled)
        with _lock:
            _n_waited_for -= 1

    with _lock:
        _n_waited_for += 1
        if _n_threads < _THREADS:
            _n_threads += 1
            threading.Thread(target=_work, name=f"slow-{_n_threads}", daemon=True).start()
    _jobs.put(job)
    return await future


def _work() -> None:
    while True:
        _jobs.get()()


def end_without_them() -> None:
    """End the process at once where a thread still computes: libraries fail when they are taken away from under it."""
    if _n_waited_for or any(thread.name.startswith(MATCHING) for thread in threading.enumerate()):
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(1)

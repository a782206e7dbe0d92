"""Work that is begun before its result is wanted."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_A = TypeVar("_A")
_R = TypeVar("_R")


def in_order(call: Callable[[_A], _R], arguments: Iterable[_A], n_ahead: int) -> Generator[_R, None, None]:
    """The results of `call` for each argument, in their order, by threads of which each is one result ahead.

    Close the generator to end the work.

    Parameters
    ----------
    call
        Reads something, say.
    arguments
        Taken as they are needed, by the thread that asks for results.
    n_ahead
        Results that are worked on beside the one that is wanted: they bound the memory.
    """
    pool = ThreadPoolExecutor(n_ahead + 1, thread_name_prefix="thresher-ahead")
    begun: deque[Future[_R]] = deque()
    try:
        for argument in arguments:
            begun.append(pool.submit(call, argument))
            if len(begun) > n_ahead:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)

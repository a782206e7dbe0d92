"""Windows committed in the background, so that whoever fills the next one does not wait for the disk."""

from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .writer import StoreWriter, WindowWriter


class Commits:
    """Commits the windows of a store that are handed to it, one after the other; all are durable once `wait` returns.

    Two windows are in memory at most: one that is written, one that is filled. A kill loses these. A window is recorded
    as soon as its bytes are durable; the names of its records are made durable along with the bytes of the next.

    Parameters
    ----------
    writer
        Of the store. Windows come from one thread.
    """

    def __init__(self, writer: "StoreWriter") -> None:
        self._objects = writer.objects
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="thresher-commit")
        self._under_way: Future[None] | None = None
        self._unsettled: Collection[str] = ()

    def begin(self, window: "WindowWriter") -> None:
        """Begin a window's commit, once the one before it is done; raises the error of that one.

        Its bytes are given to the disk while that one is still waited for.
        """
        try:
            window.begin()
            self._await()
        except BaseException:
            window.abandon()
            raise
        self._under_way = self._thread.submit(self._write, window)

    def check(self) -> None:
        """Raise the error of a commit that has failed."""
        if self._under_way is not None and self._under_way.done():
            self._await()

    def wait(self) -> None:
        """Wait until all windows are committed and durable; raises the error of one that could not be."""
        self._await()
        self._settle()

    def close(self) -> None:
        """Let the commit that is under way end, whatever becomes of its window."""
        self._thread.shutdown()
        self._settle()

    def _await(self) -> None:
        if self._under_way is not None:
            begun, self._under_way = self._under_way, None
            begun.result()

    def _write(self, window: "WindowWriter") -> None:
        try:
            self._unsettled = window.write(self._unsettled)
        except BaseException:
            window.abandon()
            raise

    def _settle(self) -> None:
        unsettled, self._unsettled = self._unsettled, ()
        if unsettled:
            self._objects.settle(unsettled)

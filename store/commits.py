"""Windows committed in the background, so that whoever fills the next one does not wait for the disk."""

import threading
from collections import deque
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .writer import StoreWriter, WindowWriter

_HELD_BYTES = 32 << 20
_MOST_HELD = 16


def windows_held(window_bytes: int) -> int:
    """Windows that may be in memory beside the one that is filled: some small ones, or one."""
    return min(_MOST_HELD, max(1, _HELD_BYTES // window_bytes))


class Commits:
    """Commits the windows of a store that are handed to it; all are durable once `wait` returns.

    A window that is alone is written at once. Small ones that came while the disk was busy are written together: it
    takes many files in little more time than one. A window is recorded as soon as its bytes are durable, so that a kill
    loses the windows in hand and none that is older; the names of its records are made durable along with the bytes of
    a later window.

    Parameters
    ----------
    writer
        Of the store. Windows come from one thread.
    """

    def __init__(self, writer: "StoreWriter") -> None:
        self._writer = writer
        self._most = windows_held(writer.window_bytes())
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="thresher-commit")
        self._state = threading.Condition()
        self._waiting: deque[WindowWriter] = deque()
        self._n_written = 0  # windows that are being written now
        self._unsettled: Collection[str] = ()
        self._error: BaseException | None = None

    def begin(self, window: "WindowWriter") -> None:
        """Begin to commit a window, once there is memory for another.

        Raises
        ------
        OSError
            When one before it could not be written: then this one is not begun.
        """
        with self._state:
            self._state.wait_for(lambda: len(self._waiting) + self._n_written < self._most or self._error)
            self.check()
            self._waiting.append(window)
        self._thread.submit(self._write_waiting)

    def check(self) -> None:
        """Raise the error of a window that could not be written."""
        if self._error is not None:
            raise self._error

    def wait(self) -> None:
        """Wait until all windows are committed, the last thing that is done here; raises the error of one."""
        self.close()
        self.check()

    def close(self) -> None:
        """Let what is under way end."""
        self._thread.shutdown()
        try:
            self._writer.objects.settle(self._unsettled)
        except OSError as error:
            self._error = self._error or error

    def _write_waiting(self) -> None:
        """Write the windows that wait, half of what memory holds at most, so that others can be filled meanwhile."""
        with self._state:
            n = 0 if self._error else min(len(self._waiting), max(1, self._most // 2))
            windows = [self._waiting.popleft() for _ in range(n)]
            self._n_written = n
        if not windows:
            return  # another call wrote them, or nothing more is to be written
        try:
            self._unsettled = self._writer.write(windows, self._unsettled)
        except BaseException as error:
            self._error = error
        with self._state:
            self._n_written = 0
            self._state.notify_all()

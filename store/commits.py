"""Windows committed in the background, so that whoever fills the next one does not wait for the disk."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .writer import Files, StoreWriter, WindowWriter

_SMALL_BYTES = 32 << 20


def windows_at_once(window_bytes: int) -> int:
    """Windows that are written at a time, in memory beside the one that is filled: two where they are small.

    While the one waits for the disk, the bytes of the other are copied: two at once take two thirds of the time.
    """
    return 2 if window_bytes <= _SMALL_BYTES else 1


class Commits:
    """Commits the windows of a store that are handed to it; they are all committed once `wait` returns.

    A window is recorded once its bytes are durable. Where the next one already waits to be written, the records go with
    its bytes: a disk makes both durable in the time of one of them. Otherwise they are written at once, so that a kill
    loses the windows in hand and none that is older.

    Parameters
    ----------
    writer
        Of the store. Windows come from one thread.
    """

    def __init__(self, writer: "StoreWriter") -> None:
        self._writer = writer
        self._at_once = windows_at_once(writer.window_bytes())
        self._threads = ThreadPoolExecutor(self._at_once, thread_name_prefix="thresher-commit")
        self._state = threading.Condition()
        self._n_written = 0  # windows that are being written now
        self._n_waiting = 0
        self._durable: dict[int, Files] = {}  # records that are still to be written, by window
        self._error: BaseException | None = None  # the first of a window

    def begin(self, window: "WindowWriter") -> None:
        """Begin to commit a window, once the memory of one before it is free.

        Raises
        ------
        OSError
            When one before it could not be written: then this one is not begun.
        """
        with self._state:
            self._n_waiting += 1
            try:
                self._state.wait_for(lambda: self._n_written < self._at_once or self._error)
            finally:
                self._n_waiting -= 1
            self.check()
            self._n_written += 1
        self._threads.submit(self._commit, window)

    def check(self) -> None:
        """Raise the error of a window that could not be written."""
        if self._error is not None:
            raise self._error

    def wait(self) -> None:
        """Wait until all windows are committed, the last thing that is done here; raises the error of one."""
        self.close()
        self.check()

    def close(self) -> None:
        """Let what is under way end; every window whose bytes are durable is recorded."""
        self._threads.shutdown()
        try:
            self._record()
        except OSError as error:
            self._error = self._error or error

    def _commit(self, window: "WindowWriter") -> None:
        try:
            if self._write(window):
                self._record()
        except BaseException as error:
            with self._state:
                self._error = self._error or error

    def _write(self, window: "WindowWriter") -> bool:
        """Write a window's bytes; gives whether its records are now to be written, since no other window takes them."""
        earlier = self._taken()
        records: Files | None = None
        try:
            records = window.write(_joined(earlier))
        finally:
            with self._state:
                if records is None:
                    self._durable |= earlier
                    self._error = self._error or sys.exception()  # before another window may begin
                else:
                    self._durable[window.number] = records
                self._n_written -= 1
                self._state.notify_all()
                is_last = not self._n_waiting and not self._n_written
        self._writer.mark_committed(earlier)
        return is_last

    def _record(self) -> None:
        records = self._taken()
        if records:
            self._writer.objects.write_all(_joined(records))
            self._writer.mark_committed(records)

    def _taken(self) -> dict[int, "Files"]:
        with self._state:
            taken, self._durable = self._durable, {}
            return taken


def _joined(files: dict[int, "Files"]) -> "Files":
    return {name: parts for some in files.values() for name, parts in some.items()}

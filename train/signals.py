"""Signals that ask a run to stop, noted until the run is at a place where it can."""

import signal
import threading
from types import FrameType, TracebackType

_STOPS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """While open, SIGINT and SIGTERM are noted instead of ending the process; a second one ends it as before.

    Elsewhere than in the main thread, to which Python delivers signals, it notes nothing.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        """Name of the signal that came, None before."""
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in _STOPS:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in self._before:
            self._restore(number)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name
        self._restore(number)

    def _restore(self, number: int) -> None:
        signal.signal(number, self._before[number])  # type: ignore[arg-type]  # whatever signal.signal gave

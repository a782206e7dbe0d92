"""Says that a service of buckets does not answer, while its requests are made again."""

import logging
import math
import time

_LOG = logging.getLogger(__name__)

PATIENCE_S = 2.0
"""That a user waits without a word."""


class Outage:
    """The time since a service last answered one process.

    It is told as a warning of the log, since whoever opens a store need not name a reporter; the command line shows it
    on stderr. Requests fail side by side: one line stands for all of them.
    """

    def __init__(self) -> None:
        self.has_answered = False
        """At all: before, a request is a small one, and a slow answer is none that merely is long."""
        self._began_s: float | None = None
        self._told_s = -math.inf

    def answered(self) -> None:
        """Take note of an answer, whatever it says."""
        self.has_answered = True
        self._began_s = None

    def failed(self, started_s: float, wait_s: float, line: str) -> None:
        """Take note of a request that failed in passing; tell, if the user will have waited by its next try.

        Parameters
        ----------
        started_s
            When it was first made, by `time.monotonic`.
        wait_s
            Until its next try.
        line
            What to tell.
        """
        self._began_s = min(started_s, self._began_s or started_s)
        if time.monotonic() + wait_s - self._began_s >= PATIENCE_S:
            self.tell(line)

    def tell(self, line: str) -> None:
        """Tell, unless it was told just now."""
        if time.monotonic() - self._told_s >= PATIENCE_S:
            self._told_s = time.monotonic()
            _LOG.warning("%s", line)

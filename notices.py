"""Shows on stderr what the rooms can only tell the log: they have no one else to tell that a bucket does not answer."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from .progress import printable


@contextmanager
def notices(*, quiet: bool) -> Iterator[None]:
    """Show each warning of the rooms' logs as a line, in place of Python's own handler; none where `quiet`."""
    log, handler = logging.getLogger(__package__), _Notices(quiet=quiet)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


class _Notices(logging.Handler):
    def __init__(self, *, quiet: bool) -> None:
        super().__init__(logging.WARNING)
        self._quiet = quiet

    def emit(self, record: logging.LogRecord) -> None:
        if not self._quiet:  # a live bar of rich takes what is printed, and shows it above itself
            print(f"warning: {printable(record.getMessage())}", file=sys.stderr, flush=True)

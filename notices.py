"""Shows on stderr what the rooms can only tell the log: they have no one else to tell that a bucket does not answer."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from .progress import printable


@contextmanager
def notices() -> Iterator[None]:
    """Show each warning of the rooms' logs as a line, in place of Python's own handler."""
    log, handler = logging.getLogger(__package__), _Notices(logging.WARNING)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


class _Notices(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        # a live bar of rich takes what is printed, and shows it above itself
        print(f"warning: {printable(record.getMessage())}", file=sys.stderr, flush=True)

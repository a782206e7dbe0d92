"""Commands that hear Ctrl-C wherever the tests run."""

import signal


def hear_interrupts() -> None:
    """Undo what a shell does to its background jobs, which would ignore SIGINT: for `preexec_fn`."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)

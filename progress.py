"""How a long command shows where it is: a live bar on a terminal, plain lines elsewhere, always on stderr."""

import sys
import time
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

_UNSHOWN = ("Cc", "Cs", "Zl", "Zp")  # control characters, halves of characters, line and paragraph separators
_PLAIN_LINE_EVERY_S = 10.0  # a log file of an hour's job stays readable


class Task(Protocol):
    """One measurable piece of work."""

    def advance(self, n: int = 1, **fields: object) -> None:
        """Count `n` more units done; `fields` are shown beside the bar (`l0=26.1`)."""

    def show_rows(self, rows: Sequence[Mapping[str, object]]) -> None:
        """Show a table below the bar, a line for each of `rows`, whose keys are the columns."""


class Reporter:
    """Where a long command says what it does. This one says nothing; `ConsoleReporter` speaks."""

    def say(self, text: str) -> None:
        """Tell one line."""

    def warn(self, text: str) -> None:
        """Tell one line that the user should act on."""

    @contextmanager
    def task(self, name: str, total: int, unit: str, *, done: int = 0) -> Iterator[Task]:
        """Open a piece of work of `total` units, of which `done` were done before (a resumed command)."""
        yield _SilentTask()


class _SilentTask:
    def advance(self, n: int = 1, **fields: object) -> None:
        pass

    def show_rows(self, rows: Sequence[Mapping[str, object]]) -> None:
        pass


class ConsoleReporter(Reporter):
    """Speaks to stderr, by rich where that is a terminal, by a plain line every ten seconds where it is not."""

    def __init__(self, *, quiet: bool = False) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """Tell one line."""
        self._console.print(printable(text), markup=False)

    def warn(self, text: str) -> None:
        """Tell one line that the user should act on."""
        self._console.print(f"warning: {printable(text)}", style="yellow", markup=False)

    @contextmanager
    def task(self, name: str, total: int, unit: str, *, done: int = 0) -> Iterator[Task]:
        """Open a bar, or a plain line every ten seconds."""
        if self._console.is_terminal:
            with _bar(self._console, name, total, unit, done) as live:
                yield live
        else:
            plain = _PlainTask(self._console, name, total, unit, done)
            yield plain
            plain.close()


@contextmanager
def _bar(console: object, name: str, total: int, unit: str, done: int) -> Iterator[Task]:
    from rich.console import RenderableType
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
    from rich.text import Text

    class TwoLines(Progress):
        """The bar, and below it what is shown beside: on one line of 80 columns each would be cut."""

        def get_renderables(self) -> Iterator[RenderableType]:
            for task in self.tasks:
                yield self.make_tasks_table([task])
                if task.fields["shown"]:
                    yield Text(f"  {task.fields['shown']}", no_wrap=True, overflow="ellipsis")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[left]}"),
    )
    with TwoLines(*columns, console=console) as progress:  # type: ignore[arg-type]
        yield _BarTask(progress, name, total, unit, done)


class _Counter:
    """Units done, their rate since the start of this process, the time that is left."""

    def __init__(self, name: str, total: int, unit: str, done: int) -> None:
        self.name, self.total, self.unit = name, total, unit
        self.done = done
        self._done_before = done
        self._start_s = time.monotonic()

    def count(self, n: int) -> None:
        self.done += n

    @property
    def rate(self) -> str:
        return f"{format_rate(self._per_s)} {self.unit}/s" if self._per_s else ""

    @property
    def left(self) -> str:
        return f"{format_s((self.total - self.done) / self._per_s)} left" if self._per_s else ""

    @property
    def _per_s(self) -> float:
        elapsed_s = time.monotonic() - self._start_s
        return (self.done - self._done_before) / elapsed_s if elapsed_s > 0 else 0.0


class _BarTask(_Counter):
    def show_rows(self, rows: Sequence[Mapping[str, object]]) -> None:
        self._progress.update(self._id, shown="; ".join(_shown(dict(row)) for row in rows))  # type: ignore[attr-defined]

    def __init__(self, progress: object, name: str, total: int, unit: str, done: int) -> None:
        super().__init__(name, total, unit, done)
        self._progress = progress
        self._id = progress.add_task(name, total=total, completed=done, rate="", left="", shown="")  # type: ignore[attr-defined]

    def advance(self, n: int = 1, **fields: object) -> None:
        self.count(n)
        self._progress.update(  # type: ignore[attr-defined]
            self._id, completed=self.done, rate=self.rate, left=self.left, shown=_shown(fields)
        )


class _PlainTask(_Counter):
    def __init__(self, console: object, name: str, total: int, unit: str, done: int) -> None:
        super().__init__(name, total, unit, done)
        self._console = console
        self._last_s = time.monotonic()
        self._shown = ""

    def advance(self, n: int = 1, **fields: object) -> None:
        self.count(n)
        self._shown = _shown(fields)
        if time.monotonic() - self._last_s >= _PLAIN_LINE_EVERY_S:
            self._last_s = time.monotonic()
            self._line(self.left)

    def show_rows(self, rows: Sequence[Mapping[str, object]]) -> None:
        self._shown = "; ".join(_shown(dict(row)) for row in rows)

    def close(self) -> None:
        self._line("done" if self.done >= self.total else "stopped")

    def _line(self, last: str) -> None:
        parts = [f"{self.name}: {self.done:,} of {self.total:,} {self.unit}", self.rate, self._shown, last]
        self._console.print(", ".join(p for p in parts if p), markup=False)  # type: ignore[attr-defined]


def _shown(fields: dict[str, object]) -> str:
    return "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in fields.items())


def printable(text: str, *, keep: str = "") -> str:
    """Text that any terminal can show on one line: control characters and bytes that are no UTF-8 as escapes.

    Names of files may hold either: an escape sequence would reach the terminal, half a character be an error.

    Parameters
    ----------
    text
        With undecodable bytes as `os.fsdecode` gives them.
    keep
        Control characters to leave alone.
    """
    if text.isprintable():
        return text
    return "".join(
        c.encode("unicode_escape").decode("ascii") if unicodedata.category(c) in _UNSHOWN and c not in keep else c
        for c in text
    )


def format_rate(per_s: float) -> str:
    """A rate in three significant digits, with thousands separated."""
    return f"{per_s:,.0f}" if per_s >= 100 else f"{per_s:.3g}"


def format_s(seconds: float) -> str:
    """A duration as a person says it: `45 s`, `3 min 20 s`, `2 h 05 min`."""
    s = round(seconds)
    if s < 100:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60:02d} s"
    return f"{s // 3600} h {s % 3600 // 60:02d} min"


def format_bytes(n: float) -> str:
    """A size as a person says it, in decimal units: `5.4 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:,.3g} TB" if n < 1000 else f"{n:,.0f} TB"


def stderr_is_terminal() -> bool:
    """Whether a person watches stderr."""
    return sys.stderr.isatty()

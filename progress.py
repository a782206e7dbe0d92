"""How a long command shows where it is: a live bar on a terminal, plain lines elsewhere, always on stderr."""

import sys
import time
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

_UNSHOWN = ("Cc", "Cs", "Zl", "Zp")  # control characters, halves of characters, line and paragraph separators
_PLAIN_LINE_EVERY_S = 10.0  # a log file of an hour's job stays readable


class Task(Protocol):
    """One measurable piece of work."""

    def advance(self, n: int = 1, **fields: object) -> None:
        """Count `n` more units done; `fields` are shown beside the bar (`l0=26.1`)."""

    def show_rows(self, rows: Sequence[Mapping[str, object]]) -> None:
        """Show a table below the bar in place of fields beside it: a line for each of `rows`, by column."""


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
    """Speaks to stderr, by rich where that is a terminal, by a plain line every ten seconds where it is not.

    Where `quiet`, it warns and is silent otherwise.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self._warnings = Console(stderr=True, highlight=False, soft_wrap=True) if quiet else self._console

    def say(self, text: str) -> None:
        """Tell one line."""
        self._console.print(printable(text), markup=False)

    def warn(self, text: str) -> None:
        """Tell one line that the user should act on."""
        self._warnings.print(f"warning: {printable(text)}", style="yellow", markup=False)

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
def _bar(console: "Console", name: str, total: int, unit: str, done: int) -> Iterator[Task]:
    from rich.console import RenderableType
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
    from rich.text import Text

    class BarAndBelow(Progress):
        """The bar, and below it what is shown beside: on one line of 80 columns each would be cut."""

        def get_renderables(self) -> Iterator[RenderableType]:
            for task in self.tasks:
                yield self.make_tasks_table([task])
                if task.fields["rows"]:
                    # Beside the bar and the cursor's line.
                    yield _live_table(task.fields["rows"], console.width, console.height - 2)
                elif task.fields["shown"]:
                    yield Text(f"  {task.fields['shown']}", no_wrap=True, overflow="ellipsis")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[left]}"),
    )
    with BarAndBelow(*columns, console=console) as progress:
        yield _BarTask(progress, name, total, unit, done)


def _live_table(rows: Sequence[Mapping[str, object]], width: int, height: int) -> "Table":
    """The first rows that `height` lines hold, and how many others there are; of a long line the name is cut."""
    from rich.table import Table

    header, lines = _cells(rows)
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    widths[0] = max(1, min(widths[0], width - sum(widths[1:]) - 2 * len(widths)))
    table = Table(box=None, padding=(0, 1))
    for number, column in enumerate(header):
        justify: Literal["left", "right"] = "right" if number else "left"
        table.add_column(column, justify=justify, no_wrap=True, overflow="ellipsis", max_width=widths[number])
    fits = len(lines) if len(lines) < height else max(0, height - 2)  # of the height, the header and the last line
    for line in lines[:fits]:
        table.add_row(*line)
    if fits < len(lines):
        table.add_row(f"and {len(lines) - fits} more")
    return table


def _cells(rows: Sequence[Mapping[str, object]]) -> tuple[list[str], list[list[str]]]:
    """The columns of all rows, and a text for each cell; none where a row lacks it."""
    header = list(dict.fromkeys(name for row in rows for name in row))
    return header, [[printable(_text(row[name])) if name in row else "" for name in header] for row in rows]


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
    def __init__(self, progress: "Progress", name: str, total: int, unit: str, done: int) -> None:
        super().__init__(name, total, unit, done)
        self._progress = progress
        self._id = progress.add_task(name, total=total, completed=done, rate="", left="", shown="", rows=())

    def advance(self, n: int = 1, **fields: object) -> None:
        self.count(n)
        self._progress.update(self._id, completed=self.done, rate=self.rate, left=self.left, shown=_shown(fields))

    def show_rows(self, rows: Sequence[Mapping[str, object]]) -> None:
        self._progress.update(self._id, rows=list(rows))


class _PlainTask(_Counter):
    def __init__(self, console: "Console", name: str, total: int, unit: str, done: int) -> None:
        super().__init__(name, total, unit, done)
        self._console = console
        self._last_s = time.monotonic()
        self._shown = ""
        self._rows: Sequence[Mapping[str, object]] = ()

    def advance(self, n: int = 1, **fields: object) -> None:
        self.count(n)
        self._shown = _shown(fields)
        if time.monotonic() - self._last_s >= _PLAIN_LINE_EVERY_S:
            self._last_s = time.monotonic()
            self._write(self.left)

    def show_rows(self, rows: Sequence[Mapping[str, object]]) -> None:
        self._rows = list(rows)

    def close(self) -> None:
        self._write("done" if self.done >= self.total else "stopped")

    def _write(self, last: str) -> None:
        parts = [f"{self.name}: {self.done:,} of {self.total:,} {self.unit}", self.rate, self._shown, last]
        lines = [", ".join(part for part in parts if part)]
        if self._rows:
            header, cells = _cells(self._rows)
            widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
            for line in (header, *cells):
                first, *others = (f"{cell:{'<' if not n else '>'}{widths[n]}}" for n, cell in enumerate(line))
                lines.append("  ".join(["", first, *others]).rstrip())
        self._console.print("\n".join(lines), markup=False)


def _shown(fields: Mapping[str, object]) -> str:
    return "  ".join(f"{name} {_text(value)}" for name, value in fields.items())


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


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

"""A description: names and values to read, and the same numbers as JSON."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_COLUMNS = 80
_MARGINS = 4  # that `results.table` leaves before a name and after it


@dataclass(frozen=True)
class Description:
    """A store or a run, as lines of (what, value) and as JSON."""

    title: str
    lines: list[tuple[str, str]]
    record: dict[str, Any]


def laid_out(items: Sequence[tuple[str, str | list[str]]]) -> list[tuple[str, str]]:
    """Items as lines that fit a terminal of 80 columns; a line that goes on with the item before has no name.

    Parameters
    ----------
    items
        (what, value): text, which is wrapped, or the lines of a table, which are not.
    """
    width = _COLUMNS - _MARGINS - max(len(name) for name, _ in items)
    lines: list[tuple[str, str]] = []
    for name, value in items:
        if isinstance(value, str):
            value = textwrap.wrap(value, width, break_long_words=False, break_on_hyphens=False)
        names = [name] + [""] * (len(value) - 1)
        lines += zip(names, value or [""], strict=True)
    return lines


def table_lines(header: list[str], rows: list[list[str]]) -> list[str]:
    """A header and rows, every column as wide as its widest entry; the first flush left, the others right."""
    widths = [max(len(entry) for entry in column) for column in zip(header, *rows, strict=True)]
    return [
        "  ".join([f"{row[0]:{widths[0]}}", *(f"{entry:>{n}}" for entry, n in zip(row[1:], widths[1:], strict=True))])
        for row in (header, *rows)
    ]

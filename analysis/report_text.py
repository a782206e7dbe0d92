"""How the numbers of a report read: four figures, shares, intervals, what the post published."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .post import NUMBERS

_FIXED = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class Beside:
    """What the post published, where a run is of its setting."""

    is_shown: bool

    def of(self, name: str) -> str:
        """The post's number; empty where it has none, or the setting is another."""
        return NUMBERS.get(name, "") if self.is_shown else ""


def short(value: Any) -> str:
    """Four figures, zeros kept: 0.9000 says more than 0.9; integers as they are."""
    if value is None:
        return "undefined"
    text = f"{value:#.4g}" if 1e-3 <= abs(value) < 1e4 else f"{value:.4g}"
    return text.rstrip(".")


def digits(value: Any, n: int = 3) -> str:
    """So many digits after the point."""
    return "undefined" if value is None else f"{value:.{n}f}"


def percent(value: Any) -> str:
    """A share."""
    return "undefined" if value is None else f"{100 * value:.1f} %"


def span(found: Sequence[Any] | None, *, percent: bool = False) -> str:
    """An interval, `low to high`; empty where there is none."""
    if found is None or found[0] is None:
        return ""
    if percent:
        return f"{100 * found[0]:.1f} to {100 * found[1]:.1f} %"
    return f"{short(found[0])} to {short(found[1])}"


def in_brackets(interval: str) -> str:
    """What `span` gave, to stand behind its number."""
    return f"[{interval.replace(' to ', ',' + _FIXED)}]" if interval else ""


def bracket(found: Sequence[Any] | None, n: int = 3, *, percent: bool = False) -> str:
    """An interval with `n` digits after the point, to stand behind its number; empty where there is none."""
    if found is None or found[0] is None:
        return ""
    if percent:
        return f"[{100 * found[0]:.1f},{_FIXED}{100 * found[1]:.1f}]"
    return f"[{found[0]:.{n}f},{_FIXED}{found[1]:.{n}f}]"

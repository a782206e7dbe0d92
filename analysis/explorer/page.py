"""What a page of the explorer is: a path, a view, a template; and what it is asked with.

A view is a frozen dataclass of plain values, so that its template, its JSON twin and the static export show the same.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .runs import ExploredRun
    from .several import Explorer


class PageError(Exception):
    """What a visitor is told instead of a page, in one line."""

    status = 500


class NotHere(PageError):
    """There is no such thing in this run."""

    status = 404


class BadQuery(PageError):
    """What was asked makes no sense; the line names the parameter and its value."""

    status = 400


class Unavailable(PageError):
    """What it takes is not there: a tower's weights, the source of the images, another command's output."""

    status = 503


def page_error(error: Exception) -> PageError:
    """What a visitor is told of an error: its line, where files of the run are damaged or gone meanwhile."""
    return error if isinstance(error, PageError) else Unavailable(" ".join(str(error).split()))


@dataclass(frozen=True)
class Query:
    """What a page is asked with: the numbers of its path, its query string, the body of a POST."""

    path: Mapping[str, Any] = field(default_factory=dict)
    """Parameters of the path, converted: `/f/{feature:int}` gives `feature`."""
    values: Mapping[str, str] = field(default_factory=dict)
    """Of the query string; of a name given twice, the last."""
    body: bytes = b""
    """Of a POST, bounded before it is read."""
    is_whole: bool = False
    """Whether the page holds all of a list, as in a static export, which has no further pages of it."""

    def text(self, name: str, default: str = "", *, longest: int = 200) -> str:
        """A value of the query string; `BadQuery` where it is longer than `longest` characters."""
        value = self.values.get(name, default)
        if len(value) > longest:
            raise BadQuery(f"{name} has {len(value)} characters; at most {longest} are read.")
        return value

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        """An integer of the query string; `BadQuery` where it is none of `low` to `high`."""
        value = self.values.get(name)
        if value is None or value == "":
            return default
        digits = value.removeprefix("-")
        if not digits.isascii() or not digits.isdigit() or len(value) > 18:
            raise BadQuery(f"{name} must be an integer, not {value[:40]!r}.")
        if not low <= int(value) <= high:
            raise BadQuery(f"{name} must be {low} to {high}, not {value}.")
        return int(value)

    def choice(self, name: str, choices: tuple[str, ...]) -> str:
        """One of some words, the first by default."""
        value = self.values.get(name) or choices[0]
        if value not in choices:
            raise BadQuery(f"{name} must be one of {', '.join(choices)}, not {value[:40]!r}.")
        return value


@dataclass(frozen=True)
class Answer:
    """Bytes that are no page: a picture, numbers for a plot, a list to save."""

    content: bytes
    media_type: str
    is_fixed: bool = False
    """Whether the address always gives these bytes, so that a browser may keep them."""
    file_name: str | None = None
    """What a browser saves it as; None shows it."""
    rows: Sequence[int] = ()
    """Whose thumbnails a script shows from these bytes: a static export writes them."""
    is_kept: bool = True
    """Whether a browser may keep it at all: not what a game has not shown yet."""


@dataclass(frozen=True)
class Chosen:
    """Of which things of a run a static export holds the pages; ascending numbers without repeats."""

    features: Sequence[int] = ()
    rows: Sequence[int] = ()
    labels: Sequence[int] = ()
    neurons: Sequence[int] = ()
    runs: Sequence[str] = ()
    """Names of the others that are explored with it."""


@dataclass(frozen=True)
class Page:
    """One kind of page."""

    name: str
    """Of its template, without `.html`, and in the top bar's links."""
    path: str
    """Starlette's notation, such as `/f/{feature:int}`; the JSON twin ends in `.json` (of `/`: `/index.json`)."""
    view: "Callable[[ExploredRun, Query], Any]"
    """Gives a frozen dataclass; raises `PageError`."""
    is_slow: "bool | Callable[[Query], bool]" = False
    """Whether it may take more than some milliseconds, and so has a thread of its own; or when. Quick ones are answered
    one after the other: threads that compute at once only delay each other."""
    is_exported: bool = True
    """Whether a static export holds it: once, or for each chosen feature, row, label, neuron or run of its path."""
    exported_with: str = ""
    """A field of `Chosen` without which an export leaves it out: `neurons` of the list of neurons."""


@dataclass(frozen=True)
class Endpoint:
    """An address that gives bytes or JSON and no page."""

    path: str
    answer: "Callable[[ExploredRun, Query], Answer | dict[str, Any] | list[Any]]"
    """What is no `Answer` goes out as JSON."""
    is_post: bool = False
    is_slow: "bool | Callable[[Query], bool]" = False
    exports: "Callable[[ExploredRun, Chosen], Iterable[Query]] | None" = None
    """With what a static export asks it: each answer becomes a script under `data/`, under the address that pages load,
    the query's values in their order. JSON in it calls an image's row `row`, or several `rows`, by which the export
    knows the thumbnails to write. None exports nothing."""


@dataclass(frozen=True)
class Chapter:
    """What a module of `pages` adds to the explorer."""

    pages: tuple[Page, ...] = ()
    endpoints: tuple[Endpoint, ...] = ()
    start: "Callable[[Explorer], None] | None" = None
    """Called once, before the first visitor."""

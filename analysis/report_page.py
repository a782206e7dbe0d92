"""A report as one HTML page: sections of text, tables and figures, with nothing outside the file."""

import base64
import io
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Template

_WEBP_ABOVE_BYTES = 400_000
"""Pictures of photographs above this many bytes are inlined as WebP; the PNG stays in figures/."""
_WEBP_QUALITY = 82


@dataclass(frozen=True, kw_only=True)
class Number:
    """One number of a table, with what it means."""

    name: str
    value: str
    definition: str
    interval: str = ""
    """95 %; empty where there is none."""
    post: str = ""
    """What the post published; empty where nothing, or where the setting is another."""


@dataclass(frozen=True, kw_only=True)
class NumberTable:
    """Numbers below each other, with their definitions."""

    caption: str
    numbers: list[Number]

    @property
    def has_intervals(self) -> bool:
        """Whether any number has an interval."""
        return any(number.interval for number in self.numbers)

    @property
    def has_post(self) -> bool:
        """Whether the post has any of them."""
        return any(number.post for number in self.numbers)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A table of a header and rows, whose first cells name them."""

    caption: str
    header: list[str]
    rows: list[list[str]]
    is_text: bool = False
    """Whether the cells are words, flush left, and not numbers."""
    ends_in_words: bool = False
    """Whether those of the last column are, and say what the numbers mean."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A picture, what it shows for those who do not see it, and its caption."""

    path: Path
    """The PNG."""
    alt: str
    caption: str

    @property
    def source(self) -> str:
        """The picture as a data URI."""
        data, kind = self.path.read_bytes(), "png"
        if len(data) > _WEBP_ABOVE_BYTES:
            data, kind = _webp(data), "webp"
        return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, so that a page does not jump."""
        from PIL import Image

        with Image.open(self.path) as picture:
            return picture.size


@dataclass(frozen=True, kw_only=True)
class Section:
    """One part of the report."""

    id: str
    title: str
    command: str = ""
    """Which made its numbers, as a shell takes it."""
    text: list[str] = field(default_factory=list)
    """Paragraphs."""
    tables: list[NumberTable | Grid] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    absent: str = ""
    """One sentence where there is nothing: which command makes it."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """The whole report."""

    title: str
    summary: list[str]
    sections: list[Section]
    provenance: list[tuple[str, str]]


def render(page: Page) -> str:
    """The page as HTML; every text in it is escaped."""
    return _template().render(page=page, is_grid=lambda table: isinstance(table, Grid), cell_class=_cell_class)


def _cell_class(table: Grid, loop: Any) -> str:
    """Of a cell of a column that Jinja's `loop` is at: a number's, a definition's or none."""
    if loop.first or table.is_text:
        return ""
    return "definition" if loop.last and table.ends_in_words else "n"


@cache
def _template() -> "Template":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("thresher.analysis"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html")


def _webp(png: bytes) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png)) as picture:
        picture.convert("RGB").save(buffer, "WEBP", quality=_WEBP_QUALITY)
    return buffer.getvalue()

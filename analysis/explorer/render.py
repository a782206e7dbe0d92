"""Pages as HTML, escaped by default, and their views as JSON."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from http import HTTPStatus
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .page import Page, PageError
from .runs import ExploredRun
from .several import Explorer
from .urls import Urls

if TYPE_CHECKING:
    from jinja2 import Environment


def static_files() -> Traversable:
    """The folder of style sheets and scripts."""
    return files(__package__) / "static"


@cache
def static_version() -> str:
    """Digest of all style sheets and scripts: it stands in their addresses, so that a browser may keep them."""
    digest = hashlib.sha256()
    for file in sorted((file for file in static_files().iterdir() if file.is_file()), key=lambda file: file.name):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


def render_page(explorer: Explorer, run: ExploredRun, page: Page, view: Any, urls: Urls, address: str) -> bytes:
    """One page.

    Parameters
    ----------
    view
        As `page.view` gave it.
    address
        Of the page itself, for its permalink.
    """
    return _render(f"{page.name}.html", explorer, run, page.name, urls, view=view, address=address)


def render_error(explorer: Explorer, run: ExploredRun, error: PageError, urls: Urls) -> bytes:
    """What a visitor reads where there is no page."""
    reason = HTTPStatus(error.status).phrase.capitalize()
    return _render("error.html", explorer, run, "error", urls, message=str(error), status=error.status, reason=reason)


def render_alone(template: str, **values: Any) -> str:
    """A template that is no page of the server's, with the filters of pages."""
    return _environment().get_template(template).render(**values)


def _render(template: str, explorer: Explorer, run: ExploredRun, name: str, urls: Urls, **values: Any) -> bytes:
    found = _environment().get_template(template)
    text: str = found.render(explorer=explorer, run=run, page=name, url=urls, **values)
    return text.encode("utf-8", "replace")


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(str(files(__package__) / "templates")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
        bytecode_cache=None,
    )
    environment.filters |= {"number": number, "percent": percent, "to_json": for_script}
    return environment


def number(value: float | None, digits: int = 3) -> str:
    """A number as people read it: `–` where there is none, with so many significant digits, thousands apart."""
    if value is None or not math.isfinite(value):
        return "–"
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    if value != 0 and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.{max(digits - 1, 0)}e}"
    shown = f"{value:.{digits}g}"
    return f"{float(shown):,.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}" if value else "0"


_MOST_DIGITS = 15  # that float64 holds of any decimal number


def percent(share: float | None, digits: int = 2) -> str:
    """A share as per cent, with so many significant digits; more where a share below 1 would be rounded to 100 %."""
    if share is None or not math.isfinite(share):
        return "–"
    while share < 1 and float(f"{100 * share:.{digits}g}") >= 100 and digits < _MOST_DIGITS:
        digits += 1
    return f"{number(100 * share, digits)} %"


_AS_THEY_ARE = frozenset((int, str, bool, type(None)))


@cache
def _shown_fields(kind: type) -> tuple[str, ...] | None:
    """What the JSON of a dataclass holds; None of another type."""
    return tuple(each.name for each in fields(kind) if each.repr) if is_dataclass(kind) else None


def plain(value: Any) -> Any:
    """Dataclasses, numpy's numbers and arrays, paths: as JSON has them; what is not finite becomes null."""
    if type(value) in _AS_THEY_ARE:  # most values: asked first, it halves the time of a page's numbers
        return value
    if isinstance(value, float) and not isinstance(value, np.generic):
        return value if math.isfinite(value) else None
    names = _shown_fields(type(value))  # type: ignore[arg-type]  # a type is hashable
    if names is not None:
        return {name: plain(getattr(value, name)) for name in names}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value


def to_json(value: Any) -> bytes:
    """A view or answer as a JSON document."""
    text = json.dumps(plain(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")


def for_script(value: Any) -> Any:
    """JSON that may stand within a `<script type="application/json">`, whatever the names in it hold."""
    from markupsafe import Markup

    text = to_json(value).decode()
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)

"""The query string of a list of features, read into filters and written back."""

import math
import re
from urllib.parse import urlencode

from .listing import NAMED, ORDERS, SETS, VERDICTS, Filters, Range
from .page import BadQuery, Query

SORTS = (
    *("id", "name", "name_score", "label", "density", "mean_top", "max", "entropy", "monosemanticity", "cosine"),
    *("agreement", "verdict", "given", "score"),
)
_FALLING = ("name_score", "density", "mean_top", "max", "monosemanticity", "cosine", "agreement", "verdict", "score")
"""What one wants the largest of first."""
_PARAMETERS = (
    *("q", "d", "m", "e", "a", "s", "label", "tag", "named", "verdict"),
    *("set", "ids", "sort", "order", "page"),
)
_MOST_WORDS = 8
_MOST_LABELS = 1 << 31
LONGEST_IDS = 60_000
"""Characters of a list of ids; servers take addresses of 64 KiB."""


def read_filters(query: Query) -> Filters:
    """The filters that a query string asks for.

    Raises
    ------
    BadQuery
        When a value makes no sense.
    """
    q = query.text("q").strip()
    phrase = q[1:].strip() if q.startswith("~") else ""
    words = () if q.startswith("~") else tuple(dict.fromkeys(q.lower().split()))
    if len(words) > _MOST_WORDS:
        raise BadQuery(f"q has {len(words)} words; at most {_MOST_WORDS} are looked for.")
    ids = _ids(query.text("ids", longest=LONGEST_IDS))
    sort = query.choice("sort", SORTS) if query.values.get("sort") else _default_sort(phrase, ids)
    falls = query.choice("order", ORDERS) == "desc" if query.values.get("order") else sort in _FALLING
    label = query.integer("label", -1, 0, _MOST_LABELS)
    return Filters(
        words=words,
        phrase=phrase,
        d=_range(query, "d"),
        m=_range(query, "m"),
        e=_range(query, "e"),
        label=None if label < 0 else label,
        tag=query.text("tag").strip().lower(),
        agreement=_range(query, "a"),
        name_score=_range(query, "s"),
        named=query.choice("named", NAMED),
        verdict=query.choice("verdict", VERDICTS),
        set=query.choice("set", SETS),
        ids=ids,
        sort=sort,
        is_falling=falls,
    )


def values_of(query: Query) -> dict[str, str]:
    """What a query string says beyond the defaults, in one order: of equal lists the same."""
    filters = read_filters(query)
    found = {name: query.values.get(name, "").strip() for name in _PARAMETERS}
    found["order"] = "desc" if filters.is_falling else "asc"
    found["sort"] = filters.sort
    defaults = {
        "sort": _default_sort(filters.phrase, filters.ids),
        "order": "desc" if filters.sort in _FALLING else "asc",
        "set": SETS[0],
        "named": "0",
        "page": "1",
    }
    return {name: value for name, value in found.items() if value and value != defaults.get(name)}


def address(values: dict[str, str], **changes: str | None) -> str:
    """A query string with `?`, of values with some changed; None leaves one out, and a change leads to page 1."""
    merged = {**values, **({"page": None} if "page" not in changes else {}), **changes}
    if merged.get("page") == "1":
        merged["page"] = None
    kept = {name: merged[name] for name in _PARAMETERS if merged.get(name)}
    return f"?{urlencode(kept, safe=':,~')}" if kept else ""


def sort_changes(sort: str, current: str, is_falling: bool) -> dict[str, str | None]:
    """What a click on a column's head changes: its own natural order first, the other one next."""
    falls = not is_falling if sort == current else sort in _FALLING
    is_natural = falls == (sort in _FALLING)
    return {"sort": sort, "order": None if is_natural else ORDERS[falls]}


def _default_sort(phrase: str, ids: tuple[int, ...]) -> str:
    return "score" if phrase else "given" if ids else "id"


def _ids(text: str) -> tuple[int, ...]:
    if not text.strip():
        return ()
    if not re.fullmatch(r"[0-9]{1,9}( *, *[0-9]{1,9})* *,?", text.strip()):
        raise BadQuery("ids must be features parted by commas, such as 1,2,3.")
    return tuple(dict.fromkeys(int(part) for part in text.split(",") if part.strip()))


def _range(query: Query, name: str) -> Range | None:
    text = query.text(name).strip()
    if not text:
        return None
    ends = text.split(":")
    try:
        low, high = (float(end) if end.strip() else None for end in ends)
    except ValueError:
        raise BadQuery(
            f"{name} must be two numbers such as -4:-1, either may be left out, not {text[:40]!r}."
        ) from None
    if any(end is not None and not math.isfinite(end) for end in (low, high)):
        raise BadQuery(f"{name} must be of finite numbers, not {text[:40]!r}.")
    return Range(low, high)

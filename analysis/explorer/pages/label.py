"""A class: the features that take its rows, its own ones first; and the list of all classes."""

from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..class_tables import tree
from ..feature_query import address
from ..label_index import Taken
from ..listing import Selection
from ..page import Chapter, Endpoint, NotHere, Page, Query, Unavailable
from ..runs import ExploredRun
from .features import Row, rows

OWN_SHOWN, OWN_ROWS, ROWS_SHOWN = 18, 8, 24
FIRINGS_SEARCHED = 50_000
"""Of a feature, strongest first, for rows of a class."""
PER_PAGE = 50
CLASSES_PER_PAGE = 200
RELATED_SHOWN = 20
SORTS = ("share", "precision", "sum")

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Picture:
    """A row of a grid."""

    row: int
    value: float
    """The feature's activation there."""
    name: str
    """Of its label."""


@dataclass(frozen=True)
class TakenFeature:
    """A feature that fires on rows of the class."""

    feature: Row
    n: int | None
    """Rows of the class on which it fires; None where no label table was stored."""
    share: float | None
    """Of the rows of the class."""
    precision: float | None
    """Share of its labelled firings that are of the class."""
    sum: float | None
    """Of its activations on the class."""
    pictures: list[Picture]
    """Of the class, among its strongest rows."""


@dataclass(frozen=True)
class Group:
    """A group of own features that fire on the same rows."""

    depth: int
    feature: int
    name: str
    n_rows: int
    share: float
    is_part: bool
    n_strongest: int
    """Rows of the class that belong to it: on which it, or what doubles it, is the strongest of all parts."""
    doubles: list[int]
    row: int
    """A picture of it; -1 for none."""
    sensitive: bool


@dataclass(frozen=True)
class RelatedClass:
    """A class that shares features with this one."""

    label: int
    name: str
    n_shared: int
    expected: float
    features: list[int]


@dataclass(frozen=True)
class Label:
    """What the page of a class shows."""

    label: int
    name: str
    noun: str
    """What is counted: images, or rows where an image has several."""
    n_rows: int
    n_own: int
    own: list[TakenFeature]
    """Of label entropy 0 with this label, by falling rows of the class."""
    own_list: str
    """The query string of all of them as a list."""
    taken: list[TakenFeature]
    """A page of all that fire on it."""
    n_taken: int
    n_top: int
    """Features whose top label it is."""
    sort: str
    sorts: list[tuple[str, str]]
    """Other orders, and the query string of each."""
    page: int
    n_pages: int
    previous: str | None
    next: str | None
    share_covered: float | None
    """Of its rows on which any of its own features fires."""
    effective_parts: float | None
    n_parts: int | None
    groups: list[Group]
    related: list[RelatedClass]
    messages: list[str]
    """What is missing, and what makes it."""


@dataclass(frozen=True)
class ClassLine:
    """A class in the list."""

    label: int
    name: str
    n_rows: int
    n_own: int
    n_top: int
    row: int
    """A picture of it: its row with the largest activation; -1 for none."""
    sensitive: bool


@dataclass(frozen=True)
class Classes:
    """The classes of a run."""

    noun: str
    q: str
    sort: str
    sorts: list[tuple[str, str]]
    total: int
    n_labels: int
    classes: list[ClassLine]
    page: int
    n_pages: int
    previous: str | None
    next: str | None
    problem: str | None


def view(run: ExploredRun, query: Query) -> Label:
    """The page of a class."""
    label: int = query.path["label"]
    counts = run.class_counts
    place = counts.place(label)
    if place is None:
        raise NotHere(
            f"No row of {run.name} has the label {label}: it has {len(counts.label):,}."
            if len(counts.label)
            else f"No row of {run.name} has a label: it was harvested from images without classes."
        )
    n_rows = int(counts.n_rows[place])
    own_ids = counts.own_of(label)
    messages: list[str] = []
    try:
        found: Taken | None = run.label_index.of(label, n_rows)
    except Unavailable as error:
        found = None
        messages.append(str(error))
    sort = query.choice("sort", SORTS)
    order = _order(found, sort)
    n_pages = max(1, -(-len(order) // PER_PAGE))
    page = min(query.integer("page", 1, 1, 1 << 31), n_pages)
    if found is not None:
        at = np.searchsorted(found.feature, own_ids)
        own_ids = own_ids[np.lexsort((own_ids, -found.count[at]))]
    tables = run.class_tables
    if tables.problem is not None:
        messages.append(tables.problem)
    line = tables.classes.get(label)
    values = {} if sort == SORTS[0] else {"sort": sort}
    return Label(
        label=label,
        name=run.label_name(label),
        noun=_noun(run),
        n_rows=n_rows,
        n_own=len(own_ids),
        own=_taken(run, label, own_ids[:OWN_SHOWN], found, OWN_ROWS),
        own_list=address({"set": "all", "ids": ",".join(map(str, own_ids[:5000].tolist()))}) if len(own_ids) else "",
        taken=_taken(run, label, order[(page - 1) * PER_PAGE : page * PER_PAGE], found, 4),
        n_taken=len(order),
        n_top=int(counts.n_top[place]),
        sort=sort,
        sorts=[(each, f"?sort={each}" if each != SORTS[0] else "") for each in SORTS],
        page=page,
        n_pages=n_pages,
        previous=_page(values, page - 1) if page > 1 else None,
        next=_page(values, page + 1) if page < n_pages else None,
        share_covered=line.share_covered if line else None,
        effective_parts=line.effective_parts if line else None,
        n_parts=line.n_parts if line else None,
        groups=_groups(run, label, n_rows),
        related=[
            RelatedClass(each.label, run.label_name(each.label), each.n_shared, each.expected, each.features[:12])
            for each in sorted(tables.related.get(label, []), key=lambda each: (each.p_adjusted, -each.n_shared))
        ][:RELATED_SHOWN],
        messages=messages,
    )


def view_all(run: ExploredRun, query: Query) -> Classes:
    """The list of a run's classes."""
    counts = run.class_counts
    q = query.text("q").strip()
    keys = {"name": counts.name_place, "rows": -counts.n_rows, "own": -counts.n_own, "label": counts.label}
    sort = query.choice("sort", tuple(keys))
    order = np.lexsort((counts.label, keys[sort]))
    words = q.lower().split()[:8]
    if words:
        kept = [all(word in text or word == number for word in words) for text, number in counts.texts]
        order = order[np.array(kept, bool)[order]] if kept else order
    per_page = max(1, len(order)) if query.is_whole else CLASSES_PER_PAGE
    n_pages = max(1, -(-len(order) // per_page))
    page = min(query.integer("page", 1, 1, 1 << 31), n_pages)
    shown = order[(page - 1) * per_page : page * per_page]
    sensitive = run.annotations.sensitive
    columns = (counts.label, counts.n_rows, counts.n_own, counts.n_top, counts.top_row, counts.top_feature)
    values = {"q": q, "sort": "" if sort == "name" else sort}
    return Classes(
        noun=_noun(run),
        q=q,
        sort=sort,
        sorts=[(each, _address({**values, "sort": "" if each == "name" else each})) for each in keys],
        total=len(order),
        n_labels=len(counts.label),
        classes=[
            ClassLine(label, run.label_name(label), n, n_own, n_top, row, feature in sensitive)
            for label, n, n_own, n_top, row, feature in zip(
                *(column[shown].tolist() for column in columns), strict=True
            )
        ],
        page=page,
        n_pages=n_pages,
        previous=_page(values, page - 1) if page > 1 else None,
        next=_page(values, page + 1) if page < n_pages else None,
        problem=None if len(counts.label) else f"No row of {run.name} has a label: it was harvested without classes.",
    )


def _noun(run: ExploredRun) -> str:
    return "images" if run.site is None or run.site.token in ("cls", "mean") else "rows"


def _address(values: dict[str, str]) -> str:
    from urllib.parse import urlencode

    kept = {name: value for name, value in values.items() if value}
    return f"?{urlencode(kept)}" if kept else ""


def _page(values: dict[str, str], page: int) -> str:
    return _address({**values, "page": str(page) if page > 1 else ""})


def _order(found: Taken | None, sort: str) -> Ints:
    """Features of a class by one of `SORTS`, falling; of equals first those that take more, then the lower."""
    if found is None:
        return np.zeros(0, np.int64)
    order = np.argsort(-found.count, kind="stable")
    if sort != "share":
        key = found.precision if sort == "precision" else found.sum
        order = order[np.argsort(-key[order], kind="stable")]
    return found.feature[order]


def _taken(run: ExploredRun, label: int, ids: Ints, found: Taken | None, n_pictures: int) -> list[TakenFeature]:
    """Some features with what they take of a class."""
    statistics = run.stored.statistics
    name = run.label_name(label)
    tops = (statistics.top_label[ids] == label) & (statistics.top_row[ids] >= 0) & run.has_thumbnails
    at = np.zeros(len(ids), np.int64) if found is None else np.searchsorted(found.feature, ids)
    shown = []
    for row, place, is_here in zip(rows(run, Selection(ids, {})), at.tolist(), tops, strict=True):
        slots = np.flatnonzero(is_here)[:n_pictures]
        pictures = zip(
            statistics.top_row[row.id, slots].tolist(), statistics.top_value[row.id, slots].tolist(), strict=True
        )
        shown.append(
            TakenFeature(
                feature=row,
                n=None if found is None else int(found.count[place]),
                share=None if found is None else float(found.share[place]),
                precision=None if found is None else float(found.precision[place]),
                sum=None if found is None else float(found.sum[place]),
                pictures=[Picture(*pair, name) for pair in pictures],
            )
        )
    return shown


def _groups(run: ExploredRun, label: int, n_rows: int) -> list[Group]:
    top, names = run.stored.statistics.top_row, run.names.now()
    return [
        Group(
            depth=depth,
            feature=part.feature,
            name=names.of(part.feature),
            n_rows=part.n_class,
            share=part.n_class / max(1, n_rows),
            is_part=part.is_part,
            n_strongest=part.n_strongest + sum(each.n_strongest for each in doubles),
            doubles=[each.feature for each in doubles],
            row=int(top[part.feature, 0]) if run.has_thumbnails else -1,
            sensitive=run.annotations.is_sensitive(part.feature),
        )
        for depth, part, doubles in tree(run.class_tables.parts.get(label, []))
        if part.feature < run.d_sae
    ]


def _rows_of(run: ExploredRun, query: Query) -> dict[str, Any]:
    """The rows of a class on which a feature fires most, of all its firings."""
    label, feature = query.path["label"], run.require_feature(query.path["feature"])
    row, value = run.require_features().feature(feature)
    order = np.lexsort((row, -value))[:FIRINGS_SEARCHED]
    row, value = row[order], value[order]
    here = np.array(run.labels(row.tolist()), np.int64) == label
    name = run.label_name(label)
    pairs = zip(row[here].tolist(), value[here].tolist(), strict=True)
    return {
        "sensitive": run.annotations.is_sensitive(feature),
        "pictures": [Picture(*pair, name) for pair in islice(pairs, ROWS_SHOWN)],
    }


CHAPTER = Chapter(
    pages=(Page("label", "/c/{label:int}", view), Page("classes", "/c", view_all)),
    endpoints=(Endpoint("/c/{label:int}/f/{feature:int}.json", _rows_of, is_slow=True),),
)

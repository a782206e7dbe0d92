"""What people said of features: changed on a feature's page, listed, taken from and to other machines."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..annotations import ANNOTATIONS_JSON, read_document
from ..feature_query import address
from ..listing import Selection
from ..page import Answer, BadQuery, Chapter, Endpoint, Page, Query
from ..runs import ExploredRun
from .features import Row, rows

PER_PAGE = 100
_CHANGES = ("tags", "note", "sensitive", "name", "note_before", "name_before")
_TEXTS = ("note", "name", "note_before", "name_before")


@dataclass(frozen=True)
class Noted:
    """A feature and what is said of it."""

    row: Row
    note: str


@dataclass(frozen=True)
class Notes:
    """All annotated features, some at a time."""

    problem: str | None
    """Why the file cannot be read."""
    total: int
    n_sensitive: int
    tags: dict[str, int]
    """How many features have each."""
    noted: list[Noted]
    page: int
    n_pages: int
    ids: str
    """The query string of these features as a list; empty where there are too many for an address."""


def view(run: ExploredRun, query: Query) -> Notes:
    """The annotated features of a run by rising number."""
    annotations = run.annotations
    features = [feature for feature in annotations.features if feature < run.d_sae]
    n_pages = max(1, -(-len(features) // PER_PAGE))
    page = min(query.integer("page", 1, 1, 1 << 31), n_pages)
    ids = features[(page - 1) * PER_PAGE : page * PER_PAGE]
    shown = rows(run, Selection(np.array(ids, np.int64), {}))
    return Notes(
        problem=annotations.problem,
        total=len(features),
        n_sensitive=len(annotations.sensitive),
        tags=annotations.known_tags(),
        noted=[Noted(row, annotations.note(row.id)) for row in shown],
        page=page,
        n_pages=n_pages,
        ids=address({"ids": ",".join(map(str, features)), "set": "all"}) if 0 < len(features) <= 2000 else "",
    )


def _change(run: ExploredRun, query: Query) -> dict[str, Any]:
    """Change what is said of a feature: a JSON object with what is to change."""
    feature = run.require_feature(query.path["feature"])
    changes = read_document(query.body)
    if not isinstance(changes, dict) or not changes or set(changes) - set(_CHANGES):
        raise BadQuery(f"a change is an object with some of {', '.join(_CHANGES)}.")
    for name in _TEXTS:
        if not isinstance(changes.get(name, ""), str):
            raise BadQuery(f"{name} must be a string.")
    if not isinstance(changes.get("sensitive", False), bool):
        raise BadQuery("sensitive must be true or false.")
    changed = run.annotations.change(feature, **changes)
    return {
        "feature": feature,
        "name": changed.name,
        "tags": changed.tags,
        "note": changed.note,
        "sensitive": changed.sensitive,
    }


def _merge(run: ExploredRun, query: Query) -> dict[str, Any]:
    """Add the annotations of another file."""
    return {"n_features": run.annotations.merge(read_document(query.body), run.d_sae)}


def _file(run: ExploredRun, query: Query) -> Answer:
    text = json.dumps(run.annotations.to_json(), indent=1, ensure_ascii=False)
    return Answer(text.encode() + b"\n", "application/json", file_name=f"{run.name}-{ANNOTATIONS_JSON}")


CHAPTER = Chapter(
    pages=(Page("notes", "/notes", view),),
    endpoints=(
        Endpoint("/annotations/{feature:int}", _change, is_post=True, is_slow=True),
        Endpoint("/annotations", _merge, is_post=True, is_slow=True),
        Endpoint("/annotations.json", _file),
    ),
)

"""Features as a table that is searched, filtered and sorted; its state is in the address."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .. import list_files
from ..feature_query import SORTS, address, read_filters, sort_changes, values_of
from ..listing import BY_NAMES, DENSE, SETS, Filters, Selection
from ..page import Answer, Chapter, Chosen, Endpoint, Page, PageError, Query, Unavailable
from ..runs import ExploredRun

PER_PAGE = 100
THUMBNAILS = 4
_SET_TEXTS = {
    "shown": ("Shown", "fires on some row, and is outside the ultra-low-density cluster"),
    "post": ("As in the post", "log10 density > -4, log10 mean top activation > -0.7, label entropy defined"),
    "dense": ("Dense", f"density above {DENSE:g}: fires on more than one row in ten"),
    "uld": ("ULD", "in the ultra-low-density cluster"),
    "dead": ("Dead", "fires on no row"),
    "all": ("All", "every feature of the SAE"),
}
_HEADS = {
    "id": ("Feature", "number of the feature, from 0"),
    "name": ("Name", "what a person called it, else the phrase that `thresher name` found"),
    "name_score": (
        "Score",
        "of the automatic name, 0 to 1: mean of its AUROC and its ablation percentile; none beside a person's name",
    ),
    "label": ("Top label", "label with the largest share of the feature's activation on labelled rows, and that share"),
    "density": ("Density", "log10 of the share of rows on which the feature is > 0"),
    "mean_top": ("Mean top", "mean of the largest positive activations, up to 20 or as many as stats was asked for"),
    "max": ("Max", "largest activation"),
    "entropy": ("Entropy", "label entropy in nats over the same top rows, and over how many labelled ones"),
    "monosemanticity": (
        "Mono",
        "monosemanticity score: mean cosine of the embeddings of two images, weighted by both activations",
    ),
    "cosine": (
        "Neuron",
        "largest cosine of the encoder vector with a neuron's output vector; the largest absolute one with attention's",
    ),
    "agreement": (
        "Agreement",
        "percentile by which picture, top images and name agree, the mean over the three pairs: 50 by chance",
    ),
    "verdict": ("Picture", "whether the optimised picture passed every check"),
    "score": ("Match", "how well the feature matches the phrase, by the text tower"),
}


@dataclass(frozen=True)
class Thumb:
    """A picture of a mini-grid."""

    row: int
    name: str
    """Of its label."""


@dataclass(frozen=True)
class Row:
    """One feature."""

    id: int
    name: str
    """Empty for none."""
    is_own_name: bool
    """Whether a person gave it."""
    name_score: float | None
    """Of an automatic name."""
    thumbs: list[Thumb]
    """Of its strongest rows."""
    label: int
    """-1 for none."""
    label_name: str
    share: float
    """Of its activation on labelled rows that falls on that label."""
    density: float
    """log10; NaN where dead."""
    mean_top: float
    max: float
    entropy: float
    """Nats; NaN where undefined."""
    n_labelled: int
    """Firing labelled rows that the entropy is over."""
    monosemanticity: float | None
    cosine: float | None
    agreement: float | None
    verdict: str
    """Of its picture: passed or failed; empty where there is none."""
    score: float | None
    """Of the phrase, where one is asked for."""
    is_uld: bool
    is_dead: bool
    tags: list[str]
    sensitive: bool


@dataclass(frozen=True)
class Head:
    """A column's head."""

    key: str
    text: str
    title: str
    """What it holds."""
    link: str
    """A query string that sorts by it."""
    direction: str
    """`ascending`, `descending` or `none`, as aria-sort has it."""


@dataclass(frozen=True)
class Set:
    """A choice of `set=`."""

    key: str
    text: str
    title: str
    n: int


@dataclass(frozen=True)
class Features:
    """A page of the table."""

    values: dict[str, str]
    """What the address says beyond the defaults."""
    message: str | None
    """Why what was asked for could not be looked up."""
    total: int
    page: int
    n_pages: int
    rows: list[Row]
    heads: list[Head]
    sets: list[Set]
    has_names: bool
    has_pictures: bool
    """Whether any picture was checked."""
    has_agreement: bool
    best: str
    worst: str
    """Query strings of the named features by their scores."""
    tags: dict[str, int]
    """Known tags, and how many features have each."""
    label_name: str
    """Of the label that is filtered by."""
    without_label: str
    without_ids: str
    """Query strings without the filters that have no field in the form."""
    previous: str | None
    """A query string."""
    next: str | None
    lists: str
    """The query string of the same list as a file."""


def _asks_for_a_phrase(query: Query) -> bool:
    """Whether the tower's text side is asked, which may have to be loaded."""
    return query.values.get("q", "").lstrip().startswith("~")


def view(run: ExploredRun, query: Query) -> Features:
    """A page of the features that pass the filters of a query string."""
    values, filters = values_of(query), read_filters(query)
    message = run.annotations.problem
    try:
        selection = selected(run, filters)
    except Unavailable as error:
        message, filters = str(error), replace(filters, phrase="", sort="id", is_falling=False)
        selection = selected(run, filters)
    total = len(selection.ids)
    message = message or _lost(run, query.text("q").strip(), total)
    n_pages = max(1, -(-total // PER_PAGE))
    page = min(query.integer("page", 1, 1, 1 << 31), n_pages)
    shown = Selection(selection.ids[(page - 1) * PER_PAGE : page * PER_PAGE], selection.scores)
    return Features(
        values=values,
        message=message,
        total=total,
        page=page,
        n_pages=n_pages,
        rows=rows(run, shown),
        heads=_heads(run, filters, values),
        sets=[Set(key, *_SET_TEXTS[key], int(run.listing.n_of_set[key])) for key in SETS],
        has_names=run.names.are_any,
        has_pictures=run.listing.verdicts is not None,
        has_agreement=run.listing.agreement is not None,
        best=address({"named": "1", "sort": "name_score"}),
        worst=address({"named": "1", "sort": "name_score", "order": "asc"}),
        tags=run.annotations.known_tags(),
        label_name="" if filters.label is None else run.label_name(filters.label),
        without_label=address(values, label=None),
        without_ids=address(values, ids=None),
        previous=address(values, page=str(page - 1)) if page > 1 else None,
        next=address(values, page=str(page + 1)) if page < n_pages else None,
        lists=address(values),
    )


def _lost(run: ExploredRun, q: str, total: int) -> str | None:
    """Where something leads that names one thing rather than words, and is not in the list."""
    found = re.fullmatch(r"(img:\s*)?([0-9]{1,12})", q, re.IGNORECASE)
    if found is None:
        return None
    number = int(found[2])
    try:
        if found[1]:
            run.require_row(number)
            return f"{q} is no feature: the page of that image is i/{number}."
        run.require_feature(number)
    except PageError as error:
        return str(error)
    return None if total else f"Feature {number} does not pass these filters: its page is f/{number}."


def selected(run: ExploredRun, filters: Filters) -> Selection:
    """The features that pass, in order; `Unavailable` where a phrase wants a text tower that is not there."""
    if not filters.phrase:
        return run.listing.select(filters)
    from ..phrases import rank

    return run.listing.select(filters, rank)


def rows(run: ExploredRun, selection: Selection) -> list[Row]:
    """Some features as they are shown."""
    ids, listing, statistics = selection.ids, run.listing, run.stored.statistics
    nothing, verdicts = [None] * len(ids), listing.verdicts
    top = statistics.top_row[ids, :THUMBNAILS].tolist() if run.has_thumbnails else [[]] * len(ids)
    columns: tuple[Iterable[Any], ...] = (
        ids.tolist(),
        top,
        statistics.top_label[ids, :THUMBNAILS].tolist(),
        listing.top_label[ids].tolist(),
        listing.top_share[ids].tolist(),
        listing.log_density[ids].tolist(),
        listing.mean_top[ids].tolist(),
        listing.max[ids].tolist(),
        listing.entropy[ids].tolist(),
        statistics.n_labelled[ids].tolist(),
        nothing if listing.monosemanticity is None else listing.monosemanticity[ids].tolist(),
        nothing if listing.cosine is None else listing.cosine[ids].tolist(),
        nothing if listing.agreement is None else listing.agreement[ids].tolist(),
        nothing if verdicts is None else np.nan_to_num(verdicts[ids], nan=-1).tolist(),
        run.is_uld[ids].tolist(),
        run.is_dead[ids].tolist(),
    )
    names, label_name = run.names.now(), run.label_name
    said, lines = names.said, names.lines
    found = []
    for feature, top_rows, top_labels, label, *numbers, is_uld, is_dead in zip(*columns, strict=True):
        share, density, mean_top, largest, entropy, n_labelled, monosemanticity, cosine, agreement, verdict = numbers
        own, automatic, annotation = names.own(feature), names.automatic(feature), said.get(feature)
        found.append(
            Row(
                id=feature,
                name=own or automatic,
                is_own_name=bool(own),
                name_score=lines[feature].score if automatic and not own else None,
                thumbs=[Thumb(row, label_name(of)) for row, of in zip(top_rows, top_labels, strict=False) if row >= 0],
                label=label,
                label_name=label_name(label),
                share=share,
                density=density,
                mean_top=mean_top,
                max=largest,
                entropy=entropy,
                n_labelled=n_labelled,
                monosemanticity=monosemanticity,
                cosine=cosine,
                agreement=agreement,
                verdict=list_files.VERDICT_WORDS[-1 if verdict is None else verdict],
                score=selection.scores.get(feature),
                is_uld=is_uld,
                is_dead=is_dead,
                tags=list(annotation.tags) if annotation else [],
                sensitive=annotation is not None and annotation.sensitive,
            )
        )
    return found


def _heads(run: ExploredRun, filters: Filters, values: dict[str, str]) -> list[Head]:
    hidden = () if run.names.are_any else BY_NAMES
    keys = [key for key in SORTS if key in run.listing.sorts or (key == "score" and filters.phrase)]
    keys = [key for key in keys if key not in hidden]
    heads = []
    for key in keys:
        direction = "none" if key != filters.sort else "descending" if filters.is_falling else "ascending"
        link = address(values, **sort_changes(key, filters.sort, filters.is_falling))
        heads.append(Head(key, *_HEADS[key], link, direction))
    return heads


def _ids(run: ExploredRun, query: Query) -> Answer:
    """All ids of a list, in order: what j and k walk along."""
    ids = selected(run, read_filters(query)).ids
    return Answer(json.dumps({"ids": ids.tolist()}, separators=(",", ":")).encode(), "application/json")


def _csv(run: ExploredRun, query: Query) -> Answer:
    content = list_files.as_csv(run, selected(run, read_filters(query)))
    return Answer(content, "text/csv; charset=utf-8", file_name=f"{run.name}-features.csv")


def _json(run: ExploredRun, query: Query) -> Answer:
    content = list_files.as_json(run, selected(run, read_filters(query)), values_of(query))
    return Answer(content, "application/json", file_name=f"{run.name}-features.json")


def table(run: ExploredRun, features: Iterable[int]) -> dict[str, Any]:
    """Everything the table shows of some features: what an export searches, filters and sorts in the browser."""
    ids = np.array(sorted(features), np.int64)
    in_sets = {key: run.listing.of_set(key)[ids].astype(int).tolist() for key in SETS}
    return {"features": rows(run, Selection(ids, {})), "sets": in_sets}


def _table(run: ExploredRun, query: Query) -> dict[str, Any]:
    return table(run, query.path.get("features", run.shown.tolist()))


def _exported(run: ExploredRun, chosen: Chosen) -> list[Query]:
    return [Query(path={"features": chosen.features})]


CHAPTER = Chapter(
    pages=(Page("features", "/features", view, is_slow=_asks_for_a_phrase),),
    endpoints=(
        Endpoint("/features/ids.json", _ids, is_slow=True),
        Endpoint("/features/list.csv", _csv, is_slow=True),
        Endpoint("/features/list.json", _json, is_slow=True),
        Endpoint("/features/table.json", _table, is_slow=True, exports=_exported),
    ),
)

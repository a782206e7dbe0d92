"""Two runs beside each other: best matches of their features, the share that is recovered, features that split."""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..firings import TopPicture
from ..match_runs import Job, are_of_one_store, explorer_of, job_of, others, remember, why_not
from ..matching import Matches
from ..page import Answer, Chapter, Chosen, Endpoint, NotHere, Page, Query
from ..runs import ExploredRun
from .overview import points

RECOVERED, CHILD = 0.7, 0.4
"""Cosines above which a feature counts as recovered, and as a child of the one that it is nearest to."""
TREES, CHILDREN, LISTED, LABELS, PICTURES = 6, 6, 8, 3, 4
_BINS = 100


@dataclass(frozen=True)
class Side:
    """A feature of one of the two runs."""

    feature: int
    name: str
    density: float
    label_entropy: float
    is_uld: bool
    sensitive: bool
    pictures: list[TopPicture]
    labels: list[tuple[str, float]]
    """The first labels of its firing rows, and their shares of its activation."""


@dataclass(frozen=True)
class Pair:
    """A feature of A beside one of B."""

    a: Side | None
    """None where it is that of the tree's root."""
    b: Side
    cosine: float
    correlation: float
    """Of their activations; NaN where unknown."""


@dataclass(frozen=True)
class Tree:
    """A feature of A and those of B that it is the nearest to."""

    root: Side
    n_children: int
    children: list[Pair]
    """By falling cosine, the first ones."""


@dataclass(frozen=True)
class Run:
    """What stands of one run above the comparison."""

    name: str
    d_sae: int
    n_alive: int
    n_shown: int
    """Alive and outside the ULD cluster."""
    n_uld: int
    recovered: float
    """Share of those shown whose best match in the other run is above the threshold; NaN of none."""
    median: float
    """Of their best cosines."""
    counts: NDArray[np.int64]
    """`(100,)` of their best cosines, in hundredths: bin i holds i/100 < cosine <= (i + 1)/100, the first all below."""


@dataclass(frozen=True)
class CompareView:
    """The page, as far as it is there."""

    others: list[str]
    other: str = ""
    root: str = ""
    """Of the other run's addresses."""
    problem: str = ""
    """Why there is nothing to compare."""
    share: float = 1.0
    """Of the matching that is done."""
    left_s: float | None = None
    is_of_one_store: bool = False
    threshold: float = RECOVERED
    runs: list[Run] = field(default_factory=list)
    chance_median: float = np.nan
    chance_p99: float = np.nan
    n_rows: int = 0
    median_correlation: float = np.nan
    seconds: float = 0.0
    n_trees: int = 0
    """Features of A with two children or more."""
    page: int = 0
    n_pages: int = 1
    trees: list[Tree] = field(default_factory=list)
    best: list[Pair] = field(default_factory=list)
    """Evenly over the best matches, from the nearest to the farthest."""
    lost: list[Side] = field(default_factory=list)
    """Features of A farthest from all of B."""
    new: list[Side] = field(default_factory=list)
    """Features of B farthest from all of A."""


def view(run: ExploredRun, query: Query) -> CompareView:
    """A run beside another: by default the first."""
    names = [each.name for each in others(run)]
    if not names:
        return CompareView(
            others=[],
            problem="One run is explored here. Give thresher explore two or more, best of one store, to compare them.",
        )
    name = str(query.path.get("run") or query.text("b") or names[0])
    if name not in names:
        raise NotHere(f"No other run {name[:80]!r} is explored here; there is {', '.join(names)}.")
    other = explorer_of(run).run(name)
    shared: dict[str, Any] = {"others": names, "other": name, "root": explorer_of(run).root(other)}
    problem = why_not(run, other)
    if problem:
        return CompareView(**shared, problem=problem)
    job = job_of(run, other)
    if job.matches is None:
        return CompareView(**shared, problem=job.error, share=job.share, left_s=job.left_s)
    threshold = query.integer("t", round(100 * RECOVERED), 0, 100) / 100
    return _compared(run, other, job.matches, threshold, query, shared)


def _compared(
    a: ExploredRun, b: ExploredRun, matches: Matches, threshold: float, query: Query, shared: dict[str, Any]
) -> CompareView:
    best, back = matches.cosine[:, 0], matches.back_cosine
    split, order, of_b = _orders(a, b, matches)
    n_pages = max(1, -(-len(split) // TREES))
    page = query.integer("page", 0, 0, n_pages - 1)
    spread = order[np.unique(np.linspace(0, len(order) - 1, LISTED).astype(int))] if len(order) else order
    correlation = matches.correlation[a.shown, 0]
    known = correlation[np.isfinite(correlation)]
    return CompareView(
        **shared,
        is_of_one_store=are_of_one_store(a, b),
        threshold=threshold,
        runs=[_run(a, best, threshold), _run(b, back, threshold)],
        chance_median=float(np.median(matches.chance)) if len(matches.chance) else np.nan,
        chance_p99=float(np.quantile(matches.chance, 0.99)) if len(matches.chance) else np.nan,
        n_rows=matches.n_rows,
        median_correlation=float(np.median(known)) if len(known) else np.nan,
        seconds=matches.seconds,
        n_trees=len(split),
        page=page,
        n_pages=n_pages,
        trees=[_tree(a, b, matches, int(f)) for f in split[page * TREES : (page + 1) * TREES]],
        best=[_pair(a, b, matches, int(f)) for f in spread],
        lost=[_side(a, int(f)) for f in order[::-1][:LISTED]],
        new=[_side(b, int(g)) for g in of_b[:LISTED]],
    )


@lru_cache(maxsize=8)
def _orders(
    a: ExploredRun, b: ExploredRun, matches: Matches
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Features of A that split, by falling number of children; those shown by falling best cosine; of B by rising."""
    best, back = matches.cosine[:, 0], matches.back_cosine
    parents, counts = np.unique(matches.back_feature[back > CHILD], return_counts=True)
    split = parents[counts > 1][np.argsort(-counts[counts > 1], kind="stable")].astype(np.int64)
    of_a, of_b = (run.shown[np.isfinite(of[run.shown])] for run, of in ((a, best), (b, back)))
    return split, of_a[np.argsort(-best[of_a], kind="stable")], of_b[np.argsort(back[of_b], kind="stable")]


def _run(run: ExploredRun, best: NDArray[np.float32], threshold: float) -> Run:
    of = best[run.shown].astype(np.float64)
    of = of[np.isfinite(of)]
    bins = np.clip(np.ceil(np.round(of * _BINS, 4)) - 1, 0, _BINS - 1).astype(np.int64)
    counts = np.bincount(bins, minlength=_BINS)
    return Run(
        name=run.name,
        d_sae=run.d_sae,
        n_alive=int((~run.is_dead).sum()),
        n_shown=len(run.shown),
        n_uld=int(run.is_uld.sum()),
        recovered=float(counts[round(threshold * _BINS) :].sum() / len(of)) if len(of) else np.nan,
        median=float(np.median(of)) if len(of) else np.nan,
        counts=counts,
    )


def _tree(a: ExploredRun, b: ExploredRun, matches: Matches, feature: int) -> Tree:
    children = np.flatnonzero((matches.back_feature == feature) & (matches.back_cosine > CHILD))
    children = children[np.argsort(-matches.back_cosine[children], kind="stable")]
    pairs = [
        Pair(None, _side(b, g), float(matches.back_cosine[g]), _correlation(matches, feature, g))
        for g in children[:CHILDREN].tolist()
    ]
    return Tree(_side(a, feature), len(children), pairs)


def _pair(a: ExploredRun, b: ExploredRun, matches: Matches, feature: int) -> Pair:
    g = int(matches.feature[feature, 0])
    cosine, correlation = float(matches.cosine[feature, 0]), float(matches.correlation[feature, 0])
    return Pair(_side(a, feature), _side(b, g), cosine, correlation)


def _correlation(matches: Matches, f: int, g: int) -> float:
    """Of two features, where they are among the pairs that it was computed for."""
    place = np.flatnonzero(matches.feature[f] == g)
    return float(matches.correlation[f, place[0]]) if len(place) else np.nan


def _side(run: ExploredRun, feature: int) -> Side:
    s = run.stored.statistics
    top = zip(*(array[feature, :PICTURES].tolist() for array in (s.top_row, s.top_value, s.top_label)), strict=True)
    return Side(
        feature=feature,
        name=run.names.now().of(feature),
        density=float(run.density[feature]),
        label_entropy=float(s.label_entropy[feature]),
        is_uld=bool(run.is_uld[feature]),
        sensitive=feature in run.annotations.sensitive,
        pictures=[TopPicture(row, value, run.label_name(label)) for row, value, label in top if row >= 0],
        labels=_labels(run, feature),
    )


def _labels(run: ExploredRun, feature: int) -> list[tuple[str, float]]:
    """The first labels of the rows on which a feature fires, and their shares; ordered as in `feature_labels`."""
    if not run.has("labels"):
        return []
    first, last = run.array("labels/indptr")[feature : feature + 2].tolist()
    label, count, total = (run.array(f"labels/{name}")[first:last] for name in ("label", "count", "sum"))
    order = np.lexsort((label, -count.astype(np.int64), -total))[:LABELS]
    whole = float(total.sum())
    return [(run.label_name(int(label[i])), float(total[i]) / whole) for i in order] if whole > 0 else []


def status(run: ExploredRun, query: Query) -> dict[str, Any]:
    """How far the matching with another run is; asking starts it."""
    job: Job = job_of(run, _other(run, query))
    return {"is_done": job.done.is_set(), "share": job.share, "left_s": job.left_s, "error": job.error}


def match(run: ExploredRun, query: Query) -> list[dict[str, Any]]:
    """The nearest features of the other runs to one of this, where they have been matched."""
    feature, found = run.require_feature(query.path["feature"]), []
    for other in others(run):
        matches = None if why_not(run, other) else job_of(run, other).matches
        if matches is not None and matches.feature[feature, 0] >= 0:
            g = int(matches.feature[feature, 0])
            found.append(
                {
                    "run": other.name,
                    "root": explorer_of(run).root(other),
                    "feature": g,
                    "cosine": float(matches.cosine[feature, 0]),
                    "correlation": float(matches.correlation[feature, 0]),
                    "is_shown": bool(not other.is_dead[g] and not other.is_uld[g]),
                }
            )
    return found


def other_points(run: ExploredRun, query: Query) -> Answer:
    """Where the features of another run lie in the scatter; see `overview.points`."""
    return points(_other(run, query), query)


def _other(run: ExploredRun, query: Query) -> ExploredRun:
    return explorer_of(run).run(query.path["run"])


def _each_run(run: ExploredRun, chosen: Chosen) -> list[Query]:
    return [Query({"run": name}) for name in chosen.runs]


def _each_feature(run: ExploredRun, chosen: Chosen) -> list[Query]:
    return [Query({"feature": feature}) for feature in chosen.features] if chosen.runs else []


CHAPTER = Chapter(
    pages=(Page("compare", "/compare", view), Page("compare", "/compare/{run}", view)),
    endpoints=(
        Endpoint("/compare-points/{run}.bin", other_points, exports=_each_run),
        Endpoint("/compare-status/{run}.json", status),
        Endpoint("/match/{feature:int}.json", match, exports=_each_feature),
    ),
    start=remember,
)

"""The overview: what a run is, how it trained, where its features lie."""

import math
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....store.errors import StoreError
from ....train.run_dir import METRICS, read_metrics
from ...report_numbers import cluster_table
from ...report_page import Number
from ...report_text import Beside, short
from ..page import Answer, Chapter, Chosen, Endpoint, Page, Query, Unavailable
from ..runs import ExploredRun
from ..visualised import visualised
from .overview_tiles import Tile, tiles_of_evaluation, tiles_of_statistics

EVALUATION = "evaluate.json"
N_THUMBNAILS = 4
MAX_CURVE_POINTS = 400
"""Steps of a training curve, evenly spaced with the first and the last: a plot has hardly more pixels."""
_PER_DECADE = 5
_ENTROPY_BINS = 30

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Histogram:
    """How many features fall between edges; the last bin holds its upper edge."""

    counts: list[int]
    edges: list[float]
    n_left_out: int
    """Features that have no such number."""


@dataclass(frozen=True)
class Overview:
    """What the overview shows."""

    n_features: int
    n_dead: int
    """Have no place in the scatter."""
    n_entropy_undefined: int
    """Of those that have one."""
    n_uld: int
    n_named: int
    n_pictures: int
    """Features whose optimised picture was checked."""
    n_passed: int
    """Of these, those that passed."""
    statistics: list[Tile]
    evaluation: list[Tile]
    """Empty where evaluate.json is not there."""
    evaluate_command: str
    """Makes evaluate.json."""
    without_curves: str
    """Why there are no training curves; empty where there are."""
    density: Histogram
    """Of log10 density."""
    entropy: Histogram
    """In nats."""
    max_entropy: float
    """ln k, the most that a label entropy over k rows can be."""
    k: int
    min_labelled: int
    cluster: list[Number] | None
    """The ULD cluster's numbers; None where there is none."""
    no_cluster_because: str
    log10_threshold: float | None
    """Log10 of the mean top activation that divides the clusters."""


def view(run: ExploredRun, query: Query) -> Overview:
    """The overview of a run."""
    s, statistics = run.summary, run.stored.statistics
    density, entropy = _histograms(run)
    uld = s["uld"]
    n_dead, verdicts = int(s["n_dead"]), visualised(run).verdicts
    return Overview(
        n_features=run.d_sae,
        n_dead=n_dead,
        n_entropy_undefined=entropy.n_left_out - n_dead,
        n_uld=0 if uld is None else uld["n_features"],
        n_named=int(run.names.columns(run.annotations.features).is_named.sum()),
        n_pictures=int((verdicts >= 0).sum()),
        n_passed=int((verdicts == 1).sum()),
        statistics=tiles_of_statistics(s),
        evaluation=_evaluation(run),
        evaluate_command=f"thresher evaluate {shlex.quote(run.path.absolute().name)} IMAGES",
        without_curves=_without_curves(run),
        density=density,
        entropy=entropy,
        max_entropy=math.log(statistics.k),
        k=statistics.k,
        min_labelled=statistics.min_labelled,
        cluster=_cluster(s),
        no_cluster_because=s.get("no_uld_because") or "",
        log10_threshold=None if uld is None else math.log10(uld["threshold"]),
    )


def _cluster(s: Mapping[str, Any]) -> list[Number] | None:
    table = cluster_table(s, Beside(False))
    if table is None:
        return None
    threshold = s["uld"]["threshold"]
    definition = f"Mean top activation at the valley between the two; its log10 is {math.log10(threshold):.3f}."
    size, *others = table.numbers
    return [size, Number(name="Threshold", value=short(threshold), definition=definition), *others]


def _evaluation(run: ExploredRun) -> list[Tile]:
    """Of evaluate.json as it is now: it may be made while the run is explored."""
    try:
        of = (run.path / EVALUATION).stat()
    except FileNotFoundError:
        return []
    return _read_evaluation(run, of.st_mtime_ns, of.st_size)


@lru_cache(maxsize=16)
def _read_evaluation(run: ExploredRun, mtime_ns: int, size: int) -> list[Tile]:
    found = run.document(EVALUATION)
    try:
        return [] if found is None else tiles_of_evaluation(found)
    except (KeyError, TypeError) as error:
        raise Unavailable(f"{EVALUATION} is damaged ({error!r}): run `thresher evaluate --overwrite`.") from error


# Histograms


@cache  # a run is explored as long as the process lives
def _histograms(run: ExploredRun) -> tuple[Histogram, Histogram]:
    """Of log10 density, and of label entropy."""
    density = np.log10(run.density[~run.is_dead])
    entropy = run.stored.statistics.label_entropy.astype(np.float64)
    entropy = entropy[np.isfinite(entropy)]
    edges = np.linspace(0, max(math.log(run.stored.statistics.k), 1e-9), _ENTROPY_BINS + 1)
    # ln k as float32 lies above ln k for many k: outside the last bin
    return (
        _histogram(density, _decade_edges(density), run.d_sae),
        _histogram(entropy.clip(0, edges[-1]), edges, run.d_sae),
    )


def _histogram(values: NDArray[np.float64], edges: NDArray[np.float64], n: int) -> Histogram:
    return Histogram(np.histogram(values, edges)[0].tolist(), edges.tolist(), n - len(values))


def _decade_edges(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Edges of fifths of a decade that hold all of some logarithms; of one decade where there is none."""
    if not len(values):
        return np.arange(-_PER_DECADE, 1) / _PER_DECADE
    low, high = math.floor(values.min() * _PER_DECADE), math.ceil(values.max() * _PER_DECADE)
    return np.arange(low, max(high, low + 1) + 1) / _PER_DECADE


# Training curves


def _without_curves(run: ExploredRun) -> str:
    if (run.path / METRICS).exists():
        return ""
    if run.run.is_imported:
        return f"This SAE was imported ({run.run.config['imported']['format']}): its training is not known."
    return f"The run holds no {METRICS}: there are no curves."


def curves(run: ExploredRun, query: Query) -> dict[str, Any]:
    """Training curves against the rows shown: of each number, the batches' and the held-out rows' `x` and `y`."""
    try:
        of = (run.path / METRICS).stat()
    except FileNotFoundError as error:
        raise Unavailable(_without_curves(run)) from error
    return _read_curves(run, of.st_mtime_ns, of.st_size)


@lru_cache(maxsize=16)
def _read_curves(run: ExploredRun, mtime_ns: int, size: int) -> dict[str, Any]:
    try:
        records = [record for record in read_metrics(run.path / METRICS) if "rows" in record]
    except StoreError as error:
        raise Unavailable(str(error)) from error
    batches = thinned([record for record in records if record["split"] == "train"])
    held_out = thinned([record for record in records if record["split"] == "heldout"])
    found: dict[str, Any] = {}
    for name in ("loss", "l0", "explained_variance", "n_dead"):
        curve = {split: _curve(of, name) for split, of in (("batch", batches), ("heldout", held_out))}
        found[name] = {split: each for split, each in curve.items() if each["x"]}
    return found


def _curve(records: list[Record], name: str) -> dict[str, list[float | None]]:
    """The steps that have such a number: rows shown, and the number; None where it is undefined."""
    here = [record for record in records if name in record]
    values = [record[name]["mean"] if isinstance(record[name], dict) else record[name] for record in here]
    return {"x": [record["rows"] for record in here], "y": values}


def thinned(records: list[Record]) -> list[Record]:
    """At most `MAX_CURVE_POINTS` of some records, evenly spaced, the first and the last among them."""
    if len(records) <= MAX_CURVE_POINTS:
        return records
    places = np.linspace(0, len(records) - 1, MAX_CURVE_POINTS).round().astype(int)
    return [records[place] for place in places]


# The scatter


def points(run: ExploredRun, query: Query) -> Answer:
    """Where each feature lies in the scatter: `run.points` as little-endian float32.

    12 d_sae bytes (786,432 for 65,536 features): the log10 densities of all features by id, then their log10 mean top
    activations, then their label entropies in nats. NaN for a dead feature's first two, and an undefined entropy.
    """
    return Answer(_points(run), "application/octet-stream")


@cache
def _points(run: ExploredRun) -> bytes:
    return run.points.astype("<f4").tobytes()


def card(run: ExploredRun, query: Query) -> dict[str, Any]:
    """What the scatter shows of a feature under the pointer: its name, and where its images are on which it is largest.

    `top` has up to four `{row, value, name}`, `name` the label's; none where there are no thumbnails to show.
    """
    feature = run.require_feature(query.path["feature"])
    of = run.stored.statistics
    n = min(N_THUMBNAILS, int(of.n_pos[feature])) if run.has_thumbnails else 0
    return {
        "feature": feature,
        "name": run.names.now().of(feature),
        "is_sensitive": run.annotations.is_sensitive(feature),
        "top": [
            {
                "row": int(of.top_row[feature, i]),
                "value": float(of.top_value[feature, i]),
                "name": run.label_name(int(of.top_label[feature, i])),
            }
            for i in range(n)
        ],
    }


def _once(run: ExploredRun, chosen: Chosen) -> Iterable[Query]:
    return (Query(),)


def _once_with_curves(run: ExploredRun, chosen: Chosen) -> Iterable[Query]:
    return () if _without_curves(run) else (Query(),)


def _chosen_features(run: ExploredRun, chosen: Chosen) -> Iterable[Query]:
    return (Query({"feature": feature}) for feature in chosen.features)


CHAPTER = Chapter(
    pages=(Page("overview", "/", view),),
    endpoints=(
        Endpoint("/points.bin", points, exports=_once),
        Endpoint("/curves.json", curves, is_slow=True, exports=_once_with_curves),
        Endpoint("/card/{feature:int}.json", card, exports=_chosen_features),
    ),
)

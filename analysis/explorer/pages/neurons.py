"""The MLP neurons of the run's block: the list of them, and a page of each, to hold beside the features."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..firings import TopPicture
from ..neuron_columns import KINDS, NeuronColumns, neuron_columns
from ..page import Chapter, Chosen, Endpoint, NotHere, Page, Query, Unavailable
from ..runs import ExploredRun

A_PAGE = 50
SORTS = ("cosine", "entropy", "density", "max", "id")
SHOWN_FEATURES, SHOWN_IMAGES, SMALL_IMAGES = 16, 16, 4


@dataclass(frozen=True)
class NeuronRow:
    """One neuron in the list."""

    id: int
    name: str
    density: float
    label_entropy: float
    max: float
    feature: int
    """Whose encoder vector lies nearest to its output vector; -1 where unknown."""
    cosine: float
    """Of the two; NaN where unknown."""
    firings: list[TopPicture]


@dataclass(frozen=True)
class NeuronsView:
    """The list."""

    how: str
    """Which command makes it, where nothing is stored; empty otherwise."""
    kind: str = ""
    kinds: tuple[str, ...] = ()
    layer: int = 0
    n_neurons: int = 0
    n_units: int = 0
    n_rows: int = 0
    k: int = 0
    has_cosines: bool = False
    chance: float = np.nan
    comparison: dict[str, Any] | None = None
    sort: str = SORTS[0]
    page: int = 0
    a_page: int = A_PAGE
    n_pages: int = 0
    rows: list[NeuronRow] | None = None


@dataclass(frozen=True)
class Aligned:
    """A feature whose encoder vector lies near a neuron's output vector."""

    feature: int
    cosine: float
    name: str
    density: float
    label_entropy: float
    is_uld: bool
    sensitive: bool
    firings: list[TopPicture]


@dataclass(frozen=True)
class NeuronView:
    """One neuron."""

    id: int
    name: str
    kind: str
    kinds: tuple[str, ...]
    layer: int
    n_units: int
    n_neurons: int
    n_rows: int
    k: int
    density: float
    label_entropy: float
    n_labelled: int
    max: float
    mean_top: float
    n_pos: int
    median_entropy_of_features: float
    chance: float
    has_cosines: bool
    firings: list[TopPicture]
    labels: list[tuple[int, str, int, float]]
    """Label, its name, images with it among the largest k, share of their activation; by falling share."""
    aligned: list[Aligned]


def view_list(run: ExploredRun, query: Query) -> NeuronsView:
    """The neurons by falling |cosine| with a feature, rising entropy, falling density or maximum, or number."""
    columns = neuron_columns(run, query.choice("kind", ("", *KINDS)))
    if columns is None:
        return NeuronsView(how=_how(run))
    sort, n_pages = query.choice("sort", SORTS), max(1, -(-columns.n_units // A_PAGE))
    page = query.integer("page", 0, 0, n_pages - 1)
    order = _order(columns, sort)[page * A_PAGE : (page + 1) * A_PAGE]
    return NeuronsView(
        how="",
        kind=columns.kind,
        kinds=columns.kinds,
        layer=columns.layer,
        n_neurons=columns.n_neurons,
        n_units=columns.n_units,
        n_rows=columns.n_rows,
        k=columns.k,
        has_cosines=columns.cosine.shape[1] > 0,
        chance=columns.chance,
        comparison=columns.comparison,
        sort=sort,
        page=page,
        n_pages=n_pages,
        rows=[_row(run, columns, int(unit)) for unit in order],
    )


def view(run: ExploredRun, query: Query) -> NeuronView:
    """One neuron: where it is largest, what it is near to."""
    columns = neuron_columns(run, query.choice("kind", ("", *KINDS)))
    if columns is None:
        raise Unavailable(_how(run))
    unit = query.path["neuron"]
    if not 0 <= unit < columns.n_units:
        raise NotHere(f"Neuron {unit} is not one of the {columns.n_units:,}, 0 to {columns.n_units - 1}.")
    entropy = run.stored.statistics.label_entropy[run.shown]
    defined = entropy[np.isfinite(entropy)]
    return NeuronView(
        id=unit,
        name=columns.name(unit),
        kind=columns.kind,
        kinds=columns.kinds,
        layer=columns.layer,
        n_units=columns.n_units,
        n_neurons=columns.n_neurons,
        n_rows=columns.n_rows,
        k=columns.k,
        density=float(columns.density[unit]),
        label_entropy=float(columns.label_entropy[unit]),
        n_labelled=int(columns.n_labelled[unit]),
        max=float(columns.max[unit]),
        mean_top=float(columns.mean_top[unit]),
        n_pos=int(columns.n_pos[unit]),
        median_entropy_of_features=float(np.median(defined)) if len(defined) else np.nan,
        chance=columns.chance,
        has_cosines=columns.cosine.shape[1] > 0,
        firings=_pictures(run, columns, unit, SHOWN_IMAGES),
        labels=_labels(run, columns, unit),
        aligned=_aligned(run, columns, unit),
    )


def index(run: ExploredRun, query: Query) -> dict[str, Any]:
    """The whole list as columns, for a script that sorts it."""
    columns = neuron_columns(run, query.choice("kind", ("", *KINDS)))
    if columns is None:
        raise Unavailable(_how(run))
    has_cosines = columns.cosine.shape[1] > 0
    return {
        "density": columns.density.astype(np.float32),
        "entropy": columns.label_entropy,
        "max": columns.max,
        "feature": columns.feature[:, 0] if has_cosines else [],
        "cosine": columns.cosine[:, 0] if has_cosines else [],
        "n_neurons": columns.n_neurons,
        "rows": columns.top_row[:, :SMALL_IMAGES],
    }


def _how(run: ExploredRun) -> str:
    return (
        "No images of MLP neurons are stored for this run. Harvest the block's hidden activations on the same images "
        "(thresher harvest IMAGES STORE --site mlp_act, with the same layer, order and seed) and run thresher align "
        f"{run.path.name} --neurons STORE --overwrite; or run thresher align {run.path.name} --project --overwrite, "
        "which projects the stored rows onto the neurons' output vectors, as the post did."
    )


def _order(columns: NeuronColumns, sort: str) -> NDArray[np.int64]:
    """Units in the order of a column; what is undefined last, equal ones by number."""
    if sort == "id" or (sort == "cosine" and columns.cosine.shape[1] == 0):
        return np.arange(columns.n_units)
    key: dict[str, Any] = {
        "cosine": lambda: -np.abs(columns.cosine[:, 0]),
        "entropy": lambda: columns.label_entropy,
        "density": lambda: -columns.density,
        "max": lambda: -columns.max,
    }
    return np.argsort(key[sort](), kind="stable")  # NaN goes last


def _row(run: ExploredRun, columns: NeuronColumns, unit: int) -> NeuronRow:
    has_cosines = columns.cosine.shape[1] > 0
    return NeuronRow(
        id=unit,
        name=columns.name(unit),
        density=float(columns.density[unit]),
        label_entropy=float(columns.label_entropy[unit]),
        max=float(columns.max[unit]),
        feature=int(columns.feature[unit, 0]) if has_cosines else -1,
        cosine=float(columns.cosine[unit, 0]) if has_cosines else np.nan,
        firings=_pictures(run, columns, unit, SMALL_IMAGES),
    )


def _pictures(run: ExploredRun, top: Any, place: int, n: int) -> list[TopPicture]:
    """The first images of a neuron or a feature."""
    rows, values, labels = (array[place, :n].tolist() for array in (top.top_row, top.top_value, top.top_label))
    stored = zip(rows, values, labels, strict=True)
    return [TopPicture(row, value, run.label_name(label)) for row, value, label in stored if row >= 0]


def _labels(run: ExploredRun, columns: NeuronColumns, unit: int) -> list[tuple[int, str, int, float]]:
    """Labels of its largest rows, as those that label entropy is over."""
    is_labelled = (columns.top_row[unit] >= 0) & (columns.top_label[unit] >= 0)
    label, place = np.unique(columns.top_label[unit][is_labelled], return_inverse=True)
    count, total = np.bincount(place), np.bincount(place, columns.top_value[unit][is_labelled])
    share = total / max(total.sum(), np.finfo(float).tiny) if len(total) else total
    order = np.lexsort((label, -share))
    return [(int(label[i]), run.label_name(int(label[i])), int(count[i]), float(share[i])) for i in order]


def _aligned(run: ExploredRun, columns: NeuronColumns, unit: int) -> list[Aligned]:
    s, names, sensitive, found = run.stored.statistics, run.names.now(), run.annotations.sensitive, []
    for feature, cosine in zip(
        columns.feature[unit, :SHOWN_FEATURES].tolist(), columns.cosine[unit, :SHOWN_FEATURES].tolist(), strict=True
    ):
        if feature < 0:
            continue
        found.append(
            Aligned(
                feature=feature,
                cosine=cosine,
                name=names.of(feature),
                density=float(run.density[feature]),
                label_entropy=float(s.label_entropy[feature]),
                is_uld=bool(run.is_uld[feature]),
                sensitive=feature in sensitive,
                firings=_pictures(run, s, feature, SMALL_IMAGES),
            )
        )
    return found


def _exported(run: ExploredRun, chosen: Chosen) -> list[Query]:
    return [Query()] if chosen.neurons else []


CHAPTER = Chapter(
    pages=(
        Page("neurons", "/neurons", view_list, exported_with="neurons"),
        Page("neuron", "/neurons/{neuron:int}", view),
    ),
    endpoints=(Endpoint("/neurons-index.json", index, exports=_exported),),
)

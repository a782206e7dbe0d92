"""The page of a feature: its images, its numbers, its labels, its neurons, the features beside it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...samples import SAMPLE_GROUPS
from ..page import Chapter, Chosen, Endpoint, NotHere, Page, Query
from ..runs import ExploredRun
from .feature_alignment import StoredNeurons, cosines_answer, has_alignment, stored_neurons
from .feature_labels import LabelTable, label_table
from .feature_naming import Naming, naming
from .feature_neighbours import Neighbour, nearest_by, partners
from .feature_patches import has_patches, heat_answer
from .feature_visualisation import (
    Agreement,
    Visualisation,
    agreement,
    exported_pictures,
    picture_answer,
    visualisation,
)

N_TOP = 16
"""Images in the first grid."""
N_LABELS = 20
"""Labels on the page; all of them are a button away."""


@dataclass(frozen=True)
class Picture:
    """A row on which the feature fires, as a grid shows it."""

    row: int
    value: float
    label: int
    """-1 for none."""
    name: str
    """Of the label."""


@dataclass(frozen=True)
class ByChance:
    """Label entropy of the same weights under random labels."""

    mean: float
    sd: float
    p: float
    """(1 + draws with an entropy as low or lower) / (1 + draws)."""
    n_draws: int


@dataclass(frozen=True)
class Numbers:
    """The numbers of a feature; what is undefined is NaN."""

    n_rows: int
    split: str
    n_active: int
    density: float
    rank: int
    """By density, 1 for the densest; features that are equally dense share the best."""
    max: float
    mean: float
    """Over the rows on which it fires."""
    mean_top: float
    n_pos: int
    """How many values `mean_top` is over."""
    k: int
    label_entropy: float
    n_labelled: int
    """Firing labelled rows among the k."""
    min_labelled: int
    """With fewer the entropy is undefined."""
    effective_n: float
    by_chance: ByChance | None
    monosemanticity: float | None


@dataclass(frozen=True)
class Histogram:
    """How many of the feature's activations fall into each bin; bin i is `edges[i]` to below `edges[i + 1]`."""

    edges: list[float]
    """65; the last is infinite, the first 0."""
    counts: list[int]
    n_zero: int
    """Rows on which it does not fire."""


@dataclass(frozen=True)
class FeatureView:
    """What the page of a feature shows."""

    feature: int
    n_features: int
    name: str
    """Empty for none."""
    naming: Naming
    is_dead: bool
    is_uld: bool
    is_dense: bool
    """In the post's dense set."""
    is_sensitive: bool
    numbers: Numbers
    group: str
    """Which of the pictures are shown first."""
    pictures: dict[str, list[Picture]]
    """`top`: the largest activations; `q75`, `q50`, `q25`, `random`: samples."""
    histogram: Histogram
    labels: LabelTable | None
    decoder: list[Neighbour]
    encoder: list[Neighbour]
    partners: list[Neighbour]
    alignment: StoredNeurons | None
    has_patches: bool
    visualisation: Visualisation | None
    agreement: Agreement | None
    previous: int | None
    """Of the features that are browsed by default."""
    next: int | None
    absent: dict[str, str]
    """Why a part is not there, by its name."""

    @property
    def n_labels_shown(self) -> int:
        """Labels in the table before its button is pressed."""
        return N_LABELS

    @property
    def for_script(self) -> dict[str, Any]:
        """What the page's script needs."""
        return {
            "feature": self.feature,
            "group": self.group,
            "pictures": self.pictures,
            "histogram": self.histogram,
            "mean_top": self.numbers.mean_top,
            "k": self.numbers.k,
            "alignment": self.alignment,
            "has_patches": self.has_patches,
            "partners": [{"jaccard": each.jaccard, "pmi": each.pmi} for each in self.partners],
        }


def view(run: ExploredRun, query: Query) -> FeatureView:
    """What is known of a feature; `?group=` says which of its pictures stand first."""
    feature = run.require_feature(query.path["feature"])
    group = query.choice("group", SAMPLE_GROUPS)
    before, after = _beside(run, feature)
    numbers, pictures = _numbers(run, feature), _pictures(run, feature)
    absent = {
        name: str(run.summary.get("absent", {}).get(name, "these statistics hold none"))
        for name in ("samples", "labels", "cofiring", "nearest", "null")
        if not run.has(name)
    }
    is_dead, named = bool(run.is_dead[feature]), naming(run, feature)
    return FeatureView(
        feature=feature,
        n_features=run.d_sae,
        name=named.shown,
        naming=named,
        is_dead=is_dead,
        is_uld=bool(run.is_uld[feature]),
        is_dense=bool(run.listing.of_set("post")[feature]),
        is_sensitive=run.annotations.is_sensitive(feature),
        numbers=numbers,
        group=group if group in pictures else "top",
        pictures=pictures,
        histogram=_histogram(run, feature, numbers),
        labels=label_table(run, feature) if run.has("labels") else None,
        decoder=nearest_by(run, feature, "decoder") if run.has("nearest") else [],
        encoder=nearest_by(run, feature, "encoder") if run.has("nearest") else [],
        partners=partners(run, feature) if run.has("cofiring") else [],
        alignment=stored_neurons(run, feature),
        has_patches=has_patches(run),
        visualisation=visualisation(run, feature),
        agreement=agreement(run, feature),
        previous=before,
        next=after,
        absent=absent,
    )


def _numbers(run: ExploredRun, feature: int) -> Numbers:
    s = run.stored.statistics
    n_active = int(s.n_active[feature])
    by_chance = None
    if run.has("null"):
        mean, sd, p = (float(run.array(f"null/{name}")[feature]) for name in ("mean", "sd", "p"))
        by_chance = ByChance(mean, sd, p, int(run.summary["details"]["null"]["n_draws"]))
    return Numbers(
        n_rows=s.n_rows,
        split=run.summary["split"],
        n_active=n_active,
        density=float(run.density[feature]),
        rank=int(np.count_nonzero(s.n_active > s.n_active[feature])) + 1,
        max=float(s.max[feature]),
        mean=float(s.sum[feature]) / n_active if n_active else float("nan"),
        mean_top=float(s.mean_top[feature]),
        n_pos=int(s.n_pos[feature]),
        k=s.k,
        label_entropy=abs(float(s.label_entropy[feature])),  # of one label it is -0.0
        n_labelled=int(s.n_labelled[feature]),
        min_labelled=s.min_labelled,
        effective_n=float(s.effective_n[feature]),
        by_chance=by_chance,
        monosemanticity=float(run.array("monosemanticity")[feature]) if run.has("monosemanticity") else None,
    )


def _pictures(run: ExploredRun, feature: int) -> dict[str, list[Picture]]:
    """The largest activations, and the samples of the other groups."""
    s = run.stored.statistics
    found = {"top": _grid(run, s.top_row[feature, :N_TOP], s.top_value[feature], s.top_label[feature])}
    if run.has("samples"):
        row, value, label = (run.array(f"samples/{name}")[feature] for name in ("row", "value", "label"))
        for i, group in enumerate(SAMPLE_GROUPS[1:], 1):
            found[group] = _grid(run, row[i], value[i], label[i])
    return found


def _grid(run: ExploredRun, rows: Any, values: Any, labels: Any) -> list[Picture]:
    return [
        Picture(row, value, label, run.label_name(label))
        for row, value, label in zip(rows.tolist(), values.tolist(), labels.tolist(), strict=False)
        if row >= 0
    ]


def _histogram(run: ExploredRun, feature: int, numbers: Numbers) -> Histogram:
    counts = run.stored.statistics.histogram[feature].tolist()
    return Histogram(run.array("histogram/edges").tolist(), counts, numbers.n_rows - numbers.n_active)


def _beside(run: ExploredRun, feature: int) -> tuple[int | None, int | None]:
    """The features before and after it among those browsed by default, round and round; None where it is alone."""
    shown = run.shown
    place = int(np.searchsorted(shown, feature))
    is_shown = place < len(shown) and shown[place] == feature
    if len(shown) <= is_shown:
        return None, None
    return int(shown[place - 1]), int(shown[(place + is_shown) % len(shown)])


def _ids(run: ExploredRun, query: Query) -> dict[str, Any]:
    """The features that are browsed by default: alive and outside the ULD cluster."""
    return {"ids": run.shown.tolist()}


def _labels_answer(run: ExploredRun, query: Query) -> dict[str, Any]:
    feature = run.require_feature(query.path["feature"])
    if not run.has("labels"):
        raise NotHere(f"{run.name} holds no labels of firing rows.")
    return vars(label_table(run, feature))


def _queries(features: Iterable[int]) -> list[Query]:
    return [Query({"feature": feature}) for feature in features]


def _with_more_labels(run: ExploredRun, chosen: Chosen) -> list[Query]:
    """Features with more labels than their pages show."""
    if not run.has("labels"):
        return []
    n_labels = np.diff(run.array("labels/indptr").astype(np.int64))
    return _queries(feature for feature in chosen.features if n_labels[feature] > N_LABELS)


def _with_neurons(run: ExploredRun, chosen: Chosen) -> list[Query]:
    return _queries(chosen.features) if has_alignment(run) else []


def _with_patches(run: ExploredRun, chosen: Chosen) -> list[Query]:
    return _queries(feature for feature in chosen.features if not run.is_dead[feature]) if has_patches(run) else []


def _with_visualisation(run: ExploredRun, chosen: Chosen) -> list[Query]:
    return exported_pictures(run, chosen.features)


CHAPTER = Chapter(
    pages=(Page("feature", "/f/{feature:int}", view),),
    endpoints=(
        Endpoint("/ids.json", _ids),
        Endpoint("/f/{feature:int}/labels.json", _labels_answer, exports=_with_more_labels),
        Endpoint("/f/{feature:int}/heat.json", heat_answer, is_slow=True, exports=_with_patches),
        Endpoint("/f/{feature:int}/alignment.json", cosines_answer, is_slow=True, exports=_with_neurons),
        Endpoint("/f/{feature:int}/picture-{place:int}.webp", picture_answer, exports=_with_visualisation),
    ),
)

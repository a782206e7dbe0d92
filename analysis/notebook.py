"""A run as a notebook opens it: features that show their images, with their numbers as attributes."""

import base64
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..store.errors import StoreError
from ..train.run_dir import Run
from ..train.run_dir import open_run as open_training_run

if TYPE_CHECKING:
    from .explorer.pages.feature import FeatureView, Numbers
    from .explorer.pages.feature_labels import LabelRow
    from .explorer.pages.feature_naming import Naming
    from .explorer.pages.feature_neighbours import Neighbour
    from .explorer.pages.feature_visualisation import Agreement, Visualisation
    from .explorer.runs import ExploredRun

_N_PICTURES = 16


class OpenedRun(Run):
    """A run directory, with its features."""

    @cached_property
    def _explored(self) -> "ExploredRun":
        from .explorer.runs import ExploredRun

        return ExploredRun(self.path.absolute())  # a notebook that changes its folder keeps the pictures

    def feature(self, feature: int) -> "Feature":
        """One feature: in Jupyter it shows its images and numbers.

        Raises
        ------
        StoreError
            When the run has no statistics.
        ValueError
            When it is none of the run's features.
        """
        if not 0 <= feature < self.d_sae:
            raise ValueError(f"feature {feature} is not one of the {self.d_sae} of {self.path}, 0 to {self.d_sae - 1}.")
        return Feature(self._explored, int(feature))


def open_run(path: str | Path) -> OpenedRun:
    """Open a run directory, finished or not.

    Raises
    ------
    StoreError
        When `path` is none.
    """
    run = open_training_run(path)
    return OpenedRun(run.path, run.config)


class Feature:
    """A feature of a run, as `thresher stats` counted it.

    Parameters
    ----------
    run
        Of which; opened with its statistics.
    feature
        Its number.
    """

    def __init__(self, run: "ExploredRun", feature: int) -> None:
        from .explorer.page import Query
        from .explorer.pages.feature import view

        self._run = run
        self.id = feature
        self._view: FeatureView = view(run, Query({"feature": feature}))

    @property
    def numbers(self) -> "Numbers":
        """Every number of it, by name; NaN where undefined."""
        return self._view.numbers

    @property
    def name(self) -> str:
        """What it is called, by a person or else by `names.tsv`; empty for nothing."""
        return self._view.name

    @property
    def naming(self) -> "Naming":
        """Its automatic name with every score, alternatives and status, and a person's own name beside it."""
        return self._view.naming

    @property
    def visualisation(self) -> "Visualisation | None":
        """Verdict, checks and seeds of the pictures that `thresher visualise` made of it; None where it made none."""
        return self._view.visualisation

    @property
    def agreement(self) -> "Agreement | None":
        """Percentiles by which picture, top images and name agree; None where that was not computed."""
        return self._view.agreement

    def picture(self, place: int = 0) -> bytes:
        """Bytes of one of its pictures, the best first."""
        from .explorer.page import PageError
        from .explorer.pages.feature_visualisation import picture_file

        try:
            return picture_file(self._run, self.id, place).read()
        except PageError as error:
            raise StoreError(str(error)) from error

    @property
    def density(self) -> float:
        """Share of rows on which it is > 0."""
        return self.numbers.density

    @property
    def mean_top(self) -> float:
        """Mean of its up to k largest positive activations; NaN where it never fires."""
        return self.numbers.mean_top

    @property
    def label_entropy(self) -> float:
        """In nats, over the labelled rows among those k; NaN where undefined."""
        return self.numbers.label_entropy

    @property
    def top_rows(self) -> NDArray[np.int64]:
        """`(<= k,)`: rows of the store with its largest activations, those falling."""
        rows = self._run.stored.statistics.top_row[self.id]
        return rows[rows >= 0]

    @property
    def top_values(self) -> NDArray[np.float32]:
        """`(<= k,)`: its activations on `top_rows`."""
        return self._run.stored.statistics.top_value[self.id][: len(self.top_rows)]

    @property
    def top_labels(self) -> list[str]:
        """Names of the labels of `top_rows`; `–` for none."""
        return [self._run.label_name(label) for label in self._labels_of_top()]

    @property
    def labels(self) -> "list[LabelRow]":
        """Every label on which it fires: `label`, `name`, `share` of its activation, `count`, `share_of_label`."""
        if self._view.labels is None:
            raise self._absent("labels")
        return self._view.labels.rows

    @property
    def partners(self) -> "list[Neighbour]":
        """Features that fire on the same rows, by falling Jaccard index: `feature`, `jaccard`, `pmi`, `n_both`."""
        if "cofiring" in self._view.absent:
            raise self._absent("cofiring")
        return self._view.partners

    def nearest(self, by: str = "decoder") -> "list[Neighbour]":
        """Features with the nearest row of W_dec (`decoder`) or column of W_enc (`encoder`): `feature`, `cosine`."""
        if by not in ("decoder", "encoder"):
            raise ValueError(f"by must be decoder or encoder; got {by!r}")
        if "nearest" in self._view.absent:
            raise self._absent("nearest")
        return self._view.decoder if by == "decoder" else self._view.encoder

    def firings(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Every row on which it is > 0, ascending, and its activations there.

        Raises
        ------
        StoreError
            When the run holds no feature activations of these statistics.
        """
        if self._run.features is None:
            raise StoreError(
                f"{self._run.path} holds no feature activations of these statistics: run `thresher encode`, then "
                "`thresher stats`."
            )
        return self._run.features.feature(self.id)

    def __repr__(self) -> str:
        from .explorer.render import number, percent

        n, view = self.numbers, self._view
        named = f" “{view.name}”" if view.name else ""
        if view.is_dead:
            return f"Feature {self.id}{named} of {view.n_features:,}: dead, 0 on all {n.n_rows:,} rows ({n.split})"
        parts = [
            f"density {percent(n.density, 3)} ({n.n_active:,} of {n.n_rows:,} rows, {n.split})",
            f"mean of the top {n.k} {number(n.mean_top)}, largest {number(n.max)}",
            f"label entropy {number(n.label_entropy)} nats over {n.n_labelled} rows",
        ]
        if view.labels and view.labels.rows:
            parts.append(", ".join(f"{each.name} {percent(each.share)}" for each in view.labels.rows[:3]))
        return f"Feature {self.id}{named} of {view.n_features:,}: {'; '.join(parts)}"

    def _repr_html_(self) -> str:
        from .explorer.render import render_alone

        counts = self._view.histogram.counts
        filled = [i for i, count in enumerate(counts) if count]
        return render_alone(
            "notebook_feature.html",
            run=self._run,
            view=self._view,
            pictures=self._pictures(),
            made=self._made(),
            bars=[count / max(counts) for count in counts[filled[0] : filled[-1] + 1]] if filled else [],
        )

    def _pictures(self) -> list[dict[str, Any]]:
        """Address, value and label of each picture; the address is the picture itself, empty where there is none."""
        rows, store = self.top_rows[:_N_PICTURES], self._run.store
        found = store.thumbnails(rows) if store is not None and len(rows) else [None] * len(rows)
        addresses = [f"data:image/webp;base64,{base64.b64encode(each).decode()}" if each else "" for each in found]
        columns = zip(addresses, rows.tolist(), self.top_values.tolist(), self.top_labels, strict=False)
        return [{"address": a, "row": row, "value": value, "label": label} for a, row, value, label in columns]

    def _made(self) -> str:
        """The best picture made for it, as an address that holds it; empty where there is none, or none any more."""
        from .explorer.page import PageError
        from .explorer.pages.feature_visualisation import data_url

        try:
            return data_url(self._run, self.id, 0)
        except PageError:
            return ""

    def _labels_of_top(self) -> list[int]:
        labels: list[int] = self._run.stored.statistics.top_label[self.id][: len(self.top_rows)].tolist()
        return labels

    def _absent(self, part: str) -> StoreError:
        return StoreError(f"{self._run.path} holds no {part} in its statistics: {self._view.absent[part]}.")

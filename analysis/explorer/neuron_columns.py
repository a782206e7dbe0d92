"""The MLP neurons of a run's block as the explorer shows them: columns of `alignment.zarr`, in memory."""

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from ...store.errors import StoreError
from ..stored_alignment import ALIGNMENT_JSON, StoredAlignment
from .alignments import opened_alignment
from .page import Unavailable
from .runs import ExploredRun

KINDS = ("mlp_act", "projection")
"""By which activations a neuron's images are its largest: what the store holds of it, or a projection of the rows."""


@dataclass(frozen=True, kw_only=True)
class NeuronColumns:
    """What is stored of a block's neurons. m neurons; u units: m, or 2 m where both signs count."""

    kind: str
    kinds: tuple[str, ...]
    """All that are stored."""
    layer: int
    """0-based block."""
    site: str
    """Of the features, as words; its layer is 0-based."""
    store: str
    n_neurons: int
    n_rows: int
    k: int
    density: NDArray[np.float64]
    """`(u,)` share of rows on which a unit is > 0."""
    label_entropy: NDArray[np.float32]
    n_labelled: NDArray[np.uint16]
    max: NDArray[np.float32]
    mean_top: NDArray[np.float32]
    n_pos: NDArray[np.uint16]
    top_row: NDArray[np.int64]
    """`(u, k)`, -1 unfilled."""
    top_value: NDArray[np.float32]
    top_label: NDArray[np.int32]
    feature: NDArray[np.int32]
    """`(u, n)` features whose encoder vectors lie nearest to the neuron's output vector, by falling absolute cosine; -1
    unfilled; n is 0 where the alignment lacks them."""
    cosine: NDArray[np.float32]
    """`(u, n)`; of a unit that is a neuron's negative with the opposite sign."""
    chance: float
    """99th percentile of the largest absolute cosine of a random direction with any neuron; NaN where unknown."""
    comparison: dict[str, Any]
    """Label entropies of features beside those of neurons: `label_entropy` of alignment.json."""

    @property
    def n_units(self) -> int:
        """Units that have pages."""
        return len(self.density)

    def name(self, unit: int) -> str:
        """What a unit is called."""
        return f"{unit}" if unit < self.n_neurons else f"−{unit - self.n_neurons}"


_kept: "WeakKeyDictionary[ExploredRun, dict[str, NeuronColumns]]" = WeakKeyDictionary()


def neuron_columns(run: ExploredRun, kind: str = "") -> NeuronColumns | None:
    """What is stored of the neurons, by one kind of activation or the first there is; None where there is nothing.

    Raises
    ------
    Unavailable
        When the alignment is of other rows or weights, or damaged.
    """
    kept = _kept.setdefault(run, {})
    if kind not in kept:
        if not (run.path / ALIGNMENT_JSON).exists():
            return None
        try:
            stored = opened_alignment(run.path)
            kinds = tuple(name for name in KINDS if name in stored.summary.get("neurons", {}))
            if not kinds:
                return None
            _require_same(run, stored)
            kept[kind] = _read(run, stored, kind if kind in kinds else kinds[0], kinds)
        except (StoreError, KeyError) as error:
            reason = f"it has no {error}" if isinstance(error, KeyError) else error
            raise Unavailable(f"The alignment cannot be shown ({reason}): run `thresher align --overwrite`.") from error
    return kept[kind]


def _require_same(run: ExploredRun, stored: StoredAlignment) -> None:
    for name in ("sae_sha256", "store_fingerprint"):
        if run.summary[name] is not None and stored.summary[name] != run.summary[name]:
            raise Unavailable(
                f"The alignment is of another SAE or store ({name} differs): run `thresher align --overwrite`."
            )


def _read(run: ExploredRun, stored: StoredAlignment, kind: str, kinds: tuple[str, ...]) -> NeuronColumns:
    about = stored.summary["neurons"][kind]
    read = {name: stored.read(f"neurons/{kind}/{name}") for name in ("n_active", "top_row", "top_value", "top_label")}
    numbers = {
        name: stored.read(f"neurons/{kind}/{name}")
        for name in ("label_entropy", "n_labelled", "max", "mean_top", "n_pos")
    }
    n, n_units = about["n_neurons"], len(read["n_active"])
    feature, cosine = np.full((n_units, 0), -1, np.int32), np.full((n_units, 0), np.nan, np.float32)
    if "encoder/of_vector/feature" in stored.group:
        feature, cosine = stored.read("encoder/of_vector/feature"), stored.read("encoder/of_vector/cosine")
        if n_units > n:  # a neuron's negative lies on the other side
            feature, cosine = np.concatenate((feature, feature)), np.concatenate((cosine, -cosine))
    chance = stored.summary["sides"]["encoder"]["main"]["chance"]
    null = chance.get("covariance") or chance.get("isotropic") or {}
    site = run.site
    return NeuronColumns(
        kind=kind,
        kinds=kinds,
        layer=about["layer"],
        site="" if site is None else f"layer {site.layer} (0-based) · {site.site} · {site.token}",
        store=about["store"],
        n_neurons=n,
        n_rows=about["n_rows"],
        k=about["k"],
        density=read["n_active"] / max(1, about["n_rows"]),
        top_row=read["top_row"],
        top_value=read["top_value"],
        top_label=read["top_label"],
        feature=feature,
        cosine=cosine,
        chance=float(null.get("absolute", {}).get("0.99", np.nan)),
        comparison=about["label_entropy"],
        **numbers,
    )

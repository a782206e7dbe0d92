"""A feature against the neurons of its block: what `align` stored, and the cosines with all of them on demand.

Shapes: d the length of a stored row, m neurons.
"""

import json
import threading
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from ....store.errors import StoreError
from ....train.run_dir import WEIGHTS
from ...stored_alignment import ALIGNMENT_JSON, StoredAlignment
from ..alignments import opened_alignment
from ..neuron_columns import KINDS
from ..page import Query, Unavailable
from ..runs import ExploredRun

N_TOP = 10
_SIDE = "encoder"
_CHANCES = ("isotropic", "covariance")
_DIGITS = 4  # of a cosine as it is sent: a pixel of the plot is some 0.005

Array = NDArray[Any]


@dataclass(frozen=True)
class NeuronCosine:
    """A neuron, and its output vector's cosine with the feature's encoder vector."""

    id: int
    cosine: float


@dataclass(frozen=True)
class Chance:
    """Largest cosines of random directions with the same neurons, and where the feature stands among them."""

    kind: str
    """`isotropic`: Gaussian directions; `covariance`: with the covariance of the stored rows."""
    n: int
    """Random directions."""
    low: float
    """1 % of them have a smaller largest cosine."""
    high: float
    """1 % of them have a larger one."""
    above: int
    """Neurons whose cosine with the feature is larger than `level`."""
    level: float
    """The quantile of chance that `align` was given: 0.99 unless told otherwise."""
    p: float | None
    """Of the feature's own largest cosine; None where the feature was not tested."""
    q: float | None
    """The least false discovery rate at which it counts as aligned."""


@dataclass(frozen=True)
class StoredNeurons:
    """What `align` found of one feature."""

    kind: str
    """`mlp` or `attention`."""
    layer: int
    """0-based block."""
    n_vectors: int
    has_sign: bool
    """Whether a cosine's sign means something; it does of neurons."""
    has_images: bool
    """Whether neurons have pages."""
    top_signed: list[NeuronCosine]
    """Falling; only positive ones. Empty without a sign."""
    top_absolute: list[NeuronCosine]
    """By falling absolute value."""
    chance: list[Chance]
    """Of signed cosines, where they have a sign; else of absolute ones."""


class _InMemory:
    """The arrays of an alignment that pages read, and its document."""

    def __init__(self, stored: StoredAlignment) -> None:
        self.summary = stored.summary["sides"][_SIDE]
        self.has_images = any(kind in (stored.summary.get("neurons") or {}) for kind in KINDS)
        names = ["top_id", "top_cosine", "max_cosine", "max_id"]
        names += [f"{what}/{level}" for level in self.summary["neurons_per_feature"] for what in ("n_above", "p", "q")]
        self.arrays: dict[str, Array] = {name: stored.read(f"{_SIDE}/{name}") for name in names}


_lock = threading.Lock()
_stored: "WeakKeyDictionary[ExploredRun, _InMemory | None]" = WeakKeyDictionary()
_vectors: "WeakKeyDictionary[ExploredRun, NDArray[np.float32]]" = WeakKeyDictionary()


def has_alignment(run: ExploredRun) -> bool:
    """Whether `align` has been run on these weights."""
    return _alignment(run) is not None


def stored_neurons(run: ExploredRun, feature: int) -> StoredNeurons | None:
    """What `align` stored of a feature; None where it has not been run on these weights."""
    alignment = _alignment(run)
    if alignment is None:
        return None
    main, arrays = alignment.summary["main"], alignment.arrays
    ids, cosines = arrays["top_id"][feature].tolist(), arrays["top_cosine"][feature].tolist()
    nearest = [NeuronCosine(neuron, cosine) for neuron, cosine in zip(ids, cosines, strict=True) if neuron >= 0]
    has_sign = main["kind"] == "mlp"
    signed = sorted((each for each in nearest if each.cosine > 0), key=lambda each: -each.cosine) if has_sign else []
    return StoredNeurons(
        kind=main["kind"],
        layer=main["layer"],
        n_vectors=main["n_vectors"],
        has_sign=has_sign,
        has_images=alignment.has_images,
        top_signed=signed[:N_TOP],
        top_absolute=nearest[:N_TOP],
        chance=[_chance(alignment, feature, kind, has_sign) for kind in _CHANCES if kind in main["chance"]],
    )


def _chance(alignment: _InMemory, feature: int, kind: str, has_sign: bool) -> Chance:
    of_kind, which = alignment.summary["main"]["chance"][kind], "signed" if has_sign else "absolute"
    level, arrays = f"{which}_{kind}", alignment.arrays
    p, q = (float(arrays[f"{what}/{level}"][feature]) for what in ("p", "q"))
    return Chance(
        kind=kind,
        n=of_kind["n"],
        low=of_kind[which]["0.01"],
        high=of_kind[which]["0.99"],
        above=int(arrays[f"n_above/{level}"][feature]),
        level=alignment.summary["neurons_per_feature"][level]["above"],
        p=None if np.isnan(p) else p,
        q=None if np.isnan(q) else q,
    )


def _alignment(run: ExploredRun) -> _InMemory | None:
    """The stored alignment of these weights, read once."""
    with _lock:
        if run not in _stored:
            _stored[run] = None
            if (run.path / ALIGNMENT_JSON).exists():
                try:
                    opened = opened_alignment(run.path)
                    if opened.summary["sae_sha256"] == run.summary["sae_sha256"]:
                        _stored[run] = _InMemory(opened)
                    else:
                        run.notes.append("alignment.zarr is of other weights: run `thresher align --overwrite`.")
                except (StoreError, KeyError, ValueError) as error:
                    run.notes.append(f"alignment.zarr cannot be read ({error}): run `thresher align --overwrite`.")
        return _stored[run]


def cosines_answer(run: ExploredRun, query: Query) -> dict[str, Any]:
    """The cosine of a feature's encoder vector with every neuron's output vector, in the order of the neurons.

    Without the tower there are none, and `missing` says why: no failure, for the stored ones are shown then.
    """
    feature = run.require_feature(query.path["feature"])
    try:
        found = _cosines(run, feature)
    except Unavailable as error:
        return {"feature": feature, "cosines": None, "missing": str(error)}
    return {"feature": feature, "cosines": np.round(found.astype(np.float64), _DIGITS).tolist(), "missing": None}


def _cosines(run: ExploredRun, feature: int) -> NDArray[np.float32]:
    vectors = _output_vectors(run)
    direction = encoder_direction(run, feature)
    if direction.shape[0] != vectors.shape[1]:
        raise Unavailable(
            f"The encoder reads {direction.shape[0]} coordinates, and the tower's neurons write {vectors.shape[1]}."
        )
    norm = float(np.linalg.norm(direction))
    if norm == 0:
        raise Unavailable(f"The encoder vector of feature {feature} is 0: it points nowhere.")
    cosines: NDArray[np.float32] = vectors @ (direction / norm).astype(np.float32)
    return cosines


def encoder_direction(run: ExploredRun, feature: int) -> NDArray[np.float64]:
    """`(d,)`: the direction that a feature reads in the stored rows; see `alignment.encoder_blocks`.

    One column of the weights' file is read, without torch.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(run.path / WEIGHTS, framework="numpy") as file:
            column = file.get_slice("W_enc")[:, feature : feature + 1]
            direction = column[:, 0].astype(np.float64) / file.get_tensor("input_scale").astype(np.float64)
            settings = json.loads((file.metadata() or {}).get("thresher", "{}")).get("settings", {})
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        raise Unavailable(f"{WEIGHTS} of {run.name} cannot be read ({error}).") from error
    return direction - direction.mean() if settings.get("layer_norm") else direction


def _output_vectors(run: ExploredRun) -> NDArray[np.float32]:
    """`(m, d)`: unit output vectors of what wrote last before the run's site; made once, from the tower's weights."""
    found = _vectors.get(run)
    if found is not None:
        return found
    with run.tower.turn():
        if run not in _vectors:
            clip, _ = run.tower.clip()
            from ...output_directions import outputs_of_site

            try:
                make = outputs_of_site(clip.model.visual, run.tower.site).main.unit_vectors  # type: ignore[arg-type]
            except (ValueError, AttributeError) as error:
                raise Unavailable(str(error)) from error
            _vectors[run] = make().cpu().numpy()
        return _vectors[run]

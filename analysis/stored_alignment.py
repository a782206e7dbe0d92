"""The stored alignment of a run: what `alignment.zarr` and `alignment.json` hold, written and read.

`alignment.zarr`, one zarr v3 group. F features; S sets of output vectors beside the main one; "side" is `encoder`, and
`decoder` where it was asked for. Ids count a set's vectors: neurons of an MLP, or h w + r of attention, for the r-th
direction of head h. Undefined numbers are NaN, undefined ids -1: of a feature whose vector is 0.

    is_counted                  bool     (F,) the features that summaries, tests and figures cover
    <side>/max_cosine           float32  (F,) largest cosine with the main set; NaN of attention, which has no sign
    <side>/max_id               int32    (F,) whose
    <side>/max_abs_cosine       float32  (F,) largest absolute cosine
    <side>/max_abs_id           int32    (F,)
    <side>/top_id               int32    (F, 32) the nearest of the main set, by falling absolute cosine
    <side>/top_cosine           float32  (F, 32) their cosines, with their sign
    <side>/n_above/<level>      int32    (F,) how many of the main set lie above a chance level
    <side>/p/<level>            float32  (F,) p-value of the largest cosine against that chance; NaN unless counted
    <side>/q/<level>            float32  (F,) adjusted p-value: the least false discovery rate at which it is aligned
    <side>/earlier/...          as p, q, max_cosine, max_abs_cosine, against every earlier MLP together; max_layer and
                                max_abs_layer int32 (F,) say whose
    <side>/others/max_cosine, max_id, max_abs_cosine, max_abs_id
                                (S, F) against each other set; attribute `names` lists them: `mlp 21`, `attention 22`
    neurons/<kind>/...          of each unit, as in stats.zarr: n_active, max, mean_top, n_pos, label_entropy,
                                n_labelled (u,), top_row, top_value, top_label (u, k); kind is mlp_act or projection

A level is `signed_isotropic`, `absolute_isotropic`, `signed_covariance` or `absolute_covariance`.
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .._version import __version__
from ..store.errors import StoreError
from ..store.files import write_atomically
from .columns import codecs
from .folders import new_folder
from .significance import adjusted_p_values, p_values

if TYPE_CHECKING:
    from .alignment import Alignment, Chance, SetAlignment, SideAlignment
    from .cosines import LargestCosines
    from .neuron_images import NeuronImages

FORMAT_NAME = "thresher-alignment"
FORMAT_VERSION = 1
ALIGNMENT_ZARR, ALIGNMENT_JSON = "alignment.zarr", "alignment.json"

QUANTILES = (0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)
_FEW = 5
"""The post says that most aligned features are aligned with fewer neurons than this."""
_UNIT_ARRAYS = (
    "n_active",
    "max",
    "mean_top",
    "n_pos",
    "label_entropy",
    "n_labelled",
    "top_row",
    "top_value",
    "top_label",
)
_CHUNK_BYTES = 1 << 20


def write_alignment(run_path: Path, alignment: "Alignment") -> dict[str, Any]:
    """Write `alignment.zarr`, then `alignment.json`, each whole or not at all; give the document of the latter."""
    import zarr

    arrays: dict[str, NDArray[Any]] = {"is_counted": alignment.is_counted}
    sides = {}
    for side in alignment.sides:
        of_side, sides[side.side] = _side(side, alignment)
        arrays |= {f"{side.side}/{name}": values for name, values in of_side.items()}
    for images in alignment.images:
        arrays |= {f"neurons/{images.kind}/{name}": getattr(images.statistics, name) for name in _UNIT_ARRAYS}
    document = _document(alignment, sides)
    with new_folder(run_path / ALIGNMENT_ZARR, overwrite=True) as folder:
        group = zarr.open_group(str(folder), mode="w", zarr_format=3)
        for name, values in arrays.items():
            _write(group, name, values)
        for side in alignment.sides:
            if side.others:
                group[f"{side.side}/others"].attrs["names"] = [each.outputs.name for each in side.others]
        group.attrs.update(
            {
                "format": FORMAT_NAME,
                "format_version": FORMAT_VERSION,
                "sides": [side.side for side in alignment.sides],
                "main": {side.side: side.main.outputs.name for side in alignment.sides},
                "complete": True,
            }
        )
    write_atomically(run_path / ALIGNMENT_JSON, json.dumps(document, indent=2, allow_nan=False).encode() + b"\n")
    return document


@dataclass(frozen=True)
class StoredAlignment:
    """The alignment of a run, opened for reading."""

    path: Path
    """The run directory."""
    summary: dict[str, Any]
    """The document of alignment.json."""
    group: Any
    """The zarr group."""

    def read(self, name: str) -> NDArray[Any]:
        """One array whole, by the name that the top of this file lists."""
        values: NDArray[Any] = self.group[name][:]
        return values

    def nearest(self, feature: int, side: str = "encoder") -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Ids and cosines of the vectors of the main set that a feature lies nearest to."""
        if not 0 <= feature < self.group["is_counted"].shape[0]:
            raise ValueError(f"feature {feature} is not one of the {self.group['is_counted'].shape[0]} of {self.path}")
        ids = self.group[f"{side}/top_id"][feature]
        return ids[ids >= 0], self.group[f"{side}/top_cosine"][feature][ids >= 0]


def open_alignment(run_path: str | Path) -> StoredAlignment:
    """Open the alignment of a run.

    Raises
    ------
    StoreError
        When there is none, or it is of another format.
    """
    import zarr

    path = Path(run_path)
    try:
        document = json.loads((path / ALIGNMENT_JSON).read_text())
        group = zarr.open_group(str(path / ALIGNMENT_ZARR), mode="r")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreError(f"{path} holds no alignment: run `thresher align` first.") from error
    except ValueError as error:
        raise StoreError(
            f"{path / ALIGNMENT_JSON} cannot be read ({error}): run `thresher align --overwrite`."
        ) from error
    for found in (document, group.attrs):
        if found.get("format") != FORMAT_NAME or found.get("format_version") != FORMAT_VERSION:
            raise StoreError(f"{path} holds an alignment of another format: run `thresher align --overwrite`.")
    return StoredAlignment(path, document, group)


def _write(group: Any, name: str, values: NDArray[Any]) -> None:
    """Write an array in chunks of some features each, of which a page wants one."""
    of_sets = "/others/" in name
    n = values.shape[1 if of_sets else 0]
    step = max(1, min(n, _CHUNK_BYTES * n // max(values.nbytes, 1)))
    chunks = (values.shape[0], step) if of_sets else (step, *values.shape[1:])
    group.create_array(
        name,
        data=values,
        chunks=chunks,
        compressors=codecs("float" if values.dtype.kind == "f" else "integer"),
        fill_value=np.nan if values.dtype.kind == "f" else 0,
    )


def _side(side: "SideAlignment", alignment: "Alignment") -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Arrays and summary of the encoder or the decoder."""
    counted, fdr = alignment.is_counted, alignment.options.fdr
    main, nearest = side.main, side.nearest
    arrays = _largest(main.largest, main.outputs.has_sign)
    arrays |= {"top_id": nearest.top_id, "top_cosine": nearest.top_cosine}
    arrays |= {f"n_above/{name}": values for name, values in nearest.n_above.items()}
    tests, of_tests = _tests(main.largest, main.chance, main.outputs.has_sign, counted, fdr)
    arrays |= of_tests
    d = len(side.moments.mean)
    summary: dict[str, Any] = {
        "site": side.site.path,
        "main": _set_summary(main, alignment),
        "signed_chance_by_formula": math.sqrt(2 * math.log(max(main.n_vectors, 1)) / d),
        "covariance_rows": side.moments.n_rows,
        "effective_dimensions": side.moments.effective_dimensions,
        "n_without_direction": int((main.largest.absolute_id < 0).sum()),
        "aligned": tests,
        "neurons_per_feature": {
            level.name: {"above": level.value} | _per_feature(nearest.n_above[level.name][counted])
            for level in side.levels
        },
        "earlier": None,
        "others": [_set_summary(each, alignment) for each in side.others],
    }
    if side.others:
        for name in _largest(main.largest, True):
            arrays[f"others/{name}"] = np.stack([_largest(o.largest, o.outputs.has_sign)[name] for o in side.others])
    if side.earlier is not None:
        largest, chance = side.earlier
        tests, of_tests = _tests(largest, chance, True, counted, fdr)
        arrays |= {f"earlier/{name}": values for name, values in of_tests.items()}
        named = {"max_id": "max_layer", "max_abs_id": "max_abs_layer"}  # the sets are those of blocks 0, 1, ...
        arrays |= {f"earlier/{named.get(name, name)}": values for name, values in _largest(largest, True).items()}
        summary["earlier"] = {
            "n_blocks": sum(o.outputs.kind == "mlp" for o in side.others),
            "aligned": tests,
            "chance": _chance_summary(chance, True),
            "features": _of_features(largest, chance, True, counted, alignment.options.chance_quantile),
        }
    return arrays, summary


def _largest(largest: "LargestCosines", has_sign: bool) -> dict[str, NDArray[Any]]:
    signed, signed_id = largest.signed, largest.signed_id
    if not has_sign:
        signed, signed_id = np.full_like(signed, np.nan), np.full_like(signed_id, -1)
    return {
        "max_cosine": signed,
        "max_id": signed_id,
        "max_abs_cosine": largest.absolute,
        "max_abs_id": largest.absolute_id,
    }


def _tests(
    largest: "LargestCosines",
    chance: tuple["Chance", ...],
    has_sign: bool,
    counted: NDArray[np.bool_],
    fdr: float,
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Aligned features by each kind of chance: numbers, and the arrays of p-values and adjusted ones."""
    summary: dict[str, Any] = {}
    arrays: dict[str, NDArray[Any]] = {}
    for each in chance:
        for is_absolute in (False, True) if has_sign else (True,):
            name = f"{'absolute' if is_absolute else 'signed'}_{each.kind}"
            observed = largest.absolute if is_absolute else largest.signed
            p = p_values(np.where(counted, observed, np.nan), each.of(is_absolute))
            q = adjusted_p_values(p)
            n_tested, n_aligned = int(np.isfinite(p).sum()), int((q <= fdr).sum())
            summary[name] = {
                "n_tested": n_tested,
                "n_aligned": n_aligned,
                "share": n_aligned / n_tested if n_tested else math.nan,
                "n_aligned_any_dependence": int((adjusted_p_values(p, any_dependence=True) <= fdr).sum()),
                "least_p": 1 / (1 + len(each.signed)),
                "n_at_least_p": int((p <= 1 / (1 + len(each.signed))).sum()),
            }
            arrays |= {f"p/{name}": p.astype(np.float32), f"q/{name}": q.astype(np.float32)}
    return summary, arrays


def _set_summary(of: "SetAlignment", alignment: "Alignment") -> dict[str, Any]:
    has_sign, counted = of.outputs.has_sign, alignment.is_counted
    tests, _ = _tests(of.largest, of.chance, has_sign, counted, alignment.options.fdr)
    return {
        "name": of.outputs.name,
        "kind": of.outputs.kind,
        "layer": of.outputs.layer,
        "n_vectors": of.n_vectors,
        "n_without_direction": of.n_without_direction,
        "chance": _chance_summary(of.chance, has_sign),
        "features": _of_features(of.largest, of.chance, has_sign, counted, alignment.options.chance_quantile),
        "n_aligned": {name: test["n_aligned"] for name, test in tests.items()},
    }


def _chance_summary(chance: tuple["Chance", ...], has_sign: bool) -> dict[str, Any]:
    return {
        each.kind: {
            "n": len(each.signed),
            "signed": _quantiles(each.signed) if has_sign else None,
            "absolute": _quantiles(each.absolute),
        }
        for each in chance
    }


def _of_features(
    largest: "LargestCosines",
    chance: tuple["Chance", ...],
    has_sign: bool,
    counted: NDArray[np.bool_],
    quantile: float,
) -> dict[str, Any]:
    """Quantiles of the features' largest cosines, and their share above each chance level."""
    found: dict[str, Any] = {}
    for is_absolute in (False, True):
        word = "absolute" if is_absolute else "signed"
        if not (has_sign or is_absolute):
            found[word] = None
            continue
        values = (largest.absolute if is_absolute else largest.signed)[counted]
        values = values[np.isfinite(values)]
        above = {c.kind: float(np.quantile(c.of(is_absolute).astype(np.float64), quantile)) for c in chance}
        found[word] = {
            "quantiles": _quantiles(values),
            "share_above_chance": {
                kind: float((values > level).mean()) if len(values) else math.nan for kind, level in above.items()
            },
            "chance_level": above,
        }
    return found


def _quantiles(values: NDArray[np.float32]) -> dict[str, float]:
    if len(values) == 0:
        return {f"{q:g}": math.nan for q in QUANTILES}
    return dict(
        zip((f"{q:g}" for q in QUANTILES), np.quantile(values.astype(np.float64), QUANTILES).tolist(), strict=True)
    )


def _per_feature(n_above: NDArray[np.int32]) -> dict[str, Any]:
    """How many neurons features are aligned with, among those that are aligned with any."""
    some = n_above[n_above > 0]
    return {
        "n_features": len(some),
        "median": float(np.median(some)) if len(some) else math.nan,
        "max": int(n_above.max(initial=0)),
        "share_fewer_than_5": float((some < _FEW).mean()) if len(some) else math.nan,
        "counts": np.bincount(np.minimum(n_above, 64)).tolist(),
    }


def _document(alignment: "Alignment", sides: dict[str, Any]) -> dict[str, Any]:
    statistics, options = alignment.statistics, alignment.options
    document = {
        "format": FORMAT_NAME,
        "format_version": FORMAT_VERSION,
        "store": alignment.store.url,
        "store_fingerprint": alignment.store.fingerprint,
        "sae_sha256": None if statistics is None else statistics.summary["sae_sha256"],
        "d_sae": alignment.d_sae,
        "n_counted": int(alignment.is_counted.sum()),
        "counted": alignment.counted,
        "n_uld": alignment.n_uld,
        "split": None if statistics is None else statistics.summary["split"],
        "n_rows": None if statistics is None else statistics.summary["n_rows"],
        "seed": options.seed,
        "fdr": options.fdr,
        "chance_quantile": options.chance_quantile,
        "sides": sides,
        "neurons": {images.kind: _neurons(images) for images in alignment.images},
        "thresher": __version__,
    }
    plain: dict[str, Any] = _without_nan(document)
    return plain


def _neurons(images: "NeuronImages") -> dict[str, Any]:
    statistics = images.statistics
    return {
        "layer": images.layer,
        "store": images.store,
        "signs": "both" if images.both_signs else "positive",
        "n_neurons": images.n_neurons,
        "k": statistics.k,
        "min_labelled": statistics.min_labelled,
        "n_rows": statistics.n_rows,
        "n_never_active": int((~statistics.is_alive).sum()),
        "median_density": float(np.median(statistics.density)),
        "label_entropy": asdict(images.comparison),
    }


def _without_nan(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {name: _without_nan(v) for name, v in value.items()}
    if isinstance(value, list):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

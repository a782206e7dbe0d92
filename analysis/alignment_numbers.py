"""The numbers of an alignment as they are stored: arrays by name, and the summary.

What each means stands in `stored_alignment.py`. Shapes: F features.
"""

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .given_options import kept_options
from .significance import adjusted_p_values, p_values

if TYPE_CHECKING:
    from .alignment import Alignment, Chance, SetAlignment, SideAlignment
    from .cosines import LargestCosines
    from .neuron_images import NeuronImages

QUANTILES = (0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)
_FEW = 5
"""The post says that most aligned features are aligned with fewer neurons than this."""


def side_numbers(side: "SideAlignment", alignment: "Alignment") -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Arrays and summary of the encoder or the decoder."""
    counted, fdr = alignment.is_counted, alignment.options.fdr
    main, nearest = side.main, side.nearest
    arrays = _largest(main.largest, main.outputs.has_sign)
    arrays |= {"top_id": nearest.top_id, "top_cosine": nearest.top_cosine}
    arrays |= {"of_vector/feature": nearest.of_vector_id, "of_vector/cosine": nearest.of_vector_cosine}
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


def summary(alignment: "Alignment", sides: dict[str, Any]) -> dict[str, Any]:
    """The document of alignment.json but for its format; None stands for NaN. `sides` are of `side_numbers`."""
    statistics, options = alignment.statistics, alignment.options
    found = {
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
        "options": kept_options(options),
        "sides": sides,
        "neurons": {images.kind: _neurons(images) for images in alignment.images},
    }
    plain: dict[str, Any] = _without_nan(found)
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

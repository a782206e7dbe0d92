"""SAELens, version 6: a folder of `cfg.json` and `sae_weights.safetensors`; folders of earlier versions are read too.

Its `jumprelu` is f = relu(pre) where pre > threshold, as BatchTopK and Matryoshka SAEs are once trained, which it also
saves so. What `cfg.json` does not know of them stands in its free `metadata`, below `thresher`.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ...store.errors import StoreError
from .format import (
    Foreign,
    Format,
    Outgoing,
    Written,
    finder,
    json_to_bytes,
    refuse,
    tensors_to_bytes,
)
from .origin import Origin, of_hook
from .plain import PlainSae
from .reading import Tensors, read_json, read_safetensors, require_k, require_word

CONFIG, WEIGHTS, SPARSITY, SCALER = (
    "cfg.json",
    "sae_weights.safetensors",
    "sparsity.safetensors",
    "activation_scaler.json",
)
# The first version of this layout of cfg.json: its loader converts what says less, or nothing.
_VERSION = "6.0.0"
_VARIANT_OF = {
    "standard": "relu",
    "topk": "topk",
    "jumprelu": "jumprelu",
    "gated": "gated",
    "transcoder": "relu",
    "jumprelu_transcoder": "jumprelu",
}
_ARCHITECTURE_OF = {"relu": "standard", "batchtopk": "jumprelu", "matryoshka": "jumprelu"}
_NORMS = ("none", "expected_average_only_in", "constant_norm_rescale", "layer_norm")
_LEAST_DENSITY = 1e-10  # SAELens's: of a feature that never fired, the logarithm is -10


def read(path: Path) -> Foreign:
    """The SAE of a folder."""
    config = read_json(path / CONFIG)
    cfg = _defaulted(config, path / CONFIG)
    architecture = require_word(cfg, "architecture", _VARIANT_OF, path / CONFIG, "standard")
    tensors = Tensors(path / WEIGHTS, read_safetensors(path / WEIGHTS))
    is_transcoder = architecture.endswith("transcoder")
    W_enc = tensors.take("W_enc", None, None)
    d_in, d_sae = W_enc.shape
    d_out = None if is_transcoder else d_in
    W_dec = tensors.take("W_dec", d_sae, d_out)
    variant = _VARIANT_OF[architecture]
    plain = PlainSae(
        variant=variant,
        W_enc=W_enc,
        b_enc=tensors.take("b_gate" if variant == "gated" else "b_enc", d_sae),
        W_dec=W_dec,
        b_dec=tensors.take("b_dec", W_dec.shape[1]),
        centres_input=not is_transcoder and bool(cfg.get("apply_b_dec_to_input", True)),
        is_transcoder=is_transcoder,
        k=require_k(cfg.get("k"), path / CONFIG) if variant == "topk" else None,
        threshold=tensors.take("threshold", d_sae) if variant == "jumprelu" else None,
        r_mag=tensors.take("r_mag", d_sae) if variant == "gated" else None,
        b_mag=tensors.take("b_mag", d_sae) if variant == "gated" else None,
    )
    tensors.forget("scaling_factor")  # of versions before 6, where finetuning_scaling_factor, refused below, used it
    if variant == "gated":
        tensors.forget("b_enc")
    tensors.require_all_taken()
    for name, here in (("d_in", d_in), ("d_sae", d_sae)):
        if cfg.get(name, here) != here:
            raise StoreError(f"{path}: {CONFIG} says {name} = {cfg[name]!r}, and {WEIGHTS} has {here}.")
    if variant == "topk" and cfg.get("rescale_acts_by_decoder_norm"):
        norm = plain.decoder_norm()
        plain = plain.scaled_by(torch.where(norm > 0, norm, 1.0))
    plain, files = _normalised(plain, cfg, path)
    metadata: dict[str, Any] = cfg["metadata"] if isinstance(cfg.get("metadata"), dict) else {}
    return Foreign(
        sae=_as_it_was(plain, metadata.get("thresher")).to_sae(),
        config=config,
        origin=_origin(metadata),
        files=[path / CONFIG, path / WEIGHTS, *files],
    )


def _defaulted(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """The fields of version 6, whatever version wrote them."""
    metadata = config.get("metadata")
    of_metadata = metadata.get("sae_lens_version") if isinstance(metadata, dict) else None
    version = config.get("sae_lens_version") or of_metadata
    if isinstance(version, str) and (found := re.match(r"(\d+)\.", version)) and int(found[1]) >= 6:
        return config
    cfg = dict(config)
    cfg.setdefault("hook_name", config.get("hook_point"))
    activation = config.get("activation_fn", config.get("activation_fn_str", "relu"))
    arguments = config.get("activation_fn_kwargs") or {}
    if activation == "topk" and isinstance(arguments, dict):
        cfg |= {"architecture": "topk", "k": arguments.get("k")}
    elif activation != "relu" and cfg.get("architecture", "standard") == "standard":
        raise StoreError(f"{path}: activation_fn is {activation!r}, and thresher reads relu and topk.")
    if cfg.get("finetuning_scaling_factor"):
        raise StoreError(f"{path}: finetuning_scaling_factor is set, which SAELens 6 does not read either.")
    norm = cfg.get("normalize_activations")
    if norm is None or isinstance(norm, bool):
        cfg["normalize_activations"] = "expected_average_only_in" if norm else "none"
    cfg["metadata"] = {name: value for name, value in cfg.items() if name != "metadata"}
    return cfg


def _normalised(plain: PlainSae, cfg: dict[str, Any], path: Path) -> tuple[PlainSae, list[Path]]:
    """The SAE with its normalisation, and the files that this took."""
    norm = require_word(cfg, "normalize_activations", _NORMS, path / CONFIG, "none")
    if norm == "none":
        return plain, []
    if norm != "expected_average_only_in":
        if plain.is_transcoder:
            raise StoreError(f"{path / CONFIG}: normalize_activations is {norm}, which a transcoder cannot undo.")
        return replace(plain, rows=norm), []
    scaler = path / SCALER
    if not scaler.exists():
        raise StoreError(
            f"{path} normalises by an expected norm, and its factor is not there: put {SCALER} beside it, "
            '{"scaling_factor": ...}; or let SAELens fold it in (fold_activation_norm_scaling_factor) and save again.'
        )
    factor = read_json(scaler).get("scaling_factor")
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 < factor < float("inf"):
        raise StoreError(f"{scaler}: scaling_factor is {factor!r}, and must be a number above 0.")
    # As fold_activation_norm_scaling_factor: W_enc x c; W_dec, b_dec / c. A centred input then is (x - b_dec / c) c.
    return replace(plain, W_enc=plain.W_enc * factor, W_dec=plain.W_dec / factor, b_dec=plain.b_dec / factor), [scaler]


def _as_it_was(plain: PlainSae, record: object) -> PlainSae:
    """A BatchTopK or Matryoshka SAE that thresher wrote as jumprelu."""
    if not isinstance(record, dict) or plain.variant != "jumprelu" or plain.threshold is None:
        return plain
    variant, k, prefixes = record.get("variant"), record.get("k"), record.get("prefixes")
    is_uniform = bool((plain.threshold == plain.threshold[0]).all())
    if variant not in ("batchtopk", "matryoshka") or not isinstance(k, int) or not is_uniform:
        return plain
    if variant == "matryoshka" and not (isinstance(prefixes, list) and all(isinstance(p, int) for p in prefixes)):
        return plain
    sizes = tuple(prefixes) if variant == "matryoshka" and isinstance(prefixes, list) else None
    return replace(plain, variant=variant, k=k, prefixes=sizes)


def _origin(metadata: dict[str, Any]) -> Origin:
    ours = metadata.get("thresher")
    if isinstance(ours, dict):
        return Origin.from_json(ours)
    return Origin.from_json({"model": metadata.get("model_name"), **of_hook(metadata.get("hook_name"))})


def write(out: Outgoing) -> Written:
    """The folder's files, as its `save_model` writes them."""
    plain, origin = out.plain, out.origin
    architecture = _ARCHITECTURE_OF.get(out.variant, out.variant)
    if plain.is_transcoder:
        names = {"standard": "transcoder", "jumprelu": "jumprelu_transcoder"}
        if architecture not in names:
            raise refuse("saelens", f"a transcoder of variant {out.variant} (it holds relu and jumprelu)", "sparsify")
        architecture = names[architecture]
    own = {
        name: value
        for name, value in {
            **origin.to_json(),
            "variant": out.variant,
            "k": plain.k,
            "prefixes": plain.prefixes,
            "version": out.version,
        }.items()
        if value is not None
    }
    cfg: dict[str, Any] = {
        "d_in": plain.W_enc.shape[0],
        "d_sae": plain.W_enc.shape[1],
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": plain.centres_input,
        "normalize_activations": plain.rows,
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": _VERSION,
            "sae_lens_training_version": None,
            "model_name": origin.model,
            "model_class_name": "open_clip",
            "hook_name": origin.hook,
            "hook_head_index": None,
            "thresher": own,
        },
        "architecture": architecture,
    }
    if plain.is_transcoder:
        cfg["d_out"] = plain.W_dec.shape[1]
    if architecture == "topk":
        cfg |= {"k": plain.k, "rescale_acts_by_decoder_norm": False}
    weights = {"W_enc": plain.W_enc, "W_dec": plain.W_dec, "b_dec": plain.b_dec}
    weights["b_gate" if architecture == "gated" else "b_enc"] = plain.b_enc
    if plain.threshold is not None:
        weights["threshold"] = plain.threshold
    if plain.r_mag is not None and plain.b_mag is not None:
        weights |= {"r_mag": plain.r_mag, "b_mag": plain.b_mag}
    files = {CONFIG: json_to_bytes(cfg), WEIGHTS: tensors_to_bytes(weights)}
    if out.density is not None:
        files[SPARSITY] = tensors_to_bytes({"sparsity": out.density.clamp(min=_LEAST_DENSITY).log10()})
    notes = []
    if plain.rows == "layer_norm":
        notes.append(
            "SAELens multiplies a reconstruction by the row's deviation without the 1e-5 that it was divided by: it "
            "differs by 1e-5 / deviation of what is added to the mean."
        )
    return Written(files=files, notes=notes)


FORMAT = Format(
    name="saelens",
    looks_for=f"{CONFIG} and {WEIGHTS}",
    find=finder(CONFIG, WEIGHTS),
    read=read,
    write=write,
)

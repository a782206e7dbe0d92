"""ViT-Prisma: a folder of `weights.pt`, a torch state dict, and `config.json`; or one `.pt` of both.

`config.json` holds the fields of its `VisionModelSAERunnerConfig`, whose defaults stand for those left out: layer norm
and TopK among them. d_sae is d_in times a whole `expansion_factor`. Its loader knows standard and gated SAEs.
"""

import io
from pathlib import Path
from typing import Any

import torch

from ...store.errors import StoreError
from .format import Foreign, Format, Outgoing, Written, as_json, json_to_bytes, refuse, require_sae, require_variant
from .origin import Origin, of_hook
from .plain import PlainSae
from .reading import Record, Tensors, names_in_pickle, read_json, read_pt, require_k, require_word

CONFIG, WEIGHTS = "config.json", "weights.pt"
_CLASS = "vit_prisma.sae.config.VisionModelSAERunnerConfig"
_NORMS = ("none", "layer_norm", "constant_norm_rescale")
_DEFAULTS = {"architecture": "standard", "activation_fn_str": "topk", "normalize_activations": "layer_norm"}


def find(path: Path) -> Path | None:
    """The weights: a file with its configuration in it, or one beside a `config.json`."""
    if path.is_file():
        return path if _is_named(path) and _has_config(path) else None
    candidates = [path / WEIGHTS, *sorted(path.glob("n_images_*.pt"))]
    return next((each for each in reversed(candidates) if each.is_file() and _has_config(each)), None)


def _is_named(path: Path) -> bool:
    return path.name == WEIGHTS or (path.name.startswith("n_images_") and path.suffix == ".pt")


def _has_config(path: Path) -> bool:
    return path.with_name(CONFIG).is_file() or names_in_pickle(path, "vit_prisma")


def read(path: Path) -> Foreign:
    """The SAE of weights that `find` gave."""
    found = read_pt(path, as_records=(_CLASS,))
    files = [path]
    if path.with_name(CONFIG).is_file():
        config, config_path = read_json(path.with_name(CONFIG)), path.with_name(CONFIG)
        files.append(config_path)
    elif isinstance(found, dict) and isinstance(found.get("cfg"), Record):
        config, config_path = as_json(vars(found["cfg"])), path
    else:
        raise StoreError(f"{path} holds no configuration, and no {CONFIG} stands beside it.")
    weights = found["state_dict"] if isinstance(found, dict) and "state_dict" in found else found
    if config.get("is_transcoder"):
        raise StoreError(f"{config_path}: is_transcoder is set, and thresher does not read Prisma's transcoders.")
    cfg = {**_DEFAULTS, **config}
    architecture = require_word(cfg, "architecture", ("standard", "gated"), config_path, None)
    activations = ("relu", "topk") if architecture == "standard" else ("relu",)
    activation = require_word(cfg, "activation_fn_str", activations, config_path, None)
    rows = require_word(cfg, "normalize_activations", _NORMS, config_path, None)
    tensors = Tensors(path, weights)
    W_enc = tensors.take("W_enc", None, None)
    d_in, d_sae = W_enc.shape
    if cfg.get("d_in", d_in) != d_in:
        raise StoreError(f"{config_path} says d_in = {cfg['d_in']!r}, and {path} has {d_in}.")
    is_gated = architecture == "gated"
    arguments = cfg.get("activation_fn_kwargs")
    k = None
    if activation == "topk":
        k = require_k(arguments.get("k") if isinstance(arguments, dict) else None, config_path)
    plain = PlainSae(
        variant="gated" if is_gated else activation,
        W_enc=W_enc,
        b_enc=tensors.take("b_gate" if is_gated else "b_enc", d_sae),
        W_dec=tensors.take("W_dec", d_sae, d_in),
        b_dec=tensors.take("b_dec", d_in),
        rows=rows,
        k=k,
        r_mag=tensors.take("r_mag", d_sae) if is_gated else None,
        b_mag=tensors.take("b_mag", d_sae) if is_gated else None,
    )
    if is_gated:
        tensors.forget("b_enc")  # which its gated encoder does not use
    tensors.require_all_taken()
    return Foreign(sae=plain.to_sae(), config=config, origin=_origin(config), files=files)


def _origin(config: dict[str, Any]) -> Origin:
    if isinstance(config.get("thresher"), dict):
        return Origin.from_json(config["thresher"])
    token = "cls" if config.get("cls_token_only") else "patch" if config.get("use_patches_only") else "all"
    hook = f"blocks.{config.get('hook_point_layer')}.{config.get('layer_subtype')}"
    return Origin.from_json({"model": config.get("model_name"), "token": token, **of_hook(hook)})


def write(out: Outgoing) -> Written:
    """The folder's files, as it publishes them."""
    require_sae(out, "prisma")
    require_variant(out, "prisma", ("relu", "topk", "gated"))
    plain = out.plain.centred(True)
    d_in, d_sae = plain.W_enc.shape
    if d_sae % d_in:
        raise refuse("prisma", f"{d_sae:,} features of {d_in:,} inputs (d_sae is d_in times a whole number)")
    origin = out.origin
    config: dict[str, Any] = {
        "architecture": "gated" if out.variant == "gated" else "standard",
        "activation_fn_str": "topk" if out.variant == "topk" else "relu",
        "activation_fn_kwargs": {"k": plain.k} if out.variant == "topk" else {},
        "normalize_activations": plain.rows,
        "d_in": d_in,
        "expansion_factor": d_sae // d_in,
        "cls_token_only": origin.token == "cls",
        "use_patches_only": origin.token == "patch",
        "is_transcoder": False,
        "_device": "cpu",
        "_dtype": "float32",
        "thresher": {**origin.to_json(), "version": out.version},
    }
    known = {
        "model_name": origin.model,
        "hook_point_layer": origin.layer,
        "layer_subtype": origin.hook_subtype,
    }
    config |= {name: value for name, value in known.items() if value is not None}
    state = {name: getattr(plain, name).float().contiguous() for name in ("W_dec", "W_enc", "b_enc", "b_dec")}
    if plain.r_mag is not None and plain.b_mag is not None:
        own = {"b_gate": plain.b_enc, "r_mag": plain.r_mag, "b_mag": plain.b_mag, "b_enc": torch.zeros(d_sae)}
        state |= {name: tensor.float().contiguous() for name, tensor in own.items()}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return Written(files={CONFIG: json_to_bytes(config), WEIGHTS: buffer.getvalue()})


FORMAT = Format(
    name="prisma",
    looks_for=f"{WEIGHTS} (or n_images_*.pt) with {CONFIG} or with its configuration in it",
    find=find,
    read=read,
    write=write,
)

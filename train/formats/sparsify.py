"""EleutherAI's sparsify: a folder of `cfg.json` and `sae.safetensors`, TopK SAEs and transcoders."""

from pathlib import Path
from typing import Any

from ...store.errors import StoreError
from .format import (
    Foreign,
    Format,
    Outgoing,
    Written,
    finder,
    json_to_bytes,
    refuse,
    require_plain_rows,
    require_variant,
    tensors_to_bytes,
)
from .plain import PlainSae
from .reading import Tensors, read_json, read_safetensors, require_k, require_word

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"


def read(path: Path) -> Foreign:
    """The SAE of a folder."""
    config = read_json(path / CONFIG)
    require_word(config, "activation", ("topk",), path / CONFIG, "topk")
    if config.get("skip_connection"):
        raise StoreError(f"{path / CONFIG}: skip_connection is set, and thresher's transcoders have none.")
    if config.get("signed"):  # in older versions
        raise StoreError(f"{path / CONFIG}: signed is set, and thresher's features are never below 0.")
    tensors = Tensors(path / WEIGHTS, read_safetensors(path / WEIGHTS))
    encoder = tensors.take("encoder.weight", None, None)
    d_sae, d_in = encoder.shape
    if config.get("d_in", d_in) != d_in:
        raise StoreError(f"{path}: {CONFIG} says d_in = {config['d_in']!r}, and {WEIGHTS} has {d_in}.")
    is_transcoder = bool(config.get("transcode", False))
    plain = PlainSae(
        variant="topk",
        W_enc=encoder.T,
        b_enc=tensors.take("encoder.bias", d_sae),
        W_dec=tensors.take("W_dec", d_sae, d_in),
        b_dec=tensors.take("b_dec", d_in),
        centres_input=not is_transcoder,
        is_transcoder=is_transcoder,
        k=require_k(config.get("k", 32), path / CONFIG),
    )
    tensors.require_all_taken()
    return Foreign(sae=plain.to_sae(), config=config, files=[path / CONFIG, path / WEIGHTS])


def write(out: Outgoing) -> Written:
    """The folder's files, as its `save_to_disk` writes them."""
    require_variant(out, "sparsify", ("topk",))
    require_plain_rows(out, "sparsify")
    d_in, d_sae = out.plain.W_enc.shape
    if out.plain.W_dec.shape[1] != d_in:
        raise refuse("sparsify", f"a transcoder from {d_in} to {out.plain.W_dec.shape[1]} dimensions (both are one)")
    plain = out.plain.centred(not out.plain.is_transcoder)  # it always subtracts b_dec, but for a transcoder
    cfg: dict[str, Any] = {
        "activation": "topk",
        "expansion_factor": max(1, d_sae // d_in),
        "normalize_decoder": plain.has_unit_rows,
        "num_latents": d_sae,
        "k": plain.k,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": plain.is_transcoder,
        "d_in": d_in,
    }
    weights = {
        "encoder.weight": plain.W_enc.T,
        "encoder.bias": plain.b_enc,
        "W_dec": plain.W_dec,
        "b_dec": plain.b_dec,
    }
    return Written(files={CONFIG: json_to_bytes(cfg), WEIGHTS: tensors_to_bytes(weights)})


FORMAT = Format(
    name="sparsify", looks_for=f"{CONFIG} and {WEIGHTS}", find=finder(CONFIG, WEIGHTS), read=read, write=write
)

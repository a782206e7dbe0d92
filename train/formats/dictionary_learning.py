"""dictionary_learning: a folder of `ae.pt`, a torch state dict, and `config.json`, whose `trainer.dict_class` tells it.

Its `nn.Linear` weights are (features, inputs) and (inputs, features). Thresholds below 0, which it starts from, keep
every positive activation.
"""

import io
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...store.errors import StoreError
from .format import (
    Foreign,
    Format,
    Outgoing,
    Written,
    finder,
    json_to_bytes,
    require_plain_rows,
    require_sae,
)
from .origin import Origin
from .plain import PlainSae
from .reading import Tensors, read_json, read_pt, require_word

CONFIG, WEIGHTS = "config.json", "ae.pt"
_CLASS_OF = {
    "relu": "AutoEncoder",
    "topk": "AutoEncoderTopK",
    "batchtopk": "BatchTopKSAE",
    "matryoshka": "MatryoshkaBatchTopKSAE",
    "jumprelu": "JumpReluAutoEncoder",
    "gated": "GatedAutoEncoder",
}
_CLASSES = (*_CLASS_OF.values(), "AutoEncoderNew")
# Its submodules' names, where a site has one.
_SUBMODULE = {"resid_post": "resid_post", "mlp_out": "mlp_out", "attn_out": "attention_out"}


def read(path: Path) -> Foreign:
    """The SAE of a folder."""
    config = read_json(path / CONFIG)
    trainer = config.get("trainer")
    if not isinstance(trainer, dict):
        raise StoreError(f"{path / CONFIG} has no trainer, which says what kind of SAE {WEIGHTS} holds.")
    kind = require_word(trainer, "dict_class", _CLASSES, path / CONFIG, None)
    tensors = Tensors(path / WEIGHTS, read_pt(path / WEIGHTS))
    plain = _READERS[kind](tensors)
    tensors.require_all_taken()
    if trainer.get("k") not in (None, plain.k):
        raise StoreError(f"{path}: {CONFIG} says k = {trainer['k']!r}, and {WEIGHTS} has {plain.k}.")
    site = next((site for site, name in _SUBMODULE.items() if name == trainer.get("submodule_name")), None)
    theirs = {"model": trainer.get("lm_name"), "layer": trainer.get("layer"), "site": site}
    origin = Origin.from_json(config.get("thresher", theirs))
    return Foreign(sae=plain.to_sae(), config=config, origin=origin, files=[path / CONFIG, path / WEIGHTS])


def _linear(tensors: Tensors, bias: str, b_dec: str) -> dict[str, Any]:
    """Weights of two `nn.Linear`."""
    encoder = tensors.take("encoder.weight", None, None)
    d_sae, d_in = encoder.shape
    return {
        "W_enc": encoder.T,
        "b_enc": tensors.take(bias, d_sae),
        "W_dec": tensors.take("decoder.weight", d_in, d_sae).T,
        "b_dec": tensors.take(b_dec, d_in),
    }


def _plain_names(tensors: Tensors) -> dict[str, Any]:
    W_enc = tensors.take("W_enc", None, None)
    d_in, d_sae = W_enc.shape
    return {
        "W_enc": W_enc,
        "b_enc": tensors.take("b_enc", d_sae),
        "W_dec": tensors.take("W_dec", d_sae, d_in),
        "b_dec": tensors.take("b_dec", d_in),
    }


def _k(tensors: Tensors) -> int:
    found = tensors.integers("k")
    if len(found) != 1 or found[0] < 1:
        raise StoreError(f"{tensors.path}: k is {found}, and must be one whole number from 1 on.")
    return found[0]


def _read_relu(tensors: Tensors) -> PlainSae:
    return PlainSae(variant="relu", **_linear(tensors, "encoder.bias", "bias"))


def _read_new(tensors: Tensors) -> PlainSae:
    return PlainSae(variant="relu", centres_input=False, **_linear(tensors, "encoder.bias", "decoder.bias"))


def _read_topk(tensors: Tensors) -> PlainSae:
    tensors.forget("threshold")  # only where its `use_threshold` asks for it
    return PlainSae(variant="topk", k=_k(tensors), **_linear(tensors, "encoder.bias", "b_dec"))


def _one_threshold(tensors: Tensors, d_sae: int) -> Tensor:
    return tensors.take("threshold").clamp(min=0).expand(d_sae).clone()


def _read_batchtopk(tensors: Tensors) -> PlainSae:
    weights = _linear(tensors, "encoder.bias", "b_dec")
    threshold = _one_threshold(tensors, len(weights["b_enc"]))
    return PlainSae(variant="batchtopk", k=_k(tensors), threshold=threshold, **weights)


def _read_matryoshka(tensors: Tensors) -> PlainSae:
    weights = _plain_names(tensors)
    threshold = _one_threshold(tensors, len(weights["b_enc"]))
    sizes = torch.tensor(tensors.integers("group_sizes")).cumsum(0).tolist()
    return PlainSae(variant="matryoshka", k=_k(tensors), threshold=threshold, prefixes=tuple(sizes), **weights)


def _read_jumprelu(tensors: Tensors) -> PlainSae:
    weights = _plain_names(tensors)
    threshold = tensors.take("threshold", len(weights["b_enc"]))
    # Its apply_b_dec_to_input is an attribute that no file holds, and False where a file is loaded.
    return PlainSae(variant="jumprelu", threshold=threshold, centres_input=False, **weights)


def _read_gated(tensors: Tensors) -> PlainSae:
    weights = _linear(tensors, "gate_bias", "decoder_bias")
    d_sae = len(weights["b_enc"])
    return PlainSae(
        variant="gated", r_mag=tensors.take("r_mag", d_sae), b_mag=tensors.take("mag_bias", d_sae), **weights
    )


_READERS: dict[str, Callable[[Tensors], PlainSae]] = {
    "AutoEncoder": _read_relu,
    "AutoEncoderNew": _read_new,
    "AutoEncoderTopK": _read_topk,
    "BatchTopKSAE": _read_batchtopk,
    "MatryoshkaBatchTopKSAE": _read_matryoshka,
    "JumpReluAutoEncoder": _read_jumprelu,
    "GatedAutoEncoder": _read_gated,
}


def write(out: Outgoing) -> Written:
    """The folder's files, as its training writes them."""
    require_sae(out, "dictionary_learning")
    require_plain_rows(out, "dictionary_learning")
    plain = out.plain.centred(out.variant != "jumprelu")
    notes = []
    if out.variant == "relu" and not plain.has_unit_rows:
        plain = plain.with_unit_rows()  # its loader normalises AutoEncoder's, and checks that in float32
        notes.append(
            "decoder rows were given norm 1, as AutoEncoder.from_pretrained does: activations grow by the norm."
        )
    state = {name: tensor.float().contiguous() for name, tensor in _weights(plain, out.variant).items()}
    if plain.k is not None:
        state["k"] = torch.tensor(plain.k, dtype=torch.int)
        threshold = -1.0 if plain.threshold is None else float(plain.threshold[0])
        state["threshold"] = torch.tensor(threshold, dtype=torch.float32)
    if plain.prefixes is not None:
        edges = (0, *plain.prefixes)
        state["group_sizes"] = torch.tensor([b - a for a, b in pairwise(edges)])
    d_in, d_sae = plain.W_enc.shape
    trainer = {
        "dict_class": _CLASS_OF[out.variant],
        "activation_dim": d_in,
        "dict_size": d_sae,
        "layer": out.origin.layer,
        "lm_name": out.origin.model,
        "submodule_name": _SUBMODULE.get(str(out.origin.site)),
        **({"k": plain.k} if plain.k is not None else {}),
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    config = {"trainer": trainer, "thresher": {**out.origin.to_json(), "version": out.version}}
    return Written(files={CONFIG: json_to_bytes(config), WEIGHTS: buffer.getvalue()}, notes=notes)


def _present(tensor: Tensor | None) -> Tensor:
    assert tensor is not None  # of every variant that has it
    return tensor


def _weights(plain: PlainSae, variant: str) -> dict[str, Tensor]:
    if variant in ("jumprelu", "matryoshka"):
        weights = {"W_enc": plain.W_enc, "b_enc": plain.b_enc, "W_dec": plain.W_dec, "b_dec": plain.b_dec}
        return weights | ({"threshold": _present(plain.threshold)} if variant == "jumprelu" else {})
    weights = {"encoder.weight": plain.W_enc.T, "decoder.weight": plain.W_dec.T}
    if plain.r_mag is not None and plain.b_mag is not None:
        return weights | {
            "decoder_bias": plain.b_dec,
            "gate_bias": plain.b_enc,
            "r_mag": plain.r_mag,
            "mag_bias": plain.b_mag,
        }
    return weights | {"encoder.bias": plain.b_enc, "bias" if variant == "relu" else "b_dec": plain.b_dec}


FORMAT = Format(
    name="dictionary_learning",
    looks_for=f"{WEIGHTS} and {CONFIG}",
    find=finder(WEIGHTS, CONFIG),
    read=read,
    write=write,
)

"""saev: one file `sae.pt`, a line of JSON, then a torch state dict.

Its encoder is given x itself, not x - b_dec; so it was for files of schema 2 on. The files before there were schemas
(its release 0.1.0) are of an encoder that subtracts it, and those of schema 1 do not say which of both.
"""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...store.errors import DamagedStoreError, StoreError
from .format import Foreign, Format, Outgoing, Written, refuse, require_plain_rows, require_sae, require_variant
from .plain import PlainSae
from .reading import MAX_JSON_BYTES, Tensors, parse_json, read_pt, require_k, require_word

FILE = "sae.pt"
_SCHEMA = 5
_SCHEMAS = (2, 3, 4, _SCHEMA)
_VARIANT_OF = {"Relu": "relu", "TopK": "topk", "BatchTopK": "batchtopk"}
_NOTE = "saev's TopK keeps negative activations where fewer than k are positive; thresher's and others' do not."


def find(path: Path) -> Path | None:
    """The file itself, or that of a folder, where its first line is an object."""
    path = path / FILE if path.is_dir() else path
    try:
        with open(path, "rb") as file:
            return path if file.read(1) == b"{" and file.readline().rstrip().endswith(b"}") else None
    except OSError:
        return None


def read(path: Path) -> Foreign:
    """The SAE of a file."""
    with open(path, "rb") as file:
        line = file.readline(MAX_JSON_BYTES + 1)
    header = parse_json(line, path)
    schema = header.get("schema")
    if schema == 1:
        raise StoreError(
            f"{path} is of schema 1, which does not say whether b_dec is subtracted from the input: load it with saev "
            "and dump it again."
        )
    if schema is not None:
        require_word(header, "schema", _SCHEMAS, path, None)
    cfg = header if schema is None else header.get("cfg")
    activation = cfg.get("activation") if isinstance(cfg, dict) else None
    if schema is None:
        activation = {"cls": "Relu", "params": {}}
    if not isinstance(cfg, dict) or not isinstance(activation, dict) or not isinstance(activation.get("params"), dict):
        raise DamagedStoreError(f"{path}: its first line has no cfg with an activation: it is damaged.")
    kind = require_word(activation, "cls", _VARIANT_OF, path, None)
    tensors = Tensors(path, read_pt(path, offset=len(line)))
    W_enc = tensors.take("W_enc", None, None)
    d_in, d_sae = W_enc.shape
    if cfg.get("d_model", cfg.get("d_vit", d_in)) != d_in or cfg.get("d_sae", d_sae) != d_sae:
        raise StoreError(f"{path}: its first line says other sizes than its W_enc, {d_in} by {d_sae}.")
    threshold = None
    if kind == "BatchTopK":
        threshold = tensors.take("activation.threshold").clamp(min=0).expand(d_sae).clone()
    plain = PlainSae(
        variant=_VARIANT_OF[kind],
        W_enc=W_enc,
        b_enc=tensors.take("b_enc", d_sae),
        W_dec=tensors.take("W_dec", d_sae, d_in),
        b_dec=tensors.take("b_dec", d_in),
        centres_input=schema is None,
        k=None if kind == "Relu" else min(require_k(activation["params"].get("top_k", 32), path), d_sae),
        threshold=threshold,
    )
    tensors.require_all_taken()
    return Foreign(sae=plain.to_sae(), config=header, files=[path], notes=[_NOTE] if kind == "TopK" else [])


def write(out: Outgoing) -> Written:
    """The file, as its `dump` writes it."""
    require_sae(out, "saev")
    require_plain_rows(out, "saev")
    if out.variant == "matryoshka":
        raise refuse("saev", "the prefixes of a Matryoshka SAE")
    require_variant(out, "saev", tuple(_VARIANT_OF.values()))
    plain = out.plain.centred(False)
    d_in, d_sae = plain.W_enc.shape
    header = {
        "schema": _SCHEMA,
        "cfg": {
            "d_model": d_in,
            "d_sae": d_sae,
            "activation": _activation(plain, out.training),
            "reinit_blend": 0.8,
            "reinit_enc_dec_tranpose": True,  # its spelling
            "remove_parallel_grads": True,
            "normalize_w_dec": plain.has_unit_rows,
        },
        "commit": "unknown",
        "lib": f"thresher {out.version}",
        "thresher": out.origin.to_json(),
    }
    state: dict[str, Tensor] = {
        name: getattr(plain, name).float().contiguous() for name in ("W_dec", "b_dec", "W_enc", "b_enc")
    }
    if plain.threshold is not None:
        state["activation.threshold"] = plain.threshold[0].float()
    buffer = io.BytesIO()
    buffer.write(json.dumps(header).encode() + b"\n")
    body = io.BytesIO()  # an archive counts its offsets from its own start
    torch.save(state, body)
    buffer.write(body.getvalue())
    return Written(files={FILE: buffer.getvalue()}, notes=[_NOTE] if out.variant == "topk" else [])


def _activation(plain: PlainSae, training: Mapping[str, Any]) -> dict[str, Any]:
    none = {"cls": "NoSparsity", "params": {"key": "no-sparsity"}}
    alpha = 1 / 32 if training.get("aux") is None else float(training["aux"])
    auxk = {"cls": "AuxK", "params": {"key": "auxk", "k_aux": 512, "alpha": alpha}}
    if plain.variant == "relu":
        penalty = {"cls": "L1Sparsity", "params": {"key": "l1-sparsity", "coeff": float(training.get("l1", 0.0))}}
        no_aux = {"cls": "NoAux", "params": {"key": "no-aux"}}
        return {"cls": "Relu", "params": {"key": "relu", "sparsity": penalty, "aux": no_aux}}
    if plain.variant == "topk":
        return {"cls": "TopK", "params": {"key": "top-k", "top_k": plain.k, "sparsity": none, "aux": auxk}}
    params = {"key": "batch-top-k", "top_k": plain.k, "sparsity": none, "momentum": 0.1, "aux": auxk}
    return {"cls": "BatchTopK", "params": params}


FORMAT = Format(
    name="saev", looks_for=f"a {FILE} whose first line is JSON", find=find, read=read, write=write, file_name=FILE
)

"""The post's own file: a `.pt` of `{"cfg": ..., "state_dict": ...}`, ReLU SAEs with b_dec subtracted from the input.

`cfg` is a pickled object of its class `sae_training.config.ViTSAERunnerConfig`, which is read as the plain data that it
holds. `block_layer` -2 is the last block but one.
"""

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch

from ...store.errors import StoreError
from .format import Foreign, Format, Outgoing, Written, as_json, require_plain_rows, require_sae, require_variant
from .origin import Origin
from .plain import PlainSae
from .reading import Record, Tensors, names_in_pickle, read_pt

FILE = "final_sparse_autoencoder.pt"
_MODULE, _NAME = "sae_training.config", "ViTSAERunnerConfig"
# Its loader of the tower takes Hugging Face's names.
_HUB_NAME = {
    "ViT-B-32": "openai/clip-vit-base-patch32",
    "ViT-B-16": "openai/clip-vit-base-patch16",
    "ViT-L-14": "openai/clip-vit-large-patch14",
    "ViT-L-14-336": "openai/clip-vit-large-patch14-336",
}


def find(path: Path) -> Path | None:
    """The file, or the only one of a folder and those in it: its name holds the slash of the model's name."""
    files = [path] if path.is_file() else sorted(path.rglob("*.pt"))[:2] if path.is_dir() else []
    if len(files) != 1 or files[0].suffix != ".pt":
        return None
    return files[0] if names_in_pickle(files[0], _MODULE) else None


def read(path: Path) -> Foreign:
    """The SAE of a file."""
    found = read_pt(path, as_records=(f"{_MODULE}.{_NAME}",))
    if not isinstance(found, dict) or not isinstance(found.get("cfg"), (Record, dict)):
        raise StoreError(f"{path} holds no cfg and state_dict: it is not a file of the post's code.")
    cfg = as_json(vars(found["cfg"]) if isinstance(found["cfg"], Record) else found["cfg"])
    tensors = Tensors(path, found.get("state_dict"))
    W_enc = tensors.take("W_enc", None, None)
    d_in, d_sae = W_enc.shape
    plain = PlainSae(
        variant="relu",
        W_enc=W_enc,
        b_enc=tensors.take("b_enc", d_sae),
        W_dec=tensors.take("W_dec", d_sae, d_in),
        b_dec=tensors.take("b_dec", d_in),
    )
    tensors.require_all_taken()
    if cfg.get("d_in", d_in) != d_in or cfg.get("d_sae", d_sae) != d_sae:
        raise StoreError(f"{path}: cfg says {cfg.get('d_in')} by {cfg.get('d_sae')}, and W_enc is {d_in} by {d_sae}.")
    ours = cfg.get("thresher")
    theirs = {
        "model": cfg.get("model_name"),
        "layer": cfg.get("block_layer"),
        "site": "resid_post" if cfg.get("module_name", "resid") == "resid" else None,
        "token": "cls" if cfg.get("class_token", True) else None,
    }
    return Foreign(
        sae=plain.to_sae(),
        config=cfg,
        origin=Origin.from_json(ours if isinstance(ours, dict) else theirs),
        files=[path],
    )


class _Config:
    """Stands for the post's class while a file is written."""


class _Pickler(pickle._Pickler):  # the one in Python, whose way with a class can be told
    dispatch: ClassVar[dict[type, Callable[..., None]]] = dict(pickle._Pickler.dispatch)

    def save_type(self, cls: type, *arguments: Any) -> None:
        """Write a class as its name; that of `_Config` is the post's."""
        if cls is not _Config:
            super().save_type(cls, *arguments)  # type: ignore[misc]
            return
        self.write(pickle.GLOBAL + f"{_MODULE}\n{_NAME}\n".encode())  # type: ignore[attr-defined]
        self.memoize(cls)  # type: ignore[attr-defined]

    dispatch[type] = save_type


def write(out: Outgoing) -> Written:
    """The file, as its `save_model` writes it."""
    require_sae(out, "post")
    require_variant(out, "post", ("relu",))
    require_plain_rows(out, "post")
    plain, notes = out.plain.centred(True), []
    if not plain.has_unit_rows:
        plain = plain.with_unit_rows()  # as its training leaves them, and its statistics take them
        notes.append("decoder rows were given norm 1, as the post's are: activations grow by the norm.")
    d_in, d_sae = plain.W_enc.shape
    origin = out.origin
    model = str(origin.model or "").removesuffix("-quickgelu")
    cfg = _Config()
    known = {
        "class_token": origin.token in (None, "cls"),
        "model_name": _HUB_NAME.get(model, origin.model) if origin.pretrained == "openai" else origin.model,
        "module_name": "resid" if origin.site in (None, "resid_post") else origin.site,
        "block_layer": origin.layer,
        "l1_coefficient": out.training.get("l1"),
        "lr": out.training.get("lr"),
        "lr_warm_up_steps": out.training.get("warmup"),
        "batch_size": out.training.get("batch_size"),
        "total_training_tokens": out.training.get("rows"),
        "seed": out.training.get("seed"),
    }
    vars(cfg).update({name: value for name, value in known.items() if value is not None})
    vars(cfg).update(
        d_in=d_in,
        d_sae=d_sae,
        expansion_factor=max(1, d_sae // d_in),
        device=torch.device("cpu"),
        dtype=torch.float32,
        thresher={**origin.to_json(), "version": out.version},
    )
    state = {name: getattr(plain, name).float().contiguous() for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    buffer = io.BytesIO()
    writer: Any = SimpleNamespace(Pickler=_Pickler, __name__="pickle")
    torch.save({"cfg": cfg, "state_dict": state}, buffer, pickle_module=writer)
    return Written(files={FILE: buffer.getvalue()}, notes=notes)


FORMAT = Format(
    name="post",
    looks_for=f"one .pt with a {_NAME}",
    find=find,
    read=read,
    write=write,
    file_name=FILE,
)

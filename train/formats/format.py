"""What a format is: how it is recognised, read and written."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor

from ...store.errors import StoreError
from ..models import SparseAutoencoder
from .origin import Origin
from .plain import PlainSae


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """An SAE from another library's files."""

    sae: SparseAutoencoder
    config: dict[str, Any]
    """The source's own fields, as JSON."""
    origin: Origin = field(default_factory=Origin)
    files: list[Path]
    """What was read."""
    notes: list[str] = field(default_factory=list)
    """What differs from the source, one line each."""


@dataclass(frozen=True, kw_only=True)
class Outgoing:
    """What a format may write of a run."""

    plain: PlainSae
    weights: bytes
    """The file of its weights as thresher holds them."""
    origin: Origin
    variant: str
    """As thresher names it, where a format knows fewer."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Options of its training by name; empty where it was not trained here."""
    density: Tensor | None = None
    """`(F,)` float64, where statistics were computed."""
    version: str = ""
    """Of thresher."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """Files of an export, by their name below its folder."""

    files: dict[str, bytes]
    notes: list[str] = field(default_factory=list)
    """What differs for a reader, one line each."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """Another library's files.

    Parameters
    ----------
    name
        As `--format` takes it.
    looks_for
        By what a folder or file is recognised.
    find
        The folder or file of this format at a place; None where there is none.
    read
        The SAE of what `find` gave.
    write
        Its files; `StoreError` where it cannot express the SAE.
    file_name
        Of a format that is one file, which OUT then may name itself; None of a folder.
    """

    name: str
    looks_for: str
    find: Callable[[Path], Path | None]
    read: Callable[[Path], Foreign]
    write: Callable[[Outgoing], Written]
    file_name: str | None = None


def finder(*names: str) -> Callable[[Path], Path | None]:
    """What recognises a folder by the names of files in it."""
    return lambda path: path if all((path / name).is_file() for name in names) else None


def refuse(name: str, what: str, instead: str = "saelens") -> StoreError:
    """The error of an SAE that a format cannot express."""
    return StoreError(f"{name} cannot hold {what}: nothing was written. Try --format {instead}.")


def require_variant(out: Outgoing, name: str, allowed: tuple[str, ...], *, instead: str = "saelens") -> None:
    """Refuse variants that a format does not have."""
    if out.variant not in allowed:
        raise refuse(name, f"an SAE of variant {out.variant} (it holds {', '.join(allowed)})", instead)


def require_plain_rows(out: Outgoing, name: str) -> None:
    """Refuse a norm of each row, which does not fold into weights."""
    if out.plain.rows != "none":
        raise refuse(name, f"a norm of each row ({out.plain.rows})")


def require_sae(out: Outgoing, name: str) -> None:
    """Refuse a transcoder."""
    if out.plain.is_transcoder:
        raise refuse(name, "a transcoder")


def tensors_to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """A safetensors file of float32 weights."""
    return to_safetensors({name: tensor.float().contiguous() for name, tensor in tensors.items()})


def json_to_bytes(record: Mapping[str, Any]) -> bytes:
    """A JSON file."""
    return json.dumps(record, indent=2).encode() + b"\n"


def as_json(value: Any) -> Any:
    """Plain data of a file as JSON holds it: what is neither number, text nor a list or object of these, as text."""
    if isinstance(value, Mapping):
        return {str(name): as_json(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(part) for part in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value).removeprefix("torch.") if isinstance(value, (torch.device, torch.dtype)) else repr(value)[:200]

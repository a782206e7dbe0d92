"""Thresher's own weights with what their run knows of its input: `sae.safetensors` and `thresher.json`."""

from pathlib import Path

from ...store.errors import StoreError
from ..models import load_sae
from .format import Foreign, Format, Outgoing, Written, finder, json_to_bytes
from .origin import Origin
from .reading import read_json, read_safetensors

RECORD, WEIGHTS = "thresher.json", "sae.safetensors"
_KIND = "thresher-export"


def read(path: Path) -> Foreign:
    """The SAE of a folder."""
    record = read_json(path / RECORD)
    if record.get("format") != _KIND:
        raise StoreError(f"{path / RECORD} is not the record of an export.")
    read_safetensors(path / WEIGHTS)  # for its errors, which do not advise on a training
    return Foreign(
        sae=load_sae(path / WEIGHTS),
        config=record,
        origin=Origin.from_json(record.get("origin")),
        files=[path / RECORD, path / WEIGHTS],
    )


def write(out: Outgoing) -> Written:
    """The folder's files; paths of the machine that trained it are left out."""
    record = {
        "format": _KIND,
        "version": out.version,
        "variant": out.variant,
        "origin": out.origin.to_json(),
        "training": dict(out.training),
    }
    return Written(files={RECORD: json_to_bytes(record), WEIGHTS: out.weights})


FORMAT = Format(
    name="thresher", looks_for=f"{RECORD} and {WEIGHTS}", find=finder(RECORD, WEIGHTS), read=read, write=write
)

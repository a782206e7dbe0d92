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
    <side>/of_vector/feature    int32    (m, 32) of each vector of the main set the nearest features, by falling
                                absolute cosine; -1 unfilled. Alignments of earlier versions lack these two
    <side>/of_vector/cosine     float32  (m, 32) their cosines, with their sign; NaN unfilled
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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .._version import __version__
from ..store.errors import StoreError
from ..store.files import write_atomically
from .alignment_numbers import side_numbers, summary
from .columns import codecs
from .folders import new_folder

if TYPE_CHECKING:
    from .alignment import Alignment

FORMAT_NAME = "thresher-alignment"
FORMAT_VERSION = 1
ALIGNMENT_ZARR, ALIGNMENT_JSON = "alignment.zarr", "alignment.json"

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
        of_side, sides[side.side] = side_numbers(side, alignment)
        arrays |= {f"{side.side}/{name}": values for name, values in of_side.items()}
    for images in alignment.images:
        arrays |= {f"neurons/{images.kind}/{name}": getattr(images.statistics, name) for name in _UNIT_ARRAYS}
    document = {
        "format": FORMAT_NAME,
        "format_version": FORMAT_VERSION,
        **summary(alignment, sides),
        "thresher": __version__,
    }
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

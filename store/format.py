"""Every name, dtype and version of the on-disk contract of an activation store. `FORMAT.md` is its page."""

import re
from dataclasses import dataclass
from typing import Any

FORMAT_NAME = "thresher-activation-store"
FORMAT_VERSION = 1

SITES = ("resid_post",)
TOKENS = ("cls",)

DTYPES = {"float16": "float16", "float32": "float32", "bfloat16": "uint16"}
"""Logical dtype of the activations -> dtype of the zarr array. zarr has no bfloat16: its bits are kept as uint16."""

FILL = {"float16": float("nan"), "float32": float("nan"), "bfloat16": 0x7FC0}
"""What an unwritten row reads as: NaN, so that a missing chunk can never pass for data."""

CODECS = ("none", "zstd", "blosc-lz4")

GROUP_JSON = "zarr.json"
CREATING = "creating"
"""File that stands in a store's folder from its creation's first byte until its metadata is whole."""

METADATA_RECORD = "commits/metadata.json"
ROW_IMAGE, ROW_LABEL, ROW_VALID = "rows/image", "rows/label", "rows/valid"
KEY_BLOB, KEY_OFFSET = "images/key_blob", "images/key_offset"
THUMBS = "thumbs"

STATIC_CHUNK = 1 << 20
"""Elements per chunk of the arrays that are written when the store is made (row ids, labels, keys)."""

ROWS_PER_CHUNK = 1024
THUMBNAIL_PX = 128


@dataclass(frozen=True, order=True)
class Site:
    """Where a vector is read: a layer, a site in its block, a token."""

    layer: int
    """0-based index of the residual block."""
    site: str = "resid_post"
    """`resid_post`: the output of the block."""
    token: str = "cls"
    """`cls`: the class token, one row an image."""

    @property
    def path(self) -> str:
        """Path of the array in the store: `layers/22/resid_post/cls`."""
        return f"layers/{self.layer}/{self.site}/{self.token}"

    @classmethod
    def parse(cls, path: str) -> "Site":
        """The site of an array's path.

        Raises
        ------
        ValueError
            When the path is not that of an activation array.
        """
        match = re.fullmatch(r"layers/(\d+)/(\w+)/(\w+)", path)
        if match is None:
            raise ValueError(f"{path!r} is not the path of an activation array (layers/<layer>/<site>/<token>)")
        return cls(int(match[1]), match[2], match[3])

    def __str__(self) -> str:
        return f"layer {self.layer} (0-based) {self.site} {self.token}"


def chunk_file(array_path: str, chunk: int, n_dims: int) -> str:
    """Path of a chunk's file, by zarr v3's default chunk key encoding: `layers/22/resid_post/cls/c/17/0`."""
    return f"{array_path}/c/{chunk}" + "/0" * (n_dims - 1)


def record_file(array_path: str, chunk: int) -> str:
    """Path of a chunk's commit record: `commits/layers/22/resid_post/cls/17.json`."""
    return f"commits/{array_path}/{chunk}.json"


def thumbs_record_file(chunk: int) -> str:
    """Path of the commit record of a chunk's thumbnails."""
    return f"commits/{THUMBS}/{chunk}.json"


def n_chunks(n_rows: int, rows_per_chunk: int) -> int:
    """Number of chunks that hold `n_rows` rows; the last may be ragged."""
    return -(-n_rows // rows_per_chunk)


def group_attributes(
    *,
    provenance: dict[str, Any],
    sites: tuple[Site, ...],
    d_in: int,
    n_rows: int,
    rows_per_chunk: int,
    codec: str,
    thumbnail_px: int | None,
    label_names: list[str] | None,
) -> dict[str, Any]:
    """The attributes of a store's group. Each is written once, when the store is made, and never changes."""
    return {
        "format": FORMAT_NAME,
        "version": FORMAT_VERSION,
        "n_rows": n_rows,
        "d_in": d_in,
        "rows_per_chunk": rows_per_chunk,
        "row_order": provenance["row_order"],
        "seed": provenance["seed"],
        "codec": codec,
        "arrays": [site.path for site in sites],
        "thumbnail_px": thumbnail_px,
        "label_names": label_names,
        "provenance": provenance,
    }

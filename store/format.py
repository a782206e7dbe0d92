"""Every name, dtype and version of the on-disk contract of an activation store. `FORMAT.md` is its page."""

import re
from dataclasses import dataclass

FORMAT_NAME = "thresher-activation-store"
FORMAT_VERSION = 1

SITES = ("resid_post", "resid_pre", "mlp_out", "attn_out", "mlp_act")
"""The block's output and input; what its MLP and its attention add; the MLP's hidden activations."""

TOKENS = ("cls", "patch", "mean", "all")
"""The class token; every patch token; the patch tokens' mean; the class token, then every patch token."""

DTYPES = {"float16": "float16", "float32": "float32", "bfloat16": "uint16"}
"""Logical dtype of the activations -> dtype of the zarr array. zarr has no bfloat16: its bits are kept as uint16."""

FILL = {"float16": float("nan"), "float32": float("nan"), "bfloat16": 0x7FC0}
"""What an unwritten row reads as: NaN, so that a missing chunk can never pass for data."""

CODECS = ("none", "zstd", "blosc-lz4")

GROUP_JSON = "zarr.json"
CREATING = "creating"
"""File that stands in a store's folder from its creation's first byte until its metadata is whole."""

METADATA_RECORD = "commits/metadata.json"
ROW_IMAGE, ROW_LABEL, ROW_VALID, ROW_TOKEN = "rows/image", "rows/label", "rows/valid", "rows/token"
KEY_BLOB, KEY_OFFSET = "images/key_blob", "images/key_offset"
THUMBS = "thumbs"
PARTS = "parts"
PART_RECORDS = "commits/parts"

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
    """One of `SITES`."""
    token: str = "cls"
    """One of `TOKENS`."""

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
        if match is None or match[2] not in SITES or match[3] not in TOKENS:
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


def thumbs_record_file(window: int) -> str:
    """Path of the commit record of a window's thumbnails."""
    return f"commits/{THUMBS}/{window}.json"


def thumbs_documents(window: int) -> list[str]:
    """Paths of the documents of a window's thumbnails."""
    return [f"{THUMBS}/{window}/zarr.json", *(f"{THUMBS}/{window}/{name}/zarr.json" for name in ("blob", "offset"))]


def thumbs_chunks(window: int) -> dict[str, str]:
    """Paths of the only chunks of a window's `blob` and `offset`."""
    return {name: chunk_file(f"{THUMBS}/{window}/{name}", 0, 1) for name in ("blob", "offset")}


def part_record_file(part: int) -> str:
    """Path of the record that makes another store a part of this one: `commits/parts/1.json`."""
    return f"{PART_RECORDS}/{part}.json"


def n_chunks(n_rows: int, rows_per_chunk: int) -> int:
    """Number of chunks that hold `n_rows` rows; the last may be ragged."""
    return -(-n_rows // rows_per_chunk)


def first_token(token: str) -> int:
    """Place in the tower's sequence of a store's first token: 0 is the class token, patches follow from 1."""
    return 1 if token == "patch" else 0

"""What fixes a store before its first row is written: its settings, its metadata, its size."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from . import format as f
from .codec import BLOSC_LEVEL, ZSTD_LEVEL
from .provenance import Provenance


@dataclass(frozen=True, kw_only=True)
class StoreSpec:
    """All that fixes a store before its first row is written."""

    provenance: Provenance
    sites: tuple[f.Site, ...]
    d_in: int
    n_rows: int
    rows_per_chunk: int = f.ROWS_PER_CHUNK
    dtype: str = "float16"
    codec: str = "none"
    thumbnail_px: int | None = f.THUMBNAIL_PX
    """Longer side of the thumbnails at most; None stores none."""
    label_names: list[str] | None = None

    def __post_init__(self) -> None:
        if self.n_rows < 1:
            raise ValueError("a store needs at least one row")
        if self.rows_per_chunk < 1:
            raise ValueError(f"rows_per_chunk must be at least 1, not {self.rows_per_chunk}")
        if self.dtype not in f.DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(f.DTYPES)}, not {self.dtype!r}")
        if self.codec not in f.CODECS:
            raise ValueError(f"codec must be one of {', '.join(f.CODECS)}, not {self.codec!r}")
        if not self.sites or len(set(self.sites)) != len(self.sites):
            raise ValueError("a store needs at least one site, each once")

    def attributes(self) -> dict[str, Any]:
        """The attributes of the group."""
        return f.group_attributes(
            provenance=self.provenance.to_json(),
            sites=self.sites,
            d_in=self.d_in,
            n_rows=self.n_rows,
            rows_per_chunk=self.rows_per_chunk,
            codec=self.codec,
            thumbnail_px=self.thumbnail_px,
            label_names=self.label_names,
        )


def predicted_bytes(spec: StoreSpec, *, thumbnail_bytes: float = 4000.0, key_bytes: float = 40.0) -> int:
    """Size of the finished store, in bytes, before any codec; commit records are not counted.

    Parameters
    ----------
    spec
        Of the store.
    thumbnail_bytes, key_bytes
        Mean size of one thumbnail and of one key.
    """
    itemsize = np.dtype(f.DTYPES[spec.dtype]).itemsize
    padded_rows = f.n_chunks(spec.n_rows, spec.rows_per_chunk) * spec.rows_per_chunk
    per_row = 4 + 4 + 1 + 8 + key_bytes + (thumbnail_bytes + 8 if spec.thumbnail_px else 0)
    return round(padded_rows * spec.d_in * itemsize * len(spec.sites) + spec.n_rows * per_row)


def keys_sha256(keys: Sequence[bytes], labels: NDArray[np.signedinteger[Any]]) -> str:
    """Digest of the images' keys and labels in source order."""
    digest = hashlib.sha256()
    for key in keys:
        digest.update(len(key).to_bytes(8, "little") + key)
    digest.update(labels.astype("<i4").tobytes())
    return digest.hexdigest()


def metadata_documents(spec: StoreSpec, keys: Sequence[bytes]) -> dict[str, bytes]:
    """Every zarr.json that is known when the store is made, by its path."""
    n_chunk = spec.rows_per_chunk
    dtype = np.dtype(f.DTYPES[spec.dtype])
    key_bytes = sum(len(key) for key in keys)
    logical = {"logical_dtype": spec.dtype}
    arrays = {
        site.path: array_document(
            (spec.n_rows, spec.d_in), (n_chunk, spec.d_in), dtype, f.FILL[spec.dtype], spec.codec, logical
        )
        for site in spec.sites
    }
    arrays[f.ROW_VALID] = array_document((spec.n_rows,), (n_chunk,), np.dtype(np.bool_), False, "none", {})
    for name, size, static_dtype, fill in (
        (f.ROW_IMAGE, spec.n_rows, np.uint32, 0),
        (f.ROW_LABEL, spec.n_rows, np.int32, -1),
        (f.KEY_BLOB, key_bytes, np.uint8, 0),
        (f.KEY_OFFSET, len(keys) + 1, np.uint64, 0),
    ):
        chunks = (min(f.STATIC_CHUNK, size),)
        arrays[name] = array_document((size,), chunks, np.dtype(static_dtype), fill, "none", {})
    groups = {parent for name in arrays for parent in _parents(name)}
    if spec.thumbnail_px is not None:
        groups.add(f.THUMBS)
    documents = {f"{name}/zarr.json": document for name, document in arrays.items()}
    documents |= {f"{name}/zarr.json": group_document({}) for name in sorted(groups)}
    documents[f.GROUP_JSON] = group_document(spec.attributes())
    return documents


def _parents(name: str) -> list[str]:
    parts = name.split("/")
    return ["/".join(parts[:i]) for i in range(1, len(parts))]


def group_document(attributes: dict[str, Any]) -> bytes:
    """The zarr.json of a group."""
    written: dict[str, Any] = {}
    zarr.create_group(zarr.storage.MemoryStore(written), attributes=attributes, zarr_format=3)
    return bytes(written["zarr.json"].to_bytes())


def array_document(
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    dtype: np.dtype[Any],
    fill: Any,
    codec: str,
    attributes: dict[str, Any],
) -> bytes:
    """The zarr.json of an array, with the checksum as its last codec."""
    written: dict[str, Any] = {}
    zarr.create_array(
        zarr.storage.MemoryStore(written),
        shape=shape,
        chunks=chunks,
        dtype=dtype,
        fill_value=fill,
        serializer="auto",
        compressors=_zarr_compressors(codec, dtype),
        filters=None,
        attributes=attributes,
        zarr_format=3,
    )
    return bytes(written["zarr.json"].to_bytes())


def _zarr_compressors(codec: str, dtype: np.dtype[Any]) -> list[Any]:
    compressor: list[Any] = []
    if codec == "zstd":
        compressor = [ZstdCodec(level=ZSTD_LEVEL)]
    elif codec == "blosc-lz4":
        compressor = [BloscCodec(typesize=dtype.itemsize, cname="lz4", clevel=BLOSC_LEVEL, shuffle="shuffle")]
    return [*compressor, Crc32cCodec()]

"""What fixes a store before its first row is written: its settings, its metadata, its size."""

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import add
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from . import format as f
from .codec import BLOSC_LEVEL, ZSTD_LEVEL
from .provenance import Provenance
from .records import crc32c, encode_record, to_hex
from .row_order import RowOrder

_KEY_LENGTH = struct.Struct("<Q")
_KEYS_AT_ONCE = 1 << 16  # digested together


@dataclass(frozen=True, kw_only=True)
class StoreSpec:
    """All that fixes a store before its first row is written."""

    provenance: Provenance
    sites: Mapping[f.Site, int]
    """Length of the vectors of each site."""
    n_images: int
    tokens_per_image: int = 1
    rows_per_chunk: int = f.ROWS_PER_CHUNK
    """Rows a chunk, and images a window."""
    dtype: str = "float16"
    codec: str = "none"
    thumbnail_px: int | None = f.THUMBNAIL_PX
    """Longer side of the thumbnails at most; None stores none."""
    label_names: list[str] | None = None

    def __post_init__(self) -> None:
        if self.n_images < 1:
            raise ValueError("a store needs at least one image")
        if not 1 <= self.tokens_per_image <= 1 << 16:
            raise ValueError(f"tokens_per_image must be 1 to 65536, not {self.tokens_per_image}")
        if self.rows_per_chunk < 1:
            raise ValueError(f"rows_per_chunk must be at least 1, not {self.rows_per_chunk}")
        if self.dtype not in f.DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(f.DTYPES)}, not {self.dtype!r}")
        if self.codec not in f.CODECS:
            raise ValueError(f"codec must be one of {', '.join(f.CODECS)}, not {self.codec!r}")
        if not self.sites:
            raise ValueError("a store needs at least one site")
        if len({site.token for site in self.sites}) > 1:
            raise ValueError("the sites of a store read the same tokens, so that row r is the same image in each")

    @property
    def n_rows(self) -> int:
        """Rows of the store: every token of every image."""
        return self.n_images * self.tokens_per_image

    def order(self) -> RowOrder:
        """The order of the rows."""
        return RowOrder(
            self.n_images,
            self.tokens_per_image,
            self.rows_per_chunk,
            self.provenance.row_order,
            self.provenance.seed,
        )

    def attributes(self) -> dict[str, Any]:
        """The attributes of the group. Each is written once, when the store is made, and never changes."""
        return {
            "format": f.FORMAT_NAME,
            "version": f.FORMAT_VERSION,
            "n_rows": self.n_rows,
            "n_images": self.n_images,
            "tokens_per_image": self.tokens_per_image,
            "rows_per_chunk": self.rows_per_chunk,
            "row_order": self.provenance.row_order,
            "seed": self.provenance.seed,
            "codec": self.codec,
            "arrays": [site.path for site in self.sites],
            "thumbnail_px": self.thumbnail_px,
            "label_names": self.label_names,
            "provenance": self.provenance.to_json(),
        }

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any], widths: Mapping[f.Site, int]) -> "StoreSpec":
        """The spec of a group's attributes, and of the lengths of its sites' vectors, which those do not hold.

        Raises
        ------
        StoreError
            When the provenance is that of another version.
        """
        provenance = Provenance.from_json(attributes["provenance"])
        return cls(
            provenance=provenance,
            sites={site: widths[site] for site in map(f.Site.parse, attributes["arrays"])},
            n_images=attributes["n_images"],
            tokens_per_image=attributes["tokens_per_image"],
            rows_per_chunk=attributes["rows_per_chunk"],
            dtype=provenance.dtype,
            codec=attributes["codec"],
            thumbnail_px=attributes["thumbnail_px"],
            label_names=attributes["label_names"],
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
    per_image = 8 + key_bytes + (thumbnail_bytes + 8 if spec.thumbnail_px else 0)
    per_row = 4 + 4 + 1 + (2 if spec.tokens_per_image > 1 else 0)
    rows_bytes = padded_rows * sum(spec.sites.values()) * itemsize
    return round(rows_bytes + spec.n_rows * per_row + spec.n_images * per_image)


def keys_sha256(keys: Sequence[bytes], labels: NDArray[np.signedinteger[Any]]) -> str:
    """Digest of the images' keys and labels in source order."""
    digest = hashlib.sha256()
    for start in range(0, len(keys), _KEYS_AT_ONCE):
        some = keys[start : start + _KEYS_AT_ONCE]
        digest.update(b"".join(map(add, map(_KEY_LENGTH.pack, map(len, some)), some)))
    digest.update(labels.astype("<i4").tobytes())
    return digest.hexdigest()


def metadata_documents(spec: StoreSpec, n_key_bytes: int) -> dict[str, bytes]:
    """Every zarr.json that is known when the store is made, by its path.

    Parameters
    ----------
    spec
        Of the store.
    n_key_bytes
        Bytes of all keys together.
    """
    n_chunk = spec.rows_per_chunk
    dtype = np.dtype(f.DTYPES[spec.dtype])
    logical = {"logical_dtype": spec.dtype}
    arrays = {
        site.path: array_document(
            (spec.n_rows, width),
            (n_chunk, width),
            dtype,
            f.FILL[spec.dtype],
            spec.codec,
            logical,
            ("row", "coordinate"),
        )
        for site, width in spec.sites.items()
    }
    arrays[f.ROW_VALID] = array_document((spec.n_rows,), (n_chunk,), np.dtype(np.bool_), False, "none", {}, ("row",))
    for name, (size, static_dtype, fill, dimension) in static_arrays(spec, n_key_bytes).items():
        chunks = (min(f.STATIC_CHUNK, size),)
        arrays[name] = array_document((size,), chunks, static_dtype, fill, "none", {}, (dimension,))
    groups = {parent for name in arrays for parent in _parents(name)}
    if spec.thumbnail_px is not None:
        groups.add(f.THUMBS)
    documents = {f"{name}/zarr.json": document for name, document in arrays.items()}
    documents |= {f"{name}/zarr.json": group_document({}) for name in sorted(groups)}
    documents[f.GROUP_JSON] = group_document(spec.attributes())
    return documents


def thumbnail_documents(window: int, n_blob_bytes: int, n_edges: int) -> dict[str, bytes]:
    """The documents of a window's thumbnails, by path."""
    blob = array_document((n_blob_bytes,), (n_blob_bytes,), np.dtype(np.uint8), 0, "none", {}, ("byte",))
    offset = array_document((n_edges,), (n_edges,), np.dtype(np.uint64), 0, "none", {}, ("edge",))
    return dict(zip(f.thumbs_documents(window), (group_document({}), blob, offset), strict=True))


def joining_document() -> bytes:
    """The zarr.json of a group that holds no rows and joins other stores."""
    return group_document({"format": f.FORMAT_NAME, "version": f.FORMAT_VERSION, "arrays": []})


def metadata_record(documents: Mapping[str, bytes]) -> bytes:
    """The text of `commits/metadata.json`: the checksum of each document, and the text of the group's own."""
    files = {name: to_hex(crc32c(document)) for name, document in sorted(documents.items())}
    return encode_record({"files": files, "group": documents[f.GROUP_JSON].decode()})


def static_arrays(spec: StoreSpec, n_key_bytes: int) -> dict[str, tuple[int, np.dtype[Any], int, str]]:
    """Size, dtype, fill value and name of the dimension of each array that is written when the store is made."""
    arrays: dict[str, tuple[int, np.dtype[Any], int, str]] = {
        f.ROW_IMAGE: (spec.n_rows, np.dtype(np.uint32), 0, "row"),
        f.ROW_LABEL: (spec.n_rows, np.dtype(np.int32), -1, "row"),
        f.KEY_BLOB: (n_key_bytes, np.dtype(np.uint8), 0, "key_byte"),
        f.KEY_OFFSET: (spec.n_images + 1, np.dtype(np.uint64), 0, "key_edge"),
    }
    if spec.tokens_per_image > 1:
        arrays[f.ROW_TOKEN] = (spec.n_rows, np.dtype(np.uint16), 0, "row")
    return arrays


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
    dimensions: tuple[str, ...],
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
        dimension_names=dimensions,
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

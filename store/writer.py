"""Writes a store: its metadata and keys once, then each chunk of rows once, in any order, by one process."""

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import format as f
from .codec import ChunkCodec, seal
from .errors import StoreError
from .files import FolderLock, write_all_atomically, write_atomically
from .layout import StoreSpec, array_document, group_document, metadata_documents
from .provenance import Provenance
from .records import crc32c, encode_record, to_hex, write_record

_FLOAT16_MAX = float(np.finfo(np.float16).max)


def create_store(
    path: str | Path,
    spec: StoreSpec,
    *,
    keys: Sequence[bytes],
    row_image: NDArray[np.unsignedinteger[Any]],
    row_label: NDArray[np.signedinteger[Any]],
    overwrite: bool = False,
) -> "StoreWriter":
    """Make a store that has no committed row yet.

    Parameters
    ----------
    path
        Folder to make.
    spec
        Of the store.
    keys
        Stable ids of the images in source order.
    row_image, row_label
        `(n_rows,)`: position of each row's image in `keys`, and its label (-1: none).
    overwrite
        Remove a store that stands there.

    Raises
    ------
    StoreError
        When something else stands there, or a store without `overwrite`.
    """
    path = Path(path)
    _clear(path, overwrite)
    path.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(path)
    write_atomically(path / f.CREATING, b"")
    documents = metadata_documents(spec, keys)
    write_all_atomically({path / name: [document] for name, document in documents.items() if name != f.GROUP_JSON})
    record = {"files": {name: to_hex(crc32c(document)) for name, document in sorted(documents.items())}}
    write_record(path / f.METADATA_RECORD, record)
    metadata_crc32c = to_hex(crc32c(encode_record(record)))
    offsets = np.concatenate(([0], np.cumsum([len(key) for key in keys], dtype=np.uint64))).astype(np.uint64)
    statics: dict[str, NDArray[Any]] = {
        f.ROW_IMAGE: row_image.astype(np.uint32),
        f.ROW_LABEL: row_label.astype(np.int32),
        f.KEY_BLOB: np.frombuffer(b"".join(keys), np.uint8),
        f.KEY_OFFSET: offsets,
    }
    for name, values in statics.items():
        for chunk in range(f.n_chunks(len(values), f.STATIC_CHUNK)):
            part = values[chunk * f.STATIC_CHUNK : (chunk + 1) * f.STATIC_CHUNK]
            padded = np.zeros(min(f.STATIC_CHUNK, len(values)), values.dtype)
            padded[: len(part)] = part
            parts, committed = encode_chunk(padded, ChunkCodec("none"))
            write_atomically(path / f.chunk_file(name, chunk, 1), *parts)
            write_record(path / f.record_file(name, chunk), committed | {"metadata_crc32c": metadata_crc32c})
    write_atomically(path / f.GROUP_JSON, documents[f.GROUP_JSON])
    (path / f.CREATING).unlink()
    return StoreWriter(path, spec, metadata_crc32c, lock)


def resume_store(path: str | Path, spec: StoreSpec) -> "StoreWriter":
    """Open a store that an earlier process began, to write the chunks that it did not commit.

    Raises
    ------
    StoreError
        When the store there would not hold the same rows, naming the first field that differs.
    """
    path = Path(path)
    found = read_group_attributes(path)
    again = f"run it with the same options, with another STORE, or with --overwrite to replace {path}"
    theirs = Provenance.from_json(found["provenance"])
    try:
        theirs.require_same_rows(spec.provenance, f"{path} was begun with other settings")
    except StoreError as error:
        raise StoreError(f"{error} To go on, {again}.") from None
    wanted = spec.attributes()
    for name in wanted:
        if name != "provenance" and wanted[name] != found[name]:
            raise StoreError(
                f"{path} was begun with other settings: {name} is {found[name]!r} there and {wanted[name]!r} here. "
                f"To go on, {again}."
            )
    lock = FolderLock(path)
    return StoreWriter(path, spec, to_hex(crc32c((path / f.METADATA_RECORD).read_bytes())), lock)


def read_group_attributes(path: Path) -> dict[str, Any]:
    """The attributes of a store's group.

    Raises
    ------
    StoreError
        When there is no store at `path`, or one of another version.
    """
    try:
        document = json.loads((path / f.GROUP_JSON).read_bytes())
        attributes = document["attributes"]
        name, version = attributes.get("format"), attributes.get("version")
    except (FileNotFoundError, NotADirectoryError):
        what = "does not exist" if not path.exists() else "holds no zarr.json: it is not an activation store"
        raise StoreError(f"{path} {what}. `thresher harvest IMAGES {path}` makes one.") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise StoreError(f"{path}/zarr.json is not the metadata of an activation store.") from None
    if name != f.FORMAT_NAME:
        raise StoreError(
            f"{path} is a zarr array or group, but not an activation store (its format attribute is {name!r})."
        )
    if version != f.FORMAT_VERSION:
        raise StoreError(f"{path} has version {version} of the store format; this Thresher reads {f.FORMAT_VERSION}.")
    return attributes


class StoreWriter:
    """Writes and commits the chunks of one store.

    A chunk is committed when each of its arrays has a commit record; the records are written after all of the bytes.
    """

    def __init__(self, path: Path, spec: StoreSpec, metadata_crc32c: str, lock: FolderLock) -> None:
        self.path, self.spec = path, spec
        self.n_chunks = f.n_chunks(spec.n_rows, spec.rows_per_chunk)
        self._metadata_crc32c = metadata_crc32c
        self._lock = lock
        self._codec = ChunkCodec(spec.codec)
        self.pending = [chunk for chunk in range(self.n_chunks) if not self._is_committed(chunk)]
        """Numbers of the chunks that are not committed, ascending."""

    def chunk_rows(self, chunk: int) -> tuple[int, int]:
        """First row of a chunk, and the row after its last."""
        start = chunk * self.spec.rows_per_chunk
        return start, min(start + self.spec.rows_per_chunk, self.spec.n_rows)

    def write_chunk(
        self,
        chunk: int,
        values: dict[f.Site, NDArray[np.float32]],
        valid: NDArray[np.bool_],
        unreadable: Iterable[tuple[int, str]] = (),
        thumbnails: Sequence[bytes | None] | None = None,
    ) -> None:
        """Write and commit one chunk.

        Parameters
        ----------
        chunk
            Its number.
        values
            `(n, d_in)` float32 for each site, n the rows of the chunk. Rows that are not valid may hold anything.
        valid
            `(n,)`; False where the image could not be read.
        unreadable
            (row, reason) of each row that is not valid.
        thumbnails
            WebP bytes of each row's image, None where there is none.

        Raises
        ------
        StoreError
            On a valid row that is not finite, or does not fit the store's dtype.
        """
        start, stop = self.chunk_rows(chunk)
        if set(values) != set(self.spec.sites) or valid.shape != (stop - start,):
            raise ValueError(f"chunk {chunk} needs {len(self.spec.sites)} sites of {stop - start} rows each")
        files: dict[Path, Sequence[bytes | memoryview]] = {}
        records: dict[str, dict[str, Any]] = {}
        common = {"rows": [start, stop], "metadata_crc32c": self._metadata_crc32c}
        for site, rows in values.items():
            block, max_abs = self._cast(rows, valid, site, start)
            path = self.path / f.chunk_file(site.path, chunk, 2)
            files[path], committed = encode_chunk(block, self._codec)
            committed |= {"max_abs": max_abs, "valid_rows": int(valid.sum())}
            records[f.record_file(site.path, chunk)] = committed | common
        padded = np.zeros(self.spec.rows_per_chunk, np.bool_)
        padded[: len(valid)] = valid
        files[self.path / f.chunk_file(f.ROW_VALID, chunk, 1)], committed = encode_chunk(padded, ChunkCodec("none"))
        reasons = [[int(row), reason] for row, reason in unreadable]
        committed |= {"valid_rows": int(valid.sum()), "unreadable": reasons}
        records[f.record_file(f.ROW_VALID, chunk)] = committed | common
        if self.spec.thumbnail_px is not None:
            pictures, record = _encode_thumbnails(chunk, stop - start, thumbnails)
            files |= {self.path / name: parts for name, parts in pictures.items()}
            records[f.thumbs_record_file(chunk)] = record
        write_all_atomically(files)
        write_all_atomically({self.path / name: [encode_record(record)] for name, record in records.items()})
        if chunk in self.pending:
            self.pending.remove(chunk)

    def close(self) -> None:
        """Let another process write here."""
        self._lock.close()

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _is_committed(self, chunk: int) -> bool:
        names = [f.record_file(site.path, chunk) for site in self.spec.sites] + [f.record_file(f.ROW_VALID, chunk)]
        if self.spec.thumbnail_px is not None:
            names.append(f.thumbs_record_file(chunk))
        return all((self.path / name).exists() for name in names)

    def _cast(
        self, rows: NDArray[np.float32], valid: NDArray[np.bool_], site: f.Site, start: int
    ) -> tuple[NDArray[Any], float]:
        if rows.shape != (len(valid), self.spec.d_in):
            raise ValueError(f"{site} needs rows of shape {(len(valid), self.spec.d_in)}, not {rows.shape}")
        magnitude = np.abs(rows).max(axis=1, initial=0.0)  # (n,), NaN where a coordinate is
        magnitude[~valid] = 0.0
        if not np.isfinite(magnitude).all():
            row = start + int(np.flatnonzero(~np.isfinite(magnitude))[0])
            raise StoreError(
                f"{site}: the activation of row {row} is not finite; the tower or its precision is at fault."
            )
        max_abs = float(magnitude.max(initial=0.0))
        block = np.full((self.spec.rows_per_chunk, self.spec.d_in), f.FILL[self.spec.dtype], f.DTYPES[self.spec.dtype])
        if self.spec.dtype == "float16" and max_abs > _FLOAT16_MAX:
            row = start + int(magnitude.argmax())
            raise StoreError(
                f"{site}: the activation of row {row} reaches {max_abs:.4g}, beyond float16's {_FLOAT16_MAX:.0f}. "
                "Harvest with --dtype bfloat16 or --dtype float32."
            )
        cast = to_bfloat16(rows) if self.spec.dtype == "bfloat16" else rows.astype(block.dtype, copy=False)
        block[: len(rows)][valid] = cast[valid]
        return block, max_abs


def _encode_thumbnails(
    chunk: int, n_rows: int, thumbnails: Sequence[bytes | None] | None
) -> tuple[dict[str, list[bytes | memoryview]], dict[str, Any]]:
    """The files of a chunk's thumbnails by path, and their commit record."""
    blobs = [blob or b"" for blob in (thumbnails if thumbnails is not None else [None] * n_rows)]
    if len(blobs) != n_rows:
        raise ValueError(f"chunk {chunk} needs {n_rows} thumbnails, not {len(blobs)}")
    folder = f"{f.THUMBS}/{chunk}"
    arrays: dict[str, NDArray[Any]] = {
        "blob": np.frombuffer(b"".join(blobs) or b"\0", np.uint8),
        "offset": np.concatenate(([0], np.cumsum([len(blob) for blob in blobs]))).astype(np.uint64),
    }
    documents = {f"{folder}/zarr.json": group_document({})} | {
        f"{folder}/{name}/zarr.json": array_document(values.shape, values.shape, values.dtype, 0, "none", {})
        for name, values in arrays.items()
    }
    files: dict[str, list[bytes | memoryview]] = {name: [document] for name, document in documents.items()}
    chunks = {}
    for name, values in arrays.items():
        files[f.chunk_file(f"{folder}/{name}", 0, 1)], chunks[name] = encode_chunk(values, ChunkCodec("none"))
    return files, {"files": {name: to_hex(crc32c(text)) for name, text in documents.items()}, "chunks": chunks}


def to_bfloat16(rows: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bits of bfloat16 values, rounded to nearest even; finite values only."""
    bits = np.ascontiguousarray(rows, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)


def encode_chunk(values: NDArray[Any], codec: ChunkCodec) -> tuple[list[bytes | memoryview], dict[str, Any]]:
    """The bytes of a chunk's file, in parts, and what its commit record says of them."""
    payload = codec.encode(values)
    checksum_bytes, checksum = seal(payload)
    return [payload, checksum_bytes], {"bytes": len(payload) + len(checksum_bytes), "crc32c": to_hex(checksum)}


def _clear(path: Path, overwrite: bool) -> None:
    if not path.exists():
        return
    if not path.is_dir():
        raise StoreError(f"{path} exists and is not a folder: name another STORE.")
    if not any(path.iterdir()):
        return
    if not (path / f.CREATING).exists():
        _require_store(path)
        if not overwrite:
            raise StoreError(f"{path} exists. Name another STORE, or replace it with --overwrite.")
        write_atomically(path / f.CREATING, b"")
    lock = FolderLock(path)
    (path / f.GROUP_JSON).unlink(missing_ok=True)
    for child in path.iterdir():
        if child.name != f.CREATING:
            shutil.rmtree(child) if child.is_dir() else child.unlink()
    lock.close()


def _require_store(path: Path) -> None:
    """Check that what stands at `path` is an activation store, so that it may be replaced.

    Raises
    ------
    StoreError
        When it is anything else.
    """
    try:
        read_group_attributes(path)
    except StoreError:
        raise StoreError(
            f"{path} is not empty and is not an activation store, so it is not replaced: name another STORE."
        ) from None

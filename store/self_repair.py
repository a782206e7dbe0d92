"""Makes damaged chunks and records of a part again from what the part holds beside them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import format as f
from .codec import CHECKSUM_BYTES, encode_chunk
from .errors import DamagedStoreError
from .image_digest import image_digest
from .layout import thumbnail_documents
from .metadata import self_checked_payload
from .part_files import ArrayFiles, PartFiles
from .records import corrected_record, crc32c, encode_record, to_hex
from .static import ordered_values

Key = tuple[str, int]
"""An array and the number of a chunk; `thumbs` and that of a window."""

Where = tuple[str, int | None]
"""The same, or what a problem names that is no chunk."""

OF_IMAGES = (f.KEY_BLOB, f.KEY_OFFSET, f.ROW_LABEL)
"""The arrays that the images alone tell."""


class SelfRepair:
    """The repair of one part without the images that it was made of.

    Parameters
    ----------
    files
        Of the part.
    how
        Told how each chunk was repaired.
    """

    def __init__(self, files: PartFiles, how: dict[Where, str]) -> None:
        self._files, self._how = files, how

    def repair(self, key: Key) -> bool:
        """Repair a chunk, or its record; gives whether that was possible."""
        name, chunk = key
        if name in (f.ROW_IMAGE, f.ROW_TOKEN):
            return self._write_from_order(name, chunk)
        record = self._record(key)
        if record is None:
            record = self._correct_record(key)
            if record is not None and self._stands(key, record):
                return True
        if name == f.ROW_VALID:
            return self._write_valid(chunk, record)
        if name == f.THUMBS and record is not None:
            self._write_thumbnail_documents(chunk, record)
            return self._stands(key, record)
        return False

    def _record(self, key: Key) -> dict[str, Any] | None:
        try:
            return self._files.parse_record(*key, self._files.objects.read_many([f.record_file(*key)])[0])
        except DamagedStoreError:
            return None

    def _correct_record(self, key: Key) -> dict[str, Any] | None:
        """Put one changed byte of a record right, if that is all that is wrong with it."""
        name = f.record_file(*key)
        data = self._files.objects.read_many([name])[0]
        corrected = corrected_record(data) if data is not None else None
        try:
            record = self._files.parse_record(*key, corrected)
        except DamagedStoreError:
            return None
        assert corrected is not None
        for path, checksum in self._checksums(key, record).items():
            payload = self_checked_payload(self._files.objects, path)
            if payload is not None and to_hex(crc32c(payload)) != checksum:
                return None  # another text with a right checksum by chance, or another chunk
        self._files.objects.write(name, corrected)
        self._how[key] = "one byte of its commit record was put right"
        return record

    def _checksums(self, key: Key, record: dict[str, Any]) -> dict[str, str]:
        """The checksum of each file that a record speaks for, by path."""
        if key[0] == f.THUMBS:
            return {path: record["chunks"][name]["crc32c"] for name, path in f.thumbs_chunks(key[1]).items()}
        return {self._files.array(key[0]).chunk_file(key[1]): record["crc32c"]}

    def _stands(self, key: Key, record: dict[str, Any]) -> bool:
        """Whether the files of a chunk are those of its record."""
        objects = self._files.objects
        for path, checksum in self._checksums(key, record).items():
            payload = self_checked_payload(objects, path)
            if payload is None or to_hex(crc32c(payload)) != checksum:
                return False
        documents: dict[str, str] = record.get("files", {})
        texts = objects.read_many(list(documents))
        return all(
            text is not None and to_hex(crc32c(text)) == checksum
            for text, checksum in zip(texts, documents.values(), strict=True)
        )

    def _write_from_order(self, name: str, chunk: int) -> bool:
        """Write the images or tokens of rows, which follow from the order alone, and their record."""
        array = self._files.array(name)
        start, stop = array.extent(chunk)
        values = np.zeros(array.chunk_shape, array.dtype)
        values[: stop - start] = ordered_values(self._files.spec, self._files.order, name, start, stop)
        parts, committed = encode_chunk(values, array.codec)
        self._write((name, chunk), parts, committed, "made again from the row order")
        return True

    def _write_valid(self, chunk: int, record: dict[str, Any] | None) -> bool:
        """Write which rows are valid, which follows from the list of unreadable images in their window's record."""
        files, t = self._files, self._files.spec.tokens_per_image
        first = chunk // t * t
        of_window = record if chunk == first else self._record((f.ROW_VALID, first))
        if of_window is None:
            return False
        array = files.array(f.ROW_VALID)
        start, stop = array.extent(chunk)
        values = np.zeros(array.chunk_shape, np.bool_)
        values[: stop - start] = True
        images = np.array([image for image, _ in of_window["unreadable"]], np.int64)
        rows = files.order.rows(images).ravel()
        values[rows[(rows >= start) & (rows < stop)] - start] = False
        parts, committed = encode_chunk(values, array.codec)
        if record is not None and committed["crc32c"] != record["crc32c"]:
            return False
        if record is not None:
            committed = record
        else:
            n_valid = int(values.sum())
            committed |= {"rows": [start, stop], "valid_rows": n_valid, "unreadable": []}
        self._write((f.ROW_VALID, chunk), parts, committed, "made again from the list of unreadable images")
        return True

    def _write_thumbnail_documents(self, window: int, record: dict[str, Any]) -> None:
        """Write the documents of thumbnails, which follow from their sizes."""
        n_blob, n_offset = (record["chunks"][name]["bytes"] - CHECKSUM_BYTES for name in ("blob", "offset"))
        texts = thumbnail_documents(window, n_blob, n_offset // np.dtype(np.uint64).itemsize)
        if all(to_hex(crc32c(texts[name])) == checksum for name, checksum in record["files"].items()):
            self._files.objects.write_all({name: [text] for name, text in texts.items()})
            self._how[f.THUMBS, window] = "its documents were made again from its sizes"

    def _write(self, key: Key, parts: list[bytes | memoryview], committed: dict[str, Any], how: str) -> None:
        identity = {"array": key[0], "chunk": key[1], "metadata_crc32c": self._files.metadata_crc32c}
        self._files.objects.write(self._files.array(key[0]).chunk_file(key[1]), *parts)
        self._files.objects.write(f.record_file(*key), encode_record({**identity, **committed}))
        self._how[key] = how

    def record_images(self, keys: Sequence[Key]) -> bool:
        """Record chunks of keys and labels that are whole, which the digest in the provenance proves."""
        files = self._files

        def read(array: ArrayFiles, chunk: int) -> NDArray[Any]:
            payload = self_checked_payload(files.objects, array.chunk_file(chunk))
            if payload is None or len(payload) != array.chunk_bytes:
                raise DamagedStoreError(f"{array.chunk_file(chunk)} is damaged")
            return np.frombuffer(payload, array.dtype)

        try:
            if image_digest(files, read) != files.spec.provenance.keys_sha256:
                return False
        except (DamagedStoreError, LookupError):  # LookupError: the size of the keys is not known
            return False
        for name, chunk in keys:
            parts, committed = encode_chunk(read(files.array(name), chunk), files.array(name).codec)
            self._write((name, chunk), parts, committed, "recorded again: the digest of keys and labels proves it")
        return True

"""What a store's metadata must be, from what is left of it where a file is damaged.

`commits/metadata.json` holds the checksum of every document (`zarr.json`) and the text of the group's; the others
follow from the group's attributes; every chunk's record names the checksum of `commits/metadata.json`. So each can be
made anew from the others, and the checksums prove that it is the same.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import format as f
from .codec import CHECKSUM_BYTES, ChunkCodec
from .errors import DamagedStoreError, StoreError, UnreachableStoreError
from .layout import StoreSpec, joining_document, metadata_documents, metadata_record
from .objects import Objects
from .records import corrected_record, crc32c, decode_record, to_hex

_ASKED = ("rows/image", "rows/label", "images/key_blob", "images/key_offset", "rows/valid")
_ASKED_CHUNKS = 3  # of each: their records name the metadata's checksum, and the most frequent one is believed

# What reading a text ends in that says what no store can be.
_IMPOSSIBLE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError, StoreError)


@dataclass(frozen=True)
class Metadata:
    """The metadata of one part, or of a store that only joins others."""

    record: bytes
    """Text of `commits/metadata.json`."""
    documents: dict[str, bytes | None]
    """Text of every `zarr.json` by its path; None where it is damaged and cannot be made anew."""
    wrong: dict[str, str]
    """What is wrong with each of these files as it stands, by path."""
    spec: StoreSpec | None
    """None for a store that only joins others."""

    @property
    def crc32c(self) -> str:
        """Checksum of the metadata record, which each chunk's record names."""
        return to_hex(crc32c(self.record))

    @property
    def lost(self) -> set[str]:
        """Documents that cannot be known."""
        return {name for name, text in self.documents.items() if text is None}

    @property
    def restorable(self) -> dict[str, bytes]:
        """The text that each file which is wrong must have, where that is known."""
        texts: dict[str, bytes | None] = {f.METADATA_RECORD: self.record, **self.documents}
        return {name: text for name in self.wrong if (text := texts[name]) is not None}


def recover_metadata(objects: Objects) -> Metadata:
    """The metadata of a store, proven by its checksums, whatever of its files is damaged.

    Raises
    ------
    DamagedStoreError
        When so much is damaged that it cannot be known.
    StoreError
        When it is that of another version.
    """
    on_disk = objects.read_many([f.METADATA_RECORD, f.GROUP_JSON])
    named = _named_by_chunks(objects)
    wrong: dict[str, str] = {}
    record, reason = _usable(on_disk[0], named)
    if record is None:
        wrong[f.METADATA_RECORD] = reason
        record = next(_rebuilt_records(objects, on_disk, named), None)
    if record is None:
        raise DamagedStoreError(f"{reason}, and what is left does not tell what it said")
    said = decode_record(record, f.METADATA_RECORD)
    attributes = json.loads(said["group"])["attributes"]
    if (attributes.get("format"), attributes.get("version")) != (f.FORMAT_NAME, f.FORMAT_VERSION):
        raise StoreError(
            f"{objects} has version {attributes.get('version')} of the store format, not {f.FORMAT_VERSION}."
        )
    found = objects.read_many(list(said["files"]))
    documents: dict[str, bytes | None] = {}
    for (name, checksum), text in zip(said["files"].items(), found, strict=True):
        is_whole = text is not None and to_hex(crc32c(text)) == checksum
        documents[name] = text if is_whole else None
        if text is None:
            wrong[name] = "is missing"
        elif not is_whole:
            wrong[name] = f"its bytes have checksum {to_hex(crc32c(text))}, {checksum} was committed"
    spec = _spec(objects, attributes, documents) if attributes["arrays"] else None
    # What these are made of may be a guess; their checksums tell.
    if any(text is None for text in documents.values()):
        derived = {**_derived(objects, spec, documents), f.GROUP_JSON: said["group"].encode()}
        for name, text in documents.items():
            if text is None and name in derived and to_hex(crc32c(derived[name])) == said["files"][name]:
                documents[name] = derived[name]
    return Metadata(record, documents, wrong, spec)


def array_size(document: bytes) -> int:
    """First axis of an array, from its document."""
    return int(json.loads(document)["shape"][0])


def _named_by_chunks(objects: Objects) -> str | None:
    """The checksum of the metadata record that the records of chunks name; None where none can be read."""
    names = [f.record_file(array, chunk) for array in _ASKED for chunk in range(_ASKED_CHUNKS)]
    votes: Counter[str] = Counter()
    for name, data in zip(names, objects.read_many(names), strict=True):
        if data is not None:
            try:
                votes[decode_record(data, name)["metadata_crc32c"]] += 1
            except (StoreError, KeyError):
                continue
    return votes.most_common(1)[0][0] if votes else None


def _usable(record: bytes | None, named: str | None) -> tuple[bytes | None, str]:
    """The metadata record as it stands if it is this store's, or None and what is wrong."""
    if record is None:
        return None, "is missing"
    try:
        decode_record(record, f.METADATA_RECORD)
    except StoreError:
        return None, "is damaged: its checksum does not match its text"
    if named is not None and to_hex(crc32c(record)) != named:
        return None, f"is that of another store: the records of the chunks name {named}, not {to_hex(crc32c(record))}"
    return record, ""


def _rebuilt_records(objects: Objects, on_disk: list[bytes | None], named: str | None) -> Iterator[bytes]:
    """Metadata records made anew that are proven by what the chunks' records name."""
    corrected = corrected_record(on_disk[0] or b"")
    if corrected is not None and to_hex(crc32c(corrected)) == named:
        yield corrected
    for group in _group_texts(on_disk):
        try:
            attributes = json.loads(group.decode())["attributes"]
            if not attributes["arrays"]:
                if named is None and group == joining_document():
                    yield metadata_record({f.GROUP_JSON: group})
                continue
            derived = _derived(objects, _spec(objects, attributes, {}), {}) | {f.GROUP_JSON: group}
        except UnreachableStoreError:
            raise
        except _IMPOSSIBLE:
            continue
        found = zip(derived, objects.read_many(list(derived)), strict=True)
        # Another version of zarr may write other texts: then those that stand are right, where none is damaged.
        standing = {name: text or derived[name] for name, text in found} | {f.GROUP_JSON: group}
        for documents in (derived, standing):
            record = metadata_record(documents)
            if to_hex(crc32c(record)) == named:
                yield record


def _group_texts(on_disk: list[bytes | None]) -> Iterator[bytes]:
    """Texts that the group's document may have: where it stands, and in a damaged metadata record."""
    record, group = on_disk
    if group is not None:
        yield group
    try:
        yield json.loads(record or b"")["group"].encode()
    except _IMPOSSIBLE:
        return


def _spec(objects: Objects, attributes: dict[str, Any], documents: dict[str, bytes | None]) -> StoreSpec:
    widths = {
        site: _width(objects, attributes, site, documents.get(f"{site.path}/zarr.json"))
        for site in map(f.Site.parse, attributes["arrays"])
    }
    return StoreSpec.from_attributes(attributes, widths)


def _width(objects: Objects, attributes: dict[str, Any], site: f.Site, document: bytes | None) -> int:
    """Length of a site's vectors: by its document if that is whole, else by its chunks, else as far as it may be."""
    if document is not None:
        return int(json.loads(document)["shape"][1])
    itemsize = np.dtype(f.DTYPES[attributes["provenance"]["dtype"]]).itemsize
    codec = ChunkCodec(attributes["codec"])
    for chunk in range(_ASKED_CHUNKS):
        payload = self_checked_payload(objects, f.chunk_file(site.path, chunk, 2))
        if payload is not None:
            values = codec.decode(payload, (-1,), np.dtype(np.uint8))
            return len(values) // (attributes["rows_per_chunk"] * itemsize)
    return _standing_size(objects, site.path, 1) or int(attributes["provenance"]["width"])


def _derived(objects: Objects, spec: StoreSpec | None, documents: dict[str, bytes | None]) -> dict[str, bytes]:
    """Every document as the spec gives it."""
    if spec is None:
        return {f.GROUP_JSON: joining_document()}
    return metadata_documents(spec, _n_key_bytes(objects, spec, documents.get(f"{f.KEY_BLOB}/zarr.json")))


def _n_key_bytes(objects: Objects, spec: StoreSpec, document: bytes | None) -> int:
    """Bytes of all keys: by their document if that is whole, else by their last edge, else as far as it may be."""
    if document is not None:
        return array_size(document)
    chunk, at = divmod(spec.n_images, f.STATIC_CHUNK)  # the last of n_images + 1 edges
    edges = self_checked_payload(objects, f.chunk_file(f.KEY_OFFSET, chunk, 1))
    if edges is not None:
        return int(np.frombuffer(edges, np.uint64)[at])
    blob = self_checked_payload(objects, f.chunk_file(f.KEY_BLOB, 0, 1))
    if blob is not None and len(blob) < f.STATIC_CHUNK:  # the only chunk
        return len(blob)
    return max(1, _standing_size(objects, f.KEY_BLOB, 0))


def self_checked_payload(objects: Objects, name: str) -> bytes | None:
    """The bytes of a chunk without its checksum; None where there are none or they do not agree with it."""
    data = objects.read_many([name])[0]
    return data[:-CHECKSUM_BYTES] if data is not None and is_self_consistent(data) else None


def is_self_consistent(data: bytes) -> bool:
    """Whether a chunk's file ends with the checksum of what it holds."""
    return crc32c(data[:-CHECKSUM_BYTES]).to_bytes(CHECKSUM_BYTES, "little") == data[-CHECKSUM_BYTES:]


def _standing_size(objects: Objects, array: str, axis: int) -> int:
    """A size of an array that its document gives, though this may be damaged; 0 where it gives none."""
    try:
        return int(json.loads(objects.read(f"{array}/zarr.json"))["shape"][axis])
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        return 0

"""Stores of several parts: finding them, adding to them, joining stores without rewriting a row."""

import posixpath
from os.path import relpath
from pathlib import Path
from typing import Any

from . import format as f
from .attributes import read_group_attributes
from .errors import DamagedStoreError, MissingStoreError, StoreError, UnfinishedStoreError
from .layout import joining_document, metadata_record
from .objects import Objects, is_url, open_objects
from .outside import require_outside_stores
from .part import StorePart, check_metadata, part_name, require_alike
from .records import VERIFY, encode_record, read_record


def open_parts(objects: Objects) -> list[StorePart]:
    """The parts of a store, its own rows first.

    Raises
    ------
    StoreError
        When there is no store, a part is missing, not finished, damaged, or not the one that was joined.
    """
    if objects.exists(f.CREATING) and not objects.exists(f.GROUP_JSON):
        raise UnfinishedStoreError(f"{objects} was not made whole: run the same `thresher harvest` again.")
    holds_rows = bool(read_group_attributes(objects).get("arrays"))  # missing: damaged, as the next line finds
    if not holds_rows:
        check_metadata(objects)
    parts = [StorePart(objects)] if holds_rows else []
    for _, record in part_references(objects):
        place = resolve_part(objects, record["url"])
        name = f"{part_name(record['url'])} of {objects}"
        try:
            part = StorePart(place, record["url"])
        except MissingStoreError:
            raise StoreError(
                f"{name} is not at {place}, where it was joined: put it back there, or join what is left with "
                "`thresher merge`."
            ) from None
        if part.fingerprint != record["fingerprint"]:
            raise DamagedStoreError(
                f"{name}, at {place}, is another store than was joined: its fingerprint is {part.fingerprint}, not "
                f"{record['fingerprint']}. Put the one that was joined back there."
            )
        parts.append(part)
    if not parts:
        raise UnfinishedStoreError(f"{objects} joins no store yet: run the same `thresher merge` again.")
    return parts


def next_part(objects: Objects) -> Objects:
    """Where the harvest that adds to a finished store writes: the next part's place below it."""
    return objects.child(f"{f.PARTS}/{len(part_references(objects)) + 1}")


def add_part(objects: Objects, other: Objects) -> None:
    """Make a finished store of one part a part of `objects`: one record, written atomically.

    Raises
    ------
    StoreError
        When its rows are of another kind, or its images are there already.
    """
    known, new = open_parts(objects), StorePart(other)
    _require_new(known, new)
    number = len(part_references(objects)) + 1
    record_part(objects, number, new, n_parts=number)


def merge_stores(places: list[str], out: str) -> int:
    """Join finished stores into one that holds references to them, and no row; gives the number of parts.

    Parameters
    ----------
    places
        Paths or URLs of the stores, in the order of their rows.
    out
        Of the store to make. On a disk it may be moved together with those it joins: it finds them by relative path.

    Raises
    ------
    StoreError
        When something stands at `out` or it lies inside a store, a store cannot be used, or their rows are of different
        kinds.
    """
    target = open_objects(out)
    if target.names():
        raise StoreError(f"{target} is not empty: name another OUT.")
    require_outside_stores(target, "OUT")
    parts: list[StorePart] = []
    for place in places:
        for part in open_parts(open_objects(place)):
            _require_new(parts, part)
            parts.append(part)
    document = joining_document()
    target.write(f.METADATA_RECORD, metadata_record({f.GROUP_JSON: document}))
    for number, part in enumerate(parts, start=1):
        record_part(target, number, part, n_parts=len(parts))
    target.write(f.GROUP_JSON, document)
    return len(parts)


def _require_new(parts: list[StorePart], new: StorePart) -> None:
    for part in parts:
        require_alike(part, new)
        if part.provenance.keys_sha256 == new.provenance.keys_sha256:
            raise StoreError(f"{new.objects} holds the same images as {part.objects}: each image belongs in one part.")


def record_part(objects: Objects, number: int, part: StorePart, *, n_parts: int) -> None:
    """Make a finished store the part `number` of `objects`, which has `n_parts` of them then."""
    record = {
        "part": number,
        "url": _reference(objects, part.objects),
        "fingerprint": part.fingerprint,
        "n_rows": part.n_rows,
        "n_parts": n_parts,
    }
    objects.write(f.part_record_file(number), encode_record(record))


def part_references(objects: Objects) -> list[tuple[int, dict[str, Any]]]:
    """Number and record of each part beyond the store's own rows."""
    names = objects.names(f.PART_RECORDS)
    numbers = sorted(int(name.removesuffix(".json")) for name in names if name.removesuffix(".json").isdecimal())
    if numbers != list(range(1, len(numbers) + 1)):
        raise DamagedStoreError(f"{objects} lacks the record of a part: it has those of {numbers}. {VERIFY}")
    records = []
    for number in numbers:
        record = read_record(objects, f.part_record_file(number))
        if record.get("part") != number:
            raise DamagedStoreError(f"{objects}/{f.part_record_file(number)} is that of part {record.get('part')}.")
        records.append((number, record))
    n_parts = max((record["n_parts"] for _, record in records), default=0)
    if n_parts > len(records):
        raise DamagedStoreError(f"{objects} lacks the records of parts: it has {len(records)} of {n_parts}. {VERIFY}")
    return records


def _reference(objects: Objects, part: Objects) -> str:
    if objects.local is not None and part.local is not None:
        return Path(relpath(part.local.resolve(), objects.local.resolve())).as_posix()
    below = f"{objects.url.rstrip('/')}/"
    if part.url.startswith(below):
        return part.url.removeprefix(below)
    return part.url if part.local is None else str(part.local.resolve())


def resolve_part(objects: Objects, reference: str) -> Objects:
    """The place of a part that its record names."""
    if is_url(reference) or posixpath.isabs(reference):
        return open_objects(reference)
    if objects.local is not None:
        return open_objects(objects.local / reference)
    return objects.child(reference)

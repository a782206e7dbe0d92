"""Finds the parts of a store, whatever is damaged of them or of the records that name them."""

import re
from dataclasses import dataclass, replace
from typing import Any

from . import format as f
from .attributes import read_group_attributes
from .errors import DamagedStoreError, StoreError, UnfinishedStoreError, UnreachableStoreError
from .metadata import Metadata, recover_metadata
from .objects import Objects
from .part_check import Problem
from .part_files import PartFiles
from .parts import resolve_part
from .records import decode_record

_CREATING = (
    "a harvest began to replace this store and was killed. To keep the store, delete this file or use --repair; to "
    "replace it, run that harvest again with --overwrite"
)


@dataclass
class FoundPart:
    """One part of a store, as far as it can be opened."""

    reference: str | None
    """Where it is, as the store names it; None for the store's own rows."""
    objects: Objects
    first_row: int | None
    """Number of its first row in the store; None where a part before it hides how many rows it has."""
    metadata: Metadata
    files: PartFiles | None
    """None for a store that only joins others."""

    def named(self, problem: Problem) -> Problem:
        """A problem in the store's words, from the part's."""
        rows = problem.rows
        if rows is not None:
            rows = None if self.first_row is None else (rows[0] + self.first_row, rows[1] + self.first_row)
        return replace(problem, part=self.reference, rows=rows)


def find_parts(objects: Objects) -> tuple[list[FoundPart], list[Problem]]:
    """The parts of a store, its own rows first, and what is wrong with their metadata.

    Raises
    ------
    StoreError
        When there is no store, or one that was not laid out.
    """
    if objects.exists(f.CREATING) and not objects.exists(f.GROUP_JSON):
        raise UnfinishedStoreError(f"{objects} was not made whole: run the same `thresher harvest` again.")
    if not objects.exists(f.METADATA_RECORD):
        read_group_attributes(objects)  # says what it is, if it is no store
    parts: list[FoundPart] = []
    problems: list[Problem] = []
    first_row: int | None = 0
    for place in [_Place(objects), *_joined_places(objects)]:
        n_rows = place.record["n_rows"] if place.record is not None else None
        if place.problem is not None:
            problems.append(place.problem)
        if place.objects is None:
            first_row = None if n_rows is None or first_row is None else first_row + n_rows
            continue
        found = _find(place, first_row, problems)
        if found is not None:
            parts.append(found)
            n_rows = found.files.spec.n_rows if found.files is not None else 0
        first_row = None if n_rows is None or first_row is None else first_row + n_rows
    return parts, problems


@dataclass(frozen=True)
class _Place:
    """Where rows of a store are."""

    objects: Objects | None
    """None where that is not known."""
    reference: str | None = None
    record: dict[str, Any] | None = None
    """Of a joined part; None where it is damaged, and for the store's own rows."""
    problem: Problem | None = None


def _find(place: _Place, first_row: int | None, problems: list[Problem]) -> FoundPart | None:
    assert place.objects is not None
    try:
        metadata = recover_metadata(place.objects)
    except UnreachableStoreError:
        raise
    except StoreError as error:
        problems.append(Problem(f.METADATA_RECORD, None, None, str(error), place.reference))
        return None
    files = PartFiles(place.objects, metadata) if metadata.spec is not None else None
    part = FoundPart(place.reference, place.objects, first_row, metadata, files)
    problems += [part.named(Problem(name, None, None, what)) for name, what in metadata.wrong.items()]
    if place.objects.exists(f.CREATING):
        problems.append(part.named(Problem(f.CREATING, None, None, _CREATING)))
    if place.record is not None and (files is None or files.fingerprint != place.record["fingerprint"]):
        there = files.fingerprint if files is not None else "that of no rows"
        what = f"another store is there than was joined: its fingerprint is {there}, not {place.record['fingerprint']}"
        problems.append(part.named(Problem(f.GROUP_JSON, None, None, what)))
    return part


def _joined_places(objects: Objects) -> list[_Place]:
    stems = (re.fullmatch(r"([1-9]\d*)\.json", name) for name in objects.names(f.PART_RECORDS))
    numbers = {int(stem[1]) for stem in stems if stem is not None}
    places: dict[int, _Place] = {}
    n_parts = max(numbers, default=0)
    for number in sorted(numbers):
        places[number] = _joined_place(objects, number)
        n_parts = max(n_parts, (places[number].record or {}).get("n_parts", 0))
    for number in range(1, n_parts + 1):
        if number not in places:
            what = f"is missing, though the store has {n_parts} joined parts"
            places[number] = _unrecorded(objects, number, what)
    return [places[number] for number in sorted(places)]


def _joined_place(objects: Objects, number: int) -> _Place:
    name = f.part_record_file(number)
    try:
        record = decode_record(objects.read(name), name)
        if record.get("part") != number:
            return _unrecorded(objects, number, f"is the record of part {record.get('part')}")
    except DamagedStoreError:
        return _unrecorded(objects, number, "is damaged: its checksum does not match its text")
    return _Place(resolve_part(objects, record["url"]), record["url"], record)


def _unrecorded(objects: Objects, number: int, what: str) -> _Place:
    """A part whose record cannot be believed: where an append would have put it, if a store is there."""
    reference = f"{f.PARTS}/{number}"
    place = objects.child(reference)
    is_there = place.exists(f.METADATA_RECORD) or place.exists(f.GROUP_JSON)
    problem = Problem(f.part_record_file(number), None, None, what)
    return _Place(place if is_there else None, reference, None, problem)

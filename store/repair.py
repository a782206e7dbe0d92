"""Repairs a store: everything that `verify` finds and that can be known or harvested again."""

import re
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from ..progress import Reporter
from . import format as f
from .errors import StoreError, UnreachableStoreError
from .found_parts import FoundPart, find_parts
from .metadata import recover_metadata
from .objects import Lock, Objects, open_objects
from .part import StorePart, require_alike
from .part_check import Problem, Repaired
from .part_files import PartFiles
from .part_repair import Harvest, PartRepair
from .parts import record_part, resolve_part
from .records import corrected_record, decode_record
from .verify import VerifyReport, verify_store


def repair_store(place: str | Path | Objects, harvest: Harvest, reporter: Reporter | None = None) -> VerifyReport:
    """Check every byte of a store and of its parts, and repair what is damaged, each part where it is.

    Metadata is made again from what is left of it, proven by checksums; records, row ids and thumbnails' documents from
    the chunks, the row order and each other; keys, labels and rows from the images. A file is replaced atomically, a
    chunk before its record: a repair that is killed is given again.

    Parameters
    ----------
    place
        Path or URL of the store.
    harvest
        Where images and rows are had.
    reporter
        Told how far it is, and of rows that are not, to the last bit, what they were.

    Returns
    -------
    What was found; its `problems` are those that are left, each with the reason.

    Raises
    ------
    StoreError
        When there is no store, it was not laid out, or another process writes it.
    """
    reporter = reporter or Reporter()
    objects = open_objects(place)
    _, problems = find_parts(objects)  # that there is a store
    with closing(_Locks()) as held:
        held.lock(objects)
        repaired = _correct_part_records(objects, problems)
        for part in find_parts(objects)[0]:
            held.lock(part.objects)
            repaired += _restore_metadata(part)
        report = verify_store(objects, reporter)
        left: list[Problem] = []
        parts, _ = find_parts(objects)
        for part in parts:
            here = [problem for problem in report.problems if problem.part == part.reference]
            if part.files is None or not here:
                left += here
                continue
            done, still = PartRepair(part.files, harvest, held, reporter).run(here)
            repaired += done
            left += [part.named(problem) for problem in still]
        known = {part.reference for part in parts}
        left += [problem for problem in report.problems if problem.part not in known]
        recorded = _record_standing_parts(objects, left)
        repaired += recorded
        left = [problem for problem in left if problem not in [done.problem for done in recorded]]
    report.problems, report.repaired = left, repaired
    return report


class _Locks:
    """Places held against other writers, until closed."""

    def __init__(self) -> None:
        self._held: dict[str, Lock] = {}

    def lock(self, objects: Objects) -> None:
        """Hold one more place."""
        if objects.url not in self._held:
            self._held[objects.url] = objects.lock()

    def close(self) -> None:
        """Release all of them."""
        for lock in self._held.values():
            lock.close()


def _restore_metadata(part: FoundPart) -> list[Repaired]:
    """Write the metadata of a part that can be known; then let go of a replacement that was begun."""
    metadata, repaired = part.metadata, []
    texts = metadata.restorable
    # The group's document last, as when a store is made.
    for name in sorted(texts, key=lambda name: name == f.GROUP_JSON):
        part.objects.write(name, texts[name])
        problem = Problem(name, None, None, metadata.wrong[name])
        repaired.append(Repaired(part.named(problem), "made again from the rest of the metadata"))
    if not metadata.lost and part.objects.exists(f.CREATING):
        part.objects.delete([f.CREATING])
        problem = Problem(f.CREATING, None, None, "a harvest began to replace this store and was killed")
        repaired.append(Repaired(part.named(problem), "removed: the store is kept"))
    return repaired


def _correct_part_records(objects: Objects, problems: Sequence[Problem]) -> list[Repaired]:
    """Put one changed byte of the record of a part right, if that is all that is wrong with it."""
    repaired = []
    for problem, number in _of_part_records(problems):
        data = objects.read_many([problem.array])[0]
        corrected = corrected_record(data) if data is not None else None
        if corrected is not None and _names_its_part(objects, number, decode_record(corrected, problem.array)):
            objects.write(problem.array, corrected)
            repaired.append(Repaired(problem, "one byte was put right"))
    return repaired


def _names_its_part(objects: Objects, number: int, record: dict[str, Any]) -> bool:
    try:
        place = resolve_part(objects, record["url"])
        metadata = recover_metadata(place)
    except UnreachableStoreError:
        raise
    except (StoreError, LookupError, ValueError):
        return False
    is_there = metadata.spec is not None and PartFiles(place, metadata).fingerprint == record.get("fingerprint")
    return is_there and record.get("part") == number


def _record_standing_parts(objects: Objects, problems: Sequence[Problem]) -> list[Repaired]:
    """Record again the parts that stand where an append puts them."""
    repaired = []
    for problem, number in _of_part_records(problems):
        try:
            part = StorePart(objects.child(f"{f.PARTS}/{number}"))
            require_alike(StorePart(objects), part)
        except UnreachableStoreError:
            raise
        except StoreError:
            continue
        record_part(objects, number, part, n_parts=number)
        repaired.append(Repaired(problem, f"made again from {f.PARTS}/{number}, which is whole"))
    return repaired


def _of_part_records(problems: Sequence[Problem]) -> list[tuple[Problem, int]]:
    """Problems of the records of parts, with the part's number."""
    found = [(problem, re.fullmatch(rf"{f.PART_RECORDS}/(\d+)\.json", problem.array)) for problem in problems]
    return [(problem, int(match[1])) for problem, match in found if match is not None and problem.part is None]

"""Checks every byte of a store against what was committed."""

import os
import re
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ..progress import Reporter
from . import format as f
from .errors import DamagedStoreError, StoreError, UnreachableStoreError
from .found_parts import FoundPart, find_parts
from .image_digest import image_digest
from .objects import Objects, is_url, open_objects
from .part import StorePart
from .part_check import Checked, PartCheck, Problem, Repaired

_LOCAL_THREADS = 8  # at most; as many as cores
_REMOTE_THREADS = 4  # each asks for many objects at once, and a process for `connections.IN_FLIGHT` in all
_CHUNKS_AT_ONCE = 32
_BYTES_AT_ONCE = 32 << 20  # of one thread, where chunks come side by side
_THUMBNAILS_AT_ONCE = 8  # windows: their blobs are a few megabytes each

Task = Callable[[], Checked]


@dataclass
class VerifyReport:
    """What a verification found."""

    n_chunks: int = 0
    """Chunks of every array, and windows of thumbnails, that were gone through."""
    n_bytes: int = 0
    """Of those that are as they were committed."""
    problems: list[Problem] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    """Files that belong to no array: temporary files of a killed writer, or strangers. They are never read. A folder
    of `parts/` that is not one of the store's parts is named as a whole."""
    repaired: list[Repaired] = field(default_factory=list)
    """What was damaged before; see `repair.repair_store`."""


def verify_store(
    place: str | Path | Objects, reporter: Reporter | None = None, *, threads: int | None = None
) -> VerifyReport:
    """Read every byte of a store and of its parts; report each that differs from what was committed.

    Memory is bounded by the threads and the size of a chunk. A store whose harvest did not finish is checked as far as
    it was written.

    Parameters
    ----------
    place
        Path or URL of the store.
    reporter
        Told how far it is.
    threads
        That read and check; by default the cores of this process, eight at most.

    Raises
    ------
    StoreError
        When there is no store at `place`, or it was not even laid out.
    """
    reporter = reporter or Reporter()
    objects = open_objects(place)
    report = VerifyReport()
    parts, report.problems = find_parts(objects)
    checks = [(part, PartCheck(part.files)) for part in parts if part.files is not None]
    with reporter.task("verify", sum(check.n_chunks for _, check in checks), "chunks") as task:
        for part, check in checks:
            found: list[Problem] = []
            for checked in run_ahead(_tasks(check), threads or _default_threads(part.objects)):
                report.n_chunks += checked.n_chunks
                report.n_bytes += checked.n_bytes
                found += checked.problems
                task.advance(checked.n_chunks, damaged=len(report.problems) + len(found))
            found += whole_part_problems(check, found)
            report.problems += [part.named(problem) for problem in found]
    report.leftovers = sorted(_leftovers(objects, parts))
    report.problems += [_lost_part(name) for name in report.leftovers if _is_finished_addition(objects, name)]
    return report


def _is_finished_addition(objects: Objects, folder: str) -> bool:
    """Whether a leftover is a folder below `parts/` that holds a whole store."""
    if not (folder.startswith(f"{f.PARTS}/") and folder.endswith("/")):
        return False
    try:
        StorePart(objects.child(folder.rstrip("/")))
    except UnreachableStoreError:
        raise
    except StoreError:
        return False  # an addition that was not finished
    return True


def _lost_part(folder: str) -> Problem:
    return Problem(
        f.part_record_file(int(folder.split("/")[1])),
        None,
        None,
        f"is missing, though {folder} holds a finished store: the record was lost, or `harvest --append` was killed "
        "before it wrote it. Run that harvest again, or use --repair",
    )


def run_ahead(tasks: Iterator[Task], threads: int) -> Iterator[Checked]:
    """The results of tasks, in their order; a few more than there are threads are begun ahead."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="thresher-verify")
    begun: deque[Future[Checked]] = deque()
    try:
        for task in tasks:
            begun.append(pool.submit(task))
            if len(begun) > 2 * threads:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _default_threads(objects: Objects) -> int:
    return min(_LOCAL_THREADS, len(os.sched_getaffinity(0))) if objects.local is not None else _REMOTE_THREADS


def _tasks(check: PartCheck) -> Iterator[Task]:
    files = check.files
    for array in [*files.row_arrays, *files.static_arrays]:
        n = max(1, min(_CHUNKS_AT_ONCE, _BYTES_AT_ONCE // array.chunk_bytes))
        for first in range(0, array.n_chunks, n):
            yield partial(check.chunks, array, range(first, min(first + n, array.n_chunks)))
    for first in range(0, files.n_thumbnail_windows, _THUMBNAILS_AT_ONCE):
        windows = range(first, min(first + _THUMBNAILS_AT_ONCE, files.n_thumbnail_windows))
        yield partial(check.thumbnails, windows)


def whole_part_problems(check: PartCheck, found: list[Problem]) -> list[Problem]:
    """What no chunk shows by itself: keys and labels that are not those of the provenance, windows without a record.

    Parameters
    ----------
    check
        Of the part.
    found
        What is wrong with its chunks.
    """
    files, problems = check.files, []
    if check.unfinished:
        rows = [files.order.window_rows(window) for window in check.unfinished]
        done = files.spec.n_rows - sum(stop - start for start, stop in rows)
        problems.append(
            Problem(
                f"commits/{f.ROW_VALID}",
                None,
                (min(rows)[0], max(rows)[1]),
                f"the harvest did not finish: {done:,} of {files.spec.n_rows:,} rows are committed. Run the same "
                "`thresher harvest` again to resume it",
            )
        )
    digested = {f.KEY_BLOB, f.KEY_OFFSET, f.ROW_LABEL}
    if f"{f.KEY_BLOB}/zarr.json" not in files.metadata.lost and not digested & {problem.array for problem in found}:
        try:
            digest = image_digest(files)
            if digest != files.spec.provenance.keys_sha256:
                raise DamagedStoreError(
                    f"keys and labels have digest {digest}, the provenance names {files.spec.provenance.keys_sha256}"
                )
        except DamagedStoreError as error:
            problems.append(Problem("images", None, None, str(error)))
    return problems


def _leftovers(objects: Objects, parts: list[FoundPart]) -> Iterator[str]:
    """Files that belong to nothing, by their names in the store; an addition that is not part of it by its folder."""
    known = {part.reference: _files_of(part) for part in parts}
    joined = range(1, len(objects.names(f.PART_RECORDS)) + 1)
    known.setdefault(None, set()).update(f.part_record_file(number) for number in joined)
    folders = {name for name in known if name is not None}
    additions = set()
    for name, _ in objects.walk():
        folder = next((folder for folder in folders if name.startswith(f"{folder}/")), None)
        addition = re.match(rf"{f.PARTS}/[1-9]\d*/", name) if folder is None else None
        if addition is not None:
            additions.add(addition[0])
        elif (name if folder is None else name.removeprefix(f"{folder}/")) not in known[folder]:
            yield name
    yield from additions
    for part in parts:
        if part.reference is not None and (is_url(part.reference) or part.reference.startswith(("../", "/"))):
            for name, _ in part.objects.walk():
                # Where it has parts of its own, those were joined one by one.
                if name not in known[part.reference] and not name.startswith((f"{f.PARTS}/", f"{f.PART_RECORDS}/")):
                    yield f"{part.reference}/{name}"


def _files_of(part: FoundPart) -> set[str]:
    known = {f.METADATA_RECORD, f.CREATING, *part.metadata.documents}
    files = part.files
    if files is None:
        return known
    for array in [*files.row_arrays, *files.static_arrays]:
        for chunk in range(array.n_chunks):
            known.add(array.chunk_file(chunk))
            known.add(f.record_file(array.name, chunk))
    for window in range(files.n_thumbnail_windows):
        known |= {f.thumbs_record_file(window), *f.thumbs_documents(window), *f.thumbs_chunks(window).values()}
    return known

"""Checks every byte of a store against what was committed."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..progress import Reporter
from . import format as f
from .chunks import ChunkReader
from .codec import unseal
from .errors import StoreError, UnfinishedStoreError
from .objects import Objects, open_objects
from .part import StorePart
from .parts import open_parts, part_references
from .records import crc32c, read_record, to_hex


@dataclass(frozen=True)
class Problem:
    """One thing in a store that is not as it was committed."""

    array: str
    """Path of the array, or of the file where it belongs to none."""
    chunk: int | None
    rows: tuple[int, int] | None
    """First row of the chunk and the row after its last, for the arrays that hold rows."""
    what: str

    def __str__(self) -> str:
        where = self.array
        if self.chunk is not None:
            where += f", chunk {self.chunk}"
        if self.rows is not None:
            where += f", rows {self.rows[0]:,} to {self.rows[1] - 1:,}"
        return f"{where}: {self.what}"


@dataclass
class VerifyReport:
    """What a verification found."""

    n_chunks: int = 0
    n_bytes: int = 0
    problems: list[Problem] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    """Files that belong to no array: temporary files of a killed writer, or strangers. They are never read."""


def verify_store(place: str | Path | Objects, reporter: Reporter | None = None) -> VerifyReport:
    """Read every byte of a store and of its parts; report each that differs from what was committed.

    Raises
    ------
    StoreError
        When there is no store at `place`, its harvest has not finished, or its metadata does not even say which
        arrays it holds.
    """
    reporter = reporter or Reporter()
    objects = open_objects(place)
    report = VerifyReport()
    try:
        parts = open_parts(objects)
    except UnfinishedStoreError:
        raise
    except StoreError as error:
        if not objects.exists(f.METADATA_RECORD):
            raise
        report.problems += _metadata_problems(objects)
        if not report.problems:
            report.problems.append(Problem(str(objects), None, None, str(error)))
        return report
    total = sum(sum(array.n_chunks for array in _arrays(part)) + _n_thumbnails(part) for part in parts)
    with reporter.task("verify", total, "chunks") as task:
        for part in parts:
            report.problems += _metadata_problems(part.objects)
            for array in _arrays(part):
                for chunk in range(array.n_chunks):
                    report.problems += _chunk_problems(part, array, chunk, report)
                    task.advance(1, damaged=len(report.problems))
            for window in range(_n_thumbnails(part)):
                report.problems += _thumbnail_problems(part, window, report)
                task.advance(1, damaged=len(report.problems))
    report.leftovers = sorted(_leftovers(objects, parts))
    return report


def _arrays(part: StorePart) -> list[ChunkReader]:
    names = [f.ROW_VALID, *(site.path for site in part.sites), f.ROW_IMAGE, f.ROW_LABEL, f.KEY_BLOB, f.KEY_OFFSET]
    if part.tokens_per_image > 1:
        names.append(f.ROW_TOKEN)
    return [part.array(name) for name in names]


def _n_thumbnails(part: StorePart) -> int:
    return part.order.n_windows if part.thumbnail_px else 0


def _metadata_problems(objects: Objects) -> list[Problem]:
    try:
        files = read_record(objects, f.METADATA_RECORD)["files"]
    except StoreError as error:
        return [Problem(f.METADATA_RECORD, None, None, str(error))]
    return list(_document_problems(objects, files))


def _document_problems(objects: Objects, files: dict[str, str]) -> Iterator[Problem]:
    for (name, checksum), document in zip(files.items(), objects.read_many(list(files)), strict=True):
        if document is None:
            yield Problem(name, None, None, "is missing")
            continue
        found = to_hex(crc32c(document))
        if found != checksum:
            yield Problem(name, None, None, f"its bytes have checksum {found}, {checksum} was committed")


def _chunk_problems(part: StorePart, array: ChunkReader, chunk: int, report: VerifyReport) -> Iterator[Problem]:
    rows = None
    if array.name == f.ROW_VALID or array.name.startswith("layers/"):
        start = chunk * part.rows_per_chunk
        rows = (start, min(start + part.rows_per_chunk, part.n_rows))
    try:
        record = array.record(chunk)
        values = array.load_chunk(chunk)
    except (StoreError, OSError) as error:
        yield Problem(array.name, chunk, rows, str(error))
        return
    report.n_chunks += 1
    report.n_bytes += record["bytes"]
    if rows is not None:
        yield from _row_problems(part, array.name, chunk, rows, record, values)


def _row_problems(
    part: StorePart, name: str, chunk: int, rows: tuple[int, int], record: dict[str, Any], values: Any
) -> Iterator[Problem]:
    n = rows[1] - rows[0]
    if record["rows"] != list(rows):
        yield Problem(name, chunk, rows, f"its record speaks of rows {record['rows']}")
    here = np.searchsorted(part.positions.invalid_rows, rows)
    valid = np.ones(n, np.bool_)
    valid[part.positions.invalid_rows[here[0] : here[1]] - rows[0]] = False
    if name == f.ROW_VALID:
        if not np.array_equal(values[:n], valid):
            yield Problem(name, chunk, rows, "its rows and its records name different unreadable images")
        return
    if part.provenance.dtype == "bfloat16":
        finite = (values[:n] & 0x7F80) != 0x7F80  # the exponent bits of bfloat16
    else:
        finite = np.isfinite(values[:n])
    if not (finite.all(axis=1) == valid).all():
        yield Problem(name, chunk, rows, "a row of a readable image is not finite, or one of an unreadable image is")


def _thumbnail_problems(part: StorePart, window: int, report: VerifyReport) -> Iterator[Problem]:
    folder = f"{f.THUMBS}/{window}"
    try:
        record = part.thumbnails_record(window)
        for name, committed in record["chunks"].items():
            path = f.chunk_file(f"{folder}/{name}", 0, 1)
            unseal(part.objects.read(path), int(committed["crc32c"], 16), f"{part.objects}/{path}")
            report.n_bytes += committed["bytes"]
    except (StoreError, OSError) as error:
        yield Problem(folder, window, None, str(error))
        return
    report.n_chunks += 1
    yield from _document_problems(part.objects, record["files"])


def _leftovers(objects: Objects, parts: list[StorePart]) -> Iterator[str]:
    known = {f.METADATA_RECORD, f.GROUP_JSON, *(f.part_record_file(number) for number, _ in part_references(objects))}
    for part in parts:
        if part.objects.url == objects.url:
            known |= _files_of(part)
    for name, _ in objects.walk():
        # What lies below parts/ are stores of their own.
        if name not in known and not name.startswith(f"{f.PARTS}/"):
            yield name


def _files_of(part: StorePart) -> set[str]:
    known = {f.METADATA_RECORD, *read_record(part.objects, f.METADATA_RECORD)["files"]}
    for array in _arrays(part):
        for chunk in range(array.n_chunks):
            known.add(f.chunk_file(array.name, chunk, len(array.shape)))
            known.add(f.record_file(array.name, chunk))
    for window in range(_n_thumbnails(part)):
        known.add(f.thumbs_record_file(window))
        known.add(f"{f.THUMBS}/{window}/zarr.json")
        for name in ("blob", "offset"):
            known |= {f"{f.THUMBS}/{window}/{name}/zarr.json", f"{f.THUMBS}/{window}/{name}/c/0"}
    return known

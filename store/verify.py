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
from .reader import ActivationStore
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


def verify_store(path: str | Path, reporter: Reporter | None = None) -> VerifyReport:
    """Read every byte of a store; report each that differs from what was committed.

    Raises
    ------
    StoreError
        When there is no store at `path`, its harvest has not finished, or its metadata does not even say which
        arrays it holds.
    """
    reporter = reporter or Reporter()
    root = Path(path)
    report = VerifyReport()
    try:
        store = ActivationStore(root)
    except UnfinishedStoreError:
        raise
    except StoreError as error:
        if not (root / f.METADATA_RECORD).exists():
            raise
        report.problems += _metadata_problems(root)
        if not report.problems:
            report.problems.append(Problem(str(root), None, None, str(error)))
        return report
    report.problems += _metadata_problems(root)
    metadata_crc32c = to_hex(crc32c((root / f.METADATA_RECORD).read_bytes()))
    arrays = [f.ROW_VALID, *(site.path for site in store.sites), f.ROW_IMAGE, f.ROW_LABEL, f.KEY_BLOB, f.KEY_OFFSET]
    readers = [ChunkReader(root, name) for name in arrays]
    total = sum(reader.n_chunks for reader in readers) + (store.n_chunks if store.thumbnail_px else 0)
    with reporter.task("verify", total, "chunks") as task:
        for reader in readers:
            for chunk in range(reader.n_chunks):
                report.problems += _chunk_problems(store, reader, chunk, metadata_crc32c, report)
                task.advance(1, damaged=len(report.problems))
        if store.thumbnail_px:
            for chunk in range(store.n_chunks):
                report.problems += _thumbnail_problems(root, chunk, report)
                task.advance(1, damaged=len(report.problems))
    report.leftovers = sorted(_leftovers(root, store, readers))
    return report


def _metadata_problems(root: Path) -> list[Problem]:
    try:
        files = read_record(root / f.METADATA_RECORD)["files"]
    except StoreError as error:
        return [Problem(f.METADATA_RECORD, None, None, str(error))]
    return list(_document_problems(root, files))


def _document_problems(root: Path, files: dict[str, str]) -> Iterator[Problem]:
    for name, checksum in files.items():
        try:
            found = to_hex(crc32c((root / name).read_bytes()))
        except OSError as error:
            yield Problem(name, None, None, f"cannot be read ({error.strerror})")
            continue
        if found != checksum:
            yield Problem(name, None, None, f"its bytes have checksum {found}, {checksum} was committed")


def _chunk_problems(
    store: ActivationStore, reader: ChunkReader, chunk: int, metadata_crc32c: str, report: VerifyReport
) -> Iterator[Problem]:
    rows = None
    if reader.name == f.ROW_VALID or reader.name.startswith("layers/"):
        start = chunk * store.rows_per_chunk
        rows = (start, min(start + store.rows_per_chunk, store.n_rows))
    try:
        record = reader.record(chunk)
        values = reader.load_chunk(chunk)
    except (StoreError, OSError) as error:
        yield Problem(reader.name, chunk, rows, str(error))
        return
    report.n_chunks += 1
    report.n_bytes += record["bytes"]
    if record["metadata_crc32c"] != metadata_crc32c:
        yield Problem(reader.name, chunk, rows, "was committed under other metadata: it comes from another store")
    if rows is not None:
        yield from _row_problems(store, reader.name, chunk, rows, record, values)


def _row_problems(
    store: ActivationStore, name: str, chunk: int, rows: tuple[int, int], record: dict[str, Any], values: Any
) -> Iterator[Problem]:
    n = rows[1] - rows[0]
    if record["rows"] != list(rows):
        yield Problem(name, chunk, rows, f"its record speaks of rows {record['rows']}")
    if name == f.ROW_VALID:
        unreadable = {row - rows[0] for row, _ in record["unreadable"]}
        if set(np.flatnonzero(~values[:n]).tolist()) != unreadable:
            yield Problem(name, chunk, rows, "its rows and its record name different unreadable images")
        return
    valid = store.valid(*rows)
    if store.provenance.dtype == "bfloat16":
        finite = (values[:n] & 0x7F80) != 0x7F80  # the exponent bits of bfloat16
    else:
        finite = np.isfinite(values[:n])
    if not (finite.all(axis=1) == valid).all():
        yield Problem(name, chunk, rows, "a row of a readable image is not finite, or one of an unreadable image is")


def _thumbnail_problems(root: Path, chunk: int, report: VerifyReport) -> Iterator[Problem]:
    folder = f"{f.THUMBS}/{chunk}"
    try:
        record = read_record(root / f.thumbs_record_file(chunk))
        for name, committed in record["chunks"].items():
            path = root / f.chunk_file(f"{folder}/{name}", 0, 1)
            unseal(path.read_bytes(), int(committed["crc32c"], 16), str(path))
            report.n_bytes += committed["bytes"]
    except (StoreError, OSError) as error:
        yield Problem(folder, chunk, None, str(error))
        return
    report.n_chunks += 1
    yield from _document_problems(root, record["files"])


def _leftovers(root: Path, store: ActivationStore, readers: list[ChunkReader]) -> Iterator[str]:
    known = {f.METADATA_RECORD, *read_record(root / f.METADATA_RECORD)["files"]}
    for reader in readers:
        for chunk in range(reader.n_chunks):
            known.add(f.chunk_file(reader.name, chunk, len(reader.shape)))
            known.add(f.record_file(reader.name, chunk))
    if store.thumbnail_px:
        for chunk in range(store.n_chunks):
            known.add(f.thumbs_record_file(chunk))
            known.add(f"{f.THUMBS}/{chunk}/zarr.json")
            for name in ("blob", "offset"):
                known |= {f"{f.THUMBS}/{chunk}/{name}/zarr.json", f"{f.THUMBS}/{chunk}/{name}/c/0"}
    for path in root.rglob("*"):
        name = path.relative_to(root).as_posix()
        if path.is_file() and name not in known:
            yield name

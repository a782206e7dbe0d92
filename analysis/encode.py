"""Writes the feature activations of an activation store: `encode RUN...`."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..memory import keep_freed_memory
from ..progress import Reporter, format_bytes, format_rate, format_s
from ..store.errors import StoreError
from ..store.files import FolderLock, free_bytes
from . import features as format_
from .columns import CHUNK
from .encode_source import EncodeSource, ReadBlock, open_source
from .encoded_block import EncodedBlock, StoredRows
from .feature_writer import FeatureWriter
from .features import FEATURES_ZARR
from .folders import new_folder, refuse_existing
from .options import EncodeOptions
from .quality import Quality

_SAMPLE_RUNS, _SAMPLE_RUN_ROWS = 16, 64  # 1,024 rows from all over the store predict the size to a few percent
_ROW_BYTES = 8 + 3 * 4 + 4 + 2  # indptr, three float32, label, split and valid
_ENTRY_BYTES = 8  # index and value, by row and again by feature
_DEALT_BYTES = 12  # what an entry takes on disk while it is sorted by feature


@dataclass(frozen=True, kw_only=True)
class EncodeResult:
    """What `encode` wrote."""

    features_path: Path
    n_rows: int
    """Rows encoded."""
    d_sae: int
    nnz: int
    mean_l0: float
    predicted_bytes: int
    written_bytes: int
    quality: dict[str, Quality]
    """By split: `train`, `heldout`, `all`, those with rows."""
    seconds: float
    """Of this process: where it went on from an earlier one, of what was left."""
    rows_per_s: float


@dataclass(frozen=True, kw_only=True)
class EncodeFailure:
    """Why one of several runs was not encoded."""

    run_path: Path
    reason: str


@dataclass(frozen=True, kw_only=True)
class EncodeResults:
    """What the encoding of several runs wrote."""

    results: list[EncodeResult]
    failures: list[EncodeFailure]


def encode(
    run_path: str | Path, options: EncodeOptions | None = None, reporter: Reporter | None = None
) -> EncodeResult:
    """Encode the rows of an activation store with the SAE of a run, into `RUN/features.zarr`.

    A process that was stopped, or killed, is gone on with where it was by the same call again.

    Raises
    ------
    ValueError
        When an option does not fit the run.
    StoreError
        When the run has no SAE, the store is not the one that it was trained on (or, with `store`, not of the same
        site), features are there already, or they would be larger than the limit.
    """
    results = _encode([Path(run_path)], options or EncodeOptions(), reporter or Reporter(), is_alone=True)
    return results.results[0]


def runs_of(paths: Sequence[Path]) -> list[Path]:
    """The runs that paths name, each once: of a sweep, its runs that are finished."""
    from ..train.run_dir import SWEEP
    from ..train.sweep_dir import open_sweep

    found: list[Path] = []
    for path in paths:
        if not (path / SWEEP).exists():
            found.append(path)
            continue
        sweep = open_sweep(path)
        finished = [sweep.run_path(member) for member in sweep.members if sweep.status(member) == "finished"]
        if not finished:
            raise StoreError(f"{path} holds no finished run: go on with its training (`train --resume`).")
        found += finished
    return list(dict.fromkeys(found))


def encode_several(
    run_paths: Sequence[str | Path], options: EncodeOptions | None = None, reporter: Reporter | None = None
) -> EncodeResults:
    """Encode with the SAEs of several runs; those of one store and site share one reading of its rows.

    Each gets the `features.zarr` that it would get alone. One that fails stops alone.
    """
    paths = list(dict.fromkeys(Path(path) for path in run_paths))
    return _encode(paths, options or EncodeOptions(), reporter or Reporter(), is_alone=len(paths) == 1)


def _encode(paths: list[Path], options: EncodeOptions, reporter: Reporter, *, is_alone: bool) -> EncodeResults:
    keep_freed_memory()
    failures: dict[Path, str] = {}
    members: list[_Member] = []

    def fail(path: Path, error: Exception) -> None:
        if is_alone:
            raise error
        failures[path] = str(error) or type(error).__name__
        reporter.warn(f"{path} is not encoded: {failures[path]}")

    results: list[EncodeResult] = []
    try:
        for path in paths:
            try:
                members.append(_Member(open_source(path, options), reporter))
            except Exception as error:
                fail(path, error)
        _check_space(members)
        _tell_time(members, reporter)
        together: dict[object, list[_Member]] = {}
        for member in members:
            if member.attempt(member.begin, fail):
                together.setdefault(member.source.reads, []).append(member)
        for group in together.values():
            _read_once(group, reporter, fail)
            for member in group:
                if member.is_alive:
                    member.attempt(lambda member=member: results.append(member.finish()), fail)  # type: ignore[misc]
    except BaseException as error:
        kept = [member.stop(error) for member in members if member.is_alive]
        if isinstance(error, KeyboardInterrupt) and kept:
            why = str(error) or "stopped by the user."
            raise KeyboardInterrupt(f"{why} {', '.join(kept)}: give the same command again to go on.") from None
        raise
    failed = [EncodeFailure(run_path=path, reason=reason) for path, reason in failures.items()]
    return EncodeResults(results=results, failures=failed)


class _Member:
    """One run that is encoded."""

    def __init__(self, source: EncodeSource, reporter: Reporter) -> None:
        self.source, self.path = source, source.run_path
        self.features_path = self.path / FEATURES_ZARR
        self._reporter = reporter
        refuse_existing(self.features_path, overwrite=source.options.overwrite)
        _, self.predicted_bytes, self.predicted_s = predict(source)
        reporter.say(f"{self.features_path} will take at most about {format_bytes(self.predicted_bytes)}")
        limit = int(source.options.size_limit_gb * 1e9)
        if self.predicted_bytes > limit and not source.options.force:
            raise StoreError(
                f"{self.features_path} would take about {format_bytes(self.predicted_bytes)}, more than the limit of "
                f"{format_bytes(limit)}: encode fewer rows with --rows, or give --force."
            )
        self.is_alive = False
        self._start_s = time.monotonic()

    def begin(self) -> None:
        """Take the run's folder and find where to begin."""
        with ExitStack() as stack:
            stack.enter_context(closing(FolderLock(self.path)))
            overwrite = self.source.options.overwrite
            folder = stack.enter_context(new_folder(self.features_path, overwrite=overwrite, resumes=True))
            self.writer = FeatureWriter(folder, self.source)
            # What is computed for a block is written by a thread, while the next one is encoded.
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="thresher-features")
            self._pending: Future[None] | None = None
            self._stack = stack.pop_all()
        self.is_alive, self.starts_at = True, self.writer.next_row
        self._start_s, self._encoded_before = time.monotonic(), self.writer.n_encoded
        if self._encoded_before:
            self._reporter.say(f"{self.features_path}: {self._encoded_before:,} rows are there from before")

    def attempt(self, work: Callable[[], None], fail: Callable[[Path, Exception], None]) -> bool:
        """Do some work; where it fails, stop and tell."""
        try:
            work()
        except Exception as error:
            if self.is_alive:
                self.stop(error)
            fail(self.path, error)
            return False
        return True

    def put(self, block: ReadBlock, rows: StoredRows | None, is_first: bool) -> None:
        """Encode a block and have it written; `rows` is None where none of it is to be encoded."""
        encoded = None if rows is None else self.source.encode(rows)
        split = block.split if is_first else self.source.splits.codes(block.start, block.stop)
        self.settle()
        self._pending = self._pool.submit(self.writer.add, block, split, encoded)

    def settle(self) -> None:
        """Wait until what was put is written."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def finish(self) -> EncodeResult:
        """Write the rest and give the features their name."""
        self.settle()
        info = self.writer.finish(self._reporter)
        self._pool.shutdown()
        self._stack.close()
        self.is_alive = False
        seconds = time.monotonic() - self._start_s
        arrays = format_.open_features(self.features_path).sections
        quality = {name: Quality.of_sections(arrays, codes) for name, codes in format_.SPLIT_CODES.items()}
        return EncodeResult(
            features_path=self.features_path,
            n_rows=info.n_encoded,
            d_sae=info.d_sae,
            nnz=info.nnz,
            mean_l0=info.nnz / info.n_encoded,
            predicted_bytes=self.predicted_bytes,
            written_bytes=sum(f.stat().st_size for f in self.features_path.rglob("*") if f.is_file()),
            quality={name: q for name, q in quality.items() if q is not None},
            seconds=seconds,
            rows_per_s=(info.n_encoded - self._encoded_before) / seconds,
        )

    def stop(self, error: BaseException) -> str:
        """Keep what is written, for a successor, and say how much that is."""
        self.is_alive = False
        with suppress(Exception):  # it is told why this stopped; the last record stays
            self.settle()
            self.writer.record()
        self._pool.shutdown()
        self.writer.drop_useless()
        self._stack.__exit__(type(error), error, error.__traceback__)
        return f"{self.writer.n_encoded:,} of {self.source.n:,} rows of {self.path} are kept"


def _read_once(members: list[_Member], reporter: Reporter, fail: Callable[[Path, Exception], None]) -> None:
    """Read the rows once for several runs, each of which encodes those that it has not got."""
    first = members[0].source
    begin = min(member.writer.next_row for member in members)
    done = min(member.writer.n_encoded for member in members)
    n_rows = first.store.n_rows
    with (
        reporter.task("encoding", first.n, "rows", done=done) as task,
        first.reading(first.blocks(begin, n_rows)) as read,
    ):
        for block in read:
            rows = first.stored_rows(block.vectors) if len(block.vectors[0]) else None
            for member in members:
                if member.is_alive and block.start >= member.starts_at:
                    member.attempt(lambda m=member: m.put(block, rows, m.source is first), fail)  # type: ignore[misc]  # noqa: B023
            if not any(member.is_alive for member in members):
                return
            task.advance(len(block.vectors[0]))
    for member in members:
        if member.is_alive:
            member.attempt(member.settle, fail)


def predict(source: EncodeSource) -> tuple[int, int, float]:
    """Activations, their bytes before compression, seconds of encoding: from a sample of rows spread over the rows."""
    n = source.n
    runs = min(_SAMPLE_RUNS, -(-n // _SAMPLE_RUN_ROWS))
    length = min(_SAMPLE_RUN_ROWS, n // runs)
    starts = source.start + np.arange(runs) * (n // runs)
    sample = tuple(np.empty((runs * length, array.d_in), array.stored_dtype) for array in source.arrays)
    for array, vectors in zip(source.arrays, sample, strict=True):
        array.read_runs(starts, np.full(runs, length), vectors)
    rows = source.stored_rows(sample)
    block, seconds = _timed_block(source, rows)
    if seconds < 1:  # the first block also pays for what torch sets up once
        block, seconds = _timed_block(source, rows)
    nnz = len(block.index) / (runs * length) * n
    last_chunks = 4 * 4 * CHUNK  # of index and value, by row and by feature: chunks are written whole
    size = int(2 * _ENTRY_BYTES * nnz + last_chunks + _ROW_BYTES * source.store.n_rows + 8 * source.sae.d_sae)
    return int(nnz), size, seconds / (runs * length) * n


def _timed_block(source: EncodeSource, rows: StoredRows) -> tuple[EncodedBlock, float]:
    start_s = time.perf_counter()
    block = source.encode(rows)
    return block, time.perf_counter() - start_s


def _check_space(members: list[_Member]) -> None:
    """Raise `StoreError` where a disk does not hold what is to be written to it."""
    needed: dict[int, int] = {}
    for member in members:
        path, disk = member.features_path, member.path.stat().st_dev
        # Entries lie on disk once more, as records, while they are turned to features.
        needed[disk] = needed.get(disk, 0) + member.predicted_bytes
        most = needed[disk] + int(member.predicted_bytes / (2 * _ENTRY_BYTES) * _DEALT_BYTES)
        begun = path.with_name(f".{path.name}.tmp")
        free = free_bytes(path) + sum(f.stat().st_size for f in begun.rglob("*") if f.is_file())
        if most > free:
            raise StoreError(
                f"{path} needs up to {format_bytes(most)} of disk while it is written and {format_bytes(free)} are "
                "free: encode fewer rows with --rows, or make room."
            )


def _tell_time(members: list[_Member], reporter: Reporter) -> None:
    """Say what there is to do and how long it takes."""
    if not members:
        return
    n, seconds = max(member.source.n for member in members), sum(member.predicted_s for member in members)
    what = "" if len(members) == 1 else f" with {len(members)} SAEs"
    reporter.say(
        f"{n:,} rows to encode{what}, about {format_s(seconds)} at {format_rate(n / seconds)} rows/s on "
        f"{members[0].source.sae.device}; then their activations are sorted by feature"
    )

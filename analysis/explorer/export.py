"""The explorer as a static site: the same pages as files that any host serves and that open from a folder."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...progress import Reporter, format_bytes, format_s
from ...store.errors import StoreError
from ...store.files import free_bytes
from ...store.outside import require_outside_stores
from ...train.run_dir import CONFIG
from ..folders import new_folder, refuse_existing
from .app import chapters as all_chapters
from .export_pages import KINDS, THUMBNAILS_AT_ONCE, Job, RunWriter, Site, jobs_of, on_disk, prefix_of
from .firings import PICTURES
from .match_runs import job_of, match_all
from .neuron_columns import neuron_columns
from .options import ExportOptions
from .page import Chapter, Chosen, Endpoint, PageError, Query
from .pages.image import MOST
from .pages.neurons import SHOWN_IMAGES
from .runs import ExploredRun
from .several import Explorer

MARK = "data/export.js"
"""A file of every export, by which one is known."""
IMAGES_OF_FEATURE = 16
_SAMPLED = 6  # pages of each kind that are made to predict size and time: their sizes vary by a third
_SAMPLED_ROUNDS = 2
_FILE_S = 3e-4  # to make a small file and to have it synced with the others


@dataclass(frozen=True)
class Forecast:
    """What an export will be, from a few pages of each kind."""

    n_pages: int
    n_thumbnails: int
    n_files: int
    n_bytes: int
    n_disk_bytes: int
    """With the rest of each file's last block: of many small files more than half as much again."""
    seconds: float


@dataclass(frozen=True)
class ExportResult:
    """What was written."""

    folder: Path
    n_pages: int
    n_files: int
    n_bytes: int
    n_disk_bytes: int
    seconds: float
    skipped: tuple[str, ...]
    """Pages that could not be made, and why."""


def export_site(
    runs: Sequence[str | Path],
    folder: str | Path,
    options: ExportOptions | None = None,
    reporter: Reporter | None = None,
) -> ExportResult:
    """Write the explorer of some runs into a folder, which appears when it is whole.

    Raises
    ------
    ValueError
        When a chosen feature is none of the first run's.
    StoreError
        When a run has no statistics; when the folder lies in a store or a run, is there already, is to be replaced and
        is no export, or its disk has too little room.
    """
    options, reporter = options or ExportOptions(), reporter or Reporter()
    folder, start_s = Path(folder).absolute(), time.monotonic()
    _require_place(folder, options.overwrite)
    explorer, chapters = Explorer(runs), all_chapters()
    for chapter in chapters:
        if chapter.start is not None:
            chapter.start(explorer)
    match_all(explorer, reporter)
    chosen = {run.name: choose(explorer, run, options) for run in explorer.runs}
    jobs = {run.name: list(jobs_of(chapters, chosen[run.name])) for run in explorer.runs}
    known = {prefix_of(explorer, run) + job.path for run in explorer.runs for job in jobs[run.name]}
    for run in explorer.runs:
        for note in run.notes:
            reporter.warn(note)
        run.preload()
    with new_folder(folder, overwrite=True, one_sync=True) as temporary:  # whether it may be was asked above
        site = Site(temporary, known)
        writers = [RunWriter(site, explorer, run, chosen[run.name]) for run in explorer.runs]
        rows = {writer.run.name: _likely_rows(writer) for writer in writers}
        forecast = predict(writers, jobs, rows, chapters, options)
        _announce(folder, forecast, explorer, chosen, options, reporter)
        skipped: list[str] = []
        site.write_static()
        asked = {writer.run.name: writer.asked(chapters) for writer in writers}
        with reporter.task("files", sum(len(jobs[name]) + len(asked[name]) for name in jobs), "files") as task:
            for writer in writers:
                writer.write_thumbnails(rows[writer.run.name])
                writer.write_lists()
                for endpoint, query in asked[writer.run.name]:
                    data = writer.answered(endpoint, query)
                    if data is not None:
                        writer.write(data)
                    task.advance(1)
                for data in writer.game(options.rounds, options.seed):
                    writer.write(data)
                for job in jobs[writer.run.name]:
                    try:
                        writer.write_page(job)
                    except PageError as error:
                        skipped.append(f"{job.path}: {error}")
                    task.advance(1)
    n_pages = sum(map(len, jobs.values()))
    result = ExportResult(
        folder,
        n_pages - len(skipped),
        site.n_files,
        site.n_bytes,
        site.n_disk_bytes,
        time.monotonic() - start_s,
        tuple(skipped),
    )
    _tell(result, reporter)
    return result


def choose(explorer: Explorer, run: ExploredRun, options: ExportOptions) -> Chosen:
    """Of which things of a run an export holds pages; of another run than the first: of those nearest to its own."""
    if options.numbers is not None:
        own = explorer.runs[0]
        wrong = [number for number in options.numbers if number >= own.d_sae]
        if wrong:
            raise ValueError(f"--features: {wrong[0]} is not one of the {own.d_sae:,} features of {own.name}")
        features = np.array(options.numbers)
        if run is not own:
            matches = job_of(own, run).matches
            features = run.shown[:0] if matches is None else np.unique(matches.feature[features, 0])
            features = features[features >= 0]
    else:
        features = np.arange(run.d_sae) if options.features == "all" else run.shown
    rows = np.empty(0, np.int64)
    if run.features is not None:
        top = run.stored.statistics.top_row[
            features, :IMAGES_OF_FEATURE
        ].T.ravel()  # every feature's first, then second
        top = top[top >= 0]
        _, first = np.unique(top, return_index=True)
        rows = np.sort(top[np.sort(first)[: options.images]])
    labels = run.stored.statistics.label_ids
    if options.numbers is not None:
        labels = np.intersect1d(labels, run.stored.statistics.top_label[features])
    return Chosen(
        features=features.tolist(),
        rows=rows.tolist(),
        labels=labels[labels >= 0].tolist(),
        neurons=[] if options.numbers is not None else _neurons(run),
        runs=[each.name for each in explorer.runs if each is not run],
    )


def _neurons(run: ExploredRun) -> list[int]:
    """All that have pages."""
    try:
        columns = neuron_columns(run)
    except PageError as error:
        run.notes.append(str(error))
        return []
    return [] if columns is None else list(range(columns.n_units))


def predict(
    writers: Sequence[RunWriter],
    jobs: Mapping[str, Sequence[Job]],
    rows: Mapping[str, NDArray[np.int64]],
    chapters: Sequence[Chapter],
    options: ExportOptions,
) -> Forecast:
    """Size and time of an export: a few files of each kind are made, thumbnails counted among the features' images."""
    n_pages = n_thumbnails = n_files = 0
    n_bytes = n_disk_bytes = seconds = 0.0

    def add(n: int, makers: Sequence[Callable[[], bytes | str | None]]) -> None:
        nonlocal n_files, n_bytes, n_disk_bytes, seconds
        sizes, each_s = _sampled(makers)
        if not sizes or not any(sizes):
            return
        n_files += n
        n_bytes += n * float(np.mean(sizes))
        n_disk_bytes += n * float(np.mean([on_disk(size) for size in sizes]))
        seconds += n * (each_s + _FILE_S)

    for writer in writers:
        kinds: dict[tuple[str, str], list[Callable[[], bytes | str]]] = {}
        for job in jobs[writer.run.name]:
            kinds.setdefault(("page", job.page.name), []).append(partial(writer.rendered, job))
            n_pages += 1
        for endpoint, query in writer.asked(chapters):
            kinds.setdefault(("data", endpoint.path), []).append(partial(_content, writer, endpoint, query))
        for same in kinds.values():
            add(len(same), [same[i] for i in _spread(len(same), _SAMPLED)])
        start_s = time.monotonic()
        of_rounds = [data.content for data in writer.game(min(options.rounds, _SAMPLED_ROUNDS), options.seed)]
        n_rounds = writer.n_rounds(options.rounds)
        seconds += n_rounds * (time.monotonic() - start_s) / _SAMPLED_ROUNDS
        if n_rounds:
            n_sampled = min(n_rounds, _SAMPLED_ROUNDS)
            add(len(of_rounds) * n_rounds // n_sampled, [partial(bytes, content) for content in of_rounds])
        shown = rows[writer.run.name]
        if len(shown) and writer.run.has_thumbnails:
            together = [shown[i : i + THUMBNAILS_AT_ONCE] for i in range(0, len(shown), THUMBNAILS_AT_ONCE)]
            start_s, before, sample = time.monotonic(), n_files, together[len(together) // 2]
            found = [picture for picture in writer.run.require_store().thumbnails(sample) if picture is not None]
            add(len(shown) * len(found) // len(sample), [partial(bytes, picture) for picture in found])
            seconds += len(together) * (time.monotonic() - start_s)
            n_thumbnails += n_files - before
    return Forecast(n_pages, n_thumbnails, n_files, round(n_bytes), round(n_disk_bytes), seconds)


def _spread(n: int, most: int) -> list[int]:
    """Some places among `n`, far apart."""
    places: list[int] = np.unique(np.linspace(0, n - 1, most).astype(int)).tolist()
    return places


def _sampled(makers: "Sequence[Callable[[], bytes | str | None]]") -> tuple[list[int], float]:
    """Sizes and mean time of what some functions make; the first of several is not timed: it loads what all use."""
    if not makers:
        return [], 0.0
    sizes, times = [], []
    for make in makers:
        start_s = time.monotonic()
        try:
            sizes.append(len(make() or b""))
        except PageError:
            sizes.append(0)
        times.append(time.monotonic() - start_s)
    return sizes, float(np.mean(times[1:] or times))


def _content(writer: RunWriter, endpoint: Endpoint, query: Query) -> bytes:
    data = writer.answered(endpoint, query)
    return b"" if data is None else data.content


def _likely_rows(writer: RunWriter) -> NDArray[np.int64]:
    """Rows whose thumbnails pages show: of the chosen features' grids, and the first of the features on images."""
    run, features = writer.run, np.array(writer.chosen.features, np.int64)
    top = run.stored.statistics.top_row
    shown = [top[features, :IMAGES_OF_FEATURE].ravel(), np.array(writer.chosen.rows, np.int64)]
    if writer.chosen.rows:
        firing = np.unique(np.concatenate([run.code(row)[0][:MOST] for row in writer.chosen.rows]))
        shown.append(top[firing, :PICTURES].ravel())
    if run.has("samples"):
        shown.append(run.array("samples/row")[features].ravel())
    if writer.chosen.neurons:
        columns = neuron_columns(run)
        assert columns is not None
        shown += [
            columns.top_row[np.array(writer.chosen.neurons), :SHOWN_IMAGES].ravel(),
            columns.top_row[:, :4].ravel(),
        ]
    rows = np.unique(np.concatenate(shown))
    return rows[rows >= 0]


def _announce(
    folder: Path,
    forecast: Forecast,
    explorer: Explorer,
    chosen: Mapping[str, Chosen],
    options: ExportOptions,
    reporter: Reporter,
) -> None:
    """Say what will be written; `StoreError` where the disk has no room for it."""
    for run in explorer.runs:
        of = chosen[run.name]
        kinds = [name for name in KINDS.values() if name != "runs"]
        counts = [f"{len(getattr(of, name)):,} {name.replace('rows', 'images')}" for name in kinds]
        is_matched = options.numbers is not None and run is not explorer.runs[0]
        those = f"; its features nearest to those named of {explorer.runs[0].name}" if is_matched else ""
        reporter.say(f"{run.name}: pages of {', '.join(counts)}{those}")
    reporter.say(
        f"writing {folder}: {forecast.n_pages:,} pages and up to {forecast.n_thumbnails:,} thumbnails, "
        f"about {format_bytes(forecast.n_bytes)} ({format_bytes(forecast.n_disk_bytes)} of a disk with blocks of 4 kB) "
        f"in about {format_s(forecast.seconds)}"
    )
    free = free_bytes(folder.parent)
    if forecast.n_disk_bytes > free:
        raise StoreError(
            f"{folder} needs about {format_bytes(forecast.n_disk_bytes)} and its disk has {format_bytes(free)}: choose "
            "fewer with --features and --images, or another DIR."
        )


def _tell(result: ExportResult, reporter: Reporter) -> None:
    reporter.say(
        f"{result.folder}: {result.n_pages:,} pages, {format_bytes(result.n_bytes)} in {result.n_files:,} files "
        f"({format_bytes(result.n_disk_bytes)} of a disk with blocks of 4 kB), in "
        f"{format_s(result.seconds)}. Open {result.folder / 'index.html'}"
    )
    if result.skipped:
        reporter.warn(f"{len(result.skipped):,} pages were left out, the first: {result.skipped[0]}")


def _require_place(folder: Path, overwrite: bool) -> None:
    """Raise `StoreError` where an export may not be written, or may not replace what is there."""
    require_outside_stores(folder, "DIR")
    for above in (folder, *folder.resolve().parents):
        if (above / CONFIG).exists() and (above == folder or (above / "sae.safetensors").exists()):
            raise StoreError(f"{folder} lies inside the run {above}: name another DIR, outside of it.")
    if folder.exists() and not (folder / MARK).exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StoreError(f"{folder} is no export of the explorer (no {MARK}), so it is not replaced: name another DIR.")
    if folder.exists() and any(folder.iterdir()):
        refuse_existing(folder, overwrite=overwrite)

"""Harvests activations: images through the tower into a store."""

import time
from collections.abc import Generator, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..progress import Reporter, format_bytes, format_rate, format_s
from ..store.errors import StoreError
from ..store.files import free_bytes
from ..store.format import CREATING, GROUP_JSON, Site
from ..store.layout import predicted_bytes
from ..store.reader import Unreadable, open_store
from ..store.writer import StoreWriter, create_store, resume_store
from .batches import Batch, decoded_batches
from .forward import Rows, TowerRunner
from .images import ImageSet, open_images
from .options import HarvestOptions
from .plan import Job, prepare, select_images
from .vision import load_tower

_FEW = 8  # images that tell how fast a tower is
_SAMPLED_KEYS = 1000  # keys whose length is taken for all
_LISTED = 10  # unreadable images that are named at the end; the store lists them all


@dataclass(frozen=True)
class HarvestResult:
    """What a harvest left behind."""

    store_path: Path
    sites: list[str]
    """Paths of the activation arrays in the store: `layers/22/resid_post/cls`; the layer is 0-based."""
    n_rows: int
    n_valid: int
    unreadable: list[Unreadable]
    """Row, key and reason of every image that could not be read."""
    n_harvested: int
    """Images of this process; fewer than `n_rows` when it resumed an earlier harvest."""
    seconds: float
    """Of the loop, without loading the model."""
    images_per_s: float
    size_bytes: int
    """Of all files of the store."""


def harvest(
    options: HarvestOptions,
    images: str | PathLike[str] | Sequence[str | PathLike[str]] | ImageSet,
    store_path: str | PathLike[str],
    reporter: Reporter | None = None,
) -> HarvestResult:
    """Write the activations of images into a store, or go on where an earlier harvest of the same images stopped.

    Parameters
    ----------
    options
        Of the harvest.
    images
        A source as `images.open_images` takes it, or an opened one (which the caller closes).
    store_path
        Folder of the store.
    reporter
        Told what is written, how long it takes, and what was skipped.

    Raises
    ------
    ValueError
        On a source, model, weights or layer that cannot be used.
    StoreError
        When what stands at `store_path` is something else, the disk is too small, activations are not finite, no image
        can be read, or with `strict` at the first unreadable image.
    OSError
        As the system gives it; ChildProcessError when a decoding process dies.
    """
    path = Path(store_path)
    reporter = reporter or Reporter()
    if isinstance(images, ImageSet):
        return _harvest(options, images, path, reporter)
    _require_free_place(path, options)
    with open_images(images, label_names=options.label_names) as opened:
        return _harvest(options, opened, path, reporter)


def _harvest(options: HarvestOptions, images: ImageSet, path: Path, reporter: Reporter) -> HarvestResult:
    images = select_images(images, options)
    for note in images.notes:
        reporter.warn(note)
    tower = load_tower(
        options.model,
        options.pretrained,
        options.device,
        seed=options.seed,
        allow_activation_mismatch=options.allow_activation_mismatch,
    )
    for note in tower.notes:
        reporter.warn(note)
    job = prepare(options, images, tower, reporter)
    with _open_writer(options, job, path) as writer:
        n_left = sum(stop - start for start, stop in map(writer.chunk_rows, writer.pending))
        if not n_left:
            reporter.say(f"{path} is complete: {job.spec.n_rows:,} rows; nothing to do.")
            return _result(path, 0, 0.0, reporter)
        _announce(options, job, writer, n_left, reporter)
        started = time.monotonic()
        try:
            with (
                reporter.task("harvest", job.spec.n_rows, "images", done=job.spec.n_rows - n_left) as task,
                closing(_write_rows(options, job, writer)) as steps,
            ):
                for n in steps:
                    task.advance(n)
        except KeyboardInterrupt:
            done = job.spec.n_rows - sum(stop - start for start, stop in map(writer.chunk_rows, writer.pending))
            reporter.say(
                f"Stopped: {done:,} of {job.spec.n_rows:,} rows are in {path}. The same command goes on there."
            )
            raise
    return _result(path, n_left, time.monotonic() - started, reporter)


def _require_free_place(path: Path, options: HarvestOptions) -> None:
    """Fail before the model is loaded where the store cannot go."""
    taken = path.is_dir() and any(path.iterdir())
    if path.exists() and not path.is_dir():
        raise StoreError(f"{path} exists and is not a folder: name another STORE.")
    if taken and not options.overwrite and not (path / GROUP_JSON).exists() and not (path / CREATING).exists():
        raise StoreError(f"{path} is not empty and is not an activation store: name another STORE.")


def _open_writer(options: HarvestOptions, job: Job, path: Path) -> StoreWriter:
    _require_free_place(path, options)
    is_store = (path / GROUP_JSON).exists() and not (path / CREATING).exists()
    if is_store and not options.overwrite:
        return resume_store(path, job.spec)
    need, free = predicted_bytes(job.spec), free_bytes(path)
    if need > free:
        raise StoreError(
            f"{path} needs about {format_bytes(need)} and the disk has {format_bytes(free)} free: "
            "free some, name a STORE on another disk, or use --thumbnails off or --limit."
        )
    return create_store(
        path,
        job.spec,
        keys=job.images.keys,
        row_image=job.row_image,
        row_label=job.images.labels[job.row_image],
        overwrite=options.overwrite,
    )


def _announce(options: HarvestOptions, job: Job, writer: StoreWriter, n_left: int, reporter: Reporter) -> None:
    """Say what will be written and how long it takes, measured on one batch."""
    start, stop = writer.chunk_rows(writer.pending[0])
    first = job.decoder[start, min(stop, start + options.batch_size)]
    forward_s = _forward_s(job, first)
    decode_s = first.decode_s / len(first.valid) / max(1, options.workers)
    on_cpu = job.tower.device.type == "cpu"  # where decoding and the tower share the cores
    total_s = n_left * (forward_s + decode_s if on_cpu else max(forward_s, decode_s))
    size_bytes = _measured_bytes(job, first)
    layers = ", ".join(str(site) for site in job.sites)
    resumed = "" if n_left == job.spec.n_rows else f" ({job.spec.n_rows - n_left:,} are there from before)"
    reporter.say(
        f"{writer.path}: {job.spec.n_rows:,} rows{resumed} of {job.spec.d_in} {job.spec.dtype}, {layers}; about "
        f"{format_bytes(size_bytes)} ({format_bytes(free_bytes(writer.path))} free), about {format_s(total_s)} on "
        f"{job.tower.device.type} ({format_rate(n_left / total_s)} images/s measured on one batch)."
    )


def _measured_bytes(job: Job, batch: Batch) -> int:
    """Size of the finished store, with keys and thumbnails as large as those of a first batch."""
    keys = job.images.keys[:_SAMPLED_KEYS]
    measured = {"key_bytes": sum(map(len, keys)) / len(keys)}
    if pictures := [picture for picture in batch.thumbnails or [] if picture]:
        measured["thumbnail_bytes"] = sum(map(len, pictures)) / len(pictures)
    return predicted_bytes(job.spec, **measured)


def _forward_s(job: Job, batch: Batch) -> float:
    """Seconds an image, with as many batches at a time as the harvest will run."""
    with TowerRunner(job.tower, job.sites, job.n_batches) as runner:
        seconds = _measured_s(runner, batch.pixels[:_FEW])
        # A GPU or a small tower is measured again, warm, on a whole batch; a large one on a CPU would take minutes.
        if seconds < 1 or job.tower.device.type != "cpu":
            seconds = _measured_s(runner, batch.pixels)
            return seconds / (runner.n_parallel * len(batch.pixels))
        return seconds / (runner.n_parallel * len(batch.pixels[:_FEW]))


def _measured_s(runner: TowerRunner, pixels: torch.Tensor) -> float:
    started = time.perf_counter()
    for future in [runner.submit(pixels) for _ in range(runner.n_parallel)]:
        for rows in future.result().values():
            rows.cpu()  # waits for the device
    return time.perf_counter() - started


def _write_rows(options: HarvestOptions, job: Job, writer: StoreWriter) -> Generator[int, None, None]:
    """Harvest the pending chunks; yields the number of images after each batch.

    Workers decode ahead while the device computes and while a chunk is written. A chunk is committed before the next
    one is begun, so that a kill costs the images of one chunk and no more; larger chunks make the pause rarer.
    """
    pending = list(writer.pending)
    batches = decoded_batches(
        job.decoder,
        writer,
        pending,
        batch_size=options.batch_size,
        workers=options.workers,
        pin=job.tower.device.type == "cuda",
    )
    with closing(batches), TowerRunner(job.tower, job.sites, job.n_batches) as runner:
        for chunk in pending:
            stop = writer.chunk_rows(chunk)[1]
            parts: list[tuple[Batch, Future[Rows]]] = []
            while not parts or parts[-1][0].stop < stop:
                batch = next(batches)
                if options.strict and batch.unreadable:
                    raise _strict_error(job, *batch.unreadable[0])
                rows = runner.submit(batch.pixels)
                batch.pixels = batch.pixels[:0].clone()  # a chunk of 1024 images of 224 pixels would keep 154 MB
                parts.append((batch, rows))
                yield len(batch.valid)
            _write_chunk(job, writer, chunk, parts)


def _write_chunk(job: Job, writer: StoreWriter, chunk: int, parts: list[tuple[Batch, Future[Rows]]]) -> None:
    valid = np.concatenate([batch.valid for batch, _ in parts])
    computed = [rows.result() for _, rows in parts]
    values = {site: torch.cat([rows[site] for rows in computed]).cpu().numpy() for site in job.sites}
    for site, rows in values.items():
        _require_finite(job, site, rows, valid, parts[0][0].start)
    thumbnails: list[bytes | None] | None = None
    if job.spec.thumbnail_px is not None:
        thumbnails = [picture for batch, _ in parts for picture in batch.thumbnails or []]
    unreadable = [bad for batch, _ in parts for bad in batch.unreadable]
    writer.write_chunk(chunk, values, valid, unreadable, thumbnails)


def _require_finite(job: Job, site: Site, rows: NDArray[np.float32], valid: NDArray[np.bool_], start: int) -> None:
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1) & valid)
    if len(bad):
        remedy = "its weights are damaged" if job.tower.precision == "fp32" else "harvest with --precision fp32"
        raise StoreError(
            f"{job.tower.name} gives activations that are not finite at {site} for {job.key(start + int(bad[0]))!r} "
            f"({len(bad)} images of this chunk): {remedy}."
        )


def _strict_error(job: Job, row: int, reason: str) -> StoreError:
    return StoreError(
        f"image {job.key(row)!r} cannot be read: {reason}. Without --strict it would be skipped and listed."
    )


def _result(path: Path, n_harvested: int, seconds: float, reporter: Reporter) -> HarvestResult:
    store = open_store(path)
    unreadable = store.unreadable
    for bad in unreadable[:_LISTED]:
        reporter.warn(f"unreadable: {bad.key}: {bad.reason}")
    if unreadable:
        more = f", {len(unreadable) - _LISTED} more are listed in the store" if len(unreadable) > _LISTED else ""
        reporter.warn(f"{len(unreadable):,} of {store.n_rows:,} images could not be read{more}.")
    if not store.n_valid:
        raise StoreError(f"not one of {store.n_rows:,} images could be read, so {path} holds no activations.")
    return HarvestResult(
        store_path=path,
        sites=[site.path for site in store.sites],
        n_rows=store.n_rows,
        n_valid=store.n_valid,
        unreadable=unreadable,
        n_harvested=n_harvested,
        seconds=seconds,
        images_per_s=n_harvested / seconds if seconds > 0 else 0.0,
        size_bytes=sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
    )

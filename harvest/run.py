"""Harvests activations: images through the tower into a store."""

import time
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..progress import Reporter, format_bytes, format_rate, format_s
from ..store.errors import StoreError
from ..store.files import free_bytes
from ..store.format import CREATING, GROUP_JSON, Site
from ..store.provenance import Provenance
from ..store.reader import Unreadable, open_store
from ..store.shuffle import random_row_order
from ..store.writer import StoreSpec, StoreWriter, create_store, keys_sha256, predicted_bytes, resume_store
from .batches import Batch, RowDecoder, decoded_batches
from .decode import THUMBNAIL_PX
from .forward import Rows, TowerRunner
from .images import ImageSet, open_images
from .options import HarvestOptions
from .sites import capture, relative_errors, resolve_sites
from .vision import Tower, load_tower

_AUTO_THUMBNAILS = 2_000_000  # images up to which `--thumbnails auto` stores them: 8 GB at 4 kB each
_PACKAGES = ("thresher", "torch", "torchvision", "open_clip_torch", "pillow", "numpy", "zarr")
_LISTED = 10  # unreadable images that are named at the end; the store lists them all


@dataclass(frozen=True)
class HarvestResult:
    """What a harvest left behind."""

    store_path: Path
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
    """Predicted size of the store."""


@dataclass(frozen=True)
class _Job:
    """All that is settled before the store is touched."""

    images: ImageSet
    tower: Tower
    sites: tuple[Site, ...]
    spec: StoreSpec
    row_image: NDArray[np.uint32]
    decoder: RowDecoder


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


def select_images(images: ImageSet, options: HarvestOptions) -> ImageSet:
    """The images that `--limit` leaves: a seeded sample in source order, or the first ones with `--order source`."""
    if options.limit is None or options.limit >= images.n_images:
        return images
    if options.order == "source":
        return images.take(np.arange(options.limit))
    return images.take(np.sort(random_row_order(images.n_images, options.seed)[: options.limit]))


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
    job = _prepare(options, images, tower, reporter)
    with _open_writer(options, job, path) as writer:
        size_bytes = predicted_bytes(job.spec)
        n_left = sum(stop - start for start, stop in map(writer.chunk_rows, writer.pending))
        if not n_left:
            reporter.say(f"{path} is complete: {job.spec.n_rows:,} rows; nothing to do.")
            return _result(path, 0, 0.0, size_bytes, reporter)
        _announce(options, job, writer, n_left, size_bytes, reporter)
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
    return _result(path, n_left, time.monotonic() - started, size_bytes, reporter)


def _prepare(options: HarvestOptions, images: ImageSet, tower: Tower, reporter: Reporter) -> _Job:
    """Settle sites, row order and provenance; measure the precision's error on the first batch."""
    sites = resolve_sites(tower, options.layer, options.site, options.token)
    n = images.n_images
    row_image = random_row_order(n, options.seed) if options.order == "random" else np.arange(n, dtype=np.uint32)
    wants_thumbnails = options.thumbnails == "on" or (options.thumbnails == "auto" and n <= _AUTO_THUMBNAILS)
    thumbnail_px = THUMBNAIL_PX if wants_thumbnails else None
    decoder = RowDecoder(images, row_image, tower.pixels, tower.preprocessing["size"], thumbnail_px)
    precision_error = None
    exact, tower = tower, tower.at_precision(options.precision)
    if tower is not exact:
        first = decoder[0, min(options.batch_size, options.rows_per_chunk, n)]
        precision_error = _precision_error(exact, tower, sites, first)
        reporter.say(_precision_line(options.precision, precision_error))
    provenance = Provenance(
        model=tower.name,
        pretrained=tower.pretrained,
        weights_sha256=tower.weights_sha256,
        quick_gelu=tower.quick_gelu,
        n_layers=tower.n_layers,
        width=tower.width,
        preprocessing=tower.preprocessing,
        precision=options.precision,
        dtype=options.dtype,
        batch_size=options.batch_size,
        image_source=images.description,
        n_images=n,
        keys_sha256=keys_sha256(images.keys, images.labels),
        row_order=options.order,
        seed=options.seed,
        packages={name: version(name) for name in _PACKAGES},
        precision_error=precision_error,
    )
    spec = StoreSpec(
        provenance=provenance,
        sites=sites,
        d_in=tower.width,
        n_rows=n,
        rows_per_chunk=options.rows_per_chunk,
        dtype=options.dtype,
        codec=options.codec,
        thumbnail_px=thumbnail_px,
        label_names=images.label_names,
    )
    return _Job(images, tower, sites, spec, row_image, decoder)


def _precision_error(exact: Tower, tower: Tower, sites: tuple[Site, ...], first: Batch) -> dict[str, float]:
    """Relative L2 error of the rows of the first batch against fp32, over its readable images and every site."""
    pixels = exact.normalise(first.pixels)
    wanted, got = (capture(t, pixels, sites) for t in (exact, tower))
    valid = torch.from_numpy(first.valid)
    errors = torch.cat([relative_errors(got[site], wanted[site])[valid] for site in sites])
    if not len(errors):
        return {"n_rows": 0.0}
    return {"n_rows": float(len(errors)), "max": float(errors.max()), "mean": float(errors.mean())}


def _precision_line(precision: str, error: dict[str, float]) -> str:
    if not error["n_rows"]:
        return f"{precision}: no image of the first batch can be read, so its error against fp32 is not known."
    return (
        f"{precision}: the rows of the first batch differ from fp32 by {error['mean']:.2%} on average, "
        f"{error['max']:.2%} at most (relative L2)."
    )


def _require_free_place(path: Path, options: HarvestOptions) -> None:
    """Fail before the model is loaded where the store cannot go."""
    taken = path.is_dir() and any(path.iterdir())
    if path.exists() and not path.is_dir():
        raise StoreError(f"{path} exists and is not a folder: name another STORE.")
    if taken and not options.overwrite and not (path / GROUP_JSON).exists() and not (path / CREATING).exists():
        raise StoreError(f"{path} is not empty and is not an activation store: name another STORE.")


def _open_writer(options: HarvestOptions, job: _Job, path: Path) -> StoreWriter:
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


def _announce(
    options: HarvestOptions, job: _Job, writer: StoreWriter, n_left: int, size_bytes: int, reporter: Reporter
) -> None:
    """Say what will be written and how long it takes, measured on one batch."""
    start, stop = writer.chunk_rows(writer.pending[0])
    first = job.decoder[start, min(stop, start + options.batch_size)]
    forward_s = _forward_s(options, job, first)
    decode_s = first.decode_s / max(1, options.workers)
    on_cpu = job.tower.device.type == "cpu"  # where decoding and the tower share the cores
    total_s = n_left / len(first.valid) * (forward_s + decode_s if on_cpu else max(forward_s, decode_s))
    layers = ", ".join(str(site) for site in job.sites)
    resumed = "" if n_left == job.spec.n_rows else f" ({job.spec.n_rows - n_left:,} are there from before)"
    reporter.say(
        f"{writer.path}: {job.spec.n_rows:,} rows{resumed} of {job.spec.d_in} {job.spec.dtype}, {layers}; about "
        f"{format_bytes(size_bytes)} ({format_bytes(free_bytes(writer.path))} free), about {format_s(total_s)} on "
        f"{job.tower.device.type} ({format_rate(n_left / total_s)} images/s measured on one batch)."
    )


def _forward_s(options: HarvestOptions, job: _Job, batch: Batch) -> float:
    """Seconds per batch, with as many at a time as the harvest will run."""
    with TowerRunner(job.tower, job.sites, _n_batches(options, job)) as runner:
        for _ in range(2):  # the first pass of a process is slower: kernels are chosen, memory is taken
            started = time.perf_counter()
            for future in [runner.submit(batch.pixels) for _ in range(runner.n_parallel)]:
                future.result()[job.sites[0]].cpu()  # waits for the device
            seconds = (time.perf_counter() - started) / runner.n_parallel
    return seconds


def _n_batches(options: HarvestOptions, job: _Job) -> int:
    """Batches of the whole store; none straddles two chunks."""
    full, rest = divmod(job.spec.n_rows, options.rows_per_chunk)
    return full * -(-options.rows_per_chunk // options.batch_size) + -(-rest // options.batch_size)


def _write_rows(options: HarvestOptions, job: _Job, writer: StoreWriter) -> Generator[int, None, None]:
    """Harvest the pending chunks; yields the number of images after each batch.

    Workers decode ahead, the device computes, and a thread copies the finished chunk from it and writes it.
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
    written: list[Future[None]] = []
    with (
        closing(batches),
        TowerRunner(job.tower, job.sites, _n_batches(options, job)) as runner,
        ThreadPoolExecutor(1, thread_name_prefix="store-writer") as thread,
    ):
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
            while len(written) > 1:  # one chunk being written, one waiting: memory stays flat
                written.pop(0).result()
            written.append(thread.submit(_write_chunk, job, writer, chunk, parts))
        for future in written:
            future.result()


def _write_chunk(job: _Job, writer: StoreWriter, chunk: int, parts: list[tuple[Batch, Future[Rows]]]) -> None:
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


def _require_finite(job: _Job, site: Site, rows: NDArray[np.float32], valid: NDArray[np.bool_], start: int) -> None:
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1) & valid)
    if len(bad):
        remedy = "its weights are damaged" if job.tower.precision == "fp32" else "harvest with --precision fp32"
        raise StoreError(
            f"{job.tower.name} gives activations that are not finite at {site} for {_key(job, start + int(bad[0]))!r} "
            f"({len(bad)} images of this chunk): {remedy}."
        )


def _strict_error(job: _Job, row: int, reason: str) -> StoreError:
    return StoreError(
        f"image {_key(job, row)!r} cannot be read: {reason}. Without --strict it would be skipped and listed."
    )


def _key(job: _Job, row: int) -> str:
    return job.images.keys[int(job.row_image[row])].decode("utf-8", "backslashreplace")


def _result(path: Path, n_harvested: int, seconds: float, size_bytes: int, reporter: Reporter) -> HarvestResult:
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
        n_rows=store.n_rows,
        n_valid=store.n_valid,
        unreadable=unreadable,
        n_harvested=n_harvested,
        seconds=seconds,
        images_per_s=n_harvested / seconds if seconds > 0 else 0.0,
        size_bytes=size_bytes,
    )

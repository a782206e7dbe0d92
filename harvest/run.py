"""Harvests activations: images through the tower into a store."""

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from os import PathLike

import torch

from ..devices import choose_device
from ..progress import Reporter, Task
from ..store.errors import StoreError
from ..store.objects import Objects, open_objects
from ..store.outside import require_outside_stores
from ..store.part import StorePart
from ..store.reader import ActivationStore, Unreadable, open_store
from ..store.writer import StoreWriter, remove_store, resume_store
from .announce import announce
from .batches import naming_dead_workers
from .images import ImageSet, open_images
from .loop import write_windows
from .options import HarvestOptions
from .plan import Job, lasting_source, prepare
from .profile import Profile, StageTime, format_stages
from .ranks import Ranks, join_ranks
from .recorded import select_images
from .target import Target, find_target, finish, open_writer
from .vision import Tower, load_tower

_LISTED = 10  # unreadable images that are named at the end; the store lists them all
_LOOK_EVERY_S = 0.2  # at what the other processes have done


@dataclass(frozen=True)
class HarvestResult:
    """What a harvest left behind."""

    store_path: str
    """Path or URL of the store, as the user named it."""
    sites: list[str]
    """Paths of the activation arrays in the store: `layers/22/resid_post/cls`; the layer is 0-based."""
    n_rows: int
    """Of the store: with `append`, those of every part."""
    n_valid: int
    unreadable: list[Unreadable]
    """Number, key and reason of every image of the store that could not be read."""
    n_harvested: int
    """Images of this harvest; fewer than the store's when it resumed an earlier one, or added to a store."""
    seconds: float
    """Of the loop, without loading the model."""
    images_per_s: float
    size_bytes: int
    """Of all files of the store."""
    profile: list[StageTime] | None = None
    """What the loop waited for; None without `profile`."""
    rank: int = 0
    """Number of the process that says this, of those that torchrun started; one of them should speak."""


def harvest(
    options: HarvestOptions,
    images: str | PathLike[str] | Sequence[str | PathLike[str]] | ImageSet,
    store_path: str | PathLike[str],
    reporter: Reporter | None = None,
) -> HarvestResult:
    """Write the activations of images into a store, or go on where an earlier harvest of the same images stopped.

    Under torchrun every process calls it alike; they share the work, and the first of them speaks.

    Parameters
    ----------
    options
        Of the harvest.
    images
        A source as `images.open_images` takes it, or an opened one (which the caller closes).
    store_path
        Folder or URL of the store.
    reporter
        Told what is written, how long it takes, and what was skipped.

    Raises
    ------
    ValueError
        On a source, model, weights or layer that cannot be used.
    StoreError
        When what stands at `store_path` is something else or it lies inside another store, the disk is too small,
        activations are not finite or do not fit the number format, no image can be read, or with `strict` at the first
        unreadable image.
    OSError
        As the system gives it; ChildProcessError when a decoding process dies.
    SystemExit
        In a process of a torchrun of which another one failed and says why.
    """
    ranks = join_ranks()
    reporter = reporter if reporter is not None and ranks.is_first else Reporter()
    with ranks.ending_together():
        store = open_objects(store_path if isinstance(store_path, str) else str(store_path))
        if ranks.is_first:
            find_target(store, append=options.append, overwrite=options.overwrite)
            require_outside_stores(store, "STORE")
        if isinstance(images, ImageSet):
            result = _harvest(options, images, [], store, ranks, reporter)
        else:
            with open_images(images, label_names=options.label_names) as opened:
                result = _harvest(options, opened, lasting_source(images), store, ranks, reporter)
        ranks.leave()
    return result


def _harvest(
    options: HarvestOptions, images: ImageSet, source: list[str], store: Objects, ranks: Ranks, reporter: Reporter
) -> HarvestResult:
    images = select_images(images, options.limit, options.order, options.seed)
    for note in images.notes:
        reporter.warn(note)
    tower = _load_tower(options, ranks)
    for note in tower.notes:
        reporter.warn(note)
    job = prepare(options, images, source, tower, reporter, measure=ranks.is_first)
    if tower.device.type == "cpu":
        ranks.threads()  # found now, not in the time of the loop
    target, writer = _open(options, job, store, ranks)
    profile = Profile(is_on=options.profile)
    with writer:
        n_images = job.spec.n_images
        n_left = _n_images(writer)
        if ranks.is_first and not n_left:
            reporter.say(f"{target.rows} is complete: {job.spec.n_rows:,} rows; nothing to do.")
        elif ranks.is_first:
            announce(options, job, writer, n_left, ranks, reporter)
        started = time.monotonic()
        with reporter.task("harvest", n_images, "images", done=n_images - n_left) as task:
            try:
                _share_windows(options, job, writer, ranks, profile, task)
            except KeyboardInterrupt:
                if not ranks.another_failed:
                    done = n_images - _n_images(resume_store(target.rows, job.spec, lock=False))
                    reporter.say(
                        f"Stopped: {done:,} of {n_images:,} images are in {target.rows}. The same command goes on "
                        "there."
                    )
                raise
        seconds = time.monotonic() - started
    if ranks.is_first:
        _require_some(target)
        finish(target)
    ranks.wait_for_all("whole")
    return _result(target, ranks, seconds, profile, reporter)


def _load_tower(options: HarvestOptions, ranks: Ranks) -> Tower:
    device = options.device
    if ranks.n_local > 1 and device in ("auto", "cuda") and torch.cuda.is_available():
        device = f"cuda:{ranks.local_rank}"
        torch.cuda.set_device(choose_device(device))  # else each process would also take memory of the first GPU
    with ranks.first_on_machine("tower"):  # it may download the weights
        return load_tower(
            options.model,
            options.pretrained,
            device,
            seed=options.seed,
            allow_activation_mismatch=options.allow_activation_mismatch,
        )


def _open(options: HarvestOptions, job: Job, store: Objects, ranks: Ranks) -> tuple[Target, StoreWriter]:
    """The store: made or opened and held by the first process, then opened by the others."""
    if ranks.is_first:
        target = find_target(store, append=options.append, overwrite=options.overwrite)
        writer = open_writer(target, job, overwrite=options.overwrite)
        ranks.wait_for_all("store")
    else:
        ranks.wait_for_all("store")
        target = find_target(store, append=options.append, overwrite=False)
        writer = resume_store(target.rows, job.spec, lock=False)
    ranks.wait_for_all("opened")  # all see the same windows pending
    return target, writer


def _n_images(writer: StoreWriter) -> int:
    """Images of the windows that are not committed."""
    return sum(stop - start for start, stop in map(writer.window_images, writer.pending))


def _share_windows(
    options: HarvestOptions, job: Job, writer: StoreWriter, ranks: Ranks, profile: Profile, task: Task
) -> None:
    """Harvest this process's windows, then wait for the others; the task hears of all."""
    windows = [window for window in writer.pending if window % ranks.n_ranks == ranks.rank]
    workers = max(1, ranks.share(options.workers)) if options.workers else 0
    seen = 0

    def tell(more: int) -> None:
        nonlocal seen
        total = ranks.count("images", more)
        if total > seen:
            task.advance(total - seen)
            seen = total

    started = time.monotonic()
    if windows:
        steps = write_windows(
            job, writer, windows, workers=workers, ranks=ranks, profile=profile, strict=options.strict
        )
        with naming_dead_workers(), closing(steps):
            for n in steps:
                tell(n)
    profile.publish(time.monotonic() - started, ranks)
    ranks.came("written")
    while not ranks.all_came("written"):
        time.sleep(_LOOK_EVERY_S)
        tell(0)
    tell(0)


def _require_some(target: Target) -> None:
    """Check that an image could be read; an addition without one is taken away again."""
    part = StorePart(target.rows)
    if part.positions.n_valid:
        return
    image, reason = part.unreadable[0]
    (key,) = part.keys([image])
    why = f"not one of {part.n_images:,} images could be read (the first: {key}: {reason})"
    if target.parts:
        remove_store(target.rows)
        raise StoreError(f"nothing was added to {target.store}: {why}.")
    raise StoreError(f"{why}, so {target.rows} holds no activations.")


def _result(target: Target, ranks: Ranks, seconds: float, profile: Profile, reporter: Reporter) -> HarvestResult:
    store = open_store(target.store)
    _warn_of_unreadable(store, reporter)
    n_harvested = ranks.count("images", 0)
    stages = profile.stages(ranks)
    for line in format_stages(stages) if stages else []:
        reporter.say(line)
    return HarvestResult(
        store_path=store.url,
        sites=[site.path for site in store.sites],
        n_rows=store.n_rows,
        n_valid=store.n_valid,
        unreadable=store.unreadable,
        n_harvested=n_harvested,
        seconds=seconds if n_harvested else 0.0,
        images_per_s=n_harvested / seconds if seconds > 0 else 0.0,
        size_bytes=store.objects.size_bytes,
        profile=stages,
        rank=ranks.rank,
    )


def _warn_of_unreadable(store: ActivationStore, reporter: Reporter) -> None:
    """Name the unreadable images of the last part: the one that was harvested."""
    part = store.parts[-1]
    unreadable = store.unreadable[len(store.unreadable) - len(part.unreadable) :]
    for bad in unreadable[:_LISTED]:
        reporter.warn(f"unreadable: {bad.key}: {bad.reason}")
    if unreadable:
        more = f", {len(unreadable) - _LISTED} more are listed in the store" if len(unreadable) > _LISTED else ""
        reporter.warn(f"{len(unreadable):,} of {part.n_images:,} images could not be read{more}.")

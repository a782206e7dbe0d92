"""The loop of a harvest: decoded images through the tower into the windows of a store."""

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..store.commits import Commits
from ..store.errors import StoreError
from ..store.format import Site
from ..store.writer import StoreWriter, WindowWriter
from .batches import Batch, Closable, decoded_batches
from .forward import Rows, TowerRunner
from .plan import Job
from .profile import COMMIT, DECODE, GATHER, TOWER, Profile
from .ranks import Ranks


@dataclass
class ComputedBatch:
    """The vectors of consecutive places of one window."""

    window: int
    batch: Batch
    rows: dict[Site, NDArray[np.float32]]
    """`(n, T, d)`, or `(n, d)` for tokens of which an image has one."""
    is_last: bool
    """Whether the window is now whole."""

    @property
    def n_images(self) -> int:
        """Images of the batch."""
        return len(self.batch.valid)

    def put_into(self, writer: WindowWriter) -> None:
        """Give the vectors to their window; errors as `WindowWriter.put` raises them."""
        batch = self.batch
        writer.put(batch.start, self.rows, batch.valid, batch.unreadable, batch.thumbnails)


def computed_batches(
    job: Job,
    windows: Sequence[int],
    *,
    workers: int,
    ranks: Ranks | None = None,
    held: Closable | None = None,
    profile: Profile | None = None,
) -> Generator[ComputedBatch, None, None]:
    """The batches of these windows, in order.

    A window's batches are computed while earlier ones are taken, but none of the next window before its last batch is
    done with: only one window is ever in hand. Images are decoded ahead all the time.

    Parameters
    ----------
    job
        Of the harvest.
    windows
        Their numbers.
    workers
        Decoding processes; 0 decodes here.
    ranks
        The processes that share the store.
    held
        What decoding processes let go of.
    profile
        Counts what is waited for.

    Raises
    ------
    ChildProcessError
        When a decoding process dies.
    """
    profile = profile or Profile(is_on=False)
    batches = decoded_batches(
        job.decoder,
        job.order,
        windows,
        batch_size=job.spec.provenance.batch_size,
        workers=workers,
        pin=job.tower.device.type == "cuda",
        held=held,
    )
    with closing(batches), TowerRunner(job.tower, job.sites, job.n_batches, ranks) as runner:
        for window in windows:
            stop = job.order.window_images(window)[1]
            begun: deque[tuple[Batch, Future[Rows]]] = deque()
            is_begun = False  # the whole window
            while begun or not is_begun:
                if not is_begun:
                    with profile.timed(DECODE):
                        batch = next(batches)
                    with profile.timed(TOWER):
                        begun.append((batch, runner.submit(batch.pixels)))
                    batch.pixels = batch.pixels[:0].clone()  # a hundred batches of 224 pixels would keep gigabytes
                    is_begun = batch.stop == stop
                if is_begun or len(begun) > runner.n_parallel + 1:
                    batch, future = begun.popleft()
                    with profile.timed(TOWER):
                        rows = {site: values.numpy() for site, values in future.result().items()}
                    yield ComputedBatch(window, batch, rows, is_last=is_begun and not begun)


def write_windows(
    job: Job,
    writer: StoreWriter,
    windows: Sequence[int],
    *,
    workers: int,
    ranks: Ranks,
    profile: Profile,
    strict: bool,
) -> Generator[int, None, None]:
    """Harvest these windows, each committed while the next is filled; yields the number of images after each batch.

    However it ends, the windows that are being committed then are whole, and none after them is begun to be written.

    Raises
    ------
    StoreError
        On activations that are not finite or do not fit the store's number format; with `strict` on an image that
        cannot be read.
    OSError
        When a window cannot be written, at the batch after.
    """
    computed = computed_batches(job, windows, workers=workers, ranks=ranks, held=writer, profile=profile)
    with closing(computed), closing(Commits(writer)) as commits:
        window: WindowWriter | None = None
        for part in computed:
            commits.check()
            if strict and part.batch.unreadable:
                raise _strict_error(job, *part.batch.unreadable[0])
            window = window or writer.window(part.window)
            with profile.timed(GATHER):
                _put(job, part, window)
            if part.is_last:
                with profile.timed(COMMIT):
                    commits.begin(window)
                window = None
            yield part.n_images
        with profile.timed(COMMIT):
            commits.wait()


def _put(job: Job, part: ComputedBatch, window: WindowWriter) -> None:
    try:
        part.put_into(window)
    except StoreError:
        for site, rows in part.rows.items():
            _require_finite(job, site, rows, part.batch)
        raise


def _require_finite(job: Job, site: Site, rows: NDArray[np.float32], batch: Batch) -> None:
    axes: tuple[Any, ...] = tuple(range(1, rows.ndim))
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=axes) & batch.valid)
    if len(bad):
        remedy = "its weights are damaged" if job.tower.precision == "fp32" else "harvest with --precision fp32"
        image = int(job.order.images_at(np.array([batch.start + int(bad[0])]))[0])
        raise StoreError(
            f"{job.tower.name} gives activations that are not finite at {site} for {job.key(image)!r} "
            f"({len(bad)} images of this batch): {remedy}."
        ) from None


def _strict_error(job: Job, image: int, reason: str) -> StoreError:
    return StoreError(
        f"image {job.key(image)!r} cannot be read: {reason}. Without --strict it would be skipped and listed."
    )

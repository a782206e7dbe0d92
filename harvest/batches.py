"""Decoded batches of images, made ahead of the tower in worker processes.

Shapes: n images of a batch, height x width pixels of the tower's input. A *place* is an image's number in the order of
the store's rows.
"""

import signal
import sys
import time
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ..store.row_order import RowOrder
from .decode import ImageUnreadable, decode_image, thumbnail
from .images import ImageSet
from .vision import PixelTransform


@dataclass
class Batch:
    """The images at consecutive places of one window, decoded."""

    start: int
    """First place."""
    pixels: Tensor
    """`(n, height, width, 3)` uint8; zeros where the image cannot be read, so that shapes do not depend on it."""
    valid: NDArray[np.bool_]
    """`(n,)`; False where the image cannot be read."""
    unreadable: list[tuple[int, str]]
    """(image, reason) of each such image; images are numbered in source order."""
    thumbnails: list[bytes | None] | None
    """WebP bytes, None for an unreadable image; None when no thumbnails are wanted."""
    decode_s: float
    """Seconds that one process took."""

    @property
    def stop(self) -> int:
        """Place after the last."""
        return self.start + len(self.valid)

    def pin_memory(self) -> "Batch":
        """Move the pixels to page-locked memory, from which a GPU copies by itself (called by torch's loader)."""
        self.pixels = self.pixels.pin_memory()
        return self


class ImageDecoder(Dataset[Batch]):
    """Reads and decodes the images at ranges of places.

    Parameters
    ----------
    images
        In source order.
    order
        Which image is at which place.
    transform, size
        The tower's, from pictures to pixels.
    thumbnail_px
        Largest side of the thumbnails; None makes none.
    """

    def __init__(
        self,
        images: ImageSet,
        order: RowOrder,
        transform: PixelTransform,
        size: Sequence[int],
        thumbnail_px: int | None,
    ) -> None:
        self._images = images
        self._order = order
        self._transform = transform
        self._size = tuple(size)
        self._thumbnail_px = thumbnail_px

    def __getitem__(self, places: tuple[int, int]) -> Batch:
        started = time.perf_counter()
        start, stop = places
        pixels = np.zeros((stop - start, *self._size, 3), np.uint8)
        valid = np.zeros(stop - start, np.bool_)
        unreadable: list[tuple[int, str]] = []
        thumbnails: list[bytes | None] = [None] * (stop - start)
        for k, image in enumerate(self._order.images_at(np.arange(start, stop)).tolist()):
            try:
                data = self._images.read(image)
                picture = decode_image(data)
                pixels[k] = self._transform(picture)
                if self._thumbnail_px is not None:
                    thumbnails[k] = thumbnail(picture, self._thumbnail_px, data)
                valid[k] = True
            except ImageUnreadable as error:
                unreadable.append((image, str(error)))
            except OSError as error:
                unreadable.append((image, error.strerror or str(error)))
        return Batch(
            start=start,
            pixels=torch.from_numpy(pixels),
            valid=valid,
            unreadable=unreadable,
            thumbnails=thumbnails if self._thumbnail_px is not None else None,
            decode_s=time.perf_counter() - started,
        )


class Closable(Protocol):
    """What a process must let go of."""

    def close(self) -> None:
        """Let go."""


class _BatchPlaces(Sampler[tuple[int, int]]):
    """The places of the batches: window after window, none across two windows."""

    def __init__(self, order: RowOrder, windows: Sequence[int], batch_size: int) -> None:
        self._windows = [order.window_images(window) for window in windows]
        self._batch_size = batch_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for start, stop in self._windows:
            for first in range(start, stop, self._batch_size):
                yield first, min(first + self._batch_size, stop)


def decoded_batches(
    decoder: ImageDecoder,
    order: RowOrder,
    windows: Sequence[int],
    *,
    batch_size: int,
    workers: int,
    pin: bool,
    held: Closable | None = None,
) -> Generator[Batch, None, None]:
    """The batches of these windows, in order, decoded ahead by `workers` processes (0: here, when asked for).

    The workers start when this is called, before any other thread of the caller. They let go of `held`.

    Raises
    ------
    ChildProcessError
        When a worker dies.
    """
    forks = "fork" in torch.multiprocessing.get_all_start_methods()
    loader = DataLoader(
        decoder,
        sampler=_BatchPlaces(order, windows, batch_size),
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=workers,
        prefetch_factor=2 if workers else None,
        pin_memory=pin,
        # A spawned worker would import torch and open_clip again: seconds of every core. Workers touch no GPU.
        multiprocessing_context=("fork" if forks else "spawn") if workers else None,
        worker_init_fn=_WorkerStart(held if forks else None),
        generator=torch.Generator(),  # the loader draws a seed; the caller's generator is left alone
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
        iterator = iter(loader)
    return _checked(iterator)


@contextmanager
def naming_dead_workers() -> Iterator[None]:
    """Say what became of a decoding process that died: torch raises its error wherever the main thread then is.

    Raises
    ------
    ChildProcessError
        When a worker dies while the block runs.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise ChildProcessError(
            f"a decoding process died ({' '.join(str(error).split())}). It was killed from outside, or memory (or "
            "/dev/shm) ran out: try fewer --workers. Run the same command again to go on."
        ) from error


def _checked(iterator: Iterator[Batch]) -> Generator[Batch, None, None]:
    try:
        while True:
            with naming_dead_workers():
                try:
                    batch = next(iterator)
                except StopIteration:
                    return
            yield batch
    finally:
        shutdown = getattr(iterator, "_shutdown_workers", None)
        if shutdown is not None:
            shutdown()


class _WorkerStart:
    """What a worker does first."""

    def __init__(self, held: Closable | None) -> None:
        self._held = held

    def __call__(self, _worker: int) -> None:
        # Ctrl-C, and torchrun's SIGTERM, reach the whole group; the main process ends its workers
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sys.excepthook = _report_unless_receiver_left
        if self._held is not None:
            self._held.close()  # else a worker that outlives a killed harvest would hold the store's lock


def _report_unless_receiver_left(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """As `sys.__excepthook__`, but not for a batch whose receiver stopped while it was handed over.

    The thread of a worker that hands over tensors reports its errors here, and goes on. Its receiver is the main
    process, which says itself why it stopped.
    """
    if not issubclass(kind, (EOFError, ConnectionError)):
        sys.__excepthook__(kind, error, traceback)


def _as_it_is(batch: Any) -> Any:
    return batch

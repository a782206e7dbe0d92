"""Decoded batches of images, made ahead of the tower in worker processes.

Shapes: n rows of a batch, height x width pixels of the tower's input.
"""

import signal
import time
import warnings
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ..store.writer import StoreWriter
from .decode import ImageUnreadable, decode_image, thumbnail
from .images import ImageSet
from .vision import PixelTransform


@dataclass
class Batch:
    """Consecutive rows of one chunk, decoded."""

    start: int
    """First row."""
    pixels: Tensor
    """`(n, height, width, 3)` uint8; zeros where the image cannot be read, so that shapes do not depend on it."""
    valid: NDArray[np.bool_]
    """`(n,)`; False where the image cannot be read."""
    unreadable: list[tuple[int, str]]
    """(row, reason) of each such image."""
    thumbnails: list[bytes | None] | None
    """WebP bytes, None for an unreadable image; None when no thumbnails are wanted."""
    decode_s: float
    """Seconds that one process took."""

    @property
    def stop(self) -> int:
        """Row after the last."""
        return self.start + len(self.valid)

    def pin_memory(self) -> "Batch":
        """Move the pixels to page-locked memory, from which a GPU copies by itself (called by torch's loader)."""
        self.pixels = self.pixels.pin_memory()
        return self


class RowDecoder(Dataset[Batch]):
    """Reads and decodes the images of ranges of rows."""

    def __init__(
        self,
        images: ImageSet,
        row_image: NDArray[np.unsignedinteger[Any]],
        transform: PixelTransform,
        size: Sequence[int],
        thumbnail_px: int | None,
    ) -> None:
        self._images = images
        self._row_image = row_image
        self._transform = transform
        self._size = tuple(size)
        self._thumbnail_px = thumbnail_px

    def __getitem__(self, rows: tuple[int, int]) -> Batch:
        started = time.perf_counter()
        start, stop = rows
        pixels = np.zeros((stop - start, *self._size, 3), np.uint8)
        valid = np.zeros(stop - start, np.bool_)
        unreadable: list[tuple[int, str]] = []
        thumbnails: list[bytes | None] = [None] * (stop - start)
        for k, image in enumerate(self._row_image[start:stop]):
            try:
                data = self._images.read(int(image))
                picture = decode_image(data)
                pixels[k] = self._transform(picture)
                if self._thumbnail_px is not None:
                    thumbnails[k] = thumbnail(picture, self._thumbnail_px, data)
                valid[k] = True
            except ImageUnreadable as error:
                unreadable.append((start + k, str(error)))
            except OSError as error:
                unreadable.append((start + k, error.strerror or str(error)))
        return Batch(
            start=start,
            pixels=torch.from_numpy(pixels),
            valid=valid,
            unreadable=unreadable,
            thumbnails=thumbnails if self._thumbnail_px is not None else None,
            decode_s=time.perf_counter() - started,
        )


class _BatchRanges(Sampler[tuple[int, int]]):
    """The row ranges of the batches: chunk after chunk, none across two chunks."""

    def __init__(self, writer: StoreWriter, chunks: list[int], batch_size: int) -> None:
        self._chunks = [writer.chunk_rows(chunk) for chunk in chunks]
        self._batch_size = batch_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for start, stop in self._chunks:
            for first in range(start, stop, self._batch_size):
                yield first, min(first + self._batch_size, stop)


def decoded_batches(
    decoder: RowDecoder, writer: StoreWriter, chunks: list[int], *, batch_size: int, workers: int, pin: bool
) -> Generator[Batch, None, None]:
    """The batches of these chunks, in order, decoded ahead by `workers` processes (0: here, when asked for).

    The workers start when this is called, before any other thread of the caller.

    Raises
    ------
    ChildProcessError
        When a worker dies.
    """
    forks = "fork" in torch.multiprocessing.get_all_start_methods()
    loader = DataLoader(
        decoder,
        sampler=_BatchRanges(writer, chunks, batch_size),
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=workers,
        prefetch_factor=2 if workers else None,
        pin_memory=pin,
        # A spawned worker would import torch and open_clip again: seconds of every core. Workers touch no GPU.
        multiprocessing_context=("fork" if forks else "spawn") if workers else None,
        worker_init_fn=_WorkerStart(writer if forks else None),
        generator=torch.Generator(),  # the loader draws a seed; the caller's generator is left alone
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
        iterator = iter(loader)
    return _checked(iterator)


def _checked(iterator: Iterator[Batch]) -> Generator[Batch, None, None]:
    try:
        while True:
            try:
                batch = next(iterator)
            except StopIteration:
                return
            yield batch
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise ChildProcessError(
            f"a decoding process died ({' '.join(str(error).split())}). It was killed from outside, or memory (or "
            "/dev/shm) ran out: try fewer --workers. Run the same command again to go on."
        ) from error
    finally:
        shutdown = getattr(iterator, "_shutdown_workers", None)
        if shutdown is not None:
            shutdown()


class _WorkerStart:
    """What a worker does first."""

    def __init__(self, writer: StoreWriter | None) -> None:
        self._writer = writer

    def __call__(self, _worker: int) -> None:
        signal.signal(
            signal.SIGINT, signal.SIG_IGN
        )  # Ctrl-C reaches the whole group; the main process ends its workers
        if self._writer is not None:
            self._writer.close()  # else a worker that outlives a killed harvest would hold the store's lock


def _as_it_is(batch: Any) -> Any:
    return batch

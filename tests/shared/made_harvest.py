"""The harvest of made stores, without a tower: rows are made again from what the stores were made with."""

from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from thresher.progress import Reporter
from thresher.store.errors import StoreError
from thresher.store.format import Site
from thresher.store.part_repair import Harvest

CLS = Site(1).path


@dataclass
class Rows:
    """Some rows of a window of a made store."""

    made: Any
    window: int
    start: int
    stop: int
    is_last: bool
    noise: float
    gone: tuple[int, ...]
    other_pictures: tuple[int, ...] = ()

    @property
    def n_images(self) -> int:
        return self.stop - self.start

    def put_into(self, writer) -> None:
        made, places = self.made, np.arange(self.start, self.stop)
        images, rows = made.order.images_at(places), made.order.rows_at(places)
        valid = made.valid[rows[:, 0]] & ~np.isin(images, self.gone)
        bad = [(image, "cannot be read") for image in images[~valid].tolist()]
        names = [b"other %d" if image in self.other_pictures else b"thumbnail %d" for image in images]
        thumbnails = [name % i if ok else None for name, i, ok in zip(names, images, valid, strict=True)]
        values = {site: values[rows] * np.float32(1 + self.noise) for site, values in made.rows.items()}
        writer.put(self.start, values, valid, bad, thumbnails)


@dataclass
class FromMemory:
    """The harvest of made stores, by the digest of their images."""

    made: list[Any]
    noise: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)
    gone: tuple[int, ...] = ()
    """Images that cannot be read any more."""
    other_pictures: tuple[int, ...] = ()
    """Images whose pictures are others now."""
    windows: list[int] = field(default_factory=list)
    """Those that were asked for."""
    n_opened: int = 0

    def _of(self, provenance):
        return next(made for made in self.made if made.spec.provenance.keys_sha256 == provenance.keys_sha256)

    @contextmanager
    def _images(self, provenance):
        if not self.made:
            raise StoreError("/data/images holds other images than were harvested: name the original IMAGES.")
        self.n_opened += 1
        yield self._of(provenance)

    def _windows(self, spec, windows, images, held):
        self.windows += windows
        for window in windows:
            start, stop = images.order.window_images(window)
            for first in range(start, stop, 7):
                last = min(first + 7, stop)
                yield Rows(images, window, first, last, last == stop, self.noise, self.gone, self.other_pictures)

    def harvest(self) -> Harvest:
        return Harvest(images=self._images, windows=self._windows, versions=self.versions)


class Told(Reporter):
    def __init__(self) -> None:
        self.warned: list[str] = []

    def warn(self, text):
        self.warned.append(text)


def bytes_below(path) -> dict[str, bytes]:
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def flip(path, at: int = -9) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x11
    path.write_bytes(data)


def made_with(make_store, **changes):
    """A made store whose provenance has other fields."""
    from thresher.store.writer import create_store

    made = make_store(150, name="with.zarr")
    spec = replace(made.spec, provenance=replace(made.spec.provenance, **changes))
    with create_store(made.path, spec, keys=made.keys, labels=made.labels, overwrite=True) as writer:
        for number in range(writer.n_windows):
            window = writer.window(number)
            start, stop = writer.window_images(number)
            Rows(made, number, start, stop, True, 0.0, ()).put_into(window)
            window.commit()
    return replace(made, spec=spec)

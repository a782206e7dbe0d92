"""Makes the pictures of some features of a run, and writes each as soon as its seeds are optimised."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...harvest.recorded import recorded_images
from ...progress import Reporter, Task, format_bytes, format_s
from ...store.errors import StoreError
from ...store.files import free_bytes
from ..evaluation_images import decoded
from ..naming.split import images_of
from .checks import picture_code
from .optimise import Start, optimise, pictures_at_once
from .options import VisualiseOptions
from .pictures import MadePicture, as_webp, save_pictures, write_made
from .probe import ProbedRun
from .spectrum import ImageSpectrum, canvas_tower, image_spectrum
from .visualisations_file import FOLDER

CANVAS = 1.5
"""Times the tower's input: room for crops, and a finer picture than the tower sees."""
_BYTES_A_PIXEL = 3
"""At most, of a WebP file."""

_Item = TypeVar("_Item")


@dataclass
class Making:
    """The making of pictures of a run by one set of options."""

    probed: ProbedRun
    options: VisualiseOptions
    reporter: Reporter

    @property
    def folder(self) -> Path:
        """Where pictures are written."""
        return self.probed.path / FOLDER

    @cached_property
    def size(self) -> tuple[int, int]:
        """Height and width of pictures, in the proportions of what the tower sees; `ValueError` of a useless canvas."""
        height, width = self.probed.probe.input_size
        shorter = min(height, width)
        canvas = round(CANVAS * shorter) if self.options.canvas is None else self.options.canvas
        if not shorter <= canvas <= 16 * shorter:
            raise ValueError(
                f"--canvas is {canvas}; the tower sees {shorter} pixels: give {shorter} to {16 * shorter}."
            )
        return round(height * canvas / shorter), round(width * canvas / shorter)

    @cached_property
    def spectrum(self) -> ImageSpectrum:
        """Of the run's images, at the size of the pictures."""
        return image_spectrum(
            self.folder,
            self.probed.store,
            self.probed.probe.exact,
            self.size,
            images=self.options.images,
            workers=self.options.workers,
            reporter=self.reporter,
        )

    def make(self, features: Sequence[int], made: dict[int, MadePicture]) -> None:
        """Make the pictures of some features and add them to those made."""
        options, at_once = self.options, pictures_at_once(self.options)
        n_pictures = len(features) * options.seeds
        self._require_space(n_pictures)
        self._forecast(features[0], n_pictures)
        with self.reporter.task("optimising pictures", n_pictures * options.steps, "steps") as task:
            for some in _runs(features, max(1, at_once // options.seeds)):
                pixels: dict[int, dict[int, NDArray[np.uint8]]] = {feature: {} for feature in some}
                starts = self._starts(some)
                for together in _runs(starts, at_once):
                    on_step = _counting(task, len(together))
                    found = optimise(self.probed.probe, together, self.spectrum, self.size, options, on_step)
                    for start, picture in zip(together, found, strict=True):
                        pixels[start.feature][start.seed] = picture
                for feature, by_seed in pixels.items():
                    made[feature] = self._judged(feature, by_seed)
                    save_pictures(self.folder, made[feature], by_seed)
                write_made(self.folder, made.values())

    def _starts(self, features: Sequence[int]) -> list[Start]:
        """Every picture of some features."""
        starts = [Start(feature, seed) for feature in features for seed in range(self.options.seeds)]
        if not self.options.from_image:
            return starts
        rows = [self._first_row(start.feature, start.seed) for start in starts]
        images = dict(self._images(np.unique(rows)))
        if gone := [row for row in rows if row not in images]:
            raise StoreError(f"the image of row {gone[0]:,} cannot be read, and --from-image begins with it.")
        return [replace(start, image=images[row]) for start, row in zip(starts, rows, strict=True)]

    def _first_row(self, feature: int, seed: int) -> int:
        """Row of the image that a picture begins with: the feature's largest ones in turn, one a seed."""
        rows = self.probed.stored.statistics.top_row[feature]
        rows = rows[rows >= 0]
        return int(rows[seed % len(rows)])

    def _images(self, rows: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """The readable images of rows, at the size of the pictures."""
        store = self.probed.store
        tower = canvas_tower(self.probed.probe.exact, self.size)
        numbers, first = images_of(store, rows), 0
        for part in store.parts:
            here = np.flatnonzero((first <= numbers) & (numbers < first + part.n_images))
            if len(here):
                with recorded_images(part.provenance, self.options.images) as images:
                    for places, pixels in decoded(
                        images, numbers[here] - first, tower, batch_size=len(here), workers=0
                    ):
                        yield from zip(rows[here[places]].tolist(), pixels.numpy(), strict=True)
            first += part.n_images

    def _judged(self, feature: int, pictures: dict[int, NDArray[np.uint8]]) -> MadePicture:
        """Which seed's picture keeps the most of its feature, in 8 bits, compressed, and after mild damages."""
        kept, probe = {}, self.probed.probe
        for seed, pixels in pictures.items():
            with Image.open(BytesIO(as_webp(pixels))) as saved:
                code = picture_code(probe, probe.view(saved.convert("RGB")))
            kept[seed] = min(float(each[feature]) for each in (code.whole, code.jpeg, code.blur, code.crop))
        best = max(kept, key=lambda seed: (kept[seed], -seed))
        begun = self.options.from_image
        return MadePicture(
            feature=feature,
            seed=best,
            activations=kept,
            parametrisation=self.options.method + (" from image" if begun else ""),
            from_row=self._first_row(feature, best) if begun else None,
        )

    def _forecast(self, feature: int, n_pictures: int) -> None:
        """Say how long it will take, from one step of as many pictures as are optimised together."""
        options, some = self.options, min(n_pictures, pictures_at_once(self.options))
        tried = [Start(feature, seed) for seed in range(some)]
        seconds = []
        for _ in range(2):  # the first one also loads what the device needs
            started = time.perf_counter()
            optimise(self.probed.probe, tried, self.spectrum, self.size, replace(options, steps=1))
            seconds.append(time.perf_counter() - started)
        whole = min(seconds) / some * n_pictures * options.steps
        self.reporter.say(
            f"{n_pictures:,} pictures of {self.size[1]} x {self.size[0]} pixels, {options.steps:,} steps of "
            f"{options.crops} crops each: about {format_s(whole)}"
        )

    def _require_space(self, n_pictures: int) -> None:
        need, free = n_pictures * _BYTES_A_PIXEL * self.size[0] * self.size[1], free_bytes(self.folder)
        if need > free:
            raise StoreError(
                f"{self.folder} has {format_bytes(free)} free, and {n_pictures:,} pictures may take "
                f"{format_bytes(need)}: make room, or ask for fewer features or seeds."
            )


def _runs(items: Sequence[_Item], n: int) -> Iterator[Sequence[_Item]]:
    for start in range(0, len(items), n):
        yield items[start : start + n]


def _counting(task: Task, n: int) -> Callable[[], None]:
    return lambda: task.advance(n)

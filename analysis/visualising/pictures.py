"""The pictures of a run on disk: `RUN/visualisations/*.webp`, and `pictures.json`, which says what they are.

`<feature>.webp` is the seed that lasts best, `<feature>-<seed>.webp` each other one. Files are written first, then the
record: a feature that the record has is done.
"""

import io
import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...store.errors import DamagedStoreError
from ...store.files import write_all_atomically, write_atomically
from ..whole_file import NO_SENSE, read_json, read_whole
from .visualisations_file import VISUALISATIONS_TSV

PICTURES_JSON = "pictures.json"
QUALITY = 95
"""Of the WebP files: 2.5 kB at 96 x 96 pixels. Every check is of what the file holds."""


@dataclass(frozen=True, kw_only=True)
class MadePicture:
    """The pictures of one feature."""

    feature: int
    seed: int
    """Of the one that lasts best."""
    activations: dict[int, float]
    """By seed: the feature's activation on the picture, the least of that before and after mild damages."""
    parametrisation: str
    """`maco`, `fourier`, or either with `from image`."""
    from_row: int | None
    """Row of the image that the best one was begun with."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """Every seed, the best one first."""
        return (self.seed, *(seed for seed in self.activations if seed != self.seed))

    def path(self, folder: Path, seed: int | None = None) -> Path:
        """File of a seed's picture, by default of the best."""
        is_best = seed is None or seed == self.seed
        return folder / (f"{self.feature}.webp" if is_best else f"{self.feature}-{seed}.webp")


def save_pictures(folder: Path, made: MadePicture, pixels: Mapping[int, NDArray[np.uint8]]) -> None:
    """Write the pictures of a feature, `(H, W, 3)` by seed."""
    write_all_atomically({made.path(folder, seed): [as_webp(each)] for seed, each in pixels.items()})


def as_webp(pixels: NDArray[np.uint8]) -> bytes:
    """The bytes of a picture's file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", quality=QUALITY, method=4)
    return buffer.getvalue()


def read_picture(path: Path) -> Image.Image:
    """A picture in RGB; `DamagedStoreError` where it is gone or cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(read_whole(path)), formats=("WEBP",)) as opened:
                return opened.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        why = getattr(error, "strerror", None) or "it is no whole WebP file"
        raise DamagedStoreError(
            f"{path} cannot be read as a picture ({why}): make it again with `thresher visualise --features "
            f"{path.stem.partition('-')[0]} --overwrite`."
        ) from error


def write_made(folder: Path, made: Iterable[MadePicture]) -> None:
    """Write the record of what has been made, whole."""
    document = {str(each.feature): asdict(each) for each in sorted(made, key=lambda each: each.feature)}
    write_atomically(folder / PICTURES_JSON, json.dumps(document, indent=1).encode() + b"\n")


def read_made(folder: Path) -> dict[int, MadePicture]:
    """What has been made, by feature; `DamagedStoreError` where the record is no record, or lost."""
    path = folder / PICTURES_JSON
    try:
        document: dict[str, dict[str, Any]] = read_json(path)
        return {int(feature): _made(int(feature), each) for feature, each in document.items()}
    except FileNotFoundError:
        if (folder / VISUALISATIONS_TSV).exists():  # which is written after the record
            raise DamagedStoreError(
                f"{path} is gone: make the pictures again with `thresher visualise --overwrite`."
            ) from None
        return {}
    except NO_SENSE as error:
        raise DamagedStoreError(
            f"{path} is damaged ({error}): make the pictures again with `thresher visualise --overwrite`."
        ) from error


def _made(feature: int, said: Mapping[str, Any]) -> MadePicture:
    """A feature's part of the record; `ValueError` and the like where it makes no sense."""
    activations = {int(seed): float(activation) for seed, activation in said["activations"].items()}
    found = MadePicture(**{**said, "activations": activations})
    if found.feature != feature or found.seed not in activations or not isinstance(found.parametrisation, str):
        raise ValueError(f"what it says of feature {feature} makes no sense")
    return found

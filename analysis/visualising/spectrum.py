"""The mean magnitude spectrum and the colours of a run's own images, from which pictures are made.

Shapes: H x W pixels of the canvas, K = W // 2 + 1 columns of half a spectrum.
"""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...harvest.recorded import Source, recorded_images
from ...harvest.vision import Tower
from ...progress import Reporter
from ...store.errors import StoreError
from ...store.files import write_atomically
from ...store.reader import ActivationStore
from ..evaluation_images import decoded
from ..whole_file import npy_header, read_json, read_whole
from .parametrise import Colours, total_variation

SPECTRUM_NPY, SPECTRUM_JSON = "spectrum.npy", "spectrum.json"
MOST_IMAGES = 4096
"""Beyond which a mean magnitude no longer moves: its relative error is 0.5 / sqrt(n) a coefficient, here 0.8 %."""


@dataclass(frozen=True)
class ImageSpectrum:
    """What images look like to a Fourier transform.

    Parameters
    ----------
    magnitude
        `(3, H, K)`: mean |rfft2| of the images, in the decorrelated logits of `parametrise`.
    colours
        Of their pixels.
    n_images
        Images that it is the mean of.
    variation
        Their mean total variation.
    """

    magnitude: NDArray[np.float32]
    colours: Colours
    n_images: int
    variation: float = 1.0


def image_spectrum(
    folder: Path,
    store: ActivationStore,
    tower: Tower,
    size: tuple[int, int],
    *,
    images: Source | None = None,
    workers: int | None = None,
    reporter: Reporter | None = None,
) -> ImageSpectrum:
    """The spectrum of a store's first images, read from `folder` where an earlier call left it.

    Parameters
    ----------
    folder
        Where `spectrum.npy` and `spectrum.json` are, or will be.
    size
        H, W: the images are resized and cropped to it as the tower does.
    images
        Where the images are now; by default where they were harvested from.

    Raises
    ------
    ValueError, FileNotFoundError, StoreError
        When the images cannot be opened, or fewer than two can be read.
    """
    of = {"store_fingerprint": store.fingerprint, "size": list(size), "preprocessing": tower.preprocessing}
    kept = _read(folder, of)
    if kept is not None:
        return kept
    part = store.parts[0]
    rows = np.arange(min(part.n_images, MOST_IMAGES))
    with recorded_images(part.provenance, images) as opened:
        chosen = part.order.images_at(rows)
        found = measured(
            lambda: (
                pixels.numpy()
                for _, pixels in decoded(opened, chosen, canvas_tower(tower, size), batch_size=64, workers=workers)
            ),
            reporter or Reporter(),
            len(chosen),
        )
    buffer = BytesIO()
    np.save(buffer, found.magnitude)
    write_atomically(folder / SPECTRUM_NPY, buffer.getvalue())
    record = {**of, "n_images": found.n_images, "variation": found.variation}
    record |= {"mean": found.colours.mean.tolist(), "mixing": found.colours.mixing.tolist()}
    write_atomically(folder / SPECTRUM_JSON, json.dumps(record, indent=1).encode() + b"\n")
    return found


def canvas_tower(tower: Tower, size: tuple[int, int]) -> Tower:
    """The tower, whose pictures are resized and cropped to another size."""
    from open_clip.transform import PreprocessCfg, image_transform_v2

    config = {**tower.preprocessing, "size": list(size)}
    return dataclasses.replace(
        tower, preprocessing=config, preprocess=image_transform_v2(PreprocessCfg(**config), is_train=False)
    )


def measured(batches: Any, reporter: Reporter, n_images: int) -> ImageSpectrum:
    """The spectrum of images, in two passes over them: their colours, then their magnitudes.

    Parameters
    ----------
    batches
        A call gives the images anew, as batches `(b, H, W, 3)` uint8.
    """
    n, total, square = 0, np.zeros(3), np.zeros((3, 3))
    with reporter.task("spectrum of the images", 2 * n_images, "images") as task:
        for logits in _logits(batches):
            pixels = logits.permute(0, 2, 3, 1).reshape(-1, 3).double()
            n += len(pixels)
            total += pixels.sum(0).numpy()
            square += (pixels.T @ pixels).numpy()
            task.advance(len(logits))
        if n == 0:
            raise StoreError("none of the images can be read, and the spectrum of pictures is theirs: name IMAGES.")
        mean = total / n
        values, vectors = np.linalg.eigh(square / n - np.outer(mean, mean))
        # images of one grey have no spread of colour: a floor of a hundredth of the largest keeps W invertible
        deviation = np.sqrt(np.maximum(values, max(1e-4 * values.max(), 1e-6)))
        colours = Colours(mean.astype(np.float32), (vectors * deviation @ vectors.T).astype(np.float32))
        magnitude, variation, n_images = torch.zeros(1), 0.0, 0
        for pixels in batches():
            u = colours.decorrelate(_from_0_to_1(pixels))
            variation += float(total_variation(_from_0_to_1(pixels)).sum())
            magnitude = magnitude + torch.fft.rfft2(u).abs().double().sum(0)
            n_images += len(u)
            task.advance(len(u))
    return ImageSpectrum((magnitude / n_images).float().numpy(), colours, n_images, variation / n_images)


def _from_0_to_1(pixels: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255


_AS_THEY_ARE = Colours(np.zeros(3, np.float32), np.eye(3, dtype=np.float32))


def _logits(batches: Any) -> Iterator[torch.Tensor]:
    for pixels in batches():
        yield _AS_THEY_ARE.decorrelate(_from_0_to_1(pixels))


def _read(folder: Path, of: dict[str, Any]) -> ImageSpectrum | None:
    """What is cached, where it is of the same images at the same size."""
    try:
        record = read_json(folder / SPECTRUM_JSON)
        if any(record[name] != value for name, value in of.items()):
            return None
        height, width = of["size"]
        shape = 3, height, width // 2 + 1
        data, header = read_whole(folder / SPECTRUM_NPY, 1 << 32), npy_header(shape)
        mean, mixing = (np.array(record[name], np.float32) for name in ("mean", "mixing"))
        if not data.startswith(header) or mean.shape != (3,) or mixing.shape != (3, 3):
            return None
        magnitude = np.frombuffer(data, np.float32, offset=len(header)).reshape(shape).copy()
        variation = float(record["variation"])
        if not all(np.isfinite(each).all() for each in (magnitude, mean, mixing, variation)):
            return None
        return ImageSpectrum(magnitude, Colours(mean, mixing), int(record["n_images"]), variation)
    except (OSError, ValueError, KeyError, TypeError, OverflowError):  # not there, or damaged: made anew
        return None

"""What pictures are held against: the same checks of pictures that were not made for the feature.

Shapes: H x W pixels of the canvas, h x w of the tower's input.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from .parametrise import make_pictures
from .probe import FeatureProbe
from .spectrum import ImageSpectrum

PICTURES, TOP_IMAGES, ADVERSARIAL, OTHER_FEATURE, RANDOM_PHASES, NOISE = KINDS = (
    "pictures",
    "top images",
    "raw pixels",
    "other features",
    "random phases",
    "noise",
)
"""Kinds of pictures in one table: those made for their features, and what they are held against."""
KIND_WORDS = {
    PICTURES: "made for the feature",
    TOP_IMAGES: "the image on which the feature is largest: what a perfect picture would reach",
    ADVERSARIAL: "pixels optimised for the feature as they are, without spectrum, crops or noise: adversarial patterns",
    OTHER_FEATURE: "made for one feature, judged for another drawn at random",
    RANDOM_PHASES: "the mean spectrum of the images with random phases, judged for features drawn at random",
    NOISE: "uniform noise in every pixel, judged for features drawn at random",
}
FEATURES_A_PICTURE = 4
"""That each picture of a null is judged for: looking at a picture costs eight passes, judging it nothing."""
N_RANDOM = 32
"""Random pictures of each kind."""
N_ADVERSARIAL = 16
_STEPS, _RATE = 64, 0.02  # 0.02 of the range from black to white a step: activations far above any real image's


def random_phases(spectrum: ImageSpectrum, width: int, n: int, seed: int) -> Iterator[Image.Image]:
    """Pictures with the spectrum and the colours of images, of random phases: where optimisation begins."""
    height = spectrum.magnitude.shape[1]
    for number in range(n):
        generator = torch.Generator().manual_seed(seed * n + number)
        made = make_pictures("maco", (height, width), spectrum.magnitude, spectrum.colours, [generator])
        with torch.no_grad():
            pixels = (made.images()[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        yield Image.fromarray(pixels)


def adversarial(probe: FeatureProbe, features: NDArray[np.int64], seed: int) -> Iterator[NDArray[np.uint8]]:
    """Pixels `(h, w, 3)` for each of some features: noise on grey that gradient steps make its pre-activation large by.

    What optimisation finds where nothing keeps it to pictures: each must drive its feature and fail the checks.
    """
    generator = torch.Generator().manual_seed(seed)
    for first in range(0, len(features), probe.batch_size):
        some = torch.from_numpy(features[first : first + probe.batch_size]).to(probe.device)
        start = 0.5 + 0.05 * torch.randn(len(some), 3, *probe.input_size, generator=generator)
        pixels = start.to(probe.device).requires_grad_()
        optimiser = torch.optim.Adam([pixels], lr=_RATE)
        for _ in range(_STEPS):
            optimiser.zero_grad()
            (-probe.preactivations(pixels.clamp(0, 1), some).sum()).backward()
            optimiser.step()
        yield from (pixels.detach().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def noise(size: tuple[int, int], n: int, seed: int) -> Iterator[Image.Image]:
    """Pictures of height and width `size`, every pixel and colour uniform by itself."""
    generator = np.random.default_rng([seed, 9])
    for _ in range(n):
        yield Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8))


def drawn_features(among: NDArray[np.int64], but: int | None, generator: np.random.Generator) -> list[int]:
    """Up to `FEATURES_A_PICTURE` features drawn at random, but not one of them."""
    possible = among[among != but] if but is not None else among
    chosen = generator.permutation(possible)[:FEATURES_A_PICTURE]
    return [int(each) for each in chosen]

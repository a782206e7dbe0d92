"""Optimises pictures, several at a time, each as if it were alone.

What is made large is the feature's pre-activation, in units of its largest activation on a real image, less a weight
times the picture's total variation, in units of the images' mean. Total variation as an L1 norm is least, at a given
spectrum, where all change is in few edges: it takes the grain out of pictures of either kind.

Lucid's other terms are left out. On the quickstart tower (12 random features, 128 steps of 4 crops) its factor
max(0.1, cos)^2 of row and encoder vector raised the feature's share of the code from 0.14 to 0.16 and lowered its
activation from 1.44 of the largest on a real image to 1.38; a tenth of the mean of the 16 largest other features taken
off changed neither. All twelve passed with and without. Stronger ones (cos^4, a half) left most features off: below 0 a
smaller cosine is the larger product.

What is random of a picture is drawn from its own generator, so that it does not depend on which others share its
batch, but for the last bits of float32.

Shapes: n pictures, H x W pixels of the canvas, h x w of the tower's input, c crops a step, b crops in a forward pass.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from .options import VisualiseOptions
from .parametrise import make_pictures, total_variation
from .probe import FeatureProbe
from .spectrum import ImageSpectrum

SIDES_FIRST, SIDES_LAST = (0.9, 1.0), (0.6, 0.95)
"""Sides of crops as shares of the canvas's, from and to, at the first step and at the last: from large to small."""
JITTER = 0.05
"""How far, as a share of half the canvas, a crop may reach over its edge, where the picture is mirrored."""
COLOUR = 0.05
"""Largest shift of a whole crop's colours, which go from 0 to 1."""


@dataclass(frozen=True)
class Start:
    """A picture to be made: of which feature, by which seed, and from which image if from any, `(H, W, 3)` uint8."""

    feature: int
    seed: int
    image: NDArray[np.uint8] | None = None


def pictures_at_once(options: VisualiseOptions) -> int:
    """Pictures that are optimised together, so that their crops fill a forward pass."""
    return max(1, options.batch_size // options.crops)


def optimise(
    probe: FeatureProbe,
    starts: Sequence[Start],
    spectrum: ImageSpectrum,
    size: tuple[int, int],
    options: VisualiseOptions,
    on_step: Callable[[], None] = lambda: None,
) -> NDArray[np.uint8]:
    """Make pictures.

    Parameters
    ----------
    starts
        All with an image, or all without.
    spectrum
        Of images of the same size.
    size
        H, W.
    on_step
        Called after each step.

    Returns
    -------
    pictures
        `(n, H, W, 3)`.
    """
    generators = [_generator(probe.device, start, options.seed) for start in starts]
    given = [start.image for start in starts if start.image is not None]
    assert len(given) in (0, len(starts))
    begun = torch.from_numpy(np.stack(given)).permute(0, 3, 1, 2).float() / 255 if given else None
    pictures = make_pictures(options.method, size, spectrum.magnitude, spectrum.colours, generators, begun)
    adam = torch.optim.NAdam([pictures.values], lr=options.rate)
    features = torch.tensor([start.feature for start in starts], device=probe.device).repeat_interleave(options.crops)
    units = torch.as_tensor(_units(probe), device=probe.device)[features]
    for step in range(options.steps):
        adam.zero_grad()
        images = pictures.images()
        views = crops_of(images, generators, probe.input_size, step / max(1, options.steps - 1), options)
        # the pictures are made once a step, their crops seen some at a time: memory is that of one forward pass
        apart = views.detach().requires_grad_()
        for first in range(0, len(apart), options.batch_size):
            some = slice(first, first + options.batch_size)
            (-(probe.preactivations(apart[some], features[some]) / units[some]).sum() / options.crops).backward()
        grain = options.smoothness * (total_variation(images) / spectrum.variation).sum()
        torch.autograd.backward([views, grain], [apart.grad, None])
        adam.step()
        on_step()
    with torch.no_grad():
        return (pictures.images() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def crops_of(
    images: Tensor,
    generators: Sequence[torch.Generator],
    size: tuple[int, int],
    progress: float,
    options: VisualiseOptions,
) -> Tensor:
    """Crops of each picture as the tower takes them, shifted in colour and with noise.

    Parameters
    ----------
    images
        `(n, 3, H, W)`.
    generators
        One a picture.
    size
        h, w.
    progress
        From 0 at the first step to 1 at the last.

    Returns
    -------
    crops
        `(n c, 3, h, w)`, those of a picture together.
    """
    device, n, c = images.device, len(images), options.crops
    smallest, largest = (first + (last - first) * progress for first, last in zip(SIDES_FIRST, SIDES_LAST, strict=True))
    drawn = torch.cat([torch.rand(c, 6, generator=each, device=device) for each in generators])  # (n c, 6)
    side = smallest + (largest - smallest) * drawn[:, 0]
    centre = (drawn[:, 1:3] * 2 - 1) * (1 - side + JITTER)[:, None]
    place = torch.cat([torch.diag_embed(side[:, None].expand(-1, 2)), centre[:, :, None]], dim=2)  # (n c, 2, 3)
    grid = affine_grid(place, [n * c, 3, *size], align_corners=False)
    crops = grid_sample(images.repeat_interleave(c, 0), grid, padding_mode="reflection", align_corners=False)
    noise = torch.cat([torch.randn(c, 3, *size, generator=each, device=device) for each in generators])
    return crops + COLOUR * (drawn[:, 3:, None, None] * 2 - 1) + options.noise * noise


def _generator(device: torch.device, start: Start, seed: int) -> torch.Generator:
    """A picture's own: of the seed of all, its feature and its own seed."""
    digest = blake2b(f"{seed} {start.feature} {start.seed}".encode(), digest_size=7).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little"))


def _units(probe: FeatureProbe) -> NDArray[np.float32]:
    """`(F,)`: each feature's largest activation on a real image; of one that never fires, the median of the others."""
    fires = probe.largest > 0
    usual = np.median(probe.largest[fires]) if fires.any() else 1.0
    return np.where(fires, probe.largest, usual).astype(np.float32)

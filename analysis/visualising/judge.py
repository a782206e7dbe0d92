"""Judges pictures for features of a run: looks at them through its tower, and holds them against its real images.

Shapes: h x w pixels of the tower's input, F features, e the length of an embedding.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..features import FeatureActivations
from .checks import Checks, PictureCode, RealImages, check, picture_code, unit
from .image_space import ImageSpace
from .probe import FeatureProbe

N_OTHERS = 1000
"""Other features, drawn at random from those that fire, with whose top images a picture is compared."""


@dataclass(frozen=True)
class SeenPicture:
    """A picture as the tower sees it."""

    code: PictureCode
    embedding: NDArray[np.float32] | None
    """`(e,)`, unit; None where there is no image space."""


class Judge:
    """Judges pictures.

    Parameters
    ----------
    probe
        The run's tower and SAE.
    features
        Its stored activations.
    space
        None where the run's images are not at hand: then nothing is said of transfer.
    chosen
        Features whose pictures are to be judged.
    seed
        Of the other features.
    """

    def __init__(
        self,
        probe: FeatureProbe,
        features: FeatureActivations,
        space: ImageSpace | None,
        chosen: NDArray[np.int64],
        *,
        seed: int = 0,
    ) -> None:
        self.probe, self._features, self._space = probe, features, space
        alive = np.flatnonzero(probe.largest > 0)
        drawn = np.random.default_rng([seed, 8]).permutation(alive)[:N_OTHERS]
        self.others: NDArray[np.int64] = np.sort(drawn)
        """Features drawn at random from those that fire."""
        if space is not None:
            self._known = np.union1d(self.others, chosen)
            self._directions = unit(space.top_images(self._known))  # (known, e)
            self._is_other = np.isin(self._known, self.others) & np.isfinite(self._directions[:, 0])

    def see(self, picture: Image.Image | NDArray[np.uint8]) -> SeenPicture:
        """Look at a picture of any size, or at pixels `(h, w, 3)` as the tower takes them."""
        pixels = self.probe.view(picture) if isinstance(picture, Image.Image) else picture
        embedding = None if self._space is None else self._space.embed(pixels[None])[0]
        return SeenPicture(picture_code(self.probe, pixels), embedding)

    def judge(self, seen: SeenPicture, feature: int) -> Checks:
        """Check a picture for a feature: one of `chosen` or of `others`."""
        nearness, others_nearness = math.nan, None
        if self._space is not None and seen.embedding is not None:
            cosines = self._directions @ unit(seen.embedding - self._space.mean)
            nearness = float(cosines[np.searchsorted(self._known, feature)])
            others_nearness = cosines[self._is_other & (self._known != feature)]
        return check(
            seen.code,
            feature,
            RealImages(
                largest=float(self.probe.largest[feature]),
                firings=self._features.feature(feature)[1],
                nearness=nearness,
                others_nearness=others_nearness,
            ),
        )

"""Objective checks of a feature's picture: what the tower and the SAE make of its 8-bit pixels.

A picture is judged as its file has it, decoded, resized and cropped by the tower's own preprocessing, never as the
optimiser had it in float: an optimum that 8 bits, a JPEG or a blur undo is no picture of anything. Damages act on the
pixels that the tower sees, so that they do not depend on the size a picture was made at.

What the rules can tell: pixels optimised without any restraint drive a feature to several times its largest real
activation, with rank 1 and with a transfer near 100, since the embedding follows the feature; they fail by JPEG and by
crops (16 of 16 on the quickstart's tower). What they cannot: the tower is painter and judge, so that a picture may pass
which no person recognises.

Shapes: F features, e the length of an embedding, m firings of a feature on real rows.
"""

import io
import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

JPEG_QUALITY = 75
BLUR_PX_AT_224 = 1.0
"""Standard deviation of the Gaussian blur at an input of 224 pixels; it scales with the input's shorter side."""
CROP_SHARE = 0.9
"""Of each side, kept by the five crops: the middle and the corners."""

MOST_RANK = 10
"""A picture on which more than nine other features are larger shows those."""
LEAST_RATIO = 0.5
"""Of the largest activation on a real image: below, photographs that were never optimised do twice as well."""
LEAST_RETENTION = 0.5
"""Of the activation, after a damage that no eye minds; what loses more is an adversarial pattern."""
LEAST_TRANSFER = 75.0
"""Percentile of the other features' top images; chance is 50. Of pictures of another feature a quarter come so far."""

RULES = (
    f"activation at least {LEAST_RATIO:g} of the largest on a real image",
    f"among the {MOST_RANK} largest features of the picture",
    f"at least {LEAST_RETENTION:g} of the activation kept by JPEG (quality {JPEG_QUALITY}), blur and crops",
    f"nearer in CLIP space to its own top images than to those of {LEAST_TRANSFER:g} % of other features",
)
"""What a picture must fulfil, in words."""

Floats = NDArray[np.floating[Any]]
Pixels = NDArray[np.uint8]


class Sees(Protocol):
    """What reads pictures: a `probe.FeatureProbe`."""

    def activations(self, pixels: Pixels) -> NDArray[np.float32]:
        """Feature activations `(n, F)` of pictures `(n, height, width, 3)`."""


@dataclass(frozen=True)
class PictureCode:
    """Feature activations of one picture and of its damaged copies; each `(F,)`."""

    whole: Floats
    jpeg: Floats
    blur: Floats
    crop: Floats
    """Mean over the five crops."""


@dataclass(frozen=True, kw_only=True)
class RealImages:
    """What a feature does on real images."""

    largest: float
    """Its largest activation; 0 of a dead feature."""
    firings: Floats
    """`(m,)`: its activations > 0; empty where they are not stored."""
    nearness: float = math.nan
    """Cosine of the picture's embedding and the mean of its top images', both centred; NaN where not known."""
    others_nearness: Floats | None = None
    """`(n,)`: the same with the top images of other features."""


@dataclass(frozen=True, kw_only=True)
class Checks:
    """The checks of a picture for one feature; NaN where undefined."""

    activation: float
    activation_ratio: float
    """To the largest on real images."""
    percentile: float
    """Of the activation among the feature's firings on real rows, 0 to 100, ties half."""
    rank: int
    """1 where no other feature is larger on the picture."""
    share_of_code: float
    """Of the sum of all activations on it."""
    l0: int
    """Features > 0 on it."""
    retention_jpeg: float
    retention_blur: float
    retention_crop: float
    transfer_percentile: float
    """Of the cosine with its own top images among those with other features', ties half."""

    @property
    def broken_rule(self) -> tuple[str, str]:
        """The first rule that the picture breaks: a word, and why in words; both empty where it passes.

        What is NaN for want of images breaks none.
        """
        if not self.activation > 0:
            return "fires", "the feature does not fire on it"
        if math.isnan(self.activation_ratio):
            return "real images", "the feature fires on no real image"
        if self.activation_ratio < LEAST_RATIO:
            shown = short_of(self.activation_ratio, LEAST_RATIO, 2)
            return "activation", f"{shown} of the largest activation on a real image; {LEAST_RATIO:g} is asked"
        if self.rank > MOST_RANK:
            return "rank", f"{self.rank - 1:,} features are larger on it; at most {MOST_RANK - 1} may be"
        for damage, words, kept in (
            ("jpeg", f"JPEG of quality {JPEG_QUALITY} keeps", self.retention_jpeg),
            ("blur", "blur keeps", self.retention_blur),
            ("crops", "crops keep", self.retention_crop),
        ):
            if kept < LEAST_RETENTION:
                shown = short_of(kept, LEAST_RETENTION, 2)
                return damage, f"{words} {shown} of the activation; {LEAST_RETENTION:g} is asked"
        if self.transfer_percentile < LEAST_TRANSFER:
            shown = short_of(self.transfer_percentile, LEAST_TRANSFER, 0)
            return "transfer", (
                f"nearer to its own top images than to those of {shown} % of other features; "
                f"{LEAST_TRANSFER:g} % are asked"
            )
        return "", ""

    @property
    def is_passed(self) -> bool:
        """Whether no rule is broken."""
        return not self.broken_rule[0]


def check(code: PictureCode, feature: int, real: RealImages) -> Checks:
    """Judge a picture for a feature, its own or another."""
    activation = float(code.whole[feature])
    total = float(code.whole.sum(dtype=np.float64))

    def kept(damaged: Floats) -> float:
        return float(damaged[feature]) / activation if activation > 0 else math.nan

    return Checks(
        activation=activation,
        activation_ratio=activation / real.largest if real.largest > 0 else math.nan,
        percentile=percentile_among(activation, real.firings),
        rank=1 + int((code.whole > code.whole[feature]).sum()),
        share_of_code=activation / total if total > 0 else math.nan,
        l0=int((code.whole > 0).sum()),
        retention_jpeg=kept(code.jpeg),
        retention_blur=kept(code.blur),
        retention_crop=kept(code.crop),
        transfer_percentile=math.nan
        if real.others_nearness is None
        else percentile_among(real.nearness, real.others_nearness),
    )


def picture_code(sees: Sees, pixels: Pixels) -> PictureCode:
    """Feature activations of a picture and of its damaged copies, in one batch.

    Parameters
    ----------
    pixels
        `(height, width, 3)`: what the tower sees of the picture.
    """
    found = sees.activations(np.stack([pixels, as_jpeg(pixels), blurred(pixels), *crops(pixels)]))
    return PictureCode(whole=found[0], jpeg=found[1], blur=found[2], crop=found[3:].mean(axis=0))


def as_jpeg(pixels: Pixels) -> Pixels:
    """The picture saved as JPEG and read again."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=JPEG_QUALITY)
    with Image.open(buffer) as image:
        return np.asarray(image.convert("RGB"))


def blurred(pixels: Pixels) -> Pixels:
    """The picture after the Gaussian blur."""
    radius = BLUR_PX_AT_224 * min(pixels.shape[:2]) / 224
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))


def crops(pixels: Pixels) -> list[Pixels]:
    """The middle and the four corners, each enlarged to the whole size again."""
    height, width = pixels.shape[:2]
    tall, wide = round(CROP_SHARE * height), round(CROP_SHARE * width)
    down, right = height - tall, width - wide
    image = Image.fromarray(pixels)
    places = [(right / 2, down / 2), (0, 0), (right, 0), (0, down), (right, down)]
    return [
        np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box=(x, y, x + wide, y + tall)))
        for x, y in places
    ]


def short_of(value: float, bound: float, digits: int) -> str:
    """A value below a bound, with so many digits after the point: more where it would read as the bound."""
    while round(value, digits) >= bound and digits < 15:
        digits += 1
    return f"{value:.{digits}f}"


def percentile_among(value: float, others: Floats) -> float:
    """Share of the others that are below a value, ties half, 0 to 100; NaN where either is undefined."""
    if math.isnan(value) or len(others) == 0:
        return math.nan
    n_below, n_level = int((others < value).sum()), int((others == value).sum())
    return 100 * (2 * n_below + n_level) / (2 * len(others))


def seed_agreement(embeddings: Floats, mean: Floats | None = None) -> float:
    """Mean cosine between the embeddings of a feature's pictures of several seeds; NaN of fewer than two.

    Parameters
    ----------
    embeddings
        `(n, e)`.
    mean
        `(e,)`, of the images' embeddings: taken off first, since all that CLIP embeds lies in one narrow cone.
    """
    n = len(embeddings)
    if n < 2:
        return math.nan
    units = unit(embeddings if mean is None else embeddings - mean)
    cosines = units @ units.T
    return float((cosines.sum() - np.trace(cosines)) / (n * (n - 1)))


def unit(vectors: Floats) -> NDArray[np.float64]:
    """Vectors `(..., e)` divided by their norms; NaN where a vector is 0 or not known."""
    wide = np.asarray(vectors, np.float64)
    norms = np.linalg.norm(wide, axis=-1, keepdims=True)
    return wide / np.where(norms > 0, norms, np.nan)

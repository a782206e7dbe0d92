"""Pictures of the game: all of one size and encoded alike, so that nothing but what they show tells them apart."""

from io import BytesIO
from typing import TYPE_CHECKING

from .page import Unavailable
from .runs import ExploredRun

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE_PX = 224
BLUR_PX = 40
"""Standard deviation of the blur, in pixels of a picture of `SIDE_PX`: as in the post."""
MEDIA_TYPE = "image/jpeg"
_QUALITY = 90


def sharp_picture(run: ExploredRun, row: int) -> bytes:
    """The image of a row, from its source where that is reachable, else its thumbnail."""
    from ...harvest.decode import ImageUnreadable, decode_image

    try:
        return _encoded(decode_image(run.picture(row)))
    except ImageUnreadable:  # changed since it was harvested
        return _encoded(_thumbnail(run, row))


def blurred_picture(run: ExploredRun, row: int) -> bytes:
    """The image of a row as a player sees it before the guess; its thumbnail has all that a blur leaves."""
    from PIL.ImageFilter import GaussianBlur

    return _encoded(_square(_thumbnail(run, row)).filter(GaussianBlur(BLUR_PX)))


def _thumbnail(run: ExploredRun, row: int) -> "Image":
    from ...harvest.decode import decode_image

    picture = run.thumbnail(row)
    if picture is None:
        raise Unavailable(f"The store holds no thumbnail of row {row}.")
    return decode_image(picture)


def _square(image: "Image") -> "Image":
    """What the tower sees: the middle, the shorter side whole."""
    from PIL.Image import Resampling
    from PIL.ImageOps import fit

    return fit(image, (SIDE_PX, SIDE_PX), Resampling.BICUBIC)


def _encoded(image: "Image") -> bytes:
    """JPEG bytes of pixels alone: a picture's comment or profile would go along."""
    from PIL.Image import new

    square, pixels, saved = _square(image), new("RGB", (SIDE_PX, SIDE_PX)), BytesIO()
    pixels.paste(square)
    pixels.save(saved, "JPEG", quality=_QUALITY)
    return saved.getvalue()

"""Image bytes to RGB pixels and thumbnails.

What becomes of the kinds of image that are not plain 8-bit RGB:

- Every image is converted to RGB as open_clip's and torchvision's own data sets do (`Image.convert("RGB")`), before the
  tower's preprocessing. CMYK is converted by Pillow without a colour profile; an alpha channel is dropped.
- 16-bit grey is scaled to 8 bits (the high byte, as Pillow does for 16-bit colour). `convert("RGB")` alone would clip
  every value above 255 to white.
- EXIF rotation is not applied, since neither open_clip nor torchvision applies it: activations stay comparable with
  theirs. ImageNet and web sets are mostly stored upright.
- Of an animation the first frame is read.
- Unreadable, with the reason: what Pillow cannot decode, a truncated file, more than 179 million pixels (Pillow's limit
  for decompression bombs), 32-bit samples (no defined brightness range), a side ratio above 200 (resizing its short
  side to the tower's would need gigabytes).
"""

import io
import warnings

import numpy as np
from PIL import Image

THUMBNAIL_PX = 128
_THUMBNAIL_QUALITY = 80
_MAX_SIDE_RATIO = 200
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")


class ImageUnreadable(Exception):
    """An image that cannot be decoded; its text is the reason, one line."""


def decode_image(data: bytes) -> Image.Image:
    """Pixels of an encoded image, as 8-bit RGB.

    Raises
    ------
    ImageUnreadable
        The bytes are no image that can be read; see the module's list.
    """
    if not data:
        raise ImageUnreadable("the file is empty")
    with warnings.catch_warnings():
        # Pillow warns of odd metadata and of images above half its bomb limit; what matters is raised as an error.
        warnings.simplefilter("ignore")
        try:
            image = Image.open(io.BytesIO(data))
            _check_sides(image)
            image.load()
            return _to_rgb(image)
        except ImageUnreadable:
            raise
        except Image.DecompressionBombError as error:
            raise ImageUnreadable(_one_line(error)) from error
        except Image.UnidentifiedImageError as error:
            raise ImageUnreadable("not an image in a known format") from error
        except Exception as error:  # Pillow's plugins raise nearly any type on damaged bytes
            raise ImageUnreadable(f"{type(error).__name__}: {_one_line(error)}") from error


def thumbnail(image: Image.Image, px: int = THUMBNAIL_PX, source: bytes | None = None) -> bytes:
    """WebP picture of `image` whose longer side is at most `px`, never enlarged.

    Parameters
    ----------
    image
        RGB, as `decode_image` gives it.
    px
        Largest side, pixels.
    source
        The bytes that `image` was decoded from. A small still WebP is its own thumbnail, byte for byte.
    """
    if source is not None and max(image.size) <= px and _is_plain_webp(source):
        return source
    small = image.copy()
    small.thumbnail((px, px), Image.Resampling.BICUBIC, reducing_gap=2.0)
    buffer = io.BytesIO()
    # method 2: a third of the time of the default 4 for files 3 % larger
    small.save(buffer, "WEBP", quality=_THUMBNAIL_QUALITY, method=2)
    return buffer.getvalue()


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode in _SIXTEEN_BIT:
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ImageUnreadable(f"32-bit samples (mode {image.mode}) have no defined range; convert it to 8 or 16 bits")
    return image.convert("RGB")


def _check_sides(image: Image.Image) -> None:
    width, height = image.size
    if max(width, height) > _MAX_SIDE_RATIO * min(width, height):
        raise ImageUnreadable(f"{width} x {height} pixels: one side is more than {_MAX_SIDE_RATIO} times the other")


def _is_plain_webp(data: bytes) -> bool:
    # A simple WebP file is RIFF, size, WEBP and one VP8 or VP8L chunk; VP8X announces alpha, animation or metadata.
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP" and data[12:16] in (b"VP8 ", b"VP8L")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or "no reason given"

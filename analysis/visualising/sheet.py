"""Contact sheet of pictures: each beside the images on which its feature is largest, with its name and verdict."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...store.errors import DamagedStoreError
from ...store.reader import ActivationStore
from ..naming.names_file import Name
from ..sheets import _fit, _font
from .visualisations_file import FOLDER, Visualisation

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

N_FEATURES = 16
_N_IMAGES = 6
_PICTURE, _CELL, _GAP, _MARGIN, _TITLE, _LINES = 144, 92, 6, 16, 30, 36
_COLUMN_GAP = 28
_COLUMN = _PICTURE + 2 * _GAP + _N_IMAGES * (_CELL + _GAP)
_HEIGHT = _LINES + _PICTURE + 14
_BLACK, _GREY, _PAPER = (20, 20, 20), (95, 95, 95), (255, 255, 255)


def pictures_sheet(
    run_path: Path,
    lines: Sequence[Visualisation],
    names: Mapping[int, Name],
    agreement: NDArray[np.float32] | None,
    store: ActivationStore | None,
    top_row: NDArray[np.int64],
    title: str,
) -> bytes:
    """PNG of pictures in two columns, each beside its feature's six largest images.

    Parameters
    ----------
    names
        Of named features.
    agreement
        `(F,)`, where it was computed.
    store
        For thumbnails; None leaves the places empty.
    top_row
        `(F, k)`, of stats.zarr.
    """
    from PIL import Image, ImageDraw

    n_lines = -(-len(lines) // 2)
    sheet = Image.new(
        "RGB", (2 * _MARGIN + 2 * _COLUMN + _COLUMN_GAP, 2 * _MARGIN + _TITLE + n_lines * _HEIGHT), _PAPER
    )
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN - 4), title, _BLACK, _font(17))
    wanted = sorted({int(row) for line in lines for row in top_row[line.feature, :_N_IMAGES] if row >= 0})
    thumbnails: dict[int, bytes | None] = {}
    if store is not None and store.thumbnail_px is not None:
        thumbnails = dict(zip(wanted, store.thumbnails(wanted), strict=True))
    for number, line in enumerate(lines):
        x, y = _MARGIN + number % 2 * (_COLUMN + _COLUMN_GAP), _MARGIN + _TITLE + number // 2 * _HEIGHT
        _draw_words(draw, x, y, line, names.get(line.feature), agreement)
        y += _LINES
        _paste(sheet, _read(run_path / FOLDER / line.picture), x, y, _PICTURE)
        for column, row in enumerate(top_row[line.feature, :_N_IMAGES].tolist()):
            blob = thumbnails.get(row)
            image = None if blob is None else Image.open(io.BytesIO(blob)).convert("RGB")
            left = x + _PICTURE + 2 * _GAP + column * (_CELL + _GAP)
            _paste(sheet, image, left, y + (_PICTURE - _CELL) // 2, _CELL)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _draw_words(
    draw: "ImageDraw", x: int, y: int, line: Visualisation, name: Name | None, agreement: NDArray[np.float32] | None
) -> None:
    """Two lines: what the feature is called and how well all agrees; then the verdict."""
    called = f"“{name.name}”" if name is not None else "no name"
    agreed = (
        "" if agreement is None or np.isnan(agreement[line.feature]) else f"    agreement {agreement[line.feature]:.0f}"
    )
    first: Any = _font(14)
    draw.text((x, y), _fit(draw, f"feature {line.feature}: {called}{agreed}", first, _COLUMN), _BLACK, first)
    checks = line.checks
    said = f"{line.verdict}: {line.why}" if line.why else line.verdict
    numbers = f"{checks.activation_ratio:.2f} of the largest real activation, rank {checks.rank:,}"
    second: Any = _font(12)
    draw.text((x, y + 18), _fit(draw, said if line.why else f"{said}: {numbers}", second, _COLUMN), _GREY, second)


def _read(path: Path) -> "Image | None":
    from .pictures import read_picture

    try:
        return read_picture(path)
    except DamagedStoreError:
        return None


def _paste(sheet: "Image", picture: "Image | None", x: int, y: int, size: int) -> None:
    """Put a picture into a square, enlarged or reduced to fit; an empty frame where there is none."""
    from PIL import Image, ImageDraw

    if picture is None:
        ImageDraw.Draw(sheet).rectangle((x, y, x + size - 1, y + size - 1), outline=_GREY)
        return
    scale = size / max(picture.size)
    shown = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS)
    sheet.paste(shown, (x + (size - shown.width) // 2, y + (size - shown.height) // 2))

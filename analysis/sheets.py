"""Contact sheets: the images on which chosen features are largest, with their labels and values."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..progress import printable
from ..store.files import write_atomically
from ..store.reader import ActivationStore
from .clusters import UldSplit
from .statistics import FeatureStatistics

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

IMAGES_PER_FEATURE = 16
_COLUMNS = 16
_GAP = 6
_MARGIN = 16
_HEADER = 26
_CAPTION = 30
_BLOCK_GAP = 14
_CELL = 96
"""Pixels of a thumbnail's longer side as it is shown, whatever side it is stored with."""
_BLACK, _GREY, _PAPER = (20, 20, 20), (95, 95, 95), (255, 255, 255)


@dataclass(frozen=True, kw_only=True)
class SheetPlan:
    """Which features are shown."""

    chosen: tuple[int, ...] = ()
    """Features the user asked for, on a sheet of their own."""
    n_features: int = 12
    """Features on each of the other sheets."""
    seed: int = 0
    """Of the random sheet."""


def draw_sheets(
    folder: Path, store: ActivationStore, statistics: FeatureStatistics, split: UldSplit, plan: SheetPlan
) -> list[Path]:
    """Draw the contact sheets into a folder; their paths.

    `sheet_random.png` shows features drawn at random from the alive ones outside the ULD cluster, `sheet_selective.png`
    those of least label entropy, `sheet_chosen.png` those asked for.
    """
    sheets = {
        "sheet_chosen": (np.array(plan.chosen, np.int64), "Chosen features"),
        "sheet_random": (
            random_features(statistics, split, plan.n_features, plan.seed),
            f"Features drawn at random (seed {plan.seed}) from the alive ones"
            + ("" if split.threshold is None else " outside the ultra-low-density cluster"),
        ),
        "sheet_selective": (
            selective_features(statistics, split, plan.n_features),
            "Most selective features: least label entropy, then largest mean top activation",
        ),
    }
    paths = []
    for name, (features, title) in sheets.items():
        if len(features):
            path = folder / f"{name}.png"
            write_atomically(path, contact_sheet(store, statistics, features, title))
            paths.append(path)
    return paths


def random_features(statistics: FeatureStatistics, split: UldSplit, n: int, seed: int) -> NDArray[np.int64]:
    """Up to `n` alive features outside the ULD cluster, drawn at random, ascending."""
    candidates = np.flatnonzero(statistics.is_alive & ~split.is_uld)
    drawn = np.random.default_rng(seed).choice(candidates, size=min(n, len(candidates)), replace=False)
    return np.sort(drawn)


def selective_features(statistics: FeatureStatistics, split: UldSplit, n: int) -> NDArray[np.int64]:
    """Up to `n` features outside the ULD cluster with the least label entropy.

    Among equals the largest mean top activation comes first. No two have the same largest row, so that an image seen
    by many features fills one line only.
    """
    candidates = np.flatnonzero(np.isfinite(statistics.label_entropy) & ~split.is_uld)
    order = candidates[np.lexsort((-statistics.mean_top[candidates], statistics.label_entropy[candidates]))]
    _, first = np.unique(statistics.top_row[order, 0], return_index=True)
    return order[np.sort(first)][:n]


def contact_sheet(
    store: ActivationStore, statistics: FeatureStatistics, features: NDArray[np.int64], title: str
) -> bytes:
    """PNG of the up to 16 images on which each feature is largest, most first, one line a feature."""
    from PIL import Image, ImageDraw

    per_feature = min(IMAGES_PER_FEATURE, statistics.k)
    shown = statistics.top_row[features, :per_feature]
    lines = [max(1, -(-int((rows >= 0).sum()) // _COLUMNS)) for rows in shown]
    line_height = _CELL + _CAPTION
    width = 2 * _MARGIN + _COLUMNS * (_CELL + _GAP) - _GAP
    height = 2 * _MARGIN + _HEADER + sum(_HEADER + n * line_height + _BLOCK_GAP for n in lines)
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    fonts = {"title": _font(17), "header": _font(14), "caption": _font(11)}
    draw.text((_MARGIN, _MARGIN - 4), _fit(draw, title, fonts["title"], width - 2 * _MARGIN), _BLACK, fonts["title"])
    y = _MARGIN + _HEADER
    rows = np.unique(shown[shown >= 0])
    pictures = dict(zip(rows.tolist(), store.thumbnails(rows), strict=True))
    for feature, n_lines in zip(features.tolist(), lines, strict=True):
        header = _fit(draw, _describe(statistics, feature), fonts["header"], width - 2 * _MARGIN)
        draw.text((_MARGIN, y + 4), header, _BLACK, fonts["header"])
        y += _HEADER
        for i in range(per_feature):
            row = int(statistics.top_row[feature, i])
            if row < 0:
                break
            place = (_MARGIN + i % _COLUMNS * (_CELL + _GAP), y + i // _COLUMNS * line_height)
            value = float(statistics.top_value[feature, i])
            _draw_cell(sheet, draw, place, store, row, pictures[row], value, fonts["caption"])
        y += n_lines * line_height + _BLOCK_GAP
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _draw_cell(
    sheet: "Image",
    draw: "ImageDraw",
    place: tuple[int, int],
    store: ActivationStore,
    row: int,
    blob: bytes | None,
    value: float,
    font: "FreeTypeFont | Any",
) -> None:
    from PIL import Image

    x, y = place
    if blob is None:
        draw.rectangle((x, y, x + _CELL - 1, y + _CELL - 1), outline=_GREY)
        draw.text((x + 6, y + 6), "no thumbnail", _GREY, font)
    else:
        image = Image.open(io.BytesIO(blob)).convert("RGB")
        scale = _CELL / max(image.size)
        image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
        sheet.paste(image, (x + (_CELL - image.width) // 2, y + (_CELL - image.height) // 2))
    label = int(store.labels(row, row + 1)[0])
    names = store.label_names
    name = "no label" if label < 0 else names[label] if names and label < len(names) else f"label {label}"
    shown = printable(" ".join(name.split()))  # a name of a folder may hold a line break, which Pillow cannot measure
    draw.text((x, y + _CELL + 1), _fit(draw, shown, font, _CELL), _BLACK, font)
    draw.text((x, y + _CELL + 14), _short(value), _GREY, font)


def _describe(statistics: FeatureStatistics, feature: int) -> str:
    n_active = int(statistics.n_active[feature])
    if n_active == 0:
        return f"feature {feature}: dead, never > 0 on {statistics.n_rows:,} rows"
    entropy = float(statistics.label_entropy[feature])
    told = (
        f"label entropy {entropy:.2f} nats"
        if np.isfinite(entropy)
        else f"label entropy undefined ({int(statistics.n_labelled[feature])} labelled rows)"
    )
    return (
        f"feature {feature}      density {100 * statistics.density[feature]:.3g} % ({n_active:,} rows)      "
        f"mean top activation {_short(float(statistics.mean_top[feature]))}      {told}"
    )


def _short(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def _fit(draw: "ImageDraw", text: str, font: "FreeTypeFont | Any", width: int) -> str:
    """The text, cut with an ellipsis where it is wider than `width` pixels."""
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(text + "…", font) > width:
        text = text[:-1]
    return text.rstrip() + "…"


def _font(size: int) -> "FreeTypeFont | Any":
    """Matplotlib's own DejaVu Sans: the same letters, accents included, on every machine."""
    from matplotlib import get_data_path
    from PIL import ImageFont

    return ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)

"""The page of an image: what fires on it, how well it is reconstructed, which images are like it, what CLIP sees."""

import math
from dataclasses import asdict, dataclass
from io import BytesIO
from typing import Any

import numpy as np

from ..firings import Counts, FiringFeature, counts, firing_features
from ..page import Answer, Chapter, Endpoint, NotHere, Page, Query, Unavailable
from ..runs import ExploredRun
from ..similar import similar_rows

FIRST, MOST = 24, 200
"""Features that the page shows at once, and that it holds; the whole code is at `i/ROW/code.json`."""
SIMILAR = 12
_SPLITS = ("not encoded", "training", "held out", "of a store that the SAE was not trained on")
"""By the code of `rows/split`."""
_WEB_FORMATS = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif"}
_LARGEST_BYTES, _LARGEST_SIDE = 4 << 20, 2048
"""Of a picture that is sent as it is; larger ones are sent smaller."""


@dataclass(frozen=True)
class Token:
    """One of the rows of an image."""

    row: int
    name: str
    """Where in the tower's sequence it is."""


@dataclass(frozen=True)
class ImagePage:
    """What the page of an image shows. Of a store with several rows an image, it is the page of one of them."""

    row: int
    n_rows: int
    key: str
    """Printable; empty where the store is out of reach."""
    label: int
    label_name: str
    split: str
    problem: str
    """Why the row has no code: it was not encoded, or its image could not be read; empty where it has one."""
    has_thumbnail: bool
    token: str
    """Which of the image's tokens this is; empty where there is one alone."""
    tokens: list[Token]
    """The image's rows; empty where it has one alone."""
    n_columns: int
    """Of the patches' grid, where they form a square; else 0."""
    previous: int | None
    next: int | None
    l0: Counts
    norm: float | None
    """||x|| of what is reconstructed."""
    relative_error: float | None
    """||x_hat - x|| / ||x||."""
    cosine: float | None
    """Of x and x_hat."""
    features: list[FiringFeature]
    """The first of them."""
    more: list[FiringFeature]
    """Those after, up to `MOST` in all."""


def view(run: ExploredRun, query: Query) -> ImagePage:
    """The page of a row's image."""
    row = run.require_row(query.path["row"])
    index, value = run.code(row)
    split, label = int(run.row_number("split", row)), int(run.row_number("label", row))
    firing = firing_features(run, index, value, 0, MOST)
    norm, sse, cosine = (float(run.row_number(name, row)) for name in ("x_norm", "sse", "cosine"))
    store = run.store
    is_read = store is None or bool(store.valid(row, row + 1)[0])
    tokens = _tokens(run, row)
    previous, following = _neighbours(run, row)
    n_patches = sum(each.name.startswith("patch") for each in tokens)
    side = math.isqrt(n_patches)
    return ImagePage(
        row=row,
        n_rows=run.require_features().n_rows,
        key=run.key(row),
        label=label,
        label_name=run.label_name(label),
        split=_SPLITS[split],
        problem="" if split else _why_not_encoded(run, row, is_read),
        has_thumbnail=store is not None and store.thumbnail_px is not None and is_read,
        token=next((each.name for each in tokens if each.row == row), ""),
        tokens=tokens,
        n_columns=side if side > 1 and side * side == n_patches else 0,
        previous=previous,
        next=following,
        l0=counts(run, index, value),
        norm=_finite(norm),
        relative_error=_finite(math.sqrt(sse) / norm) if norm > 0 else None,
        cosine=_finite(cosine),
        features=firing[:FIRST],
        more=firing[FIRST:],
    )


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _why_not_encoded(run: ExploredRun, row: int, is_read: bool) -> str:
    if is_read:
        return "This row was not encoded: `thresher encode` was given another split, or fewer rows."
    image = int(run.require_store().images(row, row + 1)[0])
    reason = next((each.reason for each in run.require_store().unreadable if each.image == image), "no reason given")
    return f"This image could not be read when the store was harvested: {reason}."


def _tokens(run: ExploredRun, row: int) -> list[Token]:
    """The rows of an image that has several, in the order of the tower's sequence."""
    store = run.store
    if store is None or store.tokens_per_image == 1:
        return []
    rows = run.rows_of_image(row)
    first = 0 if store.sites[0].token == "all" else 1  # place of the first in the tower's sequence
    places = np.arange(first, first + len(rows)).tolist()
    return [
        Token(int(each), "class token" if place == 0 else f"patch {place - 1}")
        for each, place in zip(rows, places, strict=True)
    ]


def _neighbours(run: ExploredRun, row: int) -> tuple[int | None, int | None]:
    """The same token of the images before and after, in the order of the store's rows."""
    n_rows, store = run.require_features().n_rows, run.store
    if store is None or store.tokens_per_image == 1:
        return (row - 1 if row else None), (row + 1 if row + 1 < n_rows else None)
    number, local = store._part_of_row(row)
    order = store.parts[number].order
    at = np.array([local])
    place, token = int(order.places(order.images(at))[0]), int(order.tokens(at)[0])

    def there(part: int, place: int) -> int:
        return int(store.parts[part].order.rows_at(np.array([place]))[0, token] + store._row_edges[part])

    before = there(number, place - 1) if place else None
    if before is None and number:
        before = there(number - 1, store.parts[number - 1].order.n_images - 1)
    after = there(number, place + 1) if place + 1 < order.n_images else None
    if after is None and number + 1 < len(store.parts):
        after = there(number + 1, 0)
    return before, after


def code(run: ExploredRun, query: Query) -> dict[str, Any]:
    """The whole code of a row: features > 0 by falling value."""
    row = run.require_row(query.path["row"])
    index, value = run.code(row)
    return {"row": row, "features": index, "values": value}


def similar(run: ExploredRun, query: Query) -> dict[str, Any]:
    """Images whose codes are nearest to a row's by cosine; see `similar_rows`."""
    row = run.require_row(query.path["row"])
    return pictures_of(run, *run.code(row), besides=row)


def pictures_of(run: ExploredRun, index: Any, value: Any, besides: int | None = None) -> dict[str, Any]:
    """Images like a code, as a grid of pictures takes them; the value is the cosine."""
    found = similar_rows(run, index, value, n=SIMILAR, besides=besides)
    names = [run.label_name(label) for label in run.labels(found.rows)]
    images = [
        {"row": row, "value": cosine, "name": name}
        for row, cosine, name in zip(found.rows, found.cosines, names, strict=True)
    ]
    return {"images": images, "is_exact": found.is_exact}


def contributions(run: ExploredRun, query: Query) -> dict[str, Any]:
    """What the features of a row contribute to the logit of a class `class`, by default the row's own."""
    from ..contributions import contributions as computed

    row, asked = run.require_row(query.path["row"]), query.text("class", longest=400)
    with run.tower.turn():
        return vars(computed(run, row, asked))


def zero_shot(run: ExploredRun, query: Query) -> dict[str, Any]:
    """Zero-shot predictions of a row's image before and after the SAE, from its source, as `evaluate` makes them."""
    from ....harvest.decode import ImageUnreadable, decode_image
    from ..live import see
    from ..live import zero_shot as compared

    row = run.require_row(query.path["row"])
    encoded = run.original(row)
    with run.tower.turn():
        texts = run.tower.class_texts()
        try:
            picture = decode_image(encoded)
        except ImageUnreadable as error:
            raise NotHere(f"The image of row {row} cannot be read: {error}.") from error
        seen = see(run.tower, picture)
        found = compared(texts, [seen.before, seen.after], also=int(run.row_number("label", row)))
    return {**asdict(found), "no_after_because": seen.no_after_because}


def picture(run: ExploredRun, query: Query) -> Answer:
    """The image at full size where its source is reachable, else its thumbnail; in a format that browsers show."""
    from PIL import Image

    from ....harvest.decode import ImageUnreadable, decode_image

    row = run.require_row(query.path["row"])
    encoded = run.picture(row)
    try:
        with Image.open(BytesIO(encoded)) as opened:
            media_type, side = _WEB_FORMATS.get(opened.format or ""), max(opened.size)
        if media_type is not None and side <= _LARGEST_SIDE and len(encoded) <= _LARGEST_BYTES:
            return Answer(encoded, media_type)
        smaller = decode_image(encoded)
    except (ImageUnreadable, OSError, Image.DecompressionBombError) as error:
        raise Unavailable(f"The image of row {row} cannot be read: {' '.join(str(error).split())}.") from error
    smaller.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
    saved = BytesIO()
    smaller.save(saved, "JPEG", quality=90)
    return Answer(saved.getvalue(), "image/jpeg")


CHAPTER = Chapter(
    pages=(Page("image", "/i/{row:int}", view),),
    endpoints=(
        Endpoint("/i/{row:int}/code.json", code),
        Endpoint("/i/{row:int}/similar.json", similar, is_slow=True),
        Endpoint("/i/{row:int}/contributions.json", contributions, is_slow=True),
        Endpoint("/i/{row:int}/zero-shot.json", zero_shot, is_slow=True),
        Endpoint("/picture/{row:int}", picture, is_slow=True),
    ),
)

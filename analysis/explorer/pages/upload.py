"""Your image: a visitor's picture through the run's tower and SAE, with sliders on its features.

Pictures come as the body of a POST, are decoded in memory as `harvest` decodes them, and are never written. What stays
is the activation that enters the block after the site, of the last few pictures, under a random token.
"""

import json
import warnings
from dataclasses import asdict, dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

from ..firings import counts, firing_features
from ..page import BadQuery, Chapter, Endpoint, Page, Query, Unavailable
from ..runs import ExploredRun
from ..security import MAX_BODY_BYTES
from ..tower import ClassTexts
from .image import pictures_of

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "AVIF")
"""As Pillow calls them; those that it was built with are taken."""
MOST_PIXELS = 64_000_000
FEATURES = 64
"""Features of a picture that are given; the strongest."""
LARGEST_FACTOR = 3.0
_MOST_FACTORS = 256
_LONGEST_EDIT_BYTES = 1 << 16


@dataclass(frozen=True)
class Upload:
    """What the page shows before there is a picture."""

    formats: list[str]
    most_bytes: int
    most_pixels: int
    site: str
    sliders: int
    largest_factor: float


def view(run: ExploredRun, query: Query) -> Upload:
    """The page to which a picture is given."""
    site = run.site
    return Upload(
        formats=["PNG", "JPEG", "WebP", "GIF (its first frame)", "BMP", "AVIF"],
        most_bytes=MAX_BODY_BYTES,
        most_pixels=MOST_PIXELS,
        site="" if site is None else str(site),
        sliders=24,
        largest_factor=LARGEST_FACTOR,
    )


def tower(run: ExploredRun, query: Query) -> dict[str, Any]:
    """Whether the tower can be run here, which loads it; else the reason."""
    try:
        with run.tower.turn():
            loaded = run.tower.clip()[1]
            run.tower.sae()
            _, problem = _texts(run)
    except Unavailable as error:
        return {"is_ready": False, "reason": str(error)}
    return {"is_ready": True, "reason": problem, "device": str(loaded.device), "precision": loaded.precision}


def look(run: ExploredRun, query: Query) -> dict[str, Any]:
    """A picture's features, reconstruction and zero-shot predictions; its token, for edits.

    Raises
    ------
    BadQuery
        When the body is no picture of a known kind and size that can be read.
    Unavailable
        When the run's tower cannot be had, or is busy.
    """
    from ..live import see, zero_shot

    require_picture(query.body)
    with run.tower.turn():
        run.tower.clip()  # says that there is none before anything is decoded
        seen = see(run.tower, decoded(query.body))
        texts, problem = _texts(run)
    return {
        "token": run.tower.held.put(seen),
        "picture": seen.picture(),
        "n_tokens": seen.n_tokens,
        "l0": seen.l0,
        "counts": asdict(counts(run, seen.index, seen.value)),
        "norm": seen.norm,
        "relative_error": seen.relative_error,
        "cosine": seen.cosine,
        "features": firing_features(run, seen.index, seen.value, 0, FEATURES),
        "zero_shot": None if texts is None else asdict(zero_shot(texts, [seen.before, seen.after])),
        "problem": problem or seen.no_after_because,
        "can_edit": texts is not None and seen.after is not None,
    }


def similar(run: ExploredRun, query: Query) -> dict[str, Any]:
    """Images of the store whose codes are like a picture's that was sent."""
    seen = run.tower.held.get(query.text("token"))
    if seen is None:
        return {"is_held": False}
    if seen.n_tokens > 1:
        raise Unavailable("Codes of this store are of single tokens: a whole picture has none to compare them with.")
    return {"is_held": True, **pictures_of(run, seen.index, seen.value)}


def edit(run: ExploredRun, query: Query) -> dict[str, Any]:
    """Zero-shot predictions of a picture that was sent, with some of its features multiplied.

    The body is JSON: `token`; `factors` by feature, 0 to 3; `keep_error`, whether the part of the activation that the
    SAE does not reconstruct is added back.
    """
    from ..live import edited, zero_shot

    token, factors, keep_error = read_edit(query.body, run.d_sae)
    seen = run.tower.held.get(token)
    if seen is None:
        return {"is_held": False}
    with run.tower.turn():
        texts = run.tower.class_texts()
        changed = edited(run.tower, seen, factors, keep_error=keep_error)
    found = zero_shot(texts, [seen.before, seen.after, changed])
    return {"is_held": True, "cosine": float(seen.before @ changed), **asdict(found)}


def _texts(run: ExploredRun) -> tuple[ClassTexts | None, str]:
    """The classes' captions, or why there are none."""
    try:
        return run.tower.class_texts(), ""
    except Unavailable as error:
        return None, str(error)


def require_picture(data: bytes) -> None:
    """Raise `BadQuery` where bytes are no picture of a format and size that is taken; reads their header alone."""
    from PIL import Image

    if not data:
        raise BadQuery("No picture was sent: the body of the request is empty.")
    Image.init()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sizes that are refused below, and of odd metadata
        try:
            with Image.open(BytesIO(data), formats=[each for each in FORMATS if each in Image.OPEN]) as opened:
                width, height = opened.size
        except Image.UnidentifiedImageError:
            raise BadQuery(f"This is no picture in one of the formats {', '.join(FORMATS)}.") from None
        except Image.DecompressionBombError:
            raise BadQuery(f"The picture has too many pixels: at most {MOST_PIXELS:,} are taken.") from None
        except Exception as error:  # Pillow's plugins raise nearly any type on damaged bytes
            raise BadQuery(f"The picture cannot be read ({type(error).__name__}).") from error
    if width * height > MOST_PIXELS:
        raise BadQuery(f"The picture has {width:,} × {height:,} pixels: at most {MOST_PIXELS:,} are taken.")


def decoded(data: bytes) -> "Image.Image":
    """Pixels of a picture, as `harvest` reads them; `BadQuery` where they cannot be read."""
    from ....harvest.decode import ImageUnreadable, decode_image

    try:
        return decode_image(data)
    except ImageUnreadable as error:
        raise BadQuery(f"The picture cannot be read: {error}.") from error


def read_edit(body: bytes, d_sae: int) -> tuple[str, dict[int, float], bool]:
    """Token, factors by feature and whether the error is kept: the body of an edit, `BadQuery` where it is none."""
    if len(body) > _LONGEST_EDIT_BYTES:
        raise BadQuery(f"An edit has at most {_LONGEST_EDIT_BYTES:,} bytes, not {len(body):,}.")
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise BadQuery("The body of an edit is a JSON object.") from None
    if not isinstance(document, dict):
        raise BadQuery("The body of an edit is a JSON object.")
    token, given, keep_error = (document.get(name) for name in ("token", "factors", "keep_error"))
    if not isinstance(token, str) or not isinstance(given, dict) or not isinstance(keep_error, bool):
        raise BadQuery("An edit has a token, a string; factors, an object; keep_error, true or false.")
    if len(given) > _MOST_FACTORS:
        raise BadQuery(f"At most {_MOST_FACTORS} features are changed, not {len(given):,}.")
    factors: dict[int, float] = {}
    for name, factor in given.items():
        if not (name.isascii() and name.isdigit() and len(name) < 10 and int(name) < d_sae):
            raise BadQuery(f"factors name features 0 to {d_sae - 1}, not {name[:40]!r}.")
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 <= factor <= LARGEST_FACTOR:
            raise BadQuery(f"The factor of feature {int(name)} is 0 to {LARGEST_FACTOR:g}, not {str(factor)[:40]}.")
        factors[int(name)] = float(factor)
    return token, factors, keep_error


CHAPTER = Chapter(
    pages=(Page("upload", "/upload", view, is_exported=False),),
    endpoints=(
        Endpoint("/upload/tower.json", tower, is_slow=True),
        Endpoint("/upload/picture.json", look, is_post=True, is_slow=True),
        Endpoint("/upload/similar.json", similar, is_slow=True),
        Endpoint("/upload/edit.json", edit, is_post=True, is_slow=True),
    ),
)

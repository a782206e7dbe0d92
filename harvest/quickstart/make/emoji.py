"""The emoji of the embedded pictures: their names from emojibase, their drawings from seven vendors' npm packages."""

import glob
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

PX = 64
_RENDER_PX = 2 * PX  # vector drawings are rendered twice as large and reduced: resvg's own edges are harder
_COMPONENT = 2  # emojibase's group of bare skin tones and hair

# npm packages by name and version, and what of each is unpacked (None: everything).
PACKAGES: dict[str, tuple[str, ...] | None] = {
    "emojibase-data@17.0.0": ("package/en", "package/meta"),
    "emoji-datasource-google@16.0.0": ("package/img/google/64",),
    "emoji-datasource-twitter@16.0.0": ("package/img/twitter/64",),
    "@lobehub/fluent-emoji-3d@1.1.0": None,
    "@iconify-json/fluent-emoji@1.2.7": None,
    "@iconify-json/fluent-emoji-flat@1.2.6": None,
    "@iconify-json/noto-v1@1.2.5": None,
    "@iconify-json/emojione@1.2.3": None,
    # these two for their tables of icon names only
    "@iconify-json/noto@1.2.9": ("package/chars.json",),
    "@iconify-json/twemoji@1.2.5": ("package/chars.json",),
}


@dataclass(frozen=True)
class Emoji:
    """One emoji in one skin tone."""

    code: str
    """Code points in hex, without variation selectors: `1F44B-1F3FB`."""
    base: str
    """Code of the same emoji without a skin tone."""
    name: str
    group: str
    subgroup: str
    tags: tuple[str, ...]
    tone: int
    """0 none, 1 light to 5 dark."""
    order: int
    """Unicode's order."""


@dataclass(frozen=True)
class Drawing:
    """One vendor's drawing of one emoji."""

    emoji: Emoji
    vendor: str
    read: Callable[[], NDArray[np.uint8]]
    """Gives `(PX, PX, 4)`, straight alpha."""


def package_folder(npm: Path, name: str) -> Path:
    """Where a package lies unpacked below `npm`: `@scope/name@1.0.0` in `scope-name-1.0.0`."""
    return npm / name.removeprefix("@").replace("/", "-").replace("@", "-") / "package"


def read_catalogue(npm: Path) -> dict[str, Emoji]:
    """Every emoji by code, those with two different skin tones in one picture left out."""
    folder = package_folder(npm, _package("emojibase-data"))
    names = json.loads((folder / "meta/groups.json").read_text())
    emojis: dict[str, Emoji] = {}
    for entry in json.loads((folder / "en/data.json").read_text()):
        if entry.get("group", _COMPONENT) == _COMPONENT:
            continue
        code = normal_code(entry["hexcode"])
        emoji = Emoji(
            code=code,
            base=code,
            name=entry["label"],
            group=names["groups"][str(entry["group"])],
            subgroup=names["subgroups"][str(entry["subgroup"])],
            tags=tuple(entry.get("tags", ())),
            tone=0,
            order=entry["order"],
        )
        emojis[code] = emoji
        for skin in entry.get("skins", ()):
            if isinstance(skin["tone"], int):
                toned = normal_code(skin["hexcode"])
                emojis[toned] = replace(emoji, code=toned, name=skin["label"], tone=skin["tone"], order=skin["order"])
    return emojis


def drawings(npm: Path, emojis: dict[str, Emoji]) -> Iterator[Drawing]:
    """Every vendor's drawings, vendor after vendor, each in Unicode's order, an emoji once a vendor."""
    codes = _codes_of_icon_names(npm, emojis)
    vendors: dict[str, Iterator[tuple[str, Callable[[], NDArray[np.uint8]]]]] = {
        "noto": _files(npm, "emoji-datasource-google", "img/google/64/*.png"),
        "twemoji": _files(npm, "emoji-datasource-twitter", "img/twitter/64/*.png"),
        "fluent3d": _files(npm, "@lobehub/fluent-emoji-3d", "assets/*.webp"),
        "fluent": _icons(npm, "@iconify-json/fluent-emoji", codes),
        "fluentflat": _icons(npm, "@iconify-json/fluent-emoji-flat", codes),
        "notov1": _icons(npm, "@iconify-json/noto-v1", codes),
        "emojitwo": _icons(npm, "@iconify-json/emojione", codes),
    }
    for vendor, found in vendors.items():
        known = [(emojis[code], read) for code, read in found if code in emojis]
        last = None
        for emoji, read in sorted(known, key=lambda pair: (pair[0].order, pair[0].code)):
            if emoji.code != last:
                yield Drawing(emoji, vendor, read)
            last = emoji.code


def normal_code(code: str) -> str:
    """A code in capitals, without the variation selector FE0F, joined by `-`."""
    return "-".join(part for part in code.upper().replace("_", "-").split("-") if part != "FE0F")


def _package(name: str) -> str:
    return next(package for package in PACKAGES if package.rpartition("@")[0] == name)


def _codes_of_icon_names(npm: Path, emojis: dict[str, Emoji]) -> dict[str, str]:
    """Iconify's icon names (`waving-hand-light-skin-tone`) to codes."""
    codes: dict[str, str] = {}
    for icons in ("noto", "twemoji", "fluent-emoji-flat"):
        table = package_folder(npm, _package(f"@iconify-json/{icons}")) / "chars.json"
        for code, name in json.loads(table.read_text()).items():
            if normal_code(code) in emojis:
                codes.setdefault(name, normal_code(code))
    return codes


def _files(npm: Path, package: str, pattern: str) -> Iterator[tuple[str, Callable[[], NDArray[np.uint8]]]]:
    for name in sorted(glob.glob(str(package_folder(npm, _package(package)) / pattern))):
        path = Path(name)
        yield normal_code(path.stem), partial(_file_pixels, path)


def _icons(npm: Path, package: str, codes: dict[str, str]) -> Iterator[tuple[str, Callable[[], NDArray[np.uint8]]]]:
    icons = json.loads((package_folder(npm, _package(package)) / "icons.json").read_text())
    for name, icon in icons["icons"].items():
        if name in codes and not icon.get("hidden"):
            yield codes[name], partial(_icon_pixels, icon, icons)


def _file_pixels(path: Path) -> NDArray[np.uint8]:
    return _pixels(path.read_bytes())


def _icon_pixels(icon: dict[str, Any], icons: dict[str, Any]) -> NDArray[np.uint8]:
    return _pixels(_render(_svg(icon, icons)))


def _svg(icon: dict[str, Any], icons: dict[str, Any]) -> str:
    box = [icon.get("left", 0), icon.get("top", 0)]
    box += [icon.get(side, icons.get(side, 16)) for side in ("width", "height")]  # 16 is Iconify's default
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{_RENDER_PX}" height="{_RENDER_PX}" viewBox="{" ".join(map(str, box))}">{icon["body"]}</svg>'
    )


def _render(svg: str) -> bytes:
    import resvg_py

    return bytes(resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True))


def _pixels(data: bytes) -> NDArray[np.uint8]:
    image = Image.open(io.BytesIO(data)).convert("RGBA")
    if image.size != (PX, PX):
        image = image.resize((PX, PX), Image.Resampling.LANCZOS)  # Pillow premultiplies RGBA to resize it
    return np.asarray(image)

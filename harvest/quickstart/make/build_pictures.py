"""Builds the embedded pictures: npm packages to drawings, drawings to gzipped WebDataset tars.

pip install resvg-py
python build_pictures.py fetch NPM_DIR                  npm pack of every package, unpacked
python build_pictures.py render NPM_DIR DRAWINGS_DIR    drawings.npz (RGBA) and drawings.jsonl, 4 minutes
python build_pictures.py pack DRAWINGS_DIR IMAGES_DIR   the tars of `images/`
"""

import argparse
import gzip
import hashlib
import io
import json
import subprocess
import tarfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
from clip_data import Picture, load_drawings, on_white, split_pictures
from emoji import PACKAGES, Emoji, drawings, package_folder, read_catalogue
from numpy.typing import NDArray
from PIL import Image

PICTURES_PER_TAR = 2500
_WEBP_QUALITY = 80  # 0.8 kB a picture; lossless takes three times that
_VISIBLE_ALPHA = 32
_VISIBLE_SHARE = 0.02  # below, the drawing came out empty


def main() -> None:
    """Run the stage named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stages = parser.add_subparsers(required=True)
    for name, arguments, stage in (
        ("fetch", ("npm",), fetch),
        ("render", ("npm", "out"), render),
        ("pack", ("drawings", "out"), pack),
    ):
        sub = stages.add_parser(name)
        for argument in arguments:
            sub.add_argument(argument, type=Path)
        if name == "render":
            sub.add_argument("--limit", type=int, help="drawings a vendor, to try the stage")
        sub.set_defaults(stage=stage)
    given = vars(parser.parse_args())
    given.pop("stage")(**given)


def fetch(npm: Path) -> None:
    """Fetch and unpack the npm packages."""
    npm.mkdir(parents=True, exist_ok=True)
    for package, parts in PACKAGES.items():
        folder = package_folder(npm, package).parent
        if folder.exists():
            continue
        done = subprocess.run(["npm", "pack", "--silent", package], cwd=npm, check=True, capture_output=True, text=True)
        with tarfile.open(npm / done.stdout.strip().splitlines()[-1]) as tar:
            wanted = [m for m in tar if parts is None or m.name.startswith(parts)]
            unfinished = folder.with_name(folder.name + ".part")
            tar.extractall(unfinished, members=wanted, filter="data")
        unfinished.rename(folder)
        print(f"{package}: {len(wanted)} files", flush=True)


def render(npm: Path, out: Path, limit: int | None = None) -> None:
    """Render every drawing once: empty ones, and those that a vendor uses for two emoji, are left out."""
    out.mkdir(parents=True, exist_ok=True)
    pixels: list[NDArray[np.uint8]] = []
    said: list[tuple[Emoji, str]] = []
    seen: set[tuple[str, bytes]] = set()
    counts: Counter[tuple[str, str]] = Counter()
    for drawing in drawings(npm, read_catalogue(npm)):
        if limit is not None and counts[drawing.vendor, "kept"] >= limit:
            continue
        rgba = drawing.read().copy()
        rgba[rgba[..., 3] == 0] = 0
        digest = (drawing.vendor, hashlib.sha256(rgba.tobytes()).digest())
        if (rgba[..., 3] > _VISIBLE_ALPHA).mean() < _VISIBLE_SHARE:
            counts[drawing.vendor, "empty"] += 1
        elif digest in seen:
            counts[drawing.vendor, "drawn twice"] += 1
        else:
            seen.add(digest)
            counts[drawing.vendor, "kept"] += 1
            pixels.append(rgba)
            said.append((drawing.emoji, drawing.vendor))
    np.savez(out / "drawings.npz", rgba=np.stack(pixels))
    lines = [json.dumps({**asdict(emoji), "vendor": vendor}, ensure_ascii=False) for emoji, vendor in said]
    (out / "drawings.jsonl").write_text("\n".join(lines) + "\n")
    for (vendor, what), n in counts.items():
        print(f"{vendor}: {n:,} {what}")
    print(f"{len(said):,} drawings, {len({emoji.code for emoji, _ in said}):,} emoji with their tones")


def pack(drawings: Path, out: Path) -> None:
    """Write the pictures on white as WebP, shuffled once so that each tar is a fair sample."""
    rgba, pictures = load_drawings(drawings)
    split = split_pictures(pictures)
    subgroups = sorted({picture.subgroup for picture in pictures})
    order = np.random.default_rng(0).permutation(len(pictures))
    out.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, len(order), PICTURES_PER_TAR)):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for i in order[start : start + PICTURES_PER_TAR].tolist():
                key = f"{pictures[i].vendor}-{pictures[i].code.lower()}"
                sidecar = {**_sidecar(pictures[i], subgroups), "split": split[i]}
                _add(tar, f"{key}.webp", _webp(rgba[i]))
                _add(tar, f"{key}.json", json.dumps(sidecar, ensure_ascii=False, separators=(",", ":")).encode())
        path = out / f"emoji-{number:04d}.tar.gz"
        path.write_bytes(gzip.compress(buffer.getvalue(), 9, mtime=0))
        print(f"{path}: {path.stat().st_size:,} bytes", flush=True)


def _sidecar(picture: Picture, subgroups: list[str]) -> dict[str, str | int]:
    return {
        "caption": picture.name,
        "label": picture.subgroup,
        "label_id": subgroups.index(picture.subgroup),
        "group": picture.group,
        "tone": picture.tone,
        "emoji": picture.base.lower(),
        "vendor": picture.vendor,
    }


def _webp(rgba: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(on_white(rgba)).save(buffer, "WEBP", quality=_WEBP_QUALITY, method=6)
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # owner 0, time 0: equal pictures give equal tars
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


if __name__ == "__main__":
    main()

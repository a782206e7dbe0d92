"""What the small CLIP is trained and tested on: drawings, captions, hold-outs, augmentation, tokens.

Shapes: n pictures, PX x PX pixels; RGBA is straight alpha, uint8.
"""

import gzip
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

N_CAPTIONS = 12
TRAIN, STYLE_HOLDOUT, CONCEPT_HOLDOUT = "train", "style-holdout", "concept-holdout"
_STYLE_VENDOR = "twemoji"
_STYLE_SHARE, _CONCEPT_SHARE = 0.15, 0.05
_N_SPECIAL_TOKENS, _N_BYTE_TOKENS = 2, 512  # start and end; each byte within a word and at its end


@dataclass(frozen=True)
class Picture:
    """What is known of one drawing; see `emoji.Emoji`."""

    code: str
    base: str
    name: str
    group: str
    subgroup: str
    tags: tuple[str, ...]
    tone: int
    vendor: str


def load_drawings(folder: Path) -> tuple[NDArray[np.uint8], list[Picture]]:
    """RGBA `(n, PX, PX, 4)` and what is known of each, as `build_pictures.py render` wrote them."""
    lines = [json.loads(line) for line in (folder / "drawings.jsonl").read_text().splitlines()]
    names = Picture.__dataclass_fields__
    pictures = [
        Picture(**{k: v for k, v in line.items() if k in names} | {"tags": tuple(line["tags"])}) for line in lines
    ]
    return np.load(folder / "drawings.npz")["rgba"], pictures


def split_pictures(pictures: Sequence[Picture], seed: int = 0) -> list[str]:
    """The split of each picture.

    5 % of the emoji are held out in every vendor's drawing (concept hold-out), of another 15 % the Twemoji drawings
    (style hold-out).
    """
    bases = sorted({picture.base for picture in pictures})
    random.Random(seed).shuffle(bases)
    n_concept, n_style = round(_CONCEPT_SHARE * len(bases)), round(_STYLE_SHARE * len(bases))
    concept, style = set(bases[:n_concept]), set(bases[n_concept : n_concept + n_style])
    return [
        CONCEPT_HOLDOUT
        if picture.base in concept
        else STYLE_HOLDOUT
        if picture.base in style and picture.vendor == _STYLE_VENDOR
        else TRAIN
        for picture in pictures
    ]


def captions(picture: Picture, rng: random.Random) -> list[str]:
    """`N_CAPTIONS` captions of an emoji: its name (thrice), with its subgroup, and with some of its tags."""
    name, subgroup = picture.name, words_of(picture.subgroup)
    tags = [tag for tag in picture.tags if tag.isascii() and len(tag) > 1]
    made = [name, name, name, f"{name}, {subgroup}", f"{subgroup}: {name}", f"a picture of {name}"]
    tone = name.split(": ")[1] if picture.tone and ": " in name else ""
    while len(made) < N_CAPTIONS:
        some = ", ".join(rng.sample(tags, min(len(tags), rng.randint(1, 3))) if tags else [subgroup])
        made.append(rng.choice([f"{name} ({some})", f"{some}: {name}", f"{some}, {subgroup} {tone}".strip()]))
    return made


def words_of(subgroup: str) -> str:
    """A subgroup's prompt: `face-smiling` is "face smiling"."""
    return subgroup.replace("-", " ")


def on_white(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """RGB on white of RGBA."""
    alpha = rgba[..., 3:].astype(np.float32) / 255
    return (rgba[..., :3] * alpha + 255 * (1 - alpha) + 0.5).astype(np.uint8)


def augment(rgba: Tensor, generator: torch.Generator) -> Tensor:
    """Float RGB `(n, 3, PX, PX)` in 0 to 1: moved, turned, scaled, sheared, recoloured, on some background.

    Parameters
    ----------
    rgba
        `(n, PX, PX, 4)`, uint8.
    """
    n = len(rgba)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.empty(n, *shape).uniform_(low, high, generator=generator)

    x = rgba.permute(0, 3, 1, 2).float() / 255
    x = torch.cat([x[:, :3] * x[:, 3:], x[:, 3:]], 1)  # premultiplied: interpolation must not mix in hidden colours
    angle, scale = uniform(-15, 15) * torch.pi / 180, 1 / (1 + uniform(-0.25, 0.12))
    aspect, shear = 1 + uniform(-0.08, 0.08), uniform(-0.08, 0.08)
    cos, sin = angle.cos(), angle.sin()
    rows = [
        torch.stack([scale * aspect * cos, scale * (shear - sin), uniform(-0.12, 0.12)], 1),
        torch.stack([scale * sin, scale / aspect * cos, uniform(-0.12, 0.12)], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, "bilinear", "zeros", align_corners=False)
    rgb, alpha = x[:, :3], x[:, 3:]
    contrast, brightness, tint = (
        1 + uniform(-0.2, 0.2, 1, 1, 1),
        uniform(-0.1, 0.1, 1, 1, 1),
        uniform(-0.04, 0.04, 3, 1, 1),
    )
    rgb = (rgb - 0.5 * alpha) * contrast + 0.5 * alpha + alpha * (brightness + tint)
    kind = uniform(0, 1, 1, 1, 1)  # half white, a third pale, the rest any colour
    pale = 1 - 0.45 * uniform(0, 1, 3, 1, 1) * uniform(0, 1, 1, 1, 1)
    background = torch.where(kind < 0.5, torch.ones(n, 3, 1, 1), torch.where(kind < 0.85, pale, uniform(0, 1, 3, 1, 1)))
    return (rgb + (1 - alpha) * background).clamp_(0, 1)


def write_bpe(path: Path, vocab_size: int) -> None:
    """Write the head of CLIP's own byte-pair merges that makes a vocabulary of `vocab_size` tokens."""
    from open_clip.tokenizer import default_bpe

    lines = gzip.decompress(Path(default_bpe()).read_bytes()).decode().split("\n")
    n_merges = vocab_size - _N_BYTE_TOKENS - _N_SPECIAL_TOKENS
    path.write_bytes(gzip.compress("\n".join(lines[: 1 + n_merges]).encode(), mtime=0))  # the first line is a heading


def tokenizer(model_cfg: dict[str, Any], bpe_path: Path) -> Any:
    """open_clip's tokenizer on those merges."""
    from open_clip.tokenizer import SimpleTokenizer

    text = model_cfg["text_cfg"]
    made = SimpleTokenizer(bpe_path=str(bpe_path), context_length=text["context_length"])
    assert made.vocab_size == text["vocab_size"], made.vocab_size
    return made


def encode_text(model: Any, tokens: Tensor) -> Tensor:
    """Unit text embeddings of token rows cut to the longest: `model.encode_text` with less work.

    Parameters
    ----------
    tokens
        `(n, length)`, length at most the model's context length; end-of-text is the largest id of a row.
    """
    length = int((tokens != 0).sum(1).max())
    tokens = tokens[:, :length]
    x = model.token_embedding(tokens) + model.positional_embedding[:length]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    return F.normalize(x[torch.arange(len(x)), tokens.argmax(-1)] @ model.text_projection, dim=-1)

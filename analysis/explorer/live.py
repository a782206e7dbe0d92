"""What a run's tower and SAE make of one picture: its features, its zero-shot predictions, and both after an edit.

All of it happens within a `RunTower.turn`. Shapes: T tokens of the picture at the site, d the length of a vector, C
classes, e the length of an embedding, n features > 0.
"""

import base64
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..options import EncodeOptions
from .page import Unavailable
from .tower import ClassTexts, RunTower

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

SHOWN = 5
"""Classes that predictions name."""

Vector = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Seen:
    """A picture that went through the tower."""

    pixels: NDArray[np.uint8]
    """`(height, width, 3)`: what the tower sees."""
    index: NDArray[np.int64]
    """`(n,)` features > 0, by falling value; ties by ascending feature."""
    value: NDArray[np.float32]
    """`(n,)`; of several tokens each feature's largest."""
    l0: float
    """Features > 0; of several tokens their mean."""
    n_tokens: int
    norm: float
    """||x|| of what is reconstructed; of several tokens that of all together."""
    relative_error: float
    """||x_hat - x|| / ||x||, likewise."""
    cosine: float
    """Of x and x_hat; of several tokens their mean."""
    before: Vector
    """`(e,)` embedding of the picture."""
    after: Vector | None
    """`(e,)` with the SAE's reconstruction in the place of the site; None where it cannot be put there."""
    no_after_because: str
    images: "Tensor | None"
    """`(1, 3, height, width)`, where the first block is to run again; else None."""
    stream: "Tensor | None"
    """`(1, t, d)`: what enters the first block after the site."""

    def picture(self) -> str:
        """What the tower sees, as a data URL."""
        from PIL import Image

        saved = BytesIO()
        Image.fromarray(self.pixels).save(saved, "PNG")
        return "data:image/png;base64," + base64.b64encode(saved.getvalue()).decode()


def see(tower: RunTower, picture: "Image.Image") -> Seen:
    """Run the tower and the SAE on a picture, decoded as `harvest` does.

    Raises
    ------
    Unavailable
        When the tower or the SAE is not at hand or not the run's.
    """
    import torch

    from ...harvest.continuation import first_block_after
    from ...harvest.sites import capture
    from ...store.format import Site
    from ..encoded_block import StoredRows, encode_block

    clip_tower, sae, site, target = tower.clip()[1], tower.sae(), tower.site, tower.target
    pixels = np.ascontiguousarray(clip_tower.pixels(picture))
    images = clip_tower.normalise(torch.from_numpy(pixels.copy())[None])
    layer = first_block_after(site)
    entering = Site(layer - 1, "resid_post", "all") if layer else None
    places = dict.fromkeys(place for place in (site, target, entering) if place is not None)
    rows = capture(clip_tower, images, list(places))
    x, y = (rows[place].flatten(0, -2).cpu() for place in (site, target or site))
    norm = y.double().norm(dim=1).numpy()
    found = encode_block(sae, StoredRows(x, x if target is None else y, norm), tile_features=_TILE)
    index, value = _largest(found.index.astype(np.int64), found.value)
    stream = None if entering is None else rows[entering]
    before = _embed(tower, images, stream, None)
    after, reason = None, ""
    try:
        after = _embed(tower, images, stream, _splice(tower))
    except ValueError as error:  # the mean of the patches is no place in the tower
        reason = str(error)
    whole = float(np.sqrt(np.square(norm).sum()))
    return Seen(
        pixels=pixels,
        index=index,
        value=value,
        l0=len(found.index) / len(x),
        n_tokens=len(x),
        norm=whole,
        relative_error=float(np.sqrt(found.sse.sum())) / whole if whole else float("nan"),
        cosine=float(found.cosine.astype(np.float64).mean()),
        before=before,
        after=after,
        no_after_because=reason,
        images=None if entering is not None else images,
        stream=stream,
    )


def edited(tower: RunTower, seen: Seen, factors: Mapping[int, float], *, keep_error: bool) -> Vector:
    """Embedding `(e,)` of a picture with some features multiplied; only the blocks after the site run.

    Parameters
    ----------
    factors
        By feature; 0 ablates it. On every token of the site.
    keep_error
        Add back what the SAE, unedited, leaves of the activations: the difference from the picture's own embedding is
        then the edit's alone. Without, factors of 1 give the embedding after the SAE.

    Raises
    ------
    Unavailable
        When the SAE's reconstruction cannot be put in the place of the site.
    """
    import torch

    if seen.after is None:
        raise Unavailable(f"Features cannot be changed here: {seen.no_after_because}")
    features = torch.tensor(list(factors), dtype=torch.int64)
    by = torch.tensor(list(factors.values()), dtype=torch.float32)

    def edit(f: "Tensor") -> "Tensor":
        new = f.clone()
        new[..., features.to(f.device)] *= by.to(f)
        return new

    return _embed(tower, seen.images, seen.stream, _splice(tower, keep_error=keep_error, edit=edit))


@dataclass(frozen=True)
class ClassChance:
    """What zero-shot gives a class: the softmax of cosines times the model's logit scale, over all classes."""

    name: str
    label: int
    chances: list[float | None]
    """In each of the ways asked for; None where one could not be."""


@dataclass(frozen=True)
class ZeroShot:
    """Zero-shot predictions of one picture in some ways: the classes that are among the five likeliest in any."""

    classes: list[ClassChance]
    """By falling chance in the first way."""
    n_classes: int
    captions: str
    """How the captions were made."""


def zero_shot(texts: ClassTexts, ways: Sequence[Vector | None], *, also: int = -1) -> ZeroShot:
    """Compare embeddings `(e,)` with the classes' captions.

    Parameters
    ----------
    also
        A label whose class is given in any case.
    """
    chances = [None if way is None else _softmax(texts.logit_scale * (texts.embeddings @ way)) for way in ways]
    chosen = {int(place) for each in chances if each is not None for place in np.argsort(-each, kind="stable")[:SHOWN]}
    chosen |= {place for place in [texts.place_of_label.get(also)] if place is not None}
    first = next(each for each in chances if each is not None)
    ordered = sorted(chosen, key=lambda place: (-first[place], place))
    return ZeroShot(
        classes=[
            ClassChance(
                texts.names[place],
                texts.labels[place],
                [None if each is None else float(each[place]) for each in chances],
            )
            for place in ordered
        ],
        n_classes=len(texts.names),
        captions=texts.description,
    )


_TILE = EncodeOptions().tile_features


def _largest(index: NDArray[np.int64], value: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Each feature's largest value over the tokens, by falling value, then ascending feature."""
    order = np.lexsort((-value, index))
    index, value = index[order], value[order]
    kept = np.ones(len(index), np.bool_)
    kept[1:] = index[1:] != index[:-1]
    index, value = index[kept], value[kept]
    order = np.lexsort((index, -value))
    return index[order], value[order]


def _splice(tower: RunTower, **how: Any) -> AbstractContextManager[Any]:
    from ...harvest.splice import splice

    return splice(tower.clip()[1], tower.sae(), tower.site, target=tower.target, **how)


def _embed(
    tower: RunTower,
    images: "Tensor | None",
    stream: "Tensor | None",
    splicing: AbstractContextManager[Any] | None,
) -> Vector:
    from ...harvest.continuation import embed_images, first_block_after

    found = embed_images(tower.clip()[1], images, splicing, layer=first_block_after(tower.site), stream=stream)
    return found[0].cpu().double().numpy()


def _softmax(logits: Vector) -> Vector:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()

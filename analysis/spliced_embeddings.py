"""Image embeddings of a tower as it is, and with a site replaced in one way or another.

Shapes: n images, T tokens of an image at the site, d the length of a vector, e the length of an embedding.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..harvest.continuation import embed_images, first_block_after, stream_entering
from ..harvest.images import ImageSet
from ..harvest.splice import Autoencoder, splice
from ..harvest.vision import Tower
from ..progress import Reporter
from ..store.format import Site
from .contrastive import Embeddings, Ints
from .evaluation_images import decoded

Ways = Mapping[str, Callable[[], AbstractContextManager[Any] | None]]
"""Name of a way -> what enters a splice, or None of the tower as it is."""
_IMAGES_AT_ONCE = 64


def ways_to_replace(
    tower: Tower, sae: Autoencoder, site: Site, *, target: Site | None = None, mean: Tensor | None = None
) -> Ways:
    """`original`, `sae`, `zero`, and `mean` where a mean `(d,)` or `(T, d)` is given."""
    replaced = target or site
    return {
        "original": lambda: None,
        "sae": lambda: splice(tower, sae, site, target=target),
        "zero": lambda: splice(tower, None, replaced, replace="zero"),
        **({} if mean is None else {"mean": lambda: splice(tower, None, replaced, replace="mean", mean=mean)}),
    }


def ways_to_explain(tower: Tower, sae: Autoencoder, site: Site, *, target: Site | None = None, seed: int = 0) -> Ways:
    """`with_error`, the SAE with what it leaves added back, and `random_error`, as much error in a random direction.

    Of a transcoder the first alone: what it is to give cannot be seen where it reads.
    """
    ways: dict[str, Callable[[], AbstractContextManager[Any] | None]] = {
        "with_error": lambda: splice(tower, sae, site, target=target, keep_error=True)
    }
    if target is None or target == site:
        erring = _RandomError(sae, seed)
        ways["random_error"] = lambda: splice(tower, erring, site)
    return ways


class _RandomError:
    """Gives each row plus an error as long as the SAE's there, in a direction drawn evenly from all."""

    is_transcoder = False

    def __init__(self, sae: Autoencoder, seed: int) -> None:
        self._sae, self.d_in, self.d_out = sae, sae.d_in, sae.d_out
        self._generator = torch.Generator().manual_seed(seed)

    def encode(self, x: Tensor) -> Tensor:
        """The SAE's."""
        return self._sae.encode(x)

    def decode(self, f: Tensor, x: Tensor | None = None) -> Tensor:
        """The rows with a random error."""
        assert x is not None
        x_hat = self._sae.decode(f, x)
        size = (x_hat - x).norm(dim=-1, keepdim=True)
        direction = torch.randn(x.shape, generator=self._generator).to(x_hat)
        return x + size * direction / direction.norm(dim=-1, keepdim=True)


def embed_ways(
    tower: Tower,
    images: ImageSet,
    chosen: Ints,
    site: Site,
    ways: Ways,
    *,
    images_at_once: int = _IMAGES_AT_ONCE,
    reporter: Reporter | None = None,
) -> tuple[Ints, dict[str, Embeddings]]:
    """Embeddings of the images that can be read, once for each way.

    What comes before the site is computed once. Memory does not grow with the images, but for their embeddings.

    Parameters
    ----------
    chosen
        `(n,)`: numbers of images of the set.
    site
        The first that any way changes or reads.

    Returns
    -------
    read
        Which of the chosen could be read, ascending.
    embeddings
        By way, `(len(read), e)` float32, of norm 1.

    Raises
    ------
    ValueError
        When none can be read.
    """
    layer = first_block_after(site)
    found: dict[str, list[Embeddings]] = {way: [] for way in ways}
    read = []
    with (reporter or Reporter()).task("evaluate", len(chosen), "images") as task:
        for places, pixels in decoded(images, chosen, tower, batch_size=images_at_once):
            batch = tower.normalise(pixels)
            stream = stream_entering(tower, batch, [layer] if layer else []).get(layer)
            for way, splicing in ways.items():
                found[way].append(embed_images(tower, batch, splicing(), layer=layer, stream=stream).cpu().numpy())
            read.append(places)
            task.advance(len(places))
    if not read:
        raise ValueError(f"none of the {len(chosen):,} images to evaluate on can be read.")
    return np.concatenate(read), {way: np.concatenate(parts) for way, parts in found.items()}

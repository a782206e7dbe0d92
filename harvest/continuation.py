"""Runs an image tower from one of its blocks on, so that what comes before is computed once.

Shapes: n images, t tokens of the tower, d the width of its residual stream, e the length of an embedding.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ..store.format import Site
from .sites import capture
from .vision import Tower


def first_block_after(site: Site) -> int:
    """The first block that must run again when a site's activations change: 0-based, `n_layers` for none."""
    return site.layer + (site.site == "resid_post")


def stream_entering(tower: Tower, images: Tensor, layers: list[int]) -> dict[int, Tensor]:
    """The residual stream that enters some blocks, in one forward pass.

    Parameters
    ----------
    images
        `(n, 3, height, width)`, preprocessed, on the tower's device.
    layers
        1 to `n_layers`: that which leaves the block before.

    Returns
    -------
    streams
        `(n, t, d)` float32 on the tower's device, by layer.
    """
    sites = {layer: Site(layer - 1, "resid_post", "all") for layer in layers}
    rows = capture(tower, images, list(sites.values())) if sites else {}
    return {layer: rows[site] for layer, site in sites.items()}


def embed_images(
    tower: Tower,
    images: Tensor | None,
    splicing: AbstractContextManager[Any] | None = None,
    *,
    layer: int = 0,
    stream: Tensor | None = None,
) -> Tensor:
    """Unit image embeddings, of whole images or of a stream that enters a block.

    Parameters
    ----------
    images
        `(n, 3, height, width)`, preprocessed, on the tower's device; not looked at where a stream is given.
    splicing
        A `splice` of this tower, not yet entered. With a stream it must be at or after that block's entrance.
    layer, stream
        The block, from 1 on, and what enters it, as `stream_entering` gives it.

    Returns
    -------
    embeddings
        `(n, e)` float32, on the tower's device.
    """
    with ExitStack() as stack:
        if stream is not None:
            images = stack.enter_context(_entering(tower, layer, stream))
        if splicing is not None:
            stack.enter_context(splicing)
        stack.enter_context(tower.arithmetic())
        found = tower.visual(images)
        pooled = found[0] if isinstance(found, tuple) else found
        return normalize(pooled.float(), dim=-1)


class _Skipped(nn.Module):
    """In the place of a block that need not run."""

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        return x


class _Known(nn.Module):
    """In the place of the block before: gives what that would."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, _x: Tensor, *_: Any, **__: Any) -> Tensor:
        return self.output


@contextmanager
def _entering(tower: Tower, layer: int, stream: Tensor) -> Iterator[Tensor]:
    """Have the blocks from `layer` on see a stream; gives the single image to call the tower with.

    The blocks before are put out of the way, not the tower's own code: what it does after its blocks stays its own.
    """
    transformer: Any = tower.visual.transformer
    blocks = transformer.resblocks
    assert 1 <= layer <= len(blocks), layer
    passing = stream if getattr(transformer, "batch_first", False) else stream.transpose(0, 1)
    before = [*(_Skipped() for _ in range(layer - 1)), _Known(passing)]
    height, width = tower.preprocessing["size"]
    transformer.resblocks = nn.ModuleList([*before, *blocks[layer:]])
    try:
        yield torch.zeros(1, 3, height, width, device=tower.device)
    finally:
        transformer.resblocks = blocks

"""What features write into a tower's residual stream, and what the tower's own head makes of a stream.

Shapes: n vectors, t tokens of the tower (the class token first), d the width of the stream, e the length of an
embedding.
"""

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ...harvest.sites import n_class_tokens, site_width
from ...harvest.splice import place_in
from ...harvest.vision import Tower
from ...store.format import Site
from ...train.models import SparseAutoencoder


class Pictures(Protocol):
    """What gives the images of rows, such as `RowPictures`."""

    def pixels(self, rows: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        """Places `(b,)` among the rows, and pixels `(b, height, width, 3)` uint8 of the images that can be read."""


def written_site(tower: Tower, sae: SparseAutoencoder, site: Site, target: Site | None = None) -> Site:
    """The site whose vectors the features make up: where an SAE reads, or what a transcoder reconstructs.

    Raises
    ------
    ValueError
        When the tower is not one that can be run from inside, has no such site, or the SAE is of another width.
    """
    visual: Any = tower.visual
    if not hasattr(getattr(visual, "transformer", None), "resblocks") or not hasattr(visual, "_pool"):
        raise ValueError(
            f"{tower.name} is a {type(visual).__name__}, and features are followed to the embedding through "
            "open_clip's own vision transformer alone: name a run whose tower is one."
        )
    if sae.is_transcoder and target is None:
        raise ValueError(f"a transcoder that reads {site} writes to another site: name it as target.")
    written = site if target is None else target
    # The mean of the patches is no place in the tower; what changes it by as much is the same change of every patch.
    place_in(visual, Site(written.layer, written.site, "patch") if written.token == "mean" else written)
    width = site_width(visual, written)
    if sae.d_out != width:
        raise ValueError(
            f"the SAE gives vectors of {sae.d_out}; those of {written} have {width}: it is of another tower or site."
        )
    return written


def pools_class_token(tower: Tower) -> bool:
    """Whether the embedding is made of the last class token alone, and not of a mean or an attentional pool."""
    visual: Any = tower.visual
    return visual.attn_pool is None and visual.pool_type == "tok"


def tokens_of(tower: Tower, token: str) -> slice:
    """The tower's tokens that a word of `store.format.TOKENS` stands for; of `mean` the patches."""
    n_class = n_class_tokens(tower.visual)
    return {"cls": slice(0, 1), "all": slice(None)}.get(token, slice(n_class, None))


def decoder_vectors(sae: SparseAutoencoder, features: NDArray[np.integer[Any]], x: Tensor) -> Tensor:
    """What one unit of each feature adds to a vector of the written site, in the tower's units: `(n, d_out)` float32.

    The scaling that belongs to the SAE is folded in: W_dec * output_scale, and times each row's own deviation where the
    SAE normalises rows.

    Parameters
    ----------
    x
        `(n, d_in)`, or `(d_in,)`: the vectors that were read, for an SAE that normalises rows.
    """
    directions = sae.W_dec[torch.as_tensor(features, dtype=torch.int64, device=sae.device)].float()
    return sae.unscale_residual(directions, x.expand(len(directions), -1) if x.ndim == 1 else x).float()


def into_stream(tower: Tower, written: Site, vectors: Tensor) -> Tensor:
    """What vectors of a site `(..., d_out)` add to the residual stream, `(..., d)`.

    Themselves but for `mlp_act`, whose coordinates are the block's neurons: there c_proj, without its bias, and the
    layer scale, both linear.
    """
    if written.site != "mlp_act":
        return vectors
    block: Any = tower.blocks[written.layer]
    out = F.linear(vectors, block.mlp.c_proj.weight.float())
    return out * block.ls_2.gamma.float() if hasattr(block.ls_2, "gamma") else out


def pooled_embedding(tower: Tower, stream: Tensor) -> Tensor:
    """Embeddings of streams that leave the last block, before they are scaled to length 1: `(n, e)` float32.

    The tower's own pooling, `ln_post` and projection. Of a tower that pools its class token, streams of that token
    alone, `(n, 1, d)`, will do.

    Parameters
    ----------
    stream
        `(n, t, d)`.
    """
    visual: Any = tower.visual
    with tower.arithmetic():
        pooled = visual._pool(stream)[0]
        return (pooled if visual.proj is None else pooled @ visual.proj).float()


def head_of_vectors(tower: Tower, vectors: Tensor) -> Tensor:
    """Embeddings, not of length 1, of a stream in which every token is one vector: `(n, e)` float32.

    For a tower that pools its class token that is ln_post and the projection of the vector. A mean over patches, and an
    attentional pool, give of equal tokens what they give of one.

    Parameters
    ----------
    vectors
        `(n, d)`, on the tower's device.
    """
    return pooled_embedding(tower, vectors[:, None].expand(-1, 2, -1))


def after_mlp(block: Any, x: Tensor) -> Tensor:
    """The stream behind a block's MLP, from the stream behind its attention."""
    return x + block.ls_2(block.mlp(block.ln_2(x)))

"""The part of a tower behind a site, run for many changes of one image: what no change reaches is computed once.

Shapes: i images, q changed streams (`image` says of which each is), t tokens, T of them at the site, d the width of the
stream, h heads of w coordinates (h w = d), e the length of an embedding.

Which parts run again:

- Behind the last block: pooling, ln_post and the projection, of the class token alone where the tower pools that.
- A tower that pools its class token needs of its last block that token's query alone. Where only the class token of the
  stream changed and one block is left, the patches' keys and values are the unchanged image's, computed once.
- Blocks in between run whole, since every token sees the change.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...harvest.sites import capture
from ...harvest.vision import Tower
from ...store.format import Site
from .stream import after_mlp, pooled_embedding, pools_class_token, tokens_of

_STREAM_BYTES = 1 << 28
"""Of the whole streams that run through blocks at a time."""
_QUERIES_OF_AN_IMAGE = 64
"""Class tokens of one image at a time: images with more take several turns."""


@dataclass(frozen=True)
class Streams:
    """What some images bring to a site."""

    entering: Tensor
    """`(i, t, d)`: the stream that enters the first block behind the site."""
    written: Tensor
    """`(i, T, d)`: the stream at the site's tokens where a change of the site adds to it."""
    read: Tensor | None
    """`(i, T or 1, d_in)`: the vectors that an SAE which normalises rows reads there."""


class Remaining:
    """The part of a tower behind a site.

    Parameters
    ----------
    written
        The site whose vectors change, as `written_site` gives it.
    read
        The site whose vectors are to be captured as well.
    """

    def __init__(self, tower: Tower, written: Site, read: Site | None = None) -> None:
        self._tower, self._written, self._read = tower, written, read
        self._layer = written.layer + (written.site != "resid_pre")
        self._tokens = tokens_of(tower, written.token)
        self._blocks: list[Any] = list(tower.blocks[self._layer :])
        self._pools_class = pools_class_token(tower)
        self._is_batch_first = bool(getattr(tower.visual.transformer, "batch_first", False))
        self._last_is_known = bool(self._blocks) and _divides(self._blocks[-1])

    @property
    def is_blind(self) -> bool:
        """Whether nothing of the site reaches the embedding: its patches, behind the last block that the class sees."""
        return self._pools_class and not self._blocks and self._tokens.start == 1

    def streams(self, images: Tensor) -> Streams:
        """What images `(i, 3, height, width)` bring to the site, in one forward pass that ends there."""
        entering = Site(self._layer - 1, "resid_post", "all") if self._layer else Site(0, "resid_pre", "all")
        places = {entering}
        halfway = [Site(self._written.layer, site, "all") for site in ("resid_pre", "attn_out")]
        if self._written.site == "attn_out":
            places |= set(halfway)
        if self._read is not None:
            places.add(self._read)
        rows = capture(self._tower, images, sorted(places, key=str))
        at_site = rows[entering]
        if self._written.site == "attn_out":
            at_site = rows[halfway[0]] + rows[halfway[1]]
        read = None
        if self._read is not None:
            read = rows[self._read] if rows[self._read].ndim == 3 else rows[self._read][:, None]
        return Streams(rows[entering], at_site[:, self._tokens], read)

    def embeddings(self, streams: Streams, image: Tensor, change: Tensor) -> Tensor:
        """Embeddings `(q, e)` float32, not of length 1, of images with something added at the site.

        Parameters
        ----------
        image
            `(q,)`, ascending.
        change
            `(q, T, d)`, or `(q, 1, d)` for the same at every token.
        """
        with self._tower.arithmetic():
            rows = streams.written[image] + change  # (q, T, d)
            if self._written.site == "attn_out":
                rows = after_mlp(self._tower.blocks[self._written.layer], rows)
            if self._pools_class and (not self._blocks or self._is_last_for_class_token()):
                if self._blocks:
                    rows = _class_tokens(self._blocks[-1], streams.entering, image, rows[:, 0])[:, None]
                return pooled_embedding(self._tower, rows[:, :1])
            size = max(1, _STREAM_BYTES // (streams.entering[0].numel() * streams.entering.element_size()))
            parts = [
                self._through_blocks(streams.entering, image[start : start + size], rows[start : start + size])
                for start in range(0, len(image), size)
            ]
            return torch.cat(parts)

    def _is_last_for_class_token(self) -> bool:
        return self._last_is_known and len(self._blocks) == 1 and self._written.token == "cls"

    def _through_blocks(self, entering: Tensor, image: Tensor, rows: Tensor) -> Tensor:
        x = entering[image]
        x[:, self._tokens] = rows.to(x.dtype)
        ends_in_class = self._pools_class and self._last_is_known
        for block in self._blocks[: -1 if ends_in_class else None]:
            x = block(x) if self._is_batch_first else block(x.transpose(0, 1)).transpose(0, 1)
        if ends_in_class:
            x = _class_tokens(self._blocks[-1], x, torch.arange(len(x), device=x.device), x[:, 0])[:, None]
        return pooled_embedding(self._tower, x)


def _divides(block: Any) -> bool:
    """Whether a block is one of open_clip's two, whose attention `_class_tokens` takes apart."""
    attention = getattr(block, "attn", None)
    return (
        getattr(attention, "in_proj_weight", None) is not None
        and isinstance(getattr(attention, "out_proj", None), nn.Linear)
        and getattr(attention, "logit_scale", None) is None  # cosine attention, which open_clip 3.3 cannot run either
    )


def _class_tokens(block: Any, stream: Tensor, image: Tensor, tokens: Tensor) -> Tensor:
    """What a block makes of changed class tokens, the other tokens of their images as they were: `(q, d)`.

    Parameters
    ----------
    stream
        `(i, t, d)`: of the unchanged images. Its class tokens are not looked at.
    image
        `(q,)`, ascending.
    tokens
        `(q, d)`.
    """
    x = block.ln_1(stream[:, 1:])  # (i, t - 1, d)
    keys, values = (_of_heads(block, x, part).transpose(1, 2) for part in (1, 2))  # (i, h, t - 1, w)
    x = block.ln_1(tokens)
    mine = torch.stack([_of_heads(block, x, part) for part in range(3)])  # (3, q, h, w)
    counts = torch.bincount(image, minlength=len(stream))
    place = torch.arange(len(image), device=image.device) - (counts.cumsum(0) - counts)[image]  # among its image's
    mixed = torch.empty_like(mine[0])
    for first in range(0, int(counts.max()), _QUERIES_OF_AN_IMAGE):
        now = (place >= first) & (place < first + _QUERIES_OF_AN_IMAGE)
        at = image[now], place[now] - first
        padded = mine.new_zeros(3, len(stream), int(at[1].max()) + 1, *mine.shape[2:])
        padded[:, at[0], at[1]] = mine[:, now]
        query, key, value = padded.transpose(2, 3)  # (i, h, m, w)
        logits = torch.cat([(query * key).sum(-1, keepdim=True), query @ keys.transpose(-1, -2)], dim=-1)
        weights = (logits.float() / query.shape[-1] ** 0.5).softmax(dim=-1)  # (i, h, m, t)
        out = weights[..., :1] * value + weights[..., 1:].to(values.dtype) @ values
        mixed[now] = out.transpose(1, 2)[at].to(mixed.dtype)
    return after_mlp(block, tokens + _written_by(block, mixed))


def _of_heads(block: Any, x: Tensor, part: int) -> Tensor:
    """Queries, keys or values (part 0, 1, 2) `(..., h, w)` of normed tokens `(..., d)`."""
    attention, d = block.attn, x.shape[-1]
    rows = slice(part * d, (part + 1) * d)
    bias = None if attention.in_proj_bias is None else attention.in_proj_bias[rows]
    found = F.linear(x, attention.in_proj_weight[rows], bias).unflatten(-1, (attention.num_heads, -1))
    norm = getattr(attention, ("ln_q", "ln_k", "")[part], None) if part < 2 else None
    return found if norm is None else norm(found)


def _written_by(block: Any, mixed: Tensor) -> Tensor:
    """What attention adds to the stream, from its heads' mixtures of values `(q, h, w)`."""
    attention = block.attn
    scale = getattr(attention, "head_scale", None)
    x = (mixed if scale is None else mixed * scale[:, 0]).flatten(-2)
    x = attention.out_proj(getattr(attention, "ln_inner", nn.Identity())(x))
    return block.ls_1(getattr(block, "ln_attn", nn.Identity())(x))

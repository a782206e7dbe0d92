"""The directions in which the blocks of a tower write into its residual stream, from the weights alone.

Shapes: d the width of the stream, m neurons of an MLP, h heads of w coordinates (h w = d).

An MLP writes mlp_out = ls_2(c_proj(mlp_act)) = sum_j mlp_act_j v_j + constant, v_j = gamma_2 * c_proj.weight[:, j]: one
output vector a neuron, after the layer scale where the tower has one. The bias belongs to no neuron.

What attention writes is not divided among coordinates in this way: a head reads by W_V and writes by W_O, and any
rotation between the two leaves the tower as it is, so that single columns of `out_proj` mean nothing. What does not
depend on the rotation is the product W_O W_V, d x d of rank w: a head's directions are its left singular vectors,
largest singular value first. Their sign is arbitrary; only absolute cosines with them are meant. What stands between
is folded in: the gain of ln_1 (and its centring) before W_V, of `ln_inner` before W_O, of `ln_attn` and ls_1 after it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..store.format import Site

_RANK_TOLERANCE = 1e-6  # of a head's largest singular value: below it float32 weights give directions of rounding


@dataclass(frozen=True)
class Outputs:
    """The output directions of one part of a block."""

    kind: str
    """`mlp` or `attention`."""
    layer: int
    """0-based block."""
    has_sign: bool
    """Whether a direction's sign means something."""
    unit_vectors: Callable[[], Tensor]
    """Gives them: `(m, d)` float32 of length 1; a vector of zeros where the weights have no direction."""

    @property
    def name(self) -> str:
        """`mlp 22`."""
        return f"{self.kind} {self.layer}"


@dataclass(frozen=True)
class OutputsOfSite:
    """What the features of one site are held against."""

    main: Outputs
    """Of the part that wrote last before the site is read."""
    others: tuple[Outputs, ...]
    """Of every earlier part, ascending: first the MLPs, then attention, the main block's own included."""


def outputs_of_site(visual: nn.Module, site: Site) -> OutputsOfSite:
    """The output directions that meet the vectors of a site.

    - `resid_post` of block L: the MLP of L; then the MLPs of the blocks before, and attention up to L.
    - `resid_pre` of L: what has been written by then, so the MLP of L - 1 is the main one.
    - `mlp_out` of L: as `resid_post`. Only the MLP of L is in these vectors; the others lie in the same space.
    - `attn_out` of L: the attention of L is the main one; then earlier MLPs and attention.
    - `mlp_act` of L: one coordinate a neuron, so that each neuron is a coordinate's direction, and nothing else lies in
      that space.

    Raises
    ------
    ValueError
        When nothing has been written at the site, or a block is not one of open_clip's own vision transformer.
    """
    blocks = visual.transformer.resblocks  # type: ignore[union-attr]
    layer = site.layer
    if site.site == "mlp_act":
        n = int(blocks[layer].mlp.c_proj.in_features)  # type: ignore[index, union-attr]
        return OutputsOfSite(Outputs("mlp", layer, True, partial(torch.eye, n)), ())
    if site.site == "resid_pre":
        layer -= 1
        if layer < 0:
            raise ValueError(f"{site}: no block has written there, so its features align with none.")
    n_mlp = layer + (site.site != "attn_out")  # blocks whose MLP has written
    for number in range(layer + 1):
        _require_known(blocks[number], number)  # type: ignore[index]
    mlps = [Outputs("mlp", b, True, partial(mlp_directions, blocks[b])) for b in range(n_mlp)]  # type: ignore[index]
    heads = [
        Outputs("attention", b, False, partial(attention_directions, blocks[b]))  # type: ignore[index]
        for b in range(layer + 1)
    ]
    main = heads.pop() if site.site == "attn_out" else mlps.pop()
    return OutputsOfSite(main, (*mlps, *heads))


def mlp_directions(block: Any) -> Tensor:
    """The unit output vectors `(m, d)` of a block's MLP neurons."""
    return _unit(_layer_scale(block.ls_2, block.mlp.c_proj.weight.detach().double()).T)


def attention_directions(block: Any) -> Tensor:
    """The unit output directions `(d, d)` of a block's attention: direction h w + r is head h's r-th."""
    attention = block.attn
    d, n_heads = attention.out_proj.weight.shape[0], attention.num_heads
    reads = attention.in_proj_weight[2 * d :].detach().double()  # (d, d): coordinate of a head, of the normed stream
    reads = reads * _gain(block.ln_1)
    reads = reads - reads.mean(dim=1, keepdim=True)  # a layer norm takes the mean away
    writes = attention.out_proj.weight.detach().double()  # (d, d): of the stream, coordinate of a head
    inner, after = getattr(attention, "ln_inner", None), getattr(block, "ln_attn", None)
    if isinstance(inner, nn.LayerNorm):
        writes = writes * _gain(inner)
        writes = writes - writes.mean(dim=1, keepdim=True)
    if isinstance(after, nn.LayerNorm):
        writes = _gain(after)[:, None] * (writes - writes.mean(dim=0))
    writes = _layer_scale(block.ls_1, writes)
    # Of W_O W_V = Q_o R_o (Q_v R_v)^T, by the singular vectors of the small R_o R_v^T.
    q_out, r_out = torch.linalg.qr(writes.view(d, n_heads, -1).transpose(0, 1))  # (h, d, w), (h, w, w)
    _, r_in = torch.linalg.qr(reads.view(n_heads, -1, d).transpose(1, 2))
    u, singular, _ = torch.linalg.svd(r_out @ r_in.transpose(1, 2))
    directions = (q_out @ u).transpose(1, 2)  # (h, w, d)
    has_direction = singular > _RANK_TOLERANCE * singular[:, :1]
    return _unit((directions * has_direction[:, :, None]).flatten(0, 1))


def _require_known(block: Any, number: int) -> None:
    """Raise `ValueError` where a block's output vectors are not where they are looked for."""
    projection = getattr(getattr(block, "mlp", None), "c_proj", None)
    attention = getattr(block, "attn", None)
    scales = [getattr(block, name, None) for name in ("ls_1", "ls_2")]
    known = (
        isinstance(projection, nn.Linear)
        and isinstance(getattr(attention, "in_proj_weight", None), Tensor)
        and isinstance(getattr(attention, "out_proj", None), nn.Linear)
        and all(isinstance(scale, nn.Identity) or hasattr(scale, "gamma") for scale in scales)
    )
    if not known:
        raise ValueError(
            f"block {number} is a {type(block).__name__} whose output vectors are not known: align reads the blocks of "
            "open_clip's own vision transformer."
        )


def _layer_scale(scale: Any, weight: Tensor) -> Tensor:
    """Output weights `(d, ...)` after a layer scale, or the identity."""
    return weight if isinstance(scale, nn.Identity) else scale.gamma.detach().double()[:, None] * weight


def _gain(norm: Any) -> Tensor:
    weight = getattr(norm, "weight", None)
    return torch.ones(1, dtype=torch.float64) if weight is None else weight.detach().double()


def _unit(vectors: Tensor) -> Tensor:
    """Rows of length 1 in float32; rows of zeros stay."""
    norm = vectors.norm(dim=1, keepdim=True)
    return torch.where(norm > 0, vectors / norm, 0.0).float().contiguous()

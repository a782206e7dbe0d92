"""Reads activations inside an image tower.

What each site is, in a block of open_clip's vision transformer with residual stream x:

    x = x + attn_out      attn_out = ls_1(attention(ln_1(x)))
    x = x + mlp_out       mlp_out  = ls_2(c_proj(mlp_act)),  mlp_act = act(c_fc(ln_2(x)))

- `resid_pre` is x before the block, `resid_post` x after it (Hugging Face's `hidden_states[layer]`, `[layer + 1]`).
- `attn_out` and `mlp_out` are what is added to the stream: after the layer scale (`ls_1`, `ls_2`) where a tower has
  one, so that resid_post - resid_pre = attn_out + mlp_out in every tower.
- `mlp_act` is what `c_proj` multiplies, one coordinate a neuron: after the non-linearity, and after the layer norm that
  towers with `scale_fc` put behind it.

Shapes: n images, t tokens of the tower (the class token first), T of them stored, d the length of a vector.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..store.format import SITES, TOKENS, Site
from .vision import Tower

# The sites of a block in the order in which a forward pass comes by them.
PASSED = ("resid_pre", "attn_out", "mlp_act", "mlp_out", "resid_post")
assert set(PASSED) == set(SITES)


class _TowerStopped(Exception):
    """Raised by the last hook: what comes after is not asked for."""


def resolve_sites(
    tower: Tower, layers: Sequence[int], sites: Sequence[str] = ("resid_post",), token: str = "cls"
) -> tuple[Site, ...]:
    """Every one of these sites at every one of these layers, layers ascending, a layer's in the order of `SITES`.

    Parameters
    ----------
    tower
        Whose residual blocks.
    layers
        0-based; -1 is the last block, and is resolved to its number.
    sites
        Words of `store.format.SITES`.
    token
        A word of `store.format.TOKENS`.

    Raises
    ------
    ValueError
        When a layer is out of range, a layer or site is unknown or comes twice, or the tower has no such token.
    """
    n = tower.n_layers
    for layer in layers:
        if not -n <= layer < n:
            raise ValueError(f"layer {layer} is out of range: {tower.name} has layers 0 to {n - 1} (0-based).")
    absolute = [layer % n for layer in layers]
    if len(set(absolute)) != len(absolute):
        raise ValueError(f"layers {list(layers)} name one layer twice.")
    for site in sites:
        if site not in SITES:
            raise ValueError(f"site {site!r} is none of {', '.join(SITES)}.")
    if len(set(sites)) != len(sites):
        raise ValueError(f"sites {list(sites)} name one site twice.")
    tokens_per_image(tower, token)
    in_order = sorted(sites, key=SITES.index)  # so that a store does not depend on the order of the options
    return tuple(Site(layer, site, token) for layer in sorted(absolute) for site in in_order)


def tokens_per_image(tower: Tower, token: str) -> int:
    """Vectors that each image has at a site: 1 for `cls` and `mean`, the patches for `patch`, one more for `all`.

    Raises
    ------
    ValueError
        When the word is unknown, or the tower has no class token.
    """
    if token not in TOKENS:
        raise ValueError(f"token {token!r} is none of {', '.join(TOKENS)}.")
    n_class, n_patches = _n_tokens(tower)
    if token in ("cls", "all") and not n_class:
        raise ValueError(f"{tower.name} has no class token, so no {token!r}: read `patch` or `mean`.")
    return {"cls": 1, "mean": 1, "patch": n_patches, "all": n_class + n_patches}[token]


def vector_width(tower: Tower, site: Site) -> int:
    """Length of the vectors of a site: that of the residual stream, or the number of the block's MLP neurons."""
    return site_width(tower.visual, site)


def site_width(visual: nn.Module, site: Site) -> int:
    """`vector_width` of open_clip's own vision transformer."""
    if site.site == "mlp_act":
        return int(visual.transformer.resblocks[site.layer].mlp.c_proj.in_features)  # type: ignore[union-attr, index]
    return int(visual.transformer.width)  # type: ignore[union-attr, arg-type]


def n_class_tokens(visual: nn.Module) -> int:
    """Class tokens of open_clip's vision transformer: 0 or 1."""
    return int(getattr(visual, "class_embedding", None) is not None)


def capture(tower: Tower, images: Tensor, sites: Sequence[Site]) -> dict[Site, Tensor]:
    """Activations of a batch at several sites, in one forward pass that ends at the last one asked for.

    Parameters
    ----------
    tower
        On any device.
    images
        `(n, 3, height, width)`, preprocessed, on the tower's device.
    sites
        Any; see the top of the file.

    Returns
    -------
    rows
        float32, contiguous, on the tower's device. `cls` and `mean` (over the patches): `(n, d)`; `patch` (in raster
        order) and `all` (the class token, then the patches): `(n, T, d)`.
    """
    found: dict[Site, Tensor] = {}
    asked = {(site.layer, site.site) for site in sites}
    last = max(asked, key=lambda place: (place[0], PASSED.index(place[1])))
    n_class, n_patches = _n_tokens(tower)
    batch_first = bool(getattr(tower.visual.transformer, "batch_first", False))

    def reader_of(place: tuple[int, str]) -> Callable[[Tensor], None]:
        here = [site for site in sites if (site.layer, site.site) == place]

        def read(passing: Tensor) -> None:
            tokens = passing if batch_first else passing.transpose(0, 1)  # (n, t, d); (t, n, d) in older open_clip
            assert tokens.shape[:2] == (len(images), n_class + n_patches), tokens.shape
            for site in here:
                found[site] = _of_token(tokens, site.token, n_class)
            if place == last:
                raise _TowerStopped

        return read

    handles = [at_site(tower.blocks[layer], site, reader_of((layer, site))) for layer, site in asked]
    try:
        with tower.arithmetic():
            tower.visual(images)
    except _TowerStopped:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return {site: found[site] for site in sites}


def relative_errors(rows: Tensor, exact: Tensor) -> Tensor:
    """Relative L2 error of each vector, float64: |row - exact| / |exact|.

    Parameters
    ----------
    rows, exact
        `(..., d)`; the errors are `(...)`.
    """
    wide = exact.to("cpu", torch.float64)
    return (rows.to("cpu", torch.float64) - wide).norm(dim=-1) / wide.norm(dim=-1)


def _n_tokens(tower: Tower) -> tuple[int, int]:
    """Class tokens (0 or 1) and patches of the tower."""
    rows, columns = tower.visual.grid_size  # type: ignore[misc]
    return n_class_tokens(tower.visual), int(rows) * int(columns)


def at_site(block: nn.Module, site: str, see: Callable[[Tensor], Tensor | None]) -> Any:
    """Have `see` called with what passes at a site of a block; what it gives, if not None, passes on in its place.

    Returns
    -------
    handle
        The hook's, to `remove`.
    """

    def before(_module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        new = see(arguments[0])
        return None if new is None else (new, *arguments[1:])

    def after(_module: nn.Module, _arguments: tuple[Any, ...], output: Any) -> Any:
        if not isinstance(output, tuple):
            return see(output)
        new = see(output[0])  # a block may give a tuple, the stream first
        return None if new is None else (new, *output[1:])

    if site == "resid_pre":
        return block.register_forward_pre_hook(before)
    if site == "mlp_act":
        return block.mlp.c_proj.register_forward_pre_hook(before)  # type: ignore[union-attr]
    module = block if site == "resid_post" else getattr(block, {"attn_out": "ls_1", "mlp_out": "ls_2"}[site])
    return module.register_forward_hook(after)


def _of_token(tokens: Tensor, token: str, n_class: int) -> Tensor:
    """What is stored of `(n, t, d)`: a tensor of its own, since a view would keep every token alive."""
    if token == "mean":
        return tokens[:, n_class:].to(torch.float32).mean(dim=1)
    kept = {"cls": tokens[:, 0], "patch": tokens[:, n_class:], "all": tokens}[token]
    return kept.to(torch.float32, copy=True, memory_format=torch.contiguous_format)

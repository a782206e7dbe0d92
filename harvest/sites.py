"""Reads activations inside an image tower.

Shapes: n images, t tokens (the class token first), d the tower's width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..store.format import Site
from .vision import Tower


class _TowerStopped(Exception):
    """Raised by the last hook: what comes after is not asked for."""


def resolve_sites(
    tower: Tower, layers: Sequence[int], site: str = "resid_post", token: str = "cls"
) -> tuple[Site, ...]:
    """The sites of these layers, in ascending order.

    Parameters
    ----------
    tower
        Whose residual blocks.
    layers
        0-based; -1 is the last block, and is resolved to its number.

    Raises
    ------
    ValueError
        When a layer is out of range or comes twice.
    """
    n = tower.n_layers
    for layer in layers:
        if not -n <= layer < n:
            raise ValueError(f"layer {layer} is out of range: {tower.name} has layers 0 to {n - 1} (0-based).")
    absolute = [layer % n for layer in layers]
    if len(set(absolute)) != len(absolute):
        raise ValueError(f"layers {list(layers)} name one layer twice.")
    return tuple(Site(layer, site, token) for layer in sorted(absolute))


def capture(tower: Tower, images: Tensor, sites: Sequence[Site]) -> dict[Site, Tensor]:
    """Activations of a batch at several sites, in one forward pass that ends after the last layer asked for.

    Parameters
    ----------
    tower
        On any device.
    images
        `(n, 3, height, width)`, preprocessed, on the tower's device.
    sites
        `resid_post` (the output of a residual block: Hugging Face's `hidden_states[layer + 1]`) of the `cls` token.

    Returns
    -------
    rows
        `(n, d)` float32 each, on the tower's device.
    """
    found: dict[Site, Tensor] = {}
    last = max(site.layer for site in sites)
    batch_first = bool(getattr(tower.visual.transformer, "batch_first", False))

    def hook_of(layer: int) -> Any:
        at_layer = [site for site in sites if site.layer == layer]

        def hook(_module: object, _args: object, output: Tensor | tuple[Tensor, ...]) -> None:
            tokens = output[0] if isinstance(output, tuple) else output  # (n, t, d), or (t, n, d) in older open_clip
            tokens = tokens if batch_first else tokens.transpose(0, 1)
            assert tokens.ndim == 3
            assert tokens.shape[0] == len(images)
            for site in at_layer:
                assert (site.site, site.token) == ("resid_post", "cls")
                found[site] = tokens[:, 0].float().clone()  # (n, d); a view would keep every token alive
            if layer == last:
                raise _TowerStopped

        return hook

    handles = [tower.blocks[layer].register_forward_hook(hook_of(layer)) for layer in {site.layer for site in sites}]
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
    """Relative L2 error of each row, `(n,)` float64: |row - exact| / |exact|.

    Parameters
    ----------
    rows, exact
        `(n, d)`.
    """
    wide = exact.to("cpu", torch.float64)
    return (rows.to("cpu", torch.float64) - wide).norm(dim=1) / wide.norm(dim=1)

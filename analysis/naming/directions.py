"""Directions of features in the space of CLIP's embeddings, to name them by: the lens, the data, and two older methods.

The causal direction, the effect of ablating a feature, is of `effects.py`.

Shapes: n features, m images, d the width of the residual stream, e the length of an embedding.
"""

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from ...harvest.sites import capture
from ...harvest.vision import Tower
from ...store.format import Site
from ...train.models import SparseAutoencoder
from .stream import Pictures, decoder_vectors, head_of_vectors, into_stream, pools_class_token, written_site

Floats = NDArray[np.float32]
Ids = NDArray[np.integer[Any]]

_VECTORS_AT_ONCE = 4096
_POST_ACTIVATION = 13.0  # the post's text_explanation.py; 13.1 is the largest mean top activation of its features


def lens_directions(
    tower: Tower,
    sae: SparseAutoencoder,
    site: Site,
    features: Ids,
    activations: NDArray[np.floating[Any]],
    mean: NDArray[np.floating[Any]],
    *,
    target: Site | None = None,
) -> Floats:
    """What a feature at its usual strength changes in the mean activation's embedding, through the head alone.

    L_f = head(mu + a_f w_f) - head(mu), where w_f is the decoder vector in the tower's units and head is the tower's
    `ln_post`, pooling and projection. At the last block's output this is the tower itself, but for the mean's standing
    for every image; blocks between the site and the head are skipped, as by the logit lens (nostalgebraist 2020).

    Parameters
    ----------
    activations
        `(n,)`: a_f, such as the mean top activation of each feature.
    mean
        `(d,)`: mu, the mean of the stream at the site's tokens: the SAE's mean input where it reads the stream itself,
        else `mean_stream`.

    Returns
    -------
    directions
        `(n, e)`, not of length 1; NaN where the activation is.

    Raises
    ------
    ValueError
        As `written_site`; when the mean has another width; or when nothing of the site reaches the embedding.
    """
    written = written_site(tower, sae, site, target)
    _require_way_to_embedding(tower, written)
    if mean.shape != (tower.width,):
        raise ValueError(f"the mean of the stream has shape {mean.shape}; the stream's width is {tower.width}.")
    mu = torch.as_tensor(mean, dtype=torch.float32, device=tower.device)
    amounts = torch.as_tensor(np.asarray(activations, np.float32), device=tower.device)
    origin = head_of_vectors(tower, mu[None])
    parts = []
    for start in range(0, len(features), _VECTORS_AT_ONCE):
        some = slice(start, start + _VECTORS_AT_ONCE)
        w = into_stream(tower, written, decoder_vectors(sae, features[some], mu).to(mu))
        parts.append((head_of_vectors(tower, mu + amounts[some, None] * w) - origin).cpu())
    return _joined(parts, origin)


def mean_stream(tower: Tower, site: Site, pictures: Pictures, rows: NDArray[np.int64]) -> Floats:
    """Mean `(d,)` of what leaves the site's block (enters it, for `resid_pre`) at the site's tokens, over some images.

    For `lens_directions` of sites whose vectors are added to the stream, `mlp_out`, `attn_out` and `mlp_act`.

    Parameters
    ----------
    rows
        One of each image.
    """
    place = Site(site.layer, "resid_pre" if site.site == "resid_pre" else "resid_post", site.token)
    total = np.zeros(tower.width)
    n = 0
    for _, pixels in pictures.pixels(rows):
        found = capture(tower, tower.normalise(pixels), [place])[place].cpu().double().flatten(0, -2)
        total += found.sum(dim=0).numpy()
        n += len(found)
    if not n:
        raise ValueError(f"none of the {len(rows):,} images for the mean of the stream can be read: name IMAGES.")
    return (total / n).astype(np.float32)


def data_directions(embeddings: Floats, mean: Floats, indptr: Ids, place: Ids, activation: Floats) -> Floats:
    """Mean embedding of the images that a feature fires on, weighted by its activations, less that of all images.

    sum_i a_i e(x_i) / sum_i a_i - mean e.

    Parameters
    ----------
    embeddings
        `(m, e)`, of norm 1; a line of NaN where an image could not be read, which counts for nothing.
    mean
        `(e,)`.
    indptr, place, activation
        `(n + 1,)`, `(nnz,)`, `(nnz,)`: feature k fires on the lines place[indptr[k] : indptr[k + 1]] of the embeddings.

    Returns
    -------
    directions
        `(n, e)`, not of length 1; NaN of a feature that fires on none.
    """
    found = np.full((len(indptr) - 1, embeddings.shape[1]), np.nan, np.float32)
    for k, (start, stop) in enumerate(pairwise(indptr.tolist())):
        lines = np.asarray(embeddings[place[start:stop]], np.float64)
        weights = np.where(np.isnan(lines[:, 0]), 0, activation[start:stop]).astype(np.float64)
        total = weights.sum()
        if total > 0:
            found[k] = weights @ np.nan_to_num(lines) / total - mean
    return found


def post_directions(
    tower: Tower, sae: SparseAutoencoder, site: Site, features: Ids, *, target: Site | None = None
) -> Floats:
    """The post's directions: a code with the feature alone at 13, decoded, through the head; `(n, e)` of length 1.

    d_f = 13 W_dec[f] + b_dec, then `post_layernorm` and `visual_projection` (Fry 2024, `text_explanation.py`), compared
    with uncentred embeddings of "A photo of a {label}.". Blocks behind the site are skipped. The SAE's scaling is
    undone as its decoder undoes it; the post's had none. A row's own normalisation needs no undoing: `ln_post` takes
    out shift and scale.

    Raises
    ------
    ValueError
        As `written_site`; or when the site's vectors are no stream.
    """
    written = written_site(tower, sae, site, target)
    _require_stream(tower, written, "the post's method")
    alone = sae.W_dec[torch.as_tensor(features, dtype=torch.int64, device=sae.device)].float()
    b_dec, scale, mean = (each.float() for each in (sae.b_dec, sae.output_scale, sae.output_mean))
    return _unit_heads(tower, (_POST_ACTIVATION * alone + b_dec) * scale + mean)


def dncbm_directions(
    tower: Tower, sae: SparseAutoencoder, site: Site | None, features: Ids, *, target: Site | None = None
) -> Floats:
    """Discover-then-Name's directions: each decoder vector at length 1 (Rao et al. 2024, `assign_names.py`); `(n, e)`.

    Compared with unit embeddings of bare words: no template, no centring. Their SAE reads CLIP's embeddings themselves,
    and for one that does (`site` None) this is their method exactly. At a site inside the tower the decoder vector is
    no embedding; there it goes through the head first, alone: without mean or bias, blocks behind the site skipped.

    Raises
    ------
    ValueError
        As `post_directions`; or, without a site, when the SAE is not of the tower's embeddings.
    """
    if site is None:
        length = head_of_vectors(tower, torch.zeros(1, tower.width, device=tower.device)).shape[1]
        if sae.d_out != length:
            raise ValueError(
                f"the SAE gives vectors of {sae.d_out} and embeddings of {tower.name} have {length}: name the site "
                "that it reads."
            )
        vectors = decoder_vectors(sae, features, torch.zeros(sae.d_in, device=sae.device))
        return normalize(vectors, dim=-1).cpu().numpy()
    written = written_site(tower, sae, site, target)
    _require_stream(tower, written, "Discover-then-Name")
    alone = sae.W_dec[torch.as_tensor(features, dtype=torch.int64, device=sae.device)].float()
    return _unit_heads(tower, alone * sae.output_scale.float())


def _unit_heads(tower: Tower, vectors: Tensor) -> Floats:
    parts = [
        normalize(head_of_vectors(tower, some.to(tower.device)), dim=-1).cpu()
        for some in vectors.split(_VECTORS_AT_ONCE)
    ]
    return _joined(parts, head_of_vectors(tower, torch.zeros(1, tower.width, device=tower.device)))


def _joined(parts: list[Tensor], like: Tensor) -> Floats:
    """`(n, e)`, of no features too."""
    return torch.cat([*parts, like.cpu()[:0]]).numpy()


def _require_way_to_embedding(tower: Tower, written: Site) -> None:
    is_last = written.layer == tower.n_layers - 1 and written.site != "resid_pre"
    pools_class = pools_class_token(tower)
    # behind the last block tokens no longer meet, but in an attentional pool, which reads them all
    lost = "patch" if pools_class else "cls" if tower.visual.attn_pool is None else None
    if is_last and (written.token == lost or (written.token == "mean" and lost == "patch")):
        pooled = "class token" if pools_class else "patches"
        raise ValueError(
            f"{written}: {tower.name} makes its embedding of the last block's {pooled} alone, so that these features "
            "do not reach it: name them by the data."
        )


def _require_stream(tower: Tower, written: Site, method: str) -> None:
    if written.site == "mlp_act":
        raise ValueError(f"{written} holds neurons, not the stream that {method} reads: name by the lens or the data.")
    _require_way_to_embedding(tower, written)

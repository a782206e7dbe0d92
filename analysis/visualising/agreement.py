"""Whether a feature's optimised picture, its top images and its name agree: one percentile a feature.

The post asks how far the images on which a feature is largest can be trusted. Three witnesses are asked here, each a
vector in CLIP's space, centred and of length 1: the picture (mean embedding of its seeds' pictures, less the mean over
real images), the top images (mean embedding of the 16 on which the feature is largest, less the same mean) and the
name (text embedding of its phrase, less the mean over phrases). The cosine of two of them says little, since text and
images lie apart and some vectors are near to everything. So each is turned into its percentile among the same cosine
with one of the two taken from another feature. The agreement is the mean of the three percentiles: 50 by chance, 100
where each witness points to this feature more than to any other. NaN where a witness is missing; the pairs say which.

A name is chosen so that it fits its feature's images, and a picture so that it drives the feature: of the three pairs
only the picture and the name have not seen each other.

Shapes: F features, e the length of an embedding.
"""

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from .checks import Floats, unit

MOST_OTHERS = 1000
"""Other features that a cosine is compared with."""
_AT_ONCE = 4096


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Percentiles by feature, `(F,)` float32, 0 to 100; NaN where a witness is missing."""

    agreement_picture_images: NDArray[np.float32]
    agreement_picture_name: NDArray[np.float32]
    agreement_images_name: NDArray[np.float32]
    agreement: NDArray[np.float32]
    """Mean of the three."""


ARRAYS = tuple(field.name for field in fields(Agreement))
"""Names of the arrays in `stats.zarr`; `agreement` is the last to be written."""


def agreement(pictures: Floats, images: Floats, names: Floats, *, seed: int = 0) -> Agreement:
    """Percentiles of the three pairs, and their mean.

    Parameters
    ----------
    pictures, images, names
        `(F, e)`, centred, of any length; a row of NaN, or of 0, where a feature has none.
    seed
        Of the other features, where there are more than `MOST_OTHERS`.
    """
    pairs = [
        pair_percentiles(one, other, seed=seed)
        for one, other in ((pictures, images), (pictures, names), (images, names))
    ]
    mean = np.mean(pairs, axis=0)
    return Agreement(**dict(zip(ARRAYS, (found.astype(np.float32) for found in (*pairs, mean)), strict=True)))


def pair_percentiles(one: Floats, other: Floats, *, seed: int = 0) -> NDArray[np.float64]:
    """Percentile of each feature's cosine among those with either vector taken from another feature.

    The mean of two percentiles, ties half: with the second vector exchanged, and with the first. So neither a vector
    that is near to everything, nor a few that are all alike, look like agreement. Where no other feature has one of the
    vectors, the exchange of the other counts alone.

    Parameters
    ----------
    one, other
        `(F, e)`, centred; rows of NaN or of 0 where a feature has none.

    Returns
    -------
    percentiles
        `(F,)`; NaN where a feature lacks either vector, or no other feature has any.
    """
    found = np.stack([_exchanged(one, other, seed), _exchanged(other, one, seed)])
    n_known = (~np.isnan(found)).sum(axis=0)
    return np.where(n_known > 0, np.nansum(found, axis=0) / np.maximum(n_known, 1), np.nan)


def _exchanged(kept: Floats, exchanged: Floats, seed: int) -> NDArray[np.float64]:
    """Percentiles with one vector kept and the other taken from up to `MOST_OTHERS` other features."""
    is_known = _is_known(exchanged)
    chosen = np.flatnonzero(is_known)
    if len(chosen) > MOST_OTHERS:
        chosen = np.random.default_rng(seed).choice(chosen, MOST_OTHERS, replace=False)
    others = unit(exchanged[chosen])
    percentiles = np.full(len(kept), np.nan)
    known = np.flatnonzero(is_known & _is_known(kept))
    for start in range(0, len(known), _AT_ONCE):
        rows = known[start : start + _AT_ONCE]
        theirs = unit(kept[rows])
        cosines = theirs @ others.T  # (rows, others)
        own = np.einsum("fe,fe->f", theirs, unit(exchanged[rows]))[:, None]
        # equal vectors give cosines that differ in the last bits: sums are taken in another order
        is_level = np.isclose(cosines, own, rtol=0, atol=1e-12)
        is_other = chosen[None] != rows[:, None]
        below = ((cosines < own) & ~is_level & is_other).sum(axis=1)
        n_level, n_others = (is_level & is_other).sum(axis=1), is_other.sum(axis=1)
        percentiles[rows] = np.where(n_others > 0, 100 * (below + n_level / 2) / np.maximum(n_others, 1), np.nan)
    return percentiles


def _is_known(vectors: Floats) -> NDArray[np.bool_]:
    """Which rows are vectors, `(F,)`: finite and not 0."""
    return np.isfinite(vectors).all(axis=1) & (vectors != 0).any(axis=1)

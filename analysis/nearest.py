"""The features whose directions point most nearly the same way, by decoder and by encoder."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..progress import Task

if TYPE_CHECKING:
    from torch import Tensor

_COSINES_AT_ONCE = 1 << 25  # 128 MB of float32


def nearest_features(
    directions: "Tensor", m: int, task: Task | None = None
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The `m` features with the largest cosine to each feature, falling; the feature itself is left out.

    Parameters
    ----------
    directions
        `(d_sae, d_in)`: one a feature, of any length; computed in float32 on the device where they are. A direction of
        zeros has no neighbours and is none.
    m
        Number of neighbours.
    task
        Told of each feature done.

    Returns
    -------
    feature
        `(d_sae, m)` int32, the lower first where the cosines' floats are equal; -1 unfilled.
    cosine
        `(d_sae, m)` float32, NaN unfilled.
    """
    import torch

    norm = directions.float().norm(dim=1, keepdim=True)
    unit = directions.float() / norm.clamp_min(torch.finfo(torch.float32).tiny)
    d_sae = len(unit)
    is_zero = norm[:, 0] == 0
    taken = min(m, d_sae)
    out_feature = np.full((d_sae, m), -1, np.int32)
    out_cosine = np.full((d_sae, m), np.nan, np.float32)
    step = max(1, _COSINES_AT_ONCE // max(d_sae, 1))
    for first in range(0, d_sae, step):
        cosine = unit[first : first + step] @ unit.T  # (block, d_sae)
        n = len(cosine)
        cosine[:, is_zero] = -torch.inf
        cosine[is_zero[first : first + n]] = -torch.inf
        cosine[torch.arange(n), torch.arange(first, first + n)] = -torch.inf
        value, feature = (part.cpu().numpy() for part in cosine.topk(taken, dim=1))
        order = np.lexsort((feature, -value), axis=1)  # topk leaves equal ones in any order
        value, feature = np.take_along_axis(value, order, 1), np.take_along_axis(feature, order, 1)
        filled = np.isfinite(value)
        out_cosine[first : first + n, :taken] = np.where(filled, value.clip(-1, 1), np.nan)
        out_feature[first : first + n, :taken] = np.where(filled, feature, -1)
        if task is not None:
            task.advance(n)
    return out_feature, out_cosine

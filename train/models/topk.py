"""The TopK SAE: a row keeps its k largest pre-activations, where they are above zero.

Shapes: n rows, d_sae features.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from ..features import SparseFeatures
from .base import SparseAutoencoder


class TopKSae(SparseAutoencoder):
    """f = relu(TopK((z - b_dec) W_enc + b_enc)) (Gao et al. 2024, arXiv:2406.04093).

    Of equal pre-activations at the boundary, the lower features win, however the features are tiled.
    """

    variant: ClassVar[str] = "topk"

    def __init__(self, *weights: Tensor | None, k: int) -> None:
        super().__init__(*weights)  # type: ignore[arg-type]
        if not 1 <= k <= self.d_sae:
            raise ValueError(f"k = {k} must be from 1 to the {self.d_sae} features")
        self.k = k

    def settings(self) -> dict[str, Any]:
        """`k`."""
        return {"k": self.k}

    def select(self, pre: Tensor) -> Tensor:
        """Feature activations from pre-activations `(n, d_sae)`."""
        value, feature = largest(pre, self.k)
        return torch.zeros_like(pre).scatter_(1, feature, value.relu())

    def encode_sparse(self, x: Tensor, *, tile: int = 4096) -> SparseFeatures:
        """`encode` without zeros; holds one `(n, tile)` buffer and two `(n, k)` sets of candidates."""
        value: Tensor | None = None
        for start, pre in self.pre_activation_tiles(x, tile):
            here, position = largest(pre, min(self.k, pre.shape[1]))
            if value is None:
                value, feature = here, position
                continue
            # Candidates stand in order of feature, those of earlier tiles first: `largest` then breaks ties the same
            # way here as over all features at once.
            value, feature = torch.cat([value, here], 1), torch.cat([feature, position + start], 1)
            if value.shape[1] > self.k:
                value, column = largest(value, self.k)
                feature = feature.gather(1, column)
        assert value is not None  # d_sae >= 1
        row, column = (value > 0).nonzero(as_tuple=True)
        return SparseFeatures.from_tiles([(row, feature[row, column], value[row, column])], len(x), self.d_sae)


def largest(pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values and columns `(n, k)` of the k largest of each row, in order of column; ties go to the lower columns."""
    value, column = pre.topk(min(k + 1, pre.shape[1]), dim=1)  # (n, k + 1), descending
    tied = torch.zeros(len(pre), dtype=torch.bool, device=pre.device)
    if value.shape[1] > k:
        tied = value[:, k - 1] == value[:, k]  # the boundary runs through equal values: topk picks any of them
    column = column[:, :k]
    if tied.any():
        column = column.clone()
        column[tied] = pre[tied].sort(dim=1, descending=True, stable=True).indices[:, :k]
    column = column.sort(dim=1).values
    return pre.gather(1, column), column

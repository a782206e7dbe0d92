"""The TopK SAE: a row keeps its k largest pre-activations, where they are above zero.

Shapes: n rows, d_sae features.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from ..entries import Entries, fixed_entries
from ..features import SparseFeatures
from ..objective import Block, Objective, Scored
from .base import SparseAutoencoder


class TopKSae(SparseAutoencoder):
    """f = relu(TopK((z - b_dec) W_enc + b_enc)) (Gao et al. 2024, arXiv:2406.04093).

    Loss: reconstruction error, and AuxK for dead features. Of equal pre-activations at the boundary, the lower features
    win, however the features are tiled.
    """

    variant: ClassVar[str] = "topk"

    def __init__(self, *weights: Tensor, k: int, **shared: Any) -> None:
        super().__init__(*weights, **shared)
        if not 1 <= k <= self.d_sae:
            raise ValueError(f"k = {k} must be from 1 to the {self.d_sae} features")
        self.k = k

    def settings(self) -> dict[str, Any]:
        """`k`, and what the variants share."""
        return {**super().settings(), "k": self.k}

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

    def training_entries(self, pre: Tensor, objective: Objective) -> tuple[Entries, Tensor]:
        """The k largest entries of each row and their activations, which may be zero."""
        value, feature = any_largest(pre, self.k)
        return fixed_entries(value.relu_(), feature, self.d_sae)

    def score(self, entries: Entries, f: Tensor, block: Block, objective: Objective) -> Scored:
        """Losses and gradients from the selected entries."""
        return score_selected(self, entries, f, block, objective)


def score_selected(sae: SparseAutoencoder, entries: Entries, f: Tensor, block: Block, objective: Objective) -> Scored:
    """Losses and gradients of activations that were selected, without a penalty on them."""
    residual = entries.times(f, sae.decoder).add_(sae.b_dec).sub_(block.target)
    error = objective.reconstruction_error(residual, block.target, block.n_total)
    d_pre = entries.dot(error.gradient, sae.decoder).mul_(f > 0)
    encoded_sums = entries.sums(d_pre)
    return Scored(
        gradients={
            "encoder": entries.transposed(d_pre, block.centred),
            "b_enc": encoded_sums,
            "decoder": entries.transposed(f, error.gradient),
            "b_dec": error.gradient.sum(0),
        },
        encoded_sums=encoded_sums,
        reconstruction=error.value,
        sparsity=f.sum() / block.n_total,
        entries=entries,
        f=f,
        residual=residual,
    )


_GROUP = 8  # columns: three quarters of the time at 16,384 features, half at 65,536
_GROUPED_FROM = 2048


def any_largest(pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values and columns `(n, k)` of the k largest of each row, in any order; of ties at the boundary, any.

    Where rows are long the k groups of columns with the largest maxima are found first: the k largest lie in them. A
    group's columns are far from each other, so that its maximum is one of whole runs of numbers.
    """
    n, width = pre.shape
    if width < _GROUPED_FROM or width % _GROUP or k * 2 > width // _GROUP:
        value, column = pre.topk(k, dim=1, sorted=False)
        return value, column
    n_groups = width // _GROUP
    members = pre.view(n, _GROUP, n_groups)
    group = members.amax(1).topk(k, dim=1, sorted=False).indices  # (n, k)
    candidates = members.gather(2, group[:, None, :].expand(-1, _GROUP, -1)).view(n, _GROUP * k)
    value, place = candidates.topk(k, dim=1, sorted=False)
    return value, group.gather(1, place % k) + place // k * n_groups


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

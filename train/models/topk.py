"""The TopK SAE: a row keeps its k largest pre-activations, where they are above zero.

Shapes: n rows, d_sae features.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from ..entries import Entries, fixed_entries
from ..features import SparseFeatures
from ..objective import Block, Objective, Scored
from ..tiles import Tiles
from .base import SparseAutoencoder


class TopKSae(SparseAutoencoder):
    """f = relu(TopK((z - b_dec) W_enc + b_enc)) (Gao et al. 2024, arXiv:2406.04093).

    Loss: reconstruction error, and AuxK for dead features. Of equal pre-activations at the boundary, the lower features
    win, however the features are tiled.
    """

    variant: ClassVar[str] = "topk"
    has_feature_bounds: ClassVar[bool] = False

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

    def encode_sparse(self, x: Tensor, *, tile: int = 4096, tiles: Tiles | None = None) -> SparseFeatures:
        """`encode` without zeros; holds one `(n, tile)` buffer.

        What k earlier features reach, a later one has to exceed: after the first tile few pre-activations do, and only
        those are sorted.
        """
        found, n_found, bound = [], 0, x.new_zeros(len(x), 1, dtype=self.dtype, device=self.device)
        most = torch.zeros(len(x), dtype=torch.int64, device=self.device)  # (n,): candidates of each row
        for each in self.active_tiles(x, tile, tiles):
            if each.start == 0 and each.width >= self.k:
                bound = each.kth_largest(self.k).clamp_(min=0)
                # Of this tile, those that tie with the k-th are still candidates.
                here = each.above(torch.nextafter(bound, torch.full_like(bound, -1.0)).clamp_(min=0))
            else:
                here = each.above(bound)
            found.append(here)
            n_found += len(here[0])
            most += torch.bincount(here[0], minlength=len(x))
            if n_found > _CANDIDATES * self.k * len(x) or (len(x) and int(most.max()) > max(tile, 2 * self.k)):
                kept = keep_largest(SparseFeatures.from_tiles(found, len(x), self.d_sae), self.k)
                most, rows = kept.indptr.diff(), kept.rows()
                is_full = most == self.k
                bound[is_full] = kept.value[is_full[rows]].view(-1, self.k).amin(1, keepdim=True)
                found, n_found = [(rows, kept.index, kept.value)], len(rows)
        return keep_largest(SparseFeatures.from_tiles(found, len(x), self.d_sae), self.k)

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


_CANDIDATES = 3  # times k a row, before the largest of them are found: their number grows as the logarithm of d_sae


def keep_largest(f: SparseFeatures, k: int) -> SparseFeatures:
    """The k largest entries of each row; ties go to the lower features."""
    counts = f.indptr.diff()
    width = int(counts.max()) if len(counts) else 0
    if width <= k:
        return f
    padded = f.value.new_full((f.n_rows, width), -torch.inf)
    padded[torch.arange(width, device=counts.device) < counts[:, None]] = f.value  # in order of row, then feature
    value, column = largest(padded, k)
    kept = value > -torch.inf  # (n, k)
    indptr = f.indptr.new_zeros(f.n_rows + 1)
    torch.cumsum(kept.sum(1), 0, out=indptr[1:])
    return SparseFeatures(indptr, f.index[(f.indptr[:-1, None] + column)[kept]], value[kept], f.d_sae)


_GROUP = 8  # columns: half of the time at 16,384 features
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
    group = any_largest(members.amax(1), k)[1]  # (n, k)
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

"""Products of a sparse (rows, features) matrix with dense ones: only the active pairs are touched.

A row of activations is a bag of features weighted by its values, a feature a bag of rows: `embedding_bag` is the
product either way. Sorting the pairs by feature once, then summing bags of rows, takes a quarter of the time of
embedding_bag's own backward at 16 pairs a row.

Shapes: n rows, d inputs, F features, nnz active (row, feature) pairs.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

_SUM_MODE = 0  # embedding_bag's code of mode="sum"
_NO_PADDING = -1
_GATHERED_PAIRS = 1 << 16  # at a time, where a device has no embedding_bag: 256 MB of rows at d = 1024


@dataclass(frozen=True, slots=True)
class ActivePairs:
    """The active pairs of (n, F) activations, by row.

    `offsets` (n,) is where each row's pairs start; `row`, `feature` (nnz,) int64; `value` (nnz,).
    """

    offsets: Tensor
    row: Tensor
    feature: Tensor
    value: Tensor

    @classmethod
    def of_dense(cls, f: Tensor) -> "ActivePairs":
        """The non-zero entries of `f` (n, F), in order of row, then feature."""
        return cls.where(f, f)

    @classmethod
    def where(cls, chosen: Tensor, values: Tensor) -> "ActivePairs":
        """The entries of `values` (n, F) where `chosen` (n, F) is not zero, in order of row, then feature."""
        row, feature = chosen.nonzero(as_tuple=True)
        offsets = torch.searchsorted(row, torch.arange(len(values), device=values.device))
        return cls(offsets, row, feature, values[row, feature])

    @classmethod
    def of_fixed(cls, value: Tensor, feature: Tensor) -> "ActivePairs":
        """Pairs of which every row has k: `value`, `feature` (n, k)."""
        n, k = value.shape
        offsets = torch.arange(0, n * k, k, device=value.device)
        row = torch.arange(n, device=value.device).repeat_interleave(k)
        return cls(offsets, row, feature.reshape(-1), value.reshape(-1))

    def times(self, rows: Tensor, value: Tensor | None = None) -> Tensor:
        """Activations @ `rows` (F, d): (n, d), the decode; of other values `value` (nnz,) where given."""
        return _sums_of_bags(self.feature, rows, self.offsets, self.value if value is None else value)

    def subset(self, chosen: Tensor, first_feature: int = 0) -> "ActivePairs":
        """Some of the pairs, by their numbers `chosen` in ascending order; features counted from `first_feature`."""
        row = self.row[chosen]
        offsets = torch.searchsorted(row, torch.arange(len(self.offsets), device=row.device))
        return ActivePairs(offsets, row, self.feature[chosen] - first_feature, self.value[chosen])

    def dot(self, left: Tensor, rows: Tensor) -> Tensor:
        """(left @ rows.T) at the active pairs: (nnz,), for `left` (n, d) and `rows` (F, d)."""
        if not has_bags(rows.device.type):
            products = [
                (left[row] * rows[feature]).sum(1)
                for row, feature in zip(
                    self.row.split(_GATHERED_PAIRS), self.feature.split(_GATHERED_PAIRS), strict=True
                )
            ]
            return torch.cat(products)
        return torch.ops.aten._embedding_bag_per_sample_weights_backward(
            left.contiguous(), rows, self.feature, self.offsets, self.row, _SUM_MODE, _NO_PADDING
        )

    def by_feature(self, n_features: int) -> "FeaturePairs":
        """The same pairs in order of feature."""
        feature, order = self.feature.sort(stable=True)
        offsets = torch.searchsorted(feature, torch.arange(n_features, device=feature.device))
        return FeaturePairs(offsets, self.row[order], order)


@dataclass(frozen=True, slots=True)
class FeaturePairs:
    """Active pairs in order of feature, then row: the transposed matrix.

    `offsets` (F,) is where each feature's pairs start; `row` (nnz,); `order` (nnz,) is the place of each among the
    pairs by row.
    """

    offsets: Tensor
    row: Tensor
    order: Tensor

    def times(self, weight: Tensor, right: Tensor) -> Tensor:
        """M.T @ `right` (n, d): (F, d), for M (n, F) of the values `weight` (nnz,), given in order of row."""
        return _sums_of_bags(self.row, right, self.offsets, weight[self.order])

    def sums(self, weight: Tensor, n_rows: int) -> Tensor:
        """Column sums of M (n, F): (F,). Added in a fixed order, which `index_add_` on a GPU is not."""
        return self.times(weight, weight.new_ones(n_rows, 1)).squeeze(1)


@cache
def has_bags(device_type: str) -> bool:
    """Whether a kind of device has the kernels of `embedding_bag`: torch brought those of MPS after 2.6."""
    if device_type in ("cpu", "cuda"):
        return True
    kernel, key = "aten::_embedding_bag_per_sample_weights_backward", device_type.upper()
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(kernel, key))


def _sums_of_bags(index: Tensor, rows: Tensor, offsets: Tensor, weight: Tensor) -> Tensor:
    """Sums over bags, which start at `offsets`, of `rows` (m, d) by `index` (nnz,) times `weight` (nnz,)."""
    if has_bags(rows.device.type):
        return torch.nn.functional.embedding_bag(index, rows, offsets, mode="sum", per_sample_weights=weight)
    sums = rows.new_zeros(len(offsets), rows.shape[1])
    for start in range(0, len(index), _GATHERED_PAIRS):
        part = slice(start, start + _GATHERED_PAIRS)
        place = torch.arange(start, min(start + _GATHERED_PAIRS, len(index)), device=index.device)
        bag = torch.searchsorted(offsets, place, right=True) - 1  # of empty bags at one start, the last is the full one
        sums.index_add_(0, bag, rows[index[part]] * weight[part, None])
    return sums

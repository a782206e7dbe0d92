"""The entries of an activation matrix that a training step touches: all of them, or only the active pairs.

A variant's loss and gradients are written once, over entries: numbers in the shape of the matrix, (n, F), where it is
taken whole, or one a pair, (nnz,), where few are active. Either way the same sums are made; only their order differs.

Shapes: n rows, d inputs, F features, nnz active (row, feature) pairs; `entries` is (n, F) or (nnz,).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from .sparse import ActivePairs

# Share of active pairs below which sums over pairs are cheaper than matmuls: they break even near 8 % (CPU, d = 1024,
# F = 8192), and both grow with d and F alike.
SPARSE_BELOW = 0.05
_SAMPLED_ROWS = 64  # of which activity is measured: at 5 % of 4096 features its standard error is below 0.1 %


class Matmul:
    """`a @ b`, with its inputs rounded to bf16 and its result in their own type where `precision` says so."""

    def __init__(self, precision: str) -> None:
        self._rounds = precision == "bf16"

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """`a @ b`."""
        if not self._rounds:
            return a @ b
        return (a.bfloat16() @ b.bfloat16()).to(a.dtype)


class Entries(ABC):
    """Entries of an (n, F) matrix, and products of matrices that are zero elsewhere."""

    is_sparse: bool
    n_features: int

    @abstractmethod
    def times(self, entries: Tensor, rows: Tensor) -> Tensor:
        """`entries` @ `rows` (F, d): (n, d), a decode."""

    @abstractmethod
    def dot(self, left: Tensor, rows: Tensor) -> Tensor:
        """`left` (n, d) @ `rows`.T (d, F), at the entries."""

    @abstractmethod
    def transposed(self, entries: Tensor, right: Tensor) -> Tensor:
        """`entries`.T @ `right` (n, d): (F, d)."""

    @abstractmethod
    def sums(self, entries: Tensor) -> Tensor:
        """Sums over rows: (F,)."""

    @abstractmethod
    def of_features(self, values: Tensor) -> Tensor:
        """Numbers of features, (F,), at the entries; broadcasts with them."""

    @abstractmethod
    def feature_range(self, start: int, stop: int) -> "tuple[Entries, Tensor | slice | tuple[slice, slice]]":
        """The entries of features `[start, stop)`, counted from 0, and the index that picks their numbers."""

    @abstractmethod
    def any_by_feature(self, entries: Tensor) -> Tensor:
        """Which features have an entry above zero: (F,) bool."""


class AllEntries(Entries):
    """Every entry of the matrix."""

    is_sparse = False

    def __init__(self, n_features: int, matmul: Matmul) -> None:
        self.n_features, self._mm = n_features, matmul

    def times(self, entries: Tensor, rows: Tensor) -> Tensor:  # noqa: D102 (of the base, as those below)
        return self._mm(entries, rows)

    def dot(self, left: Tensor, rows: Tensor) -> Tensor:  # noqa: D102
        return self._mm(left, rows.T)

    def transposed(self, entries: Tensor, right: Tensor) -> Tensor:  # noqa: D102
        return self._mm(entries.T, right)

    def sums(self, entries: Tensor) -> Tensor:  # noqa: D102
        return entries.sum(0)

    def of_features(self, values: Tensor) -> Tensor:  # noqa: D102
        return values

    def feature_range(self, start: int, stop: int) -> tuple[Entries, tuple[slice, slice]]:  # noqa: D102
        return AllEntries(stop - start, self._mm), (slice(None), slice(start, stop))

    def any_by_feature(self, entries: Tensor) -> Tensor:  # noqa: D102
        return entries.amax(0) > 0


class PairEntries(Entries):
    """The entries of some (row, feature) pairs.

    Parameters
    ----------
    pairs
        In order of row. Their values are not used.
    """

    is_sparse = True

    def __init__(self, pairs: ActivePairs, n_features: int) -> None:
        self.pairs, self.n_features = pairs, n_features
        self._by_feature = pairs.by_feature(n_features)

    def times(self, entries: Tensor, rows: Tensor) -> Tensor:  # noqa: D102
        return self.pairs.times(rows, entries)

    def dot(self, left: Tensor, rows: Tensor) -> Tensor:  # noqa: D102
        return self.pairs.dot(left, rows)

    def transposed(self, entries: Tensor, right: Tensor) -> Tensor:  # noqa: D102
        return self._by_feature.times(entries, right)

    def sums(self, entries: Tensor) -> Tensor:  # noqa: D102
        return self._by_feature.sums(entries, len(self.pairs.offsets))

    def of_features(self, values: Tensor) -> Tensor:  # noqa: D102
        return values[self.pairs.feature]

    def feature_range(self, start: int, stop: int) -> tuple[Entries, Tensor]:  # noqa: D102
        chosen = ((self.pairs.feature >= start) & (self.pairs.feature < stop)).nonzero().squeeze(1)
        return PairEntries(self.pairs.subset(chosen, start), stop - start), chosen

    def any_by_feature(self, entries: Tensor) -> Tensor:  # noqa: D102
        fired = torch.zeros(self.n_features, dtype=torch.bool, device=entries.device)
        return fired.index_fill_(0, self.pairs.feature[entries > 0], True)


def active_entries(f: Tensor, matmul: Matmul) -> tuple[Entries, Tensor]:
    """The entries of `f` (n, F), zero where inactive: all where many are active, else those that are; and their values.

    The choice depends on `f` alone: the same for the same batch and weights.
    """
    if active_share(f) >= SPARSE_BELOW:
        return AllEntries(f.shape[1], matmul), f
    pairs = ActivePairs.of_dense(f)
    return PairEntries(pairs, f.shape[1]), pairs.value


def fixed_entries(value: Tensor, feature: Tensor, n_features: int) -> tuple[Entries, Tensor]:
    """Entries of which every row has k, and their values, from `value` and `feature` (n, k)."""
    pairs = ActivePairs.of_fixed(value, feature)
    return PairEntries(pairs, n_features), pairs.value


def active_share(f: Tensor) -> float:
    """Share of entries of `f` (n, F) that are not zero, measured on rows spread over the batch."""
    sample = f[:: max(1, len(f) // _SAMPLED_ROWS)]
    return float(torch.count_nonzero(sample)) / max(1, sample.numel())


def group_edges(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """First feature and the one after the last of each group between nested prefixes of these sizes."""
    return list(zip([0, *sizes[:-1]], sizes, strict=True))

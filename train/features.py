"""Feature activations of a few rows without their zeros."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .sparse import ActivePairs


@dataclass(frozen=True, slots=True)
class SparseFeatures:
    """Feature activations in CSR form, sorted by feature in each row.

    Parameters
    ----------
    indptr
        `(n + 1,)` int64: row r holds entries indptr[r] to indptr[r + 1].
    index
        `(nnz,)` int64 feature ids, ascending in a row.
    value
        `(nnz,)`, all above 0.
    d_sae
        Number of features.
    """

    indptr: Tensor
    index: Tensor
    value: Tensor
    d_sae: int

    @property
    def n_rows(self) -> int:
        """Rows."""
        return len(self.indptr) - 1

    @classmethod
    def from_tiles(cls, tiles: list[tuple[Tensor, Tensor, Tensor]], n: int, d_sae: int) -> "SparseFeatures":
        """Join the pairs of runs of features, in order of the runs.

        Parameters
        ----------
        tiles
            (row, feature, value) of each run of features, each in order of row, then feature.
        """
        counts = torch.stack([torch.bincount(row, minlength=n) for row, _, _ in tiles])  # (n_tiles, n)
        indptr = counts.new_zeros(n + 1)
        torch.cumsum(counts.sum(0), 0, out=indptr[1:])
        before = indptr[:-1] + counts.cumsum(0) - counts  # (n_tiles, n): where the tile's part of each row goes
        nnz = sum(len(row) for row, _, _ in tiles)
        index, value = indptr.new_empty(nnz), tiles[0][2].new_empty(nnz)
        for (row, feature, activation), start, count in zip(tiles, before, counts, strict=True):
            # Its rank in its row's part of the tile: entries are sorted by row, so count from each row's first.
            rank = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
            position = start[row] + rank
            index[position] = feature
            value[position] = activation
        return cls(indptr, index, value, d_sae)

    def to_dense(self) -> Tensor:
        """`(n, d_sae)`."""
        f = self.value.new_zeros(self.n_rows, self.d_sae)
        f[self.rows(), self.index] = self.value
        return f

    def rows(self) -> Tensor:
        """Row of each entry: `(nnz,)`."""
        return torch.repeat_interleave(torch.arange(self.n_rows, device=self.indptr.device), self.indptr.diff())

    def pairs(self) -> ActivePairs:
        """The same entries for sparse products."""
        return ActivePairs(self.indptr[:-1], self.rows(), self.index, self.value)

    def sum_by_row(self, entries: Tensor) -> Tensor:
        """Sums by row, in float64, of one number an entry: `(n,)`."""
        # float64: an L1 or a count that feeds a statistic over 10^8 rows. On the CPU where a device has none.
        device = "cpu" if entries.device.type == "mps" else entries.device
        # As bags, which are added up in a fixed order, as `index_add_` on a GPU is not.
        ones = torch.ones(self.d_sae, 1, dtype=torch.float64, device=device)
        index, offsets, weight = (each.to(device) for each in (self.index, self.indptr[:-1], entries))
        return torch.nn.functional.embedding_bag(
            index, ones, offsets, mode="sum", per_sample_weights=weight.double()
        ).squeeze(1)

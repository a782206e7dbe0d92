"""The BatchTopK SAE: a batch of n rows keeps its n k largest pre-activations, where they are above zero.

Shapes: n rows, F features.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from ..entries import Entries, PairEntries
from ..objective import Block, Objective, Scored
from ..sparse import ActivePairs
from .base import SparseAutoencoder
from .topk import score_selected

_SAMPLED_ROWS = 16
_MARGIN = 1.25  # a threshold from some rows is set for this many times the entries wanted: rarely is one too high
_TRACKING = 0.01  # of the threshold towards each batch's: a memory of 100 steps, as SAELens has


class BatchTopKSae(SparseAutoencoder):
    """Training keeps the n k largest pre-activations of a batch, so that rows share them out as they need.

    Afterwards a feature is active where its pre-activation exceeds `threshold`, the mean over the last steps of the
    smallest one kept (Bussmann, Leask and Nanda 2024, arXiv:2412.06410). Loss: reconstruction error, and AuxK.

    Parameters
    ----------
    k
        Mean number of features a row.
    threshold
        `(1,)`; 0 before training.
    """

    variant: ClassVar[str] = "batchtopk"
    tracked: ClassVar[tuple[str, ...]] = ("threshold", "threshold_weight")

    def __init__(
        self,
        *weights: Tensor,
        k: int,
        threshold: Tensor | None = None,
        threshold_weight: Tensor | None = None,
        **shared: Any,
    ) -> None:
        super().__init__(*weights, **shared)
        if not 1 <= k <= self.d_sae:
            raise ValueError(f"k = {k} must be from 1 to the {self.d_sae} features")
        self.k = k
        self.threshold = self.b_enc.new_zeros(1) if threshold is None else threshold
        self.threshold_weight = self.b_enc.new_zeros(1) if threshold_weight is None else threshold_weight

    def settings(self) -> dict[str, Any]:
        """`k`, and what the variants share."""
        return {**super().settings(), "k": self.k}

    def select(self, pre: Tensor) -> Tensor:
        """Feature activations from pre-activations `(n, d_sae)`."""
        return torch.where(pre > self.threshold.clamp(min=0), pre, 0.0)

    def floor(self) -> Tensor:
        """`(d_sae,)`: the threshold, of every feature."""
        return self.threshold.clamp(min=0).expand(self.d_sae)

    def batch_candidates(self, pre: Tensor, n_total: int) -> ActivePairs:
        """The pairs of some rows that may be among the n_total k largest of their batch, in order of row."""
        return largest_pairs(pre, min(n_total * self.k, pre.numel()))

    def batch_threshold(self, values: Tensor, n_total: int) -> Tensor:
        """The smallest of the n_total k largest values of a batch, 0-d; infinite where there is none."""
        wanted = min(n_total * self.k, len(values))
        if wanted == 0:
            return values.new_full((), float("inf"))
        return values.topk(wanted, sorted=False).values.amin()

    def track(self, threshold: Tensor) -> None:
        """Move the threshold towards a batch's (0-d), the mean of all before it until its memory is full."""
        seen = torch.isfinite(threshold)
        weight = torch.where(seen, self.threshold_weight + 1, self.threshold_weight)
        rate = (1 / weight.clamp(min=1)).clamp(min=_TRACKING) * seen
        self.threshold += rate * torch.where(seen, threshold - self.threshold, 0.0)
        self.threshold_weight.copy_(weight)

    def training_entries(self, pre: Tensor, objective: Objective) -> tuple[Entries, Tensor]:
        """The entries that a batch of these rows alone keeps, and their activations."""
        pairs = self.batch_candidates(pre, len(pre))
        return self.kept_entries(pairs, self.batch_threshold(pairs.value, len(pre)))

    def kept_entries(self, candidates: ActivePairs, threshold: Tensor) -> tuple[Entries, Tensor]:
        """The candidates that reach the batch's threshold, and their activations."""
        pairs = candidates.subset((candidates.value >= threshold).nonzero().squeeze(1))
        return PairEntries(pairs, self.d_sae), pairs.value

    def score(self, entries: Entries, f: Tensor, block: Block, objective: Objective) -> Scored:
        """Losses and gradients from the selected entries."""
        return score_selected(self, entries, f, block, objective)


def largest_pairs(pre: Tensor, n_wanted: int) -> ActivePairs:
    """The `n_wanted` largest positive entries of `pre` (n, F), and all that tie with the smallest of them.

    A threshold from a few rows leaves a little more than is wanted, of which the largest are then found: a top-k over
    all entries at once would sort by one thread.
    """
    sample = pre[:: max(1, len(pre) // _SAMPLED_ROWS)].flatten()
    rank = int(n_wanted / max(1, pre.numel()) * len(sample) * _MARGIN) + 1
    while True:
        floor = sample.topk(rank, sorted=False).values.amin().clamp(min=0) if rank < len(sample) else pre.new_zeros(())
        row, feature = ((pre >= floor) & (pre > 0)).nonzero(as_tuple=True)
        if len(row) >= n_wanted or not floor > 0:
            break
        rank *= 2
    value = pre[row, feature]
    if len(value) > n_wanted:
        kept = (value >= value.topk(n_wanted, sorted=False).values.amin()).nonzero().squeeze(1)
        row, feature, value = row[kept], feature[kept], value[kept]
    offsets = torch.searchsorted(row, torch.arange(len(pre), device=pre.device))
    return ActivePairs(offsets, row, feature, value)

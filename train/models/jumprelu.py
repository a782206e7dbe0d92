"""The JumpReLU SAE: a feature is active where its pre-activation exceeds its own trained threshold.

Shapes: n rows, F features.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from ..entries import SPARSE_BELOW, AllEntries, Entries, PairEntries, active_share
from ..objective import Block, Objective, Scored
from ..sparse import ActivePairs
from .base import SparseAutoencoder


class JumpReluSae(SparseAutoencoder):
    """f = pre where pre > threshold, else 0 (Rajamanoharan et al. 2024, arXiv:2407.14435).

    Loss: reconstruction error + coefficient x mean over rows of L0. Thresholds are trained through their logarithm, by
    the paper's pseudo-derivatives: near a threshold, within half the bandwidth e, d f / d threshold = -threshold / e
    and d L0 / d threshold = -1 / e (its equations 11 and 12, with the rectangle kernel). The logarithms have ten times
    the learning rate of the other weights: runs here are a tenth of the paper's.

    Parameters
    ----------
    log_threshold
        `(F,)`.
    """

    variant: ClassVar[str] = "jumprelu"
    has_penalty: ClassVar[bool] = True
    trained: ClassVar[tuple[str, ...]] = ("log_threshold",)
    # Adam moves a number by its rate a step, whatever the gradient: at 4e-4 a threshold would double in 1,700 steps.
    rates: ClassVar[dict[str, float]] = {"log_threshold": 10.0}

    def __init__(self, *weights: Tensor, log_threshold: Tensor, **shared: Any) -> None:
        super().__init__(*weights, **shared)
        if log_threshold.shape != self.b_enc.shape:
            raise ValueError(
                f"log_threshold has shape {tuple(log_threshold.shape)}; it needs {tuple(self.b_enc.shape)}"
            )
        self.log_threshold = log_threshold.contiguous()

    @property
    def threshold(self) -> Tensor:
        """`(F,)`, above 0."""
        return self.log_threshold.exp()

    def select(self, pre: Tensor) -> Tensor:
        """Feature activations from pre-activations `(n, d_sae)`."""
        return torch.where(pre > self.threshold, pre, 0.0)

    def floor(self) -> Tensor:
        """`(d_sae,)`: the thresholds."""
        return self.threshold

    def training_entries(self, pre: Tensor, objective: Objective) -> tuple[Entries, Tensor]:
        """The entries that are active or near their threshold, and their pre-activations."""
        takes_part = pre > self.threshold - objective.bandwidth / 2
        if active_share(takes_part) >= SPARSE_BELOW:
            return AllEntries(self.d_sae, objective.matmul), pre
        pairs = ActivePairs.where(takes_part, pre)
        return PairEntries(pairs, self.d_sae), pairs.value

    def score(self, entries: Entries, values: Tensor, block: Block, objective: Objective) -> Scored:
        """Losses and gradients from the entries that are active or near their threshold."""
        threshold = entries.of_features(self.threshold)
        is_active = values > threshold
        f = torch.where(is_active, values, 0.0)
        residual = entries.times(f, self.decoder).add_(self.b_dec).sub_(block.target)
        error = objective.reconstruction_error(residual, block.target, block.n_total)
        d_f = entries.dot(error.gradient, self.decoder)
        # The kernel is 1 within half the bandwidth; d loss / d log threshold = threshold x d loss / d threshold.
        is_near = (values - threshold).abs() < objective.bandwidth / 2
        d_threshold = d_f * threshold + objective.sparsity / block.n_total
        d_log_threshold = entries.sums(d_threshold.mul_(threshold).mul_(is_near)).div_(-objective.bandwidth)
        d_pre = d_f.mul_(is_active)
        encoded_sums = entries.sums(d_pre)
        return Scored(
            gradients={
                "encoder": entries.transposed(d_pre, block.centred),
                "b_enc": encoded_sums,
                "decoder": entries.transposed(f, error.gradient),
                "b_dec": error.gradient.sum(0),
                "log_threshold": d_log_threshold,
            },
            encoded_sums=encoded_sums,
            reconstruction=error.value,
            sparsity=torch.count_nonzero(is_active).to(f.dtype) / block.n_total,
            entries=entries,
            f=f,
            residual=residual,
        )

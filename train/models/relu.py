"""The ReLU SAE: every feature whose pre-activation is above zero is active.

Shapes: n rows, d inputs, F features.
"""

from typing import ClassVar

import torch
from torch import Tensor

from ..entries import Entries, active_entries
from ..objective import Block, Objective, Scored
from .base import SparseAutoencoder


class ReluSae(SparseAutoencoder):
    """f = relu((z - b_dec) W_enc + b_enc), held sparse by an L1 penalty (Bricken et al. 2023; Fry 2024).

    Loss: reconstruction error + coefficient x mean over rows of sum_k f_k; with `decoder_norm`, of
    sum_k f_k ||W_dec_k||, and decoder rows of any norm (Conerly et al. 2024, "Update on how we train SAEs").
    """

    variant: ClassVar[str] = "relu"
    has_penalty: ClassVar[bool] = True

    def select(self, pre: Tensor) -> Tensor:
        """Feature activations from pre-activations `(n, d_sae)`."""
        return pre.relu()

    def training_entries(self, pre: Tensor, objective: Objective) -> tuple[Entries, Tensor]:
        """The active entries and their activations; `pre` is overwritten."""
        return active_entries(pre.relu_(), objective.matmul)

    def score(self, entries: Entries, f: Tensor, block: Block, objective: Objective) -> Scored:
        """Losses and gradients from the active entries."""
        residual = entries.times(f, self.decoder).add_(self.b_dec).sub_(block.target)
        error = objective.reconstruction_error(residual, block.target, block.n_total)
        d_decoder = entries.transposed(f, error.gradient)
        d_pre = entries.dot(error.gradient, self.decoder)
        if objective.decoder_norm:
            norm = self.decoder.norm(dim=1)  # (F,)
            sums = entries.sums(f)
            penalty = sums @ norm / block.n_total
            d_pre = d_pre.add_(entries.of_features(norm * (objective.sparsity / block.n_total)))
            d_decoder.addcmul_(self.decoder, (sums / norm)[:, None] * (objective.sparsity / block.n_total))
        else:
            penalty = f.sum() / block.n_total
            d_pre = d_pre.add_(objective.sparsity / block.n_total)
        if not entries.is_sparse:
            torch.ops.aten.threshold_backward.grad_input(d_pre, f, 0, grad_input=d_pre)
        encoded_sums = entries.sums(d_pre)
        return Scored(
            gradients={
                "encoder": entries.transposed(d_pre, block.centred),
                "b_enc": encoded_sums,
                "decoder": d_decoder,
                "b_dec": error.gradient.sum(0),
            },
            encoded_sums=encoded_sums,
            reconstruction=error.value,
            sparsity=penalty,
            entries=entries,
            f=f,
            residual=residual,
        )

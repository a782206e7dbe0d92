"""The Matryoshka SAE: a BatchTopK SAE whose first features reconstruct by themselves, for several prefixes.

Shapes: n rows, d outputs, F features, g prefixes.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..entries import Entries, group_edges
from ..objective import Block, Objective, Scored
from .batchtopk import BatchTopKSae


class MatryoshkaSae(BatchTopKSae):
    """BatchTopK whose loss is the mean of the reconstruction errors of nested prefixes of its features.

    Small prefixes learn general features, which larger ones refine without absorbing them (Bussmann, Nabeshima,
    Karvonen and Nanda 2025, arXiv:2503.17547). Loss: mean over prefixes of the reconstruction error, where the
    paper's is the sum, and AuxK on that of all, which so weighs as much more as there are prefixes.

    Parameters
    ----------
    prefixes
        Features of each prefix, ascending, the last d_sae.
    """

    variant: ClassVar[str] = "matryoshka"

    def __init__(self, *weights: Tensor, prefixes: Sequence[int], **rest: Any) -> None:
        super().__init__(*weights, **rest)
        self.prefixes = [int(size) for size in prefixes]
        rises = all(a < b for a, b in zip([0, *self.prefixes[:-1]], self.prefixes, strict=True))
        if not self.prefixes or not rises or self.prefixes[-1] != self.d_sae:
            raise ValueError(f"prefixes {self.prefixes} must rise to the {self.d_sae} features")

    def settings(self) -> dict[str, Any]:
        """`prefixes`, and what BatchTopK has."""
        return {**super().settings(), "prefixes": self.prefixes}

    def score(self, entries: Entries, f: Tensor, block: Block, objective: Objective) -> Scored:
        """Losses and gradients from the selected entries.

        A feature's output is part of every prefix that holds it: the error's gradient with respect to it is the sum of
        those prefixes', so that each entry is decoded once and gets its gradient once.
        """
        n_prefixes = len(self.prefixes)
        residual = (self.b_dec - block.target).contiguous()
        parts = []
        errors, loss = [], torch.zeros_like(f.sum())
        for start, stop in group_edges(self.prefixes):
            part, index = entries.feature_range(start, stop)
            parts.append((part, index, start, stop))
            residual = residual + part.times(f[index], self.decoder[start:stop])
            error = objective.reconstruction_error(residual, block.target, block.n_total)
            errors.append(error.gradient.div_(n_prefixes))
            loss = loss + error.value / n_prefixes
        d_output = torch.zeros_like(residual)  # (n, d): summed over the prefixes that hold a group
        d_pre, d_decoder = torch.zeros_like(f), torch.empty_like(self.decoder)
        for (part, index, start, stop), gradient in zip(reversed(parts), reversed(errors), strict=True):
            d_output = d_output + gradient
            d_pre[index] = part.dot(d_output, self.decoder[start:stop])
            d_decoder[start:stop] = part.transposed(f[index], d_output)
        d_pre.mul_(f > 0)
        encoded_sums = entries.sums(d_pre)
        return Scored(
            gradients={
                "encoder": entries.transposed(d_pre, block.centred),
                "b_enc": encoded_sums,
                "decoder": d_decoder,
                "b_dec": d_output.sum(0),
            },
            encoded_sums=encoded_sums,
            reconstruction=loss,
            sparsity=f.sum() / block.n_total,
            entries=entries,
            f=f,
            residual=residual,
        )

"""The gated SAE: one path says which features are active, another how much.

Shapes: n rows, F features.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from ..entries import Entries, active_entries
from ..features import SparseFeatures
from ..objective import Block, Objective, Scored
from ..tiles import Tiles
from .base import SparseAutoencoder


class GatedSae(SparseAutoencoder):
    """f = [gate > 0] relu(exp(r_mag) u + b_mag), gate = u + b_enc, u = (z - b_dec) W_enc.

    Loss: reconstruction error + coefficient x mean over rows of sum_k relu(gate_k) + the reconstruction error of
    relu(gate) through a decoder and bias that get no gradient from it (Rajamanoharan et al. 2024, arXiv:2404.16014,
    equation 8). The gate's bias, b_gate in the paper, is `b_enc` here.

    Parameters
    ----------
    r_mag, b_mag
        `(F,)`.
    """

    variant: ClassVar[str] = "gated"
    has_penalty: ClassVar[bool] = True
    trained: ClassVar[tuple[str, ...]] = ("r_mag", "b_mag")

    def __init__(self, *weights: Tensor, r_mag: Tensor, b_mag: Tensor, **shared: Any) -> None:
        super().__init__(*weights, **shared)
        for name, tensor in (("r_mag", r_mag), ("b_mag", b_mag)):
            if tensor.shape != self.b_enc.shape:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it needs {tuple(self.b_enc.shape)}")
        self.r_mag, self.b_mag = r_mag.contiguous(), b_mag.contiguous()

    def select(self, pre: Tensor) -> Tensor:
        """Feature activations from the gate's pre-activations `(n, d_sae)`."""
        magnitude = (pre - self.b_enc) * self.r_mag.exp() + self.b_mag
        return torch.where(pre > 0, magnitude.relu(), 0.0)

    def encode_sparse(self, x: Tensor, *, tile: int = 4096, tiles: Tiles | None = None) -> SparseFeatures:
        """`encode` without zeros; holds one `(n, tile)` buffer."""
        found, gain = [], self.r_mag.exp()
        for each in self.active_tiles(x, tile, tiles):
            row, feature, gate = each.above()
            value = (gate - self.b_enc[feature]) * gain[feature] + self.b_mag[feature]
            kept = value > 0
            found.append((row[kept], feature[kept], value[kept]))
        return SparseFeatures.from_tiles(found, len(x), self.d_sae)

    def training_entries(self, pre: Tensor, objective: Objective) -> tuple[Entries, Tensor]:
        """The entries whose gate is open, and by how much; `pre` is overwritten."""
        return active_entries(pre.relu_(), objective.matmul)

    def score(self, entries: Entries, gate: Tensor, block: Block, objective: Objective) -> Scored:
        """Losses and gradients from the entries whose gate is open."""
        is_open = gate > 0  # all of them, where the entries are pairs
        gain = entries.of_features(self.r_mag.exp())
        scaled = (gate - entries.of_features(self.b_enc)) * gain  # exp(r_mag) u
        f = torch.where(is_open, (scaled + entries.of_features(self.b_mag)).relu(), 0.0)
        residual = entries.times(f, self.decoder).add_(self.b_dec).sub_(block.target)
        error = objective.reconstruction_error(residual, block.target, block.n_total)
        by_gate = entries.times(gate, self.decoder).add_(self.b_dec).sub_(block.target)
        gate_error = objective.reconstruction_error(by_gate, block.target, block.n_total)
        d_gate = entries.dot(gate_error.gradient, self.decoder).add_(objective.sparsity / block.n_total).mul_(is_open)
        d_magnitude = entries.dot(error.gradient, self.decoder).mul_(f > 0)
        d_encoded = d_gate + d_magnitude * gain
        return Scored(
            gradients={
                "encoder": entries.transposed(d_encoded, block.centred),
                "b_enc": entries.sums(d_gate),
                "decoder": entries.transposed(f, error.gradient),
                "b_dec": error.gradient.sum(0),
                "r_mag": entries.sums(d_magnitude * scaled),
                "b_mag": entries.sums(d_magnitude),
            },
            encoded_sums=entries.sums(d_encoded),
            reconstruction=error.value,
            sparsity=gate.sum() / block.n_total,
            entries=entries,
            f=f,
            residual=residual,
            extra={"gate": gate_error.value},
        )

"""The ReLU SAE: every feature whose pre-activation is above zero is active.

Shapes: n rows, d_sae features.
"""

from typing import ClassVar

from torch import Tensor

from ..features import SparseFeatures
from .base import SparseAutoencoder


class ReluSae(SparseAutoencoder):
    """f = relu((z - b_dec) W_enc + b_enc), held sparse by an L1 penalty (Bricken et al. 2023; Fry 2024)."""

    variant: ClassVar[str] = "relu"

    def select(self, pre: Tensor) -> Tensor:
        """Feature activations from pre-activations `(n, d_sae)`."""
        return pre.relu()

    def encode_sparse(self, x: Tensor, *, tile: int = 4096) -> SparseFeatures:
        """`encode` without zeros; holds one `(n, tile)` buffer."""
        tiles = []
        for start, pre in self.pre_activation_tiles(x, tile):
            row, feature = (pre > 0).nonzero(as_tuple=True)
            tiles.append((row, feature + start, pre[row, feature]))
        return SparseFeatures.from_tiles(tiles, len(x), self.d_sae)

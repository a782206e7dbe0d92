"""Pre-activations of an SAE by runs of features, of which only those above a bound are kept.

Shapes: n rows, d_in inputs, d_sae features, of which a tile holds `width`; nnz pairs above the bound.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .models.base import SparseAutoencoder

Found = tuple[Tensor, Tensor, Tensor]
"""Row, feature and pre-activation of the pairs above a bound, `(nnz,)` each, in order of row, then feature."""


class Tile(Protocol):
    """The pre-activations of some rows for a run of features."""

    start: int
    """First feature."""
    width: int
    """Features."""

    def above(self, bound: Tensor | None = None) -> Found:
        """The pairs whose pre-activation is above a bound: 0, or one a row `(n, 1)`, at least 0.

        Where the SAE has thresholds, they are the bound.
        """

    def kth_largest(self, k: int) -> Tensor:
        """`(n, 1)`: a number that k of each row's pre-activations reach; k is at most the width."""


class Tiles(Protocol):
    """Makes the tiles of blocks of rows."""

    def of(self, centred: Tensor, width: int) -> Iterator[Tile]:
        """The tiles of what the encoder multiplies, `(n, d_in)`. One is used up before the next is taken."""


def exact_tiles(sae: "SparseAutoencoder") -> Tiles:
    """Tiles in the type of the weights."""
    return _ExactTiles(sae.encoder, sae.b_enc, sae.floor())


class _ExactTiles:
    def __init__(self, encoder: Tensor, b_enc: Tensor, floor: Tensor | None) -> None:
        self._encoder, self._b_enc, self._floor = encoder, b_enc, floor

    def of(self, centred: Tensor, width: int) -> Iterator[Tile]:
        # One buffer for all: to take another for each costs the system's zeroing of it, a tenth of the matmul.
        buffer = centred.new_empty(len(centred) * min(width, len(self._encoder)))
        for start in range(0, len(self._encoder), width):
            yield self.one(centred, start, start + width, buffer)

    def one(self, centred: Tensor, start: int, stop: int, buffer: Tensor | None = None) -> "_ExactTile":
        encoder, bias = self._encoder[start:stop], self._b_enc[start:stop]
        shape = (len(centred), len(encoder))
        out = None if buffer is None else buffer[: shape[0] * shape[1]].view(shape)
        pre = torch.addmm(bias, centred, encoder.T, out=out)
        return _ExactTile(start, pre, None if self._floor is None else self._floor[start:stop])


class _ExactTile:
    def __init__(self, start: int, pre: Tensor, floor: Tensor | None) -> None:
        self.start, self.width = start, pre.shape[1]
        self._pre, self._floor = pre, floor

    def above(self, bound: Tensor | None = None) -> Found:
        if bound is None:
            bound = self._floor
        row, feature = (self._pre > (0 if bound is None else bound)).nonzero(as_tuple=True)
        return row, feature + self.start, self._pre[row, feature]

    def kth_largest(self, k: int) -> Tensor:
        from .models.topk import any_largest

        return any_largest(self._pre, k)[0].amin(1, keepdim=True)

"""Pre-activations of which bf16 finds the candidates and float32 gives the numbers.

The candidates are proven to hold every pair that float32 finds. A row x of norm |x| is rounded to x', a feature's
weights w, divided by their norm, to w'. Then

    |x'.w' - x.w| <= |x - x'| |w| + |x'| |w - w'| <= |x - x'| + |x'| E,    E the largest |w - w'| of any feature

(Cauchy and Schwarz), of norms that are computed, not estimated. To it come the summation in float32, and rounding to
bf16 before and after the bias is added: relative errors, which the bias and the bound are moved out of the way of by
more than they can be. Where so many pairs are candidates that the matmul in float32 is cheaper, the tile is left to it.

Shapes: n rows, d_in inputs, d_sae features.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .sparse import ActivePairs
from .tiles import Found, Tile, _ExactTile, _ExactTiles

if TYPE_CHECKING:
    from .models.base import SparseAutoencoder

_UNIT = 2.0**-8  # unit roundoff of bf16: 8 bits of significand
_EXACT_FROM = 0.05  # share of candidates: a float32 product of single pairs takes some ten times a matmul's of as many
_ROWS_AT_ONCE = 4096  # features that are rounded at a time: 16 MB at d_in 1,024


class RoundedTiles:
    """Tiles of an SAE whose encoder is held in bf16 too: `2 d_in d_sae` bytes more.

    Parameters
    ----------
    sae
        Of float32.
    """

    def __init__(self, sae: "SparseAutoencoder") -> None:
        floor = sae.floor()
        self._exact = _ExactTiles(sae.encoder, sae.b_enc, floor)
        self._sae, self._floor = sae, floor
        norm = sae.encoder.norm(dim=1)  # (d_sae,)
        norm = torch.where(norm > 0, norm, 1.0)
        # A bound of each row's own is compared with all features alike: one scale for all of them then.
        self._scale = norm if sae.has_feature_bounds else norm.max().expand_as(norm)
        self._encoder = torch.empty_like(sae.encoder, dtype=torch.bfloat16)
        error = norm.new_zeros(())
        for start in range(0, len(norm), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            scaled = sae.encoder[part] / self._scale[part, None]
            self._encoder[part] = scaled
            error = torch.maximum(error, (scaled - self._encoder[part].float()).norm(dim=1).max())
        self._error = float(error)
        bias = (sae.b_enc if floor is None else sae.b_enc - floor) / self._scale
        # Raised by twice what rounding the products and itself may take from the sum.
        self._bias = (bias + 4 * _UNIT * bias.abs()).bfloat16()

    def of(self, centred: Tensor, width: int) -> Iterator[Tile]:
        """The tiles of what the encoder multiplies, `(n, d_in)`. One is used up before the next is taken."""
        rounded = centred.bfloat16()
        # Of summing d_in products in float32, in any order, here and in the matmul that this stands for.
        summation = (centred.shape[1] + 16) * 2.0**-22 * centred.norm(dim=1)
        lost, kept = (centred - rounded.float()).norm(dim=1), rounded.float().norm(dim=1)
        margin = (1.001 * (lost + kept * self._error) + summation) * (1 + 8 * _UNIT) + 1e-30
        buffer = rounded.new_empty(len(centred) * min(width, len(self._encoder)))
        for start in range(0, len(self._encoder), width):
            stop = min(start + width, len(self._encoder))
            out = buffer[: len(centred) * (stop - start)].view(len(centred), stop - start)
            with _summed_in_float32():
                torch.addmm(self._bias[start:stop], rounded, self._encoder[start:stop].T, out=out)
            yield _RoundedTile(self, centred, start, out, margin[:, None], summation[:, None] * self._scale[start])

    def exact(self, centred: Tensor, start: int, stop: int) -> _ExactTile:
        """The tile in float32."""
        return self._exact.one(centred, start, stop)

    def at(self, centred: Tensor, row: Tensor, feature: Tensor) -> Tensor:
        """Pre-activations of single pairs, `(nnz,)`, in float32; pairs in order of row."""
        offsets = torch.searchsorted(row, torch.arange(len(centred), device=row.device))
        products = ActivePairs(offsets, row, feature, row).dot(centred, self._sae.encoder)
        return products.add_(self._sae.b_enc[feature])

    def floor_of(self, feature: Tensor) -> Tensor | float:
        """What pre-activations of features must exceed."""
        return 0.0 if self._floor is None else self._floor[feature]

    def scaled(self, bound: Tensor, start: int) -> Tensor:
        """A bound of each row in the scale of the rounded pre-activations."""
        return bound / self._scale[start]


class _RoundedTile:
    def __init__(
        self, tiles: RoundedTiles, centred: Tensor, start: int, pre: Tensor, margin: Tensor, summation: Tensor
    ) -> None:
        self.start, self.width = start, pre.shape[1]
        self._tiles, self._centred, self._pre, self._margin, self._summation = tiles, centred, pre, margin, summation

    def above(self, bound: Tensor | None = None) -> Found:
        lowest = -self._margin
        if bound is not None:
            lowest = lowest + self._tiles.scaled(bound, self.start) * (1 - 8 * _UNIT)
        # Rounded down, not to the nearest: a comparison in bf16 is twice as fast as one that widens all pairs.
        below = lowest.bfloat16()
        below = torch.where(below.float() > lowest, torch.nextafter(below, torch.full_like(below, -torch.inf)), below)
        row, feature = (self._pre > below).nonzero(as_tuple=True)
        if len(row) > _EXACT_FROM * self._pre.numel() or not bool(torch.isfinite(self._margin).all()):
            return self._tiles.exact(self._centred, self.start, self.start + self.width).above(bound)
        feature = feature + self.start
        pre = self._tiles.at(self._centred, row, feature)
        kept = pre > (self._tiles.floor_of(feature) if bound is None else bound.squeeze(1)[row])
        return row[kept], feature[kept], pre[kept]

    def kth_largest(self, k: int) -> Tensor:
        from .models.topk import any_largest

        feature = any_largest(self._pre, k)[1] + self.start  # (n, k)
        row = torch.arange(len(feature), device=feature.device).repeat_interleave(k)
        # The matmul, where `above` takes it, adds up the same products in another order.
        return self._tiles.at(self._centred, row, feature.reshape(-1)).view(-1, k).amin(1, True) - self._summation


@contextmanager
def _summed_in_float32() -> Iterator[None]:
    """Keep CUDA from adding partial sums in bf16, which the bound on the error does not allow for."""
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_bf16_reduced_precision_reduction
    matmul.allow_bf16_reduced_precision_reduction = False
    try:
        yield
    finally:
        matmul.allow_bf16_reduced_precision_reduction = before

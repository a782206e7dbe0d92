"""Features, reconstruction and its error for one block of stored rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from ..store.reader import ActivationArray

if TYPE_CHECKING:
    import torch

    from ..train.models import SparseAutoencoder
    from ..train.tiles import Tiles


@dataclass(frozen=True)
class EncodedBlock:
    """Features and reconstruction of n rows, on the host."""

    counts: NDArray[np.int64]
    """`(n,)`: entries of each row."""
    index: NDArray[np.uint32]
    value: NDArray[np.float32]
    x: NDArray[np.float32]
    """`(n, d_out)`: what is reconstructed."""
    norm: NDArray[np.float64]
    """`(n,)`: ||x||."""
    sse: NDArray[np.float64]
    """`(n,)`: ||x_hat - x||^2."""
    cosine: NDArray[np.float32]
    """`(n,)`: of x and x_hat, NaN where one of them is 0."""
    l1: NDArray[np.float64]
    """`(n,)`: sum of the activations."""


@dataclass(frozen=True)
class StoredRows:
    """Stored rows as every SAE takes them, on the host."""

    x: "torch.Tensor"
    """`(n, d_in)` float32: what is read."""
    target: "torch.Tensor"
    """`(n, d_out)` float32: what is reconstructed; x itself but for a transcoder."""
    norm: NDArray[np.float64]
    """`(n,)`: ||target||."""

    @classmethod
    def of(cls, arrays: Sequence[ActivationArray], vectors: Sequence[NDArray[Any]]) -> Self:
        """Stored rows of what is read and, for a transcoder, of what is reconstructed, whatever the store's type."""
        tensors = [array.tensor(rows).float() for array, rows in zip(arrays, vectors, strict=True)]
        target = tensors[-1].numpy()
        return cls(tensors[0], tensors[-1], np.sqrt(np.einsum("nd,nd->n", target, target, dtype=np.float64)))


def encode_block(
    sae: "SparseAutoencoder", rows: StoredRows, *, tile_features: int, tiles: "Tiles | None" = None
) -> EncodedBlock:
    """Encode rows.

    Parameters
    ----------
    tile_features
        Features whose pre-activations are held at a time.
    tiles
        As for `encode_sparse`.
    """
    import torch

    from ..train.precision import float32_matmuls

    with torch.inference_mode(), float32_matmuls("fp32"):
        x = rows.x.to(sae.device)
        f = sae.encode_sparse(x, tile=tile_features, tiles=tiles)
        x_hat = sae.decode_sparse(f, x)
        target = x if rows.target is rows.x else rows.target.to(sae.device)
        dot = torch.linalg.vecdot(x_hat, target)
        x_hat_norm = x_hat.norm(dim=1)
        sse = x_hat.sub_(target).square_().sum(dim=1)
        value = f.value.cpu().numpy()
        indptr = f.indptr.cpu().numpy()
        lengths = rows.norm * x_hat_norm.cpu().double().numpy()
        cosine = np.divide(dot.cpu().double().numpy(), lengths, out=np.full(len(lengths), np.nan), where=lengths > 0)
        before = np.concatenate(([0.0], np.cumsum(value, dtype=np.float64)))
        return EncodedBlock(
            counts=np.diff(indptr),
            index=f.index.to(torch.int32).cpu().numpy().view(np.uint32),
            value=value,
            x=rows.target.numpy(),
            norm=rows.norm,
            sse=sse.cpu().double().numpy(),
            cosine=cosine.astype(np.float32),
            l1=before[indptr[1:]] - before[indptr[:-1]],
        )

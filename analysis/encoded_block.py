"""Features, reconstruction and its error for one block of stored rows."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..store.reader import ActivationArray

if TYPE_CHECKING:
    from ..train.models import SparseAutoencoder


@dataclass(frozen=True)
class EncodedBlock:
    """Features and reconstruction of n rows, on the host."""

    counts: NDArray[np.int64]
    """`(n,)`: entries of each row."""
    index: NDArray[np.uint32]
    value: NDArray[np.float32]
    x: NDArray[np.float32]
    """`(n, d_in)`."""
    norm: NDArray[np.float64]
    """`(n,)`: ||x||."""
    sse: NDArray[np.float64]
    """`(n,)`: ||x_hat - x||^2."""
    cosine: NDArray[np.float32]
    """`(n,)`: of x and x_hat, NaN where one of them is 0."""
    l1: NDArray[np.float64]
    """`(n,)`: sum of the activations."""


def encode_block(
    sae: "SparseAutoencoder", array: ActivationArray, rows: NDArray[Any], *, tile_features: int
) -> EncodedBlock:
    """Encode stored rows `(n, d_in)`, in float32 whatever the store's type."""
    import torch

    with torch.inference_mode():
        host = array.tensor(rows).float()  # (n, d_in)
        x = host.to(sae.device)
        f = sae.encode_sparse(x, tile=tile_features)
        x_hat = sae.decode_sparse(f, x)
        sse = (x_hat - x).square().sum(dim=1)
        dot = (x_hat * x).sum(dim=1)
        x_hat_norm = x_hat.norm(dim=1)
        value = f.value.cpu().numpy()
        indptr = f.indptr.cpu().numpy()
        x_host = host.numpy()
        norm = np.sqrt(np.einsum("nd,nd->n", x_host, x_host, dtype=np.float64))
        lengths = norm * x_hat_norm.cpu().double().numpy()
        cosine = np.divide(dot.cpu().double().numpy(), lengths, out=np.full(len(rows), np.nan), where=lengths > 0)
        before = np.concatenate(([0.0], np.cumsum(value, dtype=np.float64)))
        return EncodedBlock(
            counts=np.diff(indptr),
            index=f.index.to(torch.int32).cpu().numpy().view(np.uint32),
            value=value,
            x=x_host,
            norm=norm,
            sse=sse.cpu().double().numpy(),
            cosine=cosine.astype(np.float32),
            l1=before[indptr[1:]] - before[indptr[:-1]],
        )

"""The numbers of an SAE, or of a transcoder, on a range of stored rows."""

from contextlib import closing

import torch
from torch import Tensor

from ..store.ahead import in_order
from ..store.reader import ActivationArray
from .metrics import ReconstructionMetrics, ReconstructionResult
from .models import SparseAutoencoder

_BATCH = 1024
_AHEAD = 7  # batches read while one is evaluated, for stores in buckets


def evaluate(
    sae: SparseAutoencoder,
    activations: ActivationArray,
    start: int,
    stop: int,
    target: ActivationArray | None = None,
    n_active: Tensor | None = None,
) -> ReconstructionResult:
    """Reconstruction and sparsity on positions `[start, stop)`, in a memory that does not grow with them.

    Parameters
    ----------
    target
        What a transcoder reconstructs; by default what is read.
    n_active
        `(d_sae,)` int64 on the SAE's device, to which the rows on which each feature is above 0 are added.
    """
    metrics = ReconstructionMetrics(sae.d_out, sae.d_sae)
    batches = [(first, min(stop, first + _BATCH)) for first in range(start, stop, _BATCH)]
    arrays = [activations] if target is None else [activations, target]
    with closing(in_order(lambda batch: [a.read_positions(*batch) for a in arrays], batches, _AHEAD)) as read:
        for stored in read:
            x, *rest = [a.tensor(v).to(sae.device).float() for a, v in zip(arrays, stored, strict=True)]
            f = sae.encode_sparse(x)
            if n_active is not None:
                n_active += torch.bincount(f.index, minlength=f.d_sae)
            metrics.update(rest[0] if rest else x, sae.decode_sparse(f, x), f)
    return metrics.result()


def count_almost_dead(n_active: Tensor, n_rows: int) -> int:
    """Features that fire on less than one row in 10,000, those that never fire among them.

    Parameters
    ----------
    n_active
        `(d_sae,)` rows, of `n_rows`, on which each is above 0.
    """
    return int((n_active * 10_000 < n_rows).sum())

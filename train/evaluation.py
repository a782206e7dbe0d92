"""The numbers of an SAE, or of a transcoder, on a range of stored rows."""

from contextlib import closing

from ..store.ahead import in_order
from ..store.reader import ActivationArray
from .metrics import ReconstructionMetrics, ReconstructionResult
from .models import SparseAutoencoder

_BATCH = 1024
_AHEAD = 7  # batches read while one is evaluated, for stores in buckets


def evaluate(
    sae: SparseAutoencoder, activations: ActivationArray, start: int, stop: int, target: ActivationArray | None = None
) -> ReconstructionResult:
    """Reconstruction and sparsity on positions `[start, stop)`, in a memory that does not grow with them.

    Parameters
    ----------
    target
        What a transcoder reconstructs; by default what is read.
    """
    metrics = ReconstructionMetrics(sae.d_out, sae.d_sae)
    batches = [(first, min(stop, first + _BATCH)) for first in range(start, stop, _BATCH)]
    arrays = [activations] if target is None else [activations, target]
    with closing(in_order(lambda batch: [a.read_positions(*batch) for a in arrays], batches, _AHEAD)) as read:
        for stored in read:
            x, *rest = [a.tensor(v).to(sae.device).float() for a, v in zip(arrays, stored, strict=True)]
            f = sae.encode_sparse(x)
            metrics.update(rest[0] if rest else x, sae.decode_sparse(f, x), f)
    return metrics.result()

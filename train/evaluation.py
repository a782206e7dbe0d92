"""The numbers of an SAE on a range of stored rows."""

from contextlib import closing

from ..store.ahead import in_order
from ..store.reader import ActivationArray
from .metrics import ReconstructionMetrics, ReconstructionResult
from .models import SparseAutoencoder

_BATCH = 1024
_AHEAD = 7  # batches read while one is evaluated, for stores in buckets


def evaluate(sae: SparseAutoencoder, activations: ActivationArray, start: int, stop: int) -> ReconstructionResult:
    """Reconstruction and sparsity on positions `[start, stop)`, in a memory that does not grow with them."""
    metrics = ReconstructionMetrics(sae.d_in, sae.d_sae)
    batches = [(first, min(stop, first + _BATCH)) for first in range(start, stop, _BATCH)]
    with closing(in_order(lambda batch: activations.read_positions(*batch), batches, _AHEAD)) as read:
        for stored in read:
            x = activations.tensor(stored).to(sae.device).float()
            f = sae.encode_sparse(x)
            metrics.update(x, sae.decode_sparse(f), f)
    return metrics.result()

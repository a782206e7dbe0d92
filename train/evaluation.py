"""The numbers of an SAE on a range of stored rows."""

from ..store.reader import ActivationArray
from .metrics import ReconstructionMetrics, ReconstructionResult
from .models import SparseAutoencoder

_BATCH = 1024


def evaluate(sae: SparseAutoencoder, activations: ActivationArray, start: int, stop: int) -> ReconstructionResult:
    """Reconstruction and sparsity on positions `[start, stop)`, in a memory that does not grow with them."""
    metrics = ReconstructionMetrics(sae.d_in, sae.d_sae)
    for first in range(start, stop, _BATCH):
        stored = activations.read_positions(first, min(stop, first + _BATCH))
        x = activations.tensor(stored).to(sae.device).float()
        f = sae.encode_sparse(x)
        metrics.update(x, sae.decode_sparse(f), f)
    return metrics.result()

"""SAE variants, one a file."""

from .base import SparseAutoencoder, load_sae
from .relu import ReluSae
from .topk import TopKSae

__all__ = ["ReluSae", "SparseAutoencoder", "TopKSae", "load_sae"]

"""SAE variants, one a file."""

from .base import SparseAutoencoder, load_sae
from .batchtopk import BatchTopKSae
from .gated import GatedSae
from .jumprelu import JumpReluSae
from .matryoshka import MatryoshkaSae
from .relu import ReluSae
from .topk import TopKSae

__all__ = [
    "BatchTopKSae",
    "GatedSae",
    "JumpReluSae",
    "MatryoshkaSae",
    "ReluSae",
    "SparseAutoencoder",
    "TopKSae",
    "load_sae",
]

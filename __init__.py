"""Thresher: the visual concepts inside CLIP vision transformers, found with sparse autoencoders.

The public API is loaded on first use, so that `import thresher` costs neither torch nor zarr.
"""

from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .store.reader import ActivationStore, open_store
    from .train.activation_loader import ActivationLoader
    from .train.models import SparseAutoencoder, load_sae

__all__ = ["ActivationLoader", "ActivationStore", "SparseAutoencoder", "__version__", "load_sae", "open_store"]

_HOME = {
    "ActivationStore": "store.reader",
    "open_store": "store.reader",
    "ActivationLoader": "train.activation_loader",
    "SparseAutoencoder": "train.models",
    "load_sae": "train.models",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)

"""Thresher: the visual concepts inside CLIP vision transformers, found with sparse autoencoders.

The public API is loaded on first use, so that `import thresher` costs neither torch nor zarr.
"""

from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .analysis.classes import Classes, classes
    from .analysis.classes_options import ClassesOptions
    from .analysis.evaluate import Evaluation, evaluate
    from .analysis.evaluate_options import EvaluateOptions
    from .analysis.fidelity import FidelityResult, evaluate_fidelity
    from .analysis.naming.name import NameResult, name
    from .analysis.naming.options import NameOptions
    from .analysis.notebook import open_run
    from .analysis.stored_statistics import StoredStatistics, open_statistics
    from .analysis.train_sae import train_sae
    from .analysis.visualising.options import VisualiseOptions
    from .analysis.visualising.visualise import VisualiseResult, visualise
    from .harvest.splice import splice
    from .harvest.vision import Tower, load_clip, load_tower
    from .store.format import Site
    from .store.reader import ActivationStore, open_store
    from .train.activation_loader import ActivationLoader
    from .train.models import SparseAutoencoder, load_sae
    from .train.options import TrainOptions
    from .train.outcome import TrainResult
    from .train.run_dir import Run

__all__ = [
    "ActivationLoader",
    "ActivationStore",
    "Classes",
    "ClassesOptions",
    "EvaluateOptions",
    "Evaluation",
    "FidelityResult",
    "NameOptions",
    "NameResult",
    "Run",
    "Site",
    "SparseAutoencoder",
    "StoredStatistics",
    "Tower",
    "TrainOptions",
    "TrainResult",
    "VisualiseOptions",
    "VisualiseResult",
    "__version__",
    "classes",
    "evaluate",
    "evaluate_fidelity",
    "load_clip",
    "load_sae",
    "load_tower",
    "name",
    "open_run",
    "open_statistics",
    "open_store",
    "splice",
    "train_sae",
    "visualise",
]

_NAMES_OF = {
    "analysis.classes": ("Classes", "classes"),
    "analysis.classes_options": ("ClassesOptions",),
    "analysis.evaluate": ("Evaluation", "evaluate"),
    "analysis.evaluate_options": ("EvaluateOptions",),
    "analysis.fidelity": ("FidelityResult", "evaluate_fidelity"),
    "analysis.naming.name": ("NameResult", "name"),
    "analysis.naming.options": ("NameOptions",),
    "analysis.notebook": ("open_run",),
    "analysis.stored_statistics": ("StoredStatistics", "open_statistics"),
    "analysis.train_sae": ("train_sae",),
    "analysis.visualising.options": ("VisualiseOptions",),
    "analysis.visualising.visualise": ("VisualiseResult", "visualise"),
    "harvest.splice": ("splice",),
    "harvest.vision": ("Tower", "load_clip", "load_tower"),
    "store.format": ("Site",),
    "store.reader": ("ActivationStore", "open_store"),
    "train.activation_loader": ("ActivationLoader",),
    "train.member": ("TrainResult",),
    "train.models": ("SparseAutoencoder", "load_sae"),
    "train.options": ("TrainOptions",),
    "train.run_dir": ("Run",),
}
_HOME = {name: module for module, names in _NAMES_OF.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)

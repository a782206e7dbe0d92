"""The numbers that the post published, and whether a run is of its setting.

Hugo Fry, "Towards Multimodal Interpretability: Learning Sparse Interpretable Features in Vision Transformers", 2024.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ..store.format import Site

SITE = Site(22, "resid_post", "cls")
N_CLASSES = 1000
_MODELS = ("vitl14", "vitl14quickgelu", "openaiclipvitlargepatch14")
_SOME_CLASSES = frozenset(("tench", "goldfish"))  # the first two of ImageNet-1k

NUMBERS: Mapping[str, str] = {
    "l0": "26",
    "max_l0": "6,458 (at expansion 16)",
    "normalized_mse": "0.0027",
    "l1": "13.9",
    "explained_energy": "86 %",
    "n_dead": "0 of 65,536 over 524,288 images",
    "uld": "two clusters, also at expansion 16",
    "coherence": "“very high”",
    "contrastive_loss_original": "1.895",
    "contrastive_loss_sae": "1.775",
    "chance_cosine": "0.08 to 0.14",
    "share_above_chance": "about half",
    "neurons_per_feature": "most below 5",
    "earlier_blocks": "none",
}
"""What stands beside ours. Its explained variance is not centred: it belongs beside our explained energy."""


def differences(provenance: Mapping[str, Any], site: Site | None, label_names: Sequence[str] | None) -> list[str]:
    """In what a run is not of the post's setting: CLIP ViT-L/14, layer 22 (0-based), CLS, ImageNet-1k.

    Empty where it is, so that its numbers may stand beside the post's.

    Parameters
    ----------
    provenance
        Of the run's store, as JSON.
    label_names
        Of its classes; None where unknown.
    """
    found = []
    model = "".join(c for c in str(provenance.get("model", "")).lower() if c.isalnum())
    if model not in _MODELS:
        found.append(f"the model is {provenance.get('model')}, not CLIP ViT-L/14")
    elif not _may_be_openai(provenance):
        found.append(f"the weights are {provenance.get('pretrained')}, not openai's")
    if site is None or (site.layer, site.site) != (SITE.layer, SITE.site):
        found.append(f"the site is {_of(site)}, not resid_post of layer 22 (0-based)")
    if site is not None and site.token != SITE.token:
        found.append(f"the token is {site.token}, not the class token")
    if not label_names or len(label_names) != N_CLASSES or not {n.lower() for n in label_names} >= _SOME_CLASSES:
        classes = f"of {len(label_names):,} classes" if label_names else "without class names"
        found.append(f"the images are {classes}, not ImageNet-1k's")
    return found


def _may_be_openai(provenance: Mapping[str, Any]) -> bool:
    """By their tag, or a file of weights for a tower with openai's activation function."""
    pretrained = str(provenance.get("pretrained"))
    is_file = pretrained.endswith((".pt", ".pth", ".bin", ".safetensors"))
    return pretrained == "openai" or (is_file and provenance.get("quick_gelu") is True)


def _of(site: Site | None) -> str:
    return "unknown" if site is None else f"{site.site} of layer {site.layer} (0-based)"

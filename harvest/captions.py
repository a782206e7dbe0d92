"""Captions of classes, and what a CLIP model's text tower makes of them.

Shapes: n captions, e the length of an embedding.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from .hub import first_line, quiet_logging
from .vision import LoadedClip
from .weights import CONFIG_NAME, ModelSource

CAPTION = "A photo of a {}."
"""The post's caption of a class."""

_CAPTIONS_AT_ONCE = 256
_DEFAULT_VOCABULARY = 49_408  # open_clip's, where a config does not say


def class_captions(names: Sequence[str], template: str = CAPTION) -> list[str]:
    """Caption of each class; an underscore in a name reads as a space.

    Raises
    ------
    ValueError
        When the template has no `{}`, or several.
    """
    if template.count("{}") != 1:
        raise ValueError(f"caption {template!r} must hold {{}} once, where the class's name goes.")
    return [template.replace("{}", name.replace("_", " ")) for name in names]


def embed_captions(clip: LoadedClip, captions: Sequence[str], device: torch.device | str = "cpu") -> Tensor:
    """Unit text embeddings `(n, e)`, float32, on the CPU.

    Raises
    ------
    ValueError
        When the model's tokenizer cannot be had, or is not the one that its text tower was trained with.
    """
    tokenize = _tokenizer(clip.source)
    parts = []
    clip.model.to(device)
    with torch.no_grad():  # not inference_mode: the model stays one that gradients can be taken of
        for start in range(0, len(captions), _CAPTIONS_AT_ONCE):
            tokens = tokenize(list(captions[start : start + _CAPTIONS_AT_ONCE])).to(device)
            with _without_padding(clip.model, tokens) as short:
                parts.append(normalize(clip.model.encode_text(short).float(), dim=-1).cpu())  # type: ignore[operator]
    return torch.cat(parts)


TEMPLATES = ("none", "simple", "openai")
"""Sets of prompt templates: a caption alone; 7, and 80, that open_clip has of CLIP's authors."""


def embed_templates(
    clip: LoadedClip, names: Sequence[str], templates: str, device: torch.device | str = "cpu"
) -> Tensor:
    """Unit text embeddings `(n, e)` of class names: of each the mean over a set of templates (Radford 2021).

    Parameters
    ----------
    templates
        `simple` or `openai`.
    """
    import open_clip

    fill = {"simple": open_clip.SIMPLE_IMAGENET_TEMPLATES, "openai": open_clip.OPENAI_IMAGENET_TEMPLATES}[templates]
    each = torch.stack([embed_captions(clip, [template(name) for name in names], device) for template in fill])
    return normalize(each.sum(dim=0), dim=-1)


@contextmanager
def _without_padding(model: Any, tokens: Tensor) -> Iterator[Tensor]:
    """Tokens without the columns in which all captions are over, for a text tower made fit for so few.

    CLIP's own text tower sees no later token from an earlier one and reads the last, so padding changes nothing; of the
    77 tokens of its context a short caption has some ten, and the time goes with them. Other towers get all tokens.
    """
    mask = getattr(model, "attn_mask", None)
    if mask is None or getattr(model, "text_pool_type", None) != "argmax" or tokens.shape[1] != len(mask):
        yield tokens
        return
    positions, n = model.positional_embedding, int(tokens.argmax(dim=1).max()) + 1
    model.positional_embedding = nn.Parameter(positions[:n], requires_grad=False)
    model.attn_mask = mask[:n, :n]
    try:
        yield tokens[:, :n]
    finally:
        model.positional_embedding, model.attn_mask = positions, mask


def logit_scale(clip: LoadedClip) -> float:
    """What the model multiplies cosines by: exp of its trained logit scale."""
    return float(clip.model.logit_scale.detach().exp())  # type: ignore[operator]


def _tokenizer(source: ModelSource) -> Callable[[list[str]], Tensor]:
    text: dict[str, Any] = source.config.get("text_cfg") or {}
    try:
        with quiet_logging():
            tokenizer = _open_tokenizer(source, text)
    except (OSError, ImportError, ValueError, RuntimeError) as error:
        raise ValueError(f"the tokenizer of {source.name} cannot be had ({first_line(error)}).") from error
    wanted = int(text.get("vocab_size", _DEFAULT_VOCABULARY))
    found = getattr(tokenizer, "vocab_size", wanted)
    # open_clip takes OpenAI's tokenizer where a config names none; its words would be other words to this tower
    if not text.get("hf_model_name") and not text.get("hf_tokenizer_name") and found != wanted:
        raise ValueError(
            f"the text tower of {source.name} knows {wanted} tokens and its tokenizer makes {found}: put its own "
            "byte-pair merges (bpe_*.txt.gz) beside its config."
        )
    return tokenizer


def _open_tokenizer(source: ModelSource, text: dict[str, Any]) -> Any:
    import open_clip

    folder = source.folder
    if folder is None:
        return open_clip.get_tokenizer(source.name)
    merges = sorted(folder.glob("bpe_*.txt.gz"))
    own = {"bpe_path": str(merges[0])} if merges else {}
    if Path(source.name).is_file() and Path(source.name).name != CONFIG_NAME:
        if text.get("hf_tokenizer_name"):
            raise ValueError(f"give it as a folder that holds {CONFIG_NAME} and the tokenizer's files")
        return open_clip.SimpleTokenizer(context_length=text.get("context_length", 77), **own)
    return open_clip.get_tokenizer(f"local-dir:{folder}", **own)

"""Which model config and checkpoint a `--model` and `--pretrained` stand for, and whether they belong together."""

import difflib
import json
import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .checkpoints import CHECKPOINT_SUFFIXES, own_checkpoint
from .hub import download, first_line, require_hub

RANDOM = "none"
"""The word for random weights in place of a tag."""

EMBEDDED = "quickstart"
"""The word for the small CLIP model that comes with the package."""
_EMBEDDED_FOLDER = Path(__file__).parent / "quickstart" / "model"

CONFIG_NAME = "open_clip_config.json"
_QUICKGELU = "-quickgelu"


@dataclass(frozen=True)
class ModelSource:
    """A model config with the checkpoint that goes with it."""

    name: str
    config: dict[str, Any]
    """open_clip's model config: `embed_dim`, `vision_cfg`, `text_cfg`, `quick_gelu`, ..."""
    preprocessing: dict[str, Any]
    """What the source says of preprocessing; open_clip's defaults hold for the rest."""
    pretrained: str
    """Tag, checkpoint path, or `none`."""
    checkpoint: Path | None
    """None: random weights."""
    notes: list[str] = field(default_factory=list)

    @property
    def quick_gelu(self) -> bool:
        """Whether the config's activation function is QuickGELU, x * sigmoid(1.702 x), and not GELU."""
        return bool(self.config.get("quick_gelu", False))

    @property
    def folder(self) -> Path | None:
        """Where its config lies; None of a name that open_clip or a hub knows."""
        if self.name == EMBEDDED:
            return _EMBEDDED_FOLDER
        path = Path(self.name)
        return path if path.is_dir() else path.parent if path.is_file() else None


def resolve_model(model: str, pretrained: str | None, *, allow_activation_mismatch: bool = False) -> ModelSource:
    """Find the config and the checkpoint of a model, downloading weights of a tag where they are not cached.

    Parameters
    ----------
    model
        An open_clip name, `hf-hub:org/repo`, the path of a config (JSON file, or folder with
        `open_clip_config.json`), or `quickstart` for the embedded model.
    pretrained
        A tag, a checkpoint path, `none`, or None for the default: `openai` with a name, its own checkpoint with a
        folder. What a `ModelSource` says of its own will always do.
    allow_activation_mismatch
        Accept weights trained with the other activation function.

    Raises
    ------
    ValueError
        On an unknown model or tag, a tower that is no plain vision transformer, or an activation function that does not
        match the weights.
    FileNotFoundError
        When a config or checkpoint path does not exist.
    ConnectionError
        When weights must be downloaded and cannot be.
    """
    import open_clip

    if model == EMBEDDED:
        given = None if pretrained == EMBEDDED else pretrained
        source = _from_config(_EMBEDDED_FOLDER, given, allow_activation_mismatch)
        return replace(source, name=EMBEDDED, pretrained=pretrained or EMBEDDED)
    if model.startswith("hf-hub:"):
        return _from_hub(model, pretrained)
    path = Path(model.removeprefix("local-dir:"))
    if path.is_dir() or path.is_file():
        return _absolute(_from_config(path, pretrained, allow_activation_mismatch), path)
    if os.sep in model or model.endswith(".json") or model.startswith("local-dir:"):
        raise FileNotFoundError(f"model {path} does not exist; give an open_clip name or a config's path.")
    config = open_clip.get_model_config(model)
    if config is None:
        raise ValueError(f"open_clip has no model {model!r}.{_close(model, open_clip.list_models())}")
    check_tower(model, config)
    pretrained = "openai" if pretrained is None else pretrained
    if pretrained == RANDOM:
        return ModelSource(model, config, {}, RANDOM, None)
    if open_clip.is_pretrained_cfg(model, pretrained):
        tag = open_clip.get_pretrained_cfg(model, pretrained)
        _check_activation(model, config, bool(tag.get("quick_gelu")), f"{pretrained}'s", allow_activation_mismatch)
        return ModelSource(model, config, tag, pretrained, download(model, pretrained, tag))
    if Path(pretrained).is_file():
        return _absolute(_with_checkpoint(model, config, {}, Path(pretrained), allow_activation_mismatch))
    raise _no_such_weights(model, pretrained)


def check_tower(model: str, config: dict[str, Any]) -> None:
    """Require open_clip's own vision transformer, the only tower with residual blocks and a class token to read.

    Raises
    ------
    ValueError
        On another tower.
    """
    vision = config.get("vision_cfg") or {}
    kind = None
    if vision.get("timm_model_name"):
        kind = f"timm's {vision['timm_model_name']}"
    elif isinstance(vision.get("layers"), list | tuple):
        kind = "a ResNet"
    if kind is not None:
        raise ValueError(
            f"the image tower of {model} is {kind}; harvest reads open_clip's vision transformers (ViT-...)."
        )


def _from_config(path: Path, pretrained: str | None, allow_mismatch: bool) -> ModelSource:
    config_path = path / CONFIG_NAME if path.is_dir() else path
    if not config_path.is_file():
        raise FileNotFoundError(f"{path} has no {CONFIG_NAME}; a model folder holds one beside its checkpoint.")
    config, preprocessing = _read_config(config_path)
    check_tower(str(path), config)
    if pretrained == RANDOM:
        return ModelSource(str(path), config, preprocessing, RANDOM, None)
    if pretrained is None:
        if config_path.name != CONFIG_NAME:
            raise ValueError(
                f"{path} is a config without weights; name a checkpoint with --pretrained PATH (or `none`)."
            )
        return ModelSource(str(path), config, preprocessing, *own_checkpoint(config_path.parent))
    if not Path(pretrained).is_file():
        raise FileNotFoundError(
            f"pretrained {pretrained!r} is no file. With the config {path} it is a checkpoint's path or `none`; "
            "tags go with open_clip's model names."
        )
    return _with_checkpoint(str(path), config, preprocessing, Path(pretrained), allow_mismatch)


def _absolute(source: ModelSource, config: Path | None = None) -> ModelSource:
    """The same with its paths absolute, so that a store's provenance leads to the model from any folder."""
    name = source.name if config is None else os.path.abspath(config)
    if source.checkpoint is None:
        return replace(source, name=name)
    return replace(source, name=name, pretrained=os.path.abspath(source.checkpoint))


def _from_hub(model: str, pretrained: str | None) -> ModelSource:
    from open_clip.pretrained import download_pretrained_from_hf

    repo = model.removeprefix("hf-hub:")
    if pretrained not in (None, RANDOM, repo):
        raise ValueError(
            f"pretrained {pretrained!r} does not go with {model}, which brings its own weights; leave it out."
        )
    try:
        require_hub(repo, CONFIG_NAME)
        config, preprocessing = _read_config(Path(download_pretrained_from_hf(repo, filename=CONFIG_NAME)))
        check_tower(model, config)
        if pretrained == RANDOM:
            return ModelSource(model, config, preprocessing, RANDOM, None)
        return ModelSource(model, config, preprocessing, repo, Path(download_pretrained_from_hf(repo)))
    except OSError as error:
        raise ConnectionError(
            f"{repo} could not be fetched from the Hugging Face hub ({first_line(error)}). On a box without network, "
            f"copy its {CONFIG_NAME} and checkpoint into a folder and give that folder as --model."
        ) from error


def _with_checkpoint(
    name: str, config: dict[str, Any], preprocessing: dict[str, Any], checkpoint: Path, allow_mismatch: bool
) -> ModelSource:
    """A checkpoint that the user brought, held against all that is known of it."""
    notes = []
    known = _recognise(checkpoint)
    if known is None:
        if not preprocessing and not config.get("quick_gelu"):
            notes.append(
                f"{checkpoint} does not say how it was trained: {name}'s GELU and OpenAI's preprocessing are taken."
            )
    else:
        quick_gelu, said = known
        if quick_gelu is not None:
            _check_activation(name, config, quick_gelu, f"{checkpoint.name}'s", allow_mismatch)
        preprocessing = preprocessing or said
    return ModelSource(name, config, preprocessing, str(checkpoint), checkpoint, notes)


def _recognise(checkpoint: Path) -> tuple[bool | None, dict[str, Any]] | None:
    """Activation function and preprocessing of a checkpoint, by the config beside it or by its published name."""
    import open_clip

    sidecar = checkpoint.parent / CONFIG_NAME
    if sidecar.is_file():
        config, preprocessing = _read_config(sidecar)
        return bool(config.get("quick_gelu", False)), preprocessing
    places = "/".join(checkpoint.resolve().parts[-5:]) + "/" + "/".join(checkpoint.absolute().parts[-5:])
    for model, tag_name in open_clip.list_pretrained():
        tag = open_clip.get_pretrained_cfg(model, tag_name)
        file_name = os.path.basename(tag.get("url", ""))
        repo = tag.get("hf_hub", "").split("/")[1] if "/" in tag.get("hf_hub", "") else ""
        if checkpoint.name == file_name or (repo and re.search(rf"(^|/|--){re.escape(repo)}(/|$|\.\w+($|/))", places)):
            return bool(tag.get("quick_gelu")), tag
    return None


def _check_activation(model: str, config: dict[str, Any], quick_gelu: bool, whose: str, allow_mismatch: bool) -> None:
    import open_clip

    if bool(config.get("quick_gelu", False)) == quick_gelu or allow_mismatch:
        return
    names = {True: "QuickGELU", False: "GELU"}
    other = model.removesuffix(_QUICKGELU) if model.endswith(_QUICKGELU) else model + _QUICKGELU
    remedy = (
        f"use --model {other}" if other in open_clip.list_models() else f'set "quick_gelu" to {str(quick_gelu).lower()}'
    )
    raise ValueError(
        f"{whose} weights were trained with {names[quick_gelu]} and {model} computes {names[not quick_gelu]}: "
        f"{remedy}, or insist with --allow-activation-mismatch."
    )


def _read_config(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        config = said.get("model_cfg", said)
        missing = [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in config]
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} is no open_clip model config ({first_line(error)}).") from error
    if missing:
        raise ValueError(f"{path} is no open_clip model config: it has no {', '.join(missing)}.")
    return config, said.get("preprocess_cfg") or {}


def _no_such_weights(model: str, pretrained: str) -> Exception:
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(model)
    if os.sep in pretrained or pretrained.endswith(CHECKPOINT_SUFFIXES):
        return FileNotFoundError(f"checkpoint {pretrained} does not exist.")
    others = [name for name in open_clip.list_pretrained_models_by_tag(pretrained) if name.startswith(model[:5])]
    elsewhere = f" That tag belongs to {', '.join(others[:4])}." if others else ""
    return ValueError(
        f"{model} has no weights {pretrained!r}; its tags are: {', '.join(tags) or 'none'}.{elsewhere} "
        "A checkpoint's path or `none` will also do."
    )


def _close(name: str, names: list[str]) -> str:
    by_case = {known.lower(): known for known in names}
    close = [by_case[found] for found in difflib.get_close_matches(name.lower(), by_case, n=4, cutoff=0.5)]
    return f" Close names: {', '.join(close)}." if close else " `open_clip.list_models()` lists its names."

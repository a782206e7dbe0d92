"""Which model config and checkpoint a `--model` and `--pretrained` stand for, and whether they belong together."""

import difflib
import json
import logging
import os
import re
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

RANDOM = "none"
"""The word for random weights in place of a tag."""

EMBEDDED = "quickstart"
"""The word for the small CLIP model that comes with the package."""
_EMBEDDED_FOLDER = Path(__file__).parent / "quickstart" / "model"

_CONFIG_NAME = "open_clip_config.json"
# open_clip's own order of preference in a folder
_CHECKPOINT_NAMES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)
_CHECKPOINT_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
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


def resolve_model(model: str, pretrained: str | None, *, allow_activation_mismatch: bool = False) -> ModelSource:
    """Find the config and the checkpoint of a model, downloading weights of a tag where they are not cached.

    Parameters
    ----------
    model
        An open_clip name, `hf-hub:org/repo`, the path of a config (JSON file, or folder with
        `open_clip_config.json`), or `quickstart` for the embedded model.
    pretrained
        A tag, a checkpoint path, `none`, or None for the default: `openai` with a name, its own checkpoint with a
        folder.
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
        source = _from_config(_EMBEDDED_FOLDER, pretrained, allow_activation_mismatch)
        return replace(source, name=EMBEDDED, pretrained=pretrained or EMBEDDED)
    if model.startswith("hf-hub:"):
        return _from_hub(model, pretrained)
    path = Path(model.removeprefix("local-dir:"))
    if path.is_dir() or path.is_file():
        return _from_config(path, pretrained, allow_activation_mismatch)
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
        return ModelSource(model, config, tag, pretrained, _download(model, pretrained, tag))
    if Path(pretrained).is_file():
        return _with_checkpoint(model, config, {}, Path(pretrained), allow_activation_mismatch)
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


def checkpoint_shapes(path: Path) -> dict[str, torch.Size]:
    """Shape of every tensor in a checkpoint.

    Raises
    ------
    ValueError
        When the file is no checkpoint, or one that only executing code from it could read.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, framework="pt") as file:
                shapes = {name: torch.Size(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
            state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else {}
            shapes = {name: value.shape for name, value in state.items() if isinstance(value, torch.Tensor)}
    except OSError:
        raise
    except Exception as error:  # the readers raise many types on bytes that are no checkpoint
        if "TorchScript" in str(error):
            raise ValueError(
                f"{path} is a TorchScript archive (OpenAI's own release form), which is a program. Bring the same "
                "weights as safetensors instead, such as open_clip_model.safetensors of the model's Hugging Face page."
            ) from error
        raise ValueError(f"{path} is no checkpoint that can be read ({_first_line(error)}).") from error
    if not shapes:
        raise ValueError(f"{path} holds no tensors: it is no checkpoint of a model.")
    return {name.removeprefix("module."): shape for name, shape in shapes.items()}


def load_error(path: Path, model: str, error: RuntimeError) -> ValueError:
    """Torch's many lines about weights that do not fit a model, as one."""
    text = str(error)
    found = []
    for what, pattern in (
        ("missing", r"Missing key\(s\) in state_dict: (.*)"),
        ("unexpected", r"Unexpected key\(s\) in state_dict: (.*)"),
    ):
        if match := re.search(pattern, text):
            names = re.findall(r'"([^"]+)"', match[1])
            found.append(f"{len(names)} tensors {what} (first: {names[0]})")
    if sizes := re.findall(
        r"size mismatch for (\S+): copying a param with shape torch\.Size\((\[.*?\])\).*? is torch\.Size\((\[.*?\])\)",
        text,
    ):
        name, theirs, ours = sizes[0]
        found.append(f"{len(sizes)} of another shape (first: {name} is {theirs}, the model's is {ours})")
    return ValueError(f"{path} does not hold the weights of {model}: {'; '.join(found) or _first_line(error)}.")


def _from_config(path: Path, pretrained: str | None, allow_mismatch: bool) -> ModelSource:
    config_path = path / _CONFIG_NAME if path.is_dir() else path
    if not config_path.is_file():
        raise FileNotFoundError(f"{path} has no {_CONFIG_NAME}; a model folder holds one beside its checkpoint.")
    config, preprocessing = _read_config(config_path)
    check_tower(str(path), config)
    if pretrained == RANDOM:
        return ModelSource(str(path), config, preprocessing, RANDOM, None)
    if pretrained is None:
        if config_path.name != _CONFIG_NAME:
            raise ValueError(
                f"{path} is a config without weights; name a checkpoint with --pretrained PATH (or `none`)."
            )
        return ModelSource(str(path), config, preprocessing, *_own_checkpoint(config_path.parent))
    if not Path(pretrained).is_file():
        raise FileNotFoundError(
            f"pretrained {pretrained!r} is no file. With the config {path} it is a checkpoint's path or `none`; "
            "tags go with open_clip's model names."
        )
    return _with_checkpoint(str(path), config, preprocessing, Path(pretrained), allow_mismatch)


def _own_checkpoint(folder: Path) -> tuple[str, Path]:
    found = sorted(p for p in folder.iterdir() if p.suffix in _CHECKPOINT_SUFFIXES)
    preferred = [folder / name for name in _CHECKPOINT_NAMES if folder / name in found]
    if not found:
        raise FileNotFoundError(
            f"{folder} holds no checkpoint ({', '.join(_CHECKPOINT_SUFFIXES)}); give --pretrained PATH."
        )
    if not preferred and len(found) > 1:
        names = ", ".join(p.name for p in found)
        raise ValueError(f"{folder} holds several checkpoints ({names}); choose one with --pretrained PATH.")
    chosen = (preferred or found)[0]
    return str(chosen), chosen


def _from_hub(model: str, pretrained: str | None) -> ModelSource:
    from open_clip.pretrained import download_pretrained_from_hf

    if pretrained not in (None, RANDOM):
        raise ValueError(
            f"pretrained {pretrained!r} does not go with {model}, which brings its own weights; leave it out."
        )
    repo = model.removeprefix("hf-hub:")
    try:
        _require_hub(repo, _CONFIG_NAME)
        config, preprocessing = _read_config(Path(download_pretrained_from_hf(repo, filename=_CONFIG_NAME)))
        check_tower(model, config)
        if pretrained == RANDOM:
            return ModelSource(model, config, preprocessing, RANDOM, None)
        return ModelSource(model, config, preprocessing, repo, Path(download_pretrained_from_hf(repo)))
    except OSError as error:
        raise ConnectionError(
            f"{repo} could not be fetched from the Hugging Face hub ({_first_line(error)}). On a box without network, "
            f"copy its {_CONFIG_NAME} and checkpoint into a folder and give that folder as --model."
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

    sidecar = checkpoint.parent / _CONFIG_NAME
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
        raise ValueError(f"{path} is no open_clip model config ({_first_line(error)}).") from error
    if missing:
        raise ValueError(f"{path} is no open_clip model config: it has no {', '.join(missing)}.")
    return config, said.get("preprocess_cfg") or {}


def _download(model: str, pretrained: str, tag: dict[str, Any]) -> Path:
    import open_clip

    try:
        repo, _, file_name = tag.get("hf_hub", "").rpartition("/")
        _require_hub(repo, file_name)
        with quiet_logging():
            return Path(open_clip.download_pretrained(tag))
    except Exception as error:  # hub and HTTP clients each raise their own types
        repo = tag.get("hf_hub", "").strip("/")
        source = f"https://huggingface.co/{repo}" if repo else tag.get("url", "its page")
        raise ConnectionError(
            f"the weights {pretrained} of {model} could not be fetched ({_first_line(error)}). On a box without "
            f"network, download them elsewhere from {source} and pass the file's path as --pretrained."
        ) from error


def _require_hub(repo: str, file_name: str) -> None:
    """Fail at once where the hub cannot be reached and nothing is cached: its own client tries for 45 seconds.

    Raises
    ------
    OSError
        As the network gives it.
    """
    from huggingface_hub import constants, try_to_load_from_cache
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

    names = [file_name] if file_name else [HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME]
    if not repo or any(isinstance(try_to_load_from_cache(repo, name), str) for name in names):
        return
    if urllib.request.getproxies() or constants.HF_HUB_OFFLINE:
        return  # a proxy resolves names itself; offline mode fails at once by itself
    url = urllib.parse.urlsplit(constants.ENDPOINT)
    assert url.hostname is not None
    socket.create_connection((url.hostname, url.port or 443), timeout=5).close()


@contextmanager
def quiet_logging() -> Iterator[None]:
    """Keep open_clip from writing to, and from configuring, the root logger, and hub clients from reporting retries."""
    root = logging.getLogger()
    handler = logging.NullHandler()
    before = root.manager.disable
    root.addHandler(handler)
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
        root.removeHandler(handler)


def _no_such_weights(model: str, pretrained: str) -> Exception:
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(model)
    if os.sep in pretrained or pretrained.endswith(_CHECKPOINT_SUFFIXES):
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


def _is_zip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"PK"  # torch's present format; only that can be mapped


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__

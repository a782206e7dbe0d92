"""Checkpoint files: which of a folder's, what they hold, why they do not fit a model."""

import pickle
import re
import warnings
from pathlib import Path

import torch

from .hub import first_line

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
CHECKPOINT_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")


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
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's of an archive that it then refuses: the error says it better
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
        # of a pickle torch says at length how to run the code in it
        # and of bytes that it took for a pickle, a number or nothing
        is_foreign = isinstance(error, pickle.UnpicklingError | LookupError | EOFError)
        reason = "it is not a file of tensors alone" if is_foreign else first_line(error)
        raise ValueError(f"{path} is no checkpoint that can be read ({reason}).") from error
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
    return ValueError(f"{path} does not hold the weights of {model}: {'; '.join(found) or first_line(error)}.")


def own_checkpoint(folder: Path) -> tuple[str, Path]:
    """The checkpoint of a model folder, also as a string.

    Raises
    ------
    FileNotFoundError
        When it holds none.
    ValueError
        When it holds several and none by a name that open_clip prefers.
    """
    found = sorted(p for p in folder.iterdir() if p.suffix in CHECKPOINT_SUFFIXES)
    preferred = [folder / name for name in _CHECKPOINT_NAMES if folder / name in found]
    if not found:
        raise FileNotFoundError(
            f"{folder} holds no checkpoint ({', '.join(CHECKPOINT_SUFFIXES)}); give --pretrained PATH."
        )
    if not preferred and len(found) > 1:
        names = ", ".join(p.name for p in found)
        raise ValueError(f"{folder} holds several checkpoints ({names}); choose one with --pretrained PATH.")
    chosen = (preferred or found)[0]
    return str(chosen), chosen


def _is_zip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"PK"  # torch's present format; only that can be mapped

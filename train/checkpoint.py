"""The checkpoint of a run: all that a step depends on, in one file that is whole or not there.

What is drawn at random after the first weights follows from the seed and the step, and the loader's place is the step,
so weights, Adam's moments, the dead counters, the scaling, the adapting coefficient and the step are the whole state.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..store.errors import DamagedStoreError
from ..store.files import sync_folder
from .models import SparseAutoencoder
from .optimiser import UnitNormAdam
from .penalty import SparsityPenalty
from .ranks import Ranks

_METADATA_KEY = "thresher"
_FORMAT_VERSION = 2


@dataclass
class TrainingState:
    """What training changes.

    Parameters
    ----------
    sae, adam
        Weights and the optimiser's moments.
    rows_since_fired
        `(d_sae,)` int64: training rows since each feature was last active.
    penalty
        The coefficient of the sparsity penalty.
    step
        Steps taken.
    """

    sae: SparseAutoencoder
    adam: UnitNormAdam
    rows_since_fired: Tensor
    penalty: SparsityPenalty
    step: int = 0

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of it by name; the weights feature-major, as they are held."""
        return {
            **{f"sae.{name}": tensor for name, tensor in self.sae.held().items()},
            **self.adam.tensors(),
            **self.penalty.tensors(),
            "rows_since_fired": self.rows_since_fired,
        }

    def take_first(self, ranks: Ranks) -> None:
        """Replace it by that of the first process."""
        steps = torch.tensor([self.step, self.adam.n_steps])
        ranks.take_first([steps, *self.tensors().values()])
        self.step, self.adam.n_steps = steps.tolist()


def save_checkpoint(folder: Path, state: TrainingState) -> Path:
    """Write the state, then remove older ones: at every moment one whole checkpoint stands.

    `OSError` where it cannot be written; the checkpoint before it then stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{state.step:010d}.safetensors"
    temporary = folder / ".checkpoint.tmp"
    tensors = {name: tensor.cpu() for name, tensor in state.tensors().items()}
    record = {
        **{"format_version": _FORMAT_VERSION, "step": state.step, "adam_steps": state.adam.n_steps},
        "crc32c": _crc32c(tensors),
    }
    try:
        save_file(tensors, temporary, {_METADATA_KEY: json.dumps(record, sort_keys=True)})
    except SafetensorError as error:  # how safetensors reports a full disk
        raise OSError(f"{path} could not be written: {error}. Make room, then go on with --resume.") from error
    descriptor = os.open(temporary, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(temporary, path)
    sync_folder(folder)
    for other in folder.iterdir():  # older checkpoints, and what safetensors was killed while writing
        if other != path:
            other.unlink()
    return path


def _crc32c(tensors: dict[str, Tensor]) -> int:
    """Of the bytes of all tensors, in order of their names."""
    checksum = 0
    for _, tensor in sorted(tensors.items()):
        checksum = google_crc32c.extend(checksum, tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return checksum


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the most steps, None where there is none."""
    return max(folder.glob("step-*.safetensors"), default=None, key=lambda path: path.name)


@torch.no_grad()
def load_checkpoint(path: Path, state: TrainingState, n_steps: int) -> None:
    """Set `state` to what the file holds, in place; `n_steps` are those of the whole run.

    In place, since a tensor mapped from a file may lie at another alignment, by which matmuls choose other kernels.
    `DamagedStoreError` where the file is damaged, of another version or of another SAE.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            record = json.loads((file.metadata() or {}).get(_METADATA_KEY, "{}"))
            version, *steps = (record[name] for name in ("format_version", "step", "adam_steps"))
            if version != _FORMAT_VERSION:
                raise ValueError(f"it is of version {version}, and this thresher reads {_FORMAT_VERSION}")
            if not all(isinstance(n, int) and 0 <= n <= n_steps for n in steps):
                raise ValueError(f"it is of step {steps[0]}, and the run has {n_steps}")
            found = {name: file.get_tensor(name) for name in state.tensors()}
            for name, tensor in state.tensors().items():
                saved = found[name]
                if (saved.shape, saved.dtype) != (tensor.shape, tensor.dtype):
                    was, wanted = (f"{tuple(t.shape)} {t.dtype}" for t in (saved, tensor))
                    raise ValueError(f"{name} is {was}, not {wanted}")
            if _crc32c(found) != record["crc32c"]:
                raise ValueError("its bytes are not those that were written: their checksum differs")
            for name, tensor in state.tensors().items():
                tensor.copy_(found[name])
            state.step, state.adam.n_steps = steps
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        reason = f"it holds no {error}" if isinstance(error, KeyError) else error
        raise DamagedStoreError(
            f"{path} cannot be gone on from ({reason}): delete it to start from the beginning with --resume."
        ) from error
    except OSError as error:  # safetensors names no file
        raise OSError(f"{path} cannot be read: {error}") from error

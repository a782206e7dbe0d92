"""What a run needs of the machine: its device, memory and disk."""

from pathlib import Path

import torch

from ..progress import format_bytes
from ..store.errors import StoreError
from ..store.files import free_bytes


def choose_device(name: str) -> torch.device:
    """The device of a name; `auto` is CUDA, else MPS, else the CPU. `ValueError` where this machine lacks it."""
    has_mps = torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device {name} is none that torch knows: auto, cpu, cuda, cuda:N or mps") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices; see `doctor`")
    if device.type == "mps" and not has_mps:
        raise ValueError(f"--device {name}: this machine has no MPS device; see `doctor`")
    return device


def memory_bytes(d_in: int, d_sae: int, batch_size: int) -> int:
    """Memory of training: weights, two moments and gradients, two (batch, d_sae) buffers, a few (batch, d_in)."""
    return 4 * (4 * 2 * d_in * d_sae + 2 * batch_size * d_sae + 8 * batch_size * d_in)


def disk_bytes(d_in: int, d_sae: int) -> int:
    """Most that a run directory holds while it trains: weights, and two checkpoints of weights and two moments."""
    return 4 * 2 * d_in * d_sae * (1 + 2 * 3)


def check_space(run_path: Path, d_in: int, d_sae: int) -> None:
    """Raise `StoreError` where the disk does not hold the run."""
    needed, free = disk_bytes(d_in, d_sae), free_bytes(run_path)
    if needed > free:
        raise StoreError(
            f"{run_path} needs {format_bytes(needed)} while training, {format_bytes(free)} are free: "
            "make room, or lower --expansion."
        )

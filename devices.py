"""The torch device that a word of the command line stands for."""

import torch


def choose_device(name: str) -> torch.device:
    """The device of a name: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`; `auto` is CUDA, else MPS, else the CPU.

    Raises
    ------
    ValueError
        When it names another device, or this machine has none.
    """
    has_mps = torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda", "mps"):  # torch knows more, such as meta, which holds no numbers
        raise ValueError(f"--device {name} is none of auto, cpu, cuda, cuda:N and mps")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices; see `doctor`")
    if device.type == "mps" and not has_mps:
        raise ValueError(f"--device {name}: this machine has no MPS device; see `doctor`")
    return device

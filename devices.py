"""The torch device that a word of the command line stands for."""

import torch


def choose_device(name: str) -> torch.device:
    """The device of a name: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`; `auto` is CUDA, else MPS, else the CPU.

    Raises
    ------
    ValueError
        When torch knows no such device, or this machine has none.
    """
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

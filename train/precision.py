"""How exact float32 matmuls are during a training step."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_TORCH_NAMES = {"fp32": "highest", "bf16": "highest", "tf32": "high"}


def check_precision(precision: str, device: torch.device) -> None:
    """Raise `ValueError` where a device has no such precision."""
    if precision == "tf32" and device.type != "cuda":
        raise ValueError(f"--precision tf32 is of CUDA devices, and this run is on {device}: leave it out")


@contextmanager
def float32_matmuls(precision: str) -> Iterator[None]:
    """Let CUDA take float32 matmuls in TF32 where `precision` is `tf32`, and in full otherwise; as before afterwards.

    torch keeps one setting for the process: a program that trains keeps its own for the rest.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(_TORCH_NAMES[precision])
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)

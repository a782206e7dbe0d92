"""Says what this machine has, what will be slow on it, what is impossible."""

import importlib.metadata
import os
import platform
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from ..progress import format_bytes, format_rate, format_s
from ..store.files import free_bytes

PACKAGES = (
    *("torch", "torchvision", "open_clip_torch", "zarr", "numcodecs", "google-crc32c", "dask", "distributed", "numpy"),
    *("pillow", "safetensors", "matplotlib", "click", "rich"),
)
_VIT_L_14_FLOP = 162e9  # one image of 224 px through ViT-L/14: 2 x 81 GMAC
_IMAGENET = 1_281_167


@dataclass(frozen=True)
class Finding:
    """One thing found: `level` is `ok`, `slow` or `missing`."""

    level: str
    what: str
    detail: str


def examine(folder: str | Path = ".") -> list[Finding]:
    """Look at this machine.

    Parameters
    ----------
    folder
        Where stores and runs would be written.
    """
    findings = [
        Finding("ok", "Python", f"{platform.python_version()} at {sys.executable}"),
        *(_package(name) for name in PACKAGES),
        _cores(),
        _memory(),
        _disk(Path(folder)),
    ]
    findings += _devices()
    browser = next((p for name in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(name))), None)
    findings.append(
        Finding("ok", "browser for page tests", browser)
        if browser
        else Finding("missing", "browser for page tests", "no Chromium found; only the tests of web pages need it")
    )
    return findings


def _package(name: str) -> Finding:
    try:
        return Finding("ok", name, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Finding("missing", name, "not installed, though Thresher needs it: install Thresher again")


def _cores() -> Finding:
    n = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Finding("ok" if n > 2 else "slow", "cores", f"{n}; images are decoded by worker processes beside the tower")


def _memory() -> Finding:
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return Finding("ok" if size > 8e9 else "slow", "memory", format_bytes(size))
    return Finding("missing", "memory", "this system does not say how much it has")


def _disk(folder: Path) -> Finding:
    free = free_bytes(folder)
    rows = free / 2048
    detail = f"{format_bytes(free)} free at {folder.absolute()}: {rows / 1e6:,.0f} million rows of ViT-L/14 in float16"
    return Finding("ok" if free > 10e9 else "slow", "disk", detail)


def _devices() -> list[Finding]:
    import torch

    findings = []
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            p = torch.cuda.get_device_properties(i)
            detail = f"{p.name}, {format_bytes(p.total_memory)}, {_speed(torch.device('cuda', i))}"
            findings.append(Finding("ok", f"cuda:{i}", detail))
    else:
        findings.append(Finding("missing", "cuda", "no CUDA device, or this torch has no CUDA"))
    if torch.backends.mps.is_available():
        findings.append(Finding("ok", "mps", _speed(torch.device("mps"))))
    flop_per_s = _flop_per_s(torch.device("cpu"))
    images_per_s = flop_per_s / _VIT_L_14_FLOP
    detail = (
        f"{flop_per_s / 1e9:,.0f} GFLOP/s in fp32 on {_threads(torch.get_num_threads())}: ViT-L-14 at about "
        f"{format_rate(images_per_s)} images/s, ImageNet-1k in {format_s(_IMAGENET / images_per_s)}"
    )
    findings.append(Finding("ok" if images_per_s > 100 else "slow", "cpu", detail))
    return findings


def _threads(n: int) -> str:
    return f"{n} thread" if n == 1 else f"{n} threads"


def _speed(device: object) -> str:
    flop_per_s = _flop_per_s(device)
    images_per_s = flop_per_s / _VIT_L_14_FLOP
    return (
        f"{flop_per_s / 1e12:,.1f} TFLOP/s in fp32: ViT-L-14 at about {format_rate(images_per_s)} images/s, "
        f"ImageNet-1k in {format_s(_IMAGENET / images_per_s)}"
    )


def _flop_per_s(device: object) -> float:
    """Speed of an fp32 matmul, the bound of a tower's forward pass."""
    import torch

    n = 1024
    a = torch.ones(n, n, device=device)  # type: ignore[call-overload]
    best = 0.0
    for _ in range(5):
        start_s = time.perf_counter()
        float((a @ a)[0, 0])  # reading one number waits for the device
        best = max(best, 2 * n**3 / (time.perf_counter() - start_s))
    return best

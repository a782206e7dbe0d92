"""The readers that are compared, each with its environment, its data and what is special to it."""

import os
from dataclasses import dataclass, field
from typing import Any

from .data import D_IN as D_IN
from .environments import Environment

ROWS, BATCH, RUN = 1_048_576, 4096, 64
THREADS = len(os.sched_getaffinity(0)) + 1
"""As many as Thresher's reader takes by default."""
OUR_ARRAY = "layers/22/resid_post/cls"

OURS = Environment("thresher", ())
"""The interpreter that runs the benchmark: Thresher's, which also serves the readers that need numpy alone."""
ZARR = Environment("zarr", ("zarr==3.1.6",))
TENSORSTORE = Environment("tensorstore", ("tensorstore",))
ANNBATCH = Environment("annbatch", ("annbatch[zarrs]",), ("python3.12", "python3.13"))
SAELENS = Environment("saelens", ("sae-lens",))
SAEV = Environment("saev", ("saev", "zarr"))
"""Also that of torch's DataLoader over zarr, which needs torch and zarr alone."""


@dataclass(frozen=True)
class Data:
    """What some readers read: the environment and the script that write it, with the script's options."""

    environment: Environment
    script: str
    options: dict[str, Any] = field(default_factory=dict)
    rows: int = ROWS
    """The source's first."""


DATA: dict[str, Data] = {
    "flat.f16": Data(OURS, "read_flat.py"),
    "random.zarr": Data(OURS, "make_thresher.py", {"row_order": "random"}),
    "source.zarr": Data(OURS, "make_thresher.py", {"row_order": "source"}),
    "sorted.zarr": Data(ZARR, "read_zarr.py"),
    "annbatch.zarr": Data(ANNBATCH, "read_annbatch.py"),
    "saelens": Data(SAELENS, "read_saelens.py"),
    "saev": Data(SAEV, "read_saev.py", rows=262_144),
}


@dataclass(frozen=True)
class Config:
    """One way of reading: one row of a table."""

    name: str
    environment: Environment
    script: str
    data: str
    options: dict[str, Any] = field(default_factory=dict)
    rows_per_pass: int = ROWS
    """Fewer for slow readers."""
    threads: int = THREADS
    is_timed: bool = True
    """Else only its mixing is looked at."""

    @property
    def is_shuffled(self) -> bool:
        """Whether its rows come shuffled; else from end to end."""
        return self.options.get("order") != "scan"


_RUNS = {"order": "runs", "run": RUN}
_BUFFER = {"order": "buffer", "run": 4096}
_SCAN = {"order": "scan"}
_OUR_RUNS = _RUNS | {"array": OUR_ARRAY}

FLOOR = "floor: preadv of the same runs"
DISK = "disk: the flat file from end to end"
CONFIGS = (
    Config(f"{FLOOR}, 1 thread", OURS, "read_flat.py", "flat.f16", _RUNS, threads=1),
    Config(f"{FLOOR}, {THREADS} threads", OURS, "read_flat.py", "flat.f16", _RUNS),
    Config("Thresher", OURS, "read_thresher.py", "random.zarr"),
    Config("Thresher, store in source order", OURS, "read_thresher.py", "source.zarr"),
    Config("control: the same, mixing off", OURS, "read_thresher.py", "source.zarr", {"mixing": False}, is_timed=False),
    Config("numpy memmap, random rows", OURS, "read_memmap.py", "flat.f16", rows_per_pass=131_072),
    Config("zarr-python, buffer", ZARR, "read_zarr.py", "sorted.zarr", _BUFFER),
    Config("zarr-python, our store, same runs", ZARR, "read_zarr.py", "random.zarr", _OUR_RUNS, 65_536),
    Config("tensorstore, buffer", TENSORSTORE, "read_tensorstore.py", "sorted.zarr", _BUFFER),
    Config("tensorstore, our store, same runs", TENSORSTORE, "read_tensorstore.py", "random.zarr", _OUR_RUNS, 65_536),
    Config("annbatch", ANNBATCH, "read_annbatch.py", "annbatch.zarr"),
    Config("SAELens, cached activations", SAELENS, "read_saelens.py", "saelens", rows_per_pass=262_144),
    Config("saev", SAEV, "read_saev.py", "saev", rows_per_pass=65_536),
    Config("torch DataLoader over zarr, rows", SAEV, "read_torch.py", "random.zarr",
           {"item": "row", "array": OUR_ARRAY}, 16_384),
    Config("torch DataLoader over zarr, blocks", SAEV, "read_torch.py", "sorted.zarr", {"item": "block"}),
    Config(DISK, OURS, "read_flat.py", "flat.f16", _SCAN, threads=1),
    Config(f"{DISK}, {THREADS} threads", OURS, "read_flat.py", "flat.f16", _SCAN),
    Config("Thresher, scan", OURS, "read_thresher.py", "random.zarr", _SCAN),
    Config("numpy memmap, scan", OURS, "read_memmap.py", "flat.f16", _SCAN),
    Config("zarr-python, scan", ZARR, "read_zarr.py", "sorted.zarr", _SCAN),
    Config("tensorstore, scan", TENSORSTORE, "read_tensorstore.py", "sorted.zarr", _SCAN),
)  # fmt: skip

FLOORS = {True: f"{FLOOR}, {THREADS} threads", False: DISK}
"""What shuffled passes, and scans, are compared with."""

SHOWN_PACKAGES = {
    "thresher": ("thresher", "numpy", "numcodecs"),
    "zarr": ("zarr", "numpy"),
    "tensorstore": ("tensorstore", "numpy"),
    "annbatch": ("annbatch", "zarr", "zarrs", "numpy"),
    "saelens": ("sae-lens", "datasets", "torch", "numpy"),
    "saev": ("saev", "torch", "zarr", "numpy"),
}

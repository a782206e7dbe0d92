"""Loggers beside metrics.jsonl: TensorBoard and Weights & Biases, fed with the same records.

metrics.jsonl is the truth. A resumed run goes on from its last checkpoint, so what was logged after it is logged again:
TensorBoard's files are written anew from metrics.jsonl, W&B is told only what it was not told before.
"""

import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import Any, Protocol

from ..store.errors import StoreError
from ..store.files import write_atomically
from .options import TrainOptions

TENSORBOARD, WANDB = "tensorboard", "wandb"
_TOLD = f"{WANDB}/thresher.json"
_NOT_IN_PROJECTS = "/\\#?%:"  # W&B's own rule, which it tells only after the run is made


class Logger(Protocol):
    """Something that is told what metrics.jsonl is."""

    def metrics(self, record: Mapping[str, Any]) -> None:
        """Log one record."""

    def close(self) -> None:
        """Write what is left."""


def require_loggers(options: TrainOptions) -> None:
    """Check, before anything is written, that what the options ask for can be logged to.

    Raises
    ------
    ValueError
        Where a package is not installed, or W&B takes no project of that name.
    StoreError
        Where W&B is to be reached and knows no login.
    """
    for package, is_asked in ((TENSORBOARD, options.tensorboard), (WANDB, options.wandb is not None)):
        if is_asked and find_spec(package) is None:
            raise ValueError(
                f"--{package} needs the package {package}, which is not installed: pip install 'thresher[{package}]'"
            )
    if options.wandb is not None and set(options.wandb) & set(_NOT_IN_PROJECTS):
        raise ValueError(f"--wandb {options.wandb}: the name of a W&B project holds none of {_NOT_IN_PROJECTS}")
    if options.wandb is not None and os.environ.get("WANDB_MODE", "online") in ("online", "shared"):
        import wandb

        with _told_of_wandb(options.wandb):
            if not wandb.login(prompt=False):
                raise wandb.Error("no login is known")


@contextmanager
def _told_of_wandb(project: str) -> Iterator[None]:
    """Turn an error of W&B into one line."""
    import wandb

    try:
        yield
    except wandb.Error as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise StoreError(f"--wandb {project}: {reason}: `wandb login`, or set WANDB_MODE=offline.") from error


def open_loggers(
    options: TrainOptions, run_path: Path, config: Mapping[str, Any], kept: Sequence[Mapping[str, Any]]
) -> list[Logger]:
    """The loggers that the options ask for.

    Parameters
    ----------
    config
        What config.json holds, which W&B shows with the run.
    kept
        The records that metrics.jsonl begins with, of a run that is resumed.
    """
    loggers: list[Logger] = []
    if options.tensorboard:
        loggers.append(TensorBoardLogger(run_path, kept))
    if options.wandb is not None:
        loggers.append(WandbLogger(options.wandb, run_path, config, kept))
    return loggers


def scalars(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers of a record, each named as there below its split: `train/loss`, `heldout/l0/mean`.

    What is undefined is left out.
    """
    for name, value in record.items():
        if name in ("step", "split"):
            continue
        parts = value.items() if isinstance(value, Mapping) else [(None, value)]
        for part, number in parts:
            if isinstance(number, (int, float)) and not isinstance(number, bool) and isfinite(number):
                yield "/".join([record["split"], name, *([part] if part else [])]), float(number)


class TensorBoardLogger:
    """Event files in RUN/tensorboard, made anew from what metrics.jsonl holds when the run goes on."""

    def __init__(self, run_path: Path, kept: Sequence[Mapping[str, Any]]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = run_path / TENSORBOARD
        shutil.rmtree(folder, ignore_errors=True)
        self._writer = SummaryWriter(str(folder))
        for record in kept:
            self.metrics(record)

    def metrics(self, record: Mapping[str, Any]) -> None:
        """Log one record."""
        for name, value in scalars(record):
            self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


class WandbLogger:
    """A W&B run of the same name; WANDB_MODE and the other variables of W&B hold.

    Raises
    ------
    StoreError
        Where W&B refuses, as without a login.
    """

    def __init__(
        self, project: str, run_path: Path, config: Mapping[str, Any], kept: Sequence[Mapping[str, Any]]
    ) -> None:
        import wandb

        self._told_path = run_path / _TOLD
        told = self._read_told()
        self._id = str(told.get("id") or secrets.token_hex(4))
        self._last = (int(told.get("step", -1)), bool(told.get("is_heldout", True)))
        self._told_path.parent.mkdir(exist_ok=True)
        with _told_of_wandb(project):
            self._run = wandb.init(
                project=project,
                dir=str(run_path),
                id=self._id,
                name=run_path.name,
                group=run_path.resolve().parent.name,
                config=dict(config),
                resume="allow",
                reinit="create_new",  # the members of a sweep log side by side
                settings=wandb.Settings(silent=True, console="off"),
            )
        for record in kept:
            self.metrics(record)

    def _read_told(self) -> dict[str, Any]:
        with suppress(FileNotFoundError, ValueError):
            told = json.loads(self._told_path.read_bytes())
            return told if isinstance(told, dict) else {}
        return {}

    def metrics(self, record: Mapping[str, Any]) -> None:
        """Log one record, unless it was logged before the run was resumed."""
        place = (int(record["step"]), record["split"] != "train")
        if place <= self._last:
            return
        self._run.log(dict(scalars(record)), step=place[0])
        self._last = place
        told = {"id": self._id, "step": place[0], "is_heldout": place[1]}
        write_atomically(self._told_path, json.dumps(told).encode())

    def close(self) -> None:
        """Write what is left."""
        self._run.finish()

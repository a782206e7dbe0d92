"""The run directory: where everything about one SAE lies, and how it is opened."""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..store.errors import DamagedStoreError, StoreError
from ..store.files import write_atomically
from ..store.format import Site
from ..store.loading import LoadingPlan
from ..store.outside import require_outside_stores
from .logs import Logger
from .options import FREE_ON_RESUME, TrainOptions

if TYPE_CHECKING:
    import torch

    from .models import SparseAutoencoder

FORMAT = "thresher-run"
FORMAT_VERSION = 1
CONFIG, WEIGHTS, METRICS, LOG, CHECKPOINT = "config.json", "sae.safetensors", "metrics.jsonl", "log.txt", "checkpoint"
SWEEP = "sweep.json"  # in a folder of runs

# All that Thresher writes into a run: what --overwrite removes. Anything else in the folder is the user's.
RUN_FILES = (
    CONFIG,
    WEIGHTS,
    METRICS,
    LOG,
    CHECKPOINT,
    "tensorboard",
    "wandb",
    "features.zarr",
    "stats.zarr",
    "stats.json",
    "evaluate.json",
    "evaluate_classes.tsv",
    "classes.tsv",
    "class_features.tsv",
    "class_pairs.tsv",
    "alignment.zarr",
    "alignment.json",
    "attributes.json",
    "attributes.tsv",
    "embeddings.json",
    "embeddings.npy",
    ".embeddings.tmp",
    "names.tsv",
    "naming",
    "atlas.npz",
    "visualisations",
    "figures",
    "report.html",
)


_CONFIG_FIELDS: dict[str, Any] = {
    "options": dict,
    "site": str,
    "d_in": int,
    "d_sae": int,
    "store.path": str,
    "store.path_from_run": str | None,
    "store.n_parts": int,
    "store.fingerprint": str,
    "store.provenance": dict,
    "loading": dict,
}
"""What every reader of config.json goes by, and its type."""
_IMPORTED_FIELDS: dict[str, Any] = {
    "imported": dict,
    "imported.format": str,
    "imported.source": str,
    "d_in": int,
    "d_sae": int,
    "site": str | None,
}
"""The same for a run that was imported: it has no options, and a store only where one was named."""


@dataclass(frozen=True)
class Run:
    """A run as its directory describes it."""

    path: Path
    config: dict[str, Any]

    @property
    def is_imported(self) -> bool:
        """Whether its SAE was trained by another library, or by another run."""
        return "imported" in self.config

    @property
    def has_store(self) -> bool:
        """Whether a store is recorded; it is of every run that was trained here."""
        return "store" in self.config

    @cached_property
    def loading_plan(self) -> LoadingPlan:
        """How its batches are read, from which the order of their rows follows."""
        self._require_trained()
        return LoadingPlan.from_json(self.config["loading"])

    @cached_property
    def options(self) -> TrainOptions:
        """The resolved options of its training; `StoreError` where it was imported, and has none."""
        self._require_trained()
        try:
            return TrainOptions.from_json(self.config["options"])
        except (ValueError, TypeError) as error:
            raise StoreError(f"{self.path / CONFIG} holds what this thresher cannot train with: {error}.") from error

    @property
    def site(self) -> Site:
        """Where its rows were read; `StoreError` where it was imported, and its source did not say."""
        if self.known_site is None:
            raise StoreError(
                f"{self.path} was imported, and where its inputs are read is not known: import it with --store, or "
                "with --layer, --site and --token."
            )
        return self.known_site

    @property
    def known_site(self) -> Site | None:
        """Where its rows were read; None where it was imported, and its source did not say."""
        site = self.config.get("site")
        return Site.parse(site) if site else None

    @property
    def target_site(self) -> Site | None:
        """What a transcoder reconstructs; None of an SAE."""
        target = self.config.get("target_site")
        return Site.parse(target) if target else None

    @property
    def d_in(self) -> int:
        """Inputs of the SAE."""
        return int(self.config["d_in"])

    @property
    def d_sae(self) -> int:
        """Features of the SAE."""
        return int(self.config["d_sae"])

    @property
    def store_path(self) -> str:
        """Path or URL of the store it was trained on.

        On a disk: where it was then, or at the same place relative to the run, if moved along.
        """
        place, relative = str(self._store["path"]), self._store.get("path_from_run")
        if relative is None:
            return place
        moved = (self.path / relative).resolve()
        return str(moved) if moved.exists() and not Path(place).exists() else place

    @property
    def n_store_parts(self) -> int:
        """Parts that the store had then; others may have been added since."""
        return int(self._store["n_parts"])

    @property
    def store_fingerprint(self) -> str:
        """Fingerprint of that store."""
        return str(self._store["fingerprint"])

    @property
    def provenance(self) -> dict[str, Any]:
        """Provenance of that store, as JSON."""
        return dict(self._store["provenance"])

    @property
    def _store(self) -> dict[str, Any]:
        if not self.has_store:
            raise StoreError(f"{self.path} was imported without a store: name one with --store.")
        return dict(self.config["store"])

    def _require_trained(self) -> None:
        if self.is_imported:
            raise StoreError(
                f"{self.path} was imported ({self.config['imported']['format']}): it has no training to go on with, or "
                "to read options of. Train a new RUN."
            )

    @property
    def is_finished(self) -> bool:
        """Whether training ended: the weights are its last file."""
        return (self.path / WEIGHTS).exists()

    def load_sae(self, device: "torch.device | str" = "cpu") -> "SparseAutoencoder":
        """The trained SAE; `StoreError` before training has finished."""
        from .models import load_sae  # torch, which reading a run does without

        return load_sae(self.path, device)

    def metrics(self) -> list[dict[str, Any]]:
        """The objects of metrics.jsonl, in order; a last line cut short by a kill is left out."""
        return read_metrics(self.path / METRICS)


def open_run(path: Path | str) -> Run:
    """Open a run directory, finished or not; `StoreError` where `path` is none."""
    path = Path(path)
    try:
        config = json.loads((path / CONFIG).read_text())
    except (FileNotFoundError, NotADirectoryError):
        if (path / SWEEP).exists():
            example = next((each.parent.name for each in sorted(path.glob(f"*/{CONFIG}"))), "k=32")
            raise StoreError(
                f"{path} is a sweep of several SAEs: name one of them, such as {path / example}."
            ) from None
        raise StoreError(f"{path} is not a run directory: it holds no {CONFIG} (`train STORE RUN`).") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise StoreError(f"{path / CONFIG} is not the configuration of a run.")
    if config.get("format_version") != FORMAT_VERSION:
        raise StoreError(f"{path} is run version {config.get('format_version')}; this reads {FORMAT_VERSION}.")
    _require_whole(path, config)
    return Run(path, config)


def is_run(folder: Path) -> bool:
    """Whether a folder has the configuration of a run, whole or not."""
    path = folder / CONFIG
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return f'"{FORMAT}"'.encode() in file.read(200)


def _require_whole(path: Path, config: Mapping[str, Any]) -> None:
    fields = dict(_CONFIG_FIELDS)
    if "imported" in config:
        of_store = {name: kind for name, kind in fields.items() if name.startswith("store.") and "store" in config}
        fields = {**_IMPORTED_FIELDS, **of_store}
    named = dict(config)
    for part in ("store", "imported"):
        if isinstance(config.get(part), dict):
            named |= {f"{part}.{name}": value for name, value in config[part].items()}
    for name, kind in fields.items():
        if not isinstance(named.get(name), kind):
            raise _damaged(path, f"{name} is {named.get(name)!r}")
    try:
        for name in ("site", "target_site"):
            if config.get(name) is not None:
                Site.parse(config[name])
        if "loading" in fields:
            LoadingPlan.from_json(config["loading"])
    except (ValueError, TypeError, KeyError) as error:
        raise _damaged(path, f"{error}") from error
    if "store" in config and config["store"]["n_parts"] < 1:
        raise _damaged(path, f"store.n_parts is {config['store']['n_parts']}")


def _damaged(path: Path, reason: str) -> StoreError:
    return DamagedStoreError(
        f"{path / CONFIG} is damaged: {reason}. Restore it from a copy, or remove {path} and make it anew."
    )


def make_folder(path: Path) -> None:
    """Make the folder of a run where there is none; `StoreError` where a file is in its way, or it lies in a store."""
    require_outside_stores(path, "RUN")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise StoreError(f"{path} cannot be a run directory: a file is in its way. Choose another RUN.") from None


def create_run(path: Path, config: Mapping[str, Any], *, overwrite: bool) -> Run:
    """Make a run directory; `StoreError` where `path` is taken, unless it is a run and `overwrite` is set."""
    make_folder(path)
    if any(path.iterdir()):
        is_run = (path / CONFIG).exists()
        if (path / SWEEP).exists():
            raise StoreError(f"{path} holds a sweep of several SAEs, which a run does not replace: choose another RUN.")
        if not is_run:
            raise StoreError(f"{path} exists and is not a run directory: choose another RUN.")
        if not overwrite:
            raise StoreError(
                f"{path} already holds a run: go on with it (--resume), replace it (--overwrite) or choose another."
            )
        remove_run(path)
    record = {"format": FORMAT, "format_version": FORMAT_VERSION, **config}
    write_atomically(path / CONFIG, json.dumps(record, indent=1).encode() + b"\n")
    return Run(path, json.loads(json.dumps(record)))


def remove_run(path: Path) -> None:
    """Remove a run, but for what is not of Thresher."""
    # The configuration goes last: a killed overwrite still leaves a run that --overwrite knows.
    for name in (*RUN_FILES[1:], CONFIG):
        remove(path / name)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it, where there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def check_same(path: Path, name: str, given: object, started: object) -> None:
    """Raise `StoreError` where an option that changes weights differs from the run's."""
    if name not in FREE_ON_RESUME and given != started:
        was = f"without {name}, not with" if started is None else f"with {name} = {started}, not"
        raise StoreError(f"{path} was started {was} {given}: resume without it, or choose another RUN.")


class RunLog:
    """metrics.jsonl and log.txt of a running training.

    Parameters
    ----------
    keep_to_step
        Steps of which earlier records are kept.
    writes
        Whether anything is written: of the processes of a run, one does.
    loggers
        Opens what is told every record of metrics.jsonl as well, given those that are kept.
    """

    def __init__(
        self,
        path: Path,
        *,
        keep_to_step: int,
        writes: bool = True,
        loggers: Callable[[Sequence[Mapping[str, Any]]], Sequence[Logger]] | None = None,
    ) -> None:
        metrics_path, log_path = path / METRICS, path / LOG
        self._loggers: Sequence[Logger] = ()
        if writes:
            kept = [record for record in read_metrics(metrics_path) if record["step"] <= keep_to_step]
            write_atomically(metrics_path, "".join(_line(record) for record in kept).encode())
            self._loggers = loggers(kept) if loggers is not None else ()
        else:
            metrics_path = log_path = Path(os.devnull)
        self._writes = writes
        self._metrics = open(metrics_path, "a")  # noqa: SIM115 (closed by `close`)
        self._log = open(log_path, "a")  # noqa: SIM115

    def metrics(self, record: Mapping[str, Any]) -> None:
        """Append one object."""
        self._metrics.write(_line(record))
        self._metrics.flush()
        for logger in self._loggers:
            logger.metrics(record)

    def say(self, text: str) -> None:
        """Append one line with the time."""
        self._log.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {text}\n")
        self._log.flush()

    def sync(self) -> None:
        """Make what was appended durable: what a checkpoint counts as logged must outlive a crash."""
        if self._writes:
            os.fsync(self._metrics.fileno())

    def close(self) -> None:
        """Close both files, and the loggers."""
        self._metrics.close()
        self._log.close()
        for logger in self._loggers:
            logger.close()


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(_without_nan(record), allow_nan=False) + "\n"


def _without_nan(value: Any) -> Any:
    """JSON knows no NaN: what is undefined is null."""
    if isinstance(value, Mapping):
        return {name: _without_nan(part) for name, part in value.items()}
    return None if isinstance(value, float) and not isfinite(value) else value


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The objects of a metrics.jsonl, in order; a last line cut short by a kill is left out.

    `DamagedStoreError` where another line is no object of a step.
    """
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    records: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            record["step"], record["split"]  # what every reader goes by
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines):
                break
            raise DamagedStoreError(
                f"{path} is damaged at line {number}: remove the line to go on without it."
            ) from error
        records.append(record)
    return records

"""The folder of a sweep: several runs and what varies between them, and how it is opened."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..store.errors import DamagedStoreError, StoreError
from .options import TrainOptions
from .run_dir import SWEEP, WEIGHTS

FORMAT = "thresher-sweep"
FORMAT_VERSION = 1
TABLE, FIGURE = "sweep.tsv", "figures/pareto.png"


@dataclass(frozen=True)
class SweepMember:
    """One run of a sweep.

    Parameters
    ----------
    name
        Of its run directory, in the sweep's folder.
    varies
        Those of its options that differ between members; one that its variant does not have is left out.
    options
        All of them.
    reason
        Why it stopped; None where it did not.
    """

    name: str
    varies: dict[str, Any]
    options: TrainOptions
    reason: str | None = None


@dataclass(frozen=True)
class Sweep:
    """A folder of runs as its sweep.json describes it.

    Parameters
    ----------
    given
        The options that it was started with, each with its values.
    members
        In the order of their combinations.
    """

    path: Path
    store_path: str
    given: dict[str, list[Any]]
    members: tuple[SweepMember, ...]

    def run_path(self, member: SweepMember) -> Path:
        """The run directory of a member."""
        return self.path / member.name

    def status(self, member: SweepMember) -> str:
        """`finished`, `failed` or `unfinished`: as the run directory shows, then as noted."""
        if (self.run_path(member) / WEIGHTS).exists():
            return "finished"
        return "failed" if member.reason is not None else "unfinished"

    def to_json(self) -> dict[str, Any]:
        """What sweep.json holds."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "store": self.store_path,
            "given": self.given,
            "varying": list(dict.fromkeys(name for member in self.members for name in member.varies)),
            "members": [
                {
                    "name": member.name,
                    "varies": member.varies,
                    "status": self.status(member),
                    "reason": member.reason,
                    "options": member.options.to_json(),
                }
                for member in self.members
            ],
        }


def open_sweep(path: Path | str) -> Sweep:
    """Open the folder of a sweep; `StoreError` where `path` is none."""
    path = Path(path)
    try:
        record = json.loads((path / SWEEP).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(f"{path} is not a sweep: it holds no {SWEEP} (`train STORE RUN --k 16,32`).") from None
    except ValueError as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise StoreError(f"{path / SWEEP} is not the record of a sweep.")
    if record.get("format_version") != FORMAT_VERSION:
        raise StoreError(f"{path} is sweep version {record.get('format_version')}; this reads {FORMAT_VERSION}.")
    try:
        members = tuple(
            SweepMember(
                _folder_name(member["name"]),
                dict(member["varies"]),
                TrainOptions.from_json(member["options"]),
                member["reason"],
            )
            for member in record["members"]
        )
        return Sweep(path, str(record["store"]), dict(record["given"]), members)
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, repr(error)) from error


def _damaged(path: Path, reason: str) -> StoreError:
    return DamagedStoreError(
        f"{path / SWEEP} is damaged: {reason}. Restore it from a copy; each run in {path} is whole by itself."
    )


def _folder_name(name: Any) -> str:
    """The name, which --overwrite will remove files below; `ValueError` where it leads out of the sweep."""
    if not isinstance(name, str) or name in ("", ".", "..") or Path(name).name != name:
        raise ValueError(f"{name!r} names no folder of the sweep")
    return name

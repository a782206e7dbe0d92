"""The runs that are explored together."""

from collections.abc import Sequence
from pathlib import Path

from .page import NotHere
from .runs import ExploredRun


class Explorer:
    """The runs that are explored together, the first of them at the root of the addresses.

    Parameters
    ----------
    paths
        Run directories.

    Raises
    ------
    StoreError
        When one cannot be opened.
    """

    def __init__(self, paths: Sequence[str | Path]) -> None:
        if not paths:
            raise ValueError("name a run to explore.")
        self.runs: list[ExploredRun] = []
        for path in paths:
            name = base = _address_name(Path(path).absolute().name)
            number = 1
            while any(run.name == name for run in self.runs):
                number += 1
                name = f"{base}-{number}"
            self.runs.append(ExploredRun(path, name))

    def root(self, run: ExploredRun) -> str:
        """What stands before the paths of a run's pages."""
        return "" if run is self.runs[0] else f"/runs/{run.name}"

    def run(self, name: str) -> ExploredRun:
        """A run by its name; `NotHere` where there is none of it."""
        for run in self.runs:
            if run.name == name:
                return run
        raise NotHere(f"No run {name[:80]!r} is explored here; there is {', '.join(run.name for run in self.runs)}.")


def _address_name(name: str) -> str:
    """A folder's name with nothing in it that an address would have to escape."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_.=") else "-" for c in name).strip(".") or "run"

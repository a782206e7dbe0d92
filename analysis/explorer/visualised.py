"""The pictures that were optimised to make features fire, with what was checked of them, as they lie beside a run."""

import os
import re
import stat
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from ..naming.names_file import printable
from .page import Unavailable

if TYPE_CHECKING:
    from ..visualising.visualisations_file import Visualisation
    from .runs import ExploredRun

FOLDER, VISUALISATIONS_TSV = "visualisations", "visualisations.tsv"
MOST_PICTURES = 12
"""Of one feature."""
_FILE = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?\.(webp|png)", re.ASCII)
_MEDIA_TYPES = {"webp": "image/webp", "png": "image/png"}
_MOST_BYTES = 16 << 20

Floats = NDArray[np.float64]
State = tuple[int | None, int | None]


@dataclass(frozen=True)
class PictureFile:
    """A picture of a feature."""

    path: Path
    media_type: str
    seed: int | None
    """None of the best, which has no seed in its file's name."""

    def read(self) -> bytes:
        """Its bytes; `Unavailable` where it has gone, or is no picture by its size."""
        try:
            found = self.path.stat()
            if not stat.S_ISREG(found.st_mode) or found.st_size > _MOST_BYTES:  # of a pipe, reading would never end
                raise Unavailable(f"{self.path.name} is no file of at most {_MOST_BYTES >> 20} MiB and is not shown.")
            return self.path.read_bytes()
        except OSError as error:
            raise Unavailable(f"{self.path.name} cannot be read ({error.strerror}).") from error


class Visualised:
    """The pictures of a run, looked up again when its folder has changed; threads may share it.

    Parameters
    ----------
    run
        Of which.
    """

    def __init__(self, run: "ExploredRun") -> None:
        self._folder, self._run_path, self._d_sae = run.path / FOLDER, run.path, run.d_sae
        self._notes = run.notes
        self._lock = threading.Lock()
        self._seen: State = (None, None)
        self._table: State = (None, None)
        self._files: dict[int, list[PictureFile]] = {}
        self._checked: dict[int, Visualisation] = {}
        self._verdicts: Floats = np.full(self._d_sae, np.nan)

    def pictures(self, feature: int) -> list[PictureFile]:
        """Of a feature, the best first, then by seed; empty for none."""
        self._look()
        return self._files.get(feature, [])

    @property
    def checked(self) -> "Mapping[int, Visualisation]":
        """What was checked, by feature."""
        self._look()
        return self._checked

    @property
    def verdicts(self) -> Floats:
        """`(d_sae,)`: 1 where the picture passed, 0 where it failed, NaN where none was checked."""
        self._look()
        return self._verdicts

    def _look(self) -> None:
        seen = _state(self._folder)  # files in it are replaced by renaming, which it shows
        with self._lock:
            if seen == self._seen:
                return
            self._seen, self._files = seen, _files(self._folder, self._d_sae)
            table = _state(self._folder / VISUALISATIONS_TSV)
            if table != self._table:
                self._table, self._checked = table, self._read()
                self._verdicts = np.full(self._d_sae, np.nan)
                ids = np.fromiter(self._checked, np.int64, len(self._checked))
                self._verdicts[ids] = [each.is_passed for each in self._checked.values()]

    def _read(self) -> "dict[int, Visualisation]":
        from ..visualising.visualisations_file import read_visualisations  # which imports Pillow

        found, problem = read_visualisations(self._run_path, self._d_sae)
        if problem is not None and printable(problem) not in self._notes:
            self._notes.append(printable(problem))
        return found


def _state(path: Path) -> State:
    """What changes when a file, or a folder's files, do; None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None, None
    return found.st_mtime_ns, found.st_ino


def _files(folder: Path, d_sae: int) -> dict[int, list[PictureFile]]:
    """By feature; of files of one name with two endings the first by their alphabet."""
    found: dict[int, dict[int, PictureFile]] = {}
    try:
        names = sorted(os.listdir(folder), reverse=True)
    except OSError:
        return {}
    for name in names:
        parts = _FILE.fullmatch(name)
        if parts is not None and int(parts[1]) < d_sae:
            seed = None if parts[2] is None else int(parts[2])
            of = found.setdefault(int(parts[1]), {})
            of[-1 if seed is None else seed] = PictureFile(folder / name, _MEDIA_TYPES[parts[3]], seed)
    return {feature: [of[seed] for seed in sorted(of)][:MOST_PICTURES] for feature, of in found.items()}


_VISUALISED: "WeakKeyDictionary[ExploredRun, Visualised]" = WeakKeyDictionary()
_MAKING = threading.Lock()


def visualised(run: "ExploredRun") -> Visualised:
    """Those of a run."""
    with _MAKING:
        if run not in _VISUALISED:
            _VISUALISED[run] = Visualised(run)
        return _VISUALISED[run]

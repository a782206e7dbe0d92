"""The atlas of a run: where its shown features lie on the map, made at the first visit and kept beside the run."""

import hashlib
import threading
from io import BytesIO
from pathlib import Path
from weakref import WeakKeyDictionary
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from ...store.errors import StoreError
from ...store.files import write_atomically
from . import layout
from .page import Unavailable
from .runs import ExploredRun

ATLAS_NPZ = "atlas.npz"
WEIGHTS = "sae.safetensors"

Floats = NDArray[np.float32]


class AtlasMap:
    """Positions of a run's shown features; every method may be called from several threads.

    Parameters
    ----------
    run
        Of which.
    """

    def __init__(self, run: ExploredRun) -> None:
        self._run_path, self._shown = run.path, run.shown
        self._stored = run.stored
        self._run = run.run
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._positions = self._kept()
        self._problem: str | None = None
        self.share = 0.0
        """Of the work, while the map is made."""

    @property
    def key(self) -> str:
        """What the map is of: SAE, features, way of laying out; a kept one of another key is made anew."""
        features = hashlib.sha256(self._shown.astype("<i8").tobytes()).hexdigest()
        return f"{layout.VERSION} {layout.SEED} {self._stored.summary['sae_sha256']} {features}"

    @property
    def is_ready(self) -> bool:
        """Whether `positions` answers at once."""
        return self._positions is not None

    def start(self) -> None:
        """Have the map made in the background, where it is not there and nobody makes it."""
        with self._lock:
            if self._positions is None and self._problem is None and self._thread is None:
                self._thread = threading.Thread(target=self._make, name="atlas", daemon=True)
                self._thread.start()

    def positions(self) -> Floats:
        """`(n, 2)` of the shown features in their order, from -1 to 1; `Unavailable` while there are none, or why."""
        if self._problem is not None:
            raise Unavailable(self._problem)
        if self._positions is None:
            raise Unavailable("The map is being made: ask again in a moment.")
        return self._positions

    def wait(self) -> Floats:
        """The same, once they are there."""
        self.start()
        thread = self._thread
        if thread is not None:
            thread.join()
        return self.positions()

    def _make(self) -> None:
        try:
            with _TURN:
                positions = layout.lay_out(self._directions(), self._candidates(), self._told)
            self._positions = positions
        except Unavailable as error:
            self._problem = str(error)
        except Exception as error:
            self._problem = f"The map cannot be made: {' '.join(str(error).split()) or type(error).__name__}."
            raise
        else:
            self._keep(positions)

    def _told(self, share: float) -> None:
        self.share = share

    def _directions(self) -> Floats:
        """Decoder directions of the shown features, `(n, d)`."""
        path = self._run_path / WEIGHTS
        try:
            decoder = self._run.load_sae().W_dec[self._shown].float().numpy()
            with open(path, "rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except (StoreError, OSError) as error:
            raise Unavailable(f"The map is of decoder directions: {' '.join(str(error).split())}") from error
        if self._stored.summary["sae_sha256"] not in (None, found):
            raise Unavailable(
                f"{WEIGHTS} is not the SAE that the statistics are of: run `thresher encode` and `thresher stats` with "
                "--overwrite."
            )
        return np.ascontiguousarray(decoder)

    def _candidates(self) -> NDArray[np.int64] | None:
        """Places of each shown feature's nearest among the shown, by the statistics; None where they hold too few."""
        details, n = self._stored.details, len(self._shown)
        if not details.has("nearest/decoder_feature") or n <= layout.N_NEIGHBOURS:
            return None
        near = details.array("nearest/decoder_feature")[:][self._shown]
        place = np.full(self._stored.statistics.d_sae + 1, -1, np.int64)  # the last for -1, unfilled
        place[self._shown] = np.arange(n)
        found: NDArray[np.int64] = place[near]
        return found if (found >= 0).sum(axis=1).min() >= layout.N_NEIGHBOURS else None

    def _kept(self) -> Floats | None:
        """Positions as they were kept beside the run; None where there are none of these features."""
        try:
            with open(self._run_path / ATLAS_NPZ, "rb") as file, np.load(file, allow_pickle=False) as kept:
                key, positions = str(kept["key"]), kept["positions"]
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            return None
        is_whole = key == self.key and positions.shape == (len(self._shown), 2) and positions.dtype == np.float32
        return positions if is_whole and np.isfinite(positions).all() else None

    def _keep(self, positions: Floats) -> None:
        content = BytesIO()
        np.savez(content, key=np.array(self.key), features=self._shown, positions=positions)
        try:
            write_atomically(Path(self._run_path) / ATLAS_NPZ, content.getvalue())
        except OSError:
            return  # a folder that may only be read: the map is kept as long as the explorer runs


_MAPS: "WeakKeyDictionary[ExploredRun, AtlasMap]" = WeakKeyDictionary()
_OPENING, _TURN = threading.Lock(), threading.Lock()


def atlas_of(run: ExploredRun) -> AtlasMap:
    """The atlas of a run, one for all visitors."""
    with _OPENING:
        if run not in _MAPS:
            _MAPS[run] = AtlasMap(run)
        return _MAPS[run]

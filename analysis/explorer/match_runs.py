"""The matches of explored runs: computed once, in a thread of their own, and kept in memory and beside the run."""

import hashlib
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from ...progress import Reporter
from ...store.errors import StoreError
from ...store.files import write_atomically
from ...train.run_dir import WEIGHTS
from .matching import Matches, chance_cosines, correlations, nearest_directions
from .runs import ExploredRun
from .several import Explorer
from .threads import MATCHING

if TYPE_CHECKING:
    from torch import Tensor

_ONE_AT_A_TIME = threading.Lock()
_VERSION = b"1"  # of what is kept beside a run: another way to compute it has another


@dataclass
class Job:
    """The matching of one run with another, under way or done."""

    share: float = 0.0
    """That is done."""
    started_s: float = 0.0
    """By the monotonic clock; 0 while it waits for another."""
    matches: Matches | None = None
    error: str = ""
    done: threading.Event = field(default_factory=threading.Event)
    """Whether there is a result or a reason why there is none."""

    @property
    def left_s(self) -> float | None:
        """Seconds that are left at the rate so far; None before there is one."""
        if not self.started_s or self.share < 0.02:
            return None
        return (time.monotonic() - self.started_s) * (1 - self.share) / self.share


_explorers: "WeakKeyDictionary[ExploredRun, Explorer]" = WeakKeyDictionary()
_jobs: "WeakKeyDictionary[ExploredRun, dict[str, Job]]" = WeakKeyDictionary()
_starting = threading.Lock()


def remember(explorer: Explorer) -> None:
    """Let each run know those that it is explored with."""
    for run in explorer.runs:
        _explorers[run] = explorer


def explorer_of(run: ExploredRun) -> Explorer:
    """The runs that a run is explored with."""
    return _explorers[run]


def others(run: ExploredRun) -> list[ExploredRun]:
    """The other runs that are explored."""
    explorer = _explorers.get(run)
    return [] if explorer is None else [each for each in explorer.runs if each is not run]


def why_not(a: ExploredRun, b: ExploredRun) -> str:
    """Why two runs' directions cannot be compared; empty where they can."""
    sites = [each.run.target_site or each.site for each in (a, b)]
    for each in (a, b):
        if not (each.path / WEIGHTS).exists():
            return f"{each.name} holds no {WEIGHTS}: there are no decoder directions to compare."
    if a.summary["d_in"] != b.summary["d_in"]:
        return f"{a.name} reads vectors of length {a.summary['d_in']}, {b.name} of length {b.summary['d_in']}."
    if None not in sites and sites[0] != sites[1]:
        return f"{a.name} reconstructs {sites[0]} and {b.name} {sites[1]}: directions of one mean nothing in the other."
    of = [each.provenance.get("weights_sha256") for each in (a, b)]
    if None not in of and of[0] != of[1]:
        return f"{a.name} and {b.name} are of different towers: directions of one mean nothing in the other."
    return ""


def are_of_one_store(a: ExploredRun, b: ExploredRun) -> bool:
    """Whether a row means the same image in both."""
    return a.summary["store_fingerprint"] is not None and (
        a.summary["store_fingerprint"] == b.summary["store_fingerprint"]
    )


def job_of(a: ExploredRun, b: ExploredRun) -> Job:
    """The matching of A with B, started where it was not."""
    with _starting:
        jobs = _jobs.setdefault(a, {})
        job = jobs.get(b.name)
        if job is None:
            job = jobs[b.name] = Job()
            threading.Thread(target=_run, args=(job, a, b), name=f"{MATCHING}{a.name}-{b.name}", daemon=True).start()
    return job


def match_all(explorer: Explorer, reporter: Reporter) -> None:
    """Match every two runs, and wait for it."""
    remember(explorer)
    pairs = [(a, b) for a in explorer.runs for b in explorer.runs if a is not b]
    for a, b in pairs:
        job = job_of(a, b)
        with reporter.task(f"matching {a.name} with {b.name}", 100, "%") as task:
            told = 0
            while not job.done.wait(0.2):
                task.advance(int(100 * job.share) - told)
                told = int(100 * job.share)
            task.advance(100 - told)


def _run(job: Job, a: ExploredRun, b: ExploredRun) -> None:
    with _ONE_AT_A_TIME:
        job.started_s = time.monotonic()
        try:
            job.error = why_not(a, b)
            if not job.error:
                job.matches = _kept(a, b) or _computed(job, a, b)
        except (StoreError, OSError, ValueError) as error:
            job.error = str(error)
        except MemoryError:
            job.error = "There is not enough memory to match these runs."
        finally:
            job.done.set()


def _computed(job: Job, a: ExploredRun, b: ExploredRun) -> Matches:
    """Match two runs; what they share of the time is a guess: cosines two thirds of it, correlations the rest."""
    start_s = time.monotonic()
    of_a, of_b = _directions(a), _directions(b)
    has_codes = are_of_one_store(a, b) and a.features is not None and b.features is not None
    of_cosines = 0.65 if has_codes else 1.0

    def told(share: float) -> None:
        job.share = of_cosines * share

    feature, cosine, back, back_cosine = nearest_directions(of_a, of_b, ~a.is_dead, ~b.is_dead, told)
    chance = chance_cosines(of_b, ~b.is_dead)
    correlation, n_rows = np.full(feature.shape, np.nan, np.float32), 0
    if has_codes:
        assert a.features is not None
        assert b.features is not None

        def told_of_rows(share: float) -> None:
            job.share = of_cosines + (1 - of_cosines) * share

        correlation, n_rows = correlations(a.features, b.features, feature, told_of_rows)
    found = Matches(
        feature, cosine, correlation, back, back_cosine, chance, n_rows, round(time.monotonic() - start_s, 2)
    )
    _keep(a, b, found)
    return found


def _directions(run: ExploredRun) -> "Tensor":
    """`(F, d)` unit decoder vectors in the space of the stored rows."""
    import torch

    from ..alignment import decoder_blocks

    with torch.inference_mode():
        return torch.cat(decoder_blocks(run.run.load_sae()))


def _place(a: ExploredRun, b: ExploredRun) -> str:
    """The file beside A that holds these matches: named by everything that they follow from."""
    digest = hashlib.blake2b(_VERSION, digest_size=10)
    for each in (a, b):
        counts: NDArray[np.uint64] = each.stored.statistics.n_active
        names = ("sae_sha256", "store_fingerprint", "n_rows")
        digest.update(str(([each.summary[name] for name in names], each.features is None)).encode())
        digest.update(np.ascontiguousarray(counts, np.uint64).tobytes())
    return f"matches-{digest.hexdigest()}.npz"


def _kept(a: ExploredRun, b: ExploredRun) -> Matches | None:
    """What an earlier explorer computed; None where there is nothing whole."""
    try:
        with open(a.path / _place(a, b), "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return Matches.of_arrays(arrays)
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None


def _keep(a: ExploredRun, b: ExploredRun, matches: Matches) -> None:
    """Write them beside A, where that folder can be written to."""
    stream = BytesIO()
    np.savez(stream, **matches.to_arrays())  # type: ignore[arg-type]  # (of its own option, which is no array)
    with suppress(OSError):  # a folder of someone else's, or a full disk: the next explorer computes them again
        write_atomically(a.path / _place(a, b), stream.getvalue())

"""The training of a sweep: several SAEs from one stream of batches, into one folder of runs."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..progress import Reporter
from ..store.errors import StoreError
from ..store.files import FolderLock, write_atomically
from ..store.objects import open_objects
from .combinations import expand, one_value_wanted
from .loop import Failure, train_together
from .options import FREE_ON_RESUME
from .outcome import TrainResult
from .ranks import ALONE, Ranks
from .run_dir import SWEEP, is_run, make_folder, remove, remove_run
from .spliced import Splicer
from .sweep_dir import FIGURE, TABLE, Sweep, SweepMember, open_sweep


@dataclass(frozen=True)
class SweepResult:
    """What the training of a sweep made.

    Parameters
    ----------
    results
        Of the members that finished, by name.
    failures
        Of those that stopped, by name.
    """

    sweep: Sweep
    results: dict[str, TrainResult]
    failures: dict[str, Failure]

    def to_json(self) -> dict[str, Any]:
        """What the command prints of it."""
        return {
            "sweep_path": self.sweep.path,
            "members": [
                {
                    "name": member.name,
                    "varies": member.varies,
                    "status": self.sweep.status(member),
                    "reason": member.reason,
                    "result": self.results.get(member.name),
                }
                for member in self.sweep.members
            ],
        }


def train_sweep(
    given: Mapping[str, Sequence[Any]],
    store_path: Path | str,
    path: Path | str,
    reporter: Reporter | None = None,
    *,
    resume: bool = False,
    ranks: Ranks = ALONE,
    splicer: Splicer | None = None,
) -> SweepResult:
    """Train all combinations of the given options, or go on with those that are not finished.

    Each becomes what the same options alone give. With several seeds, the order of the rows is that of the first.

    Parameters
    ----------
    given
        Values by field name of `TrainOptions`; to resume, those the sweep was started with or none.
    path
        Folder of the sweep: a run directory for each member, named by what varies, and sweep.json.
    resume
        Go on with all members that are not finished, each from its last checkpoint; failed ones are tried again.
    splicer
        As for `train`.

    Raises
    ------
    ValueError, StoreError
        As `train`; and where `path` holds something else.
    TrainingStopped
        After SIGINT or SIGTERM, with checkpoints written. What stops one member is in the result instead.
    """
    path, place = Path(path), open_objects(store_path)
    store = place.absolute_url if place.local is None else str(place.local.resolve())
    if resume:
        begun = open_sweep(path)
        members = tuple(replace(member, reason=None) for member in begun.members)
        sweep = replace(begun, store_path=store, members=_with_free_options(begun, members, given))
        overwrite = False
    else:
        sweep = Sweep(path, store, {name: list(values) for name, values in given.items()}, expand(given))
        overwrite = sweep.members[0].options.overwrite
    record = _Record(sweep, overwrite=overwrite, resume=resume)
    results, failures = train_together(
        {sweep.run_path(member): member.options for member in sweep.members},
        store_path,
        reporter,
        resume=resume,
        ranks=ranks,
        sweep=record,
        splicer=splicer,
    )
    if ranks.rank == 0:
        record.save()
    return SweepResult(
        record.sweep,
        {result.run_path.name: result for result in results},
        {failure.run_path.name: failure for failure in failures},
    )


def _with_free_options(
    sweep: Sweep, members: Sequence[SweepMember], given: Mapping[str, Sequence[Any]]
) -> tuple[SweepMember, ...]:
    """The members with those of the given options that may change; `StoreError` names one that may not."""
    free = {}
    for name, values in given.items():
        if name in FREE_ON_RESUME:
            if len(values) > 1:
                raise ValueError(one_value_wanted(name, values))
            free[name] = values[0]
            continue
        started = sweep.given.get(name) or [getattr(sweep.members[0].options, name)]
        if set(values) != set(started):
            was, now = (", ".join(map(str, each)) for each in (started, values))
            raise StoreError(
                f"{sweep.path} was started with {name} = {was}, not {now}: resume without it, or choose another RUN."
            )
    return tuple(replace(member, options=replace(member.options, **free)) for member in members)


class _Record:
    """sweep.json of a sweep in training."""

    def __init__(self, sweep: Sweep, *, overwrite: bool, resume: bool) -> None:
        self.sweep = sweep
        self._overwrite, self._resume = overwrite, resume

    def _check_place(self) -> None:
        """Raise `StoreError` where something else is in the way of the sweep."""
        path = self.sweep.path
        for folder in (path, *path.absolute().parents):
            if is_run(folder):
                raise StoreError(
                    f"{folder} is a run, and a sweep is not made over it or inside it: choose another RUN."
                )
        if self._resume:
            return
        if (path / SWEEP).exists():
            if not self._overwrite:
                n = len(open_sweep(path).members)
                raise StoreError(
                    f"{path} already holds a sweep of {n} SAEs: go on with it (--resume), replace it (--overwrite) or "
                    "choose another."
                )
        elif path.is_dir() and any(path.iterdir()):
            raise StoreError(f"{path} exists and is not a sweep: choose another RUN.")

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Make the folder, remove an earlier sweep, write sweep.json, and keep others from it until the end."""
        path = self.sweep.path
        self._check_place()
        make_folder(path)
        with closing(FolderLock(path)):
            self._check_place()
            if not self._resume and (path / SWEEP).exists():
                self._remove_old()
            self.save()
            yield

    def _remove_old(self) -> None:
        """Remove the runs of the sweep that is replaced, and what was made of them; what is the user's stays."""
        old = open_sweep(self.sweep.path)
        with ExitStack() as stack:
            folders = [folder for folder in map(old.run_path, old.members) if folder.is_dir()]
            for folder in folders:
                stack.enter_context(closing(FolderLock(folder)))
            for folder in folders:
                remove_run(folder)
                with suppress(OSError):  # something else is in it
                    folder.rmdir()
        for name in (TABLE, FIGURE):
            remove(old.path / name)

    def failed(self, failure: Failure) -> None:
        """Note a run that stopped alone, here and, where the disk allows it, in sweep.json."""
        self.sweep = replace(
            self.sweep,
            members=tuple(
                replace(member, reason=failure.reason) if member.name == failure.run_path.name else member
                for member in self.sweep.members
            ),
        )
        with suppress(OSError):  # it may be a full disk that stopped it; `save` at the end tells
            self.save()

    def save(self) -> None:
        """Write sweep.json."""
        text = json.dumps(self.sweep.to_json(), indent=1) + "\n"
        write_atomically(self.sweep.path / SWEEP, text.encode())

"""The training of one SAE, or of several from one stream of batches: from a store to run directories."""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..devices import choose_device
from ..progress import Reporter, Task, format_bytes, format_rate, format_s
from ..store.errors import StoreError
from ..store.files import FolderLock
from ..store.format import Site
from ..store.loading import LoadingPlan, plan_loading, require_training_rows
from ..store.reader import ActivationArray, ActivationStore, open_store
from .configuration import check_resumable, choose_site, choose_target, describe_run
from .loader import BatchLoader
from .member import Member, Source, TrainingStopped, TrainResult
from .options import TrainOptions
from .ranks import ALONE, Ranks
from .resources import check_space, disk_bytes, memory_bytes
from .run_dir import Run, create_run, make_folder, open_run
from .signals import StopRequest

_FORECAST_AFTER_S = 5.0  # a large SAE on a CPU takes half a minute a step: minutes until the first logged one

STREAM_OPTIONS = (
    *("token", "batch_size", "rows", "device", "loader_memory"),
    *("checkpoint_every", "log_every", "eval_every", "eval_rows", "overwrite"),
)
"""What the members of a sweep share: the stream of batches, and when all of them write."""


@dataclass(frozen=True)
class Failure:
    """A member that ended before its last step, and why."""

    run_path: Path
    reason: str


def train(
    options: TrainOptions,
    store_path: Path | str,
    run_path: Path | str,
    reporter: Reporter | None = None,
    resume: bool = False,
    ranks: Ranks = ALONE,
) -> TrainResult:
    """Train one SAE.

    Parameters
    ----------
    options
        Of the training.
    store_path
        Path or URL of the store.
    run_path
        Folder of the run.
    reporter
        Told what is done, and how far.
    resume
        Go on with the run from its last checkpoint.
    ranks
        The processes that train it together, each with its share of every batch.

    Raises
    ------
    ValueError
        When an option does not fit the store.
    StoreError
        When the store cannot be used, the run exists (or, to resume, does not, or was started otherwise).
    TrainingStopped
        After SIGINT or SIGTERM, with a checkpoint written; or when the loss is no longer finite.
    """
    results, failures = train_together({Path(run_path): options}, store_path, reporter, resume=resume, ranks=ranks)
    assert not failures  # the only member's error is raised
    return results[0]


def train_together(
    members: Mapping[Path, TrainOptions],
    store_path: Path | str,
    reporter: Reporter | None = None,
    *,
    resume: bool = False,
    ranks: Ranks = ALONE,
) -> tuple[list[TrainResult], list[Failure]]:
    """Train several SAEs from one stream of batches, each into its own run directory.

    Each becomes what it would be alone: it sees the same rows in the same order, and shares nothing but their reading.

    Parameters
    ----------
    members
        The options of each run directory, alike in `STREAM_OPTIONS` and in the order of the rows.

    Returns
    -------
    results
        Of the members that finished, in their order.
    failures
        Of those that stopped alone; where none is left, the last one's error is raised.
    """
    reporter = reporter or Reporter()
    _check_stream(members)
    started = {path: open_run(path) if resume and (path / "config.json").exists() else None for path in members}
    if resume and len(members) == 1:
        started = {path: open_run(path) for path in members}
    first = next(iter(members.values()))
    # A store that has grown is read as it was when the run was started.
    known = next((run for run in started.values() if run is not None), None)
    store = open_store(store_path, n_parts=None if known is None else known.n_store_parts)
    places = {path: _sites(store, options) for path, options in members.items()}
    require_training_rows(store)
    sites = list(dict.fromkeys(site for pair in places.values() for site in pair if site is not None))
    arrays = [store.activations(site) for site in sites]
    device = choose_device(first.device)
    plan = (
        plan_loading(arrays, first.batch_size, round(first.loader_memory * 1e9))
        if known is None
        else known.loading_plan
    )
    with ExitStack() as stack:
        runs = {}
        for path, options in members.items():
            if ranks.rank == 0:
                runs[path] = _open_member(stack, store, path, options, places[path], plan, started[path])
        ranks.wait()
        if ranks.rank != 0:
            runs = {path: open_run(path) for path in members}
        if all(run.is_finished for run in runs.values()):
            for path, options in members.items():
                reporter.say(f"{path} is finished: {options.steps:,} steps. Nothing to resume.")
            return [_finished_result(run) for run in runs.values()], []
        loader = BatchLoader(
            arrays,
            batch_size=first.batch_size,
            seed=first.resolved_order_seed,
            device=device,
            plan=plan,
            rank=ranks.rank,
            n_ranks=ranks.n_ranks,
        )
        sources = {path: _source(arrays, sites, *places[path]) for path in members}
        return _Training(runs, members, sources, loader, device, reporter, ranks).run()


def _check_stream(members: Mapping[Path, TrainOptions]) -> None:
    first, *rest = members.values()
    for other in rest:
        for name in (*STREAM_OPTIONS, "resolved_order_seed"):
            if getattr(other, name) != getattr(first, name):
                flag = "order-seed" if name == "resolved_order_seed" else name.replace("_", "-")
                raise ValueError(f"--{flag} must be one for all: SAEs that are trained together share their batches")


def _sites(store: ActivationStore, options: TrainOptions) -> tuple[Site, Site | None]:
    site = choose_site(store, options)
    return site, choose_target(store, options, site)


def _source(arrays: Sequence[ActivationArray], sites: Sequence[Site], site: Site, target: Site | None) -> Source:
    index = sites.index(site)
    target_index = index if target is None else sites.index(target)
    return Source(arrays[index], arrays[target_index], index, target_index)


def _open_member(
    stack: ExitStack,
    store: ActivationStore,
    path: Path,
    options: TrainOptions,
    places: tuple[Site, Site | None],
    plan: LoadingPlan,
    started: Run | None,
) -> Run:
    """The run directory of a member, made or gone on with, locked until the end."""
    site, target = places
    d_in = store.activations(site).d_in
    d_sae = options.d_sae(d_in)
    if started is not None:
        check_resumable(started, options, store, site)
    else:
        check_space(path, d_in, d_sae)
        make_folder(path)
    stack.enter_context(closing(FolderLock(path)))  # before --overwrite removes anything
    if started is not None:
        return started
    config = describe_run(options, store, site, path, d_sae, plan, target)
    return create_run(path, config, overwrite=options.overwrite)


class _Training:
    """The loop over the batches, for all members."""

    def __init__(
        self,
        runs: Mapping[Path, Run],
        members: Mapping[Path, TrainOptions],
        sources: Mapping[Path, Source],
        loader: BatchLoader,
        device: torch.device,
        reporter: Reporter,
        ranks: Ranks,
    ) -> None:
        self._options = next(iter(members.values()))
        self._loader, self._device, self._reporter, self._ranks = loader, device, reporter, ranks
        self._results: dict[Path, TrainResult] = {}
        self._failures: list[Failure] = []
        self._members: dict[Path, Member] = {}
        self._order = list(members)
        for path, run in runs.items():
            if run.is_finished:
                self._results[path] = _finished_result(run)
            else:
                self._members[path] = Member(run, members[path], sources[path], loader, device, ranks)
        self._step = min(member.state.step for member in self._members.values())
        self._stop = StopRequest()
        self._is_sweep = len(members) > 1

    def run(self) -> tuple[list[TrainResult], list[Failure]]:
        """Train to the last step."""
        self._announce()
        try:
            with self._stop:
                self._steps()
                for path, member in list(self._members.items()):
                    try:
                        self._results[path] = member.finish()
                    except (StoreError, OSError) as error:
                        self._drop(path, error)
        finally:
            for member in self._members.values():
                member.close()
        return [self._results[path] for path in self._order if path in self._results], self._failures

    def _drop(self, path: Path, error: Exception) -> None:
        """Go on without a member that failed; raise where it was the last one."""
        if len(self._members) + len(self._results) <= 1 or self._ranks.n_ranks > 1:
            raise error
        reason = " ".join(str(error).split())
        self._failures.append(Failure(path, reason))
        self._members.pop(path).close()
        self._reporter.warn(f"{path} stopped, the others go on: {reason}")

    def _announce(self) -> None:
        options, loader = self._options, self._loader
        for path, member in self._members.items():
            sae, run = member.state.sae, member.run
            what = f"{member.options.variant} {'transcoder' if sae.is_transcoder else 'SAE'}"
            target = f" to {run.target_site}" if run.target_site else ""
            self._say(f"{what} of {sae.d_sae:,} features on {run.site}{target} of {run.store_path}: {path}", [member])
        members = list(self._members.values())
        self._say(
            f"{options.steps:,} steps of {options.batch_size:,} rows: "
            f"{options.steps * options.batch_size / loader.n_rows:.2f} passes over {loader.n_rows:,} training rows, "
            f"on {self._device}" + (f", in {self._ranks.n_ranks} processes" if self._ranks.n_ranks > 1 else ""),
            members,
        )
        sizes = [(member.state.sae.d_in, member.state.sae.d_sae) for member in members]
        memory = format_bytes(sum(memory_bytes(*size, options.batch_size) for size in sizes))
        if loader.plan.memory_bytes:
            memory += f" and {format_bytes(loader.plan.memory_bytes)} to mix the rows"
        size = format_bytes(sum(disk_bytes(*size) for size in sizes))
        self._say(f"memory beside the program's own: about {memory}; writes at most {size} to disk", members)
        for member in members:
            if member.state.step:
                left = options.steps - member.state.step
                self._say(f"{member.run.path}: resumed at step {member.state.step:,}, {left:,} to go", [member])
        for member in members:
            if member.options.warmup > options.steps:
                member.warnings.append(
                    f"--warmup {member.options.warmup} exceeds the {options.steps} steps of the run: "
                    "the rate never reaches --lr."
                )
            member.warnings += [f"{member.run.store_path}: {note}" for note in loader.plan.notes]
            for warning in member.warnings:
                member.log.say(f"warning: {warning}")
        for warning in dict.fromkeys(warning for member in members for warning in member.warnings):
            self._reporter.warn(warning)

    def _say(self, line: str, members: Sequence[Member]) -> None:
        self._reporter.say(line)
        for member in members:
            member.log.say(line)

    def _steps(self) -> None:
        options = self._options
        with (
            self._reporter.task(
                "train", options.steps * options.batch_size, "rows", done=self._step * options.batch_size
            ) as task,
            closing(self._loader.batches(self._step, options.steps)) as batches,
        ):
            start = (time.monotonic(), self._step)
            is_forecast = False
            for batch in batches:
                for path, member in list(self._members.items()):
                    if member.state.step == self._step:  # one that was resumed may be ahead
                        self._take(path, member, batch)
                self._step += 1
                if not is_forecast and (
                    self._step % options.log_every == 0 or time.monotonic() - start[0] > _FORECAST_AFTER_S
                ):
                    is_forecast = True
                    self._forecast(*start)
                self._show(task)
                self._stop_if_asked()

    def _take(self, path: Path, member: Member, batch: list[Tensor]) -> None:
        try:
            result = member.take_step(batch)
            member.log_step(batch, result)
            member.after_step()
        except (StoreError, OSError, MemoryError, torch.OutOfMemoryError) as error:
            self._drop(path, error)

    def _show(self, task: Task) -> None:
        if self._is_sweep:
            task.advance(self._options.batch_size)
            task.show_rows([{"run": path.name, **member.shown} for path, member in self._members.items()])
        else:
            (member,) = self._members.values()
            task.advance(self._options.batch_size, **member.shown)

    def _forecast(self, start_s: float, first_step: int) -> None:
        """Say how long the steps that are left take, at the rate of those since `first_step`."""
        options, step = self._options, self._step
        if step < options.steps:
            if self._device.type == "cuda":
                torch.cuda.synchronize()
            rows_per_s = (step - first_step) * options.batch_size / (time.monotonic() - start_s)
            rows_left = (options.steps - step) * options.batch_size
            self._say(
                f"about {format_s(rows_left / rows_per_s)} at {format_rate(rows_per_s)} rows/s",
                list(self._members.values()),
            )

    def _stop_if_asked(self) -> None:
        options, step = self._options, self._step
        name = self._ranks.any(self._stop.name)
        if not name or step >= options.steps:
            return
        text = f"stopped by {name} after step {step:,} of {options.steps:,}"
        for member in self._members.values():
            member.checkpoint()
            member.log.say(text)
        place = self._order[0] if not self._is_sweep else self._order[0].parent
        raise TrainingStopped(f"{place}: {text}, checkpoint written: go on with the same command and --resume.")


def _finished_result(run: Run) -> TrainResult:
    options = run.options
    logged = [record for record in run.metrics() if record["split"] == "train"]
    return TrainResult(
        run_path=run.path,
        site=run.site,
        d_in=run.d_in,
        d_sae=run.d_sae,
        steps=options.steps,
        rows=options.steps * options.batch_size,
        passes=run.config["passes"],
        n_dead=logged[-1]["n_dead"],
        dead_after_rows=options.dead_after_rows,
        held_out=None,
        seconds=0.0,
        rows_per_s=float("nan"),
        was_finished=True,
    )

"""The training of one SAE, or of several from one stream of batches: from a store to run directories."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ..memory import keep_freed_memory
from ..progress import Reporter, Task, format_bytes, format_rate, format_s
from ..store.errors import StoreError
from ..store.files import FolderLock
from ..store.format import Site
from ..store.loading import LoadingPlan, plan_loading, require_training_rows
from ..store.reader import ActivationArray, ActivationStore, open_store
from .configuration import check_resumable, choose_site, choose_target, describe_run
from .evaluation import read_blocks
from .loader import BatchLoader
from .logs import require_loggers
from .member import Member, Source
from .options import TrainOptions
from .outcome import TrainingStopped, TrainResult, finished_result
from .precision import check_precision
from .ranks import ALONE, Ranks
from .resources import Size, check_space, disk_bytes, memory_bytes
from .run_dir import Run, create_run, make_folder, open_run
from .signals import StopRequest
from .spliced import SplicedEvaluation, Splicer

FAILURES = (StoreError, OSError, MemoryError, RuntimeError)
"""What one SAE may end by alone; of the RuntimeErrors, those of memory."""

_FORECAST_AFTER_S = 5.0  # a large SAE on a CPU takes half a minute a step: minutes until the first logged one

STREAM_OPTIONS = (
    *("token", "batch_size", "rows", "device", "loader_memory"),
    *("checkpoint_every", "log_every", "eval_every", "eval_rows", "tensorboard", "wandb", "overwrite"),
    *("images", "images_rows", "images_memory", "caption"),
)
"""What the members of a sweep share: the stream of batches, and when all of them write."""


@dataclass(frozen=True)
class Failure:
    """A member that ended before its last step, and why."""

    run_path: Path
    reason: str


class SweepRecord(Protocol):
    """What is written about the runs of a sweep together."""

    def writing(self) -> AbstractContextManager[object]:
        """Make the folder of the sweep, held against others until the end; before any run is made."""

    def failed(self, failure: Failure) -> None:
        """Note a run that stopped alone."""


def train(
    options: TrainOptions,
    store_path: Path | str,
    run_path: Path | str,
    reporter: Reporter | None = None,
    resume: bool = False,
    ranks: Ranks = ALONE,
    splicer: Splicer | None = None,
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
    splicer
        Makes what scores the SAE in its tower, where the options name images.

    Raises
    ------
    ValueError
        When an option does not fit the store.
    StoreError
        When the store cannot be used, the run exists (or, to resume, does not, or was started otherwise).
    TrainingStopped
        After SIGINT or SIGTERM, with a checkpoint written; or when the loss is no longer finite.
    """
    results, failures = train_together(
        {Path(run_path): options}, store_path, reporter, resume=resume, ranks=ranks, splicer=splicer
    )
    assert not failures  # the only member's error is raised
    return results[0]


def train_together(
    members: Mapping[Path, TrainOptions],
    store_path: Path | str,
    reporter: Reporter | None = None,
    *,
    resume: bool = False,
    ranks: Ranks = ALONE,
    sweep: SweepRecord | None = None,
    splicer: Splicer | None = None,
) -> tuple[list[TrainResult], list[Failure]]:
    """Train several SAEs from one stream of batches, each into its own run directory.

    Each becomes what it would be alone: it sees the same rows in the same order, and shares nothing but their reading.
    Whatever their number, each batch, sample and held-out row is read once.

    Parameters
    ----------
    members
        The options of each run directory, alike in `STREAM_OPTIONS` and in the order of the rows.
    sweep
        Told what becomes of them; without it, the error of any is raised.
    splicer
        As for `train`: all of them are scored on the same images.

    Returns
    -------
    results
        Of the members that finished, in their order.
    failures
        Of those that stopped alone.
    """
    reporter = reporter if reporter is not None and ranks.rank == 0 else Reporter()
    _check_stream(members)
    started = {path: open_run(path) if resume and (path / "config.json").exists() else None for path in members}
    if resume and sweep is None:
        started = {path: open_run(path) for path in members}
    first = next(iter(members.values()))
    # A store that has grown is read as it was when the run was started.
    known = next((run for run in started.values() if run is not None), None)
    store = open_store(store_path, n_parts=None if known is None else known.n_store_parts)
    places = {path: _sites(store, options) for path, options in members.items()}
    require_training_rows(store)
    sites = list(dict.fromkeys(site for pair in places.values() for site in pair if site is not None))
    arrays = [store.activations(site) for site in sites]
    device = ranks.device(first.device)
    if device.type == "cpu":
        keep_freed_memory()
    for options in members.values():
        check_precision(options.precision, device)
        require_loggers(options)
    plan = (
        plan_loading(arrays, first.batch_size, round(first.loader_memory * 1e9))
        if known is None
        else known.loading_plan
    )
    _check_members(store, members, places, started)
    spliced = None
    if first.images is not None and ranks.rank == 0 and not all(run and run.is_finished for run in started.values()):
        if splicer is None:
            raise ValueError("images: they are evaluated on by `thresher train` and thresher.train_sae")
        spliced = splicer(first, store, reporter)
        spliced.prepare(list(dict.fromkeys(places.values())))
    with ExitStack() as stack:
        runs = {}
        if sweep is not None and ranks.rank == 0:
            stack.enter_context(sweep.writing())
        if ranks.rank == 0:
            for path, options in members.items():
                runs[path] = _open_member(stack, store, path, options, places[path], plan, started[path])
        configs = json.loads(ranks.tell(json.dumps([run.config for run in runs.values()])))
        runs = {path: Run(path, config) for path, config in zip(members, configs, strict=True)}
        if all(run.is_finished for run in runs.values()):
            for path, options in members.items():
                reporter.say(f"{path} is finished: {options.steps:,} steps. Nothing to resume.")
            return [finished_result(run) for run in runs.values()], []
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
        return _Training(runs, members, sources, loader, device, reporter, ranks, sweep, spliced).run()


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


def _check_members(
    store: ActivationStore,
    members: Mapping[Path, TrainOptions],
    places: Mapping[Path, tuple[Site, Site | None]],
    started: Mapping[Path, Run | None],
) -> None:
    """Check all of them before anything is written."""
    sizes = []
    for path, options in members.items():
        site, target = places[path]
        size = Size(options, store.activations(site).d_in, store.activations(target or site).d_in)
        options.d_sae(size.d_in)  # refuses fewer features than k
        run = started[path]
        if run is None:
            sizes.append(size)
        else:
            check_resumable(run, options, store, site, target)
    if sizes:
        first = next(iter(members))
        check_space(first if len(members) == 1 else first.parent, sizes)


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
    d_sae = options.d_sae(store.activations(site).d_in)
    if started is None:
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
        sweep: SweepRecord | None,
        spliced: SplicedEvaluation | None,
    ) -> None:
        self._options = next(iter(members.values()))
        self._loader, self._device, self._reporter, self._ranks = loader, device, reporter, ranks
        self._sources, self._spliced = sources, spliced
        self._results: dict[Path, TrainResult] = {}
        self._failures: list[Failure] = []
        self._members: dict[Path, Member] = {}
        self._order = list(members)
        self._sweep = sweep
        for path, run in runs.items():
            if run.is_finished:
                self._results[path] = finished_result(run)
                continue
            try:
                self._members[path] = Member(run, members[path], sources[path], loader, device, ranks, spliced)
            except FAILURES as error:
                self._fail(path, error)
        self._step = min((member.state.step for member in self._members.values()), default=self._options.steps)
        self._stop = StopRequest()

    def run(self) -> tuple[list[TrainResult], list[Failure]]:
        """Train to the last step."""
        try:
            with self._stop:
                if self._members:  # not all have failed as they started
                    self._announce()
                    self._steps()
                self._evaluate(list(self._members))
                self._each(list(self._members), self._finish)
                self._ranks.wait()
        finally:
            for member in self._members.values():
                member.close()
        return [self._results[path] for path in self._order if path in self._results], self._failures

    def _each(self, paths: Sequence[Path], act: Callable[..., object], *arguments: object) -> None:
        """Let each of these members act, if it has not failed before; one that fails here stops alone."""
        for path in paths:
            if path in self._members:
                try:
                    act(self._members[path], *arguments)
                except FAILURES as error:
                    self._fail(path, error)

    def _fail(self, path: Path, error: Exception) -> None:
        """Go on without a member that failed; raise where it is none of a sweep.

        Several processes go on together only from what stops a member in all of them.
        """
        is_of_all = self._ranks.n_ranks == 1 or isinstance(error, TrainingStopped)
        is_of_memory = _is_out_of_memory(error)
        if self._sweep is None or not is_of_all or (isinstance(error, RuntimeError) and not is_of_memory):
            raise error
        reason = " ".join(str(error).split()) or type(error).__name__
        failure = Failure(path, f"out of memory: {reason[:200]}" if is_of_memory else reason)
        self._failures.append(failure)
        if self._ranks.rank == 0:
            self._sweep.failed(failure)
        member = self._members.pop(path, None)
        if member is not None:
            member.close()
        self._reporter.warn(f"{path} stopped, the others go on: {failure.reason}")

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
        sizes = [Size(member.options, member.state.sae.d_in, member.state.sae.d_out) for member in members]
        memory = format_bytes(memory_bytes(sizes, loader.n_rows, self._ranks.n_ranks))
        if loader.plan.memory_bytes:
            memory += f" and {format_bytes(loader.plan.memory_bytes)} to mix the rows"
        size = format_bytes(disk_bytes(sizes))
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
                if not self._members:
                    break
                # One that was resumed may be ahead.
                paths = [path for path, member in self._members.items() if member.state.step == self._step]
                self._each(paths, self._take, batch)
                self._step += 1
                self._after_step(paths)
                if not is_forecast and (
                    self._step % options.log_every == 0 or time.monotonic() - start[0] > _FORECAST_AFTER_S
                ):
                    is_forecast = True
                    self._forecast(*start)
                self._show(task)
                self._stop_if_asked()

    def _take(self, member: Member, batch: list[Tensor]) -> None:
        member.log_step(batch, member.take_step(batch))

    def _after_step(self, paths: Sequence[Path]) -> None:
        """Have members that took a step evaluated, and write their checkpoints, where it is time to."""
        options, step = self._options, self._step
        if step == options.steps:
            return
        # What an SAE costs its tower falls within the first tens of steps.
        is_early = self._spliced is not None and step < options.eval_every and step.bit_count() == 1
        if is_early or (options.eval_every and step % options.eval_every == 0):
            self._evaluate(paths)
        if options.checkpoint_every and step % options.checkpoint_every == 0:
            self._each(paths, Member.checkpoint)

    def _evaluate(self, paths: Sequence[Path]) -> None:
        """Log the numbers of members, for all of which the held-out rows are read once."""
        sources = [self._sources[path] for path in paths if path in self._members]
        if self._ranks.rank != 0 or not sources:
            return
        arrays = list(dict.fromkeys(array for source in sources for array in (source.activations, source.target)))
        start, stop = arrays[0].store.split("heldout")
        if self._options.eval_rows:
            stop = min(stop, start + self._options.eval_rows)
        with closing(read_blocks(arrays, start, stop, self._device)) as blocks:
            for block in blocks:
                self._each(paths, Member.observe, block)
                if self._members.keys().isdisjoint(paths):
                    break
        self._each(paths, Member.evaluate)

    def _finish(self, member: Member) -> None:
        result = self._results[member.run.path] = member.finish()
        if result.missed_target:
            self._reporter.warn(result.missed_target)

    def _show(self, task: Task) -> None:
        if self._sweep is not None or len(self._order) > 1:
            task.advance(self._options.batch_size)
            task.show_rows(
                [{"run": path.name, **member.shown} for path, member in self._members.items()]
                + [{"run": failure.run_path.name, "step": "stopped"} for failure in self._failures]
            )
        else:
            (member,) = self._members.values()
            task.advance(self._options.batch_size, **member.shown)

    def _forecast(self, start_s: float, first_step: int) -> None:
        """Say how long the steps that are left take, at the rate of those since `first_step`."""
        options, step = self._options, self._step
        if step < options.steps:
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            elif self._device.type == "mps":
                torch.mps.synchronize()
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
        self._each(list(self._members), self._leave, text)
        self._ranks.wait()  # torchrun ends all processes with the first that ends: not before it is written
        place = self._order[0] if self._sweep is None else self._order[0].parent
        raise TrainingStopped(f"{place}: {text}, checkpoint written: go on with the same command and --resume.")

    def _leave(self, member: Member, text: str) -> None:
        member.checkpoint()
        member.log.say(text)


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, on a GPU or on the CPU, where torch has no error of its own for it."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)

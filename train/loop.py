"""One training run: from a store to a run directory."""

import shutil
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from ..devices import choose_device
from ..progress import Reporter, Task, format_bytes, format_rate, format_s
from ..store.errors import StoreError
from ..store.files import FolderLock
from ..store.format import Site
from ..store.loading import plan_loading, require_training_rows
from ..store.reader import ActivationArray, open_store
from .checkpoint import TrainingState, load_checkpoint, newest_checkpoint, save_checkpoint
from .configuration import check_resumable, choose_site, describe_run
from .early_warning import off_centre_warning
from .evaluation import evaluate
from .initialise import decoder_bias, input_scaling, new_sae
from .loader import BatchLoader
from .metrics import ReconstructionResult, batch_metrics
from .optimiser import UnitNormAdam, learning_rate
from .options import TrainOptions
from .resources import check_space, disk_bytes, memory_bytes
from .run_dir import CHECKPOINT, WEIGHTS, Run, RunLog, create_run, make_folder, open_run
from .signals import StopRequest
from .step import Objective, StepResult, compute_step

SAMPLE_ROWS = 15_360
"""Rows that the input scaling and the starting decoder bias are taken from: the post's buffer of 15 batches."""

_FORECAST_AFTER_S = 5.0  # a large SAE on a CPU takes half a minute a step: minutes until the first logged one


class TrainingStopped(StoreError):
    """A run that ended before its last step, with what to do next."""


@dataclass(frozen=True)
class TrainResult:
    """What a training run made.

    Parameters
    ----------
    held_out
        Numbers on held-out rows; None where the store has none, or a finished run was asked to resume.
    rows_per_s
        Training rows a second, over the steps of this process; NaN where it took none.
    n_dead
        Features that did not fire on the last `dead_after_rows` training rows; 0 in a run of no more rows than that.
    """

    run_path: Path
    site: Site
    d_in: int
    d_sae: int
    steps: int
    rows: int
    passes: float
    n_dead: int
    dead_after_rows: int
    held_out: ReconstructionResult | None
    seconds: float
    rows_per_s: float
    was_finished: bool = False


def train(
    options: TrainOptions,
    store_path: Path | str,
    run_path: Path | str,
    reporter: Reporter | None = None,
    resume: bool = False,
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

    Raises
    ------
    ValueError
        When an option does not fit the store.
    StoreError
        When the store cannot be used, the run exists (or, to resume, does not, or was started otherwise).
    TrainingStopped
        After SIGINT or SIGTERM, with a checkpoint written; or when the loss is no longer finite.
    """
    reporter = reporter or Reporter()
    run_path = Path(run_path)
    started = open_run(run_path) if resume else None
    # A store that has grown is read as it was when the run was started.
    store = open_store(store_path, n_parts=None if started is None else started.n_store_parts)
    site = choose_site(store, options)
    require_training_rows(store)
    activations = store.activations(site)
    device = choose_device(options.device)
    d_sae = options.d_sae(activations.d_in)
    if started is not None:
        check_resumable(started, options, store, site)
        if started.is_finished:
            reporter.say(f"{run_path} is finished: {options.steps:,} steps. Nothing to resume.")
            return _finished_result(started)
    else:
        check_space(run_path, activations.d_in, d_sae)
        make_folder(run_path)
    with closing(FolderLock(run_path)):  # before --overwrite removes anything
        if started is None:
            plan = plan_loading([activations], options.batch_size, round(options.loader_memory * 1e9))
            config = describe_run(options, store, site, run_path, d_sae, plan)
            started = create_run(run_path, config, overwrite=options.overwrite)
        run = started
        return _Training(run, options, activations, device, reporter).run()


class _Training:
    """The state and the loop of one run."""

    def __init__(
        self, run: Run, options: TrainOptions, activations: ActivationArray, device: torch.device, reporter: Reporter
    ) -> None:
        self._run, self._options, self._activations, self._device = run, options, activations, device
        self._reporter = reporter
        self._loader = BatchLoader(
            activations,
            batch_size=options.batch_size,
            seed=options.seed,
            device=device,
            plan=run.loading_plan,
        )
        self._objective = Objective(
            l1=options.l1,
            ghost_grads=options.ghost_grads,
            aux=options.aux,
            aux_k=options.resolved_aux_k(activations.d_in),
            precision=options.precision,
        )
        self._warnings: list[str] = []
        self._state = self._start()
        self._log = RunLog(run.path, keep_to_step=self._state.step)
        self._first_bad_step = torch.full((), options.steps, dtype=torch.int64, device=device)
        self._stop = StopRequest()

    def run(self) -> TrainResult:
        """Train to the last step."""
        start_s, first_step = time.monotonic(), self._state.step
        self._announce()
        try:
            with self._stop:
                self._steps()
                held_out = self._evaluate()
            rows_done = (self._options.steps - first_step) * self._options.batch_size
            seconds = time.monotonic() - start_s
            result = self._finish(held_out, seconds, rows_done / seconds if rows_done else float("nan"))
        finally:
            self._log.close()
        return result

    def _start(self) -> TrainingState:
        """The state of the newest checkpoint, or a new one."""
        options, d_in = self._options, self._activations.d_in
        sae = new_sae(options, d_in).to(self._device)
        state = TrainingState(sae, UnitNormAdam(sae), torch.zeros(sae.d_sae, dtype=torch.int64, device=self._device))
        checkpoint = newest_checkpoint(self._run.path / CHECKPOINT)
        if checkpoint is not None:
            load_checkpoint(checkpoint, state)
            return state
        sample = self._loader.sample(SAMPLE_ROWS)
        mean, scale = input_scaling(sample, options.normalize)
        sae.input_mean.copy_(mean)
        sae.input_scale.copy_(scale)
        z = sae.scale(sample)
        sae.b_dec.copy_(decoder_bias(z, options.b_dec_init))
        warning = off_centre_warning(z, sae.b_dec)
        self._warnings += [warning] if warning else []
        return state

    def _announce(self) -> None:
        options, sae = self._options, self._state.sae
        steps_left = options.steps - self._state.step
        memory = format_bytes(memory_bytes(sae.d_in, sae.d_sae, options.batch_size))
        if self._loader.plan.memory_bytes:
            memory += f" and {format_bytes(self._loader.plan.memory_bytes)} to mix the rows"
        size = format_bytes(disk_bytes(sae.d_in, sae.d_sae))
        lines = [
            f"{options.variant} SAE of {sae.d_sae:,} features on {self._run.site} of {self._run.store_path}",
            f"{options.steps:,} steps of {options.batch_size:,} rows: {self._passes():.2f} passes over "
            f"{self._loader.n_rows:,} training rows, on {self._device}",
            f"memory beside the program's own: about {memory}; writes {self._run.path}, at most {size} of disk",
        ]
        if self._state.step:
            lines.append(f"resumed at step {self._state.step:,}, {steps_left:,} to go")
        for line in lines:
            self._say(line)
        if options.warmup > options.steps:
            self._warnings.append(
                f"--warmup {options.warmup} exceeds the {options.steps} steps of the run: the rate never reaches --lr."
            )
        self._warnings += [f"{self._run.store_path}: {note}" for note in self._loader.plan.notes]
        for warning in self._warnings:
            self._reporter.warn(warning)
            self._log.say(f"warning: {warning}")

    def _say(self, line: str) -> None:
        self._reporter.say(line)
        self._log.say(line)

    def _passes(self) -> float:
        return self._options.steps * self._options.batch_size / self._loader.n_rows

    def _steps(self) -> None:
        options, state = self._options, self._state
        with (
            self._reporter.task(
                "train", options.steps * options.batch_size, "rows", done=state.step * options.batch_size
            ) as task,
            closing(self._loader.batches(state.step, options.steps)) as batches,
        ):
            last_log = start = (time.monotonic(), state.step)
            is_forecast = False
            fields: dict[str, object] = {}
            for x in batches:
                z = state.sae.scale(x)
                result = self._take_step(z)
                if not is_forecast and (
                    state.step % options.log_every == 0 or time.monotonic() - start[0] > _FORECAST_AFTER_S
                ):
                    is_forecast = True
                    self._forecast(*start)
                if state.step % options.log_every == 0 or state.step == options.steps:
                    self._stop_if_not_finite()
                    now = time.monotonic()
                    rows_per_s = (state.step - last_log[1]) * options.batch_size / (now - last_log[0])
                    last_log = (now, state.step)
                    fields = self._log_step(x, result, rows_per_s)
                elif self._device.type == "cpu":
                    self._stop_if_not_finite()
                task.advance(options.batch_size, **fields)
                self._after_step(task)

    def _forecast(self, start_s: float, first_step: int) -> None:
        """Say how long the steps that are left take, at the rate of those since `first_step`."""
        options, step = self._options, self._state.step
        self._stop_if_not_finite()  # also waits for the device
        if step < options.steps:
            rows_per_s = (step - first_step) * options.batch_size / (time.monotonic() - start_s)
            rows_left = (options.steps - step) * options.batch_size
            self._say(f"about {format_s(rows_left / rows_per_s)} at {format_rate(rows_per_s)} rows/s")

    def _take_step(self, z: Tensor) -> StepResult:
        """Gradients, then Adam: one optimiser step on a scaled batch."""
        options, state = self._options, self._state
        dead = None
        # No feature can have been silent for longer than training has run; the check costs a GPU no wait until then.
        if state.step * options.batch_size > options.dead_after_rows:
            ids = (state.rows_since_fired > options.dead_after_rows).nonzero().squeeze(1)
            dead = ids if len(ids) else None
        result = compute_step(state.sae, z, dead, self._objective)
        is_bad = ~torch.isfinite(result.loss)
        self._first_bad_step = torch.where(is_bad, self._first_bad_step.clamp(max=state.step), self._first_bad_step)
        state.adam.update(state.sae, result.gradients, learning_rate(state.step, options))
        state.rows_since_fired += len(z)
        state.rows_since_fired.masked_fill_(result.fired, 0)
        state.step += 1
        return result

    def _after_step(self, task: Task) -> None:
        options, step = self._options, self._state.step
        if self._stop.name and step < options.steps:
            self._checkpoint()
            text = f"stopped by {self._stop.name} after step {step:,} of {options.steps:,}"
            self._log.say(text)
            raise TrainingStopped(
                f"{self._run.path}: {text}, checkpoint written: go on with the same command and --resume."
            )
        if step == options.steps:
            return
        if options.eval_every and step % options.eval_every == 0:
            self._evaluate()
        if options.checkpoint_every and step % options.checkpoint_every == 0:
            self._checkpoint()

    def _checkpoint(self) -> None:
        self._stop_if_not_finite()
        self._stop_if_weights_are_not_finite()
        self._log.sync()
        save_checkpoint(self._run.path / CHECKPOINT, self._state)

    def _log_step(self, x: Tensor, result: StepResult, rows_per_s: float) -> dict[str, object]:
        options, state = self._options, self._state
        batch = batch_metrics(x, result.residual * state.sae.input_scale)
        n_dead = self._n_dead()
        record = {
            "step": state.step,
            "rows": state.step * options.batch_size,
            "split": "train",
            "n_rows": len(x),
            "lr": learning_rate(state.step - 1, options),
            "loss": float(result.loss),
            **batch,
            "l1": float(result.l1),
            "l0": float(result.l0),
            "dead_loss": float(result.dead_loss),
            "n_dead": n_dead,
            "share_dead": n_dead / state.sae.d_sae,
            "rows_per_s": rows_per_s,
        }
        self._log.metrics(record)
        return {
            "step": state.step,
            "loss": record["loss"],
            "l0": record["l0"],
            "ev": batch["explained_variance"],
            "dead": n_dead,
        }

    def _n_dead(self) -> int:
        return int((self._state.rows_since_fired > self._options.dead_after_rows).sum())

    def _evaluate(self) -> ReconstructionResult | None:
        """Log the numbers of `docs/definitions.md` on held-out rows; None where the store has none."""
        store = self._activations.store
        start, stop = store.split("heldout")
        if self._options.eval_rows:
            stop = min(stop, start + self._options.eval_rows)
        if start == stop:
            return None
        result = evaluate(self._state.sae, self._activations, start, stop)
        step = self._state.step
        self._log.metrics(
            {"step": step, "rows": step * self._options.batch_size, "split": "heldout", **result.to_json()}
        )
        return result

    def _stop_if_not_finite(self) -> None:
        step = int(self._first_bad_step)
        if step >= self._options.steps:
            return
        rows = self._activations.store.rows_of(self._loader.positions(step))
        is_bad = ~torch.isfinite(self._loader.read(step)).all(1).cpu().numpy()
        if is_bad.any():
            cause = f"store row {rows[is_bad][0]} of its batch is not finite: check the store with `verify`"
        else:
            cause = (
                f"its {len(rows):,} rows (store rows {rows[0]}, {rows[1 % len(rows)]}, ...) are finite: "
                "training diverged; lower --lr or lengthen --warmup"
            )
        self._stop_for_good(f"the loss of step {step + 1:,} is not finite; {cause}")

    def _stop_if_weights_are_not_finite(self) -> None:
        """The last update may have broken what the loss before it could not show."""
        if not all(bool(torch.isfinite(weight).all()) for weight in self._state.sae.parameters()):
            step = self._state.step
            self._stop_for_good(f"the weights after step {step:,} are not finite; lower --lr or lengthen --warmup")

    def _stop_for_good(self, text: str) -> NoReturn:
        checkpoint = newest_checkpoint(self._run.path / CHECKPOINT)
        kept = f"The last good checkpoint is {checkpoint}." if checkpoint else "There is no checkpoint before it."
        self._log.say(text)
        raise TrainingStopped(f"{self._run.path}: {text}. {kept}")

    def _finish(self, held_out: ReconstructionResult | None, seconds: float, rows_per_s: float) -> TrainResult:
        options, state = self._options, self._state
        self._stop_if_not_finite()
        self._stop_if_weights_are_not_finite()
        self._log.say(f"finished {options.steps:,} steps")
        self._log.sync()
        state.sae.save(self._run.path / WEIGHTS)
        # Of no more use: a finished run does not go on.
        shutil.rmtree(self._run.path / CHECKPOINT, ignore_errors=True)
        return TrainResult(
            run_path=self._run.path,
            site=self._run.site,
            d_in=state.sae.d_in,
            d_sae=state.sae.d_sae,
            steps=options.steps,
            rows=options.steps * options.batch_size,
            passes=self._passes(),
            n_dead=self._n_dead(),
            dead_after_rows=options.dead_after_rows,
            held_out=held_out,
            seconds=seconds,
            rows_per_s=rows_per_s,
        )


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

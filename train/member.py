"""One SAE in training: its state, its steps, its log, its checkpoints."""

import shutil
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from torch import Tensor

from ..store.errors import StoreError
from ..store.reader import ActivationArray
from .checkpoint import TrainingState, load_checkpoint, newest_checkpoint, save_checkpoint
from .early_warning import off_centre_warning
from .evaluation import Block, Evaluation
from .initialise import decoder_bias, encoder_scale, input_scaling, new_sae
from .loader import BatchLoader
from .logs import open_loggers
from .metrics import ReconstructionResult, batch_metrics
from .models import BatchTopKSae, SparseAutoencoder
from .objective import Objective
from .optimiser import AdamSettings, UnitNormAdam, gradient_norm, learning_rate
from .options import VARIANTS_OF, TrainOptions
from .outcome import TrainingStopped, TrainResult, missed_target
from .penalty import SparsityPenalty
from .precision import float32_matmuls
from .ranks import Ranks
from .resample import resample_features
from .run_dir import CHECKPOINT, WEIGHTS, Run, RunLog
from .spliced import SplicedEvaluation
from .step import StepResult, compute_step

SAMPLE_ROWS = 15_360
"""Rows that the scaling and the starting decoder bias are taken from: the post's buffer of 15 batches."""

_RESAMPLING_ROWS = 16_384  # of which those that are reconstructed worst give dead features a new direction


@dataclass(frozen=True)
class Source:
    """Where a member's rows come from.

    Parameters
    ----------
    activations, target
        What it reads, and what it reconstructs: the same, but for a transcoder.
    index, target_index
        Their places among the arrays of the stream.
    """

    activations: ActivationArray
    target: ActivationArray
    index: int
    target_index: int

    @property
    def is_transcoder(self) -> bool:
        """Whether another site is reconstructed."""
        return self.index != self.target_index


class Member:
    """One SAE in training.

    Parameters
    ----------
    run
        Its directory.
    source
        Its rows.
    loader
        Of the stream, for samples and for the rows of a step that went wrong.
    ranks
        The processes that train it; the first one writes.
    spliced
        Scores the tower with the SAE spliced in, at each evaluation.
    """

    def __init__(
        self,
        run: Run,
        options: TrainOptions,
        source: Source,
        loader: BatchLoader,
        device: torch.device,
        ranks: Ranks,
        spliced: SplicedEvaluation | None = None,
    ) -> None:
        self.run, self.options, self.warnings = run, options, list[str]()
        self._spliced, self._spliced_numbers = spliced, dict[str, Any]()
        self._source, self._loader, self._device, self._ranks = source, loader, device, ranks
        self._evaluation: Evaluation | None = None  # under way
        self._held_out: ReconstructionResult | None = None  # what the last one found
        self._objective = Objective(
            error=options.resolved_error,
            decoder_norm=options.decoder_norm,
            bandwidth=options.bandwidth,
            dead=options.resolved_dead_remedy if options.resolved_dead_remedy != "resample" else "none",
            aux=options.resolved_aux,
            aux_k=options.resolved_aux_k(source.activations.d_in),
            precision=options.precision,
        )
        self.state = self._start()
        self.log = RunLog(
            run.path,
            keep_to_step=self.state.step,
            writes=ranks.rank == 0,
            loggers=lambda kept: open_loggers(options, run.path, run.config, kept),
        )
        self._first_bad_step = torch.full((), options.steps, dtype=torch.int64, device=device)
        self._started_s, self._first_step = time.monotonic(), self.state.step
        self._last_log = (self._started_s, self.state.step)
        self.shown: dict[str, object] = {}
        """What the last logged step says, for a person who watches."""

    def _start(self) -> TrainingState:
        """The state of the newest checkpoint, or a new one."""
        options, source, device = self.options, self._source, self._device
        d_out = source.target.d_in if source.is_transcoder else None
        sae = new_sae(options, source.activations.d_in, d_out).to(device)
        state = TrainingState(
            sae,
            UnitNormAdam(
                sae,
                AdamSettings(
                    beta1=options.beta1,
                    beta2=options.beta2,
                    weight_decay=options.weight_decay,
                    clip_norm=options.clip_norm,
                    unit_norm=not options.decoder_norm,
                ),
            ),
            torch.zeros(sae.d_sae, dtype=torch.int64, device=device),
            SparsityPenalty(options, device),
        )
        if self._ranks.rank == 0:
            checkpoint = newest_checkpoint(self.run.path / CHECKPOINT)
            if checkpoint is not None:
                load_checkpoint(checkpoint, state, options.steps)
            else:
                self._fit_to_data(state.sae)
        state.take_first(self._ranks)
        return state

    def _fit_to_data(self, sae: SparseAutoencoder) -> None:
        """Set the scaling and the decoder bias that a new SAE starts from."""
        options, source = self.options, self._source
        sample = self._loader.sample(SAMPLE_ROWS)
        x, y = sample[source.index], sample[source.target_index]
        if not bool(torch.isfinite(x).all() and torch.isfinite(y).all()):  # one such row would spoil every other
            raise StoreError(
                f"{self.run.path}: not all of the {len(x):,} rows that the scaling is taken from are finite: check the "
                "store with `verify`, or harvest it anew."
            )
        mean, scale = input_scaling(x, options.normalize)
        sae.input_mean.copy_(mean)
        sae.input_scale.copy_(scale)
        if source.is_transcoder:
            mean, scale = input_scaling(y, options.normalize)
            sae.output_mean.copy_(mean)
            sae.output_scale.copy_(scale)
        z = sae.scale_target(y)
        sae.b_dec.copy_(decoder_bias(z, options.b_dec_init))
        if sae.centres_input:
            warning = off_centre_warning(z, sae.b_dec)
            self.warnings += [warning] if warning else []
            if options.encoder_init == "transpose" and options.variant in VARIANTS_OF["k"]:
                sae.encoder.mul_(encoder_scale(sae, z, self._objective))

    def take_step(self, batch: list[Tensor]) -> StepResult:
        """Gradients, then Adam: one optimiser step on this process's share of a batch, one tensor an array."""
        options, state = self.options, self.state
        sae = state.sae
        z = sae.scale(batch[self._source.index])
        target = sae.scale_target(batch[self._source.target_index]) if self._source.is_transcoder else None
        self._coefficient = state.penalty.at(state.step)
        with float32_matmuls(options.precision):
            result = compute_step(
                sae,
                z,
                self._dead() if self._objective.dead != "none" else None,
                replace(self._objective, sparsity=self._coefficient),
                target=target,
                n_total=options.batch_size,
                ranks=self._ranks,
                rows_at_once=options.micro_batch_size,
            )
        is_bad = ~torch.isfinite(result.loss)
        self._first_bad_step = torch.where(is_bad, self._first_bad_step.clamp(max=state.step), self._first_bad_step)
        if self._logs_after(state.step + 1):
            self._gradient_norm = gradient_norm(result.gradients)
        state.adam.update(sae, result.gradients, learning_rate(state.step, options))
        state.penalty.observe(result.l0)
        if isinstance(sae, BatchTopKSae) and result.batch_threshold is not None:
            sae.track(result.batch_threshold)
        state.rows_since_fired += options.batch_size
        state.rows_since_fired.masked_fill_(result.fired, 0)
        state.step += 1
        if self._resamples_after(state.step):
            self._resample()
        if self._device.type == "cpu" and not self._logs_after(state.step):
            self.stop_if_not_finite()  # costs a GPU a wait, which therefore looks when it logs
        return result

    def _dead(self) -> Tensor | None:
        """Ids of the dead features, None where there is none."""
        # None can have been silent for longer than training has run. A GPU waits for the check only after that, for a
        # remedy within the step; the choice of active pairs makes it wait once a block in any case.
        if self.state.step * self.options.batch_size <= self.options.dead_after_rows:
            return None
        ids = (self.state.rows_since_fired > self.options.dead_after_rows).nonzero().squeeze(1)
        return ids if len(ids) else None

    def _resamples_after(self, step: int) -> bool:
        options = self.options
        if options.resolved_dead_remedy != "resample" or step % options.resample_every:
            return False
        return step < options.steps * (1 - options.decay)  # what comes later would not learn to fire in time

    def _resample(self) -> None:
        """Give dead features the directions of rows that are reconstructed badly."""
        state, source = self.state, self._source
        dead = self._dead()
        if dead is None:
            return
        if self._ranks.rank == 0:
            sample = self._loader.sample(_RESAMPLING_ROWS, state.step)
            x, y = (sample[index].to(self._device) for index in (source.index, source.target_index))
            resample_features(state.sae, state.adam, dead, x, y, seed=self.options.seed, step=state.step)
        state.take_first(self._ranks)
        state.rows_since_fired.index_fill_(0, dead, 0)
        self.log.say(f"step {state.step:,}: {len(dead):,} dead features resampled")

    def _logs_after(self, step: int) -> bool:
        return step % self.options.log_every == 0 or step == self.options.steps

    def log_step(self, batch: list[Tensor], result: StepResult) -> None:
        """Write the numbers of the step just taken, where it is one that is logged."""
        options, state, source = self.options, self.state, self._source
        if not self._logs_after(state.step):
            return
        self.stop_if_not_finite()
        now = time.monotonic()
        rows_per_s = (state.step - self._last_log[1]) * options.batch_size / (now - self._last_log[0])
        self._last_log = (now, state.step)
        raw = state.sae.unscale_residual(result.residual, batch[source.index])
        numbers = batch_metrics(batch[source.target_index], raw, self._ranks)
        n_dead = self.n_dead()
        record = {
            "step": state.step,
            "rows": state.step * options.batch_size,
            "split": "train",
            "n_rows": options.batch_size,
            "lr": learning_rate(state.step - 1, options),
            "loss": float(result.loss),
            **numbers,
            "sparsity": float(result.sparsity),
            "coefficient": float(self._coefficient) if state.sae.has_penalty else None,
            "l0": float(result.l0),
            "dead_loss": float(result.dead_loss),
            "gradient_norm": float(self._gradient_norm),
            "n_dead": n_dead,
            "share_dead": n_dead / state.sae.d_sae,
            "rows_per_s": rows_per_s,
        }
        self.log.metrics(record)
        self.shown = {
            "step": state.step,
            "loss": record["loss"],
            "l0": record["l0"],
            "ev": numbers["explained_variance"],
            "dead": n_dead,
            **self._spliced_shown(),
        }

    def checkpoint(self) -> None:
        """Write all that the next step depends on."""
        self.stop_if_not_finite()
        self._stop_if_weights_are_not_finite()
        if self._ranks.rank == 0:
            self.log.sync()
            save_checkpoint(self.run.path / CHECKPOINT, self.state)

    def n_dead(self) -> int:
        """Features that did not fire on the last `dead_after_rows` rows."""
        return int((self.state.rows_since_fired > self.options.dead_after_rows).sum())

    def observe(self, block: Block) -> None:
        """Add held-out rows to the evaluation that is under way."""
        if self._evaluation is None:
            self._evaluation = Evaluation(self.state.sae, self._source.activations, self._source.target)
        self._evaluation.update(block)

    def evaluate(self) -> None:
        """Log the numbers of `docs/definitions.md` on the held-out rows observed, and on images."""
        evaluation, self._evaluation = self._evaluation, None
        self._held_out, numbers = None, dict[str, Any]()
        if evaluation is not None:
            self._held_out = evaluation.result()
            numbers = {**self._held_out.to_json(), **evaluation.of_features()}
        if self._spliced is not None:
            site, target = self._source.activations.site, self._source.target.site
            self._spliced_numbers = self._spliced.evaluate(
                self.state.sae, site, target if self._source.is_transcoder else None
            )
            self.shown |= self._spliced_shown()
        step, rows = self.state.step, self.state.step * self.options.batch_size
        if numbers or self._spliced_numbers:
            self.log.metrics({"step": step, "rows": rows, "split": "heldout", **numbers, **self._spliced_numbers})

    def _spliced_shown(self) -> dict[str, object]:
        names = {"contrastive_loss": "spliced", "loss_recovered": "recovered", "zero_shot_top1": "top1"}
        return {shown: self._spliced_numbers[name] for name, shown in names.items() if self._spliced_numbers}

    def stop_if_not_finite(self) -> None:
        """Raise `TrainingStopped` where the loss of a step was not finite."""
        step = int(self._first_bad_step)
        if step >= self.options.steps:
            return
        source = self._source
        rows = source.activations.store.rows_of(self._loader.positions(step))
        batch = self._loader.read(step)
        is_bad = ~(torch.isfinite(batch[source.index]).all(1) & torch.isfinite(batch[source.target_index]).all(1))
        bad = rows[is_bad.cpu().numpy()]
        if len(bad):
            cause = f"store row {bad[0]} of its batch is not finite: check the store with `verify`"
        else:
            cause = (
                f"its {len(rows):,} rows (store rows {rows[0]}, {rows[1 % len(rows)]}, ...) are finite: "
                "training diverged; lower --lr or lengthen --warmup"
            )
        self._stop_for_good(f"the loss of step {step + 1:,} is not finite; {cause}")

    def _stop_if_weights_are_not_finite(self) -> None:
        """The last update may have broken what the loss before it could not show."""
        if not all(bool(torch.isfinite(weight).all()) for weight in self.state.sae.parameters().values()):
            step = self.state.step
            self._stop_for_good(f"the weights after step {step:,} are not finite; lower --lr or lengthen --warmup")

    def _stop_for_good(self, text: str) -> NoReturn:
        checkpoint = newest_checkpoint(self.run.path / CHECKPOINT)
        kept = f"The last good checkpoint is {checkpoint}." if checkpoint else "There is no checkpoint before it."
        self.log.say(text)
        raise TrainingStopped(f"{self.run.path}: {text}. {kept}")

    def finish(self) -> TrainResult:
        """Write the weights, the run's last file, after the last evaluation."""
        options, state, held_out = self.options, self.state, self._held_out
        self.stop_if_not_finite()
        self._stop_if_weights_are_not_finite()
        missed = missed_target(self.run.path, options.target_l0, held_out, state.penalty.l0)
        if missed:
            self.log.say(f"warning: {missed}")
        self.log.say(f"finished {options.steps:,} steps")
        if self._ranks.rank == 0:
            self.log.sync()
            state.sae.save(self.run.path / WEIGHTS)
            # Of no more use: a finished run does not go on.
            shutil.rmtree(self.run.path / CHECKPOINT, ignore_errors=True)
        seconds = time.monotonic() - self._started_s
        rows = (options.steps - self._first_step) * options.batch_size
        return TrainResult(
            run_path=self.run.path,
            site=self.run.site,
            d_in=state.sae.d_in,
            d_sae=state.sae.d_sae,
            steps=options.steps,
            rows=options.steps * options.batch_size,
            passes=options.steps * options.batch_size / self._loader.n_rows,
            n_dead=self.n_dead(),
            dead_after_rows=options.dead_after_rows,
            held_out=held_out,
            seconds=seconds,
            rows_per_s=rows / seconds if rows else float("nan"),
            spliced=self._spliced_numbers or None,
            missed_target=missed,
        )

    def close(self) -> None:
        """Close its log."""
        with suppress(OSError):
            self.log.close()

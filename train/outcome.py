"""How a training run ends: what it made, or why it stopped."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..store.errors import StoreError
from ..store.format import Site
from .metrics import ReconstructionResult
from .run_dir import Run

_OFF_TARGET = 0.1


class TrainingStopped(StoreError):
    """A run that ended before its last step, with what to do next."""


@dataclass(frozen=True)
class TrainResult:
    """What a training run made.

    Parameters
    ----------
    held_out
        Numbers on held-out rows; None where the store has none, or a finished run was asked to resume.
    spliced
        What the tower scores with the SAE spliced in, as metrics.jsonl holds it; None where no images were given.
    rows_per_s
        Training rows a second, over the steps of this process; NaN where it took none.
    n_dead
        Features that did not fire on the last `dead_after_rows` training rows; 0 in a run of no more rows than that,
        None where a finished run has lost its metrics.
    missed_target
        What to tell the user where a target L0 was not held; None where it was, or none was asked for.
    """

    run_path: Path
    site: Site
    d_in: int
    d_sae: int
    steps: int
    rows: int
    passes: float
    n_dead: int | None
    dead_after_rows: int
    held_out: ReconstructionResult | None
    seconds: float
    rows_per_s: float
    was_finished: bool = False
    missed_target: str | None = None
    spliced: dict[str, Any] | None = None


def finished_result(run: Run) -> TrainResult:
    """What a run made that had ended before, as its directory tells."""
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
        n_dead=logged[-1].get("n_dead") if logged else None,
        dead_after_rows=options.dead_after_rows,
        held_out=None,
        seconds=0.0,
        rows_per_s=float("nan"),
        was_finished=True,
    )


def missed_target(
    run_path: Path, target: float | None, held_out: ReconstructionResult | None, trained_l0: float
) -> str | None:
    """What to tell the user where the L0 on held-out rows is more than a tenth off its target; else None.

    Parameters
    ----------
    trained_l0
        Of the last batches.
    """
    if target is None or held_out is None or abs(held_out.l0.mean / target - 1) <= _OFF_TARGET:
        return None
    if abs(trained_l0 / target - 1) <= _OFF_TARGET:
        return (
            f"{run_path}: --target-l0 {target:g} was held in training, where L0 is {trained_l0:.1f}, but it is "
            f"{held_out.l0.mean:.1f} on held-out rows: the SAE has fitted its training rows. Harvest more images, or "
            "train on fewer --rows."
        )
    return (
        f"{run_path}: --target-l0 {target:g} was not held, L0 is {held_out.l0.mean:.1f} on held-out rows: train on "
        "more --rows, or with a higher --lr."
    )

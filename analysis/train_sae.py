"""`thresher.train_sae`: what `thresher train` does, from Python."""

from pathlib import Path
from typing import Any

from ..progress import Reporter
from ..train.loop import train
from ..train.outcome import TrainResult
from ..train.recipes import resolve_options, resumed_options
from .spliced_training import splicer


def train_sae(
    store: str | Path,
    run: str | Path,
    *,
    reporter: Reporter | None = None,
    resume: bool = False,
    **options: Any,
) -> TrainResult:
    """Train an SAE from Python: what `thresher train STORE RUN` does.

    Parameters
    ----------
    store
        Path or URL of the store.
    run
        Folder of the run.
    reporter
        Told what is done; `thresher.progress.ConsoleReporter()` shows it on stderr.
    resume
        Go on with the run from its last checkpoint.
    **options
        Fields of `TrainOptions`, laid over those of the `recipe` among them; to resume, over those of the run.

    Raises
    ------
    ValueError
        When an option does not fit the store, or the images are not such as can be evaluated on.
    StoreError
        When the store cannot be used, the run exists (or, to resume, does not, or was started otherwise).
    TrainingStopped
        After SIGINT or SIGTERM, with a checkpoint written; or when the loss is no longer finite.
    """
    resolved = resumed_options(run, options) if resume else resolve_options(options)
    return train(resolved, store, run, reporter, resume=resume, splicer=splicer)

"""The whole chain on the embedded pictures and model, with its controls: `quickstart [DIR]`.

What it writes:

    DIR/emoji.zarr         activations of the embedded model
    DIR/run/               the SAE trained on them, its features, statistics, figures
    DIR/untrained/         the same two of a tower of the same shape with random weights
    DIR/attributes.tsv     how well the SAE's features know each attribute of the pictures
    DIR/quickstart.json    the settings, written first
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..harvest.options import HarvestOptions
from ..options import option
from ..progress import Reporter
from ..store.errors import StoreError
from ..store.files import write_atomically
from ..store.reader import open_store
from ..train.options import TrainOptions
from .align_options import AlignOptions
from .attribute_overviews import draw_overviews
from .entropy import label_entropy
from .known_attributes import score_known_attributes, write_attributes
from .options import EncodeOptions, StatsOptions
from .quickstart_result import QuickstartResult, SaeNumbers, Stage, format_result
from .stored_statistics import STATS_JSON, StoredStatistics, open_statistics

if TYPE_CHECKING:
    from ..store.reader import ActivationStore

__all__ = ["QuickstartOptions", "QuickstartResult", "format_result", "quickstart"]

MARKER = "quickstart.json"
STORE, RUN, UNTRAINED, ATTRIBUTES = "emoji.zarr", "run", "untrained", "attributes.tsv"

# The last block: over three seeds its features know a fifth more attributes than those of the one before.
HARVEST = HarvestOptions(model="quickstart", layer=(5,), batch_size=128, device="cpu")
# TopK needs no coefficient to be found; k of 8 knows as many attributes but leaves a twelfth of the features dead, k of
# 32 knows fewer. 700 steps know as many as 1,000, which take 7 s more of two cores a tower.
TRAINING = TrainOptions(
    variant="topk",
    k=16,
    expansion=8,
    normalize="standardize",
    lr=1e-3,
    warmup=100,
    batch_size=1024,
    rows=700 * 1024,
    dead_after_rows=150 * 1024,
    eval_every=0,
    device="cpu",
)
# What the explorer's pages of neurons need, in a second or two; earlier blocks and figures take four times as long.
ALIGN = AlignOptions(project=True, other_blocks=False, figures=False, overwrite=True, device="cpu")
_BEST_SHOWN = 10
_RANDOM_DRAWS = 500


@dataclass(frozen=True, kw_only=True)
class QuickstartOptions:
    """Where the quickstart writes, and how much of it runs."""

    folder: Path = option(  # noqa: RUF009 (it declares a field)
        "Folder that everything is written below.", default=Path("thresher-quickstart")
    )
    overwrite: bool = option("Begin anew where the folder holds an earlier quickstart.", default=False)
    limit: int | None = option(
        "Harvest this many pictures only, to try the chain; the scores then mean little.", default=None
    )
    rows: int = option("Training rows, counted with repeats.", default=TRAINING.rows)
    seed: int = option(
        "Seed of the row order, the SAE, the untrained tower, the random dictionary and the split of the emoji.",
        default=0,
    )


@dataclass
class _Chain:
    """One tower's store and run, stage by stage."""

    store_path: Path
    run_path: Path
    harvest: HarvestOptions
    training: TrainOptions
    draws: bool
    stages: list[Stage] = field(default_factory=list)


def quickstart(options: QuickstartOptions | None = None, reporter: Reporter | None = None) -> QuickstartResult:
    """Harvest, train, encode and compute on the embedded pictures, then the same on an untrained tower, and compare.

    A quickstart that was stopped goes on where it stopped; a finished stage is not done again.

    Raises
    ------
    StoreError
        When the folder holds something else, or an earlier quickstart of other settings.
    OSError
        As the system gives it.
    """
    options, reporter = options or QuickstartOptions(), reporter or Reporter()
    started_s, started_cpu_s = time.monotonic(), _cpu_s()
    folder = options.folder
    harvest = replace(
        HARVEST, limit=options.limit, seed=options.seed, overwrite=options.overwrite, precision=_precision()
    )
    training = replace(TRAINING, rows=options.rows, seed=options.seed, overwrite=options.overwrite)
    _claim(folder, harvest, training, overwrite=options.overwrite)
    reporter.say(f"quickstart: about 60 MB below {folder}, in one to two minutes on two cores")
    trained = _Chain(folder / STORE, folder / RUN, harvest, training, draws=True)
    control = _Chain(
        folder / UNTRAINED / STORE,
        folder / UNTRAINED / RUN,
        replace(harvest, pretrained="none", thumbnails="off"),
        training,
        draws=False,
    )
    stages: list[Stage] = []
    _run(trained, "", options, stages, reporter)
    _run(control, ", untrained tower", options, stages, reporter)
    store = open_store(trained.store_path)
    with _timed(stages, "known attributes"):
        reporter.say("scoring how well single features know the attributes of the pictures")
        known = score_known_attributes(store, trained.run_path, control.run_path, options.seed)
        known.write(folder / ATTRIBUTES)
        write_attributes(trained.run_path, known)
    statistics, of_control = open_statistics(trained.run_path), open_statistics(control.run_path)
    with _timed(stages, "overview sheets"):
        figures = trained.run_path / "figures"
        sheets = draw_overviews(figures, store, statistics, known, options.seed)
    return QuickstartResult(
        folder=folder,
        store_path=trained.store_path,
        run_path=trained.run_path,
        n_rows=store.n_rows,
        d_in=store.activations().d_in,
        d_sae=statistics.statistics.d_sae,
        steps=training.steps,
        sae=_numbers(statistics),
        untrained=_numbers(of_control),
        random_label_entropy=_random_label_entropy(store, statistics.statistics.k, options.seed),
        held_out_explained_variance=statistics.summary["quality"]["heldout"]["explained_variance"],
        attributes=known.counts(),
        best=known.best()[:_BEST_SHOWN],
        attributes_path=folder / ATTRIBUTES,
        figures=[*sheets, *sorted(path for path in figures.glob("*.png") if path not in sheets)],
        stages=stages,
        seconds=time.monotonic() - started_s,
        cpu_s=_cpu_s() - started_cpu_s,
        next_commands=[
            "thresher harvest IMAGES mine.zarr --model ViT-L-14-quickgelu --layer 22",
            "thresher train mine.zarr mine-run",
            "thresher encode mine-run",
            "thresher stats mine-run",
        ],
    )


def _precision() -> str:
    """The tower's arithmetic: bf16 takes 0.6 of the time of fp32 where the processor has it, and more elsewhere."""
    try:
        said = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "fp32"
    return "bf16" if "avx512_bf16" in said or "amx_bf16" in said else "fp32"


def _claim(folder: Path, harvest: HarvestOptions, training: TrainOptions, *, overwrite: bool) -> None:
    """Mark the folder as a quickstart of these settings; `StoreError` where it holds something else."""
    settings = {"harvest": asdict(harvest), "train": training.to_json()}
    for part in settings.values():
        del part["overwrite"]
    del settings["harvest"]["workers"]  # of the machine; no result depends on it
    wanted = json.loads(json.dumps(settings))
    marker = folder / MARKER
    if folder.exists() and not folder.is_dir():
        raise StoreError(f"{folder} is a file: name another DIR.")
    if not marker.exists():
        if folder.exists() and any(folder.iterdir()):
            raise StoreError(f"{folder} is not empty and is no quickstart's folder: name another DIR.")
        folder.mkdir(parents=True, exist_ok=True)
    elif not overwrite:
        _require_same(folder, json.loads(marker.read_text()), wanted)
    write_atomically(marker, json.dumps(wanted, indent=1).encode() + b"\n")


def _require_same(folder: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    for part, options in wanted.items():
        for name, value in options.items():
            there = found.get(part, {}).get(name)
            if there != value:
                raise StoreError(
                    f"{folder} holds a quickstart with {part} {name} = {there!r}, this one has {value!r}: "
                    "give --overwrite to begin anew, or name another DIR."
                )


def _run(chain: _Chain, suffix: str, options: QuickstartOptions, stages: list[Stage], reporter: Reporter) -> None:
    """Every stage of one tower's chain that is not finished."""
    from ..harvest.run import harvest
    from ..train.loop import train
    from ..train.run_dir import open_run
    from .alignment import align
    from .encode import encode
    from .features import FEATURES_ZARR
    from .stats import stats
    from .stored_alignment import ALIGNMENT_JSON

    chain.store_path.parent.mkdir(exist_ok=True)
    with _timed(stages, f"harvest{suffix}") as stage:
        stage["was_done"] = harvest(chain.harvest, "quickstart", chain.store_path, reporter).n_harvested == 0
    fresh = not stage["was_done"]
    with _timed(stages, f"train{suffix}") as stage:
        resumes = (chain.run_path / "config.json").exists() and not options.overwrite
        trained = train(chain.training, chain.store_path, chain.run_path, reporter, resume=resumes)
        stage["was_done"] = trained.was_finished
        fresh |= not trained.was_finished
    assert open_run(chain.run_path).is_finished
    with _timed(stages, f"encode{suffix}") as stage:
        stage["was_done"] = not fresh and (chain.run_path / FEATURES_ZARR).exists()
        if not stage["was_done"]:
            encode(chain.run_path, EncodeOptions(device="cpu", overwrite=True), reporter)
            fresh = True
    with _timed(stages, f"stats{suffix}") as stage:
        stage["was_done"] = not fresh and (chain.run_path / STATS_JSON).exists()
        if not stage["was_done"]:
            stats(chain.run_path, StatsOptions(figures=chain.draws, seed=options.seed, overwrite=True), reporter)
            fresh = True
    if chain.draws:  # the explorer's pages of neurons
        with _timed(stages, f"align{suffix}") as stage:
            stage["was_done"] = not fresh and (chain.run_path / ALIGNMENT_JSON).exists()
            if not stage["was_done"]:
                align(chain.run_path, replace(ALIGN, seed=options.seed), reporter)


@contextmanager
def _timed(stages: list[Stage], name: str) -> Iterator[dict[str, bool]]:
    """Append a stage with what the block took; the block says in the dict it is given whether it was done before."""
    started_s, started_cpu_s = time.monotonic(), _cpu_s()
    said = {"was_done": False}
    yield said
    stages.append(Stage(name=name, seconds=time.monotonic() - started_s, cpu_s=_cpu_s() - started_cpu_s, **said))


def _cpu_s() -> float:
    """CPU seconds of this process and of its ended children."""
    return sum(os.times()[:4])


def _numbers(stored: StoredStatistics) -> SaeNumbers:
    entropy = stored.statistics.label_entropy
    entropy = entropy[np.isfinite(entropy)]
    return SaeNumbers(
        l0=stored.statistics.l0.mean,
        explained_variance=stored.summary["explained_variance"],
        n_dead=stored.summary["n_dead"],
        median_label_entropy=float(np.median(entropy)),
        share_below_one_nat=float((entropy < 1).mean()),
    )


def _random_label_entropy(store: "ActivationStore", k: int, seed: int) -> float:
    """Median label entropy, in nats, of k rows drawn at random and weighted equally."""
    labels = store.labels(0, store.n_rows)
    labels = labels[labels >= 0]
    rng = np.random.default_rng(seed)
    drawn = np.stack([rng.choice(labels, size=min(k, len(labels)), replace=False) for _ in range(_RANDOM_DRAWS)])
    entropy, _ = label_entropy(np.ones_like(drawn, dtype=np.float32), drawn, min_labelled=1)
    return float(np.median(entropy))

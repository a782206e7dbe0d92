"""Every per-feature number and figure of a run, or of a dense matrix of feature activations: `stats RUN`."""

import hashlib
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..progress import Reporter
from ..store.errors import StoreError
from ..store.files import FolderLock
from .clusters import Coherence, UldSplit, coherence, find_uld_cluster
from .coherence_chance import input_variances
from .details import DetailsOf, details_bytes, write_details
from .embed import embeddings_of
from .encode import predict
from .features import SPLIT_CODES, FeatureActivations, FeaturesInfo, open_features
from .folders import refuse_existing
from .forecast import forecast_passes, require_space
from .fused_details import fused_details, needs_second_pass
from .fused_statistics import close_fused, encoding_of, fused_totals, open_fused
from .given_options import kept_options
from .monosemanticity import embeddings_shape
from .options import StatsOptions
from .quality import Quality
from .quality_intervals import intervals_of_sections, quality_intervals
from .scheduler import open_compute
from .statistics import FeatureStatistics, dense_shape, dense_totals, sparse_totals
from .stored_statistics import STATS_JSON, STATS_ZARR, Source, summarise, write_statistics

if TYPE_CHECKING:
    from ..train.models import SparseAutoencoder


@dataclass(frozen=True, kw_only=True)
class StatsResult:
    """What `stats` computed and wrote."""

    out_dir: Path
    """The run directory, or the folder given for a dense matrix."""
    summary: dict[str, Any]
    """The document of stats.json."""
    statistics: FeatureStatistics
    uld: UldSplit
    figures: list[Path]
    """PNG files, in the order in which a reader wants them."""
    sheets: list[Path]
    """PNG contact sheets; none where the store has no thumbnails."""
    computed_on: str
    """`threads of this process`, `2 local processes`, ..."""
    n_processes: int
    """Processes that counted a part."""
    seconds: float


def stats(run_path: str | Path, options: StatsOptions | None = None, reporter: Reporter | None = None) -> StatsResult:
    """Compute the statistics of a run's feature activations, into `RUN/stats.zarr`, `stats.json` and `figures/`.

    Raises
    ------
    ValueError
        When an option does not fit the run.
    StoreError
        When the run has no features, they are of other weights, or there are statistics already.
    """
    from ..devices import choose_device
    from ..train.run_dir import open_run

    start_s = time.monotonic()
    options, reporter = options or StatsOptions(), reporter or Reporter()
    run_path, kept = Path(run_path), kept_options(options)
    if options.labels is not None:
        raise ValueError("labels goes with a dense matrix; the labels of a run are those of its store")
    run = open_run(run_path)
    features = None
    if options.from_store:
        source = open_fused(run_path, encoding_of(options))
        _check_features(options, source.sae.d_sae)
    else:
        features = open_features(run_path)
        _require_same_sae(features, run_path)
        _check_features(options, features.d_sae)
        start, stop = features.row_range(options.split)
    refuse_existing(run_path / STATS_JSON, overwrite=options.overwrite)
    if options.embeddings is None:
        of_store = source.store.fingerprint if features is None else features.info.store_fingerprint
        found = embeddings_of(run_path, of_store)
        options = replace(options, embeddings=None if found is None else str(found))
    if options.embeddings is not None:
        embeddings_shape(options.embeddings)
    choose_device(options.device)
    had_agreement = (run_path / STATS_ZARR / "agreement").exists()
    nnz, _, pass_s = predict(source) if features is None else (features.info.nnz, 0, 0.0)
    more = details_bytes(run.d_sae, options, nnz)
    reporter.say(require_space(run_path, run.d_sae, options.k, figures=options.figures, more_bytes=more))
    with ExitStack() as opened:
        opened.callback(close_fused)
        compute = opened.enter_context(open_compute(workers=options.workers, scheduler=options.scheduler))
        if features is None:
            n_passes = 2 if needs_second_pass(options) else 1
            reporter.say(forecast_passes(source.n, pass_s, n_passes, compute.description))
            fused, info = fused_totals(
                source, k=options.k, task_bytes=options.task_bytes, compute=compute, reporter=reporter
            )
            totals, sections = fused.features, fused.sections.arrays()
            n_active = np.array([section.n_active for section in fused.sections.sections()], np.int64)
            intervals = intervals_of_sections(sections, n_active)
        else:
            totals = sparse_totals(
                str(features.path.absolute()),
                start,
                stop,
                split=options.split,
                k=options.k,
                task_bytes=options.task_bytes,
                compute=compute,
                reporter=reporter,
            )
            info, sections, intervals = features.info, features.sections, quality_intervals(features)
        # Rows of another split are passed over too; unreadable ones are what a reader wants to know of.
        totals.n_invalid = info.n_unreadable
        statistics = FeatureStatistics.of_totals(totals, min_labelled=options.min_labelled)
        split = find_uld_cluster(statistics.mean_top)
        quality = {name: Quality.of_sections(sections, codes) for name, codes in SPLIT_CODES.items()}
        sae = run.load_sae()
        document = summarise(
            Source(
                split=options.split,
                store=info.store,
                store_fingerprint=info.store_fingerprint,
                site=info.site,
                sae_sha256=info.sae_sha256,
                d_in=info.d_in,
            ),
            statistics,
            split,
            _coherence(sae, info, split, statistics.is_alive, reporter),
            {name: q for name, q in quality.items() if q is not None},
        )
        document |= {"options": kept, "intervals": intervals}
        with closing(FolderLock(run_path)), ExitStack() as stack:
            firings = None
            if features is None:
                firings = stack.enter_context(
                    fused_details(
                        source, info, statistics, split, options, pass_s=pass_s, compute=compute, reporter=reporter
                    )
                )
            figures = _draw(run_path, statistics, split, options, reporter)
            store_path = run.store_path if info.is_training_store else info.store
            sheets = _sheets(run_path, store_path, info, statistics, split, options, reporter)
            # last: its stats.json says that all of it is there, so a command stopped before can be given again
            document = write_statistics(
                run_path,
                statistics,
                split.is_uld,
                document,
                overwrite=True,
                details=partial(
                    write_details,
                    of=DetailsOf(
                        statistics=statistics,
                        uld=split,
                        sae=sae,
                        features=features,
                        firings=firings,
                    ),
                    options=options,
                    compute=compute,
                    reporter=reporter,
                ),
            )
        if had_agreement:
            reporter.warn(
                "the agreement of pictures, top images and names went with the earlier statistics: "
                "`thresher visualise`, given as before, writes it anew"
            )
        computed_on = compute.description
    return StatsResult(
        out_dir=run_path,
        summary=document,
        statistics=statistics,
        uld=split,
        figures=figures,
        sheets=sheets,
        computed_on=computed_on,
        n_processes=len(statistics.workers),
        seconds=time.monotonic() - start_s,
    )


def dense_statistics(
    matrix_path: str | Path,
    out_dir: str | Path,
    options: StatsOptions | None = None,
    reporter: Reporter | None = None,
) -> StatsResult:
    """Compute the statistics of a dense `(n_rows, d_sae)` zarr matrix of feature activations, as `stats` does.

    Reconstruction quality and the coherence of encoder vectors need an SAE and are left out. Labels come from
    `options.labels`.

    Raises
    ------
    ValueError
        When a split is asked for: a matrix does not say which rows were trained on.
    StoreError
        When the matrix or the labels cannot be read or do not fit, or there are statistics already.
    """
    start_s = time.monotonic()
    options, reporter = options or StatsOptions(), reporter or Reporter()
    out_dir = Path(out_dir)
    if options.split != "all":
        raise ValueError(f"split must be all for a dense matrix; got {options.split!r}")
    if options.embeddings is not None:
        raise ValueError("embeddings go with a run; a matrix is not stored by feature")
    refuse_existing(out_dir / STATS_JSON, overwrite=options.overwrite)
    _require_place(out_dir)
    _, d_sae = dense_shape(str(matrix_path))
    more = details_bytes(d_sae, options)
    reporter.say(require_space(out_dir, d_sae, options.k, figures=options.figures, more_bytes=more))
    with open_compute(workers=options.workers, scheduler=options.scheduler) as compute:
        totals = dense_totals(
            str(matrix_path),
            labels_path=options.labels,
            k=options.k,
            task_bytes=options.task_bytes,
            compute=compute,
            reporter=reporter,
        )
        computed_on = compute.description
    statistics = FeatureStatistics.of_totals(totals, min_labelled=options.min_labelled)
    if statistics.n_invalid:
        reporter.warn(
            f"{statistics.n_invalid:,} of {statistics.n_invalid + statistics.n_rows:,} rows hold a value that is not "
            "finite and were passed over"
        )
    split = find_uld_cluster(statistics.mean_top)
    document = summarise(Source(split="all", matrix=str(matrix_path)), statistics, split, None, {})
    document["options"] = kept_options(options)
    out_dir.mkdir(parents=True, exist_ok=True)
    with closing(FolderLock(out_dir)):
        figures = _draw(out_dir, statistics, split, options, reporter)
        of = DetailsOf(
            statistics=statistics, uld=split, no_features_because="a matrix is not stored by feature: `encode` a run"
        )
        document = write_statistics(
            out_dir,
            statistics,
            split.is_uld,
            document,
            overwrite=True,
            details=partial(write_details, of=of, options=options, compute=None, reporter=reporter),
        )
    return StatsResult(
        out_dir=out_dir,
        summary=document,
        statistics=statistics,
        uld=split,
        figures=figures,
        sheets=[],
        computed_on=computed_on,
        n_processes=len(statistics.workers),
        seconds=time.monotonic() - start_s,
    )


def _require_place(out_dir: Path) -> None:
    """Fail before the counting where the statistics of a matrix cannot go."""
    if out_dir.exists() and not out_dir.is_dir():
        raise StoreError(f"{out_dir} exists and is not a folder: name another OUT.")
    if (out_dir / "zarr.json").exists():
        raise StoreError(f"{out_dir} is a zarr array or group: name another OUT.")


def _require_same_sae(features: FeatureActivations, run_path: Path) -> None:
    weights = run_path / "sae.safetensors"
    if not weights.exists():
        raise StoreError(f"{run_path} holds no sae.safetensors: it is not a finished run.")
    if hashlib.sha256(weights.read_bytes()).hexdigest() != features.info.sae_sha256:
        raise StoreError(
            f"{features.path} was written by other weights than {weights} (sae_sha256 differs): "
            "run `thresher encode --overwrite`."
        )


def _check_features(options: StatsOptions, d_sae: int) -> None:
    beyond = [f for f in options.sheet_features if f >= d_sae]
    if beyond:
        raise ValueError(f"feature {beyond[0]} is not one of the {d_sae} features, 0 to {d_sae - 1}")


def _coherence(
    sae: "SparseAutoencoder", info: FeaturesInfo, split: UldSplit, is_alive: NDArray[np.bool_], reporter: Reporter
) -> Coherence | None:
    if split.threshold is None:
        return None
    from ..store.format import Site
    from ..store.reader import open_store

    try:
        store = open_store(info.store, n_parts=info.n_store_parts)
        variances = input_variances(store.activations(Site.parse(info.site)), sae)
    except StoreError as error:
        reporter.warn(f"no chance level of the activations' covariance for the coherence of the cluster: {error}")
        variances = None
    return coherence(sae.W_enc.T.numpy(), split.is_uld, is_alive, variances)


def _draw(
    out_dir: Path, statistics: FeatureStatistics, split: UldSplit, options: StatsOptions, reporter: Reporter
) -> list[Path]:
    if not options.figures:
        return []
    from .figures import draw_figures

    reporter.say(f"drawing the figures into {out_dir / 'figures'}")
    return draw_figures(out_dir, statistics, split)


def _sheets(
    run_path: Path,
    store_path: str | Path,
    info: FeaturesInfo,
    statistics: FeatureStatistics,
    split: UldSplit,
    options: StatsOptions,
    reporter: Reporter,
) -> list[Path]:
    if not options.figures:
        return []
    from ..store.reader import open_store
    from .sheets import SheetPlan, draw_sheets

    try:
        store = open_store(store_path, n_parts=info.n_store_parts)
    except StoreError as error:
        reporter.warn(f"no contact sheets: {error}")
        return []
    if store.fingerprint != info.store_fingerprint:
        reporter.warn(f"no contact sheets: {store_path} is not the store that was encoded (other fingerprint)")
        return []
    if store.thumbnail_px is None:
        reporter.warn(f"no contact sheets: {store_path} was harvested without thumbnails")
        return []
    plan = SheetPlan(chosen=options.sheet_features, n_features=options.sheet_rows, seed=options.seed)
    return draw_sheets(run_path / "figures", store, statistics, split, plan)

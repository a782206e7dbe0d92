"""How far features are single neurons: cosines with the tower's output vectors, against chance. `align RUN`.

Shapes: F features, d the length of the stored vectors, m neurons of a block.
"""

import hashlib
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..devices import choose_device
from ..progress import Reporter, format_s
from ..store.errors import StoreError
from ..store.files import FolderLock
from ..store.format import Site
from ..store.reader import ActivationStore, open_store
from .align_options import AlignOptions
from .cosines import LargestCosines, Level, NearestVectors, largest_cosines, nearest_vectors, unit_rows
from .features import FEATURES_ZARR, open_features
from .folders import refuse_existing
from .neuron_images import NeuronImages, neuron_images
from .null_directions import BLOCK, RandomDirections, SampleMoments, sample_moments
from .output_directions import Outputs, OutputsOfSite, outputs_of_site
from .stored_statistics import STATS_JSON, StoredStatistics, open_statistics

if TYPE_CHECKING:
    from ..train.models import SparseAutoencoder
    from ..train.run_dir import Run

TOP_NEURONS = 32
_LEAST_NULL = 16_384
"""Random directions at least, so that a p-value can be small where features are few; the number for other blocks."""


@dataclass(frozen=True)
class Chance:
    """Largest cosines of random directions of one kind with one set of unit vectors."""

    kind: str
    """`isotropic`, or `covariance`."""
    signed: NDArray[np.float32]
    absolute: NDArray[np.float32]

    def of(self, is_absolute: bool) -> NDArray[np.float32]:
        """The sample of one of the two."""
        return self.absolute if is_absolute else self.signed


@dataclass(frozen=True)
class SetAlignment:
    """Features against one set of unit vectors."""

    outputs: Outputs
    n_vectors: int
    n_without_direction: int
    """Vectors of zeros among them, which nothing aligns with."""
    largest: LargestCosines
    chance: tuple[Chance, ...]


@dataclass(frozen=True)
class SideAlignment:
    """The encoder's or the decoder's vectors against everything at their site."""

    side: str
    site: Site
    main: SetAlignment
    nearest: NearestVectors
    levels: tuple[Level, ...]
    others: tuple[SetAlignment, ...]
    moments: SampleMoments

    @property
    def earlier(self) -> tuple[LargestCosines, tuple[Chance, ...]] | None:
        """All earlier MLPs together: each direction's largest cosine with any of their neurons; None without one."""
        mlps = [each for each in self.others if each.outputs.kind == "mlp"]
        if not mlps:
            return None
        largest = _largest_of([each.largest for each in mlps])
        pairs = zip(*(each.chance for each in mlps), strict=True)
        chance = tuple(
            Chance(
                of_kind[0].kind,
                np.max([c.signed for c in of_kind], axis=0),
                np.max([c.absolute for c in of_kind], axis=0),
            )
            for of_kind in pairs
        )
        return largest, chance


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """Everything that `align` computes."""

    options: AlignOptions
    d_sae: int
    is_counted: NDArray[np.bool_]
    """`(F,)`: the features that summaries, tests and figures cover."""
    counted: str
    """Which those are, in words."""
    n_uld: int
    sides: tuple[SideAlignment, ...]
    images: tuple[NeuronImages, ...]
    """Of the neurons: from their activations, by projection, both or none."""
    statistics: StoredStatistics | None
    store: ActivationStore


@dataclass(frozen=True, kw_only=True)
class AlignResult:
    """What `align` computed and wrote."""

    run_path: Path
    summary: dict[str, Any]
    """The document of alignment.json."""
    figures: list[Path]
    seconds: float


def align(run_path: str | Path, options: AlignOptions | None = None, reporter: Reporter | None = None) -> AlignResult:
    """Hold a run's features against its tower's neurons, into `RUN/alignment.zarr`, `alignment.json` and `figures/`.

    Raises
    ------
    ValueError
        When an option does not fit the run, or nothing has been written where its features are read.
    StoreError
        When the run has no SAE or no store, either has changed since, or there is an alignment already.
    """
    from ..train.run_dir import open_run
    from .stored_alignment import ALIGNMENT_JSON, write_alignment

    start_s = time.monotonic()
    options, reporter = options or AlignOptions(), reporter or Reporter()
    run_path = Path(run_path)
    run = open_run(run_path)
    if not run.is_finished:
        raise StoreError(f"{run_path} holds no sae.safetensors: it is not a finished run.")
    refuse_existing(run_path / ALIGNMENT_JSON, overwrite=options.overwrite)
    alignment = compute_alignment(run, options, reporter)
    with closing(FolderLock(run_path)):
        figures: list[Path] = []
        if options.figures:
            from .alignment_figures import draw_alignment

            reporter.say(f"drawing the figures into {run_path / 'figures'}")
            figures = draw_alignment(run_path, alignment)
        summary = write_alignment(run_path, alignment)
    return AlignResult(run_path=run_path, summary=summary, figures=figures, seconds=time.monotonic() - start_s)


def compute_alignment(run: "Run", options: AlignOptions, reporter: Reporter) -> Alignment:
    """What `align` writes; its errors are `align`'s."""
    from ..harvest.rewrite import load_recorded_clip, recorded_tower

    site, device = run.site, choose_device(options.device)
    statistics = _statistics(run.path)
    store = _store(run, statistics, options)
    is_counted, counted = _counted(run, statistics)
    tower = recorded_tower(load_recorded_clip(store.provenance), replace(store.provenance, precision="fp32"), "cpu")
    sae = run.load_sae()
    of_side = {"encoder": site, "decoder": run.target_site or site}
    sides, moments = [], {}
    with torch.inference_mode():
        for side in ("encoder", "decoder") if options.decoder else ("encoder",):
            place = of_side[side]
            outputs = outputs_of_site(tower.visual, place)
            if place not in moments:
                array = store.activations(place)
                reporter.say(f"covariance of up to {options.covariance_rows:,} of {store.n_valid:,} rows of {place}")
                moments[place] = sample_moments(array, options.covariance_rows, options.seed)
            directions = encoder_blocks(sae) if side == "encoder" else decoder_blocks(sae)
            sides.append(align_side(side, place, directions, outputs, moments[place], options, device, reporter))
    images = neuron_images(
        sides[0].main.outputs, site, store, run.path, statistics, moments[site], is_counted, options, reporter
    )
    return Alignment(
        options=options,
        d_sae=sae.d_sae,
        is_counted=is_counted,
        counted=counted,
        n_uld=0 if statistics is None else int(statistics.is_uld.sum()),
        sides=tuple(sides),
        images=tuple(images),
        statistics=statistics,
        store=store,
    )


def encoder_blocks(sae: "SparseAutoencoder") -> list[Tensor]:
    """The unit encoder vectors in the space of the stored rows, `(BLOCK, d)` at a time; NaN for a vector of zeros.

    A feature's pre-activation is W_enc_k . (x - input_mean) / input_scale + constant, so that the direction which it
    reads in the stored rows is W_enc_k / input_scale. Under layer norm, which takes each row's mean away, it is that
    less its own mean; what a row is divided by, there and under a constant norm, changes no direction.
    """

    def read(part: Tensor) -> Tensor:
        directions = part.double() / sae.input_scale.double()
        return directions - directions.mean(dim=1, keepdim=True) if sae.layer_norm else directions

    return [unit_rows(read(part)) for part in sae.encoder.split(BLOCK)]


def decoder_blocks(sae: "SparseAutoencoder") -> list[Tensor]:
    """The unit decoder vectors in the space of the stored rows that they reconstruct: W_dec_k * output_scale."""
    return [unit_rows(part.double() * sae.output_scale.double()) for part in sae.decoder.split(BLOCK)]


def align_side(
    side: str,
    site: Site,
    directions: list[Tensor],
    outputs: OutputsOfSite,
    moments: SampleMoments,
    options: AlignOptions,
    device: torch.device,
    reporter: Reporter,
) -> SideAlignment:
    """Hold unit directions, `(BLOCK, d)` at a time, and as many random ones against the outputs of a site.

    Memory: the directions given, one set of vectors, the cosines of a block, and 16,384 random directions of each kind.
    """
    n, d = sum(len(block) for block in directions), directions[0].shape[1]
    nulls = [RandomDirections("isotropic", d, options.seed)]
    matched = moments.directions(options.seed)
    if matched is None:
        reporter.warn(f"the {moments.n_rows:,} sampled rows of {site} do not vary: no chance level of their covariance")
    else:
        nulls.append(matched)
    n_null = options.null_directions or max(n, _LEAST_NULL)
    vectors = outputs.main.unit_vectors().to(device)
    reporter.say(
        f"{n:,} {side} vectors and {n_null:,} random ones of each kind against {_words(outputs.main, vectors)}"
    )
    start_s = time.monotonic()
    chance = tuple(_chance(null.kind, null.blocks(n_null), vectors) for null in nulls)
    levels = _levels(chance, outputs.main.has_sign, options.chance_quantile)
    largest, nearest = nearest_vectors(directions, vectors, levels, TOP_NEURONS)
    main = _set_alignment(outputs.main, vectors, largest, chance)
    others = outputs.others if options.other_blocks else ()
    if others:
        n_other = min(n_null, _LEAST_NULL)
        share = (n + len(nulls) * n_other) / (n + len(nulls) * n_null)
        about_s = (time.monotonic() - start_s) * share * len(others)
        reporter.say(f"then against {len(others)} other sets of output vectors, at most about {format_s(about_s)}")
    held = [(null.kind, list(null.blocks(n_other))) for null in nulls] if others else []
    aligned = []
    with reporter.task(f"{side} cosines", len(others), "sets") as task:
        for other in others:
            vectors = other.unit_vectors().to(device)
            chance = tuple(_chance(kind, blocks, vectors) for kind, blocks in held)
            aligned.append(_set_alignment(other, vectors, largest_cosines(directions, vectors), chance))
            task.advance(1)
    return SideAlignment(side, site, main, nearest, levels, tuple(aligned), moments)


def _words(outputs: Outputs, vectors: Tensor) -> str:
    what = "MLP neurons" if outputs.kind == "mlp" else "attention directions"
    return f"the {len(vectors):,} {what} of block {outputs.layer} (0-based)"


def _chance(kind: str, blocks: Any, vectors: Tensor) -> Chance:
    largest = largest_cosines(blocks, vectors)
    return Chance(kind, largest.signed, largest.absolute)


def _set_alignment(
    outputs: Outputs, vectors: Tensor, largest: LargestCosines, chance: tuple[Chance, ...]
) -> SetAlignment:
    n_without = int((vectors.abs().amax(dim=1) == 0).sum())
    return SetAlignment(outputs, len(vectors), n_without, largest, chance)


def _levels(chance: tuple[Chance, ...], has_sign: bool, quantile: float) -> tuple[Level, ...]:
    """The cosines above which a neuron counts: of each kind of chance, for signed and absolute cosines."""
    return tuple(
        Level(
            f"{'absolute' if is_absolute else 'signed'}_{each.kind}",
            _quantile(each, quantile, is_absolute),
            is_absolute,
        )
        for each in chance
        for is_absolute in ((False, True) if has_sign else (True,))
    )


def _quantile(chance: Chance, quantile: float, is_absolute: bool) -> float:
    return float(np.quantile(chance.of(is_absolute).astype(np.float64), quantile))


def _largest_of(parts: Sequence[LargestCosines]) -> LargestCosines:
    """The largest over several sets; ids say which of them, from 0."""
    signed, absolute = (np.stack([getattr(p, name) for p in parts]) for name in ("signed", "absolute"))
    place = {
        name: np.argmax(np.nan_to_num(a, nan=-2.0), axis=0) for name, a in (("signed", signed), ("absolute", absolute))
    }
    rows = np.arange(signed.shape[1])
    return LargestCosines(
        signed[place["signed"], rows],
        place["signed"].astype(np.int32),
        absolute[place["absolute"], rows],
        place["absolute"].astype(np.int32),
    )


def _statistics(run_path: Path) -> StoredStatistics | None:
    """The run's statistics, if it has any; `StoreError` where they are of other weights."""
    if not (run_path / STATS_JSON).exists():
        return None
    statistics = open_statistics(run_path)
    weights = hashlib.sha256((run_path / "sae.safetensors").read_bytes()).hexdigest()
    if statistics.summary["sae_sha256"] != weights:
        raise StoreError(
            f"{run_path} holds statistics of other weights (sae_sha256 differs): run `thresher encode --overwrite`, "
            "then `thresher stats --overwrite`."
        )
    return statistics


def _store(run: "Run", statistics: StoredStatistics | None, options: AlignOptions) -> ActivationStore:
    """The store that the features' statistics are of, or without them the one that the SAE was trained on."""
    place: str | Path
    n_parts: int | None = None
    if statistics is not None and (run.path / FEATURES_ZARR).exists():
        info = open_features(run.path).info
        place, fingerprint, n_parts = info.store, info.store_fingerprint, info.n_store_parts
        if info.is_training_store and run.has_store:
            place = run.store_path
    else:
        place, fingerprint, n_parts = run.store_path, run.store_fingerprint, run.n_store_parts
    place = options.store or place
    store = open_store(place, n_parts=n_parts)
    if store.fingerprint != fingerprint:
        raise StoreError(f"{place} is not the store of {run.path} any more (other fingerprint): name it with --store.")
    return store


def _counted(run: "Run", statistics: StoredStatistics | None) -> tuple[NDArray[np.bool_], str]:
    if statistics is None:
        return np.ones(run.d_sae, bool), "all features (no statistics: which are alive is not known)"
    alive = statistics.statistics.is_alive
    if statistics.is_uld.any():
        return alive & ~statistics.is_uld, "alive features outside the ULD cluster"
    return alive, "alive features"

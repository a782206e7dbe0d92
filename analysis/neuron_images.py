"""Which activations show what a block's neurons mean, and whether features mean less each than neurons do."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..progress import Reporter
from ..store.errors import StoreError
from ..store.format import Site
from ..store.reader import ActivationStore, open_store
from .features import open_features
from .neurons import NeuronSource, neuron_statistics, require_same_rows
from .null_directions import SampleMoments
from .scheduler import open_compute
from .significance import Interval, RankSum, median_difference, rank_sum
from .statistics import FeatureStatistics

if TYPE_CHECKING:
    from .align_options import AlignOptions
    from .output_directions import Outputs
    from .stored_statistics import StoredStatistics

SELECTIVE_NATS = 1.0
"""Below this label entropy a feature or neuron counts as selective."""


@dataclass(frozen=True, kw_only=True)
class EntropyComparison:
    """Label entropies of features beside those of neurons, where they are defined."""

    n_features: int
    n_neurons: int
    median_features: float
    median_neurons: float
    difference: Interval
    """Median of the neurons less that of the features, in nats: above 0 where features mean less each."""
    share_features_selective: float
    """Of the features: label entropy below `SELECTIVE_NATS`."""
    share_neurons_selective: float
    ranks: RankSum
    """Of features against neurons."""


@dataclass(frozen=True, kw_only=True)
class NeuronImages:
    """The rows on which each neuron is largest, by one kind of activation."""

    kind: str
    """`mlp_act`, or `projection`."""
    layer: int
    """0-based block of the neurons."""
    store: str
    """Whose rows were read."""
    both_signs: bool
    n_neurons: int
    statistics: FeatureStatistics
    """Of the units: the neurons, then with both signs their negatives."""
    comparison: EntropyComparison


def neuron_images(
    outputs: "Outputs",
    site: Site,
    store: ActivationStore,
    run_path: Path,
    statistics: "StoredStatistics | None",
    moments: SampleMoments,
    is_counted: NDArray[np.bool_],
    options: "AlignOptions",
    reporter: Reporter,
) -> list[NeuronImages]:
    """The neurons' images by every activation there is, or that was asked for.

    Raises
    ------
    ValueError
        When something was asked for that the site of the run does not allow.
    StoreError
        When the named store does not hold the neurons of the same images, or the run has no statistics.
    """
    asked = options.neurons is not None or options.project
    if outputs.kind != "mlp":
        if asked:
            raise ValueError(
                f"--neurons and --project show MLP neurons; features of {site} are held against attention."
            )
        return []
    if site.site == "mlp_act" and options.project:
        raise ValueError(f"--project: the rows of {site} are the neurons themselves; leave it out.")
    if statistics is None:
        if asked:
            raise StoreError(f"{run_path} holds no statistics to hold neurons against: run `thresher stats` first.")
        return []
    place = Site(outputs.layer, "mlp_act", site.token)
    neurons = open_store(options.neurons) if options.neurons is not None else store
    if neurons is not store:
        require_same_rows(neurons, store)
        neurons.activations(place)  # a StoreError where it holds another site
    sources: dict[str, tuple[NeuronSource, int]] = {}
    shared: dict[str, Any] = {
        "features_path": str(open_features(run_path).path.absolute()),
        "split": statistics.summary["split"],
        "both_signs": options.signs == "both",
    }
    if place in neurons.sites:
        of_other = None if neurons is store else (store.objects.absolute_url, len(store.parts))
        source = NeuronSource(
            **shared,
            store=neurons.objects.absolute_url,
            n_parts=len(neurons.parts),
            site=place.path,
            images_of=of_other,
        )
        sources["mlp_act"] = source, neurons.activations(place).d_in
    if options.project:
        vectors = outputs.unit_vectors().numpy()
        source = NeuronSource(
            **shared,
            store=store.objects.absolute_url,
            n_parts=len(store.parts),
            site=site.path,
            vectors=vectors,
            mean=moments.mean.astype(np.float32),
        )
        sources["projection"] = source, len(vectors)
    if not sources:
        reporter.say(
            f"no images of the neurons: {store.url} does not hold {place}. Harvest it and name it with --neurons, or "
            "give --project."
        )
    return [
        _of_source(kind, source, n, outputs.layer, statistics, is_counted, options, reporter)
        for kind, (source, n) in sources.items()
    ]


def _of_source(
    kind: str,
    source: NeuronSource,
    n_neurons: int,
    layer: int,
    statistics: "StoredStatistics",
    is_counted: NDArray[np.bool_],
    options: "AlignOptions",
    reporter: Reporter,
) -> NeuronImages:
    features = statistics.statistics
    with open_compute(workers=options.workers, scheduler=options.scheduler) as compute:
        neurons = neuron_statistics(
            source,
            n_neurons * (2 if source.both_signs else 1),
            k=features.k,
            min_labelled=features.min_labelled,
            task_bytes=options.task_bytes,
            compute=compute,
            reporter=reporter,
        )
    comparison = compare_entropies(features.label_entropy[is_counted], neurons.label_entropy, seed=options.seed)
    return NeuronImages(
        kind=kind,
        layer=layer,
        store=source.store,
        both_signs=source.both_signs,
        n_neurons=n_neurons,
        statistics=neurons,
        comparison=comparison,
    )


def compare_entropies(
    features: NDArray[np.floating[Any]], neurons: NDArray[np.floating[Any]], *, seed: int
) -> EntropyComparison:
    """Hold the label entropies of features against those of neurons; NaN, where one is undefined, is left out."""
    f, n = (each[np.isfinite(each)].astype(np.float64) for each in (features, neurons))
    medians = [float(np.median(each)) if len(each) else float("nan") for each in (f, n)]
    shares = [float((each < SELECTIVE_NATS).mean()) if len(each) else float("nan") for each in (f, n)]
    return EntropyComparison(
        n_features=len(f),
        n_neurons=len(n),
        median_features=medians[0],
        median_neurons=medians[1],
        difference=median_difference(n, f, seed=seed),
        share_features_selective=shares[0],
        share_neurons_selective=shares[1],
        ranks=rank_sum(f, n),
    )

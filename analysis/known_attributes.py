"""How well single features know the attributes of images, beside features that have learnt nothing: `attributes`."""

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._version import __version__
from ..progress import Reporter
from ..store.errors import StoreError
from ..store.files import FolderLock, write_atomically
from ..store.format import Site
from ..store.reader import ActivationArray, ActivationStore, open_store
from .attribute_intervals import GroupBootstrap, Interval, Resampled, interval
from .attribute_sources import NEURONS, RANDOM, Coordinates, MatchedRows, StoredFeatures, random_dictionary
from .attribute_table import AttributeTable, emoji_table, lines_of_rows
from .attributes import Attributes, AttributeScores, FeatureSource, score_attributes, split_groups
from .attributes_options import AttributesOptions
from .features import FeatureActivations, open_features
from .folders import refuse_existing
from .given_options import kept_options
from .significance import adjusted_p_values

ATTRIBUTES_JSON, ATTRIBUTES_TSV = "attributes.json", "attributes.tsv"
FORMAT_NAME, FORMAT_VERSION = "thresher-attributes", 1
SAE, UNTRAINED, MLP_NEURONS = "SAE", "SAE on an untrained tower", "the block's MLP neurons, both signs"
_SLUGS = {SAE: "sae", UNTRAINED: "untrained", RANDOM: "random", NEURONS: "neurons", MLP_NEURONS: "mlp_neurons"}
"""Column names of the table, by what is scored."""
_NAMED = 5  # unmatched keys that are told
CORRECTION = (
    "feature and threshold are chosen on one half of the groups and scored on the other, so that the choice among "
    "features costs nothing; p-values are of the scored half, one-sided, their variance summed over groups; over the "
    "attributes they are adjusted by Benjamini and Yekutieli (any dependence)"
)


@dataclass(frozen=True, kw_only=True)
class AttributeCounts:
    """How many attributes single features of one kind know; one row of the table."""

    name: str
    n_features: int
    """That the best one was chosen of."""
    n_attributes: int
    f1_at_least_05: int
    f1_at_least_07: int
    mean_f1: float
    mean_f1_interval: Interval
    """95 %, by bootstrap over groups."""
    behind_sae: float
    """Mean F1 of the SAE less this one's."""
    behind_sae_interval: Interval
    precision_at_least_09: int
    """Attributes of which at least 18 of the 20 largest activations are hits."""
    n_significant: int
    """Attributes with an adjusted p-value below 0.05."""


@dataclass(frozen=True, kw_only=True)
class KnownAttribute:
    """An attribute and the feature that knows it best."""

    kind: str
    value: str
    n_pictures: int
    n_scored_groups: int
    """That have the attribute, in the half that it is scored on."""
    feature: int
    """-1 where no feature fires on any of its pictures."""
    threshold: float
    """The feature says yes above it."""
    f1: float
    f1_interval: Interval
    precision_at_20: float
    precision_interval: Interval
    p_adjusted: float


@dataclass(frozen=True)
class KnownAttributes:
    """Scores of every attribute of the images."""

    attributes: Attributes
    """Of the images."""
    scores: dict[str, AttributeScores]
    """By what the activations are of, the SAE first."""
    resampled: dict[str, Resampled]
    n_features: dict[str, int]
    about: dict[str, Any]
    """What was matched, split and left out, for attributes.json."""

    def counts(self) -> list[AttributeCounts]:
        """The table's rows."""
        sae, drawn_sae = self.scores[SAE], self.resampled[SAE].mean_f1
        return [
            AttributeCounts(
                name=name,
                n_features=self.n_features[name],
                n_attributes=int(scores.is_scored.sum()),
                f1_at_least_05=scores.count_f1(0.5),
                f1_at_least_07=scores.count_f1(0.7),
                mean_f1=scores.mean_f1,
                mean_f1_interval=interval(self.resampled[name].mean_f1),
                behind_sae=sae.mean_f1 - scores.mean_f1,
                behind_sae_interval=interval(drawn_sae - self.resampled[name].mean_f1),
                precision_at_least_09=scores.count_precision(0.9),
                n_significant=int((self._adjusted(name) < 0.05).sum()),
            )
            for name, scores in self.scores.items()
        ]

    def best(self, name: str = SAE) -> list[KnownAttribute]:
        """Every scored attribute with the feature for it, by falling F1, then by name."""
        scores, drawn, adjusted = self.scores[name], self.resampled[name], self._adjusted(name)
        return [
            KnownAttribute(
                kind=self.attributes.names[a][0],
                value=self.attributes.names[a][1],
                n_pictures=int(scores.n_fit[a] + scores.n_scored[a]),
                n_scored_groups=int(drawn.n_groups[a]),
                feature=int(scores.feature[a]),
                threshold=float(scores.threshold[a]),
                f1=float(scores.f1[a]),
                f1_interval=drawn.intervals(a)[0],
                precision_at_20=float(scores.precision_at_20[a]),
                precision_interval=drawn.intervals(a)[1],
                p_adjusted=float(adjusted[a]),
            )
            for a in self._order()
        ]

    def to_json(self) -> dict[str, Any]:
        """The document of attributes.json."""
        by_name = {name: self.scores[name].f1 for name in self.scores}
        attributes = [
            asdict(known) | {"f1_of": {_SLUGS[name]: float(f1[a]) for name, f1 in by_name.items()}}
            for known, a in zip(self.best(), self._order(), strict=True)
        ]
        return _without_nan(
            {
                "format": FORMAT_NAME,
                "format_version": FORMAT_VERSION,
                **self.about,
                "correction": CORRECTION,
                "counts": [asdict(each) | {"slug": _SLUGS[each.name]} for each in self.counts()],
                "attributes": attributes,
                "thresher": __version__,
            }
        )

    def write(self, path: Path) -> None:
        """Write `best` as tab-separated values with a line of names, and the F1 of what it is compared with."""
        names = ["kind", "value", "n_pictures", "n_scored_groups", "feature", "threshold", "f1", "f1_low", "f1_high"]
        names += ["precision_at_20", "precision_low", "precision_high", "p_adjusted"]
        others = [name for name in self.scores if name != SAE]
        lines = [names + [f"f1_{_SLUGS[name]}" for name in others]]
        for known, a in zip(self.best(), self._order(), strict=True):
            record = asdict(known)
            record["f1_low"], record["f1_high"] = known.f1_interval
            record["precision_low"], record["precision_high"] = known.precision_interval
            lines.append([_cell(record[name]) for name in names] + [_cell(float(self.scores[o].f1[a])) for o in others])
        text = "".join("\t".join(line) + "\n" for line in lines)
        write_atomically(path, text.encode("utf-8", "surrogateescape"))

    def _order(self) -> list[int]:
        scores = self.scores[SAE]
        scored = np.flatnonzero(scores.is_scored).tolist()
        return sorted(scored, key=lambda a: (-scores.f1[a], self.attributes.names[a]))

    def _adjusted(self, name: str) -> NDArray[np.float64]:
        return adjusted_p_values(self.resampled[name].p, any_dependence=True)


def attributes_of_run(
    run_path: Path,
    table: AttributeTable,
    options: AttributesOptions | None = None,
    reporter: Reporter | None = None,
) -> KnownAttributes:
    """Score a run's features on a table of attributes, into `RUN/attributes.tsv` and `attributes.json`.

    Raises
    ------
    ValueError
        When the table has no attribute of enough images.
    StoreError
        When the run has no features, a store is not the one that was encoded, or no key is in it.
    """
    options, reporter = options or AttributesOptions(), reporter or Reporter()
    refuse_existing(run_path / ATTRIBUTES_JSON, overwrite=options.overwrite)
    known = score_table(run_path, table, options, reporter)
    with closing(FolderLock(run_path)):
        write_attributes(run_path, known)
    return known


def write_attributes(run_path: Path, known: KnownAttributes) -> None:
    """Write the table and then the document into a run."""
    known.write(run_path / ATTRIBUTES_TSV)
    document = json.dumps(known.to_json(), indent=1, allow_nan=False)
    write_atomically(run_path / ATTRIBUTES_JSON, document.encode() + b"\n")


def score_known_attributes(
    store: ActivationStore, run_path: Path, untrained_run_path: Path, seed: int
) -> KnownAttributes:
    """Score the embedded pictures' attributes, beside an untrained tower's SAE, random directions and neurons.

    Parameters
    ----------
    store
        Of the embedded pictures; the run was trained on it.
    run_path, untrained_run_path
        Encoded runs on stores of the same pictures.
    seed
        Of the split of the emoji and of the random dictionary.
    """
    options = AttributesOptions(untrained=untrained_run_path, seed=seed, store=str(store.url))
    return score_table(run_path, emoji_table(), options, Reporter())


def score_table(
    run_path: Path, table: AttributeTable, options: AttributesOptions, reporter: Reporter
) -> KnownAttributes:
    """Score every attribute that enough images have, by a run's features and by what they are held against."""
    run = _Encoded.open(run_path, options.store)
    lines = {SAE: run.lines(table)}
    untrained = None if options.untrained is None else _Encoded.open(options.untrained, None)
    if untrained is not None:
        lines[UNTRAINED] = untrained.lines(table)
    neurons = None if options.neurons is None else _neurons(options.neurons, run.activations.site)
    if neurons is not None:
        lines[MLP_NEURONS] = _lines(neurons.store, table)
    in_run = np.unique(lines[SAE][lines[SAE] >= 0])
    if not len(in_run):
        example = run.store.keys([0])[0]
        raise StoreError(
            f"none of the {len(table.keys):,} keys of {table.source} is in {run.store.url}: the first is "
            f"{table.keys[0]!r}, and keys there are like {example!r}."
        )
    shared = in_run
    for each in lines.values():
        shared = np.intersect1d(shared, each)
    if not len(shared):
        others = " and ".join(str(each) for each in (options.untrained, options.neurons) if each is not None)
        raise StoreError(
            f"{run_path} has no image of {table.source} in common with {others}: they are of other images."
        )
    _say_matched(table, in_run, shared, lines, reporter)
    chosen = _some(shared, options)
    # Images count in the order of the store's rows: of equal activations the lower row comes first.
    _, first_row = np.unique(lines[SAE], return_index=True)
    row_of_line = dict(zip(np.unique(lines[SAE]).tolist(), first_row.tolist(), strict=True))
    chosen = np.array(sorted(chosen.tolist(), key=row_of_line.__getitem__), np.int64)
    matched = {name: _matched(each, chosen) for name, each in lines.items()}
    attributes = Attributes.of_columns(
        [table.values[line] for line in chosen.tolist()], min_rows=options.min_rows, max_share=options.max_share
    )
    if not attributes.names:
        raise ValueError(
            f"no value in {table.source} is of at least {options.min_rows} of the {len(chosen):,} images and at most "
            f"{options.max_share:.0%} of them: see --min-rows and --max-share"
        )
    named = table.keys if table.groups is None else table.groups
    groups = np.array([named[line] for line in chosen.tolist()])
    is_fit = split_groups(groups, options.seed)
    bootstrap = GroupBootstrap(groups, attributes.has, ~is_fit, options.resamples, options.seed)
    sources: dict[str, Callable[[], FeatureSource]] = {SAE: lambda: StoredFeatures(run.features, matched[SAE])}
    if untrained is not None:
        sources[UNTRAINED] = lambda: StoredFeatures(untrained.features, matched[UNTRAINED])
    k = max(1, round(StoredFeatures(run.features, matched[SAE]).mean_l0()))
    sources[RANDOM] = lambda: random_dictionary(run.activations, matched[SAE], run.features.d_sae, k, options.seed)
    sources[NEURONS] = lambda: Coordinates(run.activations, matched[SAE])
    if neurons is not None:
        sources[MLP_NEURONS] = lambda: Coordinates(neurons, matched[MLP_NEURONS])
    scores, resampled, n_features = {}, {}, {}
    for name, make in sources.items():
        reporter.say(f"{len(attributes.names):,} attributes by single features: {name}")
        source = make()
        scores[name] = score_attributes(source, attributes.has, is_fit)
        resampled[name] = bootstrap.scores(source, scores[name])
        n_features[name] = source.n_features
    about = {
        "source": table.source,
        "group_column": table.group_column,
        "n_listed": len(table.keys),
        "n_in_store": len(in_run),
        "n_shared": len(shared),
        "n_images": len(chosen),
        "n_groups": len(np.unique(groups)),
        "n_scored_groups": bootstrap.n_groups,
        "n_attributes": len(attributes.names),
        "n_scored": int(scores[SAE].is_scored.sum()),
        "min_rows": options.min_rows,
        "max_share": options.max_share,
        "resamples": options.resamples,
        "seed": options.seed,
        "options": kept_options(options),
        "random_k": k,
        "sae_sha256": run.features.info.sae_sha256,
        "store_fingerprint": run.store.fingerprint,
        "site": run.features.info.site,
    }
    return KnownAttributes(attributes, scores, resampled, n_features, about)


@dataclass(frozen=True)
class _Encoded:
    """A run's feature activations and the vectors that they are of."""

    features: FeatureActivations
    store: ActivationStore
    activations: ActivationArray

    @classmethod
    def open(cls, run_path: Path, place: str | None) -> "_Encoded":
        features = open_features(run_path)
        info = features.info
        store = open_store(place or info.store, n_parts=info.n_store_parts)
        if store.fingerprint != info.store_fingerprint:
            raise StoreError(
                f"{store.url} is not the store that {run_path} was encoded on (its fingerprint differs): name it with "
                "--store."
            )
        return cls(features, store, store.activations(Site.parse(info.site)))

    def lines(self, table: AttributeTable) -> NDArray[np.int64]:
        """Line of the table of each row; -1 for none, and for rows that were not encoded."""
        encoded = self.features.row_numbers("valid", 0, self.features.n_rows)
        return np.where(encoded, lines_of_rows(self.store, table.keys), -1)


def _lines(store: ActivationStore, table: AttributeTable) -> NDArray[np.int64]:
    return np.where(store.valid(0, store.n_rows), lines_of_rows(store, table.keys), -1)


def _neurons(place: str, near: Site) -> ActivationArray:
    """The MLP neurons in a store: of the block of another site, where it holds several."""
    store = open_store(place)
    held = [site for site in store.sites if site.site == "mlp_act"]
    of_block = [site for site in held if site.layer == near.layer] or held
    if not of_block:
        raise StoreError(
            f"{place} holds no mlp_act site: harvest one with `thresher harvest IMAGES STORE --site mlp_act`."
        )
    return store.activations(of_block[0])


def _say_matched(
    table: AttributeTable,
    in_run: NDArray[np.int64],
    shared: NDArray[np.int64],
    lines: dict[str, NDArray[np.int64]],
    reporter: Reporter,
) -> None:
    unmatched = np.setdiff1d(np.arange(len(table.keys)), in_run)
    reporter.say(f"{table.source}: {len(in_run):,} of {len(table.keys):,} images are among the encoded ones")
    if len(unmatched):
        named = ", ".join(repr(table.keys[line]) for line in unmatched[:_NAMED].tolist())
        more = f" and {len(unmatched) - _NAMED:,} more" if len(unmatched) > _NAMED else ""
        reporter.warn(f"{len(unmatched):,} keys of {table.source} have no encoded row and are left out: {named}{more}")
    if len(shared) < len(in_run):
        others = " or ".join(name for name in lines if name != SAE)
        reporter.warn(f"{len(in_run) - len(shared):,} images are left out because {others} lacks them")


def _some(lines: NDArray[np.int64], options: AttributesOptions) -> NDArray[np.int64]:
    if len(lines) <= options.rows:
        return lines
    return np.random.default_rng([options.seed, 2]).choice(lines, options.rows, replace=False)


def _matched(lines: NDArray[np.int64], chosen: NDArray[np.int64]) -> MatchedRows:
    """The rows of the chosen lines."""
    order = np.argsort(chosen)
    rows = np.flatnonzero(np.isin(lines, chosen))
    return MatchedRows(rows, order[np.searchsorted(chosen[order], lines[rows])], len(chosen))


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.6g}"
    return " ".join(str(value).split("\t")).replace("\n", " ").replace("\r", " ")


def _without_nan(value: Any) -> Any:
    """JSON has no NaN, and text that is no UTF-8 is told by its replacement."""
    if isinstance(value, dict):
        return {name: _without_nan(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(each) for each in value]
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    return None if isinstance(value, float) and not np.isfinite(value) else value

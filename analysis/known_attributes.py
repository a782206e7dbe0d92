"""The attributes of the embedded pictures, known by an SAE's features and by its three controls."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..store.files import write_atomically
from ..store.reader import ActivationStore
from .attributes import Attributes, AttributeScores, SparseActivations, emoji_attributes, score_attributes, split_groups
from .overview_sheet import IMAGES_PER_LINE, SheetLine, overview_sheet
from .stored_statistics import StoredStatistics

if TYPE_CHECKING:
    from ..train.models import SparseAutoencoder

SAE = "SAE"
_OVERVIEW_FEATURES = 32


@dataclass(frozen=True, kw_only=True)
class AttributeCounts:
    """How many attributes single features of one kind know; one row of the table."""

    name: str
    n_attributes: int
    f1_at_least_05: int
    f1_at_least_07: int
    mean_f1: float
    precision_at_least_09: int
    """Attributes of which at least 18 of the 20 largest activations are hits."""


@dataclass(frozen=True, kw_only=True)
class KnownAttribute:
    """An attribute and the feature of the SAE that knows it best."""

    kind: str
    value: str
    n_pictures: int
    feature: int
    """-1 where no feature fires on any of its pictures."""
    threshold: float
    """The feature says yes above it."""
    f1: float
    precision_at_20: float


@dataclass(frozen=True)
class KnownAttributes:
    """Scores of every attribute of the pictures."""

    attributes: Attributes
    """Of the store's rows."""
    scores: dict[str, AttributeScores]
    """By what the activations are of, the SAE first."""

    def counts(self) -> list[AttributeCounts]:
        """The table's rows."""
        return [
            AttributeCounts(
                name=name,
                n_attributes=int(scores.is_scored.sum()),
                f1_at_least_05=scores.count_f1(0.5),
                f1_at_least_07=scores.count_f1(0.7),
                mean_f1=scores.mean_f1,
                precision_at_least_09=scores.count_precision(0.9),
            )
            for name, scores in self.scores.items()
        ]

    def best(self) -> list[KnownAttribute]:
        """Every scored attribute with the SAE's feature for it, by falling F1, then by name."""
        scores = self.scores[SAE]
        scored = np.flatnonzero(scores.is_scored).tolist()
        return [
            KnownAttribute(
                kind=self.attributes.names[a][0],
                value=self.attributes.names[a][1],
                n_pictures=int(scores.n_fit[a] + scores.n_scored[a]),
                feature=int(scores.feature[a]),
                threshold=float(scores.threshold[a]),
                f1=float(scores.f1[a]),
                precision_at_20=float(scores.precision_at_20[a]),
            )
            for a in sorted(scored, key=lambda a: (-scores.f1[a], self.attributes.names[a]))
        ]

    def write(self, path: Path) -> None:
        """Write `best` as tab-separated values with a line of names."""
        names = ("kind", "value", "n_pictures", "feature", "threshold", "f1", "precision_at_20")
        lines = [names, *([_cell(getattr(known, name)) for name in names] for known in self.best())]
        write_atomically(path, "".join("\t".join(line) + "\n" for line in lines).encode())


def score_known_attributes(
    store: ActivationStore, run_path: Path, untrained_run_path: Path, seed: int
) -> KnownAttributes:
    """Score the features of an SAE, of the SAE of an untrained tower, of a random dictionary, and the neurons.

    Parameters
    ----------
    store
        Of the embedded pictures; the run was trained on it.
    run_path, untrained_run_path
        Encoded runs on stores of the same pictures in the same order.
    seed
        Of the split of the emoji and of the random dictionary.
    """
    attributes, is_fit = _of_pictures(store, seed)
    codes = _codes(store, run_path, untrained_run_path, seed)
    return KnownAttributes(
        attributes, {name: score_attributes(code, attributes.has, is_fit) for name, code in codes.items()}
    )


def draw_overviews(
    folder: Path, store: ActivationStore, stored: StoredStatistics, known: KnownAttributes, seed: int
) -> list[Path]:
    """Draw features drawn at random, and those that know an attribute best, one a line; the paths."""
    rng = np.random.default_rng(seed)
    alive = np.flatnonzero(stored.statistics.is_alive)
    drawn = np.sort(rng.choice(alive, size=min(_OVERVIEW_FEATURES, len(alive)), replace=False))
    at_random = [_line(stored, feature, _largest_label(stored, store, feature)) for feature in drawn.tolist()]
    of_attributes: list[SheetLine] = []
    used: set[int] = set()
    for attribute in known.best():
        if attribute.feature >= 0 and attribute.feature not in used and len(used) < _OVERVIEW_FEATURES:
            used.add(attribute.feature)
            of_attributes.append(
                _line(
                    stored,
                    attribute.feature,
                    f"{attribute.kind} {attribute.value}",
                    f", F1 {attribute.f1:.2f}",
                )
            )
    shown = f"the {IMAGES_PER_LINE} pictures on which each is largest"
    sheets = {
        "overview_random.png": (at_random, f"{len(at_random)} features drawn at random (seed {seed}): {shown}"),
        "overview_attributes.png": (
            of_attributes,
            f"The features that know an attribute best, scored on emoji they were not chosen on: {shown}",
        ),
    }
    folder.mkdir(exist_ok=True)
    for name, (lines, title) in sheets.items():
        write_atomically(folder / name, overview_sheet(store, lines, title))
    return [folder / name for name in sheets]


def _line(stored: StoredStatistics, feature: int, about: str, more: str = "") -> SheetLine:
    statistics = stored.statistics
    entropy = float(statistics.label_entropy[feature])
    told = f"entropy {entropy:.2f} nats" if np.isfinite(entropy) else "entropy undefined"
    return SheetLine(
        (f"feature {feature}{more}", about, f"{100 * statistics.density[feature]:.2f} %, {told}"),
        statistics.top_row[feature].tolist(),
    )


def _largest_label(stored: StoredStatistics, store: ActivationStore, feature: int) -> str:
    """Name of the label with most of the activation among the largest rows."""
    labels, values = stored.statistics.top_label[feature], stored.statistics.top_value[feature]
    labelled = labels >= 0
    if not labelled.any() or store.label_names is None:
        return ""
    return store.label_names[int(np.bincount(labels[labelled], values[labelled]).argmax())]


def _of_pictures(store: ActivationStore, seed: int) -> tuple[Attributes, NDArray[np.bool_]]:
    """The pictures' attributes by row, and the rows whose emoji features are chosen on."""
    from ..harvest.images import open_images

    with open_images("quickstart") as images:
        by_key = {key.decode(): i for i, key in enumerate(images.keys)}
        said = [images.metadata(by_key[key]) for key in store.keys(np.arange(store.n_rows))]
    return emoji_attributes(said), split_groups([picture["emoji"] for picture in said], seed)


def _codes(store: ActivationStore, run_path: Path, untrained_run_path: Path, seed: int) -> dict[str, SparseActivations]:
    """Activations of the SAE and of its three controls, by the name that the table gives them."""
    from ..train.models import load_sae

    sae = load_sae(run_path)
    activations = store.activations()
    x = activations.tensor(activations.read(0, store.n_rows)).float()
    z = sae.scale(x).numpy()  # (n, d_in), each neuron to mean 0 and deviation 1
    return {
        SAE: _encoded(run_path),
        "SAE on an untrained tower": _encoded(untrained_run_path),
        "random dictionary, same sparsity": _sparse(_random_dictionary(sae, seed), x),
        "the tower's neurons, both signs": SparseActivations.of_dense(np.concatenate([z, -z], axis=1)),
    }


def _encoded(run_path: Path) -> SparseActivations:
    from .features import open_features

    features = open_features(run_path)
    indptr, index, value = features.rows(0, features.n_rows)
    return SparseActivations(indptr, index.astype(np.int64), value, features.d_sae)


def _random_dictionary(sae: "SparseAutoencoder", seed: int) -> "SparseAutoencoder":
    """As many random unit directions as the SAE has features, the k largest kept a row."""
    import torch

    from ..train.models import TopKSae

    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(sae.d_sae, sae.d_in, generator=generator), dim=1)
    no_bias = torch.zeros(sae.d_sae), torch.zeros(sae.d_in)
    return TopKSae(
        *(directions, no_bias[0], directions, no_bias[1]),
        k=sae.settings()["k"],
        input_mean=sae.input_mean,
        input_scale=sae.input_scale,
    )


def _sparse(sae: "SparseAutoencoder", x: Any) -> SparseActivations:
    f = sae.encode_sparse(x)
    return SparseActivations(f.indptr.numpy(), f.index.numpy(), f.value.numpy(), sae.d_sae)


def _cell(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)

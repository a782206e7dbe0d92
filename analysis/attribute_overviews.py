"""Overview pictures of features: some drawn at random, and those that know an attribute best."""

from pathlib import Path

import numpy as np

from ..store.files import write_atomically
from ..store.reader import ActivationStore
from .known_attributes import KnownAttributes
from .overview_sheet import IMAGES_PER_LINE, SheetLine, overview_sheet
from .stored_statistics import StoredStatistics

_OVERVIEW_FEATURES = 32


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

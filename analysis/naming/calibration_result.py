"""What a calibration of names found: shares of right names with intervals, as a table and as JSON.

Shapes: n features that know a phrase, A phrases.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..._version import __version__
from ...store.files import write_atomically
from ..bootstrap import interval, resampled_sums
from ..description import table_lines
from .best_phrases import NamedFeatures
from .calibration_thresholds import Thresholds, is_named, loosest, thresholds_table
from .known_truth import LENIENT, FeatureTruth
from .options import METHODS, NameOptions
from .scores import auroc
from .shares import Share, share_of, shown

CALIBRATION_JSON = "calibration.json"
FORMAT_NAME, FORMAT_VERSION = "thresher-naming-calibration", 1
_SCORES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


@dataclass(frozen=True)
class NamedBy:
    """A way to name features."""

    method: str
    """A word of `options.METHODS`, or `random`."""
    rescored: bool
    """Whether the best scored of the nearest phrases is the name, or the nearest."""

    @property
    def label(self) -> str:
        """As the table shows it."""
        name = "random directions" if self.method == "random" else self.method
        return f"{name}, best scored" if self.rescored else f"{name}, nearest"


@dataclass(frozen=True)
class Row:
    """What one way to name features reached."""

    by: NamedBy
    right: Share
    nearly: Share
    behind: float
    """Share of right names of the winner less this one's."""
    behind_interval: tuple[float, float] | None
    """95 %, by bootstrap over features, both ways on the same ones; None of few features."""
    named: Share
    """Features whose names pass the thresholds."""
    right_of_named: Share
    control_passes: float
    """Share of features in whose place another, ablated by the same length, also has an ablation z of `min_z`."""


@dataclass(frozen=True)
class Reference:
    """What names reach by chance."""

    label: str
    right: Share
    nearly: Share


@dataclass(frozen=True)
class Reliability:
    """How often names of a score are right."""

    at_least: float
    right: Share
    nearly: Share


def compare(
    truth: FeatureTruth, named: Mapping[NamedBy, NamedFeatures], options: NameOptions
) -> tuple[list[Row], NamedBy]:
    """A row for each way to name features, and the one with most right names; of equal ones the most nearly right.

    Random directions never win.
    """
    right = {by: truth.is_right(found.phrases[:, 0]) for by, found in named.items()}
    nearly = {by: truth.is_right(found.phrases[:, 0], share=LENIENT) for by, found in named.items()}
    winner = max(
        (by for by in named if by.method in METHODS), key=lambda by: (int(right[by].sum()), int(nearly[by].sum()))
    )
    rows = []
    for by, found in named.items():
        lead = right[winner].astype(np.float64) - right[by]
        passes = is_named(found, min_auroc=options.min_auroc, min_z=options.min_z, fdr=options.fdr)
        n = len(lead)
        rows.append(
            Row(
                by,
                share_of(right[by]),
                share_of(nearly[by]),
                float(lead.mean()),
                interval(resampled_sums(lead[:, None], seed=options.seed)[:, 0] / n) if n >= 20 else None,
                share_of(passes),
                share_of(right[by][passes]),
                float((found.control_z >= options.min_z).mean()),
            )
        )
    return rows, winner


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Shares of right names of every method."""

    source: str
    group_column: str | None
    n_rows: int
    n_features: int
    n_phrases: int
    min_f1: float
    candidates: int
    templates: str
    fdr: float
    seed: int
    named: list[Row]
    references: list[Reference]
    winner: NamedBy
    thresholds: list[Thresholds]
    kinds: dict[str, int]
    """Features by the kind of the phrase that they know best."""
    phrases: tuple[str, ...]
    truth: FeatureTruth
    features: NDArray[np.int64]
    of_winner: NamedFeatures
    kind_of_feature: NDArray[np.str_]

    def reliability(self) -> list[Reliability]:
        """How often the winner's names are right, of those whose score is at least so much."""
        names, score = self.of_winner.phrases[:, 0], self.of_winner.score
        right, nearly = self.truth.is_right(names), self.truth.is_right(names, share=LENIENT)
        return [Reliability(s, share_of(right[score >= s]), share_of(nearly[score >= s])) for s in _SCORES]

    def score_auroc(self) -> float:
        """Share of (right, wrong) pairs of the winner's names in which the right one has the higher score."""
        right = self.truth.is_right(self.of_winner.phrases[:, 0])
        return float(auroc(self.of_winner.score[right], self.of_winner.score[~right]))

    def by_kind(self) -> dict[str, Share]:
        """Share of the winner's names that are right, by the kind of the phrase that a feature knows best."""
        right = self.truth.is_right(self.of_winner.phrases[:, 0])
        return {kind: share_of(right[self.kind_of_feature == kind]) for kind in self.kinds}

    def to_json(self) -> dict[str, Any]:
        """The document of calibration.json."""
        best, best_thresholds = self.truth.best(), loosest(self.thresholds)
        names = self.of_winner.phrases[:, 0]
        lines = np.arange(self.n_features)
        features = [
            {
                "feature": int(self.features[i]),
                "name": self.phrases[names[i]] if names[i] >= 0 else None,
                "best": self.phrases[best[i]],
                "f1_of_name": float(self.truth.f1[i, names[i]]) if names[i] >= 0 else None,
                "f1_of_best": float(self.truth.f1[i, best[i]]),
                "score": float(self.of_winner.score[i]),
            }
            for i in lines.tolist()
        ]
        document = {
            "format": FORMAT_NAME,
            "format_version": FORMAT_VERSION,
            "source": self.source,
            "group_column": self.group_column,
            "n_rows": self.n_rows,
            "n_features": self.n_features,
            "n_phrases": self.n_phrases,
            "min_f1": self.min_f1,
            "lenient": LENIENT,
            "candidates": self.candidates,
            "templates": self.templates,
            "seed": self.seed,
            "winner": {**asdict(self.winner), "label": self.winner.label},
            "named": [{**asdict(row), "label": row.by.label} for row in self.named],
            "references": [asdict(each) for each in self.references],
            "score_auroc": self.score_auroc(),
            "reliability": [asdict(each) for each in self.reliability()],
            "fdr": self.fdr,
            "thresholds": [asdict(each) for each in self.thresholds],
            "loosest": None if best_thresholds is None else asdict(best_thresholds),
            "by_kind": {kind: asdict(share) for kind, share in self.by_kind().items()},
            "features": features,
            "thresher": __version__,
        }
        return _without_nan(document)

    def write(self, run_path: Path) -> Path:
        """Write `RUN/naming/calibration.json`; gives its path."""
        path = run_path / "naming" / CALIBRATION_JSON
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, json.dumps(self.to_json(), indent=1, allow_nan=False).encode() + b"\n")
        return path

    def text(self) -> str:
        """The tables."""
        groups = f", split by {self.group_column}" if self.group_column else ""
        head = [
            f"{self.n_features:,} features know one of {self.n_phrases:,} phrases of {self.source} "
            f"(F1 >= {self.min_f1:g} on the naming side).",
            f"Names held to {self.n_rows:,} images{groups}; percent, with 95 % intervals:",
        ]
        rows = [
            [row.by.label, shown(row.right), shown(row.nearly), _lead(row)]
            for row in sorted(self.named, key=lambda row: (-row.right.value, row.by.label))
        ]
        rows += [[each.label, shown(each.right), shown(each.nearly), ""] for each in self.references]
        tables = [
            table_lines(["names by", "right", "right or nearly", "behind the best"], rows),
            table_lines(
                ["score at least", "features", "right", "right or nearly"],
                [[f"{r.at_least:g}", f"{r.right.n:,}", shown(r.right), shown(r.nearly)] for r in self.reliability()],
            ),
            table_lines(
                ["knows best a value of", "features", "right"],
                [[kind, f"{share.n:,}", shown(share)] for kind, share in self.by_kind().items() if share.n],
            ),
            thresholds_table(self.thresholds),
        ]
        said = [
            head,
            [
                f"Most names are right by: {self.winner.label}. Right names outscore wrong ones in "
                f"{self.score_auroc():.0%} of pairs:"
            ],
            ["And by what the features know:"],
            [f"What passes thresholds (q <= {self.fdr:g} too), of right names and of names by chance, percent:"],
        ]
        return "\n".join(
            line for above, table in zip(said, tables, strict=True) for line in (*above, *(f"  {row}" for row in table))
        )


def _lead(row: Row) -> str:
    if row.behind_interval is None:
        return f"{100 * row.behind:.0f}"
    return f"{100 * row.behind:.0f} [{100 * row.behind_interval[0]:.0f}, {100 * row.behind_interval[1]:.0f}]"


def _without_nan(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {name: _without_nan(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""Known-attribute scores: how well single features pick out what is known about the images.

Shapes: n rows, F features, A attributes, nnz activations above zero.

For each attribute the feature and threshold of the best F1 are sought on one half of the groups (such as emoji, or
photographers) and scored on the other half, so that no two images of one group are on both sides. F1 is
2 TP / (predicted + actual) for the prediction "activation > threshold".
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .sorted_runs import count_at_least, feature_runs, first_of_largest, ranges, rank_in_run, threshold_below

PRECISION_AT = 20
_CHOSEN_AT_ONCE = 64  # features whose activations are in memory: of a dense one, all rows
_PAIRS_AT_ONCE = 4_000_000  # (activation, attribute of its row) pairs in memory: about 200 MB


Entries = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]
"""Row, feature and value of activations above 0, each `(nnz,)`, in any order."""


class FeatureSource(Protocol):
    """Activations of n rows that are read some features at a time."""

    @property
    def n_rows(self) -> int:
        """Rows."""

    @property
    def n_features(self) -> int:
        """Features."""

    def blocks(self) -> Iterator[Entries]:
        """Every activation above 0: each block has all of some features, which rise from block to block."""

    def of_features(self, features: NDArray[np.int64]) -> Entries:
        """Every activation above 0 of some features."""


@dataclass(frozen=True)
class SparseActivations:
    """Feature activations of n rows, as CSR."""

    indptr: NDArray[np.int64]
    """`(n + 1,)`, from 0."""
    index: NDArray[np.int64]
    """`(nnz,)` feature ids, any order within a row, none twice."""
    value: NDArray[np.float32]
    """`(nnz,)`, all above 0."""
    n_features: int

    def __post_init__(self) -> None:
        if len(self.index) != len(self.value) or self.indptr[0] != 0 or self.indptr[-1] != len(self.index):
            raise ValueError(
                f"indptr runs from {self.indptr[0]} to {self.indptr[-1]}; it must run from 0 to the number of "
                f"activations, {len(self.index)} ids and {len(self.value)} values"
            )
        if len(self.index) and not 0 <= int(self.index.min()) <= int(self.index.max()) < self.n_features:
            raise ValueError(f"feature ids run to {self.index.max()}; they are from 0 to {self.n_features - 1}")
        if not (self.value > 0).all():
            raise ValueError("an activation is not above 0; leave zeros out")

    @classmethod
    def of_dense(cls, activations: ArrayLike) -> Self:
        """The entries above zero of a matrix `(n, F)`."""
        dense = np.asarray(activations)
        row, index = np.nonzero(dense > 0)
        indptr = np.concatenate(([0], np.cumsum(np.bincount(row, minlength=len(dense)))))
        return cls(
            indptr.astype(np.int64), index.astype(np.int64), dense[row, index].astype(np.float32), dense.shape[1]
        )

    @property
    def n_rows(self) -> int:
        """Rows."""
        return len(self.indptr) - 1

    @property
    def row(self) -> NDArray[np.int64]:
        """`(nnz,)`: the row of each activation."""
        return np.repeat(np.arange(self.n_rows), np.diff(self.indptr))

    def blocks(self) -> Iterator[Entries]:
        """All of it as one block."""
        yield self.row, self.index, self.value

    def of_features(self, features: NDArray[np.int64]) -> Entries:
        """Every activation above 0 of some features."""
        kept = np.isin(self.index, features)
        return self.row[kept], self.index[kept], self.value[kept]


@dataclass(frozen=True)
class Attributes:
    """What is known about n rows: which of A attributes each has."""

    names: list[tuple[str, str]]
    """Kind and value of each: `("vendor", "noto")`."""
    has: NDArray[np.bool_]
    """`(n, A)`."""

    @classmethod
    def of_columns(
        cls,
        columns: Sequence[Mapping[str, Sequence[str] | str]],
        *,
        min_rows: int = 40,
        max_share: float = 0.6,
    ) -> Self:
        """Collect the attributes that enough rows have, and not too many.

        Parameters
        ----------
        columns
            For each row its values by kind; several values of a kind (the words of a caption) as a sequence.
        min_rows
            Fewest rows of an attribute: below, neither half of the groups can tell a hit from luck.
        max_share
            Largest share of the rows: above, calling every row a hit already has F1 2 s / (1 + s).
        """
        rows_of: dict[tuple[str, str], list[int]] = {}
        for row, values in enumerate(columns):
            for kind, said in values.items():
                for value in {said} if isinstance(said, str) else set(said):
                    rows_of.setdefault((kind, value), []).append(row)
        kept = {name: rows for name, rows in rows_of.items() if min_rows <= len(rows) <= max_share * len(columns)}
        names = sorted(kept)
        has = np.zeros((len(columns), len(names)), np.bool_)
        for column, name in enumerate(names):
            has[kept[name], column] = True
        return cls(names, has)


@dataclass(frozen=True)
class AttributeScores:
    """The best feature of each attribute, chosen on one half of the groups, scored on the other."""

    feature: NDArray[np.int64]
    """`(A,)`; -1 where no feature fires on any row that has the attribute."""
    threshold: NDArray[np.float64]
    """`(A,)`: the prediction is "activation > threshold"; 0 means "fires"."""
    fit_f1: NDArray[np.float64]
    """`(A,)`: F1 on the half that the choice was made on."""
    f1: NDArray[np.float64]
    """`(A,)`: F1 on the other half; NaN where that half has too few rows of the attribute."""
    precision_at_20: NDArray[np.float64]
    """`(A,)`: share of hits among the 20 largest activations on that other half, ones that do not fire counted as
    misses; NaN where F1 is."""
    n_fit: NDArray[np.int64]
    """`(A,)`: rows of the attribute in the half of the choice."""
    n_scored: NDArray[np.int64]
    """`(A,)`: rows of the attribute in the other half."""

    @property
    def is_scored(self) -> NDArray[np.bool_]:
        """`(A,)`."""
        return ~np.isnan(self.f1)

    def count_f1(self, at_least: float) -> int:
        """Attributes whose F1 reaches a value."""
        return int((self.f1 >= at_least).sum())

    def count_precision(self, at_least: float) -> int:
        """Attributes whose precision at 20 reaches a value."""
        return int((self.precision_at_20 >= at_least).sum())

    @property
    def mean_f1(self) -> float:
        """Mean over the scored attributes; NaN when there is none."""
        scored = self.f1[self.is_scored]
        return float(scored.mean()) if len(scored) else float("nan")


def split_groups(groups: ArrayLike, seed: int = 0) -> NDArray[np.bool_]:
    """Draw half of the groups, rounded down: `(n,)`, True on the rows of those.

    Parameters
    ----------
    groups
        `(n,)`: what each row belongs to, as numbers or strings. Which groups are drawn depends on their sorted order
        and the seed, not on the rows' order.
    """
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    n_groups = int(group.max(initial=-1)) + 1
    drawn = np.zeros(n_groups, np.bool_)
    drawn[np.random.default_rng(seed).permutation(n_groups)[: n_groups // 2]] = True
    return drawn[group]


def score_attributes(
    features: FeatureSource, has: NDArray[np.bool_], is_fit: NDArray[np.bool_], *, min_scored: int = 10
) -> AttributeScores:
    """Find the best single feature of each attribute on some rows and score it on the others.

    The thresholds tried are exact: every cut between two distinct activations of a feature, and "fires". Of equal fits
    the lower feature wins, then the higher threshold. A threshold lies halfway between the activations it parts.

    Parameters
    ----------
    features
        Of the n rows.
    has
        `(n, A)`.
    is_fit
        `(n,)`: the rows to choose on; see `split_groups`.
    min_scored
        Fewest rows of an attribute among the others for a score.

    Raises
    ------
    ValueError
        When the shapes do not agree.
    """
    n = features.n_rows
    if has.ndim != 2 or len(has) != n or is_fit.shape != (n,):
        raise ValueError(f"has {has.shape} and is_fit {is_fit.shape} do not fit activations of {n} rows")
    n_fit, n_scored = has[is_fit].sum(0, dtype=np.int64), has[~is_fit].sum(0, dtype=np.int64)
    best = _choose(features, has, is_fit, n_fit)
    f1, precision = _score(features, has, ~is_fit, best)
    f1[n_scored < min_scored] = np.nan
    precision[n_scored < min_scored] = np.nan
    return AttributeScores(best.feature, best.threshold, best.f1, f1, precision, n_fit, n_scored)


@dataclass
class _Best:
    """The best fit of each attribute so far."""

    feature: NDArray[np.int64]
    threshold: NDArray[np.float64]
    f1: NDArray[np.float64]


def _choose(
    features: FeatureSource, has: NDArray[np.bool_], is_fit: NDArray[np.bool_], n_fit: NDArray[np.int64]
) -> _Best:
    """The feature, threshold and F1 of the best fit of each attribute."""
    n_attributes = has.shape[1]
    best = _Best(np.full(n_attributes, -1, np.int64), np.zeros(n_attributes), np.zeros(n_attributes))
    attribute_start, attribute = _attributes_by_row(has)
    for row, index, value in features.blocks():
        entries = is_fit[row]
        row, index, value = row[entries], index[entries], value[entries]
        order = np.lexsort((row, -value, index))  # by feature, falling activation, then row
        row, index, value = row[order], index[order], value[order]
        n_pairs = np.diff(attribute_start)[row]
        for first, last in feature_runs(index, n_pairs, _PAIRS_AT_ONCE):
            entry = np.repeat(np.arange(last - first), n_pairs[first:last])
            pair_attribute = attribute[ranges(attribute_start[row[first:last]], n_pairs[first:last])]
            _improve(best, index[first:last], value[first:last], entry, pair_attribute, n_fit, features.n_features)
    return best


def _improve(
    best: _Best,
    index: NDArray[np.int64],
    value: NDArray[np.float32],
    entry: NDArray[np.int64],
    pair_attribute: NDArray[np.int64],
    n_fit: NDArray[np.int64],
    n_features: int,
) -> None:
    """Take what is better among some whole features, sorted by feature and falling activation.

    Parameters
    ----------
    entry, pair_attribute
        Each (activation, attribute of its row).
    """
    n_predicted = count_at_least(index, value)
    # Sorted by attribute and, within it, by feature and falling activation: the i-th pair of a (feature, attribute)
    # has i true positives at its own activation as the threshold. Only cuts at a hit can be best: one below it
    # predicts more rows for the same hits.
    by_attribute = np.argsort(pair_attribute, kind="stable")
    entry, pair_attribute = entry[by_attribute], pair_attribute[by_attribute]
    hits = rank_in_run(pair_attribute * n_features + index[entry])
    f1 = 2 * hits / (n_predicted[entry] + n_fit[pair_attribute])
    for pair in first_of_largest(f1, pair_attribute).tolist():
        column, at = int(pair_attribute[pair]), int(entry[pair])
        if f1[pair] > best.f1[column]:  # features come in rising order: an equal one of a later run is higher
            best.f1[column], best.feature[column] = f1[pair], index[at]
            best.threshold[column] = threshold_below(index, value, at)


@dataclass(frozen=True)
class Prediction:
    """The activations of the one feature chosen for an attribute, on the rows that it is scored on, falling."""

    row: NDArray[np.int64]
    """Of equal activations the lower row first."""
    is_hit: NDArray[np.bool_]
    """Whether the row has the attribute."""
    n_predicted: int
    """The first so many are above the threshold."""


def predictions(
    features: FeatureSource, has: NDArray[np.bool_], is_scored: NDArray[np.bool_], best: "_Best | AttributeScores"
) -> Iterator[tuple[int, Prediction]]:
    """The predictions of the chosen features on the rows `is_scored`, for each attribute that has a feature."""
    chosen = np.unique(best.feature[best.feature >= 0])
    for first in range(0, len(chosen), _CHOSEN_AT_ONCE):
        some = chosen[first : first + _CHOSEN_AT_ONCE]
        row, index, value = features.of_features(some)
        scored = is_scored[row]
        row, index, value = row[scored], index[scored], value[scored]
        order = np.lexsort((row, -value, index))
        row, index, value = row[order], index[order], value[order]
        for column in np.flatnonzero(np.isin(best.feature, some)).tolist():
            of = slice(*np.searchsorted(index, [best.feature[column], best.feature[column] + 1]).tolist())
            n_predicted = int((value[of] > best.threshold[column]).sum())
            yield column, Prediction(row[of], has[row[of], column], n_predicted)


def _score(
    features: FeatureSource, has: NDArray[np.bool_], is_scored: NDArray[np.bool_], best: _Best
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """F1 and precision at 20 of one feature and threshold an attribute, on the rows `is_scored`."""
    f1, precision = np.zeros(has.shape[1]), np.zeros(has.shape[1])
    n_actual = has[is_scored].sum(0)
    for column, found in predictions(features, has, is_scored, best):
        if found.n_predicted or n_actual[column]:
            true_positives = int(found.is_hit[: found.n_predicted].sum())
            f1[column] = 2 * true_positives / (found.n_predicted + int(n_actual[column]))
        precision[column] = int(found.is_hit[:PRECISION_AT].sum()) / PRECISION_AT
    return f1, precision


def _attributes_by_row(has: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The attributes of each row, as CSR."""
    row, attribute = np.nonzero(has)
    start = np.concatenate(([0], np.cumsum(np.bincount(row, minlength=len(has)))))
    return start.astype(np.int64), attribute.astype(np.int64)


def emoji_attributes(metadata: Sequence[Mapping[str, Any]]) -> Attributes:
    """The attributes of the embedded pictures: subgroup, group, skin tone, vendor and the caption's words.

    Parameters
    ----------
    metadata
        Of each row, as the pictures' JSON has it.
    """
    return Attributes.of_columns([emoji_values(said) for said in metadata])


def emoji_values(said: Mapping[str, Any]) -> dict[str, list[str]]:
    """The values of one of the embedded pictures, by kind."""
    return {
        "subgroup": [said["label"]],
        "group": [said["group"]],
        "tone": [str(said["tone"])],
        "vendor": [said["vendor"]],
        "word": [word for word in _words(said["caption"]) if len(word) > 2],
    }


def _words(caption: str) -> list[str]:
    return caption.replace(":", " ").replace(",", " ").split()

"""What divides the rows of each class among its own features.

Those are the ones of label entropy 0: all their strongest labelled rows are of the class, though weaker ones need not
be. A row is an image, or a patch of one where patches are stored. Over the class's rows, with a_j those on which
feature j is > 0:

    same    j joins the first feature i, by falling a, with Jaccard |a_i and a_j| / |a_i or a_j| of at least 0.5; else
            it leads a group of its own
    inside  a group lies inside the one, with more rows, that holds 80 % of its leader's rows; of several the smallest
    part    a group that no other lies inside: the finest that the features tell of the class. A row belongs to the
            part whose feature is strongest on it (decoder directions have one norm, so that activations compare)

Everything is counted in two passes over the stored activations, whatever the number of rows; what is held is a number
for each pair of a class's own features that meet.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..progress import Reporter
from .features import FeatureActivations, FeatureBlock

SAME = 0.5
"""Jaccard index from which two features of a class count as one."""
INSIDE = 0.8
"""Share of a group's rows that a wider one must hold."""

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Overlap:
    """Two own features of a class that fire on rows of it together; a < b."""

    a: int
    b: int
    n_both: int


@dataclass(frozen=True, kw_only=True)
class OwnFeature:
    """One own feature of a class."""

    feature: int
    n_class: int
    """Rows of the class on which it fires."""
    leader: int
    """Leader of its group: itself, or the feature that it doubles."""
    inside: int
    """Leader of the group that its group lies inside; -1 for none."""
    is_part: bool
    """Whether its group is a part."""
    n_strongest: int
    """Rows of the class that belong to its part through it."""


@dataclass(frozen=True, kw_only=True)
class ClassStructure:
    """How the rows of a class are divided among its own features."""

    label: int
    n_rows: int
    n_covered: int
    """Rows on which any of its own features fires."""
    n_in_parts: int
    """Rows that belong to a part."""
    features: list[OwnFeature]
    """By falling `n_class`, the lower feature first among equals."""
    overlaps: list[Overlap]

    @property
    def parts(self) -> dict[int, int]:
        """Rows of each part by its leader, falling."""
        rows: dict[int, int] = {}
        for own in self.features:
            if own.is_part:
                rows[own.leader] = rows.get(own.leader, 0) + own.n_strongest
        return dict(sorted(rows.items(), key=lambda item: (-item[1], item[0])))

    @property
    def effective_parts(self) -> float:
        """Exp of the entropy of the parts' shares of rows: 3 of three equal parts; 0 where there is none."""
        rows = np.array([n for n in self.parts.values() if n], np.float64)
        share = rows / rows.sum() if len(rows) else rows
        return float(np.exp(-(share * np.log(share)).sum())) if len(rows) else 0.0


def class_structures(
    features: FeatureActivations,
    class_of: Ints,
    *,
    split: str,
    rows_of: dict[int, int],
    reporter: Reporter | None = None,
) -> list[ClassStructure]:
    """The structure of each class that has own features.

    Parameters
    ----------
    class_of
        `(d_sae,)`: label of the class whose own feature each is, -1 of the others.
    split
        Rows to count.
    rows_of
        Rows of each label.
    """
    reporter = reporter or Reporter()
    own = np.flatnonzero(class_of >= 0)
    start, stop = features.row_range(split)
    active = np.zeros(features.d_sae, np.int64)
    covered: dict[int, int] = {}
    meets = _PairCounts(features.d_sae)
    with reporter.task("classes", 2 * (stop - start), "rows") as task:
        for block in features.blocks(start, stop, split=split):
            row, index, _ = _own_entries(block, class_of)
            active += np.bincount(index, minlength=features.d_sae)
            meets.add(row, index)
            first_of_row = np.diff(row, prepend=-1) > 0
            for label, n in zip(*np.unique(class_of[index[first_of_row]], return_counts=True), strict=True):
                covered[int(label)] = covered.get(int(label), 0) + int(n)
            task.advance(len(block.labels))
        pairs = meets.by_class(class_of)
        groups = {
            label: _grouped(own[class_of[own] == label], active, pairs.get(label, []))
            for label in np.unique(class_of[own]).tolist()
        }
        is_part = np.zeros(features.d_sae, bool)
        for group in groups.values():
            is_part[[feature for feature, found in group.items() if found.is_part]] = True
        strongest = np.zeros(features.d_sae, np.int64)
        for block in features.blocks(start, stop, split=split):
            row, index, value = _own_entries(block, class_of)
            kept = is_part[index]
            row, index, value = row[kept], index[kept], value[kept]
            order = np.lexsort((index, -value, row))  # the strongest of a row first, of equals the lower feature
            winner = order[np.diff(row[order], prepend=-1) > 0]
            strongest += np.bincount(index[winner], minlength=features.d_sae)
            task.advance(len(block.labels))
    return [
        ClassStructure(
            label=label,
            n_rows=rows_of[label],
            n_covered=covered.get(label, 0),
            n_in_parts=int(strongest[list(group)].sum()),
            features=[
                OwnFeature(
                    feature=feature,
                    n_class=int(active[feature]),
                    leader=found.leader,
                    inside=found.inside,
                    is_part=found.is_part,
                    n_strongest=int(strongest[feature]),
                )
                for feature, found in group.items()
            ],
            overlaps=pairs.get(label, []),
        )
        for label, group in groups.items()
    ]


def _own_entries(block: FeatureBlock, class_of: Ints) -> tuple[Ints, Ints, NDArray[np.float32]]:
    """Row, feature and value of a block's entries that are of an own feature of their row's class."""
    row = np.repeat(np.arange(len(block.labels)), np.diff(block.indptr))
    index = block.index.astype(np.int64)
    kept = (class_of[index] >= 0) & (class_of[index] == block.labels[row])
    return row[kept], index[kept], block.value[kept]


class _PairCounts:
    """How many rows each pair of features meets on."""

    def __init__(self, d_sae: int) -> None:
        self._d_sae = d_sae
        self._key, self._n = np.zeros(0, np.int64), np.zeros(0, np.int64)

    def add(self, row: Ints, index: Ints) -> None:
        """Count the pairs of entries of one row; entries come row by row, features ascending."""
        found = []
        distance = 1
        while distance < len(row):
            same = row[distance:] == row[:-distance]
            if not same.any():
                break
            found.append(index[:-distance][same] * self._d_sae + index[distance:][same])
            distance += 1
        if not found:
            return
        keys, n = np.unique(np.concatenate(found), return_counts=True)
        self._key, place = np.unique(np.concatenate([self._key, keys]), return_inverse=True)
        self._n = np.bincount(place, np.concatenate([self._n, n])).astype(np.int64)

    def by_class(self, class_of: Ints) -> dict[int, list[Overlap]]:
        """The pairs that met, by the class that both are own features of."""
        a, b = np.divmod(self._key, self._d_sae)
        found: dict[int, list[Overlap]] = {}
        for label, *pair in zip(class_of[a].tolist(), a.tolist(), b.tolist(), self._n.tolist(), strict=True):
            found.setdefault(label, []).append(Overlap(*pair))
        return found


@dataclass(frozen=True)
class _Found:
    leader: int
    inside: int
    is_part: bool


def _grouped(own: Ints, active: Ints, pairs: list[Overlap]) -> dict[int, _Found]:
    """Group, container and kind of each own feature of one class, by falling rows."""
    met: dict[int, dict[int, int]] = {feature: {} for feature in own.tolist()}
    for pair in pairs:
        met[pair.a][pair.b] = met[pair.b][pair.a] = pair.n_both
    order = own[np.lexsort((own, -active[own]))].tolist()
    place = {feature: i for i, feature in enumerate(order)}
    rows = {feature: int(active[feature]) for feature in order}
    leader_of: dict[int, int] = {}
    inside: dict[int, int] = {}
    for feature in order:
        earlier = sorted((other for other in met[feature] if other in inside), key=place.__getitem__)
        doubled = (
            other
            for other in earlier
            if met[feature][other] >= SAME * (rows[feature] + rows[other] - met[feature][other])
        )
        leader_of[feature] = next(doubled, feature)
        if leader_of[feature] == feature:
            holding = (
                other
                for other in reversed(earlier)  # the smallest first
                if rows[other] > rows[feature] and met[feature][other] >= INSIDE * rows[feature]
            )
            inside[feature] = next(holding, -1)
    holds = set(inside.values())
    return {feature: _Found(leader, inside[leader], leader not in holds) for feature, leader in leader_of.items()}

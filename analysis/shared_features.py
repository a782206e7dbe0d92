"""Which classes share features: pairs of classes on whose rows the same features fire, against what chance would give.

A feature is one of a class's when it fires on at least 5 of its rows, on at least a fifth of them, and at least twice
as often as on all labelled rows. Two classes share the features that are of both. Chance is the bipartite
configuration model: every class keeps its number of features k and every feature its number of classes m, and who has
which is drawn. It gives k_a k_b sum_j m_j (m_j - 1) / (sum_j m_j)^2 shared features on average, about Poisson
distributed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import exp, lgamma, log

import numpy as np
from numpy.typing import NDArray

MIN_ROWS = 5
MIN_SHARE = 0.2
MIN_LIFT = 2.0

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Membership:
    """Which features are of which classes, as pairs."""

    feature: Ints
    """`(pairs,)`, ascending."""
    label: Ints
    """`(pairs,)`."""
    n: Ints
    """`(pairs,)`: rows of the class on which the feature fires."""

    def of(self, label: int) -> Ints:
        """Features of a class, ascending."""
        return self.feature[self.label == label]


@dataclass(frozen=True, kw_only=True)
class SharedFeatures:
    """Two classes and the features that are of both; a < b."""

    a: int
    b: int
    n_a: int
    """Features of the first class."""
    n_b: int
    n_shared: int
    expected: float
    """By chance."""
    p_adjusted: float
    """Of so many by chance or more; adjusted over all pairs of classes, shared or not (Benjamini and Hochberg)."""
    features: tuple[int, ...]
    """The shared ones, those with the most rows in the two classes first."""


def membership(feature: Ints, label: Ints, n: Ints, n_labelled: Ints, label_ids: Ints, label_rows: Ints) -> Membership:
    """Pairs of a feature and a class it is of, among counted pairs.

    Parameters
    ----------
    feature, label, n
        `(pairs,)`: rows of a label on which a feature fires.
    n_labelled
        `(pairs,)`: labelled rows on which the pair's feature fires.
    label_ids, label_rows
        The labels, ascending, and the rows of each.
    """
    rows = label_rows[np.searchsorted(label_ids, label)]
    share, overall = n / rows, n_labelled / label_rows.sum()
    kept = (n >= MIN_ROWS) & (share >= MIN_SHARE) & (share >= MIN_LIFT * overall)
    return Membership(feature[kept], label[kept], n[kept])


def shared_features(members: Membership, n_labels: int) -> list[SharedFeatures]:
    """Pairs of classes that share features, by rising p-value, of equals the more shared first.

    Memory grows with the pairs of classes that share any.
    """
    if not len(members.feature):
        return []
    total = len(members.feature)
    per_feature = np.unique(members.feature, return_counts=True)[1].astype(np.float64)
    meeting = float((per_feature * (per_feature - 1)).sum()) / total**2
    labels, k = np.unique(members.label, return_counts=True)
    features_of = dict(zip(labels.tolist(), k.tolist(), strict=True))
    shared: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for feature, here, n in _by_feature(members):
        order = np.argsort(here)
        here, n = here[order], n[order]
        for i in range(len(here)):
            for j in range(i + 1, len(here)):
                shared.setdefault((int(here[i]), int(here[j])), []).append((-int(n[i] + n[j]), feature))
    expected = {pair: features_of[pair[0]] * features_of[pair[1]] * meeting for pair in shared}
    p = np.array([poisson_tail(len(found), expected[pair]) for pair, found in shared.items()])
    adjusted = _adjusted(p, n_labels * (n_labels - 1) // 2)
    records = [
        SharedFeatures(
            a=a,
            b=b,
            n_a=features_of[a],
            n_b=features_of[b],
            n_shared=len(found),
            expected=expected[a, b],
            p_adjusted=float(adjusted[place]),
            features=tuple(feature for _, feature in sorted(found)),
        )
        for place, ((a, b), found) in enumerate(shared.items())
    ]
    return sorted(records, key=lambda r: (r.p_adjusted, -r.n_shared / r.expected, r.a, r.b))


def _adjusted(p: NDArray[np.float64], n_all: int) -> NDArray[np.float64]:
    """Benjamini and Hochberg's adjusted p-values where all other hypotheses, `n_all` with these, have p-value 1."""
    order = np.argsort(p, kind="stable")
    steps = p[order] * n_all / np.arange(1, len(p) + 1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1.0, np.minimum.accumulate(steps[::-1])[::-1])
    return adjusted


def _by_feature(members: Membership) -> Iterator[tuple[int, Ints, Ints]]:
    edges = np.flatnonzero(np.diff(members.feature, prepend=-1, append=-1))
    for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        if stop - start > 1:
            yield int(members.feature[start]), members.label[start:stop], members.n[start:stop]


def poisson_tail(n: int, mean: float) -> float:
    """P(X >= n) of a Poisson variable."""
    if n == 0:
        return 1.0
    if n <= mean:  # the sum below is short of terms there, and loses nothing as a difference
        return max(0.0, 1.0 - sum(exp(i * log(mean) - mean - lgamma(i + 1)) for i in range(n)))
    term = exp(n * log(mean) - mean - lgamma(n + 1))
    total, i = 0.0, n
    while term > 1e-18 * total:
        total += term
        i += 1
        term *= mean / i
    return min(1.0, total)

"""Which rows make names and which score them, so that a name is never scored on an image that it was found by.

An image is on one side by a hash of its number, seeded by the store: half of them on each side. Shapes: N rows of the
store, P rows of the pool.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...store.reader import ActivationStore
from ...store.shuffle import mix
from ..features import FeatureActivations

Ints = NDArray[np.int64]
_KEPT = 1 << 16
"""Scoring rows of a feature of which quantiles are taken: of one that fires on more, a random sample."""


@dataclass(frozen=True)
class NamingSplit:
    """The two sides of a store's rows.

    Parameters
    ----------
    n_rows
        N.
    """

    n_rows: int
    _hash: Callable[[Ints], NDArray[np.uint64]]

    def is_naming(self, rows: Ints) -> NDArray[np.bool_]:
        """`(k,)`: whether each row makes names; the others score them."""
        # the top bit: the hash of a row's image, or group, is even over 64 bits
        return (self._hash(rows) >> np.uint64(63)) == 0

    def pool(
        self, n: int, valid: Callable[[Ints], NDArray[np.bool_]], n_valid: int, *, naming: bool, seed: int = 0
    ) -> Ints:
        """At most `n` random valid rows of one side, ascending.

        Parameters
        ----------
        valid, n_valid
            Gives `(k,)`, whether each row was encoded; and how many of all were.
        naming
            Of the naming side, else of the scoring side.
        """
        generator = np.random.default_rng([seed, 7, naming])
        # a row in 2 n_rows / n_valid will do: drawing twice as many leaves room for chance
        k = 4 * n * self.n_rows // max(1, n_valid)
        drawn = np.arange(self.n_rows) if self.n_rows <= 2 * k else np.unique(generator.integers(0, self.n_rows, k))
        found = drawn[(self.is_naming(drawn) == naming) & valid(drawn)]
        return np.sort(found if len(found) <= n else generator.choice(found, n, replace=False))


def split_rows(store: ActivationStore, *, groups: NDArray[np.integer] | None = None, seed: int = 0) -> NamingSplit:
    """Split the rows of a store.

    Parameters
    ----------
    groups
        `(N,)`: rows of one number are on one side, as all drawings of one thing; by default each image is its own.
    seed
        Of the hash, beside the store.
    """
    salt = mix(np.array([int(store.fingerprint[-15:], 16) ^ seed], np.uint64))

    def hashed(rows: Ints) -> NDArray[np.uint64]:
        numbers = images_of(store, rows) if groups is None else groups[rows]
        return mix(mix(numbers.astype(np.uint64) + np.uint64(1)) ^ salt)

    return NamingSplit(store.n_rows, hashed)


def images_of(store: ActivationStore, rows: Ints) -> Ints:
    """The image of each row, numbered in the order of the source, part after part; nothing is read."""
    edges = np.cumsum([0, *(part.n_rows for part in store.parts)])
    firsts = np.cumsum([0, *(part.n_images for part in store.parts)])
    found = np.empty(len(rows), np.int64)
    number = np.searchsorted(edges, rows, side="right") - 1
    for part in np.unique(number).tolist():
        here = number == part
        found[here] = store.parts[part].order.images(rows[here] - edges[part]) + firsts[part]
    return found


@dataclass(frozen=True)
class FeatureRows:
    """The rows that name a feature and those that score it.

    Parameters
    ----------
    naming, naming_values
        `(at most k,)`: rows of the naming side on which it is largest, the largest first, and its activations there.
    scoring, scoring_values
        `(at most n,)`: firing rows of the scoring side, as many from each tenth of its activations as it has, by row.
    n_naming, n_scoring
        Rows of each side on which it fires.
    in_pool
        `(P,)`: whether it fires on each row of the pool.
    """

    naming: Ints
    naming_values: NDArray[np.float32]
    scoring: Ints
    scoring_values: NDArray[np.float32]
    n_naming: int
    n_scoring: int
    in_pool: NDArray[np.bool_]


def feature_rows(
    features: FeatureActivations,
    feature: int,
    split: NamingSplit,
    pool: Ints,
    *,
    naming: int = 20,
    scoring: int = 50,
    seed: int = 0,
) -> FeatureRows:
    """Draw a feature's rows; a feature's entries are read a few megabytes at a time.

    Parameters
    ----------
    pool
        `(P,)`, ascending: as `NamingSplit.pool` gives it.
    naming, scoring
        Rows of each side.
    """
    generator = np.random.default_rng([seed, feature])
    top, top_values = np.zeros(0, np.int64), np.zeros(0, np.float32)
    kept, kept_values, keys = np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0)
    n_naming = n_scoring = 0
    in_pool = np.zeros(len(pool), bool)
    for rows, values in features.feature_pieces(feature):
        ours = split.is_naming(rows)
        n_naming, n_scoring = n_naming + int(ours.sum()), n_scoring + int((~ours).sum())
        top, top_values = np.concatenate((top, rows[ours])), np.concatenate((top_values, values[ours]))
        first = np.lexsort((top, -top_values))[:naming]  # of equal values the lower row
        top, top_values = top[first], top_values[first]
        kept, kept_values = np.concatenate((kept, rows[~ours])), np.concatenate((kept_values, values[~ours]))
        keys = np.concatenate((keys, generator.random(len(kept) - len(keys))))
        if len(kept) > _KEPT:
            least = np.argpartition(keys, _KEPT)[:_KEPT]
            kept, kept_values, keys = kept[least], kept_values[least], keys[least]
        in_pool |= np.isin(pool, rows, assume_unique=True)
    chosen = _by_tenths(kept_values, scoring, generator)
    order = chosen[np.argsort(kept[chosen])]
    return FeatureRows(top, top_values, kept[order], kept_values[order], n_naming, n_scoring, in_pool)


def _by_tenths(values: NDArray[np.float32], n: int, generator: np.random.Generator) -> Ints:
    """Which of some values to take: at most n, evenly over tenths of their order, at random within one."""
    if len(values) <= n:
        return np.arange(len(values))
    tenth = np.empty(len(values), np.int64)
    tenth[np.argsort(values, kind="stable")] = np.arange(len(values)) * 10 // len(values)
    shuffled = generator.permutation(len(values))
    nth = np.empty(len(values), np.int64)  # which of its tenth each one is, in the shuffled order
    for each in range(10):
        here = shuffled[tenth[shuffled] == each]
        nth[here] = np.arange(len(here))
    place = np.empty(len(values), np.int64)
    place[shuffled] = np.arange(len(values))
    return np.lexsort((place, nth))[:n]

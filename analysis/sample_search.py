"""Where the samples of every feature lie, found exactly in passes over rows of which nothing else is kept.

A feature's firings are in order by `samples.falling_keys`: falling activation, then ascending row. Of each quantile's
sample the place of its first row is known once firings are counted; the histogram of activations says in which bin it
lies. One more pass keeps, from the beginning of that bin, the entries up to the sample's last. Where the bins hold more
than may be kept, a pass before that counts them in 64 equal steps of the key, which ends after few passes whatever the
activations: also equal ones, since keys differ (Munro and Paterson 1980 select in passes like that).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from .activation_bins import BIN_EDGES
from .samples import (
    N_QUANTILES,
    SAMPLE_GROUPS,
    falling_keys,
    key_after,
    random_keys,
    sample_starts,
    smallest_of_each,
)

N_STEPS = 64
MOST_PASSED = 1 << 22
"""Entries that are kept before the samples begin, 32 bytes each, in all."""
_HELD_AT_ONCE = 1 << 20  # entries that wait to be sorted

# Keys before which those of each bin end, from the highest activations down.
_BIN_ENDS = np.concatenate((np.zeros(1, np.uint64), key_after(BIN_EDGES[-2::-1].copy())))

Array = NDArray[Any]


@dataclass(frozen=True)
class SampleSearch:
    """What is known of where the samples lie; arrays are `(d_sae, 4)`, one column a quantile."""

    m: int
    """Rows of each sample."""
    seed: int
    """Of the random ones."""
    begin: NDArray[np.uint64]
    """A key at or before that of the sample's first row."""
    skip: NDArray[np.int64]
    """Entries from there on that come before it."""
    cell_end: NDArray[np.uint64]
    """A key after that of the first row."""
    end: NDArray[np.uint64]
    """A key after that of the last row."""

    @classmethod
    def of_histogram(cls, n_active: Array, histogram: Array, m: int, seed: int) -> Self:
        """What counts `(d_sae,)` and histograms `(d_sae, 64)` of activations tell."""
        n = n_active.astype(np.int64)
        first = sample_starts(n, m)
        last = np.minimum(first + m, n[:, None]) - 1
        counted = np.cumsum(histogram[:, ::-1], axis=1, dtype=np.int64)
        place, last_place = _place(counted, first), _place(counted, last)
        is_dead = (n == 0)[:, None]
        return cls(
            m=m,
            seed=seed,
            begin=_BIN_ENDS[place],
            skip=first - _before(counted, place),
            cell_end=np.where(is_dead, _BIN_ENDS[place], _BIN_ENDS[place + 1]),
            end=np.where(is_dead, _BIN_ENDS[place], _BIN_ENDS[last_place + 1]),
        )

    @property
    def d_sae(self) -> int:
        """Number of features."""
        return len(self.begin)

    @property
    def n_passed(self) -> int:
        """Entries that would be kept for nothing."""
        return int(self.skip.sum())

    def zero_steps(self) -> Array:
        """Counts for `count_steps`, of no entries."""
        return np.zeros((self.d_sae, N_QUANTILES, N_STEPS), np.uint32)

    def count_steps(self, counts: Array, row: Array, index: Array, value: NDArray[np.float32]) -> None:
        """Count the entries that lie in each step of the cells of the first rows."""
        key, width = falling_keys(value, row), self._step
        for group in range(N_QUANTILES):
            begin = self.begin[index, group]
            some = np.flatnonzero((key >= begin) & (key < self.cell_end[index, group]))
            step = (key[some] - begin[some]) // width[index[some], group]
            flat = (index[some].astype(np.int64) * N_QUANTILES + group) * N_STEPS + step.astype(np.int64)
            np.add.at(counts.reshape(-1), flat, counts.dtype.type(1))

    def narrowed(self, counts: Array) -> "SampleSearch":
        """What the counts of all rows tell beyond this."""
        flat = np.cumsum(counts, axis=2, dtype=np.int64).reshape(-1, N_STEPS)
        skip = self.skip.reshape(-1, 1)
        n_all = flat[:, -1:]
        place = _place(flat, np.minimum(skip, np.maximum(n_all - 1, 0)))
        last_place = _place(flat, np.minimum(skip + self.m - 1, np.maximum(n_all - 1, 0)))

        def at(place: Array) -> NDArray[np.uint64]:
            edge = self.begin + place.reshape(self.begin.shape).astype(np.uint64) * self._step
            return np.minimum(edge, self.cell_end)

        is_within = (skip + self.m <= n_all).reshape(self.skip.shape)  # the last row is in the cell too
        return replace(
            self,
            begin=at(place),
            skip=self.skip - _before(flat, place).reshape(self.skip.shape),
            cell_end=at(place + 1),
            end=np.where(is_within, at(last_place + 1), self.end),
        )

    @property
    def _step(self) -> NDArray[np.uint64]:
        return np.maximum((self.cell_end - self.begin + np.uint64(N_STEPS - 1)) // np.uint64(N_STEPS), np.uint64(1))


class SampledRows:
    """The entries among which the samples are: from where each begins on, and those drawn at random.

    Parameters
    ----------
    search
        Where they lie.
    parts
        What others kept of other rows.
    """

    _names = ("slot", "key", "row", "value", "label")

    def __init__(self, search: SampleSearch, parts: Sequence[dict[str, Array]] = ()) -> None:
        self._search = search
        n = len(SAMPLE_GROUPS)
        n_kept = np.full((search.d_sae, n), search.m)
        n_kept[:, :N_QUANTILES] += search.skip
        self._n_kept: NDArray[np.int64] = n_kept.reshape(-1)
        self._worst = np.full(search.d_sae, np.iinfo(np.uint64).max, np.uint64)  # a random key above it is not kept
        dtypes = (np.int64, np.uint64, np.int64, np.float32, np.int32)
        self.arrays: dict[str, Array] = {name: np.zeros(0, t) for name, t in zip(self._names, dtypes, strict=True)}
        """Of each entry: feature and group in one number, its place in the order, row, value, label."""
        self._waiting = list(parts)

    def add(self, row: Array, index: Array, value: NDArray[np.float32], label: Array) -> None:
        """Offer entries."""
        search, n_groups = self._search, len(SAMPLE_GROUPS)
        key, feature = falling_keys(value, row), index.astype(np.int64)
        for group in range(N_QUANTILES):
            some = np.flatnonzero((key >= search.begin[index, group]) & (key < search.end[index, group]))
            self._offer(feature[some] * n_groups + group, key[some], row[some], value[some], label[some])
        key = random_keys(feature, row, search.seed)
        some = np.flatnonzero(key <= self._worst[index])
        self._offer(feature[some] * n_groups + N_QUANTILES, key[some], row[some], value[some], label[some])
        if sum(len(part["slot"]) for part in self._waiting) > _HELD_AT_ONCE:
            self.settle()

    def _offer(self, *arrays: Array) -> None:
        self._waiting.append(dict(zip(self._names, arrays, strict=True)))

    def settle(self) -> dict[str, Array]:
        """Keep, of each slot, as many entries as may be asked for; these, by slot and key."""
        if self._waiting:
            parts = [self.arrays, *self._waiting]
            together = {name: np.concatenate([part[name] for part in parts]) for name in self._names}
            kept, rank = smallest_of_each(together["slot"], together["key"], self._n_kept)
            self.arrays = {name: values[kept] for name, values in together.items()}
            self._waiting = []
            feature, group = np.divmod(self.arrays["slot"], len(SAMPLE_GROUPS))
            is_last = (group == N_QUANTILES) & (rank == self._search.m - 1)
            self._worst[feature[is_last]] = self.arrays["key"][is_last]
        return self.arrays

    def samples(self) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int32]]:
        """`(d_sae, 5, m)`: rows, values and labels of the samples; -1, 0, -1 unfilled."""
        search, found = self._search, self.settle()
        feature, group = np.divmod(found["slot"], len(SAMPLE_GROUPS))
        skip = np.concatenate((search.skip, np.zeros((search.d_sae, 1), np.int64)), axis=1)
        # the random ones are in order of their random numbers so far
        order = np.lexsort((falling_keys(found["value"], found["row"]), found["slot"]))
        _, first, count = np.unique(found["slot"], return_index=True, return_counts=True)
        place = np.arange(len(order)) - np.repeat(first, count) - skip[feature, group]
        kept = place >= 0
        slot = (feature[kept], group[kept], place[kept])
        shape = (search.d_sae, len(SAMPLE_GROUPS), search.m)
        row, value, label = np.full(shape, -1, np.int64), np.zeros(shape, np.float32), np.full(shape, -1, np.int32)
        for out, name in ((row, "row"), (value, "value"), (label, "label")):
            out[slot] = found[name][order][kept]
        return row, value, label


def _place(counted: NDArray[np.int64], rank: NDArray[np.int64]) -> NDArray[np.int64]:
    """`(n, g)`: in which cell of `counted` `(n, cells)`, summed up, the entry of each rank `(n, g)` is."""
    places = [(counted <= rank[:, i : i + 1]).sum(axis=1) for i in range(rank.shape[1])]
    return np.minimum(np.stack(places, axis=1), counted.shape[1] - 1)


def _before(counted: NDArray[np.int64], place: NDArray[np.int64]) -> NDArray[np.int64]:
    """`(n, g)`: entries in the cells before each place."""
    before = np.take_along_axis(counted, np.maximum(place - 1, 0), axis=1)
    return np.where(place > 0, before, 0)

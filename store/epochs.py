"""Index arithmetic of shuffled passes: the positions of any batch, computed from its number alone.

Words: a *pass* is one time over all training positions; a *place* counts the positions within it in the order in which
they are drawn; a *run* is some consecutive positions that are drawn together, because they are read as one piece.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .shuffle import PASS_OFFSET, PASS_ORDER, Permutation

RUN_LENGTH = 64
"""Rows that are read as one piece: 128 KB at d = 1024 in float16."""

_GOLDEN = 0.6180339887498949
_DRIFT = _GOLDEN / 8  # of the short run, twice that share of the rows from pass to pass; no multiple is whole
_BLOCK = 4096  # runs whose places are computed at once: for 64 alone that takes as long as for 1,000

Runs = tuple[NDArray[np.int64], NDArray[np.int64]]
"""First position and length of each run."""

LAST = ("wrap", "keep", "drop")
"""The last batch of a pass: filled from the next pass, short, or left out."""


class PassOrder(Protocol):
    """The order of one part's positions in each pass."""

    n: int
    """Positions."""

    def runs(self, number: int, first: int, last: int) -> Runs:
        """The positions at places `[first, last)` of pass `number`, `first < last`."""


class UniformRuns:
    """Runs of one length, cut anew in each pass, so that rows which were neighbours in a batch are parted.

    A pass begins its cutting at an offset that differs from pass to pass; its runs come in a random order.

    Parameters
    ----------
    n
        Positions.
    run_length
        Of a run; one, the last of the circle, may be shorter.
    key
        Of the order: a seed and what else tells it from others.
    """

    def __init__(self, n: int, run_length: int, *key: int) -> None:
        self.n, self.run_length, self._key = n, min(n, run_length), key
        self._pass: tuple[int, int, Permutation] | None = None
        self._block: tuple[int, int, NDArray[np.int64]] | None = None

    def runs(self, number: int, first: int, last: int) -> Runs:
        """See `PassOrder`."""
        n, r = self.n, self.run_length
        offset, order = self._open_pass(number)
        place = np.arange(first // r, (last - 1) // r + 1, dtype=np.int64)
        whole = n // r
        run = place.copy()
        inside = int(np.count_nonzero(place < whole))  # the short run at the end of the circle comes last
        run[:inside] = self._drawn(number, order, int(place[0]), int(place[0]) + inside)
        start, length = run * r, np.where(place < whole, r, n - whole * r).astype(np.int64)
        cut = first - place[0] * r
        start[0] += cut
        length[0] -= cut
        length[-1] -= place[-1] * r + (r if place[-1] < whole else n - whole * r) - last
        start = (start + offset) % n
        beyond = np.maximum(start + length - n, 0)  # a run over the end of the rows goes on at row 0
        wraps = beyond > 0
        if not wraps.any():
            return start, length
        at = np.flatnonzero(wraps) + 1
        length = length - beyond
        return np.insert(start, at, 0), np.insert(length, at, beyond[wraps])

    def _drawn(self, number: int, order: Permutation, first: int, last: int) -> NDArray[np.int64]:
        """The runs at places `[first, last)` of pass `number`."""
        block = first // _BLOCK
        if last > (block + 1) * _BLOCK or first >= last:
            return order(np.arange(first, last))
        current = self._block  # threads of two blocks may ask at once
        if current is None or current[:2] != (number, block):
            places = np.arange(block * _BLOCK, min((block + 1) * _BLOCK, order.n))
            current = self._block = (number, block, order(places))
        return current[2][first - block * _BLOCK : last - block * _BLOCK]

    def _open_pass(self, number: int) -> tuple[int, Permutation]:
        current = self._pass  # threads of two passes may ask at once
        if current is None or current[0] != number:
            r = self.run_length
            begin = int(np.random.SeedSequence((PASS_OFFSET, *self._key)).generate_state(1, np.uint64)[0]) / 2**64
            # The short run lies before `offset`, and the runs on its far side are cut n % r rows later than those on
            # its near side. It goes to and fro over all rows, little by little: between its places in two passes, the
            # two cuts may coincide.
            place = int(abs((begin + number * _DRIFT) % 1 * 2 - 1) * self.n)
            # Steps of the golden ratio of a run: wherever a run was cut, the next pass cuts it near its middle.
            offset = (place // r * r + round(number * _GOLDEN % 1 * r)) % self.n
            current = (number, offset, Permutation(max(1, self.n // r), PASS_ORDER, *self._key, number))
            self._pass = current
        return current[1], current[2]


class ChunkRuns:
    """Runs that are the training positions of whole chunks, in a random order of the chunks: each is read once a pass.

    Parameters
    ----------
    edges
        `(n_chunks + 1,)`: chunk i holds the positions `[edges[i], edges[i + 1])`.
    key
        As in `UniformRuns`.
    """

    def __init__(self, edges: NDArray[np.integer[Any]], *key: int) -> None:
        distinct = np.unique(np.asarray(edges)).astype(np.int64)  # chunks without training positions are left out
        self._starts: NDArray[np.int64] = distinct[:-1]
        self._lengths: NDArray[np.int64] = np.diff(distinct)
        self.n, self._key = int(distinct[-1] - distinct[0]), key
        self._pass: tuple[int, NDArray[np.int64], NDArray[np.int64]] | None = None

    def runs(self, number: int, first: int, last: int) -> Runs:
        """See `PassOrder`."""
        order, ends = self._open_pass(number)
        begin = int(np.searchsorted(ends, first, side="right"))
        end = int(np.searchsorted(ends, last, side="left")) + 1
        starts, lengths = self._starts[order[begin:end]].copy(), self._lengths[order[begin:end]].copy()
        lengths[-1] -= ends[end - 1] - last
        cut = first - (ends[begin] - self._lengths[order[begin]])
        starts[0] += cut
        lengths[0] -= cut
        return starts, lengths

    def _open_pass(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        current = self._pass
        if current is None or current[0] != number:
            order = Permutation(len(self._starts), PASS_ORDER, *self._key, number)(np.arange(len(self._starts)))
            current = (number, order, np.cumsum(self._lengths[order]))
            self._pass = current
        return current[1], current[2]


class EpochOrder:
    """The batches of endless passes over the positions of one or more parts, each position once a pass.

    Every stretch of a pass draws from each part in proportion to its size, within a row or two: for P parts,
    within 1 + 1/2 + ... + 1/P.

    Parameters
    ----------
    parts
        The order of each part.
    first
        First position of each part; the positions of a part are its own numbers plus this.
    batch_size
        Rows a batch.
    last
        What becomes of the rows at the end of a pass that fill no batch: one of `LAST`.
    """

    def __init__(self, parts: Sequence[PassOrder], first: Sequence[int], batch_size: int, last: str = "wrap") -> None:
        self._parts = [(part, start) for part, start in zip(parts, first, strict=True) if part.n]
        self.n_rows = sum(part.n for part, _ in self._parts)
        if self.n_rows < 1 or batch_size < 1:
            raise ValueError(f"n_rows and batch_size must be at least 1, not {self.n_rows} and {batch_size}")
        if last not in LAST:
            raise ValueError(f"last is {last!r}; it is one of {', '.join(LAST)}")
        self.batch_size, self.last = batch_size, last
        self.steps_per_pass: int | None = None
        """Batches a pass; None where batches reach from one pass into the next."""
        if last != "wrap":
            self.steps_per_pass = -(-self.n_rows // batch_size) if last == "keep" else self.n_rows // batch_size
            if not self.steps_per_pass:
                raise ValueError(f"{self.n_rows} rows do not fill one batch of {batch_size}")

    @classmethod
    def uniform(
        cls, n_rows: int, batch_size: int, seed: int, run_length: int | None = None, last: str = "wrap"
    ) -> "EpochOrder":
        """The order of one part in runs of `run_length` rows; see `default_run_length`."""
        if n_rows < 1 or batch_size < 1:
            raise ValueError(f"n_rows and batch_size must be at least 1, not {n_rows} and {batch_size}")
        return cls([UniformRuns(n_rows, run_length or default_run_length(batch_size), seed, 0)], [0], batch_size, last)

    def stretches(self, step: int) -> list[tuple[int, int, int]]:
        """Where batch `step` lies: (pass, first place, place after the last), one stretch for each pass it touches."""
        if self.steps_per_pass is not None:
            number, nth = divmod(step, self.steps_per_pass)
            return [(number, nth * self.batch_size, min((nth + 1) * self.batch_size, self.n_rows))]
        found = []
        start, stop = step * self.batch_size, (step + 1) * self.batch_size
        while start < stop:
            number, first = divmod(start, self.n_rows)
            last = min(self.n_rows, first + stop - start)
            found.append((number, first, last))
            start += last - first
        return found

    def runs(self, step: int) -> Runs:
        """The positions of batch `step` as runs; the lengths sum to its size."""
        pieces = [self.pass_runs(*stretch) for stretch in self.stretches(step)]
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate([starts for starts, _ in pieces]), np.concatenate([lengths for _, lengths in pieces])

    def pass_runs(self, number: int, first: int, last: int) -> Runs:
        """The positions at places `[first, last)` of pass `number`, as runs, part after part."""
        if len(self._parts) == 1:
            part, start = self._parts[0]
            starts, lengths = part.runs(number, first, last)
            return starts + start, lengths
        all_starts, all_lengths = [], []
        for (part, start), begin, end in zip(self._parts, self._shares(first), self._shares(last), strict=True):
            if begin < end:
                starts, lengths = part.runs(number, begin, end)
                all_starts.append(starts + start)
                all_lengths.append(lengths)
        return np.concatenate(all_starts), np.concatenate(all_lengths)

    def _shares(self, place: int) -> list[int]:
        """How many of the first `place` rows of a pass come from each part; none of the counts falls as it grows."""
        shares, left = [], self.n_rows
        for part, _ in self._parts:
            share = (place * part.n + left // 2) // left
            shares.append(share)
            place -= share
            left -= part.n
        return shares


def default_run_length(batch_size: int) -> int:
    """Rows of a run: 64, or a 16th of the batch where that is less, so that a batch mixes at least 16 places."""
    return min(RUN_LENGTH, max(1, batch_size // 16))

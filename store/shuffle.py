"""Index arithmetic of orders: the rows of a store, the batches of a pass, each computed from its number alone."""

import numpy as np
from numpy.typing import NDArray

RUN_LENGTH = 64
"""Rows that are read as one piece: 128 KB at d = 1024 in float16."""

_ROUNDS = 8
_ROW_ORDER = 1  # first word of a key: orders made for different ends differ under one seed
_PASS_ORDER = 2
_PASS_OFFSET = 3
_POSITION_ORDER = 4
_GOLDEN = 0.6180339887498949


class Permutation:
    """A keyed pseudo-random permutation of `range(n)`, evaluated at any index, without a table.

    A balanced Feistel network over the smallest even number of bits that holds `n`, with cycle walking (Black and
    Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002). Its round keys come from numpy's `SeedSequence`,
    whose algorithm is fixed, so an order does not change with numpy's version.
    """

    def __init__(self, n: int, *key: int) -> None:
        if n < 1:
            raise ValueError(f"a permutation needs at least one element, not {n}")
        self.n = n
        half_bits = max(2, -(-(n - 1).bit_length() // 2))  # 2: the smallest network that mixes (a test counts)
        self._half_bits = np.uint64(half_bits)
        self._mask = np.uint64((1 << half_bits) - 1)
        self._keys = np.random.SeedSequence(key).generate_state(_ROUNDS, np.uint64)

    def __call__(self, index: NDArray[np.integer]) -> NDArray[np.int64]:
        """Where each index goes, `(k,)` int64."""
        value = np.asarray(index).astype(np.uint64)
        value = self._encrypt(value)
        n = np.uint64(self.n)
        outside = np.flatnonzero(value >= n)
        while outside.size:
            walked = self._encrypt(value[outside])
            value[outside] = walked
            outside = outside[walked >= n]
        return value.astype(np.int64)

    def _encrypt(self, value: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = value >> self._half_bits, value & self._mask
        for key in self._keys:
            left, right = right, left ^ (_mix(right ^ key) & self._mask)
        return (left << self._half_bits) | right


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def random_row_order(n: int, seed: int) -> NDArray[np.uint32]:
    """The image of each row, `(n,)`, for a store in random order."""
    return Permutation(n, _ROW_ORDER, seed)(np.arange(n, dtype=np.int64)).astype(np.uint32)


def position_order(n: int) -> Permutation:
    """The order in which the rows of a store in source order are taken, so that a split of them is a fair sample."""
    return Permutation(n, _POSITION_ORDER)


class EpochOrder:
    """The batches of an endless stream of passes over `n_rows` rows, each row once a pass, any batch in O(batch).

    A pass is cut into runs of `run_length` rows, starting at an offset that differs from pass to pass, so that rows
    which were neighbours in a batch are parted; the runs come in a random order of that pass. A batch that begins in
    one pass may end in the next.

    Parameters
    ----------
    n_rows
        Rows to draw from.
    batch_size
        Rows a batch.
    seed
        Of the order.
    run_length
        Rows read as one piece; by default 64, or a 16th of the batch where that is less, so that a batch always mixes
        at least 16 places.
    """

    def __init__(self, n_rows: int, batch_size: int, seed: int, run_length: int | None = None) -> None:
        if n_rows < 1 or batch_size < 1:
            raise ValueError(f"n_rows and batch_size must be at least 1, not {n_rows} and {batch_size}")
        self.n_rows, self.batch_size, self.seed = n_rows, batch_size, seed
        self.run_length = min(n_rows, run_length or min(RUN_LENGTH, max(1, batch_size // 16)))
        self._pass: tuple[int, int, Permutation] | None = None

    def runs(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The rows of batch `step`, as runs `[start, start + length)`; the lengths sum to `batch_size`."""
        start, stop = step * self.batch_size, (step + 1) * self.batch_size
        starts, lengths = [], []
        while start < stop:
            number, first = divmod(start, self.n_rows)
            last = min(self.n_rows, first + stop - start)
            pieces = self._pass_runs(number, first, last)
            starts.append(pieces[0])
            lengths.append(pieces[1])
            start += last - first
        return np.concatenate(starts), np.concatenate(lengths)

    def _pass_runs(self, number: int, first: int, last: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The rows at places `[first, last)` of pass `number`."""
        n, r = self.n_rows, self.run_length
        offset, order = self._open_pass(number)
        place = np.arange(first // r, (last - 1) // r + 1, dtype=np.int64)
        whole = n // r
        run = place.copy()
        run[place < whole] = order(place[place < whole])  # the short run at the end of the circle comes last
        start, length = run * r, np.where(place < whole, r, n - whole * r)
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

    def _open_pass(self, number: int) -> tuple[int, Permutation]:
        if self._pass is None or self._pass[0] != number:
            r = self.run_length
            place = int(np.random.SeedSequence((_PASS_OFFSET, self.seed, number)).generate_state(1, np.uint64)[0])
            # Steps of the golden ratio of a run: wherever a run was cut, the next pass cuts it near its middle.
            offset = (place % self.n_rows // r * r + round(number * _GOLDEN % 1 * r)) % self.n_rows
            order = Permutation(max(1, self.n_rows // r), _PASS_ORDER, self.seed, number)
            self._pass = (number, offset, order)
        return self._pass[1], self._pass[2]

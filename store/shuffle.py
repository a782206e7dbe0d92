"""Pseudo-random permutations that are computed, not stored."""

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 8

# First word of a key: orders made for different ends differ under one seed.
ROW_ORDER = 1
PASS_ORDER = 2
PASS_OFFSET = 3
TOKEN_ORDER = 5
BUFFER_ORDER = 6


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

    def inverse(self, value: NDArray[np.integer]) -> NDArray[np.int64]:
        """The index that goes to each value, `(k,)` int64."""
        index = self._decrypt(np.asarray(value).astype(np.uint64))
        n = np.uint64(self.n)
        outside = np.flatnonzero(index >= n)
        while outside.size:
            walked = self._decrypt(index[outside])
            index[outside] = walked
            outside = outside[walked >= n]
        return index.astype(np.int64)

    def _encrypt(self, value: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = value >> self._half_bits, value & self._mask
        for key in self._keys:
            left, right = right, left ^ (mix(right ^ key) & self._mask)
        return (left << self._half_bits) | right

    def _decrypt(self, value: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = value >> self._half_bits, value & self._mask
        for key in self._keys[::-1]:
            left, right = right ^ (mix(left ^ key) & self._mask), left
        return (left << self._half_bits) | right


def mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))

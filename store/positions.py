"""The positions of one part: its readable rows, those of training first, then the held-out ones.

T tokens an image. A position is a number, computed from the row and back; nothing is kept but the unreadable images.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .row_order import Indices, RowOrder, n_held_out
from .shuffle import mix

_BLOCK = 100  # one of so many is held out: the 1 % of `n_held_out`


class Positions:
    """Which row each position is, and which positions are held out.

    In random order the held-out rows are the last: 1 % of the readable rows, or with several tokens an image the rows
    of the last 1 % of the images. In source order one of each 100 consecutive readable images is held out, chosen by a
    hash of the hundred's number, so that a sorted source gives a fair sample. Training positions ascend with rows, and
    so do the held-out ones.

    Parameters
    ----------
    order
        Of the part's rows.
    invalid_images
        Images that could not be read.
    """

    def __init__(self, order: RowOrder, invalid_images: NDArray[np.integer[Any]]) -> None:
        self._order = order
        self._t = order.tokens_per_image
        self._invalid_images = np.sort(np.asarray(invalid_images, np.int64))
        self.invalid_rows: NDArray[np.int64] = np.sort(order.rows(self._invalid_images).ravel())
        """Rows whose image could not be read, ascending."""
        self.n_valid = order.n_rows - len(self.invalid_rows)
        self._n_images = order.n_images - len(self._invalid_images)  # readable ones
        if not order.is_random:
            self.n_train = (self._n_images - n_held_out(self._n_images)) * self._t
        elif self._t == 1:
            self.n_train = self.n_valid - n_held_out(self.n_valid)
        else:
            edge = order.held_out_place * self._t
            self.n_train = edge - int(np.searchsorted(self.invalid_rows, edge))
        """Training positions; the rest is held out."""

    def rows(self, positions: Indices) -> NDArray[np.int64]:
        """The row of each position."""
        position = np.asarray(positions, np.int64)
        if self._order.is_random:
            return _skip(position, self.invalid_rows)
        is_train = position < self.n_train
        nth, token = np.divmod(np.where(is_train, position, position - self.n_train), self._t)
        per_block = _BLOCK - 1 if self._n_images > 1 else _BLOCK
        block = np.where(is_train, nth // per_block, nth)
        held_out = self._held_out(block)
        within = nth - block * per_block
        within = np.where(is_train, within + (within >= held_out), held_out)
        return _skip(block * _BLOCK + within, self._invalid_images) * self._t + token

    def of_rows(self, rows: Indices) -> NDArray[np.int64]:
        """The position of each row; -1 where its image could not be read."""
        row = np.asarray(rows, np.int64)
        if self._order.is_random:
            rank = np.searchsorted(self.invalid_rows, row)
            return np.where(_is_in(row, self.invalid_rows, rank), -1, row - rank)
        image, token = np.divmod(row, self._t)
        rank = np.searchsorted(self._invalid_images, image)
        block, within = np.divmod(image - rank, _BLOCK)
        held_out = self._held_out(block)
        train = (block * (_BLOCK - 1) + within - (within > held_out)) * self._t + token
        position = np.where(within == held_out, self.n_train + block * self._t + token, train)
        return np.where(_is_in(image, self._invalid_images, rank), -1, position)

    def n_train_before(self, rows: Indices) -> NDArray[np.int64]:
        """How many training rows come before each row."""
        row = np.asarray(rows, np.int64)
        if self._order.is_random:
            return np.minimum(row - np.searchsorted(self.invalid_rows, row), self.n_train)
        image, token = np.divmod(row, self._t)
        rank = np.searchsorted(self._invalid_images, image)
        block, within = np.divmod(image - rank, _BLOCK)
        held_out = self._held_out(block)
        is_train = (within != held_out) & ~_is_in(image, self._invalid_images, rank)
        before = block * (_BLOCK - 1 if self._n_images > 1 else _BLOCK) + within - (within > held_out)
        return np.minimum(before * self._t + np.where(is_train, token, 0), self.n_train)

    def _held_out(self, block: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which image of each block of 100 readable ones is held out; none (a number past all) where it is the only."""
        if self._n_images <= 1:
            return np.full(block.shape, _BLOCK)
        size = np.clip(self._n_images - block * _BLOCK, 1, _BLOCK)
        return (mix(block.astype(np.uint64)) % size.astype(np.uint64)).astype(np.int64)


def _skip(rank: NDArray[np.int64], missing: NDArray[np.int64]) -> NDArray[np.int64]:
    """The `rank`-th number that is not among the ascending `missing` ones."""
    if not len(missing):
        return rank
    # It has as many missing ones before it as there are with (number - place among the missing) <= rank.
    return rank + np.searchsorted(missing - np.arange(len(missing)), rank, side="right")


def _is_in(value: NDArray[np.int64], ascending: NDArray[np.int64], at: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
    if not len(ascending):
        return np.zeros(value.shape, np.bool_)
    return (at < len(ascending)) & (ascending[np.minimum(at, len(ascending) - 1)] == value)

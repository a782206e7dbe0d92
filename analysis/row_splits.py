"""Which rows of a store are encoded, and of which split each is."""

import numpy as np
from numpy.typing import NDArray

from ..store.reader import ActivationStore
from .features import HELD_OUT, NOT_ENCODED, OTHER_STORE, TRAIN

_AT_ONCE = 1 << 20  # positions turned into rows at a time


class RowSplits:
    """The split of every physical row, for the positions `[start, stop)` of a store.

    In a store in random order positions ascend with rows, so that three rows say it all. In one in source order
    positions are a permutation of the rows, and a table of one byte a row is kept.

    Parameters
    ----------
    store
        The activation store.
    start, stop
        Positions to encode.
    is_training_store
        Whether the SAE was trained on this store; if not, no row is of its training or held-out split.
    """

    def __init__(self, store: ActivationStore, start: int, stop: int, *, is_training_store: bool) -> None:
        edge = store.split("heldout")[0] if is_training_store else None
        self.row_start, self.row_stop = 0, store.n_rows
        """Every row to encode is among these."""
        self.held_out_start: int | None = None
        """First row that is not a training row, where one row divides them."""
        self._store = store
        self._is_training_store = is_training_store
        self._table: NDArray[np.uint8] | None = None
        if store.row_order == "source":
            self._table = _table(store, start, stop, edge)
            return
        first, last = store.rows_of(np.array([start, stop - 1])).tolist()
        self.row_start, self.row_stop = first, last + 1
        if edge is not None:
            self.held_out_start = int(store.rows_of(np.array([edge]))[0]) if edge < store.n_valid else store.n_rows

    def codes(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Split of the rows `[start, stop)`, in the codes of `rows/split`."""
        if self._table is not None:
            return self._table[start:stop]
        row = np.arange(start, stop)
        codes = np.full(stop - start, OTHER_STORE, np.uint8)
        if self.held_out_start is not None:
            codes[:] = np.where(row < self.held_out_start, TRAIN, HELD_OUT)
        asked_for = (row >= self.row_start) & (row < self.row_stop)
        if not asked_for.any():
            return np.full(stop - start, NOT_ENCODED, np.uint8)
        codes[~(asked_for & self._store.valid(start, stop))] = NOT_ENCODED
        return codes


def _table(store: ActivationStore, start: int, stop: int, edge: int | None) -> NDArray[np.uint8]:
    table = np.full(store.n_rows, NOT_ENCODED, np.uint8)
    for first in range(start, stop, _AT_ONCE):
        positions = np.arange(first, min(first + _AT_ONCE, stop))
        codes = OTHER_STORE if edge is None else np.where(positions < edge, TRAIN, HELD_OUT)
        table[store.rows_of(positions)] = codes
    return table

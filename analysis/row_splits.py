"""Which rows of a store are encoded, and of which split each is."""

import numpy as np
from numpy.typing import NDArray

from ..store.reader import ActivationStore
from .features import HELD_OUT, NOT_ENCODED, OTHER_STORE, TRAIN


class RowSplits:
    """The split of every row, for the positions `[start, stop)` of a store.

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
        self._store, self._start, self._stop = store, start, stop
        self._edge = store.split("heldout")[0] if is_training_store else None
        self.row_start, self.row_stop = 0, store.n_rows
        """Every row to encode is among these."""
        self.held_out_start: int | None = None
        """First row that is not a training row, where one row divides them."""
        if store.row_order != "random" or len(store.parts) > 1:
            return
        # Positions ascend with rows.
        first, last = store.rows_of(np.array([start, stop - 1])).tolist()
        self.row_start, self.row_stop = first, last + 1
        if self._edge is not None:
            has_held_out = self._edge < store.n_valid
            self.held_out_start = int(store.rows_of(np.array([self._edge]))[0]) if has_held_out else store.n_rows

    def codes(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Split of the rows `[start, stop)`, in the codes of `rows/split`."""
        position = self._store.positions_of(np.arange(start, stop))  # -1 where the image could not be read
        codes = np.full(stop - start, OTHER_STORE, np.uint8)
        if self._edge is not None:
            codes[:] = np.where(position < self._edge, TRAIN, HELD_OUT)
        codes[(position < self._start) | (position >= self._stop)] = NOT_ENCODED
        return codes

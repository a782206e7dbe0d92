"""Which features fire on the rows of each label: the label table of the statistics, turned round once in memory."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .page import Unavailable

if TYPE_CHECKING:
    from .runs import ExploredRun

_PAIRS_AT_ONCE = 1 << 20

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Taken:
    """The features that fire on rows of a label, ascending; `(n,)` each."""

    feature: Ints
    count: Ints
    """Rows of the label on which each fires."""
    sum: NDArray[np.float64]
    """Of its activations there."""
    share: NDArray[np.float64]
    """Of the label's rows on which it fires."""
    precision: NDArray[np.float64]
    """Of the labelled rows on which it fires, the share that has the label."""


class LabelIndex:
    """The label table by label.

    Parameters
    ----------
    run
        Whose statistics hold it.

    Raises
    ------
    Unavailable
        When they do not, or it is larger than what is held in memory.
    """

    def __init__(self, run: "ExploredRun") -> None:
        self._indptr = run.array("labels/indptr").astype(np.int64)
        self._label, self._count, self._sum = (run.array(f"labels/{name}") for name in ("label", "count", "sum"))
        self._n_labelled = run.array("labels/n_labelled")
        if not all(isinstance(each, np.ndarray) for each in (self._label, self._count, self._sum)):
            raise Unavailable("The label table of this run is larger than 512 MiB: shares of classes are left out.")
        self._order, self._starts = by_label(self._label)

    def of(self, label: int, n_rows: int) -> Taken:
        """The features that fire on rows of a label, which has `n_rows`."""
        if not 0 <= label < len(self._starts) - 1:
            place = np.zeros(0, np.int64)
        else:
            place = self._order[self._starts[label] : self._starts[label + 1]].astype(np.int64)
        feature = np.searchsorted(self._indptr, place, side="right") - 1
        count = self._count[place].astype(np.int64)
        return Taken(
            feature, count, self._sum[place], count / max(1, n_rows), count / np.maximum(1, self._n_labelled[feature])
        )


def by_label(label: NDArray[np.int32]) -> tuple[NDArray[np.uint32], Ints]:
    """Places of a table's pairs by label and within it ascending, and where each label's begin, from 0 on.

    A counting sort, a million pairs at a time: what it takes beyond the result does not grow with the table.
    """
    n_labels = int(label.max(initial=-1)) + 1
    edges = range(0, len(label), _PAIRS_AT_ONCE)
    counts = np.zeros(n_labels, np.int64)
    for first in edges:
        counts += np.bincount(label[first : first + _PAIRS_AT_ONCE], minlength=n_labels)
    starts = np.concatenate([[0], np.cumsum(counts)])
    order = np.empty(len(label), np.uint32)
    free = starts[:-1].copy()
    for first in edges:
        chunk = label[first : first + _PAIRS_AT_ONCE]
        local = np.argsort(chunk, kind="stable")
        here = np.bincount(chunk, minlength=n_labels)
        begins = np.cumsum(here) - here
        ranks = np.arange(len(chunk)) - np.repeat(begins, here)
        order[np.repeat(free, here) + ranks] = first + local
        free += here
    return order, starts

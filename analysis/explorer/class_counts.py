"""What is counted of each class once: its rows, its own features, the features of which it is the top label."""

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .runs import ExploredRun

Ints = NDArray[np.int64]


class ClassCounts:
    """The classes of a run, by rising label; `(n,)` each."""

    def __init__(self, run: "ExploredRun") -> None:
        statistics = run.stored.statistics
        self._names = [run.label_name(label) for label in statistics.label_ids.tolist()]
        self.label: Ints = statistics.label_ids.astype(np.int64)
        self.n_rows: Ints = statistics.label_rows.astype(np.int64)
        own = np.where(statistics.label_entropy == 0, statistics.top_label.max(axis=1, initial=-1), -1)
        self.own_label: Ints = own.astype(np.int64)
        """`(d_sae,)`: the class whose own feature each is, as `thresher classes` has it: of label entropy 0; or -1."""
        self.n_own = self._counted(self.own_label)
        self.n_top = self._counted(run.listing.top_label)
        """Features of which it is the top label."""
        first, value = statistics.top_label[:, 0], statistics.top_value[:, 0]
        rising = np.argsort(np.where(value > 0, value, -1), kind="stable")
        rising = rising[np.isin(first[rising], self.label)]
        self.top_row = np.full(len(self.label), -1, np.int64)
        self.top_feature = np.full(len(self.label), -1, np.int64)
        at = np.searchsorted(self.label, first[rising])
        self.top_feature[at] = rising  # the last that is written stands: the feature with the largest activation
        if run.has_thumbnails:
            self.top_row[at] = statistics.top_row[rising, 0]

    def place(self, label: int) -> int | None:
        """Where a label stands among those that some row has; None where none has it."""
        at = int(np.searchsorted(self.label, label))
        return at if at < len(self.label) and self.label[at] == label else None

    def own_of(self, label: int) -> Ints:
        """Own features of a class, ascending."""
        return np.flatnonzero(self.own_label == label)

    @cached_property
    def texts(self) -> list[tuple[str, str]]:
        """What classes are searched by: names in lower case, and numbers."""
        return [(name.lower(), str(label)) for name, label in zip(self._names, self.label.tolist(), strict=True)]

    @cached_property
    def name_place(self) -> Ints:
        """The place of each class's name in their order."""
        names = np.array([name.lower() for name in self._names]) if self._names else np.zeros(0, str)
        return np.unique(names, return_inverse=True)[1]

    def _counted(self, label_of: Ints) -> Ints:
        found = label_of[np.isin(label_of, self.label)]
        return np.bincount(np.searchsorted(self.label, found), minlength=len(self.label))

"""What all firings of features tell, read from their stored activations."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..progress import Reporter
from .cofiring import CofiringRows, Partners, choose_rows, cofiring, stored_entries
from .exact_sums import SumUnits
from .features import FeatureActivations
from .firings import Firings, FiringsSpec, firings
from .l0_counts import count_l0_of
from .monosemanticity import monosemanticity
from .options import StatsOptions
from .scheduler import Compute


class StoredFirings:
    """Firings of stored feature activations, of the split that the options name.

    Parameters
    ----------
    units
        Of the features.
    """

    def __init__(
        self,
        features: FeatureActivations,
        units: SumUnits,
        options: StatsOptions,
        *,
        compute: Compute,
        reporter: Reporter,
    ) -> None:
        self._features, self._units, self._options = features, units, options
        self._compute, self._reporter = compute, reporter

    def l0_of(self, is_counted: NDArray[np.bool_]) -> NDArray[np.int64]:
        """How many rows have exactly i of the features marked: a second pass over the rows."""
        options = self._options
        return count_l0_of(
            self._features, is_counted, options.split, task_bytes=options.task_bytes, compute=self._compute
        )

    def row(self, row: int) -> tuple[NDArray[Any], NDArray[np.float32]]:
        """Features of a row, and their activations."""
        _, index, value = self._features.rows(row, row + 1)
        return index, value

    def firings(self, spec: FiringsSpec) -> Iterator[Firings]:
        """Samples and labels, a range of features at a time, in order."""
        return firings(
            self._features,
            spec,
            self._units,
            task_bytes=self._options.task_bytes,
            compute=self._compute,
            reporter=self._reporter,
        )

    def cofiring_rows(self) -> CofiringRows:
        """The rows that partners are counted on."""
        start, stop = self._features.row_range(self._options.split)
        return choose_rows(self._features, start, stop, self._options.split, self._options.cofiring_rows)

    def partners(self, rows: CofiringRows) -> Iterator[Partners]:
        """Best partners, a range of features at a time, in order."""
        read = stored_entries(self._features, rows, self._options.split)
        return cofiring(read, rows, self._options.cofiring, compute=self._compute, reporter=self._reporter)

    def monosemanticity(self, embeddings_path: str) -> NDArray[np.float32]:
        """`(d_sae,)`: scores by these embeddings."""
        return monosemanticity(
            self._features,
            embeddings_path,
            self._units,
            split=self._options.split,
            task_bytes=self._options.task_bytes,
            compute=self._compute,
            reporter=self._reporter,
        )

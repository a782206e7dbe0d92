"""How well batches mix: the labels of a batch against those of rows drawn without replacement."""

from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .batches import Batch, BatchReader
from .reader import ActivationArray, ActivationStore

MEASURED_BATCH = 4096
"""Rows of the batches that are measured; an eighth of the training rows where that is less."""

MEASURED_BATCHES = 50
"""Batches that are measured: with 1,000 classes their mean is then known to 0.6 %."""

MOST_ROWS = 50_000_000
"""Rows of a store whose labels are counted: 200 MB of them."""

_ROWS_AT_ONCE = 1 << 20


def expected_chi2(n_classes: int, batch_size: int, n_rows: int) -> float:
    """Mean of the chi-square of a batch's labels when its rows are drawn without replacement from `n_rows`.

    The rows of class c in the batch are then hypergeometric, with mean E = B K_c / N and variance
    E (1 - K_c / N) (N - B) / (N - 1), so that the mean of sum_c (O_c - E_c)^2 / E_c is the sum of
    (1 - K_c / N) (N - B) / (N - 1): (C - 1) (N - B) / (N - 1), whatever the sizes of the classes.

    Parameters
    ----------
    n_classes
        C, the classes that have rows.
    batch_size
        B, rows of the batch.
    n_rows
        N, rows to draw from.
    """
    return (n_classes - 1) * (n_rows - batch_size) / (n_rows - 1)


def chi2_per_df(labels: NDArray[np.integer], class_rows: NDArray[np.integer]) -> float:
    """Chi-square of a batch's labels over its mean under fair sampling: 1.0 is the ideal, more is worse mixing.

    For a batch that is small beside the rows it is drawn from this is the textbook's chi-square over its degrees of
    freedom. The number says what bad mixing costs: a batch of B rows at chi2/df x tells as much about the classes as
    one of B / x rows drawn fairly.

    Parameters
    ----------
    labels
        `(batch_size,)`, class of each row of one batch, from 0 up to the number of classes. A batch holds a row at
        most once.
    class_rows
        `(n_classes,)`, how many of the rows that batches are drawn from have each class; classes without rows may be
        among them.

    Raises
    ------
    ValueError
        When the number is not defined: there are fewer than two classes, or the batch holds every row; or when the
        batch cannot have been drawn from these rows.
    """
    n_classes = max(len(class_rows), int(np.max(labels, initial=-1)) + 1)
    observed = np.bincount(labels, minlength=n_classes)
    held = np.concatenate((class_rows, np.zeros(n_classes - len(class_rows), np.int64)))
    if (observed > held).any():
        worst = int(np.flatnonzero(observed > held)[0])
        raise ValueError(
            f"a batch with {observed[worst]} rows of class {worst}, of which there are {held[worst]}, "
            "cannot come from the rows it is held to"
        )
    present = held[held > 0].astype(np.float64)
    n_rows, batch_size = int(present.sum()), len(labels)
    if len(present) < 2 or not 0 < batch_size < n_rows:
        raise ValueError(
            f"mixing is not defined for a batch of {batch_size} of {n_rows} rows in {len(present)} classes: "
            "it takes two classes, and fewer rows in the batch than there are"
        )
    expected = batch_size * present / n_rows
    chi2 = float((((observed[held > 0] - expected) ** 2) / expected).sum())
    return chi2 / expected_chi2(len(present), batch_size, n_rows)


@dataclass(frozen=True, kw_only=True)
class LabelCounts:
    """How many rows have each label: entry 0 is of the rows without one, entry i + 1 of those with label i."""

    n_rows: int
    """Rows of the store that were counted: its first ones where it has more than were asked for."""
    readable: NDArray[np.int64]
    """Of the readable rows, `(n_labels + 1,)`."""
    train: NDArray[np.int64]
    """Of the training rows, `(n_labels + 1,)`."""


def count_labels(store: ActivationStore, most_rows: int = MOST_ROWS) -> LabelCounts:
    """The labels of a store's first `most_rows` rows, counted."""
    n_rows = min(store.n_rows, most_rows)
    readable = train = np.zeros(1, np.int64)
    for start in range(0, n_rows, _ROWS_AT_ONCE):
        stop = min(start + _ROWS_AT_ONCE, n_rows)
        classes = _classes(store.labels(start, stop))
        position = store.positions_of(np.arange(start, stop))
        n = max(len(readable), int(classes.max()) + 1)
        readable = _longer(readable, n) + np.bincount(classes[position >= 0], minlength=n)
        is_train = (position >= 0) & (position < store.n_train)
        train = _longer(train, n) + np.bincount(classes[is_train], minlength=n)
    return LabelCounts(n_rows=n_rows, readable=readable, train=train)


@dataclass(frozen=True, kw_only=True)
class MeasuredMixing:
    """The chi2/df of the labels of some batches: see `chi2_per_df`."""

    batch_size: int
    n_batches: int
    mean: float
    largest: float


def measure_mixing(
    array: ActivationArray, counts: LabelCounts, *, n_batches: int = MEASURED_BATCHES, seed: int = 0
) -> MeasuredMixing | None:
    """How well the first batches of `array` mix, as `train` would draw them; None where that is not defined.

    It is not defined without at least two labels (rows without one count as of a label of their own) and a few rows,
    nor where not all labels were counted. Only labels are read: seconds, whatever the length of the vectors.
    """
    n_train = array.store.n_train
    batch_size = min(MEASURED_BATCH, n_train // 8)
    if counts.n_rows < array.store.n_rows or batch_size < 1 or (counts.train > 0).sum() < 2:
        return None
    reader = BatchReader([_OrderOnly(array)], batch_size=batch_size, seed=seed, last="drop")
    with closing(reader.batches(0, n_batches)) as batches:
        found = [batch_mixing(batch, counts) for batch in batches]
    return MeasuredMixing(
        batch_size=batch_size, n_batches=n_batches, mean=float(np.mean(found)), largest=float(np.max(found))
    )


def batch_mixing(batch: Batch, counts: LabelCounts) -> float:
    """The chi2/df of one batch's labels against those of the training rows; see `chi2_per_df`."""
    return chi2_per_df(_classes(batch.labels()), counts.train)


class _OrderOnly(ActivationArray):
    """An array that is read in the order of another one, in which its values take neither time nor memory."""

    def __init__(self, array: ActivationArray) -> None:
        self.store, self.site, self.dtype = array.store, array.site, array.dtype
        self.row_bytes, self.reads_in_place = array.row_bytes, array.reads_in_place  # what an order depends on
        self.d_in, self.stored_dtype = 0, array.stored_dtype

    def read_runs(self, starts: NDArray[np.integer[Any]], lengths: NDArray[np.integer[Any]], out: NDArray[Any]) -> None:
        """Nothing to read."""


def _classes(labels: NDArray[np.int32]) -> NDArray[np.int64]:
    """Labels as classes from 0 on; the rows without a label are a class too, the first."""
    return labels.astype(np.int64) + 1


def _longer(counts: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    return np.concatenate((counts, np.zeros(n - len(counts), np.int64)))

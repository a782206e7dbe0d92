"""How well batches mix: the labels of a batch against those of rows drawn without replacement."""

import numpy as np
from numpy.typing import NDArray


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


def class_numbers(labels: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Labels of a store as classes from 0 on, and the rows of each; the rows without a label are a class too.

    Parameters
    ----------
    labels
        `(n,)`; -1 where there is none.

    Returns
    -------
    The class of each row `(n,)`; the rows of each class `(n_classes,)`, of which the first is that of the rows
    without a label.
    """
    numbers = np.asarray(labels).astype(np.int64) + 1
    return numbers, np.bincount(numbers)

"""The rows that every reader of the benchmark reads, each of which says itself which row it is.

Column 0 of a row is its label, columns 1 and 2 are its number in the source, in whole numbers that float16 holds
exactly; the rest is noise. So a batch shows how well labels are mixed in it, and whether each row came once.
"""

from collections.abc import Iterator

import numpy as np

D_IN = 1024
N_CLASSES = 1000
BASE = 2048
"""Of the row's number in columns 1 and 2. float16 holds every whole number up to 2,048, so 4,194,304 rows at most."""

_TILE_ROWS = 16384


class Source:
    """A source of activations that is sorted by class.

    One tile of normal noise, a random half of its columns' signs turned in each block of rows: as incompressible as
    activations in float16, and made at the speed of memory.

    Parameters
    ----------
    n_rows
        At most 4,194,304.
    """

    def __init__(self, n_rows: int) -> None:
        if n_rows > BASE**2:
            raise ValueError(f"rows of this benchmark number themselves up to {BASE**2:,}, not {n_rows:,}")
        rng = np.random.default_rng(0)
        self.n_rows, self.labels = n_rows, labels_of(n_rows)
        self._tile = rng.standard_normal((_TILE_ROWS, D_IN), np.float32).astype(np.float16).view(np.uint16)
        self._signs = rng.integers(0, 2, (BASE**2 // _TILE_ROWS, D_IN), np.uint16) << np.uint16(15)

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        """Rows by their numbers, `(n, D_IN)` float16."""
        block = self._tile[numbers % _TILE_ROWS]
        for present in np.unique(numbers // _TILE_ROWS):
            block[numbers // _TILE_ROWS == present] ^= self._signs[present]
        found = block.view(np.float16)
        found[:, 0], found[:, 1], found[:, 2] = self.labels[numbers], numbers // BASE, numbers % BASE
        return found

    def blocks(self, size: int, stop: int | None = None) -> Iterator[np.ndarray]:
        """The rows up to `stop` in order, `size` at a time; the last block may be ragged."""
        stop = self.n_rows if stop is None else stop
        for start in range(0, stop, size):
            yield self.rows(np.arange(start, min(start + size, stop)))


def labels_of(n_rows: int) -> np.ndarray:
    """Labels of a source sorted by class, `(n_rows,)` int32: classes differ in size by one row at most."""
    return (np.arange(n_rows, dtype=np.int64) * min(N_CLASSES, n_rows) // n_rows).astype(np.int32)


def row_numbers(batch: np.ndarray) -> np.ndarray:
    """The numbers that the rows of a batch say they have, `(n,)` int64."""
    return batch[:, 1].astype(np.int64) * BASE + batch[:, 2].astype(np.int64)


def chi2_per_df(labels: np.ndarray, class_sizes: np.ndarray) -> float:
    """How uneven the labels of one batch are: 1 on average when the batch is a random draw without replacement.

    Pearson's chi-square of the batch's label counts over its expectation under the multivariate hypergeometric law:
    sum over classes of (n_c - B p_c)^2 / (B p_c), whose mean is (C - 1) (N - B) / (N - 1).

    Parameters
    ----------
    labels
        `(B,)`, whole numbers.
    class_sizes
        `(C,)`: rows of each class, N together; classes without rows do not count.
    """
    held = class_sizes > 0
    size, n = len(labels), int(class_sizes.sum())
    expected = size * class_sizes[held] / n
    counts = np.bincount(labels.astype(np.int64), minlength=len(class_sizes))[held]
    mean = (held.sum() - 1) * (n - size) / (n - 1)
    return float(((counts - expected) ** 2 / expected).sum() / mean)

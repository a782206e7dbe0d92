"""What the rows of an activation array look like, from a sample that takes seconds whatever the array's size.

Shapes: n rows, d_in coordinates.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .shuffle import Permutation

if TYPE_CHECKING:
    from .reader import ActivationArray

SAMPLE_ROWS = 16_384
"""Rows of a sample: the norm of their mean is known to 1 / sqrt(16,384), 0.8 % of the deviation."""

SAMPLE_BYTES = 256_000_000
"""Bytes of chunks that a sample may touch (a chunk is read whole, to be checked): a second or less on a disk."""

MIN_PLACES = 4
"""Chunks that a sample touches at least, however large they are."""

LARGEST = 5
"""Coordinates that are told one by one."""

OFF_CENTRE = 1.0
"""Distance of the mean row from where an SAE's decoder bias starts, in deviations, from which on features die.

Simon, Adams and Zou (arXiv 2605.31518): features whose direction opposes the mean start below zero on every row, and
few come back. Measured on the embedded tower's rows with their mean moved away (1,536 features, 500 steps of 1,024
rows, `--b-dec-init zero`), dead at the end:

    distance               0      0.5    0.75   1      2      3      4      8
    TopK, AuxK             0.2 %  0.1 %  0.3 %  1 %    34 %   66 %   83 %   96 %
    TopK without AuxK      0.1 %  4 %    14 %   30 %   67 %   85 %   91 %   96 %
    ReLU                   0      0.1 %  0.5 %  4 %    26 %   40 %   49 %   64 %

With the bias at the mean, or standardised rows, at most 0.3 % died at any distance.
"""

_SURVEY_ORDER = 8  # first word of the key of the sample's places, see `shuffle`
_CHUNKS_AT_ONCE = 16  # from a bucket
_BLOCK_VALUES = 1 << 21  # values that are held in float64 at once: 16 MB


@dataclass(frozen=True, kw_only=True)
class Coordinate:
    """One of the d_in coordinates over the rows of a sample."""

    index: int
    mean: float
    deviation: float
    """Root mean square distance from the mean."""
    max_abs: float
    energy_share: float
    """Its share of the sum of the squares of all values."""


@dataclass(frozen=True, kw_only=True)
class Survey:
    """Numbers of a sample of rows, computed in float64."""

    n_rows: int
    """Readable rows of the sample that are finite: those that the numbers are over."""
    n_unreadable: int
    """Rows of the sample whose image could not be read; they hold NaN and are left out."""
    n_not_finite: int
    """Rows of readable images with a value that is not finite. There are none in a sound store."""
    not_finite_share: float
    """Share of the readable rows' values that are not finite."""
    zero_share: float
    """Share of values that are exactly zero."""
    mean_norm: float
    """Mean of the rows' norms."""
    norm_of_mean: float
    """Norm of the mean row."""
    deviation: float
    """Root mean square distance of a row from the mean row: the norm of the coordinates' standard deviations."""
    largest: tuple[Coordinate, ...]
    """The coordinates with the largest mean square, the largest first; among equals the lower index."""

    @property
    def mean_to_deviation(self) -> float:
        """Norm of the mean over the deviation; NaN without rows, infinite where all rows are one and not zero.

        gamma of Simon, Adams and Zou, "On the Relationship Between Activation Outliers and Feature Death in Sparse
        Autoencoders" (arXiv 2605.31518): it foretells how many features of an SAE that is not centred start dead.
        """
        return ratio(self.norm_of_mean, self.deviation)


def ratio(norm_of_mean: float, deviation: float) -> float:
    """Norm of the mean over the deviation: 0 where both are zero."""
    if deviation > 0 or np.isnan(deviation):
        return norm_of_mean / deviation
    return float("inf") if norm_of_mean > 0 else 0.0


class Moments:
    """Sums over rows that arrive in blocks, in float64.

    Means and squared distances from them are merged block by block (Chan, Golub and LeVeque 1979), so that a large
    mean costs no digits of the deviation.
    """

    def __init__(self, d_in: int) -> None:
        self.n_rows = self.n_unreadable = self.n_not_finite = 0
        self._n_bad_values = self._n_zeros = 0
        self._sum_of_norms = 0.0
        self._mean = np.zeros(d_in)
        self._squares = np.zeros(d_in)  # sum of squared distances from the mean
        self._max_abs = np.zeros(d_in)

    def add(self, rows: NDArray[Any], valid: NDArray[np.bool_] | None = None) -> None:
        """Count rows.

        Parameters
        ----------
        rows
            `(n, d_in)`, of any float dtype.
        valid
            `(n,)`; False for rows to leave out. None: all are counted.
        """
        if valid is not None:
            self.n_unreadable += int((~valid).sum())
            rows = rows[valid]
        step = max(1, _BLOCK_VALUES // max(1, rows.shape[1]))
        for start in range(0, len(rows), step):
            self._add_block(rows[start : start + step].astype(np.float64))

    def _add_block(self, x: NDArray[np.float64]) -> None:
        finite = np.isfinite(x)
        is_bad = ~finite.all(axis=1)
        if is_bad.any():
            self.n_not_finite += int(is_bad.sum())
            self._n_bad_values += int((~finite).sum())
            x = x[~is_bad]
        if not len(x):
            return
        n = len(x)
        mean = x.mean(axis=0)
        squares = np.square(x - mean).sum(axis=0)
        apart, total = mean - self._mean, self.n_rows + n
        self._squares += squares + np.square(apart) * (self.n_rows * n / total)
        self._mean += apart * (n / total)
        self.n_rows = total
        self._sum_of_norms += float(np.linalg.norm(x, axis=1).sum())
        self._n_zeros += int((x == 0).sum())
        np.maximum(self._max_abs, np.abs(x).max(axis=0), out=self._max_abs)

    def survey(self) -> Survey:
        """The numbers of all rows so far; NaN where there was none."""
        d_in, n = len(self._mean), self.n_rows
        n_values = (n + self.n_not_finite) * d_in
        return Survey(
            n_rows=n,
            n_unreadable=self.n_unreadable,
            n_not_finite=self.n_not_finite,
            not_finite_share=self._n_bad_values / n_values if n_values else float("nan"),
            zero_share=self._n_zeros / (n * d_in) if n else float("nan"),
            mean_norm=self._sum_of_norms / n if n else float("nan"),
            norm_of_mean=float(np.linalg.norm(self._mean)) if n else float("nan"),
            deviation=float(np.sqrt(self._squares.sum() / n)) if n else float("nan"),
            largest=self._largest() if n else (),
        )

    def _largest(self) -> tuple[Coordinate, ...]:
        variance = self._squares / self.n_rows
        energy = np.square(self._mean) + variance
        whole = energy.sum()
        order = np.argsort(-energy, kind="stable")[:LARGEST]
        return tuple(
            Coordinate(
                index=int(i),
                mean=float(self._mean[i]),
                deviation=float(np.sqrt(variance[i])),
                max_abs=float(self._max_abs[i]),
                energy_share=float(energy[i] / whole) if whole > 0 else 0.0,
            )
            for i in order
        )


def survey_array(array: "ActivationArray", *, sample_bytes: int = SAMPLE_BYTES, seed: int = 0) -> tuple[Survey, int]:
    """The survey of a sample of an array's rows, and from how many places they come.

    Parameters
    ----------
    array
        Of a finished store.
    sample_bytes
        That may be read for it, unless `MIN_PLACES` chunks are more.
    seed
        Of the places: under one seed, arrays of one store with vectors of one length are sampled at the same rows.
    """
    store = array.store
    starts, stops, first = [], [], 0
    for part in store.parts:
        edges = np.arange(0, part.n_rows, part.rows_per_chunk)
        starts.append(first + edges)
        stops.append(first + np.minimum(edges + part.rows_per_chunk, part.n_rows))
        first += part.n_rows
    chunk_bytes = max(part.rows_per_chunk for part in store.parts) * array.row_bytes
    runs = sample_runs(np.concatenate(starts), np.concatenate(stops), chunk_bytes, sample_bytes, seed)
    moments = Moments(array.d_in)
    for rows, valid in _read_runs(array, *runs):
        moments.add(to_float(rows, array.dtype), valid)
    return moments.survey(), len(runs[0])


def _read_runs(
    array: "ActivationArray", starts: NDArray[np.int64], lengths: NDArray[np.int64]
) -> Iterator[tuple[NDArray[Any], NDArray[np.bool_]]]:
    """The rows of each run, and which of them are readable."""

    def read(start: int, length: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        return array.read(start, start + length), array.store.valid(start, start + length)

    if array.store.objects.local is not None:
        yield from map(read, starts.tolist(), lengths.tolist())
        return
    with ThreadPoolExecutor(_CHUNKS_AT_ONCE) as pool:
        yield from pool.map(read, starts.tolist(), lengths.tolist())


def sample_runs(
    chunk_starts: NDArray[np.int64],
    chunk_stops: NDArray[np.int64],
    chunk_bytes: int,
    sample_bytes: int = SAMPLE_BYTES,
    seed: int = 0,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Runs of rows from random chunks, one a chunk, as many as make a sample of `SAMPLE_ROWS` rows.

    Parameters
    ----------
    chunk_starts, chunk_stops
        First row of each chunk, and the row after its last.
    chunk_bytes
        Of a whole chunk: what reading any row of it costs the first time.
    sample_bytes
        That all chunks together may cost.
    seed
        Of the places.

    Returns
    -------
    First rows, ascending, and lengths.
    """
    n_chunks = len(chunk_starts)
    n_places = min(n_chunks, max(MIN_PLACES, sample_bytes // chunk_bytes))
    order = Permutation(n_chunks, _SURVEY_ORDER, seed)
    chosen = np.sort(order(np.arange(n_places)))
    held = chunk_stops[chosen] - chunk_starts[chosen]
    lengths = np.minimum(held, -(-SAMPLE_ROWS // n_places))
    within = np.random.SeedSequence((_SURVEY_ORDER, seed)).generate_state(n_places, np.uint64)
    offsets = (within % (held - lengths + 1).astype(np.uint64)).astype(np.int64)
    return chunk_starts[chosen] + offsets, lengths


def to_float(rows: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Stored rows as numpy floats of the same values; the bits of bfloat16 are the upper half of a float32."""
    if dtype != "bfloat16":
        return rows
    return (rows.astype(np.uint32) << np.uint32(16)).view(np.float32)

"""Per-feature statistics over stored row ranges, computed by Dask as a tree of mergeable totals."""

import itertools
import math
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..progress import Reporter
from ..store.errors import StoreError
from ..train.l0 import L0Summary
from .entropy import effective_sample_size, label_entropy
from .exact_sums import SumUnits
from .features import open_features
from .forecast import SAMPLE_BYTES, forecast_counting
from .scheduler import Compute
from .totals import FeatureTotals, merge_totals

_MERGE_AT_ONCE = 4  # totals of 65,536 features are 40 MB: a merge holds five


@dataclass(frozen=True, kw_only=True)
class FeatureStatistics:
    """Every per-feature number of one set of rows, with the definitions of the glossary."""

    k: int
    """Largest values kept per feature."""
    min_labelled: int
    """Label entropy is undefined below this many firing labelled rows among the k."""
    n_rows: int
    """Valid rows counted."""
    n_invalid: int
    """Rows passed over: unreadable images, rows with NaN."""
    n_labelled_rows: int
    """Valid rows with a label."""
    n_active: NDArray[np.uint64]
    """`(d_sae,)`: rows on which the feature is > 0. Density is n_active / n_rows; dead features have 0."""
    sum: NDArray[np.float64]
    """`(d_sae,)`: sum of the values."""
    max: NDArray[np.float32]
    """`(d_sae,)`: largest value, 0 for a dead feature."""
    mean_top: NDArray[np.float32]
    """`(d_sae,)`: mean of the up to k largest positive values, NaN for a dead feature."""
    n_pos: NDArray[np.uint16]
    """`(d_sae,)`: how many values that mean is over."""
    label_entropy: NDArray[np.float32]
    """`(d_sae,)`: nats, NaN where undefined."""
    n_labelled: NDArray[np.uint16]
    """`(d_sae,)`: firing labelled rows that the entropy is over."""
    effective_n: NDArray[np.float32]
    """`(d_sae,)`: effective sample size of their weights p: 1 / sum p^2; NaN where none is labelled."""
    top_row: NDArray[np.int64]
    """`(d_sae, k)`: rows of the largest values, the lower first among equals; -1 unfilled."""
    top_value: NDArray[np.float32]
    """`(d_sae, k)`: those values, falling; 0 unfilled."""
    top_label: NDArray[np.int32]
    """`(d_sae, k)`: those rows' labels, -1 none."""
    l0_counts: NDArray[np.int64]
    """Rows with exactly i features > 0."""
    l0_counts_above: NDArray[np.int64]
    """`(thresholds, up to the largest + 1)`: rows with exactly i features above each of `L0_THRESHOLDS`."""
    histogram: NDArray[np.unsignedinteger[Any]]
    """`(d_sae, 64)`: how many values of the feature fall into each of `BIN_EDGES`."""
    label_ids: NDArray[np.int32]
    """The labels that valid rows carry, ascending."""
    label_rows: NDArray[np.int64]
    """How many valid rows carry each."""
    max_l0_row: int
    """The first row with the largest L0; -1 when there is no valid row."""
    workers: frozenset[str]
    """Processes that computed a part."""

    @classmethod
    def of_totals(cls, totals: FeatureTotals, *, min_labelled: int) -> "FeatureStatistics":
        """Finish the totals of all ranges."""
        n_pos = (totals.top_value > 0).sum(axis=1)
        top_sum = totals.top_value.sum(axis=1, dtype=np.float64)
        mean_top = np.divide(top_sum, n_pos, out=np.full(totals.d_sae, np.nan), where=n_pos > 0)
        entropy, n_labelled = label_entropy(totals.top_value, totals.top_label, min_labelled=min_labelled)
        effective_n = effective_sample_size(totals.top_value, totals.top_label)
        return cls(
            k=totals.k,
            min_labelled=min_labelled,
            n_rows=totals.n_rows,
            n_invalid=totals.n_invalid,
            n_labelled_rows=totals.n_labelled,
            n_active=totals.n_active.astype(np.uint64),
            sum=totals.sum,
            max=totals.top_value[:, 0].copy(),
            mean_top=mean_top.astype(np.float32),
            n_pos=n_pos.astype(np.uint16),
            label_entropy=entropy,
            n_labelled=n_labelled,
            effective_n=effective_n,
            top_row=totals.top_row,
            top_value=totals.top_value,
            top_label=totals.top_label,
            l0_counts=totals.l0_counts,
            l0_counts_above=totals.l0_counts_above,
            histogram=totals.histogram,
            label_ids=totals.label_ids,
            label_rows=totals.label_rows,
            max_l0_row=totals.max_l0_row,
            workers=totals.workers,
        )

    @property
    def d_sae(self) -> int:
        """Number of features."""
        return len(self.n_active)

    @property
    def density(self) -> NDArray[np.float64]:
        """`(d_sae,)`: share of rows on which the feature is > 0; NaN when there is no valid row."""
        if self.n_rows == 0:
            return np.full(self.d_sae, np.nan)
        return self.n_active / self.n_rows

    @property
    def is_alive(self) -> NDArray[np.bool_]:
        """`(d_sae,)`: whether the feature fires on any of the rows."""
        return self.n_active > 0

    @property
    def units(self) -> SumUnits:
        """Units for sums of activations of each feature."""
        return SumUnits.of_features(self.n_active, self.sum, self.max)

    @property
    def l0(self) -> L0Summary:
        """Number of features > 0 on a row."""
        return L0Summary.of_counts(self.l0_counts)

    @property
    def l0_above_counts(self) -> NDArray[np.int64]:
        """Rows with exactly i features > 0.1."""
        return self.l0_counts_above[0]

    @property
    def l0_above(self) -> L0Summary:
        """Number of features > 0.1 on a row."""
        return L0Summary.of_counts(self.l0_above_counts)

    @property
    def label_entropy_bits(self) -> NDArray[np.float64]:
        """`(d_sae,)`: label entropy in bits."""
        return self.label_entropy.astype(np.float64) / math.log(2)

    @property
    def label_entropy_share(self) -> NDArray[np.float64]:
        """`(d_sae,)`: label entropy as a share of the most it could be, ln of the number of its rows: 0 to 1."""
        most = np.log(np.maximum(self.n_labelled, 2).astype(np.float64))  # of one row, entropy is 0
        return self.label_entropy / most

    def mean_top_at(self, k: int) -> NDArray[np.float64]:
        """`(d_sae,)`: mean of the up to `k` largest positive values, for any `k` up to the one that was kept."""
        self._require_kept(k)
        n = np.minimum(self.n_pos, k)
        total = self.top_value[:, :k].sum(axis=1, dtype=np.float64)
        return np.divide(total, n, out=np.full(self.d_sae, np.nan), where=n > 0)

    def label_entropy_at(
        self, k: int, *, min_labelled: int | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.uint16]]:
        """Label entropy in nats over the `k` largest values, and how many rows it is over.

        Parameters
        ----------
        k
            Up to the number that was kept.
        min_labelled
            Undefined below this many labelled rows; by default that of these statistics, or `k` where that is less.
        """
        self._require_kept(k)
        least = min(self.min_labelled, k) if min_labelled is None else min_labelled
        return label_entropy(self.top_value[:, :k], self.top_label[:, :k], min_labelled=least)

    def _require_kept(self, k: int) -> None:
        if not 1 <= k <= self.k:
            raise ValueError(
                f"k must be from 1 to {self.k}, the values kept of each feature; got {k}. "
                "Run `thresher stats --k` for more."
            )


def sparse_totals(
    features_path: str,
    start: int,
    stop: int,
    *,
    split: str,
    k: int,
    task_bytes: int,
    compute: Compute,
    reporter: Reporter,
) -> FeatureTotals:
    """Totals of the rows of a split among the physical rows `[start, stop)` of stored feature activations.

    One task a range of rows of some `task_bytes`; each opens the features itself, so that the graph carries numbers
    only and workers on other machines need the path alone.
    """
    from dask import delayed

    features = open_features(features_path)
    leaves = [
        delayed(_range_totals, pure=False)(features_path, first, last, split, k)
        for first, last in features.ranges(start, stop, task_bytes)
    ]
    if not leaves:
        return FeatureTotals.zero(features.d_sae, k)
    first, last = features.ranges(start, stop, SAMPLE_BYTES)[0]
    reporter.say(
        forecast_counting(stop - start, last - first, lambda: _range_totals(features_path, first, last, split, k))
    )
    reporter.say(f"counting {stop - start:,} rows on {compute.description}")
    return reduce_totals(leaves, compute, reporter)


def _range_totals(features_path: str, start: int, stop: int, split: str, k: int) -> FeatureTotals:
    features = open_features(features_path)
    totals = FeatureTotals.zero(features.d_sae, k)
    for block in features.blocks(start, stop, split=split):
        totals.add(block.start, block.indptr, block.index, block.value, labels=block.labels, valid=block.valid)
    return totals


def dense_totals(
    matrix_path: str, *, labels_path: str | None, k: int, task_bytes: int, compute: Compute, reporter: Reporter
) -> FeatureTotals:
    """Totals of a dense `(n_rows, d_sae)` zarr matrix of feature activations, read through `dask.array.from_zarr`.

    Values are compared as float32; those <= 0 do not fire. A row with a value that is not finite counts as invalid.

    Raises
    ------
    StoreError
        When the matrix or the labels cannot be opened, or do not fit each other.
    """
    import dask.array as da
    from dask import delayed

    n_rows, d_sae = dense_shape(matrix_path)
    if labels_path is not None:
        _require_int32(labels_path, _open_labels(labels_path, n_rows))
    rows = max(1, min(n_rows, task_bytes // (4 * max(d_sae, 1))))
    matrix = da.from_zarr(matrix_path).rechunk((rows, d_sae))
    blocks = matrix.to_delayed()[:, 0]
    leaves = [
        delayed(_dense_range_totals, pure=False)(block, i * rows, labels_path, n_rows, k)
        for i, block in enumerate(blocks)
    ]
    if not leaves:
        return FeatureTotals.zero(d_sae, k)
    n_sample = min(n_rows, max(1, SAMPLE_BYTES // (4 * max(d_sae, 1))))
    reporter.say(
        forecast_counting(
            n_rows,
            n_sample,
            lambda: _dense_range_totals(matrix[:n_sample].compute(scheduler="synchronous"), 0, None, n_rows, k),
        )
    )
    reporter.say(f"counting {n_rows:,} dense rows on {compute.description}")
    return reduce_totals(leaves, compute, reporter)


def _dense_range_totals(block: Any, start: int, labels_path: str | None, n_rows: int, k: int) -> FeatureTotals:
    n, d_sae = block.shape
    totals = FeatureTotals.zero(d_sae, k)
    labels = np.full(n, -1) if labels_path is None else _open_labels(labels_path, n_rows)[start : start + n]
    step = max(1, (1 << 22) // max(d_sae, 1))  # rows whose float32 copy and mask are held at a time: 20 MB
    for first in range(0, n, step):
        values = np.asarray(block[first : first + step], np.float32)
        valid: NDArray[np.bool_] = np.asarray(np.isfinite(values).all(axis=1))
        fires = (values > 0) & valid[:, None]
        row, index = np.nonzero(fires)
        indptr = np.concatenate(([0], np.cumsum(np.bincount(row, minlength=len(values)))))
        totals.add(start + first, indptr, index, values[fires], labels=labels[first : first + step], valid=valid)
    return totals


def dense_shape(matrix_path: str) -> tuple[int, int]:
    """Rows and features of a dense zarr matrix; `StoreError` where it is none."""
    import zarr

    try:
        array = zarr.open_array(matrix_path, mode="r")
    except (FileNotFoundError, KeyError, ValueError, TypeError) as error:
        raise StoreError(f"{matrix_path} is not a zarr array of feature activations: {error}") from error
    if array.ndim != 2:
        raise StoreError(f"{matrix_path} has shape {array.shape}; a matrix of (rows, features) is wanted")
    if array.shape[1] == 0:
        raise StoreError(f"{matrix_path} has shape {array.shape}: it holds no features")
    if array.dtype.kind not in "fiu":
        raise StoreError(f"{matrix_path} holds {array.dtype}; numbers are wanted")
    return int(array.shape[0]), int(array.shape[1])


def _open_labels(labels_path: str, n_rows: int) -> NDArray[Any]:
    try:
        labels = np.load(labels_path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:  # numpy's own text would advise to unpickle
        raise StoreError(f"{labels_path} is not a .npy file of integers, one a row.") from error
    if not isinstance(labels, np.ndarray):
        labels.close()
        raise StoreError(f"{labels_path} is an archive of arrays; a .npy file of one integer a row is wanted.")
    if labels.shape != (n_rows,) or labels.dtype.kind not in "iu":
        raise StoreError(
            f"{labels_path} holds {labels.dtype} of shape {labels.shape}; one integer a row, "
            f"shape ({n_rows},), is wanted"
        )
    return labels


def _require_int32(labels_path: str, labels: NDArray[Any]) -> None:
    """Labels are stored as int32: a larger one would become another class."""
    if len(labels) and int(labels.max()) > np.iinfo(np.int32).max:
        raise StoreError(f"{labels_path} holds the label {int(labels.max())}; class numbers end at 2147483647.")


def reduce_totals(
    leaves: Sequence[Any],
    compute: Compute,
    reporter: Reporter,
    merge: Callable[[list[Any]], Any] = merge_totals,
    *,
    what: str = "counting",
) -> Any:
    """Compute delayed `FeatureTotals`, or what else `merge` joins, of row ranges and merge them as a tree."""
    from dask import delayed

    run = uuid.uuid4().hex  # a cluster that outlives this run must not take these tasks for earlier ones
    level, depth = list(leaves), itertools.count()
    while len(level) > 1:
        d = next(depth)
        level = [
            delayed(merge, pure=False)(
                level[i : i + _MERGE_AT_ONCE], dask_key_name=f"merge-{run}-{d}-{i // _MERGE_AT_ONCE}"
            )
            for i in range(0, len(level), _MERGE_AT_ONCE)
        ]
    with reporter.task(what, len(leaves), "ranges") as task:
        return compute.run(level[0], leaves, lambda: task.advance(1))

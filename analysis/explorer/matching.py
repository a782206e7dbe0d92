"""Which features of two runs are the same: nearest decoder directions both ways, and how alike they fire.

Shapes: F features of run A, G of run B, d the length of their decoder vectors, k candidates; only a block of the F x G
cosines is ever held.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..features import NOT_ENCODED, FeatureActivations

if TYPE_CHECKING:
    from torch import Tensor

CANDIDATES = 8
_BLOCK = 512  # directions at a time: with 65,536 others 134 MB of cosines
_RANDOM = 2048  # directions that chance is taken from: its 99th percentile then has 20 above it
_RANGE_BYTES = 4 << 20  # of entries read at a time: each is looked for `CANDIDATES` times

Told = Callable[[float], None]
"""Is told the share that is done."""


@dataclass(frozen=True, eq=False)
class Matches:
    """The features of A beside those of B. -1 and NaN where there is none: of a dead feature, or a vector of zeros."""

    feature: NDArray[np.int32]
    """`(F, k)` features of B by falling cosine of the decoder directions; of equal ones the lowest first."""
    cosine: NDArray[np.float32]
    """`(F, k)`."""
    correlation: NDArray[np.float32]
    """`(F, k)` Pearson correlation of the activations over the rows that both encoded, zeros included; NaN where there
    are no such rows, or one of the two does not vary."""
    back_feature: NDArray[np.int32]
    """`(G,)` of each feature of B the feature of A with the largest cosine."""
    back_cosine: NDArray[np.float32]
    chance: NDArray[np.float32]
    """`(n,)` largest cosines of random directions with the features of B, ascending."""
    n_rows: int
    """Rows that correlations are over; 0 where the runs are of different stores."""
    seconds: float

    def children(self, least: float = 0.4) -> dict[int, NDArray[np.int64]]:
        """By feature of A those of B that it is the nearest to, at a cosine above `least`; ascending, none left out."""
        held = np.flatnonzero(self.back_cosine > least)
        order = held[np.argsort(self.back_feature[held], kind="stable")]
        parents, starts = np.unique(self.back_feature[order], return_index=True)
        # of nothing np.split makes one empty part
        return dict(zip(parents.tolist(), np.split(order, starts[1:]), strict=False))

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """As they are stored."""
        return {each.name: np.asarray(getattr(self, each.name)) for each in fields(self)}

    @classmethod
    def of_arrays(cls, arrays: Any) -> "Matches":
        """Read back."""
        values = {each.name: arrays[each.name] for each in fields(cls)}
        return cls(**values | {"n_rows": int(values["n_rows"]), "seconds": float(values["seconds"])})


def nearest_directions(
    a: "Tensor", b: "Tensor", alive_a: NDArray[np.bool_], alive_b: NDArray[np.bool_], told: Told = lambda share: None
) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.int32], NDArray[np.float32]]:
    """`feature`, `cosine`, `back_feature`, `back_cosine` of `Matches`.

    Parameters
    ----------
    a, b
        `(F, d)` and `(G, d)` unit vectors, float32; a row of NaN is none.
    alive_a, alive_b
        Those that count.
    """
    import torch

    k = min(CANDIDATES, len(b))
    n_a, n_b = len(a), len(b)
    feature, cosine = np.full((n_a, CANDIDATES), -1, np.int32), np.full((n_a, CANDIDATES), np.nan, np.float32)
    back, back_of = torch.full((n_b,), -torch.inf), torch.full((n_b,), -1, dtype=torch.int64)
    is_none_b = torch.from_numpy(~alive_b) | torch.isnan(b[:, 0])
    turned = b.T.contiguous()
    for start in range(0, n_a, _BLOCK):
        block = a[start : start + _BLOCK]
        is_none = torch.from_numpy(~alive_a[start : start + _BLOCK]) | torch.isnan(block[:, 0])
        values = (block @ turned).clamp_(-1.0, 1.0)  # rounding may carry a cosine of 1 past it
        values[:, is_none_b] = -torch.inf
        values[is_none] = -torch.inf
        top, ids = values.topk(k, dim=1)
        cosine[start : start + len(block), :k], feature[start : start + len(block), :k] = top.numpy(), ids.numpy()
        high, place = values.max(dim=0)
        is_better = high > back  # of equal ones the earlier block's stays
        back[is_better], back_of[is_better] = high[is_better], place[is_better] + start
        told(min(1.0, (start + len(block)) / n_a))
    nothing = ~np.isfinite(cosine)
    feature[nothing], cosine[nothing] = -1, np.nan
    order = np.lexsort((feature, -cosine))  # topk leaves the order of equal ones open
    feature, cosine = np.take_along_axis(feature, order, 1), np.take_along_axis(cosine, order, 1)
    back_cosine = back.numpy()
    is_unmatched = ~np.isfinite(back_cosine)
    back_cosine[is_unmatched] = np.nan
    return feature, cosine, back_of.numpy().astype(np.int32), back_cosine


def chance_cosines(b: "Tensor", alive_b: NDArray[np.bool_], seed: int = 0) -> NDArray[np.float32]:
    """Largest cosines of isotropic random directions with the features of B, ascending."""
    import torch

    from ..cosines import unit_rows

    known = b[torch.from_numpy(alive_b) & ~torch.isnan(b[:, 0])]
    if not len(known):
        return np.empty(0, np.float32)
    rng = np.random.default_rng(seed)
    found = []
    for start in range(0, _RANDOM, _BLOCK):
        wanted = (min(_BLOCK, _RANDOM - start), b.shape[1])
        directions = unit_rows(torch.from_numpy(rng.standard_normal(wanted)))
        found.append((directions @ known.T).amax(dim=1).numpy())
    return np.sort(np.concatenate(found))


def correlations(
    a: FeatureActivations, b: FeatureActivations, candidates: NDArray[np.int32], told: Told = lambda share: None
) -> tuple[NDArray[np.float32], int]:
    """Pearson correlation of each feature of A with its candidates in B, and the rows it is over.

    Each activation of A is looked for beside its candidates on the same row, a few megabytes at a time; pairs that are
    no candidates are never formed.

    Parameters
    ----------
    a, b
        Of the same store.
    candidates
        `(F, k)`, -1 for none.
    """
    n_features, k = candidates.shape
    both = np.zeros(n_features * k)
    sums = [np.zeros((2, each.d_sae)) for each in (a, b)]
    n, start = 0, max(a.info.row_start, b.info.row_start)
    stop = max(start, min(a.info.row_stop, b.info.row_stop))
    for first, last in a.ranges(start, stop, _RANGE_BYTES):
        shared = np.ones(last - first, bool)
        for each in (a, b):
            shared &= each.row_numbers("split", first, last) != NOT_ENCODED
        n += int(shared.sum())
        entries = [_entries(each, first, last, shared) for each in (a, b)]
        for total, (_, index, value), of in zip(sums, entries, (a, b), strict=True):
            total[0] += np.bincount(index, value, of.d_sae)
            total[1] += np.bincount(index, value**2, of.d_sae)
        (row, index, value), (row_b, index_b, value_b) = entries
        keys = row_b * b.d_sae + index_b  # ascending: rows ascend, and features within a row
        if len(keys):
            for place in range(k):
                wanted = candidates[index, place].astype(np.int64)
                at = np.searchsorted(keys, row * b.d_sae + wanted).clip(max=len(keys) - 1)
                is_there = (keys[at] == row * b.d_sae + wanted) & (wanted >= 0)
                pairs = index[is_there] * k + place
                both += np.bincount(pairs, value[is_there] * value_b[at[is_there]], n_features * k)
        told((last - start) / max(1, stop - start))
    if n == 0:
        return np.full((n_features, k), np.nan, np.float32), 0
    (mean_a, deviation_a), (mean_b, deviation_b) = (_moments(total, n) for total in sums)
    is_pair = candidates >= 0
    g = np.where(is_pair, candidates, 0)
    covariance = both.reshape(n_features, k) / n - mean_a[:, None] * mean_b[g]
    spread = deviation_a[:, None] * deviation_b[g]
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.where(is_pair & (spread > 0), covariance / spread, np.nan)
    return found.clip(-1, 1).astype(np.float32), n


def _entries(
    features: FeatureActivations, first: int, last: int, shared: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Row, feature and value of the activations on some rows, those that are shared alone."""
    indptr, index, value = features.rows(first, last)
    row = np.repeat(np.arange(last - first), np.diff(indptr))
    kept = shared[row]
    return row[kept], index[kept].astype(np.int64), value[kept].astype(np.float64)


def _moments(sums: NDArray[np.float64], n: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    mean = sums[0] / n
    return mean, np.sqrt(np.maximum(sums[1] / n - mean**2, 0))

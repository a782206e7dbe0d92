"""Largest cosines of many directions with a set of unit vectors, by blocks of a matrix product.

Shapes: n directions, m unit vectors, d their length, B directions at a time; only (B, m) cosines are ever held.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Blocks = Iterable[NDArray[np.float32] | Tensor]
"""Directions `(B, d)` of length 1 at a time; a direction of NaN has no cosine."""


@dataclass(frozen=True)
class LargestCosines:
    """Of each direction, the unit vectors that it lies nearest to."""

    signed: NDArray[np.float32]
    """`(n,)`: the largest cosine; NaN of a direction that is none."""
    signed_id: NDArray[np.int32]
    """`(n,)`: whose it is, the first of equals; -1 of a direction that is none."""
    absolute: NDArray[np.float32]
    """`(n,)`: the largest absolute value of a cosine."""
    absolute_id: NDArray[np.int32]


@dataclass(frozen=True)
class NearestVectors:
    """The unit vectors nearest to each direction, and how many lie nearer than some levels."""

    top_id: NDArray[np.int32]
    """`(n, k)`, by falling absolute cosine; -1 where there are fewer than k vectors."""
    top_cosine: NDArray[np.float32]
    """`(n, k)`: their cosines, with their sign; NaN unfilled."""
    n_above: dict[str, NDArray[np.int32]]
    """Of each level by name: `(n,)` vectors whose cosine, or its absolute value, is above it."""
    of_vector_id: NDArray[np.int32]
    """`(m, k)` the directions nearest to each unit vector, by falling absolute cosine; -1 unfilled."""
    of_vector_cosine: NDArray[np.float32]
    """`(m, k)`: their cosines, with their sign; NaN unfilled."""


@dataclass(frozen=True)
class Level:
    """A cosine above which a vector counts."""

    name: str
    value: float
    is_absolute: bool


def unit_rows(vectors: Tensor) -> Tensor:
    """Rows of `(n, d)` scaled to length 1, float32; rows of zeros become NaN."""
    wide = vectors.double()
    norm = wide.norm(dim=1, keepdim=True)
    return torch.where(norm > 0, wide / norm, torch.nan).float()


def largest_cosines(blocks: Blocks, vectors: Tensor) -> LargestCosines:
    """The largest signed and absolute cosine of each direction with `(m, d)` unit vectors."""
    return _joined([_largest(cosine) for cosine in _cosines(blocks, vectors)])


def nearest_vectors(
    blocks: Blocks, vectors: Tensor, levels: Sequence[Level], k: int
) -> tuple[LargestCosines, NearestVectors]:
    """Beside the largest cosines the `k` nearest of `(m, d)` unit vectors, and the number above each level."""
    held = min(k, len(vectors))
    largest, ids, cosines = [], [], []
    counts: dict[str, list[NDArray[np.int32]]] = {level.name: [] for level in levels}
    of_vector = _NearestDirections(vectors, k)
    for cosine in _cosines(blocks, vectors):
        of_vector.add(cosine)
        largest.append(_largest(cosine))
        absolute = cosine.abs()
        _, top = absolute.topk(held, dim=1)
        value = cosine.gather(1, top)
        ids.append(torch.where(torch.isnan(value), -1, top).to(torch.int32).cpu().numpy())
        cosines.append(value.cpu().numpy())
        for level in levels:
            above = (absolute if level.is_absolute else cosine) > level.value
            counts[level.name].append(above.count_nonzero(dim=1).to(torch.int32).cpu().numpy())
    top_id = np.pad(np.concatenate(ids), ((0, 0), (0, k - held)), constant_values=-1)
    top_cosine = np.pad(np.concatenate(cosines), ((0, 0), (0, k - held)), constant_values=np.nan)
    n_above = {name: np.concatenate(each) for name, each in counts.items()}
    return _joined(largest), NearestVectors(top_id, top_cosine, n_above, *of_vector.result())


class _NearestDirections:
    """The `k` directions nearest to each of m vectors, over blocks of directions."""

    def __init__(self, vectors: Tensor, k: int) -> None:
        shape = (k, len(vectors))
        self._cosine = torch.full(shape, torch.nan, device=vectors.device)
        self._id = torch.full(shape, -1, dtype=torch.int32, device=vectors.device)
        self._k, self._n = k, 0

    def add(self, cosine: Tensor) -> None:
        """Cosines `(B, m)` of the next block."""
        number = torch.arange(self._n, self._n + len(cosine), dtype=torch.int32, device=cosine.device)
        self._n += len(cosine)
        ids = torch.cat((self._id, torch.where(torch.isnan(cosine), -1, number[:, None])))
        held = torch.cat((self._cosine, cosine))
        # what is none comes last: topk takes NaN for the largest
        _, top = held.abs().nan_to_num(nan=-1.0).topk(self._k, dim=0)
        self._id, self._cosine = ids.gather(0, top), held.gather(0, top)

    def result(self) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Ids and cosines, `(m, k)` each."""
        return self._id.T.contiguous().cpu().numpy(), self._cosine.T.contiguous().cpu().numpy()


def _largest(cosine: Tensor) -> list[NDArray[Any]]:
    """Of a block of cosines `(B, m)`: the fields of `LargestCosines`."""
    high, high_id = cosine.max(dim=1)
    low, low_id = cosine.min(dim=1)
    is_low = -low > high
    absolute, absolute_id = torch.where(is_low, -low, high), torch.where(is_low, low_id, high_id)
    nothing = torch.isnan(high)
    ids = [torch.where(nothing, -1, each).to(torch.int32) for each in (high_id, absolute_id)]
    return [each.cpu().numpy() for each in (high, ids[0], absolute, ids[1])]


def _joined(parts: list[list[NDArray[Any]]]) -> LargestCosines:
    return LargestCosines(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _cosines(blocks: Blocks, vectors: Tensor) -> Iterable[Tensor]:
    turned = vectors.T  # (d, m)
    for block in blocks:
        directions = block if isinstance(block, Tensor) else torch.from_numpy(block)
        # rounding may carry a cosine of 1 past it
        yield (directions.to(vectors.device) @ turned).clamp_(-1.0, 1.0)

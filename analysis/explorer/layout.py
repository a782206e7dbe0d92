"""A map of directions: points in the plane, near each other where the directions are.

The graph is UMAP's (McInnes 2018): each direction's 15 nearest by cosine, with fuzzy weights. The layout is t-SNE's
(van der Maaten 2008) of that graph, from the first two principal components; its repulsion is a convolution on a grid
(Linderman 2019), so that no pair of points is left to chance and a step costs O(n). UMAP's own layout, with its sampled
repulsion, keeps fewer neighbours (docs/measurements/explorer.md). The result does not depend on the number of threads.

Shapes: n directions, d their length, k neighbours, E edges.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

N_NEIGHBOURS = 15
SEED = 0
VERSION = 1
"""Of what is computed: another would lay the same directions out elsewhere."""
_FEWEST = 5
"""Points that a layout can move; fewer lie where their principal components put them."""

_STEPS, _EARLY_STEPS = 300, 100
_EARLY_EXAGGERATION = 12.0  # of attraction, while clusters find each other
_EARLY_MOMENTUM, _MOMENTUM = 0.5, 0.8
_RATE = 1 / 12  # of n: Belkina 2019, n over the exaggeration
_LONGEST_MOVE = 4.0  # of a point in a step, in either coordinate: a handful of points would fly apart
_SPACING, _FEWEST_CELLS, _MOST_CELLS = 0.5, 64, 1024
"""Of the grid of repulsion, in units in which two points repel each other most at 0.6. Where the points fill few cells,
as at the start, smaller ones are taken: one large cell would blunt the repulsion that has to part them."""

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


def lay_out(
    directions: Floats, candidates: Ints | None = None, told: Callable[[float], None] = lambda share: None
) -> Floats:
    """Positions `(n, 2)` in a square from -1 to 1, its centre their middle; all zeros for one direction.

    Parameters
    ----------
    directions
        `(n, d)`, of any length but 0.
    candidates
        `(n, c)`: for each the places of those nearest to it, c >= 15, -1 unfilled, where they are known; else computed.
    told
        Is told the share of the work that is done, now and then.
    """
    unit = directions / np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    start = principal_components(unit)
    if len(unit) < _FEWEST:
        return _in_square(start)
    if candidates is None:
        candidates = _nearest(unit)
    told(0.3)
    heads, tails, weights = neighbour_graph(unit, candidates)
    told(0.4)
    return _in_square(_moved(start, heads, tails, weights, lambda share: told(0.4 + 0.6 * share)))


def principal_components(points: Floats) -> Floats:
    """`(n, 2)`: the first two principal components; each sign such that the axis' largest coordinate is above 0."""
    n, d = points.shape
    mean = points.mean(axis=0, dtype=np.float64)
    covariance = np.zeros((d, d))
    for first in range(0, n, 4096):  # a copy in float64 of all would be the largest thing here
        block = points[first : first + 4096] - mean
        covariance += block.T @ block
    axes = np.linalg.eigh(covariance)[1][:, :-3:-1]  # (d, <= 2)
    axes = axes * np.where(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])] < 0, -1, 1)
    found = np.zeros((n, 2), np.float32)
    found[:, : axes.shape[1]] = points @ axes - mean @ axes
    return found


def neighbour_graph(unit: Floats, candidates: Ints) -> tuple[Ints, Ints, Floats]:
    """Heads, tails and weights `(E,)` of the edges between near directions, each in both senses, ordered by head.

    The 15 nearest are taken by cosines in float64: in float32 they would depend on how a product is split over threads.

    Parameters
    ----------
    unit
        `(n, d)`, of norm 1.
    candidates
        `(n, c)` places of others, -1 unfilled.
    """
    n, k = len(unit), min(N_NEIGHBOURS, len(unit) - 1)
    distance = np.full(candidates.shape, np.inf)
    for first in range(0, n, 512):
        here = slice(first, first + 512)
        cosine = np.einsum("nd,ncd->nc", unit[here], unit[candidates[here]], dtype=np.float64)
        distance[here] = np.where(candidates[here] >= 0, np.maximum(1 - cosine, 0), np.inf)
    order = np.lexsort((candidates, distance), axis=1)[:, :k]
    tail, distance = np.take_along_axis(candidates, order, 1), np.take_along_axis(distance, order, 1)
    weight = fuzzy_weights(distance)
    is_edge = (tail >= 0) & (weight > 0)
    head = np.broadcast_to(np.arange(n)[:, None], tail.shape)[is_edge]
    return _symmetric(n, head, tail[is_edge], weight[is_edge])


def fuzzy_weights(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """UMAP's weights `(n, k)` of neighbours at rising distances: exp(-(distance - the least) / s), summing to log2 k.

    Distances of inf weigh 0.
    """
    least = np.where(np.isfinite(distance[:, :1]), distance[:, :1], 0)
    beyond, wanted = distance - least, math.log2(max(distance.shape[1], 2))
    low, high = np.zeros_like(least), np.full_like(least, np.inf)
    scale = np.ones_like(least)
    for _ in range(64):
        is_much = np.exp(-beyond / scale).sum(axis=1, keepdims=True) > wanted
        high, low = np.where(is_much, scale, high), np.where(is_much, low, scale)
        # a row whose sum never gets there (fewer neighbours than k) ends with a large scale: all its weights near 1
        scale = np.where(np.isinf(high), np.minimum(2 * scale, 1e6), (low + high) / 2)
        scale = np.maximum(scale, 1e-12)  # of a row with log2 k or more neighbours at the least distance: they weigh 1
    found: NDArray[np.float64] = np.exp(-beyond / scale)
    return found


def _symmetric(n: int, head: Ints, tail: Ints, weight: NDArray[np.float64]) -> tuple[Ints, Ints, Floats]:
    """Both senses of every edge with the weight a + b - ab, where a and b are those of the two senses."""
    key = np.concatenate([head * n + tail, tail * n + head])
    order = np.argsort(key, kind="stable")
    key, weight = key[order], np.tile(weight, 2)[order]
    first = np.flatnonzero(np.diff(key, prepend=-1))
    both = np.add.reduceat(weight, first) if len(first) else weight
    is_mutual = np.diff(first, append=len(key)) == 2
    both[is_mutual] -= np.multiply.reduceat(weight, first)[is_mutual] if len(first) else 0
    return key[first] // n, key[first] % n, both.astype(np.float32)


def _nearest(unit: Floats) -> Ints:
    """Some more than 15 nearest of each, by float32."""
    import torch

    from ..nearest import nearest_features

    return nearest_features(torch.from_numpy(unit), N_NEIGHBOURS + 5)[0].astype(np.int64)


def _moved(start: Floats, heads: Ints, tails: Ints, weights: Floats, told: Callable[[float], None]) -> Floats:
    """Where gradient descent on t-SNE's divergence brings the points."""
    n = len(start)
    draw = np.random.default_rng(SEED)
    place = start / max(float(start[:, 0].std()), 1e-12) * 1e-2
    # rounded, since the components' last digits differ with the number of threads; moved a little, to part equal ones
    place = (np.round(place, 6) + draw.normal(0, 1e-4, place.shape)).astype(np.float32).T  # (2, n)
    share = weights / weights.sum()
    velocity, gain = np.zeros_like(place), np.ones_like(place)
    rate = np.float32(n * _RATE)
    repulsion = _Repulsion(float(np.abs(place).max()))
    for step in range(_STEPS):
        is_early = step < _EARLY_STEPS
        reach = float(np.abs(place).max())
        if not repulsion.fits(reach):
            repulsion = _Repulsion(reach)
        apart = place[:, tails] - place[:, heads]
        pull = share * (_EARLY_EXAGGERATION if is_early else 1.0) / (1 + (apart**2).sum(axis=0))
        attraction = [np.bincount(heads, pull * along, minlength=n) for along in apart]
        force = (4 * (np.stack(attraction) + repulsion.of(place))).astype(np.float32)
        gain = np.where(force * velocity > 0, gain + 0.2, np.maximum(gain * 0.8, 0.01)).astype(np.float32)
        velocity = (_EARLY_MOMENTUM if is_early else _MOMENTUM) * velocity + rate * gain * force
        velocity = velocity.clip(-_LONGEST_MOVE, _LONGEST_MOVE)
        place = place + velocity
        place -= place.mean(axis=1, keepdims=True)
        if step % 10 == 0:
            told(step / _STEPS)
    return place.T


class _Repulsion:
    """How points push each other away: sums over pairs of (y_i - y_j) / (1 + d^2)^2, over the sum of 1 / (1 + d^2).

    Each point is shared out among the four grid points around it; what a mass there does everywhere is a convolution.

    Parameters
    ----------
    reach
        How far the points lie from the middle; the grid covers somewhat more.
    """

    def __init__(self, reach: float) -> None:
        self._half = max(1.4 * reach, 1e-6)
        cells = min(max(math.ceil(2 * self._half / _SPACING), _FEWEST_CELLS), _MOST_CELLS)
        self._spacing = 2 * self._half / cells
        self._side = _fast_length(2 * (cells + 2))  # twice: masses must not reach around
        steps = np.arange(self._side)
        offset = (np.where(steps <= self._side // 2, steps, steps - self._side) * self._spacing).astype(np.float32)
        near = 1 / (1 + offset[:, None] ** 2 + offset**2)
        self._near = np.fft.rfft2(near)
        self._push = (np.fft.rfft2(near**2 * offset[:, None]), np.fft.rfft2(near**2 * offset))

    def fits(self, reach: float) -> bool:
        """Whether points up to `reach` from the middle are within the grid, and fill enough of it."""
        return self._half / 4 <= reach < self._half - self._spacing

    def of(self, place: Floats) -> NDArray[np.float64]:
        """`(2, n)` at positions `(2, n)`."""
        n = place.shape[1]
        at = (place + np.float32(self._half)) / np.float32(self._spacing)
        corner = at.astype(np.int64)
        x, y = at - corner
        cell = corner[0] * self._side + corner[1]
        cells = np.concatenate([cell, cell + 1, cell + self._side, cell + self._side + 1])
        shares = np.concatenate([(1 - x) * (1 - y), (1 - x) * y, x * (1 - y), x * y])
        shape = (self._side, self._side)
        mass = np.fft.rfft2(np.bincount(cells, shares, minlength=self._side**2).reshape(shape).astype(np.float32))

        def field(kernel: NDArray[np.complexfloating]) -> NDArray[np.float64]:
            everywhere = np.fft.irfft2(mass * kernel, s=shape).ravel()
            return (everywhere[cells] * shares).reshape(4, n).sum(axis=0)

        total = max(float(field(self._near).sum()) - n, 1e-9)  # less each point's own
        return np.stack([field(kernel) for kernel in self._push]) / total


def _fast_length(least: int) -> int:
    """The next even number with no prime factor above 5: what the transform is quick at."""
    length = least + least % 2
    while True:
        rest = length
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return length
        length += 2


def _in_square(place: Floats) -> Floats:
    """Positions shifted and scaled into the square from -1 to 1."""
    if not len(place):
        return place
    low, high = place.min(axis=0), place.max(axis=0)
    half = float((high - low).max()) / 2
    found: Floats = ((place - (low + high) / 2) / (half or 1.0)).astype(np.float32)
    return found

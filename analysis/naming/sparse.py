"""A feature's direction as a sum of a few phrases, each with a weight above zero.

min over w >= 0 of ||z - sum_j w_j c_j||^2 + lambda sum_j w_j, with z the direction and c_j the phrases, all centred
and of length 1 (SpLiCE: Bhalla et al. 2024, arXiv:2402.10376). SpLiCE fixes lambda, and gets ten phrases and more of an
image. A name is to have a few, so lambda is as small as lets no more than that many in.

The solution is followed exactly along lambda (the homotopy of Osborne, Presnell and Turlach 2000, held to w >= 0), for
many directions at once and over the whole vocabulary. With mu = lambda / 2, A the phrases in use, G their products, b =
C_A z: w_A = G^-1 b - mu G^-1 1 until, as mu falls from max_j c_j z, either a weight reaches zero, or the residual's
product with another phrase reaches mu. Each such step takes two products with the vocabulary.

Shapes: n directions, V phrases, e the length of an embedding, k phrases of a name.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

Floats = NDArray[np.float32]

_PRODUCTS_BYTES = 1 << 28  # of products of directions with the whole vocabulary, held at a time
_SINGULAR = 1e-6  # a phrase with less than this share of its square outside the span of the others is one of them
_STEPS_A_PHRASE = 8  # phrases that leave again are rare; whoever meets more stops at a larger lambda, still exact


@dataclass(frozen=True)
class SparseCombinations:
    """What sums of phrases are nearest to some directions."""

    phrase: NDArray[np.int64]
    """`(n, k)`: by falling weight, -1 where there is none."""
    weight: Floats
    """`(n, k)`: of unit phrases in a unit direction, 0 where there is none."""
    penalty: Floats
    """`(n,)`: the lambda that these weights are the minimum at; NaN of a direction of zeros or NaN."""
    cosine: Floats
    """`(n,)`: of the sum and the direction; NaN where there is no phrase."""


def sparse_combinations(
    directions: Floats,
    phrases: Floats,
    *,
    n_phrases: int = 3,
    penalty: float = 0.0,
    device: torch.device | str = "cpu",
) -> SparseCombinations:
    """Describe each direction by a few phrases with weights.

    Parameters
    ----------
    directions
        `(n, e)`, in the space of the centred phrases; scaled to length 1 here.
    phrases
        `(V, e)`: centred, of length 1. Of equal ones the first is taken.
    n_phrases
        The most of a name: the weights are those at which one more would come in.
    penalty
        The smallest lambda; larger than 0 for shorter names where more phrases add little.
    device
        Where products with the vocabulary are computed.

    Raises
    ------
    ValueError
        When there is no phrase, `n_phrases` or the penalty is out of range, or lengths differ.
    """
    if n_phrases < 1 or penalty < 0:
        raise ValueError(f"n_phrases {n_phrases} must be at least 1, the penalty {penalty} at least 0.")
    if not len(phrases) or phrases.shape[1] != directions.shape[1]:
        raise ValueError(f"phrases {phrases.shape} do not go with directions {directions.shape}.")
    words = torch.as_tensor(phrases, dtype=torch.float32, device=device)
    size = max(1, _PRODUCTS_BYTES // (4 * len(phrases)))
    found = [
        _of_some(directions[start : start + size], words, n_phrases, penalty / 2)
        for start in range(0, max(1, len(directions)), size)
    ]
    return SparseCombinations(*(np.concatenate(column) for column in zip(*found, strict=True)))


def _of_some(
    directions: Floats, words: Tensor, k: int, least: float
) -> tuple[NDArray[np.int64], Floats, Floats, Floats]:
    z = normalize(torch.as_tensor(directions, dtype=torch.float32, device=words.device), dim=-1)
    is_direction = (z.norm(dim=1) > 0.5).cpu().numpy()  # not of NaN, nor of zeros
    paths = _Paths(torch.nan_to_num(z), words, k)
    for _ in range(_STEPS_A_PHRASE * k):
        if not paths.step(least):
            break
    weight = np.where(is_direction[:, None], paths.weights, 0)
    phrase = np.where(weight > 0, paths.phrases, -1)
    order = np.argsort(-weight, axis=1, kind="stable")
    phrase, weight = (np.take_along_axis(each, order, axis=1) for each in (phrase, weight))
    total = np.einsum("nk,nke->ne", weight, words.cpu().numpy()[phrase].astype(np.float64))
    with np.errstate(invalid="ignore"):
        cosine = np.einsum("ne,ne->n", total, z.cpu().double().numpy()) / np.linalg.norm(total, axis=1)
    lambdas = np.where(is_direction, 2 * paths.mu, np.nan)
    return phrase, weight.astype(np.float32), lambdas.astype(np.float32), cosine.astype(np.float32)


class _Paths:
    """The solutions of some directions along falling mu, each at the last of its turns.

    The vocabulary is searched in float32; weights and turns are float64, from the few phrases in use.
    """

    def __init__(self, z: Tensor, words: Tensor, k: int) -> None:
        n = len(z)
        self._z, self._words = z, words
        self._exact_z = z.cpu().double().numpy()
        self._is_open = np.ones(n, np.bool_)
        self._left = np.full(n, -1)  # the phrase that went out at the last turn: rounding must not let it in again
        self.phrases = np.full((n, k), -1)
        self.weights = np.zeros((n, k))
        self.mu = np.full(n, np.inf)

    def step(self, least: float) -> bool:
        """Go to the next turn of every path that has one above `least`; gives whether any has."""
        open_ones = np.flatnonzero(self._is_open)
        if not len(open_ones):
            return False
        phrases, mu = self.phrases[open_ones], self.mu[open_ones]
        u, v = self._lines(open_ones)
        joining, join_at = self._next_to_join(open_ones, u, v)
        leave_at = np.divide(u, v, out=np.full_like(u, -np.inf), where=(phrases >= 0) & (v < 0) & (u < 0))
        leaving = leave_at.argmax(axis=1)
        leave_at = leave_at.max(axis=1)
        turn = np.minimum(np.maximum(join_at, leave_at), mu)  # above mu by rounding alone
        ends = turn <= least
        leaves = ~ends & (leave_at >= join_at)
        joins = ~ends & ~leaves
        is_full = (phrases >= 0).all(axis=1)
        mu = np.where(ends, least, turn)
        bounded = np.where(np.isfinite(mu), mu, 0)[:, None]  # a path without a phrase has no weight at any mu
        self.weights[open_ones] = np.maximum(u - bounded * v, 0) * (phrases >= 0)
        self.mu[open_ones] = mu
        self._left[open_ones] = -1
        out = np.flatnonzero(leaves)
        self._left[open_ones[out]] = phrases[out, leaving[out]]
        self.phrases[open_ones[out], leaving[out]] = -1
        self.weights[open_ones[out], leaving[out]] = 0
        new = np.flatnonzero(joins & ~is_full)
        self.phrases[open_ones[new], (phrases[new] < 0).argmax(axis=1)] = joining[new]
        self._is_open[open_ones] = ~(ends | (joins & is_full))
        return bool(self._is_open.any())

    def _exact(self, phrases: NDArray[np.int64]) -> NDArray[np.float64]:
        """Phrases' vectors `(..., e)`, of -1 zeros."""
        vectors = self._words[torch.as_tensor(np.maximum(phrases, 0), device=self._words.device)]
        found: NDArray[np.float64] = vectors.cpu().double().numpy() * (phrases >= 0)[..., None]
        return found

    def _lines(self, which: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """G^-1 b and G^-1 1, `(n, k)`: u and v of weights u - mu v; zero where there is no phrase."""
        phrases = self.phrases[which]
        c, used = self._exact(phrases), phrases >= 0  # (n, k, e)
        products = c @ c.transpose(0, 2, 1) + np.eye(phrases.shape[1]) * ~used[:, None]
        sides = np.stack([np.einsum("nke,ne->nk", c, self._exact_z[which]), used.astype(np.float64)], axis=2)
        solved = np.linalg.solve(products, sides)
        return solved[..., 0], solved[..., 1]

    def _next_to_join(
        self, which: NDArray[np.int64], u: NDArray[np.float64], v: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The phrase `(n,)` that comes in next as mu falls, and at which mu; -inf where none does."""
        c = self._exact(self.phrases[which])
        rest = self._exact_z[which] - np.einsum("nk,nke->ne", u, c)
        along = np.einsum("nk,nke->ne", v, c)
        rest_t, along_t = (
            torch.as_tensor(each, dtype=torch.float32, device=self._words.device) for each in (rest, along)
        )
        # with another phrase the residual's product is rest c + mu along c: it is mu at rest c / (1 - along c)
        apart = 1 - along_t @ self._words.T  # (n, V)
        turn = torch.where(apart > _SINGULAR, (rest_t @ self._words.T) / apart, -torch.inf)
        barred = np.concatenate([self.phrases[which], self._left[which, None]], axis=1)
        row, column = np.nonzero(barred >= 0)
        places = tuple(torch.as_tensor(each, device=turn.device) for each in (row, barred[row, column]))
        turn[places] = -torch.inf
        best = turn.max(dim=1)
        joining = best.indices.cpu().numpy()
        chosen = self._exact(joining)
        with np.errstate(divide="ignore", invalid="ignore"):
            exact = np.einsum("ne,ne->n", rest, chosen) / (1 - np.einsum("ne,ne->n", along, chosen))
        return joining, np.where(torch.isfinite(best.values).cpu().numpy(), exact, -np.inf)

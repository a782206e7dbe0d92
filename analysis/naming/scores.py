"""Scores of names: does a phrase tell the images that a feature fires on, does the feature move embeddings towards it.

Everything here is arithmetic on similarities and effects that others computed. Which images they are of is what makes
the scores honest: a name is chosen, from its candidates too, on the naming side alone (`split.py`), and every score
that is reported is of the other side, so that the best of fifty candidates has no head start.

Shapes: n features, c phrases, R random phrases, e the length of an embedding; P images on which a feature fires, Q on
which it does not. Images lie along the last axis, NaN standing for none; what comes before is the caller's.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .names_file import NAMED, UNNAMED, UNTESTED

Floats = NDArray[np.floating[Any]]
Doubles = NDArray[np.float64]

N_NEGATIVES = 50
"""Images without the feature that are drawn at random, and as many that are chosen to be hard."""


@dataclass(frozen=True)
class Negatives:
    """Similarities of images on which a feature does not fire."""

    random: Floats
    """`(..., q)`: of images drawn at random, the same ones for every phrase."""
    hard: Floats
    """`(..., h)`: of others, among the tenth that is most similar to each phrase."""

    @property
    def all(self) -> Floats:
        """Both, `(..., q + h)`."""
        return np.concatenate((self.random, self.hard), axis=-1)


def negatives(
    similar: Floats, generator: np.random.Generator, *, random: int = N_NEGATIVES, hard: int = N_NEGATIVES
) -> Negatives:
    """Draw images without the feature at random, then some of the tenth that is most similar to each phrase.

    Random images alone are told apart by any phrase that says roughly what is seen; the hard ones ask whether it is
    this phrase (hard negatives as in detection scoring, EleutherAI's Delphi). Of a tenth, and not the few most similar
    of all: those would be the harder the more images there are to take them from, and scores would depend on that.

    Parameters
    ----------
    similar
        `(..., M)`: similarities of phrases to M images on which the feature does not fire. Where M is below
        `2 * random`, half of the images are drawn at random.
    """
    m = similar.shape[-1]
    order = generator.permutation(m)
    n_random = min(random, (m + 1) // 2)
    rest = similar[..., order[n_random:]]
    n_rest = rest.shape[-1]
    n_hard = min(hard, n_rest)
    n_near = max(n_hard, n_rest // 10)
    near = np.sort(rest, axis=-1)[..., n_rest - n_near :]
    return Negatives(similar[..., order[:n_random]], near[..., generator.permutation(n_near)[:n_hard]])


def auroc(positive: Floats, negative: Floats) -> Doubles:
    """Share of (firing, other) pairs of images in which the firing one is more similar, ties half.

    The area under the ROC curve. NaN where either side has no image.

    Parameters
    ----------
    positive, negative
        `(..., P)`, `(..., Q)`.

    Returns
    -------
    area
        `(...)`.
    """
    n_pairs = _count(positive) * _count(negative)
    return np.divide(_wins(positive, negative), n_pairs, out=np.full(n_pairs.shape, np.nan), where=n_pairs > 0)


def rank_sum_p_values(positive: Floats, negative: Floats) -> Doubles:
    """One-sided p-values that a phrase is more similar to the images on which a feature fires, `(...)`.

    Null: similarities to the phrase are distributed alike on both kinds of images. The test of Mann and Whitney (1947),
    by the normal approximation with correction for ties and continuity. Only of images that were not chosen by the
    phrase: `Negatives.random`.

    Parameters
    ----------
    positive, negative
        `(..., P)`, `(..., Q)`; NaN where either is empty, 1 where all values are the same.
    """
    p, q = _count(positive), _count(negative)
    n = np.maximum(p + q, 2)
    variance = p * q / 12 * ((n + 1) - _tied(np.concatenate((positive, negative), axis=-1)) / (n * (n - 1)))
    above = _wins(positive, negative) - p * q / 2 - 0.5
    z = np.divide(above, np.sqrt(variance), out=np.full(variance.shape, -np.inf), where=variance > 0)
    tails = [math.erfc(each / math.sqrt(2)) / 2 for each in z.ravel().tolist()]
    return np.where((p > 0) & (q > 0), np.reshape(tails, z.shape), np.nan)


def best_thresholds(positive: Floats, negative: Floats) -> Doubles:
    """Thresholds `(...)` of the best balanced accuracy: a phrase says yes above them; of equal ones the lowest.

    A threshold lies halfway between two similarities. NaN where either side `(..., P)`, `(..., Q)` has no image.
    """
    both = np.concatenate((positive, negative), axis=-1).astype(np.float64)
    order = np.argsort(both, axis=-1)  # NaN last
    both = np.take_along_axis(both, order, axis=-1)
    is_positive = order < positive.shape[-1]
    known = ~np.isnan(both)
    p, q = _count(positive)[..., None], _count(negative)[..., None]
    with np.errstate(invalid="ignore", divide="ignore"):  # a side without images: NaN, which is what it is
        rightly_no = np.cumsum(known & ~is_positive, axis=-1) / q
        rightly_yes = 1 - np.cumsum(known & is_positive, axis=-1) / p
    above = np.concatenate((both[..., 1:], np.full((*both.shape[:-1], 1), np.nan)), axis=-1)
    parts = both < above  # no cut between equals, nor behind the last
    at = np.argmax(np.where(parts, rightly_no + rightly_yes, -1), axis=-1)[..., None]
    cut = np.take_along_axis(both + (above - both) / 2, at, axis=-1)[..., 0]
    # where all images are alike nothing parts them, and everything is called a no
    cut = np.where(parts.any(axis=-1), cut, both[..., 0])
    return np.where((p > 0) & (q > 0), cut[..., None], np.nan)[..., 0]


def balanced_accuracy(positive: Floats, negative: Floats, thresholds: Floats) -> Doubles:
    """Mean of the shares of images rightly called yes `(..., P)` and no `(..., Q)` at thresholds `(...)`."""
    p, q = _count(positive), _count(negative)
    cut = np.asarray(thresholds)[..., None]
    with np.errstate(invalid="ignore", divide="ignore"):
        found = ((positive > cut).sum(axis=-1) / p + (negative <= cut).sum(axis=-1) / q) / 2
    return np.where((p > 0) & (q > 0) & ~np.isnan(thresholds), found, np.nan)


@dataclass(frozen=True)
class EffectScores:
    """How far effects of features on image embeddings point towards phrases."""

    score: Doubles
    """Mean change of the cosine between image and phrase: A_f(t) = <D_f, t>."""
    z: Doubles
    """In standard deviations of the random phrases' scores, from their mean; NaN where they do not differ."""
    percentile: Doubles
    """Share of the random phrases with a smaller score, ties half, in percent."""


def effect_scores(effects: Floats, texts: Floats, random: Floats) -> EffectScores:
    """Scores of phrases by the change that a feature makes to image embeddings.

    For ablation A_f(t) = mean_i [cos(e(x_i), t) - cos(e(x_i without f), t)], the post's proposal; sufficiency is the
    same of images to which f was added. Embeddings and phrases being of length 1, both are products with the mean
    change D_f. The length of D_f does not matter to z and percentile: a feature that hardly does anything, but always
    the same, may have large ones; that its ablation matters at all is what controls are for.

    Parameters
    ----------
    effects
        `(n, e)`: D_f, NaN where there is none.
    texts
        `(n, e)` or `(n, c, e)`: the phrases of each feature, unit and centred.
    random
        `(R, e)`: random phrases, unit and centred.

    Returns
    -------
    scores
        `(n,)` or `(n, c)` each.
    """
    wide = effects.astype(np.float64)
    score = np.einsum("ne,n...e->n...", wide, texts.astype(np.float64))
    by_chance = wide @ random.T.astype(np.float64)  # (n, R)
    shape = (-1,) + (1,) * (score.ndim - 1)
    ddof = min(1, len(random) - 1)  # one phrase alone has a spread of 0
    mean, sd = by_chance.mean(axis=1).reshape(shape), by_chance.std(axis=1, ddof=ddof).reshape(shape)
    z = np.divide(score - mean, sd, out=np.full(score.shape, np.nan), where=sd > 0)
    below = np.empty(score.shape)
    for line, (own, chance) in enumerate(zip(score, by_chance, strict=True)):
        in_order = np.sort(chance)
        below[line] = np.searchsorted(in_order, own, "left") + np.searchsorted(in_order, own, "right")
    percentile = np.where(np.isnan(score), np.nan, 50 * below / random.shape[0])
    return EffectScores(score, z, percentile)


def combined_score(area: Floats, percentile: Floats) -> Doubles:
    """One score of a name, 0 to 1: the mean of its AUROC and its ablation percentile; NaN where either is.

    Chance has 0.5. `calibration.py` measures which share of names of a score are right.
    """
    found: Doubles = (np.asarray(area, np.float64) + np.asarray(percentile, np.float64) / 100) / 2
    return found


def statuses(area: Floats, z: Floats, q: Floats, *, min_auroc: float, min_z: float, fdr: float) -> NDArray[np.str_]:
    """`named`, `unnamed` or `untested`, `(n,)`.

    Parameters
    ----------
    area, z, q
        `(n,)`: AUROC and ablation z of each name on images that it was not chosen by, and the q value of its AUROC
        (`significance.adjusted_p_values` of `rank_sum_p_values`, over all features tested). A feature that lacks one of
        them is untested: too few images, or none at hand.
    """
    known = ~(np.isnan(area) | np.isnan(z) | np.isnan(q))
    passed = (area >= min_auroc) & (z >= min_z) & (q <= fdr)  # False of NaN
    return np.where(known, np.where(passed, NAMED, UNNAMED), UNTESTED)


def equal_controls(
    features: NDArray[np.integer[Any]], norms: Floats, generator: np.random.Generator
) -> tuple[NDArray[np.int64], Doubles]:
    """For each feature another one, and the factor on the feature's activations that makes the change as long.

    The control of the ablation score: on the feature's own images, a random other feature's decoder vector is taken out
    in an amount of equal length. What is left of a name's score with it, any change of that size would have given.

    Parameters
    ----------
    features
        `(n,)` ids, distinct, among which the others are drawn too.
    norms
        `(F,)`: lengths of all decoder vectors.

    Returns
    -------
    others
        `(n,)` ids; of a feature that is alone, itself.
    factors
        `(n,)`.
    """
    n = len(features)
    steps = generator.integers(1, max(n, 2), n)  # 1 to n - 1: never the feature itself
    others = np.asarray(features, np.int64)[(np.arange(n) + steps) % max(n, 1)]
    lengths = np.asarray(norms, np.float64)
    of_other = lengths[others]
    factors = np.divide(lengths[features], of_other, out=np.zeros(n), where=of_other > 0)
    return others, factors


def _count(values: Floats) -> NDArray[np.int64]:
    """Images along the last axis."""
    return np.asarray((~np.isnan(values)).sum(axis=-1), np.int64)


def _wins(positive: Floats, negative: Floats) -> Doubles:
    """Pairs in which the first is larger, ties half, `(...)`: the U statistic."""
    wins = np.zeros(np.broadcast_shapes(positive.shape[:-1], negative.shape[:-1]))
    for i in range(positive.shape[-1]):  # a few tens; all pairs at once would be their product in memory
        one = positive[..., i : i + 1]
        wins += (one > negative).sum(axis=-1) + (one == negative).sum(axis=-1) / 2
    return wins


def _tied(values: Floats) -> Doubles:
    """Sum of t^3 - t over the groups of t equal values along the last axis; NaN equals nothing."""
    k = values.shape[-1]
    rows = np.sort(values.reshape(-1, k), axis=1)
    is_first = np.ones(rows.shape, bool)
    is_first[:, 1:] = rows[:, 1:] != rows[:, :-1]
    t = np.diff(np.append(np.flatnonzero(is_first.ravel()), rows.size)).astype(np.float64)
    of_row = np.repeat(np.arange(len(rows)), is_first.sum(axis=1))
    of_each = np.bincount(of_row, t**3 - t, minlength=len(rows))
    return np.asarray(of_each, np.float64).reshape(values.shape[:-1])

"""The best of the phrases that are nearest to features' directions, and its scores.

Of the candidates that lie nearest to a direction the best scored on the naming side is the name; what is reported of it
is of the scoring side, where nothing was chosen.

Shapes: n features, c candidates, P rows of the pool, k rows of a feature, e the length of an embedding.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ...progress import Task
from .measured import Effects, measured_effects
from .scores import (
    auroc,
    balanced_accuracy,
    best_thresholds,
    combined_score,
    effect_scores,
    negatives,
    rank_sum_p_values,
)
from .setting import NamingSetting
from .sparse import SparseCombinations, sparse_combinations
from .split import FeatureRows
from .text_space import TextSpace, unit_rows

N_ALTERNATIVES = 4
_COMBINATION = -2
_MOST_COMBINED = 100_000

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """What is known of some features whatever they are called.

    Parameters
    ----------
    features
        `(n,)`.
    rows
        `(n,)`.
    effects
        NaN of features that stay untested.
    is_tested
        `(n,)`: whether each fires on enough rows of both sides.
    """

    features: Ints
    rows: tuple[FeatureRows, ...]
    effects: Effects
    is_tested: NDArray[np.bool_]


@dataclass(frozen=True)
class NamedFeatures:
    """Names of features and their scores, `(n,)` each but for the phrases; NaN where a feature was not tested.

    Parameters
    ----------
    phrases
        `(n, 5)`: numbers of the name and of the next best phrases in the vocabulary; -1 for none, -2 for the feature's
        combination.
    nearest
        The phrase nearest to the direction, which the name is without scores; -1 of a feature without a direction.
    cosine
        Of the name with the direction.
    naming_score
        By which the name was chosen: as `score`, on the naming side.
    n_naming, n_scoring
        Images that the name was found on, and scored on; of a feature on which nothing was scored, rows drawn for that.
    """

    features: Ints
    phrases: Ints
    nearest: Ints
    cosine: Doubles
    naming_score: Doubles
    score: Doubles
    auroc: Doubles
    balanced_accuracy: Doubles
    ablation_z: Doubles
    ablation_percentile: Doubles
    control_z: Doubles
    sufficiency_z: Doubles
    p_value: Doubles
    n_naming: Ints
    n_scoring: Ints
    combinations: SparseCombinations | None = None

    def text(self, space: TextSpace, line: int, place: int) -> str:
        """The name of a line (place 0), or its next best phrases; empty for none."""
        phrase = int(self.phrases[line, place])
        if phrase == _COMBINATION:
            assert self.combinations is not None
            return " + ".join(space.phrases[i] for i in self.combinations.phrase[line].tolist() if i >= 0)
        return "" if phrase < 0 else space.phrases[phrase]


def combined_phrases(space: TextSpace, directions: Floats, device: torch.device) -> SparseCombinations:
    """For each direction `(n, e)` the nearest sum of a few phrases.

    Raises
    ------
    ValueError
        When the vocabulary is too long to be held in memory as often as that takes.
    """
    if len(space.phrases) > _MOST_COMBINED:
        raise ValueError(
            f"sparse_names combines at most {_MOST_COMBINED:,} phrases; of {len(space.phrases):,} give fewer."
        )
    return sparse_combinations(directions, space.unit(slice(None)), device=device)


def measure(setting: NamingSetting, features: Ints, task: Task | None = None) -> Measured:
    """Draw features' rows and measure their effects there: once for all methods.

    Parameters
    ----------
    task
        Told of features.
    """
    rows = tuple(setting.rows_of(feature) for feature in features.tolist())
    fewest = setting.options.fewest_rows
    is_tested = np.array([min(each.n_naming, each.n_scoring) >= fewest for each in rows], bool)
    effects = Effects(*(np.full((len(rows), setting.mean_embedding.shape[0]), np.nan, np.float32) for _ in range(4)))
    if task is not None:
        task.advance(int((~is_tested).sum()))
    if is_tested.any():
        chosen = np.flatnonzero(is_tested)
        found = measured_effects(setting, features[chosen], [rows[i] for i in chosen.tolist()], task=task)
        for name in ("naming", "scoring", "control", "added"):
            getattr(effects, name)[chosen] = getattr(found, name)
    return Measured(features, rows, effects, is_tested)


def name_features(
    setting: NamingSetting,
    space: TextSpace,
    measured: Measured,
    directions: Floats,
    *,
    centred: bool = True,
    rescored: bool = True,
    combinations: SparseCombinations | None = None,
) -> NamedFeatures:
    """Name features by any directions, and score the names.

    Parameters
    ----------
    directions
        `(n, e)`, of any length; NaN of a feature without one.
    centred
        Whether they are compared with centred texts, or with texts as CLIP embeds them.
    rescored
        Whether the best scored of the candidates is the name, or the nearest.
    combinations
        Of the directions: those of several phrases are candidates too, before the others.
    """
    n = len(measured.features)
    has_one = ~np.isnan(directions).any(axis=1) & (directions != 0).any(axis=1)
    k = max(setting.options.candidates if rescored else 1, 1 + N_ALTERNATIVES)
    ids, cosines = space.nearest(np.where(has_one[:, None], directions, 0), k, centred=centred)  # (n, c)
    found = {name: np.full(n, np.nan) for name in _SCORES}
    phrases = np.full((n, 1 + N_ALTERNATIVES), -1, np.int64)
    n_naming, n_scoring = (
        np.array([len(getattr(each, side)) for each in measured.rows], np.int64) for side in ("naming", "scoring")
    )
    cosine, chosen_score = np.full(n, np.nan), np.full(n, np.nan)
    for line in np.flatnonzero(has_one & measured.is_tested).tolist():
        candidates, near, texts = ids[line], cosines[line], space.unit(ids[line])
        if combinations is not None and (combinations.phrase[line] >= 0).sum() > 1:
            candidates, near = np.append(_COMBINATION, candidates), np.append(combinations.cosine[line], near)
            texts = np.concatenate((_sum(space, combinations, line), texts))
        images = _images(setting, measured, line)
        n_naming[line], n_scoring[line] = (
            int((~np.isnan(each[:, 0])).sum()) for each in (images.naming, images.scoring)
        )
        naming_score = _naming_scores(texts, images, measured.effects.naming[line], space)
        # of equal scores the nearer phrase; where one says as much as several, the one
        order = np.argsort(-naming_score, kind="stable") if rescored else np.arange(len(texts))
        if len(candidates) > k and not rescored and naming_score[0] <= naming_score[1]:
            order[:2] = 1, 0
        order = order[: 1 + N_ALTERNATIVES]
        phrases[line, : len(order)] = candidates[order]
        cosine[line], chosen_score[line] = near[order[0]], naming_score[order[0]]
        for name, value in _scores(texts[order[:1]], images, measured.effects, line, space).items():
            found[name][line] = value
    return NamedFeatures(
        measured.features,
        phrases,
        np.where(has_one, ids[:, 0], -1),
        cosine,
        chosen_score,
        **found,
        n_naming=n_naming,
        n_scoring=n_scoring,
        combinations=combinations,
    )


def _sum(space: TextSpace, combinations: SparseCombinations, line: int) -> Floats:
    """A combination as one unit vector, `(1, e)`."""
    used = combinations.phrase[line] >= 0
    return unit_rows((combinations.weight[line, used] @ space.unit(combinations.phrase[line, used]))[None])


_SCORES = (
    "score",
    "auroc",
    "balanced_accuracy",
    "ablation_z",
    "ablation_percentile",
    "control_z",
    "sufficiency_z",
    "p_value",
)


@dataclass(frozen=True)
class _Images:
    """Unit embeddings of the images of one feature, `(k, e)` each: on which it fires, on which it does not."""

    naming: Floats
    naming_others: Floats
    scoring: Floats
    scoring_others: Floats
    generator: np.random.Generator


def _images(setting: NamingSetting, measured: Measured, line: int) -> _Images:
    rows, embeddings, is_naming = measured.rows[line], setting.pool_embeddings, setting.pool_is_naming
    is_known = ~np.isnan(embeddings[:, 0]) & ~rows.in_pool
    return _Images(
        setting.pictures.embeddings(rows.naming),
        embeddings[is_known & is_naming],
        setting.pictures.embeddings(rows.scoring),
        embeddings[is_known & ~is_naming],
        np.random.default_rng([setting.options.seed, 17, int(measured.features[line])]),
    )


def _naming_scores(texts: Floats, images: _Images, effect: Floats, space: TextSpace) -> Doubles:
    """How well each candidate describes a feature by the images that it is named by, `(c,)`."""
    others = negatives(texts @ images.naming_others.T, images.generator)
    area = auroc(texts @ images.naming.T, others.all)
    return combined_score(area, effect_scores(effect[None], texts[None], space.random).percentile[0])


def _scores(text: Floats, images: _Images, effects: Effects, line: int, space: TextSpace) -> dict[str, float]:
    """The scores of a name `(1, e)` on the scoring side."""
    firing, others = text @ images.scoring.T, negatives(text @ images.scoring_others.T, images.generator)
    naming_others = negatives(text @ images.naming_others.T, images.generator)
    threshold = best_thresholds(text @ images.naming.T, naming_others.all)
    area = auroc(firing, others.all)
    ablation, control, added = (
        effect_scores(getattr(effects, name)[line : line + 1], text, space.random)
        for name in ("scoring", "control", "added")
    )
    return {
        "score": float(combined_score(area, ablation.percentile)[0]),
        "auroc": float(area[0]),
        "balanced_accuracy": float(balanced_accuracy(firing, others.all, threshold)[0]),
        "ablation_z": float(ablation.z[0]),
        "ablation_percentile": float(ablation.percentile[0]),
        "control_z": float(control.z[0]),
        "sufficiency_z": float(added.z[0]),
        "p_value": float(rank_sum_p_values(firing, others.random)[0]),
    }

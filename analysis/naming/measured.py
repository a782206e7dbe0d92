"""Directions of a run's features by each method, and what features change in the embeddings of images.

Shapes: n features, e the length of an embedding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...progress import Task
from .directions import data_directions, dncbm_directions, lens_directions, post_directions
from .effects import Changes, mean_effects
from .setting import NamingSetting
from .split import FeatureRows

_ADDED_TO = 50

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Effects:
    """Mean changes of unit image embeddings, `(n, e)` each; NaN of a feature without the rows for it.

    Parameters
    ----------
    naming, scoring
        e(x) - e(x without the feature), over its rows of either side.
    control
        Over its scoring rows, another random feature's decoder vector being taken away in its place, as long a change.
    added
        e(x with the feature) - e(x), over random images of the scoring side on which it does not fire, the feature
        being added at the mean activation of its naming rows.
    """

    naming: Floats
    scoring: Floats
    control: Floats
    added: Floats


def directions_of(setting: NamingSetting, method: str, features: Ints, rows: Sequence[FeatureRows]) -> Floats:
    """Each feature's direction in CLIP's space, `(n, e)` of any length; NaN of one without rows to go by.

    On the images where a feature is largest its part is most of what the last layer norm sees, and taking it out makes
    that amplify all the rest: `causal` is the concept less that. Adding the feature to other images, `added`, has no
    such trouble. The part of `causal` along the image's own embedding is kept, being the concept's where an image shows
    one thing.

    Parameters
    ----------
    method
        A word of `options.METHODS`.
    rows
        `(n,)`: as `NamingSetting.rows_of` gives them.
    """
    tower, sae, site, target = setting.tower, setting.sae, setting.site, setting.target
    if method == "causal":
        return _effects(setting, [_ablated(features, rows, naming=True)], len(features), None, renormalised=False)[0]
    if method == "added":
        return -_effects(setting, [_added(setting, features, rows, naming=True)], len(features), None)[0]
    if method == "lens":
        strengths = np.array([each.naming_values.mean() if len(each.naming) else np.nan for each in rows], np.float32)
        return lens_directions(tower, sae, site, features, strengths, setting.mean_stream, target=target)
    if method == "data":
        indptr = np.cumsum([0, *(len(each.naming) for each in rows)])
        every = np.concatenate([each.naming for each in rows])
        unique, place = np.unique(every, return_inverse=True)
        values = np.concatenate([each.naming_values for each in rows])
        return data_directions(setting.pictures.embeddings(unique), setting.mean_embedding, indptr, place, values)
    find = {"post": post_directions, "dncbm": dncbm_directions}[method]
    return find(tower, sae, site, features, target=target)


def measured_effects(
    setting: NamingSetting, features: Ints, rows: Sequence[FeatureRows], *, task: Task | None = None
) -> Effects:
    """Effects of features, in one pass over the images.

    Parameters
    ----------
    task
        Told of features as their changes are done.
    """
    others, factors = setting.controls
    parts = [
        _ablated(features, rows, naming=True),
        _ablated(features, rows, naming=False),
        _ablated(others[features], rows, naming=False, times=factors[features]),
        _added(setting, features, rows, naming=False),
    ]
    naming, scoring, control, minus_added = _effects(setting, parts, len(features), task)
    return Effects(naming, scoring, control, -minus_added)


def _effects(
    setting: NamingSetting, parts: list[Changes], n: int, task: Task | None, *, renormalised: bool = True
) -> list[Floats]:
    """`(n, e)` of each of some sets of changes; an image of several is run once."""
    joined = Changes(
        np.concatenate([each.line + n * number for number, each in enumerate(parts)]),
        *(np.concatenate([getattr(each, name) for each in parts]) for name in ("feature", "row", "activation")),
    )
    found = mean_effects(
        setting.tower,
        setting.sae,
        setting.site,
        setting.pictures,
        joined,
        "ablate",
        n=n * len(parts),
        target=setting.target,
        stored=setting.pictures.stored,
        renormalised=renormalised,
        task=None if task is None else _Shares(task, n, len(joined.row)),
    )
    return np.split(found, len(parts))


class _Shares:
    """Tells a task that counts features of changes, as even shares of them."""

    def __init__(self, task: Task, n_features: int, n_changes: int) -> None:
        self._task, self._n_features, self._n_changes = task, n_features, n_changes
        self._changes = self._told = 0

    def advance(self, n: int = 1, **fields: object) -> None:
        """Count changes."""
        self._changes += n
        told = self._changes * self._n_features // self._n_changes
        self._task.advance(told - self._told, **fields)
        self._told = told

    def show_rows(self, rows: Sequence[Mapping[str, object]]) -> None:
        """Show a table."""
        self._task.show_rows(rows)


def _ablated(
    taken: Ints, rows: Sequence[FeatureRows], *, naming: bool, times: NDArray[np.floating] | None = None
) -> Changes:
    """Features taken from each one's rows of a side, by its activations there, or some times that."""
    counts = [len(each.naming if naming else each.scoring) for each in rows]
    amounts = np.concatenate([each.naming_values if naming else each.scoring_values for each in rows])
    return Changes(
        np.repeat(np.arange(len(rows)), counts),
        np.repeat(taken, counts),
        np.concatenate([each.naming if naming else each.scoring for each in rows]),
        amounts if times is None else (amounts * np.repeat(times, counts)).astype(np.float32),
    )


def _added(setting: NamingSetting, features: Ints, rows: Sequence[FeatureRows], *, naming: bool) -> Changes:
    """Each feature added, as a negative ablation, to random rows of a side that it does not fire on."""
    lines, places, amounts = [], [], []
    for line, (feature, each) in enumerate(zip(features.tolist(), rows, strict=True)):
        free = setting.pool[~each.in_pool & (setting.pool_is_naming == naming)]
        if not len(each.naming) or not len(free):
            continue
        generator = np.random.default_rng([setting.options.seed, 11, feature, naming])
        chosen = generator.choice(free, min(_ADDED_TO, len(free)), replace=False)
        lines.append(np.full(len(chosen), line))
        places.append(chosen)
        amounts.append(np.full(len(chosen), -each.naming_values.mean(), np.float32))
    if not lines:
        nothing = np.zeros(0, np.int64)
        return Changes(nothing, nothing, nothing, np.zeros(0, np.float32))
    of_line = np.concatenate(lines)
    return Changes(of_line, features[of_line], np.concatenate(places), np.concatenate(amounts))

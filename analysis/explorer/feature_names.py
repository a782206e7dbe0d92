"""What features are called: by people, whose names are kept apart, before `names.tsv`."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..naming.names_file import NAMED, Name
from .annotations import Annotation, Annotations

Said = Mapping[int, Annotation]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ShownNames:
    """The names of a moment: what a page that shows many asks once."""

    lines: Mapping[int, Name]
    """Of names.tsv, named or not."""
    said: Said

    def of(self, feature: int) -> str:
        """What a feature is called; empty for nothing."""
        return self.own(feature) or self.automatic(feature)

    def own(self, feature: int) -> str:
        """What a person called it."""
        said = self.said.get(feature)
        return "" if said is None else said.name

    def automatic(self, feature: int) -> str:
        """What `names.tsv` calls it; empty where it is unnamed or untested there."""
        line = self.lines.get(feature)
        return line.name if line is not None and line.status == NAMED else ""


@dataclass(frozen=True, eq=False)
class NameColumns:
    """The names of a moment as columns, each `(d_sae,)`."""

    said: Said
    names: Mapping[int, str]
    is_named: Bools
    is_own: Bools
    """By a person."""
    score: Floats
    """Of the automatic name; NaN where there is none, or a person's stands in its place."""
    orders: dict[tuple[str, bool], NDArray[np.int64]] = field(default_factory=dict)

    @cached_property
    def texts(self) -> list[str]:
        """The names in lower case."""
        return [name.lower() for name in self.names.values()]

    @cached_property
    def places(self) -> Floats:
        """The place of each name among all of them, equal for equal ones; NaN without one."""
        found = np.full(len(self.is_named), np.nan)
        if self.texts:
            _, place = np.unique(np.array(self.texts), return_inverse=True)
            found[self._ids] = place
        return found

    def containing(self, word: str) -> Bools:
        """Where a word, in lower case, is within the name."""
        found = np.zeros(len(self.is_named), bool)
        found[self._ids] = np.fromiter((word in text for text in self.texts), bool, len(self.texts))
        return found

    def order(self, sort: str, is_falling: bool) -> NDArray[np.int64]:
        """All features by `name` or `name_score`; those without last in both directions, equals by rising number."""
        found = self.orders.get((sort, is_falling))
        if found is None:
            key = self.places if sort == "name" else self.score
            found = self.orders[sort, is_falling] = np.argsort(-key if is_falling else key, kind="stable")
        return found

    @cached_property
    def _ids(self) -> NDArray[np.int64]:
        return np.fromiter(self.names, np.int64, len(self.names))


class FeatureNames:
    """The names of a run's features; every method may be called from several threads.

    Parameters
    ----------
    lines
        Of names.tsv, by feature.
    annotations
        Where people's names are.
    """

    def __init__(self, lines: Mapping[int, Name], annotations: Annotations, d_sae: int) -> None:
        self.lines = lines
        self._annotations = annotations
        self._lock = threading.Lock()
        is_named, score = np.zeros(d_sae, bool), np.full(d_sae, np.nan)
        named = {feature: line for feature, line in lines.items() if line.status == NAMED}
        ids = np.fromiter(named, np.int64, len(named))
        is_named[ids] = True
        score[ids] = [np.nan if line.score is None else line.score for line in named.values()]
        names = {feature: line.name for feature, line in named.items()}
        self._automatic = NameColumns({}, names, is_named, np.zeros(d_sae, bool), score)
        self._columns = self._automatic

    def now(self) -> ShownNames:
        """What features are called at this moment."""
        return ShownNames(self.lines, self._annotations.features)

    def columns(self, said: Said) -> NameColumns:
        """The same as columns, with what is said given: made again when that has changed."""
        with self._lock:
            if self._columns.said is not said:
                self._columns = self._with(said)
            return self._columns

    @property
    def are_any(self) -> bool:
        """Whether any feature has a name, or was looked at for one."""
        return bool(self.lines) or bool(self.columns(self._annotations.features).names)

    def _with(self, said: Said) -> NameColumns:
        base, d_sae = self._automatic, len(self._automatic.is_named)
        own = {feature: each.name for feature, each in said.items() if each.name and feature < d_sae}
        ids = np.fromiter(own, np.int64, len(own))
        is_named, is_own, score = base.is_named.copy(), np.zeros(d_sae, bool), base.score.copy()
        is_named[ids] = is_own[ids] = True
        score[ids] = np.nan
        return NameColumns(said, {**base.names, **own}, is_named, is_own, score)

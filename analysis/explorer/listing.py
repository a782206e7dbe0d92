"""The features of a run as one table in memory, filtered and sorted by whole columns."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...store.errors import StoreError
from ..stored_alignment import ALIGNMENT_ZARR
from .alignments import opened_alignment
from .feature_names import Said
from .page import BadQuery
from .top_labels import top_labels
from .visualised import visualised

if TYPE_CHECKING:
    from .runs import ExploredRun

DENSE = 0.1
"""Density above which a feature is called dense: it fires on more than one row in ten."""
POST_LOG_DENSITY, POST_LOG_MEAN_TOP = -4.0, -0.7
"""The post looks at features above both of these, with a label entropy."""
SETS = ("shown", "post", "dense", "uld", "dead", "all")
NAMED = ("0", "1", "unnamed", "own")
"""Any, named, without a name, named by a person."""
VERDICTS = ("", "passed", "failed")
ORDERS = ("asc", "desc")
BY_NAMES = ("name", "name_score")
"""What lists are sorted by that changes when a person names a feature."""
_KEPT_SELECTIONS = 64

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Ranked = Callable[["ExploredRun", str], tuple[Ints, NDArray[Any]]]


@dataclass(frozen=True)
class Range:
    """From one number to another, both within; None is open."""

    low: float | None = None
    high: float | None = None

    def holds(self, values: Floats) -> Bools:
        """Where values lie within; NaN never does."""
        kept = ~np.isnan(values)
        if self.low is not None:
            kept &= values >= self.low
        if self.high is not None:
            kept &= values <= self.high
        return kept


@dataclass(frozen=True)
class Filters:
    """Which features are listed, and in what order; hashable."""

    words: tuple[str, ...] = ()
    """In lower case; each is a feature's number, or within its name, its top label's name or one of its tags."""
    phrase: str = ""
    """What features are ranked by with the text tower; empty ranks by no phrase."""
    d: Range | None = None
    """Of log10 density."""
    m: Range | None = None
    """Of log10 mean top activation."""
    e: Range | None = None
    """Of label entropy, in nats."""
    label: int | None = None
    """The top label."""
    agreement: Range | None = None
    """Of the percentile."""
    name_score: Range | None = None
    tag: str = ""
    named: str = "0"
    """One of `NAMED`."""
    verdict: str = ""
    """On the picture, one of `VERDICTS`; empty for any and for none."""
    set: str = "shown"
    ids: tuple[int, ...] = ()
    """Of these alone, in this order where `sort` is `given`; empty for all."""
    sort: str = "id"
    """One of `Listing.sorts`, or `given` or `score`."""
    is_falling: bool = False


@dataclass(frozen=True)
class Selection:
    """Features in order."""

    ids: Ints
    scores: Mapping[int, float]
    """Of the phrase, where there is one."""


class Listing:
    """The columns of a run's features, each `(d_sae,)`, made once; every method may be called from several threads."""

    def __init__(self, run: "ExploredRun") -> None:
        self._run = run
        self._lock = threading.Lock()
        self._orders: dict[tuple[str, bool], Ints] = {}
        self._selections: OrderedDict[Filters, tuple[object, object, Selection]] = OrderedDict()
        self.log_density, self.log_mean_top, self.entropy = run.points.astype(np.float64)
        self.mean_top: Floats = run.stored.statistics.mean_top.astype(np.float64)
        self.max: Floats = run.stored.statistics.max.astype(np.float64)
        found = top_labels(run)
        self.top_label, self.top_share = found.label, found.share
        self.is_of_all_firings = found.is_of_all_firings
        """Whether top labels are over all firings of a feature; else over its top rows."""

    @cached_property
    def monosemanticity(self) -> Floats | None:
        """Where stored."""
        return self._run.array("monosemanticity").astype(np.float64) if self._run.has("monosemanticity") else None

    @cached_property
    def cosine(self) -> Floats | None:
        """Largest cosine of each encoder direction with a neuron's output vector; None where not aligned.

        Of attention, whose directions have no sign, the largest absolute one.
        """
        if not (self._run.path / ALIGNMENT_ZARR).exists():
            return None
        try:
            alignment = opened_alignment(self._run.path)
            found = alignment.read("encoder/max_cosine").astype(np.float64)
            if np.isnan(found).all():
                found = alignment.read("encoder/max_abs_cosine").astype(np.float64)
        except (StoreError, KeyError, ValueError) as error:
            self._say(f"The alignment of this run cannot be read ({error}).")
            return None
        if found.shape != self.entropy.shape:
            self._say("The alignment of this run is of another SAE: run `thresher align --overwrite`.")
            return None
        return found

    @cached_property
    def agreement(self) -> Floats | None:
        """Percentile by which a feature's picture, top images and name agree; None where not stored."""
        return self._run.array("agreement").astype(np.float64) if self._run.has("agreement") else None

    @property
    def verdicts(self) -> Floats | None:
        """Of the pictures, 1 passed, 0 failed, NaN none; None where none was checked."""
        found = visualised(self._run)
        return found.verdicts if found.checked else None

    @property
    def sorts(self) -> tuple[str, ...]:
        """What the table can be sorted by, but for phrases and lists."""
        return (*self.keys, *BY_NAMES, *(("verdict",) if self.verdicts is not None else ()))

    @cached_property
    def keys(self) -> dict[str, Any]:
        """What it can be sorted by that does not change: numbers, or words of which empty ones come last."""
        n = self._run.d_sae
        label_names = np.array(
            [self._label_text(label) for label in range(-1, int(self.top_label.max(initial=-1)) + 1)]
        )
        keys: dict[str, Any] = {
            "id": np.arange(n),
            "label": _places(label_names)[self.top_label + 1],
            "density": self.log_density,
            "mean_top": self.mean_top,
            "max": self.max,
            "entropy": self.entropy,
        }
        more = {"monosemanticity": self.monosemanticity, "cosine": self.cosine, "agreement": self.agreement}
        return keys | {name: values for name, values in more.items() if values is not None}

    def of_set(self, name: str) -> Bools:
        """Whether each feature is in one of `SETS`."""
        return self._sets[name]

    @cached_property
    def n_of_set(self) -> dict[str, int]:
        """How many features each of `SETS` has."""
        return {name: int(found.sum()) for name, found in self._sets.items()}

    def order(self, sort: str, is_falling: bool) -> Ints:
        """All features by one of `sorts`; NaN last in both directions, equals by rising number."""
        if sort in BY_NAMES:
            return self._run.names.columns(self._run.annotations.features).order(sort, is_falling)
        if sort == "verdict":
            return _ordered(visualised(self._run).verdicts, is_falling)
        found = self._orders.get((sort, is_falling))
        if found is None:
            found = self._orders[sort, is_falling] = _ordered(np.asarray(self.keys[sort], np.float64), is_falling)
        return found

    def select(self, filters: Filters, rank: Ranked | None = None) -> Selection:
        """The features that pass, in order.

        Parameters
        ----------
        rank
            Gives features and their scores for a phrase, best first.

        Raises
        ------
        BadQuery
            When it is sorted by a column that this run does not have.
        """
        said, verdicts = self._run.annotations.features, visualised(self._run).verdicts
        with self._lock:
            known = self._selections.get(filters)
            if known is not None and known[0] is said and known[1] is verdicts:
                self._selections.move_to_end(filters)
                return known[2]
        found = self._select(filters, said, rank)
        with self._lock:
            self._selections[filters] = said, verdicts, found
            if len(self._selections) > _KEPT_SELECTIONS:
                self._selections.popitem(last=False)
        return found

    def _select(self, filters: Filters, said: Said, rank: Ranked | None) -> Selection:
        sorts, names = self.sorts, self._run.names.columns(said)
        if filters.sort not in (*sorts, "given", "score"):
            raise BadQuery(f"this run cannot be sorted by {filters.sort[:40]!r}; by {', '.join(sorts)}.")
        kept = self.of_set(filters.set).copy()
        for range_, values in (
            (filters.d, self.log_density),
            (filters.m, self.log_mean_top),
            (filters.e, self.entropy),
            (filters.agreement, self.agreement),
            (filters.name_score, names.score),
        ):
            if range_ is not None:
                kept &= False if values is None else range_.holds(values)
        if filters.label is not None:
            kept &= self.top_label == filters.label
        if filters.named != "0":
            kept &= {"1": names.is_named, "unnamed": ~names.is_named, "own": names.is_own}[filters.named]
        if filters.verdict:
            kept &= visualised(self._run).verdicts == (filters.verdict == "passed")
        if filters.tag:
            kept &= self._among(feature for feature, each in said.items() if filters.tag in each.tags)
        for word in filters.words:
            kept &= self._matching(word, said) | names.containing(word)
        given = [feature for feature in dict.fromkeys(filters.ids) if feature < len(kept)]
        if filters.ids:
            kept &= self._among(given)
        ranked: Ints = np.zeros(0, np.int64)
        scores: NDArray[Any] = np.zeros(0)
        if filters.phrase and rank is not None:
            ranked, scores = rank(self._run, filters.phrase)
            kept &= self._among(ranked)
        order = self.order("id", False)
        if filters.sort in sorts:
            order = self.order(filters.sort, filters.is_falling)
        elif filters.sort == "given" and filters.ids:
            order = np.array(given[::-1] if filters.is_falling else given, np.int64)
        elif filters.sort == "score" and filters.phrase:
            order = ranked.astype(np.int64)[:: 1 if filters.is_falling else -1]
        ids = order[kept[order]]
        return Selection(ids, dict(zip(ranked.tolist(), scores.tolist(), strict=True)))

    @cached_property
    def _sets(self) -> dict[str, Bools]:
        run = self._run
        with np.errstate(invalid="ignore"):
            post = (self.log_density > POST_LOG_DENSITY) & (self.log_mean_top > POST_LOG_MEAN_TOP)
        shown = np.zeros(run.d_sae, bool)
        shown[run.shown] = True
        return {
            "shown": shown,
            "post": post & ~np.isnan(self.entropy),
            "dense": run.density > DENSE,
            "uld": run.is_uld.copy(),
            "dead": run.is_dead,
            "all": np.ones(run.d_sae, bool),
        }

    def _among(self, features: Any) -> Bools:
        """`(d_sae,)` whether each feature is one of some, all of which are features of this run or beyond it."""
        found = np.zeros(self._run.d_sae, bool)
        ids = np.fromiter(features, np.int64)
        found[ids[ids < len(found)]] = True
        return found

    def _matching(self, word: str, said: Said) -> Bools:
        """Where a word is the feature's number, or within its top label or a tag."""
        labels = np.fromiter((word in text for text in self._label_texts), bool, len(self._label_texts))
        kept: Bools = labels[self.top_label + 1]
        kept |= self._among(feature for feature, each in said.items() if any(word in tag for tag in each.tags))
        if word.isascii() and word.isdigit() and len(word) <= 9 and int(word) < len(kept):
            kept[int(word)] = True
        return kept

    @cached_property
    def _label_texts(self) -> list[str]:
        """Names of labels in lower case; that of label i at i + 1, for none the first."""
        return [self._label_text(label) for label in range(-1, int(self.top_label.max(initial=-1)) + 1)]

    def _label_text(self, label: int) -> str:
        return "" if label < 0 else self._run.label_name(label).lower()

    def _say(self, line: str) -> None:
        if line not in self._run.notes:
            self._run.notes.append(line)


def _ordered(key: Floats, is_falling: bool) -> Ints:
    """Places by a key, NaN last in both directions, equals by rising number."""
    return np.argsort(-key if is_falling else key, kind="stable")


def _places(texts: NDArray[Any]) -> Floats:
    """The place of each text in their order; equal for equal ones, NaN for an empty one."""
    _, place = np.unique(texts, return_inverse=True)
    return np.where(texts == "", np.nan, place.astype(np.float64))

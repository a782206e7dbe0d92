"""Rounds of the game: which image is to be guessed, among which others, by which features.

A round follows from the run, a seed and a number alone, so that the same address is the same round for everybody. The
run enters through the whole digests of its SAE and its store, of which pages show only the beginning: who has no more
than the pages cannot compute where the answer stands.

Rows are sought among at most `MOST_ROWS` of the run, in memory: blocks that lie evenly over it. The images to be
guessed are held-out ones where there are `ENOUGH`. Of the three others one is the nearest to the target by the cosine
of their codes, another the nearest to the target or to that first one, as a coin falls. The third is of the label that
prevails among the strongest pictures of the target's first feature or, without labels, has a first feature with a label
entropy (a density, where there is none) like that one's.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from ...store.shuffle import Permutation
from .page import Unavailable
from .runs import ExploredRun

CLUES = 5
"""Features of a round whose pictures are shown."""
CHOICES = 4
PICTURES = 16
"""Of a feature: the post's four by four."""
MOST_DENSITY = 0.1
"""Features that fire on more rows tell little of an image."""
ENOUGH = 100
"""Held-out images that make rounds enough without the training images."""
MOST_ROWS = 16_384
_MOST_ENTRIES = 2 << 20  # 24 MB
_BLOCKS = 16
_TRIES = 32
_SAME = 0.85
"""Codes nearer than this show one thing twice, as an emoji in two styles: between them no guess is fair."""
_ENTROPY_BAND_NATS = 0.25
_DENSITY_BAND = 0.25  # in decades
_ROUNDS_KEPT = 256


@dataclass(frozen=True)
class Round:
    """One round."""

    row: int
    """Of the image to be guessed."""
    label: int
    """-1 for none."""
    features: NDArray[np.int64]
    """All that fire on it, ascending."""
    values: NDArray[np.float32]
    clues: tuple[int, ...]
    """The strongest features that have pictures to show, by falling activation."""


@dataclass(frozen=True)
class Choices:
    """The pictures among which a round's image is to be found."""

    rows: tuple[int, ...]
    place: int
    """Of the round's image in `rows`."""
    is_hard: bool
    """Whether each of the others was chosen for its likeness; drawn at random where a run has no such image."""
    cosines: tuple[float, ...]
    """Of the codes of `rows` and that of the round's image."""


@dataclass(frozen=True)
class Picture:
    """A picture of a feature: `row` where it fires, and how strongly."""

    row: int
    value: float


class Codes:
    """Codes of some rows, in memory.

    Parameters
    ----------
    run
        A run with feature activations.
    split
        `heldout` or `all`: whose rows are taken.
    """

    def __init__(self, run: ExploredRun, split: str) -> None:
        features = run.require_features()
        self.d_sae = run.d_sae
        first, stop = features.row_range(split)
        mean_l0 = (run.row_starts[stop] - run.row_starts[first]) / (stop - first)
        n = max(1, min(MOST_ROWS, stop - first, int(_MOST_ENTRIES / max(1.0, mean_l0))))
        n_blocks = 1 if n == stop - first else min(_BLOCKS, n)
        starts = first + np.arange(n_blocks) * ((stop - first) // n_blocks)
        found = [b for start in starts.tolist() for b in features.blocks(start, start + n // n_blocks, split=split)]
        self.rows = np.concatenate([block.start + np.flatnonzero(block.valid) for block in found])
        self.label = np.concatenate([block.labels[block.valid] for block in found])
        self.counts = np.concatenate([np.diff(block.indptr)[block.valid] for block in found])
        self.indptr = np.concatenate(([0], np.cumsum(self.counts)))
        self.index = np.concatenate([block.index for block in found]).astype(np.int32)
        self.value = np.concatenate([block.value for block in found])
        self._place = np.repeat(np.arange(len(self.rows), dtype=np.int32), self.counts)
        self.norms = np.sqrt(np.bincount(self._place, self.value.astype(np.float64) ** 2, len(self.rows)))

    def code(self, at: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Features > 0 of the row at a place, ascending, and their values."""
        entries = slice(self.indptr[at], self.indptr[at + 1])
        return self.index[entries].astype(np.int64), self.value[entries]

    def n_among(self, is_one: NDArray[np.bool_]) -> NDArray[np.int64]:
        """How many features of each row are among some."""
        return np.bincount(self._place, is_one[self.index], len(self.rows)).astype(np.int64)

    def cosines(self, features: NDArray[np.int64], values: NDArray[np.float32]) -> NDArray[np.float64]:
        """Of each row's code and another."""
        weight = np.zeros(self.d_sae)
        weight[features] = values
        hits = np.flatnonzero(weight[self.index])
        dots = np.bincount(self._place[hits], self.value[hits] * weight[self.index[hits]], len(self.rows))
        norm = np.linalg.norm(values.astype(np.float64))
        return dots / np.maximum(self.norms * norm, np.finfo(np.float64).tiny)

    def strongest(self, is_one: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Of each row the feature with the largest value among some, -1 where it has none of them."""
        found = np.full(len(self.rows), -1, np.int64)
        entries = np.flatnonzero(is_one[self.index])
        order = entries[np.argsort(self.value[entries], kind="stable")]
        found[self._place[order]] = self.index[order]  # of several assignments the last, so the largest, stands
        return found


class Game:
    """The game of one run; its methods may be called from several threads.

    Raises
    ------
    Unavailable
        When the run has no codes, no thumbnails, or too few images and features to play with.
    """

    def __init__(self, run: ExploredRun) -> None:
        run.require_features()
        run.require_store()
        self._run = run
        of = f"{run.summary['sae_sha256']} {run.summary['store_fingerprint']} {run.summary['site']}"
        self.identity = hashlib.sha256(of.encode()).hexdigest()
        """Of SAE, store and site, as hexadecimal digits."""
        self._key = int(self.identity[:32], 16)
        filled = run.stored.statistics.n_pos
        self.is_clue = ~run.is_uld & ~run.is_dead & (run.density <= MOST_DENSITY) & (filled >= 2 * CHOICES)
        self.codes = Codes(run, "all")
        self.targets = self._targets()
        self._lock = threading.Lock()
        self._choices: OrderedDict[tuple[int, int], Choices] = OrderedDict()

    @property
    def n_rounds(self) -> int:
        """Rounds of one seed before an image comes again."""
        return len(self.targets[1])

    def round(self, seed: int, n: int) -> Round:
        """One round, without its choices."""
        codes, places = self.targets
        order = Permutation(len(places), self._key, seed)
        for attempt in range(min(_TRIES, len(places))):
            place = places[order(np.array([(n + attempt * (len(places) // _TRIES + 1)) % len(places)]))[0]]
            row = int(codes.rows[place])
            if self._run.thumbnail(row) is not None:
                features, values = codes.code(int(place))
                mine = np.flatnonzero(self.is_clue[features])
                strongest = mine[np.argsort(-values[mine], kind="stable")][:CLUES]
                clues = tuple(features[strongest].tolist())
                return Round(row, int(codes.label[place]), features, values, clues)
        raise Unavailable("The game shows images, and the store holds no thumbnails: harvest with --thumbnails.")

    def choices(self, seed: int, n: int) -> Choices:
        """The pictures of a round; those of the last rounds are remembered."""
        with self._lock:
            found = self._choices.get((seed, n))
        if found is None:
            found = self._choose(self.round(seed, n), seed, n)
            with self._lock:
                self._choices[seed, n] = found
                while len(self._choices) > _ROUNDS_KEPT:
                    self._choices.popitem(last=False)
        return found

    def pictures(self, seed: int, n: int, clue: int) -> list[Picture]:
        """Pictures of a round's feature, strongest first: none of the choices', none twice.

        Pictures are told apart by the bytes of their thumbnails, which rows of one image share, and copies of it. The
        other choices are left out as well: a picture that is shown here would be known not to be the answer.
        """
        feature = self.round(seed, n).clues[clue]
        seen = {self._run.thumbnail(row) for row in self.choices(seed, n).rows}
        found: list[Picture] = []
        statistics = self._run.stored.statistics
        for row, value in zip(statistics.top_row[feature].tolist(), statistics.top_value[feature], strict=True):
            thumbnail = self._run.thumbnail(row) if row >= 0 else None
            if thumbnail is not None and thumbnail not in seen:
                seen.add(thumbnail)
                found.append(Picture(row, float(value)))
                if len(found) == PICTURES:
                    break
        return found

    def _targets(self) -> tuple[Codes, NDArray[np.int64]]:
        """Codes, and the places in them of rows that may be guessed: held-out ones where there are enough."""
        if self._run.require_features().info.n_held_out >= ENOUGH:
            held_out = Codes(self._run, "heldout")
            places = self._with_clues(held_out)
            if len(places) >= ENOUGH:
                return held_out, places
        places = self._with_clues(self.codes)
        if len(places) < CHOICES:
            raise Unavailable(
                f"The game wants {CHOICES} images on which at least {CLUES} features fire that have pictures of their "
                f"own; this run has {len(places)} among the {len(self.codes.rows):,} rows that were looked at."
            )
        return self.codes, places

    def _with_clues(self, codes: Codes) -> NDArray[np.int64]:
        return np.flatnonzero(codes.n_among(self.is_clue) >= CLUES)

    def _choose(self, target: Round, seed: int, n: int) -> Choices:
        draws = _draws(self._key, seed, n)
        codes = self.codes
        cosines = codes.cosines(target.features, target.values)
        seen = {self._run.thumbnail(target.row)}
        others: list[int] = []

        def take(candidates: NDArray[np.int64], most: int) -> None:
            """Add rows at the first places, of those whose pictures differ from all so far, until there are `most`."""
            for place in candidates[: _TRIES + most].tolist():
                if len(others) >= most:
                    return
                thumbnail = self._run.thumbnail(int(codes.rows[place]))
                if cosines[place] < _SAME and thumbnail is not None and thumbnail not in seen:
                    seen.add(thumbnail)
                    others.append(place)

        nearest = self._nearest(cosines)
        take(nearest, 1)
        if others and next(draws) % 2:  # else the answer would be in the middle of the four, and found without a clue
            features, values = codes.code(others[0])
            take(self._nearest(codes.cosines(features, values)), 2)
        take(nearest, 2)
        alike = self._like_first_clue(target)
        take(_shuffled(alike, draws), len(others) + 1)
        is_hard = len(others) == CHOICES - 1
        take(nearest, CHOICES - 1)
        take(_shuffled(np.arange(len(codes.rows)), draws), CHOICES - 1)
        if len(others) < CHOICES - 1:
            raise Unavailable(f"The game wants {CHOICES} different pictures; this run shows too few.")
        order = _shuffled(np.arange(CHOICES), draws)
        rows = np.array([target.row, *codes.rows[others].tolist()])[order]
        near_to = np.array([1.0, *cosines[others].tolist()])[order]
        place = int(np.flatnonzero(order == 0)[0])
        return Choices(tuple(rows.tolist()), place, is_hard, tuple(near_to.tolist()))

    def _nearest(self, cosines: NDArray[np.float64]) -> NDArray[np.int64]:
        """Places by falling cosine, of those that are alike and not the same."""
        near = np.flatnonzero((cosines > 0) & (cosines < _SAME))
        return near[np.lexsort((self.codes.rows[near], -cosines[near]))[: 4 * _TRIES]]

    def _like_first_clue(self, target: Round) -> NDArray[np.int64]:
        """Places of rows that are like what the target's first feature shows."""
        clue, statistics = target.clues[0], self._run.stored.statistics
        labels = statistics.top_label[clue]
        labels = labels[(labels >= 0) & (statistics.top_row[clue] >= 0)]
        if labels.size:
            names, counts = np.unique(labels, return_counts=True)
            return np.flatnonzero(self.codes.label == names[np.argmax(counts)])
        entropy, density = statistics.label_entropy, np.log10(np.maximum(self._run.density, 1e-12))
        if np.isfinite(entropy[clue]):
            is_like = np.abs(entropy - entropy[clue]) <= _ENTROPY_BAND_NATS
        else:
            is_like = np.abs(density - density[clue]) <= _DENSITY_BAND
        first = self._first_clues
        return np.flatnonzero((first >= 0) & is_like[first])

    @cached_property
    def _first_clues(self) -> NDArray[np.int64]:
        return self.codes.strongest(self.is_clue)


_games: WeakKeyDictionary[ExploredRun, Game] = WeakKeyDictionary()
_making = threading.Lock()


def game_of(run: ExploredRun) -> Game:
    """The game of a run, made once; `Unavailable` says why there is none."""
    with _making:
        if run not in _games:
            _games[run] = Game(run)
        return _games[run]


def _draws(*key: int) -> Iterator[int]:
    """Numbers below 2^64 that follow from a key; by `SeedSequence`, whose algorithm is fixed."""
    part = 0
    while True:
        yield from np.random.SeedSequence((*key, part)).generate_state(16, np.uint64).tolist()
        part += 1


def _shuffled(values: NDArray[np.int64], draws: Iterator[int]) -> NDArray[np.int64]:
    """Values in random order: all of them up to some hundreds, of more as many as are ever tried."""
    if len(values) > 8 * _TRIES:
        order = Permutation(len(values), next(draws))
        return values[order(np.arange(2 * _TRIES))]
    left: list[int] = values.tolist()
    for last in range(len(left) - 1, 0, -1):  # Fisher and Yates
        other = next(draws) % (last + 1)
        left[last], left[other] = left[other], left[last]
    return np.array(left, np.int64)

"""How often names are right, where it is known what the images show: each method of naming beside chance.

The vocabulary is the values of a table of attributes, so that for every row and phrase the truth is known. The rows are
split as for naming, all rows of a group (such as the drawings of one emoji) on one side. On the naming side a feature
is found that knows some phrase (F1 of at least 0.5 at its best threshold); it is named there by each method; on the
scoring side its name is right when no other phrase has a larger F1 at the thresholds of the naming side, nearly right
when it has at least 0.8 of the largest.

Shapes: n features that know a phrase, A phrases, m rows whose truth is known, N rows of the store.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...progress import Reporter
from ...store.errors import StoreError
from ...store.files import FolderLock
from ...store.reader import open_store
from ..attribute_table import AttributeTable, lines_of_rows
from ..features import open_features
from .best_phrases import Measured, NamedFeatures, measure, name_features
from .calibration_result import Calibration, NamedBy, Reference, compare
from .calibration_thresholds import DEALT, UNTRAINED, compare_thresholds
from .known_truth import LENIENT, FeatureTruth, KnownPhrases, feature_truth, known_phrases
from .measured import directions_of
from .options import METHODS, UNCENTRED, NameOptions
from .setting import NamingSetting, open_setting
from .shares import Share, share_of
from .text_space import TextSpace, load_text_space
from .vocabulary import Source, Vocabulary

MIN_F1 = 0.5
"""On the naming side, of a feature that knows a phrase."""
_MOST_ROWS = 50_000
_PERMUTATIONS = 1000
_DEALS = 3

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


def calibrate(
    run_path: Path | str,
    table: AttributeTable,
    options: NameOptions | None = None,
    reporter: Reporter | None = None,
    *,
    untrained: Path | None = None,
    min_f1: float = MIN_F1,
) -> Calibration:
    """Measure the share of right names of each method on a run whose images have known attributes.

    Parameters
    ----------
    table
        As `attribute_table.read_table` or `emoji_table` gives it.
    options
        Of naming; its method and vocabulary are not looked at.
    untrained
        A run on a tower with random weights and the same images, to be named by the winner.
    min_f1
        On the naming side, of a feature that knows a phrase.

    Raises
    ------
    ValueError
        When the table has no phrase of enough rows, or no feature knows one.
    StoreError
        When no key of the table is in the store; and as `open_setting`.
    """
    run_path, options, reporter = Path(run_path), options or NameOptions(), reporter or Reporter()
    own = _name_run(run_path, table, options, reporter, min_f1, METHODS)
    if own is None:
        raise ValueError(
            f"no feature of {run_path} knows an attribute of {table.source} at F1 >= {min_f1:g} on the naming side and "
            f"fires on {options.fewest_rows} rows of each: there is nothing to calibrate names by."
        )
    rows, winner = compare(own.truth, own.named, options)
    of_winner = own.named[winner]
    references = [_labels(own), _shuffled(own, winner, options.seed)]
    by_chance = {DEALT: own.dealt}
    if untrained is not None:
        # a store that was moved is the run's own
        elsewhere = replace(options, store=None)
        other = _name_run(untrained, table, elsewhere, reporter, min_f1, (winner.method,), own.known.phrases)
        references.append(_untrained(other, winner))
        if other is not None:
            by_chance[UNTRAINED] = other.named[winner]
    by_kind = np.array(own.known.kinds)[own.truth.best()]
    return Calibration(
        source=table.source,
        group_column=table.group_column,
        n_rows=own.n_rows,
        n_features=len(own.features),
        n_phrases=len(own.known.phrases),
        min_f1=min_f1,
        candidates=options.candidates,
        templates=options.templates or "simple",
        fdr=options.fdr,
        seed=options.seed,
        named=rows,
        references=references,
        winner=winner,
        thresholds=compare_thresholds(own.truth, of_winner, by_chance, options),
        kinds={kind: int((by_kind == kind).sum()) for kind in sorted(set(own.known.kinds))},
        phrases=own.known.phrases,
        truth=own.truth,
        features=own.features,
        of_winner=of_winner,
        kind_of_feature=by_kind,
    )


@dataclass(frozen=True)
class _Named:
    """The features of a run that know a phrase, named."""

    features: Ints
    known: KnownPhrases
    truth: FeatureTruth
    named: dict[NamedBy, NamedFeatures]
    dealt: NamedFeatures
    """The names of the best way, each scored for another feature, `_DEALS` times over."""
    n_rows: int


def _name_run(
    run_path: Path,
    table: AttributeTable,
    options: NameOptions,
    reporter: Reporter,
    min_f1: float,
    methods: Sequence[str],
    phrases: Sequence[str] | None = None,
) -> _Named | None:
    """Name a run's features by the table's phrases, or some of them; None where no feature knows one."""
    line, groups = _lines(run_path, table, options)
    rows = np.flatnonzero(line >= 0)
    of_row = np.full(len(line), -1, np.int64)
    of_row[rows] = np.arange(len(rows))
    with closing(FolderLock(run_path)), open_setting(run_path, options, groups=groups, reporter=reporter) as setting:
        is_naming = setting.split.is_naming(rows)
        known = known_phrases([table.values[i] for i in line[rows].tolist()], is_naming)
        if phrases is not None:
            known = known.take(np.isin(known.phrases, list(phrases)))
        if not known.phrases:
            raise ValueError(f"no value in {table.source} is a phrase that is true of enough rows of both sides.")
        counts = np.diff(setting.features.feature_starts())
        chosen = np.flatnonzero(counts >= 2 * options.fewest_rows)
        reporter.say(f"{run_path}: {len(chosen):,} features held to {len(known.phrases):,} known phrases")
        truth = feature_truth(setting.features, chosen, of_row, known, is_naming)
        knows = truth.naming_f1.max(axis=1) >= min_f1
        if not knows.any():
            return None
        with reporter.task("effects of features that know one", int(knows.sum()), "features") as task:
            measured = measure(setting, chosen[knows], task)
        truth = FeatureTruth(truth.naming_f1[knows], truth.f1[knows])
        if not measured.is_tested.any():
            return None
        measured, truth = _tested(measured, truth)
        named = _by_methods(run_path, setting, known, measured, methods, reporter)
        _, winner = compare(truth, named, options)
        dealt = _dealt(run_path, setting, known, measured, named[winner], truth)
        return _Named(measured.features, known, truth, named, dealt, len(rows))


def _tested(measured: Measured, truth: FeatureTruth) -> tuple[Measured, FeatureTruth]:
    """Those features alone that fire on enough rows of both sides."""
    kept = np.flatnonzero(measured.is_tested)
    effects = replace(measured.effects, **{name: each[kept] for name, each in vars(measured.effects).items()})
    rows = tuple(measured.rows[i] for i in kept.tolist())
    return (
        Measured(measured.features[kept], rows, effects, measured.is_tested[kept]),
        FeatureTruth(truth.naming_f1[kept], truth.f1[kept]),
    )


def _by_methods(
    run_path: Path,
    setting: NamingSetting,
    known: KnownPhrases,
    measured: Measured,
    methods: Sequence[str],
    reporter: Reporter,
) -> dict[NamedBy, NamedFeatures]:
    """Names by each method, nearest and best scored, and of random directions."""
    o = setting.options
    space = _space(run_path, setting, known, o.templates or "simple")
    named: dict[NamedBy, NamedFeatures] = {}
    for method in methods:
        reporter.say(f"naming {len(measured.features):,} features: {method}")
        directions = directions_of(setting, method, measured.features, measured.rows)
        if method in UNCENTRED:
            own = _space(run_path, setting, known, o.templates or UNCENTRED[method])
            found = name_features(setting, own, measured, directions, centred=False, rescored=False)
            named[NamedBy(method, rescored=False)] = found
            continue
        for rescored in (True, False):
            named[NamedBy(method, rescored)] = name_features(setting, space, measured, directions, rescored=rescored)
    directions = np.random.default_rng([o.seed, 19]).standard_normal(measured.effects.naming.shape).astype(np.float32)
    for rescored in (True, False):
        named[NamedBy("random", rescored)] = name_features(setting, space, measured, directions, rescored=rescored)
    return named


def _space(run_path: Path, setting: NamingSetting, known: KnownPhrases, templates: str) -> TextSpace:
    vocabulary = Vocabulary(known.phrases, (Source("attributes", len(known.phrases), 0, 0, 0),))
    return load_text_space(
        run_path,
        setting.clip,
        vocabulary,
        templates=templates,
        device=setting.tower.device,
        seed=setting.options.seed,
    )


def _labels(own: _Named) -> Reference:
    """What the truth of the naming side itself names: as right as a name found there can be expected to be."""
    names = own.truth.naming_f1.argmax(axis=1)
    label = "attributes of the naming side"
    return Reference(label, share_of(own.truth.is_right(names)), share_of(own.truth.is_right(names, share=LENIENT)))


def _others(n: int, generator: np.random.Generator) -> Ints:
    """For each of n another one, no two the same."""
    order = generator.permutation(n)
    found = np.empty(n, np.int64)
    found[order] = np.roll(order, 1)
    return found


def _dealt(
    run_path: Path,
    setting: NamingSetting,
    known: KnownPhrases,
    measured: Measured,
    found: NamedFeatures,
    truth: FeatureTruth,
) -> NamedFeatures:
    """Scores of names for other features than they were found for, where they are wrong: what passes is chance's."""
    space = _space(run_path, setting, known, setting.options.templates or "simple")
    generator = np.random.default_rng([setting.options.seed, 29])
    scores = []
    for _ in range(_DEALS):
        names = found.phrases[_others(len(found.phrases), generator), 0]
        is_wrong = (names >= 0) & ~truth.is_right(names, share=LENIENT)
        # of a phrase's own embedding the phrase is the nearest
        directions = np.where(is_wrong[:, None], space.unit(names), np.nan).astype(np.float32)
        scores.append(name_features(setting, space, measured, directions, rescored=False))
    joined: dict[str, Any] = {
        each.name: np.concatenate([getattr(one, each.name) for one in scores])
        for each in fields(NamedFeatures)
        if isinstance(getattr(scores[0], each.name), np.ndarray)
    }
    return replace(scores[0], **joined)


def _shuffled(own: _Named, winner: NamedBy, seed: int) -> Reference:
    """The winner's names dealt out to other features: right by chance, as common phrases are."""
    names = own.named[winner].phrases[:, 0]
    generator = np.random.default_rng([seed, 23])
    shares = []
    for share in (1.0, LENIENT):
        # whether each feature's name would be right for each other feature, (n, n): its column is the name's feature
        right = own.truth.is_right(np.broadcast_to(names, (len(names), len(names))), share=share)
        drawn = [right[np.arange(len(names)), _others(len(names), generator)].mean() for _ in range(_PERMUTATIONS)]
        low, high = np.quantile(drawn, (0.025, 0.975))
        shares.append(Share(float(np.mean(drawn)), float(low), float(high), len(names)))
    return Reference("the best's names, dealt to others", *shares)


def _untrained(found: _Named | None, winner: NamedBy) -> Reference:
    label = "the best, on the untrained tower"
    if found is None:
        return Reference(label, share_of(np.zeros(0, bool)), share_of(np.zeros(0, bool)))
    names = found.named[winner].phrases[:, 0]
    return Reference(label, share_of(found.truth.is_right(names)), share_of(found.truth.is_right(names, share=LENIENT)))


def _lines(run_path: Path, table: AttributeTable, options: NameOptions) -> tuple[Ints, Ints | None]:
    """Line of the table of each row `(N,)`, -1 for none; and the rows' groups, None where each image is its own."""
    features = open_features(run_path)
    store = open_store(options.store or features.info.store, n_parts=features.info.n_store_parts)
    encoded = features.row_numbers("valid", 0, features.n_rows)
    line = np.where(encoded, lines_of_rows(store, table.keys), -1)
    matched = np.flatnonzero(line >= 0)
    if not len(matched):
        raise StoreError(
            f"none of the {len(table.keys):,} keys of {table.source} is in {store.url}: the first is "
            f"{table.keys[0]!r}, and keys there are like {store.keys([0])[0]!r}."
        )
    groups = None
    if table.groups is not None:
        _, of_line = np.unique(np.array(table.groups), return_inverse=True)
        groups = np.where(line >= 0, of_line[line], len(of_line) + np.arange(len(line)))
    if len(matched) > _MOST_ROWS:
        kept = np.random.default_rng([options.seed, 2]).choice(matched, _MOST_ROWS, replace=False)
        line = np.where(np.isin(np.arange(len(line)), kept), line, -1)
    return line, groups

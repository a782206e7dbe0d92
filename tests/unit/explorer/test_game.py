"""The choice of the game's rounds: the same for an address, never the answer among the clues, all places alike."""

import hashlib
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
from explored import make_explored_run
from scipy.stats import chi2
from thresher.analysis.explorer import game_choice
from thresher.analysis.explorer.game_choice import CHOICES, CLUES, Codes, Game, game_of
from thresher.analysis.explorer.page import Unavailable
from thresher.analysis.explorer.runs import ExploredRun


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with more features and labels than the others', so that five rare features fire on most images."""
    folder = tmp_path_factory.mktemp("game")
    return ExploredRun(make_explored_run(folder, n_features=256, n_images=600, n_labels=24).path)


@pytest.fixture(scope="module")
def game(run):
    return game_of(run)


@pytest.fixture(scope="module")
def pictures(run):
    """Bytes of every row's thumbnail, as the store has them."""
    return run.store.thumbnails(range(600))


def test_a_seed_and_a_number_are_the_same_round_for_everybody(run, game):
    another = Game(ExploredRun(run.path))
    for n in range(20):
        assert another.round(7, n).row == game.round(7, n).row
        assert another.choices(7, n) == game.choices(7, n)
        assert another.pictures(7, n, 2) == game.pictures(7, n, 2)


def test_a_seed_shows_every_image_once_before_one_comes_again(game):
    rows = [game.round(3, n).row for n in range(game.n_rounds)]
    assert len(set(rows)) == game.n_rounds > 400
    assert game.round(3, game.n_rounds).row == rows[0]
    assert [game.round(4, n).row for n in range(50)] != rows[:50]


def test_clues_are_the_strongest_features_that_are_neither_dense_nor_ultra_low(run, game):
    statistics = run.stored.statistics
    for n in range(40):
        found = game.round(1, n)
        feature, value = run.code(found.row)
        may_be = [
            f
            for f in feature.tolist()
            if not run.is_uld[f] and run.density[f] <= 0.1 and (statistics.top_row[f] >= 0).sum() >= 8
        ]
        assert list(found.clues) == may_be[:5]
        assert sorted(feature.tolist()) == found.features.tolist()
        np.testing.assert_array_equal(np.sort(value), np.sort(found.values))


def test_no_choice_is_ever_among_the_pictures_of_the_features(game, pictures):
    for seed in range(300):
        rows = game.choices(seed, seed).rows
        target = game.round(seed, seed).row
        chosen = {pictures[row] for row in rows}
        assert target in rows
        assert len(chosen) == CHOICES, "each choice another picture"
        for clue in range(CLUES):
            shown = game.pictures(seed, seed, clue)
            bytes_of = [pictures[each.row] for each in shown]
            assert shown
            assert target not in [each.row for each in shown]
            assert chosen.isdisjoint(bytes_of)
            assert len(set(bytes_of)) == len(bytes_of), "no picture twice"


def test_the_bytes_are_what_tells_pictures_apart(run, pictures):
    assert len(set(run.store.images(0, 600).tolist())) == 600
    assert len(set(pictures) - {None}) == 64, "the test above met copies of the answer"


def test_of_a_store_of_tokens_no_other_row_of_the_image_is_shown(tmp_path):
    made = make_explored_run(tmp_path, n_features=256, n_images=60, n_labels=24, tokens=4)
    run = ExploredRun(made.path)
    game = game_of(run)
    image = run.store.images(0, 240)
    n_shared = 0
    for n in range(50):
        target = game.round(0, n)
        top = run.stored.statistics.top_row[list(target.clues)]
        n_shared += int((image[top[(top >= 0) & (top != target.row)]] == image[target.row]).any())
        for clue in range(CLUES):
            assert image[target.row] not in image[[each.row for each in game.pictures(0, n, clue)]]
    assert n_shared > 10, "their strongest rows did hold others of the image"


def test_two_choices_are_the_nearest_codes_that_are_not_the_same_thing(run, game, pictures):
    n_rows = run.require_features().n_rows
    dense = np.zeros((n_rows, run.d_sae))
    indptr, index, value = run.require_features().rows(0, n_rows)
    dense[np.repeat(np.arange(n_rows), np.diff(indptr)), index] = value
    unit = dense / np.maximum(np.linalg.norm(dense, axis=1, keepdims=True), 1e-300)
    n_of_target = 0
    for n in range(60):
        target, choices = game.round(5, n), game.choices(5, n)
        to_target = unit @ unit[target.row]

        def nearest(row, seen, to_target=to_target):
            near = np.argsort(-(unit @ unit[row]), kind="stable").tolist()
            may_be = [r for r in near if unit[r] @ unit[row] < 0.85 and to_target[r] < 0.85 and pictures[r] not in seen]
            return may_be[0]

        first = nearest(target.row, {pictures[target.row], None})
        seen = {pictures[target.row], pictures[first], None}
        seconds = {nearest(target.row, seen), nearest(first, seen)}
        assert first in choices.rows
        assert seconds & set(choices.rows)
        n_of_target += nearest(target.row, seen) in choices.rows
        np.testing.assert_allclose(choices.cosines, to_target[list(choices.rows)], rtol=1e-6)
    assert 15 < n_of_target < 60, "of the answer or of the other, as a coin falls"


def test_the_third_has_the_label_that_prevails_among_the_first_features_pictures(run, game):
    statistics = run.stored.statistics
    for n in range(30):
        target, choices = game.round(6, n), game.choices(6, n)
        labels = statistics.top_label[target.clues[0]]
        counts = np.bincount(labels[labels >= 0])
        others = run.labels(row for row in choices.rows if row != target.row)
        assert choices.is_hard
        assert set(np.flatnonzero(counts == counts.max())) & set(others)


def test_without_labels_the_third_is_of_a_feature_with_a_density_like_the_first(tmp_path):
    made = make_explored_run(tmp_path, n_features=256, n_images=600, n_labels=24, is_labelled=False)
    run = ExploredRun(made.path)
    game = game_of(run)
    assert np.isnan(run.stored.statistics.label_entropy).all()
    log_density = np.log10(np.maximum(run.density, 1e-12))
    for n in range(20):
        target, choices = game.round(0, n), game.choices(0, n)
        first = []
        for row in choices.rows:
            if row != target.row:
                features = run.code(row)[0]
                first += features[game.is_clue[features]][:1].tolist()
        assert choices.is_hard
        assert np.abs(log_density[first] - log_density[target.clues[0]]).min() <= 0.25


def test_the_answer_is_equally_likely_at_each_place(game):
    counts = np.bincount([game.choices(seed, 0).place for seed in range(400)], minlength=CHOICES)
    statistic = ((counts - 100) ** 2 / 100).sum()
    assert statistic < chi2.ppf(0.999, CHOICES - 1), counts


def test_places_do_not_follow_from_seed_and_number_without_the_run(run, game, tmp_path):
    other = Game(ExploredRun(make_explored_run(tmp_path, n_features=256, n_images=600, n_labels=24, seed=5).path))
    same = np.mean([game.choices(seed, 0).place == other.choices(seed, 0).place for seed in range(100)])
    assert 0.1 < same < 0.4


def test_held_out_images_are_guessed_where_there_are_enough(run, monkeypatch):
    monkeypatch.setattr(game_choice, "ENOUGH", 3)
    split = run.require_features().row_numbers("split", 0, 600)
    game = Game(run)
    assert {int(split[game.round(0, n).row]) for n in range(20)} == {2}
    assert game.n_rounds <= run.require_features().info.n_held_out


def test_of_many_rows_blocks_that_lie_evenly_are_searched(run, monkeypatch):
    monkeypatch.setattr(game_choice, "MOST_ROWS", 64)
    codes = Codes(run, "all")
    starts = np.arange(16) * (600 // 16)
    expected = [row for start in starts for row in range(start, start + 4) if row != 17]
    assert codes.rows.tolist() == expected
    for at in (0, 30, len(expected) - 1):
        features, values = codes.code(at)
        index, value = run.code(int(codes.rows[at]))
        assert dict(zip(features.tolist(), values.tolist(), strict=True)) == dict(
            zip(index.tolist(), value.tolist(), strict=True)
        )


def test_a_run_that_cannot_be_played_says_why(tmp_path, run, monkeypatch):
    without = ExploredRun(make_explored_run(tmp_path / "a", n_features=256, n_labels=24, thumbnails=False).path)
    with pytest.raises(Unavailable, match="no thumbnails"):
        game_of(without).round(0, 0)
    monkeypatch.setattr(without, "features", None)
    with pytest.raises(Unavailable, match="thresher encode"):
        Game(without)
    monkeypatch.setattr(game_choice, "CLUES", 200)
    with pytest.raises(Unavailable, match="has 0 among the 599 rows"):
        Game(run)


def test_the_identity_is_of_sae_store_and_site(run, game):
    summary = run.summary
    text = f"{summary['sae_sha256']} {summary['store_fingerprint']} {summary['site']}"
    assert game.identity == hashlib.sha256(text.encode()).hexdigest()


def test_the_report_of_difficulty_counts_what_each_way_gets_right(run):
    path = Path(__file__).parents[2] / "benchmarks/game_difficulty.py"
    spec = spec_from_file_location("game_difficulty", path)
    report = module_from_spec(spec)
    spec.loader.exec_module(report)
    assert report._share(np.array([1.0, 3, 3, 0]), 2) == 0.5, "of two equal ones each half the time"
    assert report._share(np.array([1.0, 3, 3, 0]), 0) == 0
    found = report.difficulty(run, 5, 0)
    assert found.n_rounds == 5
    assert found.hard == 1
    assert 0.85 > found.cosines[0] >= found.cosines[1] >= found.cosines[2] >= 0
    shares = (*found.by_code, *found.by_label, *found.by_pixels, found.by_middle)
    assert all(0 <= share <= 1 for share in shares)

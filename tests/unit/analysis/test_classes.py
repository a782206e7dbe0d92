"""What features know of classes: planted sub-clusters, and every count by brute force."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy.stats import false_discovery_control, poisson
from thresher.analysis.class_structure import INSIDE, SAME, class_structures
from thresher.analysis.classes import classes
from thresher.analysis.classes_options import ClassesOptions
from thresher.analysis.classes_text import format_classes
from thresher.analysis.encode import encode
from thresher.analysis.features import HELD_OUT, TRAIN, open_features
from thresher.analysis.options import EncodeOptions, StatsOptions
from thresher.analysis.shared_features import Membership, _adjusted, membership, poisson_tail, shared_features
from thresher.analysis.stats import stats
from thresher.cli import main
from thresher.store.errors import StoreError
from thresher.train.models import ReluSae

NAMES = ["dog", "sea_gull", "tench", "zebra", "bus"]


@pytest.fixture
def planted(make_store, make_run):
    """A run whose 12 features are the coordinates of its rows: 60 rows of each of five classes.

    The dogs are three kinds, with features 0, 1 and 2 on 20 each; 3 fires with 0 on most of them, 4 on 55 dogs. Sea
    gulls have 5 alone, on 45 of them; 6 to 9 fire on half of sea gulls and tenches; 10 on every other row; 11 never.
    """
    made = make_store(300, 12, n_labels=5, dtype="float32", label_names=NAMES)
    label = made.labels[made.row_image]
    draw = np.random.default_rng(0)
    x = np.zeros((300, 12))

    def put(rows, feature):
        x[rows, feature] = draw.uniform(1.5, 2.5, len(rows))

    dogs, gulls, tenches = (draw.permutation(np.flatnonzero(label == c)) for c in range(3))
    for kind in range(3):
        put(dogs[20 * kind : 20 * kind + 20], kind)
    put(dogs[:18], 3)
    put(dogs[:55], 4)
    put(gulls[:45], 5)
    for feature in range(6, 10):
        put(np.concatenate([gulls[:30], tenches[:30]]), feature)
    put(np.arange(0, 300, 2), 10)
    made = make_store(300, 12, n_labels=5, dtype="float32", label_names=NAMES, rows=x, name="planted.zarr")
    run = make_run(made.path, 12)
    ReluSae(torch.eye(12), torch.zeros(12), torch.eye(12), torch.zeros(12)).save(run.path / "sae.safetensors")
    encode(run.path)
    stats(run.path, StatsOptions(figures=False))
    return run.path


def test_a_class_of_three_kinds_comes_out_as_three_parts(planted):
    found = classes(planted, "dog")
    (dog,) = found.structures
    assert (dog.label, dog.n_rows, dog.n_covered, dog.n_in_parts) == (0, 60, 60, 60)
    assert dog.parts == {0: 20, 1: 20, 2: 20}
    assert dog.effective_parts == pytest.approx(3)
    own = {f.feature: f for f in dog.features}
    assert [f.feature for f in dog.features] == [4, 0, 1, 2, 3]
    assert (own[3].leader, own[3].n_class) == (0, 18)
    assert (own[4].leader, own[4].n_class, own[4].is_part, own[4].inside) == (4, 55, False, -1)
    assert [own[j].inside for j in (0, 1, 2)] == [4, 4, -1]  # of the third kind 15 of 20, three quarters, are of 4
    assert own[0].n_strongest + own[3].n_strongest == 20
    text = format_classes(found)
    assert "dog (all rows): 60 rows, 5 own features, 100.0% covered." in text
    assert "3 parts, 3.0 effective" in text
    assert "No class shares features with dog." in text


def test_overlaps_stand_beside_chance_and_cosines(planted):
    (dog,) = classes(planted, "0").to_json()["classes"]
    of = {(o["a"], o["b"]): o for o in dog["overlaps"]}
    assert len(of) == 10
    assert (of[0, 3]["n_both"], of[0, 3]["expected"]) == (18, pytest.approx(20 * 18 / 60))
    assert of[0, 3]["jaccard"] == pytest.approx(18 / 20)
    assert (of[0, 1]["n_both"], of[0, 1]["jaccard"], of[0, 1]["decoder_cosine"]) == (0, 0, 0)
    assert of[2, 4]["n_both"] == 15


def test_all_classes_are_listed_and_written(planted):
    found = classes(planted)
    assert [(s.label, len(s.features)) for s in found.structures] == [(0, 5), (1, 1)]
    assert found.n_own_features == 6
    (pair,) = found.shared
    assert (pair.a, pair.b, pair.n_shared, set(pair.features)) == (1, 2, 4, {6, 7, 8, 9})
    lines = (planted / "classes.tsv").read_text().splitlines()
    assert lines[1].split("\t")[:5] == ["0", "dog", "60", "5", "1"]
    assert len((planted / "class_features.tsv").read_text().splitlines()) == 7
    assert "sea_gull\ttench" in (planted / "class_pairs.tsv").read_text()
    text = format_classes(found)
    assert "5 classes on 300 labelled rows" in text
    assert "6 features have label entropy 0" in text
    with pytest.raises(StoreError, match=r"classes\.tsv exists: give --overwrite"):
        classes(planted)
    classes(planted, options=ClassesOptions(overwrite=True))


def test_the_command_takes_names_and_numbers(planted):
    by_name, by_number = (CliRunner().invoke(main, ["classes", str(planted), c, "--quiet"]) for c in ("Sea Gull", "1"))
    assert by_name.exit_code == 0, by_name.output
    assert by_name.output == by_number.output
    assert "sea_gull + tench" in by_name.output
    as_json = CliRunner().invoke(main, ["classes", str(planted), "tench", "--json", "--quiet"])
    assert json.loads(as_json.stdout)["classes"] == []
    assert not (planted / "classes.tsv").exists()
    for wrong, message in (("cat", "no row has the class 'cat'"), ("gull", "is 'sea_gull' meant?"), ("7", "the class")):
        refused = CliRunner().invoke(main, ["classes", str(planted), wrong, "--quiet"])
        assert refused.exit_code == 2
        assert message in refused.output


def test_without_the_store_classes_have_numbers(planted, monkeypatch):
    monkeypatch.setattr("thresher.train.run_dir.Run.store_path", "/nowhere/at/all")
    found = classes(planted, "0")
    assert found.name(0) == "label 0"


@pytest.mark.parametrize(
    ("labels", "message"), [(np.full(60, -1, np.int32), "no row .* has a label"), (np.zeros(60, np.int32), "one class")]
)
def test_rows_without_classes_to_tell_apart_are_refused(make_store, make_run, labels, message):
    run = make_run(make_store(60, labels=labels).path)
    encode(run.path)
    stats(run.path, StatsOptions(figures=False))
    with pytest.raises(ValueError, match=message):
        classes(run.path)


def test_statistics_of_other_rows_are_told(make_store, make_run):
    run = make_run(make_store(60, labels=np.repeat(np.arange(3), 20).astype(np.int32)).path)
    encode(run.path)
    stats(run.path, StatsOptions(figures=False))
    classes(run.path, "0")
    encode(run.path, EncodeOptions(rows=30, overwrite=True))
    with pytest.raises(StoreError, match="statistics of other feature activations: run `thresher stats --overwrite`"):
        classes(run.path)


def test_what_is_not_there_yet_is_named(make_store, make_run):
    run = make_run(make_store().path)
    with pytest.raises(StoreError, match="run `thresher encode` first"):
        classes(run.path)
    encode(run.path)
    with pytest.raises(StoreError, match="run `thresher stats` first"):
        classes(run.path)


def _by_brute_force(f, labels, class_of, counted):
    """The structure of each class from dense sets, straight from the definitions."""
    structures = {}
    for c in sorted(set(class_of[class_of >= 0])):
        rows = [i for i in range(len(f)) if counted[i] and labels[i] == c]
        fires = {j: {i for i in rows if f[i, j] > 0} for j in np.flatnonzero(class_of == c).tolist()}
        order = sorted(fires, key=lambda j: (-len(fires[j]), j))
        leader = {}
        for j in order:
            leader[j] = j
            for i in order:
                union = fires[i] | fires[j]
                if leader.get(i) == i != j and union and len(fires[i] & fires[j]) / len(union) >= SAME:
                    leader[j] = i
                    break
        leaders = [j for j in order if leader[j] == j]
        inside = {}
        for j in leaders:
            wider = [
                i
                for i in leaders
                if len(fires[i]) > len(fires[j]) and len(fires[i] & fires[j]) >= INSIDE * len(fires[j]) > 0
            ]
            inside[j] = min(wider, key=lambda i: (len(fires[i]), -order.index(i)), default=-1)
        part = {j: leader[j] not in inside.values() for j in order}
        strongest = dict.fromkeys(order, 0)
        for i in rows:
            firing = [j for j in order if part[j] and f[i, j] > 0]
            if firing:
                strongest[max(firing, key=lambda j: (f[i, j], -j))] += 1
        structures[c] = {
            "n_covered": len(set().union(*fires.values())),
            "features": [(j, len(fires[j]), leader[j], inside[leader[j]], part[j], strongest[j]) for j in order],
            "overlaps": {
                (a, b): len(fires[a] & fires[b]) for a in order for b in order if a < b and fires[a] & fires[b]
            },
        }
    return structures


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("split", ["all", "train"])
def test_structures_are_those_of_the_definitions_by_brute_force(write_features, monkeypatch, seed, split):
    monkeypatch.setattr("thresher.analysis.features._BLOCK_ENTRIES", 200)  # several blocks
    draw = np.random.default_rng(seed)
    n, d = 150, 14
    labels = draw.integers(-1, 3, n)
    dense = draw.random((n, d)) < draw.choice([0.02, 0.2, 0.5, 0.9], d)
    dense[:, 1] = dense[:, 0] & (draw.random(n) < 0.9)
    dense[:, 2] = dense[:, 0] & (draw.random(n) < 0.4)
    f = np.where(dense, draw.integers(1, 4, (n, d)), 0).astype(np.float32)  # with ties
    f[draw.random(n) < 0.05] = np.nan
    class_of = draw.integers(-1, 3, d)
    class_of[:4] = 0
    codes = np.where(draw.random(n) < 0.2, HELD_OUT, TRAIN).astype(np.uint8)
    features = open_features(write_features(f, labels, split=codes))
    counted = np.isfinite(f).all(1) & ((codes == TRAIN) | (split == "all"))
    expected = _by_brute_force(np.nan_to_num(f), labels, class_of, counted)
    rows_of = {c: int((counted & (labels == c)).sum()) for c in range(3)}
    found = class_structures(features, class_of, split=split, rows_of=rows_of)
    assert [s.label for s in found] == list(expected)
    for s in found:
        wanted = expected[s.label]
        assert s.n_rows == rows_of[s.label]
        assert s.n_covered == wanted["n_covered"]
        got = [(o.feature, o.n_class, o.leader, o.inside, o.is_part, o.n_strongest) for o in s.features]
        assert got == wanted["features"]
        assert {(o.a, o.b): o.n_both for o in s.overlaps} == wanted["overlaps"]
        assert s.n_in_parts == sum(s.parts.values())


def test_a_feature_is_of_a_class_by_its_rows_share_and_lift():
    # 100 rows of label 3, 50 of label 8
    feature, label = np.array([0, 0, 1, 1, 2, 3]), np.array([3, 8, 3, 8, 8, 8])
    n = np.array([60, 30, 19, 12, 4, 10])
    n_labelled = np.array([90, 90, 31, 31, 4, 10])
    found = membership(feature, label, n, n_labelled, np.array([3, 8]), np.array([100, 50]))
    # 0 fires on 60 % of either and all: no lift; 1 on 24 % of label 8, less than twice 21 %; 2 on 4 rows; 3 is of 8
    assert (found.feature.tolist(), found.label.tolist(), found.n.tolist()) == ([3], [8], [10])


def _random_membership(seed, n_features=60, n_labels=12):
    draw = np.random.default_rng(seed)
    chosen = draw.random((n_features, n_labels)) < 0.15
    feature, label = np.nonzero(chosen)
    return Membership(feature, label, draw.integers(5, 50, len(feature))), chosen


def test_shared_features_are_those_of_sets_and_chance_that_of_the_formula():
    members, chosen = _random_membership(0)
    found = shared_features(members, 12)
    both = chosen.T.astype(int) @ chosen
    assert {(r.a, r.b): r.n_shared for r in found} == {
        (a, b): both[a, b] for a in range(12) for b in range(a + 1, 12) if both[a, b]
    }
    k, m = chosen.sum(0), chosen.sum(1)
    p = np.ones(66)
    for place, r in enumerate(sorted(found, key=lambda r: (r.a, r.b))):
        assert (r.n_a, r.n_b) == (k[r.a], k[r.b])
        assert r.expected == pytest.approx(k[r.a] * k[r.b] * (m * (m - 1)).sum() / m.sum() ** 2)
        assert set(r.features) == set(np.flatnonzero(chosen[:, r.a] & chosen[:, r.b]))
        p[place] = poisson.sf(r.n_shared - 1, r.expected)
    adjusted = false_discovery_control(p)
    for place, r in enumerate(sorted(found, key=lambda r: (r.a, r.b))):
        assert r.p_adjusted == pytest.approx(adjusted[place], rel=1e-9)
    assert shared_features(Membership(*(np.zeros(0, int),) * 3), 12) == []


def test_chance_is_what_shuffled_memberships_share():
    members, chosen = _random_membership(1, n_features=400, n_labels=20)
    draw = np.random.default_rng(2)
    shared = []
    for _ in range(200):  # ends of the pairs drawn again: both sides keep their numbers
        shuffled = np.zeros(chosen.shape)
        np.add.at(shuffled, (members.feature, draw.permutation(members.label)), 1)
        shared.append(shuffled.T @ shuffled)
    mean = np.mean(shared, axis=0)
    for r in shared_features(members, 20):
        assert r.expected == pytest.approx(mean[r.a, r.b], rel=0.1)


def test_independent_classes_seldom_share_more_than_chance():
    rejected = 0
    for seed in range(20):
        found = shared_features(_random_membership(seed, n_features=300, n_labels=15)[0], 15)
        rejected += any(r.p_adjusted < 0.05 for r in found)
    assert rejected <= 4


@pytest.mark.parametrize(("n", "mean"), [(0, 1.0), (1, 0.01), (3, 3.0), (40, 2.0), (2, 50.0), (300, 250.0)])
def test_the_poisson_tail_is_scipy_s(n, mean):
    assert poisson_tail(n, mean) == pytest.approx(poisson.sf(n - 1, mean), rel=1e-8)


def test_adjusted_p_values_count_the_pairs_that_share_nothing():
    p = np.array([0.001, 0.2, 0.004])
    expected = false_discovery_control(np.concatenate([p, np.ones(20)]))[:3]
    np.testing.assert_allclose(_adjusted(p, 23), expected)

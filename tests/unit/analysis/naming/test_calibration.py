"""Calibration of names: on planted truth every concept is found, and shares are what a count by hand gives."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from planted_clip import WORDS, Planted, make_planted_run
from scipy.stats import binomtest
from thresher.analysis.attribute_table import AttributeTable, read_table
from thresher.analysis.naming.best_phrases import measure, name_features
from thresher.analysis.naming.calibration import calibrate
from thresher.analysis.naming.calibration_result import Calibration, NamedBy, compare
from thresher.analysis.naming.calibration_thresholds import Thresholds, loosest
from thresher.analysis.naming.known_truth import FeatureTruth
from thresher.analysis.naming.measured import directions_of
from thresher.analysis.naming.options import METHODS, NameOptions
from thresher.analysis.naming.scores import statuses
from thresher.analysis.naming.setting import open_setting
from thresher.analysis.naming.shares import Share, share_of
from thresher.analysis.naming.text_space import load_text_space
from thresher.analysis.naming.vocabulary import Source, Vocabulary, nouns
from thresher.analysis.significance import adjusted_p_values
from thresher.cli import main
from thresher.store.errors import StoreError

OPTIONS = NameOptions(device="cpu", workers=0)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """Features whose own directions, without the last block, lead to the words of other concepts."""
    return make_planted_run(tmp_path_factory.mktemp("calibrated"), with_stats=False, lens_misleads=True)


@pytest.fixture(scope="module")
def calibration(planted: Planted) -> Calibration:
    return calibrate(planted.path, read_table(planted.attributes), OPTIONS, untrained=planted.path)


def test_ablation_and_data_name_every_concept_where_the_lens_names_another(calibration: Calibration) -> None:
    concepts = np.isin(calibration.features, Planted.concepts)
    assert calibration.features[concepts].tolist() == Planted.concepts.tolist()
    share = {row.by: row.right for row in calibration.named}
    for method in ("causal", "data"):
        assert share[NamedBy(method, rescored=False)].value == 1
    for method in ("lens", "post", "dncbm"):
        assert share[NamedBy(method, rescored=False)].value <= 1 / calibration.n_features
    assert {by.method for by in share} == {*METHODS, "random"}
    assert calibration.winner.method == "causal"


def test_right_names_are_the_words_of_the_concepts(calibration: Calibration) -> None:
    assert set(calibration.phrases) == set(WORDS)
    features = {each["feature"]: each for each in calibration.to_json()["features"]}
    for concept, word in enumerate(WORDS):
        assert features[concept]["name"] == features[concept]["best"] == word
        assert features[concept]["f1_of_name"] == 1
        assert features[concept]["score"] > 0.98


def test_names_of_other_features_are_right_as_rarely_as_words_repeat(calibration: Calibration) -> None:
    names = calibration.of_winner.phrases[:, 0]
    right = calibration.truth.is_right(np.broadcast_to(names, (len(names), len(names))))
    n = len(names)
    wanted = right[~np.eye(n, dtype=bool)].mean()  # over all pairs of two features
    assert n > 2
    reference = calibration.references[1]
    assert reference.right.value == pytest.approx(wanted, abs=0.02)
    assert reference.right.low <= wanted <= reference.right.high
    # the same run in the place of the untrained one is as right as the winner
    assert calibration.references[2].right == next(r.right for r in calibration.named if r.by == calibration.winner)


def test_a_name_can_be_as_right_as_the_attributes_of_the_naming_side(calibration: Calibration) -> None:
    truth = calibration.truth
    wanted = [truth.f1[i, truth.naming_f1[i].argmax()] == truth.f1[i].max() for i in range(calibration.n_features)]
    assert calibration.references[0].right == share_of(np.array(wanted))


def test_thresholds_let_planted_names_pass_and_hardly_any_that_were_dealt_out(calibration: Calibration) -> None:
    document = calibration.to_json()
    strict = next(each for each in document["thresholds"] if (each["min_auroc"], each["min_z"]) == (0.8, 2))
    assert strict["named"]["value"] == pytest.approx(len(WORDS) / calibration.n_features)
    assert strict["right"]["value"] == 1
    assert strict["by_chance"]["dealt out"] < 0.05
    assert strict["by_chance"]["untrained"] == strict["named"]["value"] * calibration.n_features / len(WORDS)
    # the same run in the place of an untrained one passes as often as this one: nothing is safe
    assert document["loosest"] is None
    assert "None of them" in calibration.text()


def test_the_loosest_thresholds_name_most_of_those_that_keep_chance_out() -> None:
    def row(area: float, z: float, named: float, *by_chance: float) -> Thresholds:
        share = Share(named, 0, 1, 100)
        return Thresholds(area, z, share, share, share, dict(zip("ab", by_chance, strict=False)))

    rows = [row(0.5, 0, 0.9, 0.2, 0), row(0.6, 0, 0.7, 0.05, 0.06), row(0.6, 2, 0.6, 0.05, 0.05), row(0.7, 1, 0.6, 0)]
    assert loosest(rows) == rows[3]  # as many named, the lower z
    assert loosest(rows[:3]) == rows[2]
    assert loosest(rows[:2]) is None


def test_the_document_and_the_table_say_the_same(calibration: Calibration, tmp_path: Path) -> None:
    document = json.loads(calibration.write(tmp_path).read_text())
    assert (tmp_path / "naming" / "calibration.json").exists()
    assert document["winner"]["label"] == calibration.winner.label
    text = calibration.text()
    for row in document["named"]:
        line = next(line for line in text.splitlines() if line.strip().startswith(row["label"] + "  "))
        value, low, high = (100 * row["right"][key] for key in ("value", "low", "high"))
        assert f"{value:.0f} [{low:.0f}, {high:.0f}]" in line
    assert document["n_features"] == len(document["features"]) == calibration.n_features
    assert [each["right"]["n"] for each in document["reliability"]] == [8] * 6


def test_every_concept_is_named_among_many_nouns_and_no_decoy_is(planted: Planted) -> None:
    others = [noun for noun in nouns()[:600] if noun not in WORDS]
    vocabulary = Vocabulary((*others, *WORDS), (Source("test", len(others) + len(WORDS), 0, 0, 0),))
    with open_setting(planted.path, OPTIONS) as setting:
        space = load_text_space(planted.path, setting.clip, vocabulary, templates="simple")
        measured = measure(setting, np.arange(planted.sae.d_sae))
        found = {}
        for method in ("causal", "data"):
            directions = directions_of(setting, method, measured.features, measured.rows)
            found[method] = name_features(setting, space, measured, directions)
    for method, names in found.items():
        status = statuses(
            names.auroc, names.ablation_z, adjusted_p_values(names.p_value), min_auroc=0.7, min_z=2, fdr=0.05
        )
        chosen = [vocabulary.phrases[i] for i in names.phrases[planted.concepts, 0]]
        assert chosen == list(WORDS), method
        assert (status[planted.concepts] == "named").all()
        assert (status[planted.decoys] == "unnamed").all(), names.auroc[planted.decoys]
        assert (status[[planted.always, *planted.dead]] == "untested").all()


@pytest.mark.parametrize(("k", "n"), [(0, 7), (3, 7), (7, 7), (40, 120)])
def test_shares_have_wilsons_interval(k: int, n: int) -> None:
    found = share_of(np.arange(n) < k)
    wanted = binomtest(k, n).proportion_ci(method="wilson")
    assert (found.value, found.n) == (k / n, n)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=1e-12)


def test_no_features_have_no_share() -> None:
    found = share_of(np.zeros(0, bool))
    assert found.n == 0
    assert np.isnan([found.value, found.low, found.high]).all()


def test_methods_are_compared_on_the_same_features(calibration: Calibration) -> None:
    n = 200
    rng = np.random.default_rng(0)
    f1 = rng.random((n, 3)).astype(np.float32)
    truth = FeatureTruth(f1, f1)
    best = f1.argmax(axis=1)
    often = np.where(rng.random(n) < 0.8, best, (best + 1) % 3)
    seldom = np.where(np.arange(n) < 20, (often + 1) % 3, often)  # differs from the other on 20 features alone
    named = {
        NamedBy(method, rescored=False): replace(_of(calibration, n), phrases=names[:, None])
        for method, names in (("causal", seldom), ("data", often), ("random", best))
    }
    rows, winner = compare(truth, named, OPTIONS)
    assert winner.method == "data"  # random directions never win
    right = {row.by.method: row for row in rows}
    gained, lost = ((often == best)[:20]).sum(), ((seldom == best)[:20]).sum()
    assert right["causal"].behind == pytest.approx((gained - lost) / n)
    low, high = right["causal"].behind_interval or (np.nan, np.nan)
    lead = (often == best).astype(float) - (seldom == best)
    half = 1.96 * lead.std() / np.sqrt(n)
    assert (low, high) == pytest.approx((lead.mean() - half, lead.mean() + half), abs=0.015)
    assert right["data"].behind_interval == (0, 0)


def _of(calibration: Calibration, n: int):  # type: ignore[no-untyped-def]
    """Names of n features with scores of no meaning."""
    numbers = {name: np.full(n, 0.9) for name in vars(calibration.of_winner) if name not in ("phrases", "features")}
    return replace(calibration.of_winner, features=np.arange(n), **numbers)


def _table(keys: list[str], values: list[str]) -> AttributeTable:
    return AttributeTable(
        source="birds.csv", keys=keys, values=[{"bird": [v]} for v in values], groups=None, group_column=None
    )


def test_keys_of_other_images_are_told(planted: Planted) -> None:
    with pytest.raises(StoreError, match=r"none of the 1 keys of birds.csv is in .*keys there are like"):
        calibrate(planted.path, _table(["nowhere.png"], ["wren"]), OPTIONS)


def test_a_table_without_phrases_is_told(planted: Planted) -> None:
    keys = [line.split("\t")[0] for line in planted.attributes.read_text().splitlines()[1:]]
    with pytest.raises(ValueError, match=r"no value in birds\.csv is a phrase"):
        calibrate(planted.path, _table(keys, ["7"] * len(keys)), OPTIONS)


def test_attributes_that_no_feature_knows_are_told(planted: Planted) -> None:
    keys = [line.split("\t")[0] for line in planted.attributes.read_text().splitlines()[1:]]
    drawn = np.random.default_rng(0).permutation(["wren"] * 24 + ["owl"] * 24 + [""] * (len(keys) - 48)).tolist()
    with pytest.raises(ValueError, match=r"no feature of .* knows an attribute of birds.csv at F1 >= 0.5"):
        calibrate(planted.path, _table(keys, drawn), OPTIONS)


def test_all_rows_of_a_group_are_on_one_side(planted: Planted, tmp_path: Path) -> None:
    table = read_table(planted.attributes)
    shutil.copytree(planted.path, tmp_path / "run")
    grouped = replace(table, groups=[str(i // 4) for i in range(len(table.keys))], group_column="four")
    found = calibrate(tmp_path / "run", grouped, OPTIONS)
    assert found.group_column == "four"
    assert "split by four" in found.text()
    assert found.n_features >= len(WORDS)


def test_the_command_measures_and_writes_no_names(planted: Planted) -> None:
    told = ["name", str(planted.path), "--calibrate", str(planted.attributes), "--device", "cpu", "--workers", "0"]
    found = CliRunner().invoke(main, [*told, "--json", "--quiet"], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["n_phrases"] == len(WORDS)
    assert json.loads((planted.path / "naming" / "calibration.json").read_text()) == json.loads(found.stdout)
    assert not (planted.path / "names.tsv").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--calibrate", "CSV", "--method", "lens"], "leave out --method"),
        (["--calibrate", "CSV", "--vocab", "words.txt"], "leave out --vocab"),
        (["--group", "maker"], "untrained, key and group go with calibrate"),
        (["--calibrate", "CSV", "--min-f1", "0"], "min_f1 must be above 0 and at most 1; got 0.0"),
        (["--calibrate", "CSV", "--group", "maker"], "has no group column 'maker'"),
    ],
)
def test_options_that_do_not_go_together_are_one_line(planted: Planted, options: list[str], said: str) -> None:
    given = [str(planted.attributes) if each == "CSV" else each for each in options]
    found = CliRunner().invoke(main, ["name", str(planted.path), "--device", "cpu", *given])
    assert found.exit_code in (1, 2)
    assert said in " ".join(found.output.split())

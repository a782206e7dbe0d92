"""`name` from end to end on a run whose features are known; what stops it, and how it goes on."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planted_clip import WORDS, Planted, make_planted_run
from thresher.analysis.naming import name as naming
from thresher.analysis.naming.measured import directions_of
from thresher.analysis.naming.name import chosen_features, name
from thresher.analysis.naming.names_file import COLUMNS, NAMED, UNTESTED, Name, read_name_lines, write_names
from thresher.analysis.naming.options import METHODS, NameOptions
from thresher.analysis.naming.setting import NamingSetting, open_setting
from thresher.analysis.naming.split import FeatureRows
from thresher.name_command import of_names
from thresher.progress import Reporter
from thresher.store.errors import StoreError
from thresher.train.run_dir import remove_run

HERE: dict[str, Any] = {"templates": "none", "device": "cpu", "workers": 0}


class Heard(Reporter):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def warn(self, text: str) -> None:
        self.said.append(f"warning: {text}")


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return make_planted_run(tmp_path_factory.mktemp("planted"), with_stats=False)


@pytest.fixture
def words(tmp_path: Path) -> str:
    path = tmp_path / "words.txt"
    path.write_text("".join(f"{word}\n" for word in (*WORDS, "dog", "tree", "chair", "river", "pink", "")))
    return str(path)


@pytest.fixture
def run(planted: Planted) -> Iterator[Path]:
    yield planted.path
    (planted.path / "names.tsv").unlink(missing_ok=True)
    shutil.rmtree(planted.path / "naming", ignore_errors=True)


@pytest.mark.parametrize("method", METHODS)
def test_every_concept_gets_its_word_and_what_never_fires_none(
    run: Path, planted: Planted, words: str, method: str
) -> None:
    heard = Heard()
    result = name(run, NameOptions(method=method, vocab=words, **HERE), heard)
    assert heard.said[0] == f"12 phrases: {words} 12; left out: 1 repeated, 1 blank."
    names, problem = read_name_lines(run, planted.sae.d_sae)
    assert problem is None
    assert [names[c].name for c in planted.concepts.tolist()] == list(WORDS)
    assert {names[c].status for c in planted.concepts.tolist()} == {NAMED}
    assert {names[f].status for f in planted.dead.tolist()} == {UNTESTED}
    assert all(len(names[c].alternatives) == 4 for c in planted.concepts.tolist())
    assert result.n_named + result.n_unnamed + result.n_untested == planted.sae.d_sae == len(names)
    assert (result.n_phrases, result.n_kept, result.method) == (12, 0, method)
    document = json.loads((run / "naming" / "name.json").read_text())
    assert document["method"] == method
    assert document["n_named"] == result.n_named
    assert document["vocabulary"]["sources"][0]["n_repeated"] == 1


def test_scores_are_those_of_the_other_side_in_numpy(run: Path, planted: Planted, words: str) -> None:
    options = NameOptions(vocab=words, scoring_rows=15, **HERE)
    name(run, options)
    found = read_name_lines(run, planted.sae.d_sae)[0]
    with open_setting(run, options) as setting:
        rows = setting.rows_of(2)
        # images that the name was found and scored on, not all on which the feature fires
        assert found[2].n_naming == len(rows.naming) == 20 < rows.n_naming
        assert found[2].n_scoring == len(rows.scoring) == 15 < rows.n_scoring
        # planted: the feature fires on exactly the rows that hold its concept
        side = setting.split.is_naming(np.arange(len(planted.holds)))
        assert rows.n_naming == planted.holds[side, 2].sum()
        assert rows.n_scoring == planted.holds[~side, 2].sum()
        data = directions_of(setting, "data", np.array([2]), [rows])[0].astype(np.float64)
        e = setting.pictures.embeddings(np.arange(len(planted.holds))).astype(np.float64)
    a = rows.naming_values.astype(np.float64)
    expected = a @ e[rows.naming] / a.sum() - e[side].mean(axis=0)
    np.testing.assert_allclose(data, expected, atol=2e-6)


def test_features_that_fire_on_every_image_are_untested_and_that_is_the_reason_given(
    run: Path, planted: Planted, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows_of = NamingSetting.rows_of

    def everywhere(setting: NamingSetting, feature: int) -> FeatureRows:
        found = rows_of(setting, feature)
        return replace(found, in_pool=np.ones_like(found.in_pool))

    monkeypatch.setattr(NamingSetting, "rows_of", everywhere)
    result = name(run, NameOptions(vocab=words, **HERE))
    assert (result.n_named, result.n_unnamed, result.n_untested) == (0, 0, planted.sae.d_sae)
    assert f"{planted.sae.d_sae} fire on too few images, or on all. " in of_names(result, run)
    names = read_name_lines(run, planted.sae.d_sae)[0]
    assert {(each.status, each.score, each.auroc, each.q_value) for each in names.values()} == {
        (UNTESTED, None, None, None)
    }


def test_a_killed_naming_goes_on_and_ends_as_an_unbroken_one(
    run: Path, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(naming, "_FEATURES_A_BLOCK", 4)
    options = NameOptions(vocab=words, **HERE)
    name(run, options)
    whole = (run / "names.tsv").read_bytes()
    (run / "names.tsv").unlink()
    measure, seen = naming.measure, []

    def killed(setting: Any, features: Any, task: Any) -> Any:
        seen.append(features.tolist())
        if len(seen) == 3:
            raise KeyboardInterrupt
        return measure(setting, features, task)

    monkeypatch.setattr(naming, "measure", killed)
    with pytest.raises(KeyboardInterrupt):
        name(run, options)
    assert not (run / "names.tsv").exists()
    assert name(run, options).n_kept == 8
    assert seen[2:] == [[8, 9, 10, 11], [8, 9, 10, 11], [12, 13, 14]]
    assert (run / "names.tsv").read_bytes() == whole
    assert not list((run / "naming").glob(".names*"))
    with pytest.raises(StoreError, match=r"names\.tsv exists: give --overwrite"):
        name(run, options)


def test_other_options_do_not_take_up_what_a_killed_naming_left(
    run: Path, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(naming, "_FEATURES_A_BLOCK", 4)
    monkeypatch.setattr(naming, "_write", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        name(run, NameOptions(vocab=words, **HERE))
    monkeypatch.undo()
    options = NameOptions(vocab=words, **HERE, method="lens")
    assert name(run, options).n_kept == 0


def test_a_few_features_are_named_and_the_names_of_others_stay(run: Path, words: str) -> None:
    write_names(run, {0: Name("mine", 0.5, "by hand"), 9: Name("gone", None, "x")})
    options = NameOptions(vocab=words, **HERE, features="1-3, 9", overwrite=True)
    assert name(run, options).n_features == 4
    names, _ = read_name_lines(run, 15)
    assert list(names) == [0, 1, 2, 3, 9]
    assert names[0] == Name("mine", 0.5, "by hand")
    assert names[1].name == WORDS[1]
    assert (run / "names.tsv").read_text().split("\n")[0] == "\t".join(COLUMNS)


def test_names_of_several_phrases_stand_where_one_does_not_say_it_all(run: Path, words: str) -> None:
    name(run, NameOptions(vocab=words, **HERE, sparse_names=True, method="causal"))
    names, _ = read_name_lines(run, 15)
    every = [names[f].name for f in names] + [each for f in names for each in names[f].alternatives]
    assert any(" + " in each for each in every)
    assert [names[c].status for c in range(8)] == [NAMED] * 8


def test_a_concept_of_one_word_is_not_named_by_several(run: Path, words: str, planted: Planted) -> None:
    name(run, NameOptions(vocab=words, **HERE, sparse_names=True))
    names, _ = read_name_lines(run, 15)
    called = [names[c].name for c in planted.concepts.tolist()]
    assert sum(" + " in each for each in called) < len(called) / 2, called


def test_a_run_that_is_replaced_leaves_no_calibration(tmp_path: Path) -> None:
    (tmp_path / "naming").mkdir()
    for file in ("naming/calibration.json", "names.tsv", "mine.txt"):
        (tmp_path / file).write_text("{}")
    remove_run(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["mine.txt"]


def test_one_word_is_scored_for_every_feature(run: Path, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("stripe\n")
    heard = Heard()
    options = NameOptions(vocab=str(tmp_path / "one.txt"), **HERE)
    assert name(run, options, heard).n_phrases == 1
    assert heard.said[1].startswith("warning: One phrase has no others to be compared with")
    names, _ = read_name_lines(run, 15)
    assert [feature for feature in names if names[feature].status == NAMED] == [WORDS.index("stripe")]


def test_features_are_read_as_numbers_and_ranges() -> None:
    assert chosen_features(None, 3).tolist() == [0, 1, 2]
    assert chosen_features("7, 1-3,2", 8).tolist() == [1, 2, 3, 7]
    for text, said in (
        ("8", "the run has the features 0 to 7"),
        ("3-1", "0 to 7"),
        ("a", "no number and no range"),
        ("", "no n"),
    ):
        with pytest.raises(ValueError, match=said):
            chosen_features(text, 8)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"method": "guess"}, "method must be one of"),
        ({"vocabulary": "labels,verbs"}, "'verbs' is none of labels, captions, classes, nouns"),
        ({"method": "post", "sparse_names": True}, "post takes the nearest phrase"),
        ({"fewest_rows": 1}, "at least 2"),
        ({"min_auroc": 1.5}, "min_auroc must lie between 0 and 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"seed": -1}, "seed must be 0 or more"),
        ({"choose": "best"}, "choose must be nearest or score"),
    ],
)
def test_options_that_make_no_sense_are_told(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        NameOptions(**given)


def test_sources_are_all_four_unless_a_file_or_a_list_is_given() -> None:
    assert NameOptions().sources == ("labels", "captions", "classes", "nouns")
    assert NameOptions(vocab="f").sources == ()
    assert NameOptions(vocab="f", vocabulary="nouns, labels,").sources == ("nouns", "labels")
    assert (NameOptions(method="post").templates_used, NameOptions(method="dncbm").templates_used) == (
        "caption",
        "none",
    )


def test_a_run_of_several_tokens_an_image_is_told(tmp_path: Path) -> None:
    planted = make_planted_run(tmp_path, token="all", n_images=20, with_stats=False)
    with pytest.raises(StoreError, match="holds 17 rows an image, and names are of images as a whole"):
        name(planted.path, NameOptions(vocabulary="nouns", **HERE))


def test_what_does_not_belong_to_the_run_is_told(planted: Planted, run: Path, tmp_path: Path, words: str) -> None:
    options = NameOptions(vocab=words, **HERE)
    bare = tmp_path / "bare"
    shutil.copytree(run, bare)
    shutil.rmtree(bare / "features.zarr")
    with pytest.raises(StoreError, match="holds no feature activations: run `thresher encode` first"):
        name(bare, options)
    other = tmp_path / "other"
    shutil.copytree(run, other)
    (other / "sae.safetensors").write_bytes((run / "sae.safetensors").read_bytes() + b" ")
    with pytest.raises(StoreError, match="was encoded by other weights"):
        name(other, options)
    moved = planted.pictures.with_name("moved")
    planted.pictures.rename(moved)
    try:
        with pytest.raises(FileNotFoundError, match="pictures does not exist"):
            name(run, options)
        assert name(run, NameOptions(vocab=words, images=str(moved), **HERE)).n_named == len(WORDS)
    finally:
        moved.rename(planted.pictures)
    weights = planted.model_path / "open_clip_model.safetensors"
    kept = weights.read_bytes()
    try:
        weights.write_bytes(_changed(kept))
        with pytest.raises(StoreError, match="is not the model of this store any more: weights_sha256"):
            name(run, NameOptions(vocab=words, overwrite=True, **HERE))
    finally:
        weights.write_bytes(kept)


def _changed(file: bytes) -> bytes:
    from safetensors.torch import load, save

    tensors = load(file)
    tensors["visual.ln_post.bias"] = tensors["visual.ln_post.bias"] + 1
    return save(tensors)

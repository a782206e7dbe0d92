"""The whole of `visualise` on a run of planted truth: what it writes, keeps, refuses and says."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from thresher.analysis.visualising import making
from thresher.analysis.visualising.options import VisualiseOptions
from thresher.analysis.visualising.pictures import read_made
from thresher.analysis.visualising.probe import open_probe
from thresher.analysis.visualising.visualisations_file import read_visualisations
from thresher.analysis.visualising.visualise import visualise
from thresher.cli import main
from thresher.progress import Reporter
from thresher.store.errors import DamagedStoreError, StoreError
from thresher.store.files import FolderLock

DEAD = 13
OPTIONS = VisualiseOptions(
    features="0",
    method="fourier",
    lr=0.05,
    smoothness=0.01,
    steps=20,
    crops=2,
    seeds=2,
    device="cpu",
    workers=0,
)


class Told(Reporter):
    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)

    warn = say


def pictures(run_path):
    return {path.name: path.read_bytes() for path in sorted((run_path / "visualisations").glob("*.webp"))}


@pytest.fixture(scope="module")
def made(planted, tmp_path_factory):
    """A run with pictures of features 0 and 13, which is dead."""
    path = shutil.copytree(planted.path, tmp_path_factory.mktemp("made") / "run")
    told = Told()
    result = visualise(path, replace(OPTIONS, features="0,13"), told)
    return path, result, told


@pytest.fixture
def made_path(made, tmp_path):
    return shutil.copytree(made[0], tmp_path / "run")


def test_each_feature_has_a_picture_of_every_seed_the_one_that_lasts_best_first(made):
    path, result, told = made
    folder = path / "visualisations"
    record = read_made(folder)
    assert sorted(record) == [0, DEAD]
    best = record[0].seed
    assert sorted(pictures(path)) == [f"0-{1 - best}.webp", "0.webp", "13-1.webp", "13.webp"]
    with Image.open(folder / "0.webp") as image:
        assert (image.size, image.mode, image.format) == ((48, 48), "RGB", "WEBP")
    probe = open_probe(path, "cpu").probe
    kept = {}
    for seed in (0, 1):
        with Image.open(record[0].path(folder, seed)) as image:
            kept[seed] = probe.activations(probe.view(image.convert("RGB"))[None])[0, 0]
        assert record[0].activations[seed] <= kept[seed] + 1e-4  # the least of that and of damaged copies
    assert record[0].activations[best] == max(record[0].activations.values()) > 0
    assert record[DEAD].activations == {0: 0.0, 1: 0.0}
    assert (result.n_made, result.n_kept, result.checked.n_checked) == (2, 0, 2)
    assert any("4 pictures of 48 x 48 pixels, 20 steps of 2 crops each: about" in line for line in told.lines)


def test_the_table_says_of_each_whether_it_passed(made):
    table, problem = read_visualisations(made[0], 15)
    assert problem is None
    assert table[0].is_passed
    assert table[0].parametrisation == "fourier"
    assert not table[DEAD].is_passed


def test_the_same_call_keeps_what_is_done_and_another_feature_is_added(made, made_path, monkeypatch):
    before = pictures(made_path)
    result = visualise(made_path, replace(OPTIONS, features="13,0,2"))
    assert (result.n_made, result.n_kept, result.checked.n_checked) == (1, 2, 3)
    after = pictures(made_path)
    assert {name: after[name] for name in before} == before
    monkeypatch.setattr(making, "optimise", lambda *_: pytest.fail("nothing was left to make"))
    again = visualise(made_path, replace(OPTIONS, features="0-0,2,13"))
    assert (again.n_made, again.n_kept) == (0, 3)
    assert pictures(made_path) == after


def test_a_stopped_call_goes_on_and_ends_with_the_pictures_of_an_unbroken_one(made, run_path, monkeypatch):
    optimise, calls = making.optimise, []

    def stops(*given):
        calls.append(given)
        if len(calls) == 2 + 2:  # two of the forecast
            raise KeyboardInterrupt
        return optimise(*given)

    one_each = replace(OPTIONS, features="0,13", batch_size=4)  # a feature's two seeds together
    with monkeypatch.context() as patch:
        patch.setattr(making, "optimise", stops)
        with pytest.raises(KeyboardInterrupt):
            visualise(run_path, one_each)
    assert sorted(read_made(run_path / "visualisations")) == [0]
    assert not (run_path / "visualisations" / "visualisations.tsv").exists()
    result = visualise(run_path, one_each)
    assert (result.n_made, result.n_kept) == (1, 1)
    for name in pictures(made[0]):
        ours, theirs = (
            np.asarray(Image.open(each / "visualisations" / name).convert("RGB")).astype(int)
            for each in (run_path, made[0])
        )
        assert np.abs(ours - theirs).mean() < 1, name  # the same but for float32's order of sums in another batch


def test_other_options_are_refused_and_overwrite_begins_anew(made_path):
    with pytest.raises(StoreError, match=r"made with steps 20, not 21.*--overwrite"):
        visualise(made_path, replace(OPTIONS, steps=21))
    assert len(pictures(made_path)) == 4
    result = visualise(made_path, replace(OPTIONS, steps=21, overwrite=True))
    assert result.checked.n_checked == 1
    assert set(pictures(made_path)) == {"0.webp", *(name for name in pictures(made_path) if name.startswith("0-"))}
    assert json.loads((made_path / "visualisations" / "options.json").read_text())["steps"] == 21


def test_overwrite_with_the_same_options_makes_only_those_asked_for_again(made_path):
    (made_path / "visualisations" / "0.webp").write_bytes(b"rubbish")
    with pytest.raises(DamagedStoreError, match=r"0\.webp cannot be read.*--overwrite"):
        visualise(made_path, OPTIONS)
    result = visualise(made_path, replace(OPTIONS, overwrite=True))
    assert (result.n_made, result.checked.n_checked) == (1, 2)


@pytest.mark.parametrize("name", ["options.json", "pictures.json"])
def test_a_damaged_record_is_said_and_overwritten(made_path, name):
    (made_path / "visualisations" / name).write_bytes(b"{")
    with pytest.raises(StoreError, match="--overwrite"):
        visualise(made_path, OPTIONS)
    assert visualise(made_path, replace(OPTIONS, overwrite=True)).n_made == 1


def test_a_lost_record_costs_no_pictures_and_overwriting_leaves_what_is_not_ours(made_path):
    folder = made_path / "visualisations"
    (folder / "notes.txt").write_text("mine")
    (folder / "pictures.json").unlink()
    before = pictures(made_path)
    with pytest.raises(StoreError, match=r"pictures\.json is gone.*--overwrite"):
        visualise(made_path, OPTIONS)
    assert pictures(made_path) == before
    assert visualise(made_path, replace(OPTIONS, overwrite=True)).n_made == 1
    assert "13.webp" in before
    assert "13.webp" not in pictures(made_path)
    assert (folder / "notes.txt").read_text() == "mine"


def test_other_weights_than_encoded_the_run_are_refused(made_path):
    path = made_path / "sae.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(StoreError, match=r"was encoded by other weights than .* holds"):
        visualise(made_path, OPTIONS)


def test_a_record_of_a_feature_that_the_run_has_not_is_damaged(made_path):
    path = made_path / "visualisations" / "pictures.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "15": {**record["0"], "feature": 15}}))
    with pytest.raises(DamagedStoreError, match="names feature 15, and the run has 0 to 14"):
        visualise(made_path, OPTIONS)


@pytest.mark.parametrize(
    ("features", "says"),
    [
        ("15", "features 15: the run has the features 0 to 14"),
        ("3-99", "features 3-99: the run has the features 0 to 14"),
        ("5-3", "features 5-3 is empty"),
        ("named", r"has no names.*thresher name.*--features top:16"),
    ],
)
def test_features_that_are_none_are_said_before_anything_is_made(run_path, features, says):
    with pytest.raises(ValueError, match=says):
        visualise(run_path, replace(OPTIONS, features=features))
    assert not (run_path / "visualisations").exists()


@pytest.mark.parametrize("features", ["", "a", "7,,8", "-1", "top:0", "random:", "1.5", "top:x"])
def test_words_that_name_no_features_are_refused(features):
    with pytest.raises(ValueError, match="is none of an id"):
        VisualiseOptions(features=features)


def chosen(run_path, features, seed=0):
    from thresher.analysis.visualising.chosen import chosen_features

    return chosen_features(open_probe(run_path, "cpu"), VisualiseOptions(features=features, seed=seed))


def test_features_are_chosen_by_id_size_chance_and_name(planted, run_path):
    mean_top = open_probe(run_path, "cpu").stored.statistics.mean_top
    alive = np.flatnonzero(open_probe(run_path, "cpu").stored.statistics.n_active)
    assert chosen(run_path, "7,2-4,3") == [7, 2, 3, 4]
    assert chosen(run_path, "top:3") == sorted(alive[np.argsort(-mean_top[alive])][:3].tolist())
    assert chosen(run_path, "random:4") == chosen(run_path, "random:4") != chosen(run_path, "random:4", seed=1)
    assert chosen(run_path, "random:999") == alive.tolist()
    (run_path / "names.tsv").write_text("feature\tname\tstatus\n5\tcandy\tnamed\n1\tblue\tnamed\n2\tstripe\tunnamed\n")
    assert chosen(run_path, "named") == [1, 5]
    assert chosen(run_path, "9,named") == [9, 1, 5]


def test_a_picture_can_begin_with_the_feature_s_largest_images(run_path):
    told = Told()
    result = visualise(run_path, replace(OPTIONS, features="3,13", from_image=True, steps=1, lr=1e-6), told)
    assert (result.n_made, result.n_without_image) == (1, 1)
    assert any("1 features are left out" in line for line in told.lines)
    record = read_made(run_path / "visualisations")[3]
    stored = open_probe(run_path, "cpu").stored.statistics.top_row[3]
    assert record.from_row == stored[record.seed]
    probed = open_probe(run_path, "cpu")
    values = probed.stored.statistics.top_value[3]
    for seed in (0, 1):  # hardly moved: the picture is the image, and excites the feature as that did
        with Image.open(record.path(run_path / "visualisations", seed)) as image:
            found = probed.probe.activations(probed.probe.view(image.convert("RGB"))[None])[0, 3]
        assert found == pytest.approx(values[seed], rel=0.2)


def test_nothing_begins_with_an_image_where_no_feature_fires(run_path):
    with pytest.raises(ValueError, match="feature 13 fires on no image that --from-image could begin with"):
        visualise(run_path, replace(OPTIONS, features="13", from_image=True))


def test_without_images_the_spectrum_is_missed_in_one_line(planted, run_path):
    moved = planted.pictures.rename(planted.pictures.with_name("elsewhere"))
    try:
        with pytest.raises((StoreError, FileNotFoundError)):
            visualise(run_path, OPTIONS)
        said = CliRunner().invoke(main, ["visualise", str(run_path), "--features", "0", "--quiet", "--workers", "0"])
        assert said.exit_code == 1
        assert "Error:" in said.output
        assert "Traceback" not in said.output
        result = visualise(run_path, replace(OPTIONS, images=str(moved), steps=1))
        assert result.n_made == 1
    finally:
        moved.rename(planted.pictures)


def test_a_canvas_smaller_than_what_the_tower_sees_is_refused_and_a_larger_one_taken(run_path):
    with pytest.raises(ValueError, match="--canvas is 31; the tower sees 32"):
        visualise(run_path, replace(OPTIONS, canvas=31))
    with pytest.raises(ValueError, match="--canvas is 0"):
        visualise(run_path, replace(OPTIONS, canvas=0))
    visualise(run_path, replace(OPTIONS, canvas=37, steps=1, seeds=1))
    with Image.open(run_path / "visualisations" / "0.webp") as image:
        assert image.size == (37, 37)


def test_two_at_once_do_not_write_into_one_run(run_path):
    lock = FolderLock(run_path)
    try:
        with pytest.raises(StoreError, match="being written by another process"):
            visualise(run_path, OPTIONS)
    finally:
        lock.close()


def test_a_full_disk_is_said_before_anything_is_optimised(run_path, monkeypatch):
    monkeypatch.setattr(making, "free_bytes", lambda _: 1000)
    with pytest.raises(StoreError, match="make room"):
        visualise(run_path, OPTIONS)


def test_the_command_says_how_many_passed_and_where_they_are(made_path):
    shell = "--features 0 --method fourier --lr 0.05 --smoothness 0.01 --steps 20 --crops 2 --seeds 2"
    given = [*shell.split(" "), "--device", "cpu", "--workers", "0", "--quiet"]
    said = CliRunner().invoke(main, ["visualise", str(made_path), *given])
    assert said.exit_code == 0, said.output
    assert "pictures of 0 features made" in said.output
    assert "visualisations.tsv: 1 of 2 passed." in said.output
    document = json.loads(CliRunner().invoke(main, ["visualise", str(made_path), *given, "--json"]).stdout)
    assert (document["n_made"], document["n_kept"], document["checked"]["n_passed"]) == (0, 1, 1)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"steps": 0}, "steps is 0; it is at least 1"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"noise": 2.0}, "noise is 2.0"),
        ({"smoothness": -0.1}, "smoothness is -0.1"),
        ({"method": "paint"}, "method is 'paint'; it is one of maco, fourier"),
        ({"tokens": "all"}, "tokens is 'all'; it is one of mean, centre"),
        ({"workers": -1}, "workers is -1"),
        ({"seed": 1 << 63}, "below 2"),
    ],
)
def test_options_out_of_range_are_named(given, says):
    with pytest.raises(ValueError, match=says):
        VisualiseOptions(**given)

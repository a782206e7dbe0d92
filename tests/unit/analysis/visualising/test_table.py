"""The table of checked pictures, on a tower with planted truth; its file read back, whole and damaged."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from planted_clip import make_planted_run
from safetensors.numpy import load_file
from thresher.analysis.stored_statistics import open_statistics
from thresher.analysis.visualising import nulls
from thresher.analysis.visualising.checks import Checks, percentile_among
from thresher.analysis.visualising.image_space import ImageSpace
from thresher.analysis.visualising.parametrise import Colours
from thresher.analysis.visualising.pictures import MadePicture, as_webp
from thresher.analysis.visualising.probe import open_probe
from thresher.analysis.visualising.spectrum import ImageSpectrum, image_spectrum
from thresher.analysis.visualising.table import write_table
from thresher.analysis.visualising.visualisations_file import (
    COLUMNS,
    FOLDER,
    Visualisation,
    read_checks,
    read_visualisations,
    write_visualisations,
)
from thresher.harvest.vision import load_clip, tower_of
from thresher.progress import Reporter

SIZE = (32, 32)
GOOD, ANOTHERS, GREY, DEAD = 0, 1, 2, 13
"""Features whose pictures are: the best real one, that of feature 3, even grey, and anything of a dead feature."""


class Told(Reporter):
    def __init__(self):
        self.warned = []

    def warn(self, text):
        self.warned.append(text)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    return make_planted_run(tmp_path_factory.mktemp("planted"), n_images=120)


def real_picture(planted, feature):
    """The picture on which a planted feature is largest."""
    probed = open_probe(planted.path, "cpu")
    row = int(probed.stored.statistics.top_row[feature, 0])
    return Image.open(planted.pictures / probed.store.keys(np.array([row]))[0]).convert("RGB")


@pytest.fixture(scope="module")
def checked(planted):
    """Four pictures, put where `visualise` puts them, checked."""
    probed, folder = open_probe(planted.path, "cpu"), planted.path / FOLDER
    folder.mkdir()
    made = []
    for feature, picture in (
        (GOOD, real_picture(planted, GOOD)),
        (ANOTHERS, real_picture(planted, 3)),
        (GREY, Image.new("RGB", SIZE[::-1], (128, 128, 128))),
        (DEAD, real_picture(planted, 4)),
    ):
        one = MadePicture(feature=feature, seed=5, activations={5: 1.0, 6: 0.5}, parametrisation="maco", from_row=None)
        for seed, shown in ((5, picture), (6, picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT))):
            one.path(folder, seed).write_bytes(as_webp(np.asarray(shown)))
        made.append(one)
    spectrum = image_spectrum(folder, probed.store, probed.probe.exact, SIZE, workers=0)
    told = Told()
    result = write_table(probed, made, spectrum, SIZE, reporter=told)
    assert told.warned == []
    return result


def test_a_real_picture_of_a_feature_passes_and_those_of_nothing_fail(planted, checked):
    lines, problem = read_visualisations(planted.path, 15)
    assert problem is None
    assert list(lines) == [GOOD, ANOTHERS, GREY, DEAD]
    assert lines[GOOD].verdict == "passed"
    assert lines[GOOD].checks.rank <= 2  # one feature fires on everything
    assert lines[GOOD].checks.transfer_percentile == 100
    assert [lines[feature].is_passed for feature in (ANOTHERS, GREY, DEAD)] == [False] * 3
    assert lines[GREY].why == "the feature does not fire on it"
    assert lines[DEAD].why == "the feature does not fire on it"
    assert (checked.n_checked, checked.n_passed) == (4, 1)


def test_numbers_are_those_of_the_decoded_file_by_the_model_itself(planted, checked):
    lines, _ = read_visualisations(planted.path, 15)
    model = load_clip(str(planted.model_path)).model
    picture = Image.open(planted.path / FOLDER / "0.webp").convert("RGB")
    pixels = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None].double() / 255
    seen = []
    model.double().visual.transformer.resblocks[1].register_forward_hook(lambda _m, _i, out: seen.append(out[0, 0]))
    with torch.no_grad():
        model.encode_image((pixels - 0.5) / 0.5)
    sae = planted.sae
    x = seen[0].numpy() - sae.b_dec.double().numpy()
    code = np.maximum(x @ sae.W_enc.double().numpy() + sae.b_enc.double().numpy(), 0)
    largest = open_statistics(planted.path).statistics.max
    found = lines[GOOD].checks
    assert found.activation == pytest.approx(code[GOOD], rel=1e-4)
    assert found.activation_ratio == pytest.approx(code[GOOD] / largest[GOOD], rel=1e-4)
    assert found.share_of_code == pytest.approx(code[GOOD] / code.sum(), rel=1e-4)
    assert (found.rank, found.l0) == (1 + int((code > code[GOOD]).sum()), int((code > 0).sum()))
    assert 0.9 < found.activation_ratio < 1.1


def test_transfer_and_seed_agreement_are_those_of_embeddings_by_hand(planted, checked):
    lines, _ = read_visualisations(planted.path, 15)
    tower, probed = tower_of(load_clip(str(planted.model_path))), open_probe(planted.path, "cpu")

    def embedded(picture):
        with torch.no_grad():
            found = tower.visual(tower.preprocess(picture)[None])[0].double().numpy()
        return found / np.linalg.norm(found)

    keys = probed.store.keys(np.arange(probed.store.n_rows))
    rows = np.array([embedded(Image.open(planted.pictures / key).convert("RGB")) for key in keys])
    mean = rows.mean(axis=0)  # 240 rows: all of them are taken
    top_row, alive = probed.stored.statistics.top_row, np.flatnonzero(probed.stored.statistics.is_alive)
    tops = {f: rows[[r for r in top_row[f, :16] if r >= 0]].mean(axis=0) - mean for f in alive}
    own = [embedded(Image.open(planted.path / FOLDER / name).convert("RGB")) for name in ("1.webp", "1-6.webp")]
    cosine = {f: (own[0] - mean) @ top / np.linalg.norm(own[0] - mean) / np.linalg.norm(top) for f, top in tops.items()}
    others = np.array([value for f, value in cosine.items() if f != ANOTHERS])
    found = lines[ANOTHERS]
    assert found.checks.transfer_percentile == pytest.approx(percentile_among(cosine[ANOTHERS], others), abs=1e-3)
    assert found.seed_agreement_raw == pytest.approx(own[0] @ own[1], abs=1e-5)
    less = [each - mean for each in own]
    expected = less[0] @ less[1] / np.linalg.norm(less[0]) / np.linalg.norm(less[1])
    assert found.seed_agreement == pytest.approx(expected, abs=1e-4)
    kept = load_file(planted.path / FOLDER / "embeddings.safetensors")
    assert kept["feature"].tolist() == [GOOD, ANOTHERS, GREY, DEAD]
    np.testing.assert_allclose(kept["embedding"][1], np.mean(own, axis=0), atol=1e-5)


def test_the_table_of_nulls_tells_real_images_from_random_pixels(planted, checked):
    kinds = {kind.kind: kind for kind in checked.kinds}
    assert list(kinds) == list(nulls.KINDS)
    assert (kinds["pictures"].n, kinds["pictures"].n_passed) == (4, 1)
    tops = kinds["top images"]
    # of the three that fire on real images, one shows stripes of two pixels: its tower knows them at that size alone
    assert (tops.n, tops.n_passed, tops.why_failed) == (3, 2, {"crops": 1})
    assert tops.medians["activation_ratio"] == pytest.approx(1, abs=0.01)
    # this tower is nearly linear: the gradient of a feature is its own pattern, on every patch; the dead one stays dead
    raw = kinds["raw pixels"]
    assert (raw.n, raw.why_failed["fires"]) == (4, 1)
    assert raw.medians["activation_ratio"] > 2
    assert kinds["other features"].n == 4 * nulls.FEATURES_A_PICTURE
    for random in ("random phases", "noise"):
        assert kinds[random].n == nulls.N_RANDOM * nulls.FEATURES_A_PICTURE
        assert kinds[random].n_passed < 0.15 * kinds[random].n
        assert sum(kinds[random].why_failed.values()) == kinds[random].n - kinds[random].n_passed
    lines = (planted.path / FOLDER / "nulls.tsv").read_text().splitlines()
    assert lines[0].split("\t") == ["kind", *COLUMNS]
    assert len(lines) == 1 + sum(kind.n for kind in checked.kinds) - 4
    document = read_checks(planted.path)
    assert [kind["n_passed"] for kind in document["kinds"]] == [kind.n_passed for kind in checked.kinds]
    assert document["blur_px"] == pytest.approx(32 / 224)
    assert "pictures" in checked.lines()[0]
    assert "1 of 4 passed" in checked.lines()[0]


def test_no_picture_of_a_null_is_judged_for_its_own_feature(planted, checked):
    lines = [line.split("\t") for line in (planted.path / FOLDER / "nulls.tsv").read_text().splitlines()[1:]]
    judged = [(int(line[2 - 1]), line[2]) for line in lines if line[0] == "other features"]
    assert len(judged) == 16
    assert all(picture != f"{feature}.webp" for feature, picture in judged)
    assert not {feature for feature, _ in judged} & {13, 14}  # the dead


def test_without_the_images_nothing_is_said_of_transfer_and_a_warning_is_given(planted, checked, tmp_path):
    probed, told = open_probe(planted.path, "cpu"), Told()
    folder = planted.path / FOLDER
    spectrum = image_spectrum(folder, probed.store, probed.probe.exact, SIZE, workers=0)
    one = MadePicture(feature=GOOD, seed=5, activations={5: 1.0}, parametrisation="maco", from_row=None)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".tsv", ".json")}
    kept = [path.rename(path.with_suffix(".away")) for path in (planted.path / "naming").glob("*.npy")]
    try:
        result = write_table(probed, [one], spectrum, SIZE, images=str(tmp_path / "gone"), reporter=told)
        line = read_visualisations(planted.path, 15)[0][GOOD]
    finally:
        for path in kept:
            path.rename(path.with_suffix(".npy"))
        for name, data in before.items():
            (folder / name).write_bytes(data)
    assert len(told.warned) == 1
    assert "not compared with the run's images" in told.warned[0]
    assert line.is_passed
    assert math.isnan(line.checks.transfer_percentile)
    assert math.isnan(line.seed_agreement)
    assert result.agreement is None


LINE = Visualisation(
    feature=3,
    picture="3.webp",
    parametrisation="maco",
    seed=0,
    checks=Checks(
        activation=1.5,
        activation_ratio=math.nan,
        percentile=99.5,
        rank=2,
        share_of_code=0.25,
        l0=7,
        retention_jpeg=0.5,
        retention_blur=1e-7,
        retention_crop=2.0,
        transfer_percentile=88.0,
    ),
    seed_agreement=0.123456,
    verdict="passed",
)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / FOLDER / "visualisations.tsv"
    write_visualisations(path, [replace(LINE, feature=5, picture="5.webp", verdict="failed", why="it ≠ that"), LINE])
    return path


def test_a_table_is_read_as_it_was_written(tmp_path, file):
    found, problem = read_visualisations(tmp_path, 6)
    assert problem is None
    assert list(found) == [3, 5]
    assert found[5].why == "it ≠ that"
    same = replace(found[3], checks=LINE.checks, seed_agreement_raw=LINE.seed_agreement_raw)
    assert same == LINE
    assert math.isnan(found[3].checks.activation_ratio)
    assert replace(found[3].checks, activation_ratio=0) == replace(LINE.checks, activation_ratio=0)
    header = file.read_text().partition("\n")[0].replace("\t", " ")
    assert header.startswith(
        "feature picture parametrisation seed activation activation_ratio percentile rank share_of"
    )
    assert " seed_agreement transfer_percentile verdict why" in header


@pytest.mark.parametrize(
    ("place", "cell"),
    [
        (0, "six"),
        (0, "6"),
        (0, "-1"),
        (0, "٣"),
        (1, "../../config.json"),
        (1, "5.webp"),
        (7, "nan"),
        (7, ""),
        (9, "inf"),
        (4, "much"),
        (15, "Passed?"),
        (3, "x"),
    ],
)
def test_a_line_that_makes_no_sense_is_left_out_and_counted(tmp_path, file, place, cell):
    header, other, line = file.read_text().splitlines()
    cells = line.split("\t")
    cells[place] = cell
    file.write_text("\n".join([header, "\t".join(cells), other]))
    found, problem = read_visualisations(tmp_path, 6)
    assert list(found) == [5]
    assert problem.startswith("1 lines of visualisations.tsv are left out")


def test_what_is_no_table_is_said_and_no_file_is_no_pictures(tmp_path, file):
    assert read_visualisations(tmp_path / "elsewhere", 6) == ({}, None)
    whole = file.read_bytes()
    for damage in (
        whole + whole,
        b"\xff\xfe" + whole,
        whole.replace(b"\t", b" "),
        b"",
        b"\n\n",
        whole[: len(whole) // 2],
    ):
        file.write_bytes(damage)
        found, problem = read_visualisations(tmp_path, 6)
        assert set(found) <= {3, 5}
        assert problem
    file.unlink()
    file.mkdir()
    assert "cannot be read" in read_visualisations(tmp_path, 6)[1]


def test_control_characters_and_infinities_do_not_reach_a_page(tmp_path, file):
    text = file.read_text().replace("it ≠ that", "a\u202eb\x1bc" + "x" * 400).replace("0.123456", "inf")
    file.write_text(text)
    found, _ = read_visualisations(tmp_path, 6)
    assert found[5].why.startswith("a b cx")
    assert len(found[5].why) == 300
    assert math.isnan(found[3].seed_agreement)


def test_a_damaged_summary_is_none(tmp_path):
    assert read_checks(tmp_path) is None
    path = tmp_path / FOLDER / "checks.json"
    path.parent.mkdir()
    for text in ("{", "[]", json.dumps({"format": "another"})):
        path.write_text(text)
        assert read_checks(tmp_path) is None


def test_random_phases_have_the_spectrum_and_noise_has_none():
    magnitude = np.zeros((3, 16, 9), np.float32)
    magnitude[:, 0, 0], magnitude[:, 0, 1] = 1e-3, 20  # one wave across
    spectrum = ImageSpectrum(magnitude, Colours(np.zeros(3, np.float32), np.eye(3, dtype=np.float32)), 2)
    first, second = nulls.random_phases(spectrum, 16, 2, 0)
    for picture in (first, second):
        logits = np.asarray(picture, np.float64)[..., 0] / 255
        strengths = np.abs(np.fft.rfft2(np.log(logits / (1 - logits))))
        assert np.unravel_index(strengths.argmax(), strengths.shape) in [(0, 1)]
        assert strengths[0, 1] == pytest.approx(20, rel=0.05)
    assert first.tobytes() != second.tobytes()
    (noisy,) = nulls.noise((40, 60), 1, 0)
    pixels = np.asarray(noisy, np.float64)
    assert pixels.shape == (40, 60, 3)
    assert pixels.mean() == pytest.approx(127.5, abs=4)
    assert pixels.std() == pytest.approx(255 / math.sqrt(12), abs=3)


def test_top_images_of_a_feature_without_any_are_undefined():
    class Rows:
        store = type("Store", (), {"n_rows": 3})

        def embeddings(self, rows):
            return np.array([[1.0, 0], [0, 1], [np.nan, np.nan]], np.float32)[rows]

    space = ImageSpace(Rows(), np.array([[0, 1], [2, -1], [-1, -1], [1, 2]]))
    np.testing.assert_allclose(space.mean, [0.5, 0.5])
    found = space.top_images(np.arange(4))
    np.testing.assert_allclose(found[[0, 3]], [[0, 0], [-0.5, 0.5]])
    assert np.isnan(found[1:3]).all()


def test_pictures_of_a_store_of_all_tokens_are_checked_but_not_compared_with_whole_images(tmp_path):
    planted = make_planted_run(tmp_path, n_images=24, token="all")
    probed, folder, told = open_probe(planted.path, "cpu"), planted.path / FOLDER, Told()
    folder.mkdir()
    one = MadePicture(feature=GOOD, seed=0, activations={0: 1.0}, parametrisation="maco", from_row=None)
    one.path(folder).write_bytes(as_webp(np.asarray(real_picture(planted, GOOD))))
    spectrum = image_spectrum(folder, probed.store, probed.probe.exact, SIZE, workers=0)
    result = write_table(probed, [one], spectrum, SIZE, reporter=told)
    line = read_visualisations(planted.path, 15)[0][GOOD]
    assert line.is_passed
    # the largest of the picture's tokens, beside the largest of all rows, which are tokens
    assert line.checks.activation_ratio == pytest.approx(1, abs=0.02)
    assert math.isnan(line.checks.transfer_percentile)
    assert len(told.warned) == 1
    assert result.agreement is None
    assert "top images" not in {kind.kind for kind in result.kinds}

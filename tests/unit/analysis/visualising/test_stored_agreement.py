"""The agreement written into the statistics of a planted run: who points to the same concept, by hand and by chance."""

import numpy as np
import pytest
from planted_clip import WORDS, make_planted_run
from thresher.analysis.naming.names_file import NAMES_TSV
from thresher.analysis.naming.pictures import RowPictures
from thresher.analysis.options import StatsOptions
from thresher.analysis.stats import stats
from thresher.analysis.stored_statistics import open_statistics
from thresher.analysis.visualising.agreement import ARRAYS, pair_percentiles
from thresher.analysis.visualising.image_space import ImageSpace
from thresher.analysis.visualising.stored_agreement import EMBEDDINGS, write_agreement, write_embeddings
from thresher.analysis.visualising.visualisations_file import FOLDER
from thresher.harvest.vision import load_clip, tower_of
from thresher.progress import Reporter
from thresher.store.reader import open_store

N = len(WORDS)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    return make_planted_run(tmp_path_factory.mktemp("planted"), n_images=120)


@pytest.fixture
def witnesses(planted):
    """The run's model and rows; its names and pictures of earlier tests are gone."""
    (planted.path / NAMES_TSV).unlink(missing_ok=True)
    (planted.path / FOLDER / EMBEDDINGS).unlink(missing_ok=True)
    clip = load_clip(str(planted.model_path))
    with RowPictures(planted.path, open_store(planted.store_path), tower_of(clip), workers=0) as pictures:
        yield clip, pictures


def write_names(path, names):
    lines = ["feature\tname\tscore\tstatus", *(f"{feature}\t{name}\t1\t{status}" for feature, name, status in names)]
    (path / NAMES_TSV).write_text("\n".join(lines))


def embed_concepts(pictures, truth, of):
    """Embeddings as pictures of some concepts have them: the images' mean and the concept's own direction."""
    return ImageSpace(pictures, np.zeros((1, 1), np.int64)).mean + 0.3 * truth.embedding[of]


def read(path):
    details = open_statistics(path).details
    return {name: details.array(name)[:] for name in ARRAYS}


def test_planted_names_and_pictures_agree_with_the_images_and_shuffled_ones_do_not(planted, witnesses):
    clip, pictures = witnesses
    truth = [(feature, WORDS[feature], "named") for feature in range(N)]
    write_names(planted.path, truth)
    write_embeddings(planted.path, np.arange(N), embed_concepts(pictures, planted.truth, np.arange(N)))
    right = write_agreement(planted.path, clip, pictures)
    found = read(planted.path)
    assert (right.n_features, right.n_pictures, right.n_names) == (N, N, N)
    assert found["agreement"][:N].min() > 90
    assert np.isnan(found["agreement"][N:]).all()
    assert right.median == pytest.approx(np.median(found["agreement"][:N]))
    assert f"median percentile {right.median:.3g} over 8 features" in right.line()
    shifted = (np.arange(N) + 3) % N
    write_names(planted.path, [(feature, WORDS[at], "named") for feature, at in enumerate(shifted)])
    wrong = write_agreement(planted.path, clip, pictures)
    assert wrong.median < 75  # the pictures still agree with the images: 100 for one pair of three
    after = read(planted.path)
    assert np.nanmean(after["agreement_images_name"][:N]) < 60
    np.testing.assert_array_equal(after["agreement_picture_images"], found["agreement_picture_images"])


def test_names_alone_give_their_pair_and_unnamed_features_none(planted, witnesses):
    clip, pictures = witnesses
    write_names(
        planted.path, [(0, "pink", "named"), (1, "blue", "unnamed"), (2, "stripe", "named"), (13, "bar", "named")]
    )
    result = write_agreement(planted.path, clip, pictures)
    found = read(planted.path)
    assert np.flatnonzero(np.isfinite(found["agreement_images_name"])).tolist() == [0, 2]  # 13 is dead
    assert np.isnan(found["agreement_picture_name"]).all()
    assert np.isnan(found["agreement"]).all()
    assert (result.n_features, result.n_names) == (0, 3)
    assert result.line().endswith("no feature has all three (0 have a picture, 3 a name)")


def test_pictures_alone_are_compared_with_the_top_images_of_every_other_feature(planted, witnesses):
    clip, pictures = witnesses
    of = np.array([1, 4])
    embeddings = embed_concepts(pictures, planted.truth, of)
    write_embeddings(planted.path, of, embeddings)
    write_agreement(planted.path, clip, pictures)
    space = ImageSpace(pictures, open_statistics(planted.path).statistics.top_row)
    vectors = np.full((15, 32), np.nan)
    vectors[of] = embeddings - space.mean
    expected = pair_percentiles(vectors, space.top_images(np.arange(15)))
    np.testing.assert_allclose(read(planted.path)["agreement_picture_images"], expected, atol=1e-3)
    assert np.flatnonzero(np.isfinite(expected)).tolist() == [1, 4]


def test_with_neither_names_nor_pictures_nothing_is_written_and_that_of_earlier_names_goes(planted, witnesses):
    write_names(planted.path, [(0, "pink", "named")])
    write_agreement(planted.path, *witnesses)
    assert open_statistics(planted.path).details.has("agreement_images_name")
    (planted.path / NAMES_TSV).unlink()
    assert write_agreement(planted.path, *witnesses) is None
    assert not any(open_statistics(planted.path).details.has(name) for name in ARRAYS)


def test_where_it_cannot_be_computed_anew_that_of_earlier_names_goes(planted, witnesses, monkeypatch):
    write_names(planted.path, [(0, "pink", "named")])
    write_agreement(planted.path, *witnesses)
    write_names(planted.path, [(0, "blue", "named")])

    def gone(*_):
        raise OSError("the images are gone")

    monkeypatch.setattr(RowPictures, "embeddings", gone)
    assert write_agreement(planted.path, *witnesses) is None
    assert not any(open_statistics(planted.path).details.has(name) for name in ARRAYS)


def test_pictures_embedded_for_another_run_are_none(planted, witnesses):
    clip, pictures = witnesses
    for features, width in (([0, 99], 32), ([0], 7)):
        write_embeddings(planted.path, np.array(features), np.ones((len(features), width), np.float32))
        assert write_agreement(planted.path, clip, pictures) is None
    (planted.path / FOLDER / EMBEDDINGS).write_bytes(b"no safetensors")
    assert write_agreement(planted.path, clip, pictures) is None


def test_statistics_made_again_say_that_the_agreement_went_with_the_earlier_ones(planted, witnesses):
    write_names(planted.path, [(0, "pink", "named")])
    write_agreement(planted.path, *witnesses)
    assert open_statistics(planted.path).details.has("agreement")
    warned = []
    reporter = Reporter()
    reporter.warn = warned.append
    again = StatsOptions(figures=False, min_labelled=2, null_draws=5, samples=2, overwrite=True)
    stats(planted.path, again, reporter)
    assert not open_statistics(planted.path).details.has("agreement")
    assert [text for text in warned if "`thresher visualise`, given as before, writes it anew" in text]
    stats(planted.path, again, reporter)
    assert len([text for text in warned if "anew" in text]) == 1


def test_without_statistics_or_images_a_warning_is_given_and_nothing_raised(planted, witnesses, tmp_path):
    clip, pictures = witnesses
    write_names(planted.path, [(0, "pink", "named")])
    warned = []
    reporter = Reporter()
    reporter.warn = warned.append
    statistics = planted.path / "stats.json"
    statistics.rename(tmp_path / "stats.json")
    try:
        assert write_agreement(planted.path, clip, pictures, reporter=reporter) is None
    finally:
        (tmp_path / "stats.json").rename(statistics)
    fresh = tmp_path / "run"
    fresh.mkdir()
    for name in ("stats.json", "stats.zarr", "names.tsv", "config.json"):
        (fresh / name).symlink_to(planted.path / name)
    with RowPictures(fresh, pictures.store, pictures.tower, str(tmp_path / "gone"), workers=0) as without:
        assert write_agreement(fresh, clip, without, reporter=reporter) is None
    assert len(warned) == 2
    assert "holds no statistics: run `thresher stats` first" in warned[0]
    assert warned[1].startswith("the agreement of pictures, top images and names is not computed: ")
    assert "gone" in warned[1]

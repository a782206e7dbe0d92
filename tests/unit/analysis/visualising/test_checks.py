"""The objective checks of a picture, each counted by hand, and its verdict."""

import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFilter
from thresher.analysis.visualising import checks as checks_
from thresher.analysis.visualising.checks import (
    Checks,
    PictureCode,
    RealImages,
    as_jpeg,
    blurred,
    check,
    crops,
    percentile_among,
    picture_code,
    seed_agreement,
    unit,
)

REAL = RealImages(largest=4.0, firings=np.array([1, 2, 3, 3, 4.0]), nearness=0.5, others_nearness=np.array([0.1, 0.5]))
CODE = PictureCode(
    *(np.array(row, np.float32) for row in ([3, 5, 0, 2, 3], [1.5, 0, 0, 0, 0], [3, 0, 0, 0, 9], [6] * 5))
)
GOOD = Checks(
    activation=3.0,
    activation_ratio=0.75,
    percentile=60.0,
    rank=2,
    share_of_code=0.25,
    l0=4,
    retention_jpeg=0.9,
    retention_blur=0.8,
    retention_crop=0.7,
    transfer_percentile=99.0,
)


def test_each_number_of_a_picture_is_that_counted_by_hand():
    found = check(CODE, 0, REAL)
    assert found.activation == 3
    assert found.activation_ratio == 0.75  # 3 of 4
    assert found.percentile == 60  # two of five below, two ties of which one counts
    assert found.rank == 2  # one is larger; that of feature 4 is as large
    assert found.share_of_code == pytest.approx(3 / 13)
    assert found.l0 == 4
    assert (found.retention_jpeg, found.retention_blur, found.retention_crop) == (0.5, 1.0, 2.0)
    assert found.transfer_percentile == 75  # one below, one tie


def test_a_feature_that_does_not_fire_on_its_picture_fails_without_a_division_by_zero():
    found = check(CODE, 2, REAL)
    assert (found.activation, found.activation_ratio, found.percentile, found.rank) == (0, 0, 0, 5)
    assert math.isnan(found.retention_jpeg)
    assert found.broken_rule[1] == "the feature does not fire on it"


def test_a_picture_on_which_nothing_fires_has_no_shares():
    nothing = PictureCode(*np.zeros((4, 3), np.float32))
    found = check(nothing, 1, REAL)
    assert (found.rank, found.l0) == (1, 0)
    assert math.isnan(found.share_of_code)
    assert not found.is_passed


def test_a_dead_feature_has_nothing_to_be_held_against_and_fails():
    found = check(CODE, 0, RealImages(largest=0.0, firings=np.empty(0)))
    assert math.isnan(found.activation_ratio)
    assert math.isnan(found.percentile)
    assert math.isnan(found.transfer_percentile)
    assert found.broken_rule[1] == "the feature fires on no real image"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"activation_ratio": 0.4}, "0.40 of the largest activation on a real image; 0.5 is asked"),
        ({"activation_ratio": 0.499}, "0.499 of the largest activation on a real image; 0.5 is asked"),
        ({"rank": 11}, "10 features are larger on it; at most 9 may be"),
        ({"retention_jpeg": 0.3}, "JPEG of quality 75 keeps 0.30 of the activation; 0.5 is asked"),
        ({"retention_blur": 0.2}, "blur keeps 0.20 of the activation; 0.5 is asked"),
        ({"retention_crop": 0.0}, "crops keep 0.00 of the activation; 0.5 is asked"),
        ({"retention_crop": 0.49997}, "crops keep 0.49997 of the activation; 0.5 is asked"),
        (
            {"transfer_percentile": 74.96},
            "nearer to its own top images than to those of 74.96 % of other features; 75 % ",
        ),
        ({"transfer_percentile": 74.0}, "nearer to its own top images than to those of 74 % of other features; 75 % "),
        ({"rank": 11, "activation_ratio": 0.1}, "0.10 of the largest activation"),
    ],
)
def test_the_first_rule_that_is_broken_is_the_reason(changes, words):
    found = replace(GOOD, **changes)
    assert not found.is_passed
    assert found.broken_rule[1].startswith(words)


def test_a_picture_at_every_bound_passes():
    assert GOOD.is_passed
    at_bounds = {"activation_ratio": 0.5, "rank": 10, "retention_jpeg": 0.5, "retention_blur": 0.5}
    assert replace(GOOD, **at_bounds, retention_crop=0.5, transfer_percentile=75.0).broken_rule == ("", "")


def test_what_is_not_known_breaks_no_rule():
    assert replace(GOOD, transfer_percentile=math.nan, percentile=math.nan).is_passed


class Brightness:
    """A tower whose two features are the mean red and the sharpness of edges."""

    def activations(self, pixels):
        wide = pixels.astype(np.float32)
        return np.stack([wide[..., 0].mean(axis=(1, 2)), np.abs(np.diff(wide[..., 0], axis=2)).mean(axis=(1, 2))], 1)


def test_a_picture_and_its_damages_are_read_in_one_batch_and_crops_averaged():
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    code, tower = picture_code(Brightness(), pixels), Brightness()
    for found, copies in ((code.whole, [pixels]), (code.jpeg, [as_jpeg(pixels)]), (code.crop, crops(pixels))):
        np.testing.assert_allclose(found, tower.activations(np.stack(copies)).mean(axis=0), rtol=1e-6)
    # noise of single pixels: blur by 20 / 224 of a pixel keeps its edges, that of a pixel does not
    assert code.blur[1] > 0.8 * code.whole[1]
    assert code.blur[0] == pytest.approx(code.whole[0], rel=0.01)


def test_jpeg_is_that_of_quality_75(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.jpg", quality=75)
    np.testing.assert_array_equal(as_jpeg(pixels), np.asarray(Image.open(tmp_path / "x.jpg")))
    assert np.abs(as_jpeg(pixels).astype(int) - pixels).max() > 20


def test_blur_is_one_pixel_at_an_input_of_224_and_scales_with_it():
    pixels = np.random.default_rng(2).integers(0, 255, (448, 500, 3), dtype=np.uint8)
    expected = Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(2))
    np.testing.assert_array_equal(blurred(pixels), np.asarray(expected))


def test_crops_are_the_middle_and_the_corners_at_the_whole_size():
    row = np.repeat(np.arange(0, 200, 10, dtype=np.uint8)[None], 20, axis=0)  # brighter to the right
    pixels = np.repeat(row[..., None], 3, axis=2)
    middle, top_left, top_right, low_left, low_right = crops(pixels)
    assert {crop.shape for crop in crops(pixels)} == {pixels.shape}
    assert middle.mean() == pytest.approx(pixels.mean(), abs=0.6)
    # 18 of 20 columns: their mean is one column, 10, less on the left and more on the right
    assert top_left.mean() == pytest.approx(pixels.mean() - 10, abs=0.6)
    assert low_right.mean() == pytest.approx(pixels.mean() + 10, abs=0.6)
    np.testing.assert_array_equal(top_left, low_left)  # nothing changes downwards
    np.testing.assert_array_equal(top_right, low_right)


def test_percentiles_count_ties_half():
    assert percentile_among(2.0, np.array([1.0, 2, 2, 3])) == 50
    assert percentile_among(5.0, np.array([1.0, 2])) == 100
    assert math.isnan(percentile_among(math.nan, np.array([1.0])))
    assert math.isnan(percentile_among(1.0, np.empty(0)))


def test_seeds_agree_by_their_mean_cosine_and_one_seed_has_none():
    right, up, diagonal = [1.0, 0], [0, 1.0], [3.0, 3]
    # the three pairs: 0, sqrt(1/2), sqrt(1/2)
    assert seed_agreement(np.array([right, up, diagonal])) == pytest.approx(2 * math.sqrt(0.5) / 3)
    # less (1, 1): (0, -1), (-1, 0), (2, 2): 0, -sqrt(1/2), -sqrt(1/2)
    centred = seed_agreement(np.array([right, up, diagonal]), np.array([1.0, 1.0]))
    assert centred == pytest.approx(-2 * math.sqrt(0.5) / 3)
    assert math.isnan(seed_agreement(np.array([right])))
    assert seed_agreement(np.array([right, right, right])) == pytest.approx(1)


def test_a_vector_of_zeros_has_no_direction():
    assert np.isnan(unit(np.zeros((1, 3)))).all()
    assert math.isnan(seed_agreement(np.array([[1.0, 1], [2, 2]]), np.array([1.0, 1])))


def test_the_rules_in_words_name_the_bounds():
    text = " ".join(checks_.RULES)
    for bound in (checks_.LEAST_RATIO, checks_.MOST_RANK, checks_.LEAST_RETENTION, checks_.LEAST_TRANSFER):
        assert f"{bound:g}" in text

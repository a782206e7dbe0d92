"""The agreement percentile, on vectors whose percentiles are counted by hand, and on random ones."""

import math

import numpy as np
import pytest
from thresher.analysis.visualising.agreement import MOST_OTHERS, agreement, pair_percentiles

NONE = [math.nan, math.nan]


def counted(one, other):
    """The percentile of each feature, with loops: the mean over either vector exchanged."""

    def cosine(a, b):
        return float(np.dot(a, b) / math.sqrt(np.dot(a, a) * np.dot(b, b)))

    n, found = len(one), []
    for f in range(n):
        own, halves = cosine(one[f], other[f]), []
        for exchange in ([cosine(one[f], other[g]) for g in range(n) if g != f],
                         [cosine(one[g], other[f]) for g in range(n) if g != f]):  # fmt: skip
            halves.append(100 * sum(1.0 if c < own else 0.5 if c == own else 0.0 for c in exchange) / (n - 1))
        found.append(sum(halves) / 2)
    return found


def test_percentiles_are_counted_against_each_vector_exchanged():
    # At these angles in the plane; cosines fall with the angle between.
    one, other = (np.array([[math.cos(a), math.sin(a)] for a in angles]) for angles in ([0, 1, 2], [0.1, 2.2, 1.5]))
    # feature 0: 0.1 is nearer to 0 than 2.2 and 1.5, and 0 is nearer to 0.1 than 1 and 2 are: 100 and 100.
    # feature 1: |1 - 2.2| = 1.2 against |1 - 0.1| = 0.9 and |1 - 1.5| = 0.5: 0; |0 - 2.2|, |2 - 2.2|: one of two: 50.
    # feature 2: 0.5 against 1.9 and 0.2: 50; against |0 - 1.5| and |1 - 1.5| = 0.5, a tie: (100 + 50) / 2.
    found = pair_percentiles(one, other)
    assert found[:2].tolist() == [100, 25]
    assert found[2] == pytest.approx((50 + 75) / 2)


def test_many_percentiles_are_those_of_a_count_with_loops():
    draw = np.random.default_rng(3)
    one, other = draw.standard_normal((2, 30, 5))
    np.testing.assert_allclose(pair_percentiles(one, 7 * other), counted(one, other), atol=1e-9)


def test_three_witnesses_that_point_to_their_own_feature_agree_fully():
    vectors = np.eye(6)
    found = agreement(vectors, 2 * vectors, vectors)
    assert (found.agreement == 100).all()
    assert found.agreement.dtype == np.float32


def test_random_vectors_agree_by_chance_alone():
    draw = np.random.default_rng(0)
    found = agreement(*draw.standard_normal((3, 2000, 16)))
    for values in (found.agreement, found.agreement_picture_images, found.agreement_images_name):
        # percentiles have a standard deviation of at most 28.9: the mean of 2,000 lies within 4 x 0.65
        assert values.mean() == pytest.approx(50, abs=2.6)
    assert found.agreement.std() < found.agreement_picture_name.std()


def test_witnesses_that_are_alike_for_every_feature_are_chance_and_not_agreement():
    draw = np.random.default_rng(1)
    pictures = np.tile(draw.standard_normal(8), (50, 1))
    found = pair_percentiles(pictures, draw.standard_normal((50, 8)))
    # With the picture exchanged every cosine is the same: 50. With the images exchanged: their order, 50 on average.
    assert found.mean() == pytest.approx(50)
    assert found.min() >= 25
    assert found.max() <= 75


def test_the_mean_is_that_of_the_three_pairs():
    draw = np.random.default_rng(2)
    pictures, images, names = draw.standard_normal((3, 40, 6))
    found = agreement(pictures, images, names)
    expected = [counted(pictures, images), counted(pictures, names), counted(images, names)]
    np.testing.assert_allclose(found.agreement, np.mean(expected, axis=0), rtol=1e-6)


def test_a_missing_witness_leaves_its_pairs_undefined_so_that_they_say_which():
    draw = np.random.default_rng(4)
    pictures, images, names = draw.standard_normal((3, 5, 2))
    pictures[1], names[2], images[3] = NONE, NONE, 0
    found = agreement(pictures, images, names)
    assert np.isnan(found.agreement).tolist() == [False, True, True, True, False]
    assert np.isnan(found.agreement_picture_images).tolist() == [False, True, False, True, False]
    assert np.isnan(found.agreement_picture_name).tolist() == [False, True, True, False, False]
    assert np.isnan(found.agreement_images_name).tolist() == [False, False, True, True, False]


def test_one_feature_alone_has_nothing_to_be_compared_with():
    assert np.isnan(pair_percentiles(np.ones((1, 3)), np.ones((1, 3)))).all()
    assert np.isnan(pair_percentiles(np.full((4, 2), np.nan), np.ones((4, 2)))).all()


def test_one_picture_among_many_images_is_compared_with_their_images():
    images = np.array([[1.0, 0], [0, 1], [-1, 0]])
    pictures = np.array([[1.0, 0.1], NONE, NONE])
    assert pair_percentiles(pictures, images)[0] == 100


def test_more_features_than_are_compared_give_nearly_the_same():
    draw = np.random.default_rng(5)
    one = draw.standard_normal((MOST_OTHERS + 500, 8))
    other = one + 2 * draw.standard_normal(one.shape)
    found = pair_percentiles(one, other)
    units = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (one, other)]
    cosines = units[0] @ units[1].T
    own = np.diag(cosines)
    exact = 50 * ((cosines < own[:, None]).sum(axis=1) + (cosines < own[None]).sum(axis=0)) / (len(one) - 1)
    assert np.abs(found - exact).max() < 5  # 1,000 of 1,499: a standard error of at most 0.9
    assert abs((found - exact).mean()) < 0.5

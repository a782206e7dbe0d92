import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax
from thresher.analysis.contrastive import (
    balanced_sample,
    caption_batches,
    info_nce,
    loss_recovered,
    repeated_batches,
    score_embeddings,
    zero_shot_accuracy,
)


def unit(n, e, seed):
    rows = np.random.default_rng(seed).standard_normal((n, e))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def by_loops(images, captions, scale):
    """Symmetric InfoNCE written out: -log of each pair's softmax by row and by column."""
    n, total = len(images), 0.0
    for i in range(n):
        row = [scale * sum(images[i] * captions[j]) for j in range(n)]
        column = [scale * sum(images[j] * captions[i]) for j in range(n)]
        for logits in (row, column):
            total += math.log(sum(math.exp(x - logits[i]) for x in logits))
    return total / (2 * n)


@pytest.mark.parametrize(("b", "scale"), [(1, 5.0), (2, 1.0), (7, 14.3), (40, 30.0)])
def test_info_nce_is_the_mean_of_both_cross_entropies(b, scale):
    images, captions = unit(b, 5, 0), unit(b, 5, 1)
    assert info_nce(images, captions, scale) == pytest.approx(by_loops(images, captions, scale), rel=1e-12, abs=1e-14)


def test_info_nce_equals_open_clips_loss():
    import torch
    from open_clip.loss import ClipLoss

    images, captions = unit(9, 6, 2), unit(9, 6, 3)
    theirs = ClipLoss()(torch.from_numpy(images), torch.from_numpy(captions), torch.tensor(100.0).double())
    assert info_nce(images, captions, 100.0) == pytest.approx(float(theirs), rel=1e-12)


def test_a_scale_of_100_does_not_overflow():
    images = np.eye(3)
    assert info_nce(images, images, 1e4) == 0.0
    assert info_nce(images, np.roll(images, 1, axis=0), 1e4) == pytest.approx(1e4)


def test_images_that_are_all_alike_lose_what_guessing_does():
    images, captions = np.tile(unit(1, 4, 0), (8, 1)), unit(8, 4, 1)
    # By columns every image is as likely: exactly ln 8; by rows the captions still differ.
    logits = 10 * images @ captions.T
    rows = -np.mean(np.diag(log_softmax(logits, axis=1)))
    assert info_nce(images, captions, 10.0) == pytest.approx((rows + math.log(8)) / 2, rel=1e-12)


def test_repeated_captions_put_a_floor_under_the_loss():
    images = np.repeat(np.eye(2), 2, axis=0)  # two images of each of two captions, told apart perfectly
    assert info_nce(images, images, 1e3) == pytest.approx(math.log(2), rel=1e-12)


def test_the_posts_batches_cannot_lose_less_than_0_58_nats():
    # 1024 images of 1000 classes, told apart perfectly: each still meets the other images of its class
    own = np.random.default_rng(0).integers(0, 1000, 4096)
    losses = [info_nce(np.eye(1000)[own[b]], np.eye(1000)[own[b]], 1e3) for b in repeated_batches(4096, 1024, 0)]
    assert np.mean(losses) == pytest.approx(0.584, abs=0.03)
    kept = caption_batches(own, 1000, 0)[0]
    assert info_nce(np.eye(1000)[own[kept]], np.eye(1000)[own[kept]], 1e3) == pytest.approx(0, abs=1e-12)


def test_zero_shot_counts_the_captions_that_are_nearer():
    images, captions = unit(200, 8, 0), unit(11, 8, 1)
    own = np.random.default_rng(2).integers(0, 11, 200)
    order = np.argsort(-(images @ captions.T), axis=1)
    expected = tuple(np.mean([own[i] in order[i, :k] for i in range(200)]) for k in (1, 5))
    assert zero_shot_accuracy(images, captions, own, (1, 5)) == pytest.approx(expected)


def test_of_equally_near_captions_any_order_is_as_likely():
    captions = np.array([[1.0, 0], [1, 0], [1, 0], [0, 1]])
    image = np.array([[1.0, 0]])
    # caption 0 ties with two others: first with chance 1/3, among two 2/3, among three surely
    assert zero_shot_accuracy(image, captions, np.array([0]), (1, 2, 3)) == pytest.approx((1 / 3, 2 / 3, 1))
    # caption 3 is behind three
    assert zero_shot_accuracy(image, captions, np.array([3]), (1, 3, 4)) == (0, 0, 1)


def test_images_that_are_all_alike_and_captions_too_score_what_guessing_does():
    images, captions = np.ones((6, 1)), np.ones((10, 1))
    own = np.arange(6)
    assert zero_shot_accuracy(images, captions, own, (1, 5)) == pytest.approx((0.1, 0.5))


def test_top5_of_four_captions_is_certain():
    assert zero_shot_accuracy(unit(9, 3, 0), unit(4, 3, 1), np.zeros(9, np.int64), (5,)) == (1.0,)


def test_the_standard_error_is_that_of_the_mean_over_batches():
    images, captions, own = unit(12, 4, 0), unit(4, 4, 1), np.tile(np.arange(4), 3)
    batches = np.arange(12).reshape(3, 4)
    losses = [by_loops(images[rows], captions[own[rows]], 7.0) for rows in batches]
    found = score_embeddings(images, captions, own, batches, 7.0)
    assert found.loss == pytest.approx(np.mean(losses))
    assert found.loss_standard_error == pytest.approx(np.std(losses, ddof=1) / math.sqrt(3))
    single = score_embeddings(images, captions, own, batches[:1], 7.0)
    assert math.isnan(single.loss_standard_error)


def test_loss_recovered_is_one_where_nothing_is_lost_and_zero_where_all_is():
    assert loss_recovered(4.0, 1.0, 1.0) == 1
    assert loss_recovered(4.0, 1.0, 4.0) == 0
    assert loss_recovered(4.0, 1.0, 5.5) == -0.5
    assert loss_recovered(4.0, 1.0, 0.5) > 1  # the SAE does better than the model, as the post's did
    assert math.isnan(loss_recovered(2.0, 2.0, 1.0))


def most_batches(counts, b):
    """The largest m for which m batches of b different captions can be dealt: a caption serves m times at most."""
    return max(m for m in range(sum(counts) // b + 1) if sum(min(c, m) for c in counts) >= m * b)


@given(st.lists(st.integers(0, 7), min_size=1, max_size=60), st.integers(1, 12), st.integers(0, 5))
def test_batches_hold_no_caption_twice_and_are_as_many_as_can_be(labels, size, seed):
    own = np.array(labels)
    batches = caption_batches(own, size, seed)
    b = min(size, len(set(labels)))
    assert batches.shape == (most_batches(np.bincount(own).tolist(), b), b)
    assert len(batches) >= 1
    assert len(np.unique(batches)) == batches.size
    for batch in batches:
        assert len(np.unique(own[batch])) == b


def test_balanced_captions_fill_every_batch_with_all_of_them():
    own = np.random.default_rng(0).permutation(np.repeat(np.arange(50), 6))
    batches = caption_batches(own, 1000, 3)
    assert batches.shape == (6, 50)
    assert sorted(batches.ravel()) == list(range(300))


def test_batches_depend_on_the_seed_alone():
    own = np.arange(90) % 9
    assert np.array_equal(caption_batches(own, 5, 1), caption_batches(own, 5, 1))
    assert not np.array_equal(caption_batches(own, 5, 1), caption_batches(own, 5, 2))


def test_every_image_is_as_likely_to_be_left_over():
    own = np.array([0, 0, 0, 1])  # one batch of two: image 3 and any of 0, 1, 2
    chosen = [caption_batches(own, 2, seed)[0] for seed in range(600)]
    share = [np.mean([image in batch for batch in chosen]) for image in range(4)]
    assert share[3] == 1
    assert np.allclose(share[:3], 1 / 3, atol=0.08)  # 4 standard deviations


def test_fewer_images_than_a_batch_make_one_of_what_there_is():
    assert sorted(caption_batches(np.array([4, 2, 7]), 1000, 0)[0]) == [0, 1, 2]
    assert repeated_batches(3, 1024, 0).shape == (1, 3)


def test_the_posts_batches_are_whole_and_repeat_captions():
    batches = repeated_batches(2100, 1024, 0)
    assert batches.shape == (2, 1024)
    assert len(np.unique(batches)) == 2048


@given(st.lists(st.integers(0, 6), min_size=1, max_size=50), st.integers(1, 60), st.integers(0, 3))
def test_a_sample_is_as_even_over_captions_as_they_allow(labels, n, seed):
    own = np.array(labels)
    sample = balanced_sample(own, n, seed)
    assert len(sample) == min(n, len(own))
    assert np.array_equal(sample, np.unique(sample))
    taken, there = np.bincount(own[sample], minlength=7), np.bincount(own, minlength=7)
    most = taken.max()
    for caption in range(7):
        assert taken[caption] == there[caption] or taken[caption] >= most - 1

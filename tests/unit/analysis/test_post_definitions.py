"""The post's numbers by its own code's formulas and by ours: equal where its definition is right, and how they differ
where its code is wrong.

The arrays have the distribution of those that the post published, made by a seeded generator; its code is written anew
here from its formulas. k = 20, 65,536 features, labels of 1,000 classes over 524,288 images.
"""

import math

import numpy as np
import pytest
import torch
from thresher.analysis.contrastive import caption_batches, info_nce, loss_recovered
from thresher.analysis.cosines import unit_rows
from thresher.analysis.quality import SUMS, Quality, SectionSums
from thresher.analysis.statistics import FeatureStatistics
from thresher.analysis.totals import FeatureTotals
from thresher.store.reader import open_store
from thresher.train.recipes import resolve_options

N_FEATURES, K, N_IMAGES, N_CLASSES = 65_536, 20, 524_288, 1000
STRAWBERRY = 949  # the label of image 0 in the post's order: what its code took unfilled places for
UNDEFINED, ONE_CLASS, SEVERAL = 17_511, 530, 47_495  # features of the post's entropy.pt that are -1, 0 and above


class PublishedArrays:
    """`value`, `index`, `label` (65,536, 20) as the post stored them, its label of every image, and log10 densities."""

    def __init__(self) -> None:
        rng = np.random.default_rng(2024)
        self.label_of = rng.integers(0, N_CLASSES, N_IMAGES)
        self.label_of[0] = STRAWBERRY
        self.kind = np.repeat(["undefined", "one class", "several"], [UNDEFINED, ONE_CLASS, SEVERAL])
        of_class = [np.flatnonzero(self.label_of == c)[1:] for c in range(N_CLASSES)]
        not_strawberry = np.flatnonzero(self.label_of != STRAWBERRY)
        n_real = np.full(N_FEATURES, K)
        n_real[:UNDEFINED] = rng.integers(0, 10, UNDEFINED)
        n_positive = n_real.copy()
        n_positive[UNDEFINED + ONE_CLASS + 1000 : UNDEFINED + ONE_CLASS + 7000] = rng.integers(2, 10, 6000)
        self.index = rng.choice(not_strawberry, (N_FEATURES, K))
        # 40 features of strawberries: the post's code sees no row of theirs
        self.is_strawberry = np.arange(N_FEATURES) < 40
        n_real[:40] = n_positive[:40] = K
        self.index[:40] = rng.choice(of_class[STRAWBERRY], (40, K))
        for j in range(UNDEFINED, UNDEFINED + ONE_CLASS):
            self.index[j] = rng.choice(of_class[j % STRAWBERRY], K)
        # features outside the cluster share a few classes, and are strong
        first = UNDEFINED + ONE_CLASS
        for j in range(first, first + 725):
            classes = rng.choice(STRAWBERRY, rng.integers(2, 9), replace=False)
            self.index[j] = [rng.choice(of_class[c]) for c in np.append(classes, rng.choice(classes, K - len(classes)))]
        strength = np.full(N_FEATURES, 0.02)
        strength[UNDEFINED : UNDEFINED + 496] = np.exp(rng.normal(1.4, 0.4, 496))
        strength[first : first + 725] = np.exp(rng.normal(1.5, 0.3, 725))
        value = strength[:, None] * np.sort(1 + rng.random((N_FEATURES, K)), axis=1)[:, ::-1]
        place = np.arange(K)
        value[place >= n_positive[:, None]] = 0  # the post's top-k also returns rows on which a feature is 0
        self.index[place >= n_real[:, None]] = 0  # and its unfilled places are image 0
        flat = first + 800  # twenty classes, almost equal weights
        self.index[flat] = [of_class[c][0] for c in range(K)]
        value[flat] = 0.02 * (1 + 0.004 * np.arange(K)[::-1])
        self.value, self.label = value.astype(np.float32), self.label_of[self.index]
        self.log_density = np.where(strength > 0.1, -1.9, -5.0)


@pytest.fixture(scope="module")
def published() -> PublishedArrays:
    return PublishedArrays()


@pytest.fixture(scope="module")
def posts_entropy(published) -> np.ndarray:
    """-sum p ln(p + 1e-9), p over labels other than 949; -1 where fewer than 10 places have such a label; float32."""
    out = np.empty(N_FEATURES, np.float32)
    for first in range(0, N_FEATURES, 4096):
        value, label = published.value[first : first + 4096], published.label[first : first + 4096]
        counted = label != STRAWBERRY
        key = np.arange(len(value))[:, None] * N_CLASSES + label
        weights = np.bincount(key.ravel(), (value * counted).ravel(), len(value) * N_CLASSES)
        weights = weights.reshape(-1, N_CLASSES).astype(np.float32)
        p = weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-30)
        entropy = -(p * np.log(p + np.float32(1e-9))).sum(axis=1)
        out[first : first + 4096] = np.where(counted.sum(axis=1) < 10, -1, entropy)
    return out


@pytest.fixture(scope="module")
def ours(published) -> FeatureStatistics:
    totals = FeatureTotals.zero(N_FEATURES, K)
    fires = published.value > 0
    totals.n_rows, totals.n_active = N_IMAGES, np.where(fires.any(axis=1), 1, 0)
    totals.top_value = published.value
    totals.top_row = np.where(fires, published.index, -1)
    totals.top_label = np.where(fires, published.label, -1).astype(np.int32)
    return FeatureStatistics.of_totals(totals, min_labelled=10)


def test_the_posts_formula_gives_the_counts_that_it_published(posts_entropy):
    assert int((posts_entropy == -1).sum()) == UNDEFINED
    assert int((posts_entropy == 0).sum()) == ONE_CLASS
    assert int((posts_entropy > 0).sum()) == SEVERAL
    assert posts_entropy.max() == pytest.approx(math.log(K), abs=5e-4)
    assert posts_entropy.max() < math.log(K)


def test_entropy_is_the_posts_where_twenty_rows_of_other_labels_fire(published, posts_entropy, ours):
    full = (published.value > 0).all(axis=1) & (published.label != STRAWBERRY).all(axis=1)
    assert int(full.sum()) == ONE_CLASS + SEVERAL - 6000
    np.testing.assert_allclose(ours.label_entropy[full], posts_entropy[full], atol=2e-6)
    one_class = published.kind == "one class"
    assert (ours.label_entropy[one_class] == 0).all()
    assert not np.signbit(ours.label_entropy[one_class]).any()
    assert np.signbit(posts_entropy[one_class]).all()  # the post's zeros are negative


def test_rows_on_which_a_feature_is_zero_are_no_data(published, posts_entropy, ours):
    # the post: defined, from 2 to 9 rows. Here: undefined, with their number beside it
    few = (published.kind == "several") & (ours.n_pos < 10)
    assert int(few.sum()) == 6000
    assert (posts_entropy[few] > 0).all()
    assert np.isnan(ours.label_entropy[few]).all()
    np.testing.assert_array_equal(ours.n_labelled[few], (published.value[few] > 0).sum(axis=1))


def test_unfilled_places_are_known_by_their_value_and_strawberries_are_pictures(published, posts_entropy, ours):
    # the post: 40 features of nothing but strawberries have no entropy. Here: the purest there are
    assert (posts_entropy[published.is_strawberry] == -1).all()
    assert (ours.label_entropy[published.is_strawberry] == 0).all()
    rare = (published.kind == "undefined") & ~published.is_strawberry
    assert np.isnan(ours.label_entropy[rare]).all()
    assert not (ours.label_entropy < 0).any()  # never a sentinel


def test_the_epsilon_in_the_logarithm_is_not_needed():
    totals = FeatureTotals.zero(1, K)
    totals.top_value[:], totals.top_label[:] = 1, np.arange(K)
    entropy = FeatureStatistics.of_totals(totals, min_labelled=10).label_entropy[0]
    p = np.full(K, 1 / K)
    assert -(p * np.log(p + 1e-9)).sum() == pytest.approx(math.log(K) - K * 1e-9, abs=1e-12)
    assert entropy == np.float32(math.log(K))


def test_the_mean_of_the_largest_is_over_positive_ones_and_the_posts_follows_from_it(published, ours):
    posts = published.value.mean(axis=1, dtype=np.float64)  # zeros of missing rows included
    fires = ours.n_pos > 0
    np.testing.assert_allclose(ours.mean_top[fires] * ours.n_pos[fires] / K, posts[fires], rtol=1e-5)
    full = ours.n_pos == K
    np.testing.assert_allclose(ours.mean_top[full], posts[full], rtol=1e-6)
    partly = fires & ~full
    assert (ours.mean_top[partly] > posts[partly] * 1.05).all()
    assert np.isnan(ours.mean_top[~fires]).all()


def test_the_posts_mask_keeps_the_1221_features_of_its_app(published, posts_entropy, ours):
    posts_mean = published.value.mean(axis=1)
    with np.errstate(divide="ignore"):
        mask = (published.log_density > -4) & (np.log10(posts_mean) > -0.7) & (posts_entropy > -1)
        by_ours = (published.log_density > -4) & (np.log10(ours.mean_top) > -0.7) & ~np.isnan(ours.label_entropy)
    assert (int(mask.sum()), int((mask & (posts_entropy == 0)).sum())) == (1221, 496)
    np.testing.assert_array_equal(mask, by_ours)  # none of these has fewer than 20 rows


def test_explained_variance_is_centred_and_the_posts_is_there_as_explained_energy():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3000, 16)) + 3.0  # off centre, as CLIP's activations are
    x_hat = x + 0.9 * rng.standard_normal(x.shape)
    sse = ((x_hat - x) ** 2).sum(axis=1)
    section = SectionSums.zero(1, 0, len(x), 16)
    section.add(x, np.linalg.norm(x, axis=1), sse, np.ones(len(x)))
    sections = {"split": np.array([1]), "n": np.array([len(x)]), "x_sum": section.x_sum[None]}
    quality = Quality.of_sections(
        sections | {name: np.array([total]) for name, total in zip(SUMS, section.sums, strict=True)}, (1,)
    )
    posts = np.mean(1 - sse / (x**2).sum(axis=1))
    assert quality.explained_energy == pytest.approx(posts, rel=1e-12)
    assert quality.explained_variance == pytest.approx(1 - sse.sum() / ((x - x.mean(0)) ** 2).sum(), rel=1e-12)
    assert (posts > 0.9, quality.explained_variance < 0.25) == (True, True)


def test_encoder_vectors_are_normalised_one_by_one_and_not_by_coordinate():
    rng = np.random.default_rng(0)
    d, n, n_neurons = 64, 4096, 256
    encoder = rng.standard_normal((n, d)) * np.exp(rng.normal(0, 0.5, (n, 1)))
    neurons = rng.standard_normal((n_neurons, d))
    neurons /= np.linalg.norm(neurons, axis=1, keepdims=True)
    by_coordinate = encoder / np.linalg.norm(encoder, axis=0)  # the post's: dim=0 of (d_sae, d_model)
    assert (by_coordinate**2).sum() == pytest.approx(d)  # so its rows are far from unit length
    ours = unit_rows(torch.from_numpy(encoder)).double().numpy()
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-6)
    # of near-isotropic unit neurons, the squares of a unit row's cosines sum to about n_neurons / d
    energy = ((ours @ neurons.T) ** 2).sum(axis=1)
    assert energy.mean() == pytest.approx(n_neurons / d, rel=0.02)
    assert ((by_coordinate @ neurons.T) ** 2).sum(axis=1).std() > 5 * energy.std() * (by_coordinate**2).sum() / n


def test_repeated_captions_put_a_floor_under_the_loss_that_batches_without_them_do_not_have():
    rng = np.random.default_rng(0)
    captions = np.eye(N_CLASSES)

    def perfect(own: np.ndarray) -> float:
        return info_nce(captions[own], captions[own], 1e4)

    with_repeats = np.mean([perfect(rng.integers(0, N_CLASSES, 1024)) for _ in range(4)])
    assert with_repeats == pytest.approx(0.584, abs=0.03)  # of a model that makes no error
    own = rng.integers(0, N_CLASSES, 4000)
    (batch, *_) = caption_batches(own, 500, seed=0)
    assert len(np.unique(own[batch])) == 500
    assert perfect(own[batch]) == pytest.approx(0, abs=1e-9)


def test_loss_recovered_rises_with_the_sae_where_the_posts_score_falls():
    original, spliced, zero = 1.895, 1.775, math.log(1024)
    posts = (spliced - original) / (zero - original)
    assert posts < 0  # its best SAE
    assert loss_recovered(zero, original, spliced) == pytest.approx(1 - posts)
    assert loss_recovered(zero, original, zero) == 0
    assert loss_recovered(zero, original, original) == 1


def test_the_rows_of_training_and_of_evaluation_are_disjoint(make_store):
    # the post: statistics over shuffled images 0 to 524,287, its game over 500,000 to 1,000,000
    assert len(set(range(524_288)) & set(range(500_000, 1_000_000))) == 24_288
    store = open_store(make_store(n=300).path)
    train, held_out = (set(store.rows_of(np.arange(*store.split(name))).tolist()) for name in ("train", "heldout"))
    assert train
    assert held_out
    assert not train & held_out


def test_dead_is_counted_in_rows_and_not_in_steps():
    # the post: 64 steps, so 65,536 images of batches of 1024, and 16,384 of batches of 256
    posts_steps = 64
    for batch_size, posts_images in ((1024, 65_536), (256, 16_384)):
        options = resolve_options({"recipe": "post-2024", "batch_size": batch_size})
        assert posts_steps * batch_size == posts_images
        assert options.dead_after_rows == 65_536


def test_row_numbers_beyond_two_to_the_24_are_exact():
    totals = FeatureTotals.zero(1, 1)
    row = 2**24 + 1
    totals.add(row, np.array([0, 1]), np.array([0]), np.ones(1, np.float32), labels=np.zeros(1), valid=np.ones(1, bool))
    assert totals.top_row[0, 0] == row
    assert int(np.float32(row)) == row - 1  # the post kept them as float32


def test_density_is_over_the_rows_counted_and_not_over_whole_blocks():
    block, n_rows = 64, 150
    totals = FeatureTotals.zero(1, 1)
    for first in range(0, n_rows, block):
        n = min(block, n_rows - first)
        entries = np.arange(n + 1)
        labels, valid = np.full(n, -1), np.ones(n, bool)
        totals.add(first, entries, np.zeros(n, np.uint32), np.ones(n, np.float32), labels=labels, valid=valid)
    posts_denominator = block * -(-n_rows // block)
    assert FeatureStatistics.of_totals(totals, min_labelled=1).density[0] == 1
    assert totals.n_active[0] / posts_denominator == pytest.approx(150 / 192)

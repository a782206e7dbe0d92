import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from thresher.store.shuffle import EpochOrder, Permutation, random_row_order


@given(st.integers(1, 5000), st.integers(0, 2**40))
@settings(max_examples=60, deadline=None)
def test_a_permutation_takes_every_index_to_another_place_once(n, key):
    np.testing.assert_array_equal(np.sort(Permutation(n, key)(np.arange(n))), np.arange(n))


@given(st.integers(1, 700), st.integers(1, 300), st.integers(0, 100), st.none() | st.integers(1, 90))
@settings(max_examples=60, deadline=None)
def test_each_pass_of_the_batches_holds_each_row_once(n, batch, seed, run_length):
    order = EpochOrder(n, batch, seed, run_length)
    stream = []
    for step in range(-(-3 * n // batch)):
        starts, lengths = order.runs(step)
        assert lengths.sum() == batch
        assert (lengths > 0).all()
        assert (starts >= 0).all()
        assert (starts + lengths <= n).all()
        stream += [np.arange(s, s + k) for s, k in zip(starts, lengths, strict=True)]
    rows = np.concatenate(stream)
    for number in range(3):
        np.testing.assert_array_equal(np.sort(rows[number * n : (number + 1) * n]), np.arange(n))


@given(st.integers(2, 400), st.integers(1, 64), st.integers(0, 50))
@settings(max_examples=30, deadline=None)
def test_a_batch_depends_on_its_number_alone(n, batch, step):
    fresh = EpochOrder(n, batch, 7).runs(step)
    used = EpochOrder(n, batch, 7)
    for s in (0, step + 3, 1):
        used.runs(s)
    for a, b in zip(used.runs(step), fresh, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("n", [2, 3, 7, 50])
def test_over_many_keys_every_index_goes_everywhere_equally_often(n):
    from scipy.stats import chisquare

    keys = 1000
    table = np.stack([Permutation(n, 3, key)(np.arange(n)) for key in range(keys)])
    p_values = [chisquare(np.bincount(table[:, i], minlength=n)).pvalue for i in range(n)]
    assert min(p_values) > 1e-4 / n


def test_two_neighbours_are_parted_like_any_two_rows():
    # The distance between the places of rows i and i + 1 under a random permutation of n has mean (n + 1) / 3.
    n = 20_000
    place = Permutation(n, 11)(np.arange(n))
    assert np.abs(np.diff(place)).mean() == pytest.approx((n + 1) / 3, rel=0.02)


def test_orders_of_different_seeds_and_passes_differ():
    assert (random_row_order(1000, 0) != random_row_order(1000, 1)).mean() > 0.9
    order = EpochOrder(4096, 1024, 0)
    assert set(order.runs(0)[0].tolist()) != set(order.runs(4)[0].tolist())


@pytest.mark.parametrize("batch", [256, 1024, 4096])
def test_at_most_a_twentieth_of_batch_mates_meet_again_in_the_next_pass(batch):
    n = 64 * batch
    order = EpochOrder(n, batch, 0)
    batch_of = np.empty((2, n), np.int64)
    for number in range(2):
        for step in range(n // batch):
            for s, k in zip(*order.runs(number * (n // batch) + step), strict=True):
                batch_of[number, s : s + k] = step
    again = []
    for step in range(n // batch):
        mates = batch_of[1, batch_of[0] == step]
        _, together = np.unique(mates, return_counts=True)
        again.append((together * (together - 1)).sum() / (batch * (batch - 1)))
    assert np.mean(again) < 0.05


def test_batches_of_a_shuffled_store_mix_labels_as_a_full_permutation_would():
    # 100 classes of 600 images, class-sorted source; batches of 1024 against the hypergeometric ideal.
    n, batch, n_classes = 60_000, 1024, 100
    labels_of_source = np.repeat(np.arange(n_classes), n // n_classes)

    def mixing(labels):
        order = EpochOrder(n, batch, 0)
        p = 1 / n_classes
        variance = batch * p * (1 - p) * (n - batch) / (n - 1)
        chi2 = []
        for step in range(100):
            rows = np.concatenate([np.arange(s, s + k) for s, k in zip(*order.runs(step), strict=True)])
            counts = np.bincount(labels[rows], minlength=n_classes)
            chi2.append(((counts - batch * p) ** 2 / variance).mean() * n_classes / (n_classes - 1) * (1 - p))
        return np.mean(chi2)

    assert mixing(labels_of_source[random_row_order(n, 0)]) < 1.1
    assert mixing(labels_of_source) > 5  # the control: a source-ordered store read in the same runs

"""The chi-square of a batch's labels against its mean under sampling without replacement."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from thresher.store.batches import BatchReader
from thresher.store.mixing import batch_mixing, chi2_per_df, count_labels, expected_chi2, measure_mixing
from thresher.store.reader import open_store
from thresher.store.writer import create_store


def test_two_of_six_rows_by_hand():
    class_rows = np.array([3, 3])
    # E = 1 and 1; both rows of one class: (2 - 1)^2 / 1 + (0 - 1)^2 / 1 = 2, its mean (2 - 1) (6 - 2) / (6 - 1) = 0.8
    assert expected_chi2(2, 2, 6) == pytest.approx(0.8)
    assert chi2_per_df(np.array([1, 1]), class_rows) == pytest.approx(2 / 0.8)
    assert chi2_per_df(np.array([0, 1]), class_rows) == 0


@pytest.mark.parametrize("class_rows", [(1, 2, 4), (3, 3, 3), (5, 0, 1, 2)])
@pytest.mark.parametrize("batch_size", [1, 3, 5])
def test_the_mean_over_every_possible_batch_is_one(class_rows, batch_size):
    rows = np.repeat(np.arange(len(class_rows)), class_rows)
    batches = list(combinations(range(len(rows)), batch_size))
    found = [chi2_per_df(rows[list(batch)], np.array(class_rows)) for batch in batches]
    assert np.mean(found) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(("batch_size", "n_classes"), [(4096, 1000), (40_000, 1000), (256, 2)])
def test_batches_that_numpy_draws_without_replacement_give_one(batch_size, n_classes):
    rng = np.random.default_rng(1)
    class_rows = rng.integers(1, 100, n_classes)
    class_rows[0] = 1000
    draws = rng.multivariate_hypergeometric(class_rows, batch_size, size=400, method="marginals")
    found = [chi2_per_df(np.repeat(np.arange(n_classes), counts), class_rows) for counts in draws]
    error = np.std(found) / np.sqrt(len(found))
    assert abs(np.mean(found) - 1) < 4 * error
    assert error < 0.1


def test_a_batch_of_one_class_of_many_is_as_bad_as_the_batch_is_large():
    class_rows = np.full(1000, 1000)
    # O = B in one class, 0 in the others: chi2 = B (N / K - 1) = 999 B, of a mean of 999 (N - B) / (N - 1)
    found = chi2_per_df(np.full(500, 7), class_rows)
    assert found == pytest.approx(500 * (1_000_000 - 1) / (1_000_000 - 500))


@pytest.mark.parametrize(
    ("labels", "class_rows", "message"),
    [
        ([0, 0], [9], "two classes"),
        ([0, 1], [0, 9, 0], "cannot come from"),
        ([0, 1, 1], [1, 2], "fewer rows in the batch"),
        ([], [4, 4], "batch of 0"),
        ([0, 0, 0], [2, 4], "3 rows of class 0, of which there are 2"),
        ([5], [2, 4], "1 rows of class 5, of which there are 0"),
    ],
)
def test_what_has_no_mixing_is_refused(labels, class_rows, message):
    with pytest.raises(ValueError, match=message):
        chi2_per_df(np.array(labels, np.int64), np.array(class_rows))


def test_labels_are_counted_over_readable_and_over_training_rows(make_store, monkeypatch):
    monkeypatch.setattr("thresher.store.mixing._ROWS_AT_ONCE", 77)
    made = make_store(700, 4, n_labels=6, unlabelled=(1, 5, 9), invalid=(0, 350, 699))
    store = open_store(made.path)
    counts = count_labels(store)
    labels = made.labels[made.row_image]
    train = store.rows_of(np.arange(store.n_train))
    for found, rows in ((counts.readable, made.valid), (counts.train, train)):
        assert found.tolist() == [int((labels[rows] == label).sum()) for label in range(-1, 6)]
    assert counts.train.sum() == store.n_train == 690
    first = count_labels(store, most_rows=100)
    assert first.n_rows == 100
    assert first.readable.sum() == made.valid[:100].sum()


@pytest.fixture
def sorted_store(make_store, tmp_path):
    """A factory of stores of 414,000 images that come sorted by class, 414 each, with one small vector an image."""
    n = 414_000
    template = make_store(2, 2).spec

    def make(order):
        provenance = replace(template.provenance, n_images=n, row_order=order)
        spec = replace(
            template, n_images=n, provenance=provenance, rows_per_chunk=1 << 15, thumbnail_px=None, label_names=None
        )
        labels = (np.arange(n) // 414).astype(np.int32)
        with create_store(tmp_path / order, spec, keys=[b""] * n, labels=labels) as writer:
            for number in range(writer.n_windows):
                start, stop = writer.window_images(number)
                window, n_here = writer.window(number), stop - start
                window.put(start, {site: np.ones((n_here, 2), "f4") for site in spec.sites}, np.ones(n_here, bool))
                window.commit()
        return open_store(tmp_path / order)

    return make


def test_rows_in_random_order_give_fair_batches_in_every_epoch(sorted_store):
    store = sorted_store("random")
    counts = count_labels(store)
    reader = BatchReader([store.activations()], batch_size=4096, seed=3, last="drop")
    assert reader.steps_per_epoch == 100
    found = np.array([batch_mixing(batch, counts) for batch in reader.batches(0, 300)]).reshape(3, 100)
    assert (found.mean(axis=1) < 1.02).all()  # the target is 1.1
    assert (found.mean(axis=1) > 0.98).all()
    measured = measure_mixing(store.activations(), counts, seed=3)
    assert (measured.batch_size, measured.n_batches) == (4096, 50)
    assert measured.mean == pytest.approx(found[0, :50].mean(), rel=1e-12)
    assert measured.largest == pytest.approx(found[0, :50].max(), rel=1e-12)


def test_sorted_rows_fail_the_same_measure_read_in_order_and_meet_the_plan_read_through_a_buffer(sorted_store):
    store = sorted_store("source")
    counts, labels = count_labels(store), store.labels(0, store.n_rows).astype(np.int64) + 1
    in_order = [chi2_per_df(labels[step * 4096 : (step + 1) * 4096], counts.readable) for step in range(100)]
    assert np.mean(in_order) > 100  # a batch holds 10 of the 1,000 classes
    array = store.activations()
    for mixing in (1.1, 4.0):
        # 40,000 rows in each of two buffers of 4 bytes a row
        reader = BatchReader([array], batch_size=4096, seed=0, memory_bytes=320_000, mixing=mixing, last="drop")
        assert reader.plan.mode == "buffer"
        found = [batch_mixing(batch, counts) for batch in reader.batches(0, 100)]
        assert np.mean(found) == pytest.approx(reader.plan.mixing, rel=0.1)
        assert reader.plan.mixing == pytest.approx(mixing, rel=0.1)


@pytest.mark.parametrize("settings", [{"n_labels": 1}, {"unlabelled": range(300)}, {"n": 7}])
def test_there_is_no_mixing_to_measure_without_two_labels_or_in_a_handful_of_rows(make_store, settings):
    store = open_store(make_store(**settings).path)
    assert measure_mixing(store.activations(), count_labels(store)) is None


def test_a_store_whose_labels_were_not_all_counted_is_not_measured(make_store):
    store = open_store(make_store(300).path)
    assert measure_mixing(store.activations(), count_labels(store)) is not None
    assert measure_mixing(store.activations(), count_labels(store, most_rows=299)) is None


@pytest.mark.parametrize("settings", [{"codec": "zstd"}, {"order": "source"}, {"tokens": 3}])
def test_the_labels_that_are_measured_are_those_of_the_batches_that_training_reads(make_store, settings):
    array = open_store(make_store(600, n_labels=7, **settings).path).activations()
    counts = count_labels(array.store)
    measured = measure_mixing(array, counts, n_batches=20, seed=5)
    reader = BatchReader([array], batch_size=measured.batch_size, seed=5, last="drop")
    found = [batch_mixing(batch, counts) for batch in reader.batches(0, 20)]
    assert measured.mean == pytest.approx(np.mean(found), rel=1e-12)

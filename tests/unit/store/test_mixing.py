"""The chi-square of a batch's labels against its mean under sampling without replacement."""

from itertools import combinations

import numpy as np
import pytest
from thresher.store.mixing import chi2_per_df, class_numbers, expected_chi2


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


def test_rows_without_a_label_are_a_class_of_their_own():
    numbers, class_rows = class_numbers(np.array([2, -1, 2, 0, -1, -1], np.int32))
    assert numbers.tolist() == [3, 0, 3, 1, 0, 0]
    assert class_rows.tolist() == [3, 1, 0, 2]
    assert class_numbers(np.full(5, -1))[1].tolist() == [5]


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

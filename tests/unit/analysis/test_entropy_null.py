"""Label entropy by chance and the effective sample size, against permuted labels and scipy."""

import math

import numpy as np
import pytest
import scipy.stats
from thresher.analysis.entropy import effective_sample_size, label_entropy
from thresher.analysis.entropy_null import entropy_null


def _permuted_entropies(value: np.ndarray, pool: np.ndarray, n: int, seed: int) -> np.ndarray:
    """The null by its definition: permute all labels, take the first as those of the rows."""
    rng, out = np.random.default_rng(seed), []
    for _ in range(n):
        labels = rng.permutation(pool)[: len(value)]
        out.append(scipy.stats.entropy(np.bincount(labels, weights=value)))
    return np.array(out)


@pytest.mark.parametrize("n_classes", [3, 200])
def test_the_null_has_the_mean_and_deviation_of_permuted_labels(n_classes):
    rng = np.random.default_rng(0)
    pool = np.sort(rng.integers(0, n_classes, 400))
    value = np.sort(rng.exponential(1, (4, 20)).astype(np.float32), axis=1)[:, ::-1]
    value[2, 13:] = 0  # fires on 13 rows only
    label = pool[rng.integers(0, 400, (4, 20))]
    label[3, ::2] = -1
    label[0] = label[0, 0]
    entropy, _ = label_entropy(value, label, min_labelled=5)
    counts = np.bincount(pool, minlength=n_classes)
    null = entropy_null(value, label, entropy, counts[counts > 0], n_draws=2000, seed=1)
    for j in range(4):
        weights = value[j][(value[j] > 0) & (label[j] >= 0)].astype(np.float64)
        want = _permuted_entropies(weights, pool, 2000, seed=2)
        error = want.std() * math.sqrt(2 / 2000)
        assert null.mean[j] == pytest.approx(want.mean(), abs=4 * error + 1e-6)
        assert null.sd[j] == pytest.approx(want.std(), rel=0.15, abs=1e-6)
        p = (1 + (want <= entropy[j] + 1e-6).sum()) / 2001
        assert null.p[j] == pytest.approx(p, abs=4 * math.sqrt(max(p * (1 - p), 1e-4) * 2 / 2000))
    assert null.p[0] == pytest.approx(1 / 2001)  # one class throughout: as low as none of the draws
    assert null.z(entropy)[0] < -3


def test_the_null_of_random_labels_gives_even_p_values():
    rng = np.random.default_rng(3)
    counts = np.full(4, 5000)
    value = rng.exponential(1, (3000, 20)).astype(np.float32)
    label = rng.integers(0, 4, (3000, 20))
    entropy, _ = label_entropy(value, label, min_labelled=10)
    p = entropy_null(value, label, entropy, counts, n_draws=400, seed=0).p
    for level in (0.05, 0.25, 0.5, 0.9):
        assert (p <= level).mean() == pytest.approx(level, abs=0.05)


def test_the_null_is_undefined_with_the_entropy_and_has_no_deviation_where_there_is_one_label():
    value = np.array([[1.0, 0.0], [2.0, 1.0]], np.float32)
    label = np.zeros((2, 2), int)
    entropy, _ = label_entropy(value, label, min_labelled=2)
    null = entropy_null(value, label, entropy, np.array([7]), n_draws=50, seed=0)
    assert np.isnan([null.mean[0], null.sd[0], null.p[0]]).all()
    assert (null.mean[1], null.sd[1], null.p[1]) == (0, 0, 1)
    assert np.isnan(null.z(entropy)).all()
    assert entropy_null(value, label, entropy, np.zeros(0, int), n_draws=50, seed=0) is None
    fewer = entropy_null(value, label, entropy, np.array([1]), n_draws=5, seed=0)  # one labelled row, k = 2
    assert np.isfinite(fewer.mean[1])


def test_the_effective_sample_size_is_kishs():
    value = np.array([[3.0, 1.0, 1.0, 0.0], [2.0, 2.0, 2.0, 2.0], [1.0, 0.0, 0.0, 0.0], [0.0] * 4], np.float32)
    label = np.array([[0, 1, -1, 2], [0, 0, 0, 1], [-1, 0, 0, 0], [0] * 4])
    np.testing.assert_allclose(effective_sample_size(value, label), [16 / 10, 4, np.nan, np.nan], rtol=1e-6)

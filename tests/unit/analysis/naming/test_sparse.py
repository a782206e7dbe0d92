"""Sparse combinations of phrases, held against scikit-learn's non-negative lasso at the same lambda."""

import numpy as np
import pytest
from scipy.optimize import nnls
from sklearn.linear_model import Lasso
from thresher.analysis.naming.sparse import sparse_combinations


def unit(x):
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def drawn(n, length, seed, *, alike=0.0):
    """Unit vectors; `alike` gives them a common part, as phrases of one language have."""
    draw = np.random.default_rng(seed)
    return unit(draw.standard_normal((n, length)) + alike * draw.standard_normal(length))


def lasso(z, phrases, penalty):
    if penalty == 0:
        return nnls(phrases.T.astype(np.float64), z.astype(np.float64))[0]
    # scikit-learn's objective is 1 / (2 e) ||z - C^T w||^2 + alpha |w|_1: SpLiCE's with alpha = lambda / (2 e)
    model = Lasso(
        alpha=penalty / (2 * len(z)),
        positive=True,
        fit_intercept=False,
        tol=1e-12,
        max_iter=100_000,
        selection="cyclic",
    )
    return model.fit(phrases.T.astype(np.float64), z.astype(np.float64)).coef_


def dense(found, row, n_phrases):
    w = np.zeros(n_phrases)
    used = found.phrase[row] >= 0
    w[found.phrase[row][used]] = found.weight[row][used]
    return w


@pytest.mark.parametrize("alike", [0.0, 1.5])
@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_weights_are_the_minimum_that_scikit_learn_finds_at_the_same_lambda(k, alike):
    z, phrases = drawn(12, 24, 0), drawn(80, 24, 1, alike=alike)
    z = unit(z + phrases[:12])  # else nothing but the common part tells, for or against all phrases
    found = sparse_combinations(5 * z, phrases, n_phrases=k)
    assert ((found.phrase >= 0).sum(axis=1) == k).sum() >= 8  # less where a phrase left at the same turn
    for row in range(len(z)):
        expected = lasso(unit(z[row]), phrases, found.penalty[row])
        np.testing.assert_allclose(dense(found, row, 80), expected, atol=2e-6)
        assert (np.diff(found.weight[row]) <= 0).all()
        total = expected @ phrases
        assert found.cosine[row] == pytest.approx(total @ z[row] / np.linalg.norm(total), abs=1e-5)


def test_one_more_phrase_comes_in_just_below_the_lambda():
    z, phrases = drawn(8, 24, 2), drawn(60, 24, 3)
    found = sparse_combinations(z, phrases, n_phrases=3)
    for row in range(len(z)):
        at, below = (lasso(z[row], phrases, share * found.penalty[row]) for share in (1.0001, 0.999))
        assert (at > 1e-9).sum() == 3
        assert (below > 1e-9).sum() == 4


@pytest.mark.parametrize("penalty", [0.1, 0.4, 1.2])
def test_a_given_lambda_is_kept_to(penalty):
    z, phrases = drawn(8, 24, 4), drawn(60, 24, 5)
    found = sparse_combinations(z, phrases, n_phrases=20, penalty=penalty)
    np.testing.assert_allclose(found.penalty, penalty, rtol=1e-6)
    for row in range(len(z)):
        np.testing.assert_allclose(dense(found, row, 60), lasso(z[row], phrases, penalty), atol=2e-6)


def test_phrases_that_leave_again_are_followed():
    """The third phrase lies between the first two and z: it drives one of them out."""
    n_left = 0
    for seed in range(150):
        z, phrases = drawn(1, 5, seed), drawn(30, 5, 1000 + seed)
        found = sparse_combinations(z, phrases, n_phrases=4, penalty=0.02)
        expected = lasso(z[0], phrases, found.penalty[0])
        np.testing.assert_allclose(dense(found, 0, 30), expected, atol=5e-5)
        first = int((phrases @ z[0]).argmax())  # comes in first on any path
        n_left += expected[first] == 0
    assert n_left >= 5


def test_a_planted_sum_is_found_with_its_weights():
    phrases = np.eye(16, dtype=np.float32)
    z = 0.8 * phrases[3] + 0.5 * phrases[11] + 0.2 * phrases[7] - 0.3 * phrases[0]
    found = sparse_combinations(z[None], phrases, n_phrases=2)
    length = np.sqrt(0.64 + 0.25 + 0.04 + 0.09)
    assert found.phrase.tolist() == [[3, 11]]  # orthonormal phrases: weights shrink by lambda / 2 = 0.2 / length
    np.testing.assert_allclose(found.weight[0] * length, [0.6, 0.3], atol=1e-6)
    assert found.penalty[0] * length == pytest.approx(0.4, abs=1e-6)


def test_equal_phrases_count_once():
    phrases = drawn(20, 12, 6)
    doubled = np.concatenate([phrases, phrases, phrases[:5]])
    z = drawn(6, 12, 7)
    once, twice = (sparse_combinations(z, each, n_phrases=3) for each in (phrases, doubled))
    assert (twice.phrase == once.phrase).all()
    np.testing.assert_allclose(twice.weight, once.weight, atol=1e-6)


def test_directions_without_a_phrase_and_empty_ones():
    phrases = np.eye(4, dtype=np.float32)
    z = np.array([[-1, -1, -1, -1], [0, 0, 0, 0], [np.nan] * 4, [0, 2, 0, 0]], np.float32)
    found = sparse_combinations(z, phrases, n_phrases=2)
    assert found.phrase.tolist() == [[-1, -1], [-1, -1], [-1, -1], [1, -1]]
    np.testing.assert_array_equal(found.weight[:3], 0)
    assert found.weight[3, 0] == 1
    assert np.isnan(found.cosine).tolist() == [True, True, True, False]
    assert np.isnan(found.penalty).tolist() == [False, True, True, False]


def test_one_phrase_and_no_direction():
    one = sparse_combinations(drawn(3, 8, 8), drawn(1, 8, 9), n_phrases=3)
    product = (drawn(3, 8, 8) @ drawn(1, 8, 9).T)[:, 0]
    np.testing.assert_allclose(one.weight[:, 0], np.maximum(product, 0), atol=1e-6)  # lambda falls to 0
    none = sparse_combinations(np.zeros((0, 8), np.float32), drawn(5, 8, 9))
    assert none.phrase.shape == (0, 3)
    assert none.cosine.shape == (0,)


def test_many_directions_in_pieces_are_those_one_by_one(monkeypatch):
    z, phrases = drawn(20, 16, 10), drawn(50, 16, 11)
    whole = sparse_combinations(z, phrases)
    monkeypatch.setattr("thresher.analysis.naming.sparse._PRODUCTS_BYTES", 3 * 4 * 50)
    pieces = sparse_combinations(z, phrases)
    assert (whole.phrase == pieces.phrase).all()
    np.testing.assert_allclose(whole.weight, pieces.weight, atol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_phrases": 0}, "n_phrases 0 must be at least 1"),
        ({"penalty": -1.0}, r"the penalty -1.0 at least 0"),
        ({"phrases": np.zeros((0, 8), np.float32)}, r"phrases \(0, 8\) do not go with"),
        ({"phrases": np.ones((2, 9), np.float32)}, r"phrases \(2, 9\) do not go with directions \(1, 8\)"),
    ],
)
def test_what_does_not_fit_is_named(wrong, message):
    settings = {"phrases": drawn(2, 8, 0)} | wrong
    with pytest.raises(ValueError, match=message):
        sparse_combinations(drawn(1, 8, 1), **settings)

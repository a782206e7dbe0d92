"""Reconstruction numbers against float64 numpy on whole matrices."""

import numpy as np
import pytest
import torch
from thresher.train.l0 import L0Summary
from thresher.train.metrics import ReconstructionMetrics, batch_metrics
from thresher.train.models import ReluSae


def data(n: int = 203, d: int = 7, d_sae: int = 30) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, d)) * rng.uniform(0.1, 3, d) + 100  # a mean far above the deviation
    x_hat = x + 0.3 * rng.standard_normal((n, d))
    f = np.maximum(rng.standard_normal((n, d_sae)) - 1, 0)
    f[5] = 0
    return tuple(torch.from_numpy(a.astype(np.float32)) for a in (x, x_hat, f))


def in_batches(x, x_hat, f, size: int) -> ReconstructionMetrics:
    metrics = ReconstructionMetrics(x.shape[1], f.shape[1])
    for i in range(0, len(x), size):
        metrics.update(x[i : i + size], x_hat[i : i + size], f[i : i + size])
    return metrics


@pytest.mark.parametrize("size", [1, 10, 203, 1000])
def test_numbers_equal_numpy_whatever_the_batch(size):
    x, x_hat, f = data()
    got = in_batches(x, x_hat, f, size).result()
    X, Y, A = (t.double().numpy() for t in (x, x_hat, f))
    error = (Y - X) ** 2
    norm = np.linalg.norm(X, axis=1)
    assert got.n_rows == 203
    assert got.mse == pytest.approx(error.mean(), rel=1e-12)
    assert got.normalized_mse == pytest.approx((error / norm[:, None]).mean(), rel=1e-12)
    assert got.explained_variance == pytest.approx(1 - error.sum() / ((X - X.mean(0)) ** 2).sum(), rel=1e-10)
    assert got.explained_energy == pytest.approx((1 - error.sum(1) / norm**2).mean(), rel=1e-12)
    assert got.l1 == pytest.approx(A.sum(1).mean(), rel=1e-12)
    for summary, active in ((got.l0, A > 0), (got.l0_above, f.numpy() > 0.1)):
        count = active.sum(1)
        assert summary.mean == pytest.approx(count.mean(), rel=1e-12)
        assert summary.median == np.percentile(count, 50)
        assert summary.p99 == pytest.approx(np.percentile(count, 99), rel=1e-12)
        assert summary.max == count.max()


def test_merged_parts_equal_the_whole():
    x, x_hat, f = data()
    whole = in_batches(x, x_hat, f, 50).result()
    parts = in_batches(x[:60], x_hat[:60], f[:60], 50)
    parts.merge(in_batches(x[60:], x_hat[60:], f[60:], 50))
    parts.merge(ReconstructionMetrics(7, 30))
    merged = parts.result()
    assert merged.explained_variance == pytest.approx(whole.explained_variance, rel=1e-10)
    assert merged.mse == pytest.approx(whole.mse, rel=1e-12)
    assert merged.l0 == whole.l0
    assert merged.n_rows == whole.n_rows


def test_sparse_and_dense_activations_give_the_same_numbers():
    sae = ReluSae(torch.randn(20, 7), torch.zeros(20), torch.randn(20, 7), torch.zeros(7))
    x, x_hat, _ = data()
    dense, sparse = ReconstructionMetrics(7, 20), ReconstructionMetrics(7, 20)
    f = sae.encode_sparse(x)
    dense.update(x, x_hat, f.to_dense())
    sparse.update(x, x_hat, f)
    assert dense.result().l0_above == sparse.result().l0_above
    assert dense.result().l0 == sparse.result().l0
    assert dense.result().l1 == pytest.approx(sparse.result().l1, rel=1e-14)


def test_predicting_the_mean_explains_nothing_and_a_copy_everything():
    rng = np.random.default_rng(1)
    x = torch.from_numpy(rng.integers(-8, 8, (64, 5)).astype(np.float32))
    mean = x.double().mean(0)  # sums of 64 integers over 64: exact in float32
    f = torch.zeros(64, 3)
    assert in_batches(x, mean.float().expand(64, -1), f, 10).result().explained_variance == pytest.approx(0, abs=1e-14)
    perfect = in_batches(x, x, f, 10).result()
    assert perfect.explained_variance == 1
    assert perfect.explained_energy == 1
    assert perfect.mse == 0


def test_undefined_numbers_are_nan_here_and_null_in_json():
    one = in_batches(torch.ones(1, 3), torch.zeros(1, 3), torch.zeros(1, 4), 1).result()
    assert np.isnan(one.explained_variance)
    assert one.to_json()["explained_variance"] is None
    assert one.mse == 1
    none = ReconstructionMetrics(3, 4).result()
    assert none.n_rows == 0
    assert np.isnan(none.mse)


def test_rows_of_norm_zero_are_left_out_of_ratios():
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    got = in_batches(x, torch.tensor([[1.0, 1.0], [3.0, 3.0]]), torch.zeros(2, 1), 2).result()
    assert got.normalized_mse == pytest.approx(1 / 5 / 2)
    assert got.explained_energy == pytest.approx(1 - 1 / 25)
    assert got.mse == pytest.approx(3 / 4)


def test_percentiles_of_counts_are_numpys():
    rng = np.random.default_rng(2)
    for n in (1, 2, 7, 100, 1001):
        counts = rng.poisson(9, n)
        got = L0Summary.of_counts(np.bincount(counts))
        assert got.median == np.percentile(counts, 50)
        assert got.p99 == pytest.approx(np.percentile(counts, 99), rel=1e-12)


def test_the_numbers_of_a_batch_equal_those_of_the_accumulator():
    x, x_hat, f = data()
    whole = in_batches(x, x_hat, f, 203).result()
    batch = batch_metrics(x, x_hat - x)
    assert batch["mse"] == pytest.approx(whole.mse, rel=1e-5)
    assert batch["normalized_mse"] == pytest.approx(whole.normalized_mse, rel=1e-5)
    assert batch["explained_variance"] == pytest.approx(whole.explained_variance, rel=1e-3)

"""Products of active pairs, on a device without embedding_bag as on one with it."""

import pytest
import torch
from thresher.train import sparse
from thresher.train.sparse import ActivePairs

N, F, D = 37, 50, 12


def _pairs(share: float) -> tuple[torch.Tensor, ActivePairs]:
    g = torch.Generator().manual_seed(0)
    f = torch.rand(N, F, generator=g, dtype=torch.float64) * (torch.rand(N, F, generator=g) < share)
    f[[0, 5, 6, N - 1]] = 0  # empty bags at the start, side by side, and at the end
    f[:, [0, 7, 8, F - 1]] = 0
    return f, ActivePairs.of_dense(f)


@pytest.mark.parametrize("has_bags", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5])
def test_products_of_pairs_are_those_of_the_matrix(monkeypatch, has_bags, share):
    monkeypatch.setattr(sparse, "has_bags", lambda device_type: has_bags)
    monkeypatch.setattr(sparse, "_GATHERED_PAIRS", 10)
    f, pairs = _pairs(share)
    g = torch.Generator().manual_seed(1)
    rows, left = (torch.randn(n, D, generator=g, dtype=torch.float64) for n in (F, N))
    by_feature = pairs.by_feature(F)
    close = {"rtol": 0, "atol": 1e-13}
    assert torch.allclose(pairs.times(rows), f @ rows, **close)
    assert torch.allclose(by_feature.times(pairs.value, left), f.T @ left, **close)
    assert torch.allclose(by_feature.sums(pairs.value, N), f.sum(0), **close)
    if share:
        assert torch.allclose(pairs.dot(left, rows), (left @ rows.T)[pairs.row, pairs.feature], **close)


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="torch has MPS kernels where there is an MPS device")
def test_cpus_and_cuda_have_the_kernels_and_a_device_that_torch_is_not_built_for_has_none():
    assert sparse.has_bags("cpu")
    assert sparse.has_bags("cuda")
    assert not sparse.has_bags("mps")

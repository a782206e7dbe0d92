"""Sparse encoding is dense encoding without its zeros, for any weights, sizes and tiles."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from thresher.train.models import BatchTopKSae, GatedSae, JumpReluSae, MatryoshkaSae, ReluSae, TopKSae
from thresher.train.sparse import ActivePairs


@given(
    n=st.integers(0, 9),
    d_in=st.integers(1, 5),
    d_sae=st.integers(1, 30),
    tile=st.integers(1, 40),
    k=st.integers(1, 30),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=150, deadline=None)
def test_tiles_change_nothing(n, d_in, d_sae, tile, k, seed):
    g = torch.Generator().manual_seed(seed)

    def small_integers(*shape: int) -> torch.Tensor:  # exact in float32 in any order of addition; many ties
        return torch.randint(-2, 3, shape, generator=g).float()

    weights = (small_integers(d_sae, d_in), small_integers(d_sae), small_integers(d_sae, d_in), small_integers(d_in))
    x = small_integers(n, d_in)
    few, own = {"k": min(k, d_sae), "threshold": torch.ones(1)}, small_integers(d_sae)
    for sae in (
        ReluSae(*weights),
        TopKSae(*weights, k=min(k, d_sae)),
        BatchTopKSae(*weights, **few),
        MatryoshkaSae(*weights, **few, prefixes=[d_sae]),
        JumpReluSae(*weights, log_threshold=torch.where(own > 0, 0.0, -1.0)),
        GatedSae(*weights, r_mag=torch.zeros(d_sae), b_mag=own),
    ):
        sparse = sae.encode_sparse(x, tile=tile)
        assert torch.equal(sparse.to_dense(), sae.encode(x))
        assert torch.equal(sae.decode_sparse(sparse), sae.decode(sae.encode(x)))


@given(n=st.integers(1, 8), d=st.integers(1, 5), n_features=st.integers(1, 12), seed=st.integers(0, 2**31))
@settings(max_examples=150, deadline=None)
def test_products_over_active_pairs_equal_dense_products(n, d, n_features, seed):
    g = torch.Generator().manual_seed(seed)
    f = torch.randint(-1, 3, (n, n_features), generator=g).double().clamp(min=0)
    left, rows = torch.randn(n, d, generator=g).double(), torch.randn(n_features, d, generator=g).double()
    pairs = ActivePairs.of_dense(f)
    active = f.nonzero(as_tuple=True)
    assert torch.allclose(pairs.times(rows), f @ rows)
    assert torch.allclose(pairs.dot(left, rows), (left @ rows.T)[active])
    assert torch.allclose(pairs.by_feature(n_features).times(pairs.value, left), f.T @ left)
    assert torch.allclose(pairs.by_feature(n_features).sums(pairs.value, n), f.sum(0))

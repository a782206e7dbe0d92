"""What a step keeps of a batch, exact against full sorts: BatchTopK's pairs, TopK's two stages; and its threshold."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from thresher.train.entries import AllEntries, PairEntries
from thresher.train.initialise import new_sae
from thresher.train.models import BatchTopKSae
from thresher.train.models.batchtopk import largest_pairs
from thresher.train.models.topk import any_largest
from thresher.train.objective import Objective
from thresher.train.optimiser import UnitNormAdam
from thresher.train.options import TrainOptions
from thresher.train.sparse import ActivePairs
from thresher.train.step import compute_step


def by_full_sort(pre: np.ndarray, n_wanted: int) -> np.ndarray:
    """Which positive entries are among the `n_wanted` largest, or tie with the least of them."""
    ranked = np.sort(pre.ravel())[::-1]
    least = ranked[min(n_wanted, pre.size) - 1]
    return (pre >= least) & (pre > 0)


@given(st.integers(1, 40), st.integers(1, 30), st.integers(1, 1300), st.integers(0, 2**31), st.booleans())
@settings(max_examples=150, deadline=None)
def test_the_largest_pairs_of_a_batch_are_those_of_a_full_sort(n, width, n_wanted, seed, has_ties):
    g = torch.Generator().manual_seed(seed)
    pre = torch.randint(-3, 4, (n, width), generator=g).float() if has_ties else torch.randn(n, width, generator=g)
    pairs = largest_pairs(pre, min(n_wanted, pre.numel()))
    kept = torch.zeros(n, width, dtype=torch.bool)
    kept[pairs.row, pairs.feature] = True
    assert np.array_equal(kept.numpy(), by_full_sort(pre.numpy(), n_wanted))
    assert torch.equal(pairs.value, pre[pairs.row, pairs.feature])
    assert (pairs.row.diff() >= 0).all()
    assert pairs.offsets.tolist() == [int((pairs.row < row).sum()) for row in range(n)]


@pytest.mark.parametrize("of", ["zeros", "negatives", "one spike", "rows unlike the sampled ones"])
def test_the_largest_pairs_of_odd_batches_are_those_of_a_full_sort(of):
    pre = torch.zeros(64, 50)
    if of == "negatives":
        pre -= 1
    elif of == "one spike":
        pre[37, 11] = 5.0
    elif of == "rows unlike the sampled ones":  # every fourth row is sampled: those are the largest, or the smallest
        pre = torch.rand(64, 50, generator=torch.Generator().manual_seed(0))
        pre[::4] *= 1e6
    for sign in (1, -1):
        for n_wanted in (1, 100, 3199, 3200):
            pairs = largest_pairs(pre * sign, n_wanted)
            kept = torch.zeros(64, 50, dtype=torch.bool)
            kept[pairs.row, pairs.feature] = True
            assert np.array_equal(kept.numpy(), by_full_sort((pre * sign).numpy(), n_wanted))


@pytest.mark.parametrize(("width", "k"), [(100, 7), (2048, 1), (4096, 32), (16_384, 64), (16_384, 16_384), (3000, 5)])
def test_the_largest_of_rows_in_two_stages_are_those_of_topk(width, k):
    for has_ties in (False, True):
        g = torch.Generator().manual_seed(width)
        pre = torch.randn(5, width, generator=g)
        if has_ties:
            pre = pre.round()
        value, column = any_largest(pre, k)
        assert torch.equal(value.sort(1).values, pre.topk(k, dim=1).values.sort(1).values)
        assert torch.equal(pre.gather(1, column), value)
        assert all(len(set(row)) == k for row in column.tolist())


def test_entries_of_pairs_are_those_of_the_matrix():
    g = torch.Generator().manual_seed(0)
    f = torch.randn(9, 14, generator=g, dtype=torch.float64).sub(1).relu()
    f[3] = 0
    left, rows = (torch.randn(n, 5, generator=g, dtype=torch.float64) for n in (9, 14))
    chosen = f.nonzero(as_tuple=True)
    pairs = PairEntries(ActivePairs.of_dense(f), 14)
    values = f[chosen]
    assert torch.allclose(pairs.times(values, rows), f @ rows)
    assert torch.allclose(pairs.dot(left, rows), (left @ rows.T)[chosen])
    assert torch.allclose(pairs.transposed(values, left), f.T @ left)
    assert torch.allclose(pairs.sums(values), f.sum(0))
    assert torch.equal(pairs.of_features(rows[:, 0]), rows[chosen[1], 0])
    assert torch.equal(pairs.any_by_feature(values), (f > 0).any(0))
    for start, stop in ((0, 14), (3, 9), (13, 14), (5, 5)):
        part, index = pairs.feature_range(start, stop)
        assert torch.allclose(part.times(values[index], rows[start:stop]), f[:, start:stop] @ rows[start:stop])
        assert torch.allclose(part.transposed(values[index], left), f[:, start:stop].T @ left)
    whole = AllEntries(14, Objective().matmul)
    part, index = whole.feature_range(3, 9)
    assert torch.allclose(part.times(f[index], rows[3:9]), f[:, 3:9] @ rows[3:9])


@pytest.mark.parametrize("variant", ["batchtopk", "matryoshka"])
def test_the_threshold_gives_rows_that_were_not_trained_on_k_features(variant):
    rng = np.random.default_rng(0)
    codes = rng.exponential(1.0, (6000, 64)) * (rng.random((6000, 64)) < 0.08)
    rows = torch.from_numpy((codes @ rng.standard_normal((64, 24))).astype(np.float32))
    sae = new_sae(TrainOptions(variant=variant, expansion=4, k=6, groups=3), 24)
    assert isinstance(sae, BatchTopKSae)
    sae.input_scale.copy_(rows.std(0))
    adam = UnitNormAdam(sae)
    for step in range(300):
        x = rows[:5000][torch.randint(5000, (256,), generator=torch.Generator().manual_seed(step))]
        result = compute_step(sae, sae.scale(x), None, Objective())
        assert float(result.l0) == pytest.approx(6, rel=1e-2)
        adam.update(sae, result.gradients, 2e-3 * min(1, (300 - step) / 100))
        sae.track(result.batch_threshold)
    held_out = float((sae.encode(rows[5000:]) > 0).sum(1).double().mean())
    assert held_out == pytest.approx(6, rel=0.05)


def test_a_tracked_threshold_is_the_mean_until_its_memory_is_full():
    sae = new_sae(TrainOptions(variant="batchtopk", expansion=4, k=2), 6)
    assert isinstance(sae, BatchTopKSae)
    seen = [3.0, 1.0, 2.0]
    for value in seen:
        sae.track(torch.tensor(value))
    assert float(sae.threshold) == pytest.approx(np.mean(seen))
    sae.track(torch.tensor(float("inf")))  # a batch that kept nothing has none
    assert float(sae.threshold) == pytest.approx(np.mean(seen))
    for _ in range(97):
        sae.track(torch.tensor(2.0))
    before = float(sae.threshold)
    sae.track(torch.tensor(12.0))
    assert float(sae.threshold) == pytest.approx(before + 0.01 * (12 - before), rel=1e-5)

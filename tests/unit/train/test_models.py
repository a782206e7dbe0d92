"""SAEs: dense and sparse encoding agree exactly, files come back as they were, foreign files are refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from thresher.store.errors import StoreError
from thresher.train.features import SparseFeatures
from thresher.train.models import (
    BatchTopKSae,
    GatedSae,
    JumpReluSae,
    MatryoshkaSae,
    ReluSae,
    SparseAutoencoder,
    TopKSae,
    load_sae,
)
from thresher.train.models.topk import largest


def dyadic(*shape: int, seed: int) -> torch.Tensor:
    """Multiples of 1/4 in [-1, 1]: products and sums of few are exact in float32, so ties are true ties."""
    g = torch.Generator().manual_seed(seed)
    return torch.randint(-4, 5, shape, generator=g).float() / 4


VARIANTS = ("relu", "topk", "batchtopk", "matryoshka", "jumprelu", "gated")


def make(variant: str, d_in: int = 6, d_sae: int = 37, k: int = 5, **shared: object) -> SparseAutoencoder:
    weights = (dyadic(d_sae, d_in, seed=1), dyadic(d_sae, seed=2), dyadic(d_sae, d_in, seed=3), dyadic(d_in, seed=4))
    shared = {"input_mean": dyadic(d_in, seed=5), "input_scale": torch.full((d_in,), 2.0), **shared}
    threshold, seen = torch.tensor([0.25]), torch.tensor([7.0])
    match variant:
        case "relu":
            return ReluSae(*weights, **shared)
        case "topk":
            return TopKSae(*weights, k=k, **shared)
        case "batchtopk":
            return BatchTopKSae(*weights, k=k, threshold=threshold, threshold_weight=seen, **shared)
        case "matryoshka":
            rest = {"k": k, "threshold": threshold, "threshold_weight": seen, "prefixes": [3, 20, d_sae]}
            return MatryoshkaSae(*weights, **rest, **shared)
        case "jumprelu":  # thresholds of 1 and 1/2, where exp rounds to them: many pre-activations lie on them
            halves = torch.arange(d_sae) % 2 == 1
            return JumpReluSae(*weights, log_threshold=torch.where(halves, torch.tensor(0.5).log(), 0.0), **shared)
    gain = torch.zeros(d_sae)  # exp of it is 1: all stays exact
    return GatedSae(*weights, r_mag=gain, b_mag=dyadic(d_sae, seed=6), **shared)


def dense_reference(sae: SparseAutoencoder, x: torch.Tensor) -> np.ndarray:
    """f by numpy in float64; of ties at the k-th place the lower features are kept."""
    t = {name: tensor.double().numpy() for name, tensor in sae.tensors().items()}
    z = (x.double().numpy() - t["input_mean"]) / t["input_scale"]
    u = (z - t["b_dec"]) @ t["W_enc"]
    pre = u + t["b_enc"]
    if isinstance(sae, BatchTopKSae):
        return np.where(pre > t["threshold"], pre, 0)
    if isinstance(sae, JumpReluSae):
        return np.where(pre > sae.threshold.double().numpy(), pre, 0)
    if isinstance(sae, GatedSae):
        return np.where(pre > 0, np.maximum(u * np.exp(t["r_mag"]) + t["b_mag"], 0), 0)
    f = np.maximum(pre, 0)
    if isinstance(sae, TopKSae):
        order = np.argsort(-f, axis=1, kind="stable")[:, : sae.k]
        kept = np.zeros_like(f, dtype=bool)
        np.put_along_axis(kept, order, True, axis=1)
        f = np.where(kept, f, 0)
    return f


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("tile", [1, 4, 10, 37, 4096])
@pytest.mark.parametrize("n", [0, 1, 50])
def test_sparse_encoding_equals_dense_encoding_bit_for_bit_with_ties(variant, tile, n):
    sae = make(variant)
    x = dyadic(n, 6, seed=7)
    if n > 1:
        x[1] = sae.input_mean  # z = 0
    f = sae.encode(x)
    assert torch.equal(f.double(), torch.from_numpy(dense_reference(sae, x)))
    sparse = sae.encode_sparse(x, tile=tile)
    assert torch.equal(sparse.to_dense(), f)
    assert (sparse.value > 0).all()
    assert sparse.n_rows == n
    for r in range(n):
        index = sparse.index[sparse.indptr[r] : sparse.indptr[r + 1]]
        assert torch.equal(index, f[r].nonzero().squeeze(1))  # ascending, each once
    assert torch.allclose(sae.decode_sparse(sparse), sae.decode(f), atol=1e-5)


def test_ties_do_occur_in_these_tests():
    sae = make("topk")
    x = dyadic(50, 6, seed=7)
    pre = (sae.scale(x) - sae.b_dec) @ sae.W_enc + sae.b_enc
    top = pre.sort(1, descending=True).values
    assert ((top[:, 4] == top[:, 5]) & (top[:, 4] > 0)).any()


@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_on_which_nothing_fires_are_empty_rows(variant):
    sae = make(variant)
    sae.b_enc.fill_(-100)
    sparse = sae.encode_sparse(dyadic(4, 6, seed=1), tile=10)
    assert sparse.indptr.tolist() == [0] * 5
    bias = sae.unscale(sae.b_dec)
    assert torch.allclose(sae.decode_sparse(sparse), bias.expand(4, -1))


@given(st.integers(1, 6), st.integers(1, 12), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_the_largest_are_those_of_a_stable_sort(n, width, seed):
    pre = torch.randint(-2, 3, (n, width), generator=torch.Generator().manual_seed(seed)).float()
    for k in range(1, width + 1):
        value, column = largest(pre, k)
        expected = np.sort(np.argsort(-pre.numpy(), axis=1, kind="stable")[:, :k], axis=1)
        assert np.array_equal(column.numpy(), expected)
        assert torch.equal(value, pre.gather(1, column))


def test_sums_by_row_are_those_of_the_dense_matrix():
    sae = make("relu")
    sparse = sae.encode_sparse(dyadic(20, 6, seed=9), tile=8)
    assert torch.equal(sparse.sum_by_row(sparse.value), sparse.to_dense().double().sum(1))
    assert isinstance(sparse, SparseFeatures)


def test_scaling_maps_any_float_type_and_unscaling_undoes_it():
    sae = make("relu")
    x = dyadic(8, 6, seed=1)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert torch.equal(sae.scale(x.to(dtype)), (x - sae.input_mean) / 2)
    assert torch.equal(sae.unscale(sae.scale(x)), x)


def test_published_weights_have_the_published_orientation():
    sae = make("topk")
    assert sae.W_enc.shape == (6, 37)
    assert sae.W_dec.shape == (37, 6)
    assert sae.encoder.is_contiguous()


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_saved_sae_comes_back_as_it_was(tmp_path, variant):
    sae = make(variant)
    sae.save(tmp_path / "sae.safetensors")
    loaded = load_sae(tmp_path / "sae.safetensors")
    assert type(loaded) is type(sae)
    assert loaded.settings() == sae.settings()
    for name, tensor in sae.tensors().items():
        assert torch.equal(loaded.tensors()[name], tensor)
    sae.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "sae.safetensors").read_bytes()


def refused(path: Path) -> str:
    with pytest.raises(StoreError) as caught:
        load_sae(path)
    return str(caught.value)


def test_files_that_are_no_sae_are_refused_with_the_reason(tmp_path):
    assert "does not exist" in refused(tmp_path / "nowhere")
    assert "not a run directory" in refused(tmp_path)
    (tmp_path / "text").write_text("hello")
    assert "damaged or another format" in refused(tmp_path / "text")
    save_file({"W_enc": torch.zeros(2, 3)}, tmp_path / "foreign")
    assert "not an SAE that thresher wrote" in refused(tmp_path / "foreign")
    make("relu").save(tmp_path / "good")
    (tmp_path / "cut").write_bytes((tmp_path / "good").read_bytes()[:-5])
    assert "damaged" in refused(tmp_path / "cut")


def test_an_sae_that_does_not_fit_together_is_refused(tmp_path):
    metadata = {"format": "thresher-sae", "format_version": 1, "variant": "topk", "settings": {"k": 3}}
    tensors = {
        "W_enc": torch.zeros(2, 4),
        "b_enc": torch.zeros(4),
        "W_dec": torch.zeros(4, 2),
        "b_dec": torch.zeros(2),
        "input_mean": torch.zeros(2),
        "input_scale": torch.ones(2),
    }

    def write(**changes) -> Path:
        save_file(
            {k: v for k, v in {**tensors, **changes}.items() if v is not None},
            tmp_path / "sae",
            {"thresher": json.dumps(metadata)},
        )
        return tmp_path / "sae"

    assert load_sae(write()).d_sae == 4
    assert "holds no b_enc" in refused(write(b_enc=None))
    assert "b_enc has shape (3,)" in refused(write(b_enc=torch.zeros(3)))
    metadata["settings"] = {"k": 9}
    assert "k = 9" in refused(write())
    metadata["variant"] = "later"
    assert "'later'" in refused(write())


def test_activations_of_another_width_are_refused():
    with pytest.raises(ValueError, match=r"\(3, 5\) do not fit an SAE of d_in = 6"):
        make("relu").encode(torch.zeros(3, 5))


def test_activations_that_are_no_tensor_are_refused():
    with pytest.raises(ValueError, match=r"x must be a torch tensor of shape \(n, 6\); got list"):
        make("relu").encode([[0.0] * 6])


def test_a_sweep_is_told_from_a_run(tmp_path):
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(StoreError, match=r"is a sweep: name one of its runs, which `thresher sweep"):
        load_sae(tmp_path)


def test_layer_norm_is_undone_by_the_reconstruction_of_the_same_row():
    sae = make("relu", layer_norm=True)
    x = torch.randn(9, 6, generator=torch.Generator().manual_seed(0)) * 5 + 3
    rows = x.double().numpy()
    mean, deviation = rows.mean(1, keepdims=True), rows.std(1, ddof=1, keepdims=True) + 1e-5
    t = {name: tensor.double().numpy() for name, tensor in sae.tensors().items()}
    z = ((rows - mean) / deviation - t["input_mean"]) / t["input_scale"]
    f = np.maximum((z - t["b_dec"]) @ t["W_enc"] + t["b_enc"], 0)
    x_hat = ((f @ t["W_dec"] + t["b_dec"]) * t["input_scale"] + t["input_mean"]) * deviation + mean
    assert np.allclose(sae.encode(x).numpy(), f, atol=1e-5)
    assert np.allclose(sae(x).numpy(), x_hat, atol=1e-4)
    assert np.allclose(sae.decode_sparse(sae.encode_sparse(x), x).numpy(), x_hat, atol=1e-4)
    with pytest.raises(ValueError, match="needs the activations x"):
        sae.decode(sae.encode(x))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_transcoder_reads_one_space_and_writes_another(variant, tmp_path):
    square = make(variant)
    tensors = {**square.tensors(), "W_dec": dyadic(37, 4, seed=8), "b_dec": dyadic(4, seed=9)}
    tensors |= {"output_mean": dyadic(4, seed=10), "output_scale": torch.full((4,), 0.5)}
    sae = type(square).from_tensors(tensors, {**square.settings(), "centres_input": False})
    x = dyadic(20, 6, seed=7)
    f = sae.encode(x)
    y_hat = (f @ tensors["W_dec"] + tensors["b_dec"]) * 0.5 + tensors["output_mean"]
    assert torch.allclose(sae.decode(f), y_hat, atol=1e-5)
    assert torch.equal(sae.encode_sparse(x, tile=10).to_dense(), f)
    assert torch.equal(sae.scale_target(y_hat), (y_hat - tensors["output_mean"]) / 0.5)
    sae.save(tmp_path / "sae")
    assert torch.equal(load_sae(tmp_path / "sae")(x), sae(x))


def test_features_of_another_width_are_told_as_what_they_are():
    sae = TopKSae(torch.ones(6, 4), torch.zeros(6), torch.ones(6, 4), torch.zeros(4), k=2)
    with pytest.raises(ValueError, match=r"features of shape \(3, 5\) do not fit an SAE of d_sae = 6"):
        sae.decode(torch.zeros(3, 5))

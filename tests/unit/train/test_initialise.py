"""Where an SAE starts: the recipe's draws, the scaling of input and encoder, the geometric median against scipy."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize, minimize_scalar
from thresher.train.initialise import decoder_bias, encoder_scale, geometric_median, input_scaling, new_sae
from thresher.train.objective import Objective
from thresher.train.options import VARIANTS_OF, TrainOptions
from thresher.train.recipes import resolve_options


def sum_of_distances(point: np.ndarray, points: np.ndarray) -> float:
    return float(np.linalg.norm(points - point, axis=1).sum())


@pytest.mark.parametrize("seed", range(4))
def test_the_geometric_median_is_scipys_minimum(seed):
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((200, 5)) ** 3 + rng.standard_normal(5)  # heavy tails: far from the mean
    best = minimize(sum_of_distances, points.mean(0), args=(points,), tol=1e-12, options={"gtol": 1e-9})
    ours = geometric_median(torch.from_numpy(points)).numpy()
    assert np.abs(ours - best.x).max() < 1e-5
    assert sum_of_distances(ours, points) <= best.fun * (1 + 1e-12)
    assert np.abs(ours - points.mean(0)).max() > 0.05


def test_the_geometric_median_may_be_one_of_the_points():
    star = torch.tensor([[0.0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]])
    assert torch.allclose(geometric_median(star + 3), torch.tensor([3.0, 3.0], dtype=torch.float64), atol=1e-9)
    # two thirds of the points in one place: the median is there, though the start is not
    heap = torch.tensor([[1.0, 2.0]] * 6 + [[50.0, 0.0], [0.0, 50.0], [-9.0, 7.0]])
    assert torch.allclose(geometric_median(heap), torch.tensor([1.0, 2.0], dtype=torch.float64), atol=1e-6)


def test_the_geometric_median_leaves_a_point_that_is_not_the_median():
    # The mean of these, where the iteration starts, is one of the points.
    points = torch.tensor([[0.0, 0.0], [10.0, 0.0], [-1.0, 1.0], [-9.0, -1.0]], dtype=torch.float64)
    assert torch.equal(points.mean(0), points[0])
    best = minimize(sum_of_distances, [-0.5, 0.1], args=(points.numpy(),), method="Nelder-Mead", tol=1e-12)
    ours = geometric_median(points).numpy()
    assert sum_of_distances(ours, points.numpy()) <= best.fun + 1e-9


def test_the_geometric_median_of_one_row_or_of_copies_is_that_row():
    row = torch.tensor([[1.5, -2.0, 3.0]])
    assert torch.equal(geometric_median(row), row[0].double())
    assert torch.allclose(geometric_median(row.expand(7, 3)), row[0].double())


def test_the_recipe_draws_within_kaimings_bounds_and_unit_decoder_rows():
    sae = new_sae(resolve_options({"recipe": "post-2024", "seed": 5}), 32)
    bound = math.sqrt(6 / (64 * 32))  # torch's fan_in of (d_in, d_sae) is d_sae
    assert sae.W_enc.shape == (32, 2048)
    assert 0.99 * bound < float(sae.encoder.abs().max()) <= bound
    assert float(sae.encoder.std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert torch.allclose(sae.decoder.norm(dim=1), torch.ones(2048), atol=3e-7)
    assert not sae.b_enc.any()
    assert not torch.equal(sae.encoder, sae.decoder)


def test_weights_depend_on_the_seed_alone():
    a, b, c = (new_sae(TrainOptions(seed=s, expansion=2), 16) for s in (1, 1, 2))
    assert torch.equal(a.decoder, b.decoder)
    assert not torch.equal(a.decoder, c.decoder)
    assert torch.equal(a.encoder, a.decoder)  # encoder_init transpose


@pytest.mark.parametrize("variant", VARIANTS_OF["k"])
@pytest.mark.parametrize("k", [1, 5, 24])
def test_an_encoder_is_scaled_to_what_scipy_finds_to_reconstruct_best(variant, k):
    sae = new_sae(TrainOptions(variant=variant, k=k, expansion=8, groups=2), 6)
    z = torch.randn(200, 6, generator=torch.Generator().manual_seed(k)) + 3
    sae.b_dec.copy_(z.mean(0))
    centred = (z - sae.b_dec).double().numpy()
    pre, decoder = centred @ sae.encoder.double().numpy().T, sae.decoder.double().numpy()
    kept = np.sort(pre, axis=1)[:, -k : -k - 1 : -1] if variant == "topk" else np.sort(pre, axis=None)[-200 * k]
    f = np.where(pre >= kept, pre, 0).clip(min=0)
    best = minimize_scalar(lambda scale: np.square(scale * f @ decoder - centred).sum()).x
    assert encoder_scale(sae, z, Objective()) == pytest.approx(best, rel=1e-5)
    assert best < 0.9 or k == 1


def test_an_encoder_of_rows_that_activate_nothing_is_not_scaled():
    sae = new_sae(TrainOptions(k=2, expansion=2), 6)
    assert encoder_scale(sae, torch.zeros(1, 6), Objective()) == 1


def test_standardized_rows_have_mean_zero_and_deviation_one_in_every_coordinate():
    x = torch.randn(500, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 50, 0.01, 0]) + 7
    mean, scale = input_scaling(x, "standardize")
    z = ((x - mean) / scale).double()
    assert torch.allclose(z.mean(0), torch.zeros(4, dtype=torch.float64), atol=1e-4)
    assert torch.allclose(z[:, :3].std(0, correction=0), torch.ones(3, dtype=torch.float64), rtol=1e-4)
    assert (z[:, 3] == 0).all()  # a constant coordinate stays finite


def test_expected_norm_scales_the_mean_norm_to_the_root_of_d_in():
    x = torch.randn(500, 9, generator=torch.Generator().manual_seed(0)) * 30 + 4
    mean, scale = input_scaling(x, "expected-norm")
    assert not mean.any()
    assert float(((x - mean) / scale).norm(dim=1).mean()) == pytest.approx(3, rel=1e-5)


def test_no_scaling_and_rows_without_variance_stay_as_they_are():
    x = torch.full((5, 3), 2.0)
    for kind in ("none", "standardize"):
        mean, scale = input_scaling(x, kind)
        assert torch.isfinite((x - mean) / scale).all()
    assert torch.equal(input_scaling(torch.zeros(4, 3), "expected-norm")[1], torch.ones(3))


def test_the_decoder_bias_starts_where_it_is_told():
    z = torch.tensor([[0.0, 0], [0, 0], [0, 0], [8, 4]])
    assert decoder_bias(z, "zero").tolist() == [0, 0]
    assert decoder_bias(z, "mean").tolist() == [2, 1]
    assert decoder_bias(z, "geometric-median").tolist() == pytest.approx([0, 0], abs=1e-6)

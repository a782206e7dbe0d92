"""Resampling of dead features against Bricken et al.'s recipe by hand in numpy, and that it revives features."""

import numpy as np
import pytest
import torch
from thresher.train.initialise import new_sae
from thresher.train.models import GatedSae, JumpReluSae, SparseAutoencoder
from thresher.train.objective import Objective
from thresher.train.optimiser import UnitNormAdam
from thresher.train.options import TrainOptions
from thresher.train.resample import resample_features
from thresher.train.step import compute_step

D, F = 12, 40
DEAD = torch.tensor([1, 5, 17, 39])


def an_sae(variant: str = "relu", seed: int = 0) -> SparseAutoencoder:
    sae = new_sae(TrainOptions(variant=variant, expansion=F / D, k=4, seed=seed), D)
    g = torch.Generator().manual_seed(seed + 1)
    sae.b_enc.copy_(torch.randn(F, generator=g) * 0.1)
    sae.b_dec.copy_(torch.randn(D, generator=g) * 0.3)
    sae.input_mean.copy_(torch.randn(D, generator=g))
    sae.input_scale.copy_(torch.rand(D, generator=g) + 0.5)
    return sae


def rows(n: int, seed: int = 3) -> torch.Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed)) * 2 + 1


def an_adam(sae: SparseAutoencoder) -> UnitNormAdam:
    adam = UnitNormAdam(sae)
    for tensor in (*adam.mean.values(), *adam.square.values()):
        tensor.fill_(1.0)
    return adam


def squared_errors(sae: SparseAutoencoder, x: torch.Tensor) -> np.ndarray:
    """Of each row, in the scaled space, in float64."""
    t = {name: tensor.double().numpy() for name, tensor in sae.tensors().items()}
    z = (x.double().numpy() - t["input_mean"]) / t["input_scale"]
    f = np.maximum((z - t["b_dec"]) @ t["W_enc"] + t["b_enc"], 0)
    return ((f @ t["W_dec"] + t["b_dec"] - z) ** 2).sum(1)


def test_a_resampled_feature_points_where_its_row_was_missed():
    sae, x = an_sae(), rows(1)  # one row: every dead feature is given it
    z = ((x - sae.input_mean) / sae.input_scale).double().numpy()[0]
    before = {name: tensor.clone() for name, tensor in sae.parameters().items()}
    adam = an_adam(sae)
    resample_features(sae, adam, DEAD, x, x, seed=0, step=0)
    direction = (z - sae.b_dec.double().numpy()) / np.linalg.norm(z - sae.b_dec.double().numpy())
    alive = np.setdiff1d(np.arange(F), DEAD.numpy())
    norm = 0.2 * np.linalg.norm(before["encoder"].double().numpy()[alive], axis=1).mean()
    for k in DEAD.tolist():
        assert np.allclose(sae.decoder[k].numpy(), direction, atol=1e-6)
        assert np.allclose(sae.encoder[k].numpy(), direction * norm, atol=1e-6)
        assert float(sae.b_enc[k]) == 0
    for name, tensor in sae.parameters().items():
        if name == "b_dec":
            assert torch.equal(tensor, before[name])
        else:
            assert torch.equal(tensor[alive], before[name][alive])
    for moments in (adam.mean, adam.square):
        for name, tensor in moments.items():
            if name == "b_dec":
                assert (tensor == 1).all()
            else:
                assert (tensor[DEAD] == 0).all()
                assert (tensor[alive] == 1).all()


def test_a_row_at_the_decoder_bias_gives_no_feature_its_direction():
    sae, x = an_sae(), rows(3)
    sae.b_enc.fill_(1.0)  # features fire there, so that it is reconstructed worst
    x[1] = 0
    sae.input_mean.zero_()
    sae.b_dec.zero_()
    adam = an_adam(sae)
    for step in range(20):
        resample_features(sae, adam, DEAD[:2], x, x, seed=0, step=step)
        assert torch.allclose(sae.decoder[DEAD[:2]].norm(dim=1), torch.ones(2))
    before = sae.decoder.clone()
    resample_features(sae, adam, DEAD, x[1:2], x[1:2], seed=0, step=0)
    assert torch.equal(sae.decoder, before)


def test_rows_are_drawn_in_proportion_to_their_squared_loss():
    sae, x = an_sae(), rows(6)
    weight = squared_errors(sae, x) ** 2
    z = ((x - sae.input_mean) / sae.input_scale - sae.b_dec).double()
    directions = z / z.norm(dim=1, keepdim=True)
    counts = np.zeros(6)
    draws = 800
    for step in range(draws):
        copy = an_sae()
        resample_features(copy, UnitNormAdam(copy), DEAD[:1], x, x, seed=7, step=step)
        counts[int((directions @ copy.decoder[DEAD[0]].double()).argmax())] += 1
    expected = draws * weight / weight.sum()
    # chi2 of 5 degrees of freedom exceeds 20.5 in one of a thousand
    assert ((counts - expected) ** 2 / expected).sum() < 20.5
    assert expected.max() > 2 * expected.min()


def test_fewer_rows_than_dead_features_are_drawn_again():
    sae, x = an_sae(), rows(2)
    resample_features(sae, UnitNormAdam(sae), DEAD, x, x, seed=0, step=0)
    assert torch.allclose(sae.decoder[DEAD].norm(dim=1), torch.ones(4), atol=1e-6)


def test_as_many_rows_as_dead_features_are_each_drawn_once():
    sae, x = an_sae(), rows(4)
    resample_features(sae, UnitNormAdam(sae), DEAD, x, x, seed=0, step=0)
    assert len({tuple(row.tolist()) for row in sae.decoder[DEAD]}) == 4


def test_a_draw_depends_on_seed_and_step_alone():
    def drawn(seed: int, step: int) -> torch.Tensor:
        sae = an_sae()
        resample_features(sae, UnitNormAdam(sae), DEAD, rows(500), rows(500), seed=seed, step=step)
        return sae.decoder[DEAD]

    assert torch.equal(drawn(3, 100), drawn(3, 100))
    assert not torch.equal(drawn(3, 100), drawn(3, 101))
    assert not torch.equal(drawn(3, 100), drawn(4, 100))


def test_where_every_row_is_perfect_or_one_is_not_finite_nothing_changes():
    sae = an_sae()
    before = sae.decoder.clone()
    sae.b_enc.fill_(-1.0)
    for tensor, value in ((sae.b_dec, 0.0), (sae.input_mean, 0.0), (sae.input_scale, 1.0)):
        tensor.fill_(value)
    perfect = torch.zeros(3, D)  # nothing is active, and the bias is the row
    resample_features(sae, UnitNormAdam(sae), DEAD, perfect, perfect, seed=0, step=0)
    assert torch.equal(sae.decoder, before)
    broken = rows(3)
    broken[1, 2] = float("nan")
    resample_features(sae, UnitNormAdam(sae), DEAD, broken, broken, seed=0, step=0)
    assert torch.equal(sae.decoder, before)


def test_all_features_may_be_dead():
    sae = an_sae()
    resample_features(sae, UnitNormAdam(sae), torch.arange(F), rows(100), rows(100), seed=0, step=0)
    assert all(torch.isfinite(tensor).all() for tensor in sae.parameters().values())
    assert torch.allclose(sae.decoder.norm(dim=1), torch.ones(F), atol=1e-6)


@pytest.mark.parametrize("variant", ["gated", "jumprelu"])
def test_vectors_of_a_variant_start_again_as_in_a_new_sae(variant):
    sae = an_sae(variant)
    new = {name: getattr(sae, name).clone() for name in sae.trained}
    for name in sae.trained:
        getattr(sae, name).add_(1.5)
    resample_features(sae, UnitNormAdam(sae), DEAD, rows(100), rows(100), seed=0, step=0)
    assert isinstance(sae, GatedSae | JumpReluSae)
    if variant == "gated":
        for name in sae.trained:
            assert torch.equal(getattr(sae, name)[DEAD], new[name][DEAD])


def planted(n: int, seed: int) -> torch.Tensor:
    """Sparse positive sums of 24 directions in 12 dimensions."""
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((24, D))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    rng = np.random.default_rng(seed)
    codes = rng.exponential(1.0, (n, 24)) * (rng.random((n, 24)) < 0.08)
    return torch.from_numpy((codes @ directions).astype(np.float32))


@pytest.mark.parametrize(
    ("variant", "remedy"),
    [
        *(("relu", "none"), ("relu", "ghost"), ("relu", "resample")),
        *(("topk", "none"), ("topk", "auxk")),
        *(("jumprelu", "none"), ("jumprelu", "preact")),
    ],
)
def test_a_remedy_revives_features_on_planted_data_and_none_hardly_does(variant, remedy):
    sae = new_sae(TrainOptions(variant=variant, expansion=F / D, k=3, seed=0, initial_threshold=0.1), D)
    sae.encoder.copy_(sae.decoder)
    if variant == "topk":
        sae.encoder[:20] *= 0.02  # above zero, which AuxK needs, and never among the largest
    else:
        sae.b_enc[:20] = -5.0  # no row reaches them
    adam = UnitNormAdam(sae)
    in_step = "none" if remedy == "resample" else remedy
    objective = Objective(error="mse", sparsity=3e-3, dead=in_step, aux_k=6, bandwidth=0.1)
    held = planted(2000, 1)
    assert not (sae.encode(held) > 0).any(0)[:20].any()
    silent = torch.zeros(F)
    n_steps, lr = (400, 1e-2) if variant == "topk" else (200, 3e-2)
    for step in range(n_steps):
        x = held[step % 20 * 100 :][:100]
        dead = (silent > 5).nonzero().squeeze(1)
        if remedy == "resample" and step in (50, 120):
            resample_features(sae, adam, dead, held, held, seed=0, step=step)
            silent[dead] = 0
        result = compute_step(sae, x, dead if len(dead) else None, objective)
        silent = torch.where(result.fired, 0.0, silent + 1)
        adam.update(sae, result.gradients, lr)
    n_alive = int((sae.encode(held) > 0).any(0)[:20].sum())
    # Of 20. Where biases of the others fall, one or two of topk come back by themselves.
    assert n_alive <= 2 if remedy == "none" else n_alive >= 10, n_alive

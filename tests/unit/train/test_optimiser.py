"""Adam under unit-norm rows against torch.optim.Adam around the post's own order of operations."""

import pytest
import torch
from thresher.train.initialise import new_sae
from thresher.train.models import ReluSae
from thresher.train.objective import Objective
from thresher.train.optimiser import UnitNormAdam, learning_rate
from thresher.train.options import TrainOptions
from thresher.train.recipes import resolve_options
from thresher.train.step import compute_step

D, F = 16, 40_000  # more rows than one block of the update holds


def small_sae(dtype: torch.dtype, d_sae: int = 80) -> ReluSae:
    sae = new_sae(TrainOptions(variant="relu", expansion=d_sae / D, encoder_init="independent", seed=3), D)
    sae.encoder *= 20  # the drawn encoder is so small that nearly all entries sit at the ReLU's edge
    sae = sae.to(dtype=dtype)
    sae.decoder /= sae.decoder.norm(dim=1, keepdim=True)  # to the rounding of this type
    return sae


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ten_steps_equal_torch_adam_in_the_order_of_the_post(dtype):
    sae = small_sae(dtype)
    objective = Objective(error="normalized", sparsity=1e-3)
    batches = [torch.randn(64, D, generator=torch.Generator().manual_seed(i)).to(dtype) for i in range(10)]
    options = TrainOptions(variant="relu", lr=1e-2, warmup=5, decay=0.0)

    reference = [p.clone().double().requires_grad_() for p in sae.parameters().values()]
    encoder, b_enc, decoder, b_dec = reference
    adam_reference = torch.optim.Adam(reference, lr=1.0)
    for step, x in enumerate(batches):
        x = x.double()
        with torch.no_grad():
            decoder /= decoder.norm(dim=1, keepdim=True)
        adam_reference.param_groups[0]["lr"] = 1e-2 * min(1, (step + 2) / 5)
        adam_reference.zero_grad()
        f = ((x - b_dec) @ encoder.T + b_enc).relu()
        x_hat = f @ decoder + b_dec
        loss = ((x_hat - x) ** 2 / x.norm(dim=1, keepdim=True)).mean() + 1e-3 * f.sum(1).mean()
        loss.backward()
        with torch.no_grad():
            decoder.grad -= (decoder.grad * decoder).sum(1, keepdim=True) * decoder
        adam_reference.step()
    with torch.no_grad():
        decoder /= decoder.norm(dim=1, keepdim=True)  # ours are left at norm 1 after the last step too

    adam = UnitNormAdam(sae)
    for step, x in enumerate(batches):
        adam.update(sae, compute_step(sae, x, None, objective).gradients, learning_rate(step, options))
    for ours, theirs in zip(sae.parameters().values(), reference, strict=True):
        error = float((ours.double() - theirs.detach()).norm() / theirs.detach().norm())
        assert error < (1e-13 if dtype == torch.float64 else 1e-6)


def test_an_update_in_blocks_equals_one_over_all_rows():
    sae = small_sae(torch.float64, F)
    before = sae.decoder.clone()
    g = torch.randn(F, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gradients = {name: torch.zeros_like(p) for name, p in sae.parameters().items()} | {"decoder": g.clone()}
    UnitNormAdam(sae).update(sae, gradients, 1e-2)
    projected = g - (g * before).sum(1, keepdim=True) * before
    expected = before - 1e-2 * projected / (projected.abs() + 1e-8)  # Adam's first step moves by lr in each entry
    expected /= expected.norm(dim=1, keepdim=True)
    assert torch.allclose(sae.decoder, expected, rtol=0, atol=1e-12)


def test_decoder_rows_have_norm_one_after_every_step():
    sae = small_sae(torch.float32)
    adam = UnitNormAdam(sae)
    for i in range(3):
        x = torch.randn(64, D, generator=torch.Generator().manual_seed(i))
        adam.update(sae, compute_step(sae, x, None, Objective()).gradients, 1e-2)
        assert torch.allclose(sae.decoder.norm(dim=1), torch.ones(80), atol=3e-7)


def test_the_recipe_warms_up_as_the_post_did():
    options = resolve_options({"recipe": "post-2024"})
    assert options.steps == 2560
    assert [learning_rate(t, options) for t in (0, 1, 249, 497, 498, 499, 2559)] == pytest.approx(
        [4e-4 * 2 / 500, 4e-4 * 3 / 500, 4e-4 * 251 / 500, 4e-4 * 499 / 500, 4e-4, 4e-4, 4e-4], rel=1e-15
    )


def test_decay_is_linear_to_zero_over_the_last_share_of_the_run():
    options = TrainOptions(lr=1.0, warmup=0, decay=0.2, batch_size=10, rows=1000)
    rates = [learning_rate(t, options) for t in range(100)]
    assert rates[:81] == [1.0] * 81
    assert rates[90] == pytest.approx(0.5)
    assert rates[99] == pytest.approx(0.05)

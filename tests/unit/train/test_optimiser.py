"""Adam under unit-norm rows against torch.optim.Adam around the post's own order of operations."""

import pytest
import torch
from thresher.train.initialise import new_sae
from thresher.train.models import ReluSae
from thresher.train.objective import Objective
from thresher.train.optimiser import AdamSettings, UnitNormAdam, learning_rate, sparsity_share
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


@pytest.mark.parametrize("unit_norm", [True, False])
def test_adamw_with_clipping_equals_torchs(unit_norm):
    sae = small_sae(torch.float64)
    settings = AdamSettings(beta1=0.8, beta2=0.99, weight_decay=0.1, clip_norm=0.5, unit_norm=unit_norm)
    adam = UnitNormAdam(sae, settings)
    names = list(sae.parameters())
    reference = {name: p.clone().requires_grad_() for name, p in sae.parameters().items()}
    decays = ("encoder",) if unit_norm else ("encoder", "decoder")
    theirs = torch.optim.AdamW(
        [
            {"params": [reference[name] for name in names if name in decays], "weight_decay": 0.1},
            {"params": [reference[name] for name in names if name not in decays], "weight_decay": 0.0},
        ],
        lr=1e-2,
        betas=(0.8, 0.99),
    )
    for step in range(6):
        g = torch.Generator().manual_seed(step)
        size = 10.0 if step % 2 else 1e-3  # clipped, and not
        gradients = {n: torch.randn(p.shape, generator=g, dtype=p.dtype) * size for n, p in reference.items()}
        for name, p in reference.items():
            p.grad = gradients[name].clone()
        torch.nn.utils.clip_grad_norm_(list(reference.values()), 0.5)
        decoder = reference["decoder"]
        with torch.no_grad():
            if unit_norm:
                decoder.grad -= (decoder.grad * decoder).sum(1, keepdim=True) * decoder
            theirs.step()
            if unit_norm:
                decoder /= decoder.norm(dim=1, keepdim=True)
        adam.update(sae, gradients, 1e-2)
    for name, p in sae.parameters().items():
        # torch divides by the norm + 1e-6: of a norm of 500, 2e-9 of the gradient, which Adam's quotient cancels
        assert torch.allclose(p, reference[name].detach(), rtol=0, atol=1e-8), name


def test_a_variants_own_rates_multiply_the_learning_rate():
    sae = new_sae(TrainOptions(variant="jumprelu", expansion=2), 4)
    before = {name: p.clone() for name, p in sae.parameters().items()}
    UnitNormAdam(sae).update(sae, {name: torch.ones_like(p) for name, p in sae.parameters().items()}, 1e-3)
    moved = {name: float((before[name] - p).mean()) for name, p in sae.parameters().items()}
    assert moved["b_enc"] == pytest.approx(1e-3, rel=1e-4)  # Adam's first step
    assert moved["log_threshold"] == pytest.approx(1e-2, rel=1e-4)


def test_the_rate_falls_along_half_a_cosine_a_line_or_not_at_all():
    def rates(schedule: str) -> list[float]:
        options = TrainOptions(lr=2.0, warmup=4, decay=0.5, schedule=schedule, batch_size=1, rows=8)
        return [learning_rate(step, options) for step in range(8)]

    start = [1.0, 1.5, 2.0, 2.0]  # the warm-up is of 4 steps, one step ahead
    assert rates("constant") == [*start, 2.0, 2.0, 2.0, 2.0]
    assert rates("linear") == pytest.approx([*start, 2.0, 1.5, 1.0, 0.5])
    # (1 - cos(pi left)) with left = 1, 3/4, 1/2, 1/4
    assert rates("cosine") == pytest.approx([*start, 2.0, 1 + 2**-0.5, 1.0, 1 - 2**-0.5])


def test_the_share_of_the_penalty_rises_in_a_line():
    options = TrainOptions(variant="relu", sparsity_warmup=4)
    assert [sparsity_share(step, options) for step in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1]
    assert sparsity_share(0, TrainOptions(variant="relu")) == 1

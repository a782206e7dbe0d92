"""One training step against plain autograd in float64, written from the post's formulas and from Gao et al."""

from dataclasses import dataclass

import pytest
import torch
from thresher.train.models import ReluSae, SparseAutoencoder, TopKSae
from thresher.train.objective import Objective
from thresher.train.step import compute_step
from torch import Tensor

D, F, B = 32, 256, 96
NAMES = ("encoder", "b_enc", "decoder", "b_dec")


@dataclass
class Reference:
    loss: Tensor
    gradients: dict[str, Tensor]
    pre: Tensor


def post_loss(p: dict[str, Tensor], x: Tensor, l1: float, dead: Tensor | None) -> tuple[Tensor, Tensor]:
    """The post's loss, elementwise as its code has it; W_enc and W_dec are held transposed and not."""
    pre = (x - p["b_dec"]) @ p["encoder"].T + p["b_enc"]
    f = pre.relu()
    x_hat = f @ p["decoder"] + p["b_dec"]
    mse_elements = (x_hat - x) ** 2 / x.norm(dim=-1, keepdim=True)
    loss = mse_elements.mean() + l1 * f.abs().sum(1).mean()
    if dead is not None:
        r = (x - x_hat).detach()
        g = pre[:, dead].exp() @ p["decoder"][dead]
        g = g * (r.norm(dim=-1, keepdim=True) / (2 * g.norm(dim=-1, keepdim=True) + 1e-6)).detach()
        m = (g - r) ** 2 / r.norm(dim=-1, keepdim=True)
        scale = (mse_elements / (m + 1e-6)).detach()
        loss = loss + (scale * m).mean()
    return loss, pre


def topk_loss(
    p: dict[str, Tensor], x: Tensor, k: int, aux: float, aux_k: int, dead: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Gao et al.: relu of the k largest; AuxK on what is left, from the aux_k largest dead ones."""
    pre = (x - p["b_dec"]) @ p["encoder"].T + p["b_enc"]
    kept = torch.zeros_like(pre, dtype=torch.bool)
    kept.scatter_(1, pre.argsort(1, descending=True)[:, :k], True)
    x_hat = torch.where(kept, pre, 0).relu() @ p["decoder"] + p["b_dec"]
    loss = ((x_hat - x) ** 2).mean()
    if dead is not None and aux:
        e = (x - x_hat).detach()
        pre_dead = pre[:, dead]
        rank = pre_dead.argsort(1, descending=True).argsort(1)
        e_hat = torch.where(rank < aux_k, pre_dead, 0).relu() @ p["decoder"][dead]
        loss = loss + aux * ((e_hat - e) ** 2).mean()
    return loss, pre


def weights(dtype: torch.dtype, *, b_enc: float, seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    decoder = torch.randn(F, D, generator=g, dtype=torch.float64)
    decoder /= decoder.norm(dim=1, keepdim=True)
    p = {
        "encoder": torch.randn(F, D, generator=g, dtype=torch.float64) * 0.3,
        "b_enc": torch.randn(F, generator=g, dtype=torch.float64) * 0.1 + b_enc,
        "decoder": decoder,
        "b_dec": torch.randn(D, generator=g, dtype=torch.float64) * 0.2,
    }
    return {name: tensor.float().to(dtype) for name, tensor in p.items()}  # the same float32 values in either type


def batch(dtype: torch.dtype, seed: int = 1) -> Tensor:
    return torch.randn(B, D, generator=torch.Generator().manual_seed(seed)).to(dtype)


def by_autograd(loss_of, p: dict[str, Tensor], x: Tensor) -> Reference:
    p = {name: tensor.clone().requires_grad_() for name, tensor in p.items()}
    loss, pre = loss_of(p, x)
    gradients = torch.autograd.grad(loss, [p[name] for name in NAMES])
    return Reference(loss.detach(), dict(zip(NAMES, gradients, strict=True)), pre.detach())


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b).norm() / b.norm())


def check(loss_of, make, *, b_enc: float, dead: Tensor | None, objective: Objective, sparse: bool) -> None:
    exact = by_autograd(loss_of, weights(torch.float64, b_enc=b_enc), batch(torch.float64))
    floor = by_autograd(loss_of, weights(torch.float32, b_enc=b_enc), batch(torch.float32))
    # A pre-activation within float32 rounding of zero would put the two on different sides of the ReLU.
    assert exact.pre.abs().min() > 2e-6
    for dtype in (torch.float32, torch.float64):
        p = weights(dtype, b_enc=b_enc)
        sae: SparseAutoencoder = make(p)
        got = compute_step(sae, batch(dtype), dead, objective)
        assert got.was_sparse == sparse
        for name in NAMES:
            error = relative(got.gradients[name], exact.gradients[name])
            limit = 1e-12 if dtype == torch.float64 else 2 * relative(floor.gradients[name], exact.gradients[name])
            assert error <= limit, (name, dtype, error, limit)
        loss_error = abs(float(got.loss) - float(exact.loss)) / float(exact.loss)
        assert loss_error <= (1e-13 if dtype == torch.float64 else 2e-7)  # 2e-7: two roundings of a float32


DEAD = torch.arange(3, F, 10)


@pytest.mark.parametrize("dead", [None, DEAD], ids=["no dead features", "a tenth dead"])
@pytest.mark.parametrize(("b_enc", "sparse"), [(-0.5, False), (-3.6, True)], ids=["dense", "sparse"])
def test_a_relu_step_equals_float64_autograd_of_the_recipe(dead, b_enc, sparse):
    check(
        lambda p, x: post_loss(p, x, 3e-3, dead),
        lambda p: ReluSae(*(p[name] for name in NAMES)),
        b_enc=b_enc,
        dead=dead,
        objective=Objective(error="normalized", sparsity=3e-3, dead="ghost"),
        sparse=sparse,
    )


@pytest.mark.parametrize(
    ("dead", "aux_k"),
    [(None, 8), (DEAD, 8), (DEAD, 512)],
    ids=["no dead features", "some of the dead", "all of the dead"],
)
def test_a_topk_step_equals_float64_autograd_with_and_without_auxk(dead, aux_k):
    check(
        lambda p, x: topk_loss(p, x, 12, 1 / 32, aux_k, dead),
        lambda p: TopKSae(*(p[name] for name in NAMES), k=12),
        b_enc=-0.5,
        dead=dead,
        objective=Objective(dead="auxk", aux=1 / 32, aux_k=aux_k),
        sparse=True,
    )


def test_a_topk_row_with_fewer_than_k_positive_pre_activations_keeps_only_those():
    p = weights(torch.float64, b_enc=-4.0)
    sae = TopKSae(*(p[name] for name in NAMES), k=12)
    x = batch(torch.float64)
    reference = by_autograd(lambda q, y: topk_loss(q, y, 12, 0, 1, None), p, x)
    got = compute_step(sae, x, None, Objective())
    assert float(got.l0) < 12
    for name in NAMES:
        assert relative(got.gradients[name], reference.gradients[name]) < 1e-12
    assert torch.equal(got.fired, (sae.encode(x) > 0).any(0))


def test_ghost_gradients_reach_a_dead_feature_that_fires_on_this_very_batch():
    p = weights(torch.float64, b_enc=-0.5)
    dead = torch.tensor([0, 1, 2])
    sae = ReluSae(*(p[name] for name in NAMES))
    x = batch(torch.float64)
    reference = by_autograd(lambda q, y: post_loss(q, y, 0.0, dead), p, x)
    assert (reference.pre[:, dead] > 0).any()
    got = compute_step(sae, x, dead, Objective(error="normalized", dead="ghost"))
    assert relative(got.gradients["encoder"][dead], reference.gradients["encoder"][dead]) < 1e-12


@pytest.mark.parametrize("b_enc", [-0.5, -3.6])
def test_a_step_counts_what_is_active(b_enc):
    p = weights(torch.float32, b_enc=b_enc)
    sae = ReluSae(*(p[name] for name in NAMES))
    x = batch(torch.float32)
    f = ((x - p["b_dec"]) @ p["encoder"].T + p["b_enc"]).relu()
    got = compute_step(sae, x, None, Objective(error="normalized", sparsity=1.0))
    assert float(got.l0) == pytest.approx(float((f > 0).sum(1).double().mean()), rel=1e-6)
    assert float(got.sparsity) == pytest.approx(float(f.sum(1).double().mean()), rel=1e-6)
    assert torch.equal(got.fired, (f > 0).any(0))


def test_a_row_of_norm_zero_has_no_weight_in_the_normalised_error():
    p = weights(torch.float64, b_enc=-0.5)
    sae = ReluSae(*(p[name] for name in NAMES))
    x = batch(torch.float64)
    x[0] = 0
    rest = compute_step(sae, x[1:], None, Objective(error="normalized"))
    with_zero = compute_step(sae, x, None, Objective(error="normalized"))
    assert float(with_zero.loss) == pytest.approx(float(rest.loss) * (B - 1) / B, rel=1e-12)


def test_bf16_matmuls_stay_near_fp32_gradients():
    p = weights(torch.float32, b_enc=-0.5)
    sae = ReluSae(*(p[name] for name in NAMES))
    x = batch(torch.float32)
    exact = compute_step(sae, x, None, Objective(error="normalized", sparsity=1e-3))
    rounded = compute_step(sae, x, None, Objective(error="normalized", sparsity=1e-3, precision="bf16"))
    assert not torch.equal(exact.gradients["encoder"], rounded.gradients["encoder"])
    assert relative(rounded.gradients["encoder"], exact.gradients["encoder"].double()) < 0.1
    assert relative(rounded.gradients["decoder"], exact.gradients["decoder"].double()) < 0.02

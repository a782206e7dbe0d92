"""One training step of every variant, remedy and layout against float64 autograd of its paper's objective."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from sae_reference import Reference, Setting, by_autograd
from thresher.train.models import (
    BatchTopKSae,
    GatedSae,
    JumpReluSae,
    MatryoshkaSae,
    ReluSae,
    SparseAutoencoder,
    TopKSae,
)
from thresher.train.objective import Objective
from thresher.train.step import compute_step
from torch import Tensor

D, F, B = 32, 256, 96
D_OUT = 20  # of a transcoder
DEAD = torch.arange(3, F, 10)
FLOAT64_LIMIT = 1e-12

DENSE, SPARSE = -0.5, -3.6  # encoder biases: 40 % of the entries are active, and 2 %

SETTINGS = {
    "relu": Setting(variant="relu", error="normalized", sparsity=3e-3),
    "relu, squared error": Setting(variant="relu", sparsity=3e-3),
    "relu, decoder norm": Setting(variant="relu", sparsity=3e-3, decoder_norm=True),
    "relu, ghost": Setting(variant="relu", error="normalized", sparsity=3e-3, remedy="ghost"),
    "relu, squared error, ghost": Setting(variant="relu", sparsity=3e-3, remedy="ghost"),
    "relu, auxk": Setting(variant="relu", sparsity=3e-3, remedy="auxk"),
    "topk": Setting(variant="topk"),
    "topk, auxk": Setting(variant="topk", remedy="auxk"),
    "topk, auxk of all": Setting(variant="topk", remedy="auxk", aux_k=512),
    "topk, ghost": Setting(variant="topk", error="normalized", remedy="ghost"),
    "batchtopk": Setting(variant="batchtopk"),
    "batchtopk, auxk": Setting(variant="batchtopk", remedy="auxk"),
    "matryoshka": Setting(variant="matryoshka", prefixes=(16, 80, F)),
    "matryoshka, auxk": Setting(variant="matryoshka", prefixes=(16, 80, F), remedy="auxk"),
    "matryoshka, normalised error": Setting(variant="matryoshka", error="normalized", prefixes=(1, 2, F)),
    "jumprelu": Setting(variant="jumprelu", sparsity=2e-3),
    "jumprelu, below its target": Setting(variant="jumprelu", sparsity=-2e-3),
    "jumprelu, preact": Setting(variant="jumprelu", sparsity=2e-3, remedy="preact"),
    "jumprelu, ghost": Setting(variant="jumprelu", sparsity=2e-3, remedy="ghost"),
    "gated": Setting(variant="gated", sparsity=3e-3),
    "gated, auxk": Setting(variant="gated", sparsity=3e-3, remedy="auxk"),
    "gated, normalised error": Setting(variant="gated", error="normalized", sparsity=3e-3, remedy="ghost"),
}
# Those that choose between dense and sparse products by what is active; the others keep few entries by their nature.
CHOOSES = ("relu", "jumprelu", "gated")


def bias_of(name: str) -> tuple[float, ...]:
    return (DENSE, SPARSE) if SETTINGS[name].variant in CHOOSES else (DENSE,)


CASES = [(name, bias, transcodes) for name in SETTINGS for bias in bias_of(name) for transcodes in (False, True)]
IDS = [
    f"{name}, {'dense' if bias == DENSE else 'sparse'}{', transcoder' if transcodes else ''}"
    for name, bias, transcodes in CASES
]


def make_weights(setting: Setting, bias: float, d_out: int, dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor]:
    """The same float32 values in either type."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    decoder = normal(F, d_out)
    decoder /= decoder.norm(dim=1, keepdim=True)
    if setting.decoder_norm:
        decoder *= torch.rand(F, 1, generator=g, dtype=torch.float64) + 0.5
    weights = {
        "encoder": normal(F, D) * 0.3,
        "b_enc": normal(F) * 0.1 + bias,
        "decoder": decoder,
        "b_dec": normal(d_out) * 0.2,
    }
    if setting.variant == "jumprelu":
        weights["log_threshold"] = normal(F) * 0.3 - 1.5
    if setting.variant == "gated":
        weights |= {"r_mag": normal(F) * 0.2, "b_mag": normal(F) * 0.3}
    return {name: tensor.float().to(dtype) for name, tensor in weights.items()}


def make_sae(setting: Setting, weights: dict[str, Tensor]) -> SparseAutoencoder:
    four = tuple(weights[name].clone() for name in ("encoder", "b_enc", "decoder", "b_dec"))
    own = {name: tensor.clone() for name, tensor in weights.items() if name in ("log_threshold", "r_mag", "b_mag")}
    shared: dict[str, object] = {"centres_input": setting.centres}
    if not setting.centres:
        shared["output_mean"] = torch.zeros_like(weights["b_dec"])
    match setting.variant:
        case "relu":
            return ReluSae(*four, **shared)
        case "topk":
            return TopKSae(*four, k=setting.k, **shared)
        case "batchtopk":
            return BatchTopKSae(*four, k=setting.k, **shared)
        case "matryoshka":
            return MatryoshkaSae(*four, k=setting.k, prefixes=setting.prefixes, **shared)
        case "jumprelu":
            return JumpReluSae(*four, **own, **shared)
    return GatedSae(*four, **own, **shared)


def make_objective(setting: Setting) -> Objective:
    return Objective(
        error=setting.error,
        sparsity=setting.sparsity,
        decoder_norm=setting.decoder_norm,
        bandwidth=setting.bandwidth,
        dead=setting.remedy,
        aux=setting.aux,
        aux_k=setting.aux_k,
    )


def rows(n: int, d: int, dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)).to(dtype)


def relative(a: Tensor, b: Tensor) -> float:
    scale = float(b.norm())
    return float((a.double() - b).norm()) / (scale or 1.0)


class Problem:
    """A variant's weights and a batch, in either type, and what autograd says of them."""

    def __init__(self, name: str, bias: float, transcodes: bool, n: int = B, seed: int = 1) -> None:
        self.setting = replace(SETTINGS[name], centres=not transcodes)
        self.bias, self.d_out = bias, D_OUT if transcodes else D
        self.dead = DEAD if self.setting.remedy != "none" else None
        self.z = rows(n, D, torch.float64, seed)
        self.y = rows(n, D_OUT, torch.float64, seed + 1) if transcodes else self.z
        self.change: Callable[[dict[str, Tensor]], None] = lambda weights: None

    def weights(self, dtype: torch.dtype) -> dict[str, Tensor]:
        weights = make_weights(self.setting, self.bias, self.d_out, dtype)
        self.change(weights)
        return weights

    def reference(self, dtype: torch.dtype = torch.float64) -> Reference:
        return by_autograd(self.setting, self.weights(dtype), self.z.to(dtype), self.y.to(dtype), self.dead)

    def step(self, dtype: torch.dtype = torch.float64, **more):
        sae = make_sae(self.setting, self.weights(dtype))
        target = None if self.setting.centres else self.y.to(dtype)
        return compute_step(sae, self.z.to(dtype), self.dead, make_objective(self.setting), target=target, **more)

    def check_exact(self, **more) -> None:
        """In float64 the step is what autograd says."""
        exact, got = self.reference(), self.step(**more)
        assert set(got.gradients) == set(exact.gradients)
        for name, gradient in exact.gradients.items():
            assert relative(got.gradients[name], gradient) <= FLOAT64_LIMIT, name
        assert float(got.loss) == pytest.approx(float(exact.loss), rel=FLOAT64_LIMIT)
        assert float(got.reconstruction) == pytest.approx(float(exact.reconstruction), rel=FLOAT64_LIMIT)
        assert float(got.l0) == pytest.approx(float((exact.f > 0).sum(1).double().mean()), rel=1e-14)
        assert torch.equal(got.fired, (exact.f > 0).any(0))
        y_hat = exact.f @ self.weights(torch.float64)["decoder"] + self.weights(torch.float64)["b_dec"]
        assert torch.allclose(got.residual, y_hat - self.y, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("name", "bias", "transcodes"), CASES, ids=IDS)
def test_a_step_in_float64_is_what_autograd_says(name, bias, transcodes):
    problem = Problem(name, bias, transcodes)
    problem.check_exact()
    assert problem.step().was_sparse == (bias == SPARSE or problem.setting.variant not in CHOOSES)


@pytest.mark.parametrize(("name", "bias", "transcodes"), CASES, ids=IDS)
def test_a_step_in_float32_errs_at_most_twice_as_much_as_autograd(name, bias, transcodes):
    ours, theirs = {}, {}  # squared errors, added up over batches: those of a single b_dec scatter by a factor of two
    for seed in (1, 11, 21, 31):
        problem = Problem(name, bias, transcodes, seed=seed)
        exact, floor, got = problem.reference(), problem.reference(torch.float32), problem.step(torch.float32)
        if not all(torch.equal(a, b) for a, b in zip(floor.chosen, exact.chosen, strict=True)):
            continue  # these two differ by what they choose, not by rounding alone
        for parameter, gradient in exact.gradients.items():
            ours[parameter] = ours.get(parameter, 0) + relative(got.gradients[parameter], gradient) ** 2
            theirs[parameter] = theirs.get(parameter, 0) + relative(floor.gradients[parameter], gradient) ** 2
        assert float(got.loss) == pytest.approx(float(exact.loss), rel=2e-7)  # two roundings of a float32
    assert len(ours) >= 4  # at least one batch was compared
    for parameter, error in ours.items():
        assert error**0.5 <= 2 * theirs[parameter] ** 0.5, (parameter, error**0.5, theirs[parameter] ** 0.5)


@pytest.mark.parametrize("rows_at_once", [40, 1])
@pytest.mark.parametrize(("name", "bias", "transcodes"), CASES, ids=IDS)
def test_blocks_of_rows_add_up_to_the_batch(name, bias, transcodes, rows_at_once):
    problem = Problem(name, bias, transcodes)
    whole, blocks = problem.step(), problem.step(rows_at_once=rows_at_once)
    for parameter, gradient in whole.gradients.items():
        assert relative(blocks.gradients[parameter], gradient) <= FLOAT64_LIMIT, parameter
    assert float(blocks.loss) == pytest.approx(float(whole.loss), rel=1e-14)
    assert float(blocks.l0) == pytest.approx(float(whole.l0), rel=1e-14)
    assert torch.equal(blocks.fired, whole.fired)
    assert torch.allclose(blocks.residual, whole.residual, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("name", "bias", "transcodes"), CASES, ids=IDS)
def test_one_row_is_a_batch(name, bias, transcodes):
    Problem(name, bias, transcodes, n=1).check_exact()


@pytest.mark.parametrize(("name", "bias", "transcodes"), CASES, ids=IDS)
def test_a_row_of_zeros_is_a_row(name, bias, transcodes):
    problem = Problem(name, bias, transcodes, n=9)
    problem.z[4] = 0
    problem.y[2] = 0
    problem.check_exact(rows_at_once=4)


@pytest.mark.parametrize(("name", "bias", "transcodes"), CASES, ids=IDS)
def test_a_batch_on_which_nothing_is_active_has_the_decoder_bias_to_learn(name, bias, transcodes):
    problem = Problem(name, bias, transcodes, n=7)
    problem.change = lambda weights: weights["b_enc"].fill_(-50.0)
    problem.check_exact(rows_at_once=3)
    assert float(problem.step().l0) == 0
    assert not problem.step().fired.any()


@pytest.mark.parametrize("name", SETTINGS)
def test_no_rows_have_no_gradient(name):
    problem = Problem(name, DENSE, False, n=0)
    got = problem.step(n_total=4)
    assert all(not gradient.any() for gradient in got.gradients.values())
    assert float(got.loss) == 0
    assert got.residual.shape == (0, D)


@pytest.mark.parametrize("rows_at_once", [None, 5])
@pytest.mark.parametrize("name", ["batchtopk", "matryoshka"])
def test_ties_at_the_threshold_of_a_batch_are_all_kept(name, rows_at_once):
    problem = Problem(name, DENSE, False, n=12)
    g = torch.Generator().manual_seed(5)

    def quarters(*shape: int) -> Tensor:  # exact in any order of addition, so that ties are true
        return torch.randint(-4, 5, shape, generator=g).double() / 4

    values = {"encoder": quarters(F, D), "b_enc": quarters(F), "decoder": quarters(F, D), "b_dec": quarters(D)}
    problem.change = lambda weights: weights.update({n: t.to(weights[n]) for n, t in values.items()})
    problem.z.copy_(quarters(12, D))
    problem.check_exact(rows_at_once=rows_at_once)
    assert float(problem.step().l0) > SETTINGS[name].k  # ties there are


@pytest.mark.parametrize("name", ["topk, auxk", "relu, ghost", "jumprelu, preact", "gated, auxk"])
def test_every_feature_may_be_dead(name):
    problem = Problem(name, SPARSE, False)
    problem.dead = torch.arange(F)
    problem.check_exact()
    problem.check_exact(rows_at_once=40)


def test_shares_of_a_batch_add_up_where_the_whole_is_known():
    """What the processes of a run do: each its rows, over the whole batch's number."""
    problem = Problem("relu, ghost", DENSE, False)
    sae, objective = make_sae(problem.setting, problem.weights(torch.float64)), make_objective(problem.setting)
    parts = [compute_step(sae, part, DEAD, objective, n_total=B) for part in problem.z.split([50, 46])]
    for parameter, gradient in problem.step().gradients.items():
        assert relative(sum(part.gradients[parameter] for part in parts), gradient) <= 1e-13

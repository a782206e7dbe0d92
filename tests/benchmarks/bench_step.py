"""CPU time of one training step in units of the plain encoder matmul, ours beside plain autograd of the recipe.

    python tests/benchmarks/bench_step.py [--d-in 1024] [--d-sae 16384] [--batch 1024] [--l0 64] [--rounds 5] [--quick]

Implementations take turns, one step a round, and each round times the matmul too, so that a busy machine slows all of
them alike; the figures are medians of CPU seconds over both, summed over threads.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch
from thresher.train.initialise import new_sae
from thresher.train.models import SparseAutoencoder
from thresher.train.objective import Objective
from thresher.train.optimiser import UnitNormAdam
from thresher.train.options import TrainOptions
from thresher.train.step import compute_step

L1, LR = 8e-5, 4e-4


def planted(d_in: int, d_sae: int, l0: int, variant: str, k: int) -> SparseAutoencoder:
    """An SAE of which about `l0` features fire on a standard normal row: from 50 % at bias 0 to l0 / d_sae."""
    sae = new_sae(TrainOptions(variant=variant, expansion=d_sae / d_in, k=k, encoder_init="transpose"), d_in)
    share = torch.tensor(l0 / d_sae, dtype=torch.float64)
    sae.b_enc.fill_(float(torch.special.ndtri(share)))  # unit rows of the encoder: pre-activations are N(b_enc, 1)
    return sae


def ours(
    sae: SparseAutoencoder, x: torch.Tensor, objective: Objective, dead: torch.Tensor | None
) -> Callable[[], None]:
    """A step of the product."""
    adam = UnitNormAdam(sae)

    def step() -> None:
        adam.update(sae, compute_step(sae, x, dead, objective).gradients, LR * 1e-6)

    return step


def autograd(sae: SparseAutoencoder, x: torch.Tensor, dead: torch.Tensor | None, k: int | None) -> Callable[[], None]:
    """The recipe as one writes it: autograd, torch.optim.Adam, projection and norm over the whole matrix."""
    parameters = [p.clone().requires_grad_() for p in sae.parameters().values()]
    encoder, b_enc, decoder, b_dec = parameters
    adam = torch.optim.Adam(parameters, lr=LR * 1e-6)

    def step() -> None:
        with torch.no_grad():
            decoder.div_(decoder.norm(dim=1, keepdim=True))
        adam.zero_grad()
        pre = (x - b_dec) @ encoder.T + b_enc
        if k is None:
            f = pre.relu()
            x_hat = f @ decoder + b_dec
            error = (x_hat - x) ** 2 / x.norm(dim=1, keepdim=True)
            loss = error.mean() + L1 * f.abs().sum(1).mean()
            if dead is not None:
                r = (x - x_hat).detach()
                g = pre[:, dead].exp() @ decoder[dead]
                g = g * (r.norm(dim=1, keepdim=True) / (2 * g.norm(dim=1, keepdim=True) + 1e-6)).detach()
                m = (g - r) ** 2 / r.norm(dim=1, keepdim=True)
                loss = loss + ((error / (m + 1e-6)).detach() * m).mean()
        else:
            value, feature = pre.topk(k, dim=1)
            f = torch.zeros_like(pre).scatter(1, feature, value.relu())
            loss = ((f @ decoder + b_dec - x) ** 2).mean()
        loss.backward()
        with torch.no_grad():
            decoder.grad.sub_((decoder.grad * decoder).sum(1, keepdim=True) * decoder)
        adam.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("d-in", 1024), ("d-sae", 16384), ("batch", 1024), ("l0", 64), ("k", 32), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--quick", action="store_true", help="a small SAE, one round")
    a = parser.parse_args()
    if a.quick:
        a.d_in, a.d_sae, a.batch, a.l0, a.rounds = 64, 1024, 128, 16, 1
    torch.manual_seed(0)
    x = torch.randn(a.batch, a.d_in)
    dead = torch.arange(0, a.d_sae, 10)
    sparse = planted(a.d_in, a.d_sae, a.l0, "relu", a.k)
    dense = planted(a.d_in, a.d_sae, a.d_sae // 2, "relu", a.k)
    topk = planted(a.d_in, a.d_sae, a.l0, "topk", a.k)
    relu_objective = Objective(error="normalized", sparsity=L1)
    bf16 = Objective(error="normalized", sparsity=L1, precision="bf16")
    steps: dict[str, Callable[[], object]] = {
        "encoder matmul": lambda: x @ sparse.encoder.T,
        "autograd relu": autograd(sparse, x, None, None),
        "autograd relu + ghost, 10 % dead": autograd(sparse, x, dead, None),
        f"autograd topk {a.k}": autograd(topk, x, None, a.k),
        "ours relu, half active (early training)": ours(dense, x, relu_objective, None),
        "ours relu": ours(sparse, x, relu_objective, None),
        "ours relu + ghost, 10 % dead": ours(sparse, x, Objective(error="normalized", sparsity=L1, dead="ghost"), dead),
        "ours relu bf16": ours(sparse, x, bf16, None),
        f"ours topk {a.k}": ours(topk, x, Objective(), None),
        f"ours topk {a.k} + AuxK, 10 % dead": ours(topk, x, Objective(dead="auxk", aux_k=a.d_in // 2), dead),
        f"ours topk {a.k} bf16": ours(topk, x, Objective(precision="bf16"), None),
    }
    cpu_s: dict[str, list[float]] = {name: [] for name in steps}
    wall_s: dict[str, list[float]] = {name: [] for name in steps}
    for round_number in range(a.rounds + 1):
        for name, step in steps.items():
            cpu, wall = time.process_time(), time.perf_counter()
            step()
            if round_number:  # the first warms up
                cpu_s[name].append(time.process_time() - cpu)
                wall_s[name].append(time.perf_counter() - wall)
    unit = statistics.median(cpu_s["encoder matmul"])
    gflop = 2e-9 * a.batch * a.d_in * a.d_sae
    active = {n: float((s.encode(x) > 0).sum(1).double().mean()) for n, s in (("relu", sparse), ("topk", topk))}
    print(f"d_in {a.d_in}, d_sae {a.d_sae}, batch {a.batch}, L0 relu {active['relu']:.0f}, topk {active['topk']:.0f}")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}, ", end="")
    print(f"{a.rounds} rounds; one matmul {gflop:.1f} GFLOP at {gflop / unit:.0f} GFLOP/s a core")
    print(f"\n{'one step':42} {'matmuls':>8} {'CPU ms':>8} {'wall ms':>8} {'rows/s':>8}")
    for name in steps:
        cpu, wall = statistics.median(cpu_s[name]), statistics.median(wall_s[name])
        print(f"{name:42} {cpu / unit:8.2f} {cpu * 1e3:8.1f} {wall * 1e3:8.1f} {a.batch / wall:8.0f}")


if __name__ == "__main__":
    main()

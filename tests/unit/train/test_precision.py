"""The errors of docs/precision.md are those of a step."""

from pathlib import Path
from unittest import mock

import pytest
import torch
from thresher.train.models import ReluSae, TopKSae
from thresher.train.objective import Objective
from thresher.train.step import compute_step

D, F, B = 512, 4096, 512
PAGE = Path(__file__).parents[3] / "docs" / "precision.md"


def rounded_to_tf32(x: torch.Tensor) -> torch.Tensor:
    """To 10 bits of mantissa, the nearest."""
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


class Tf32Matmul:
    def __init__(self, precision):
        assert precision == "tf32"

    def __call__(self, a, b):
        return rounded_to_tf32(a) @ rounded_to_tf32(b)


def stated() -> dict[str, list[float]]:
    rows = [line.strip("|").split("|") for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    return {cells[0].strip(" `"): [float(cell) for cell in cells[1:]] for cells in rows if len(cells) == 5}


def errors(kind: str, precision: str) -> list[float]:
    g = torch.Generator().manual_seed(0)
    decoder = torch.randn(F, D, generator=g, dtype=torch.float64)
    decoder /= decoder.norm(dim=1, keepdim=True)
    x = torch.randn(B, D, generator=g, dtype=torch.float64)
    weights = [decoder, torch.full((F,), -0.5, dtype=torch.float64), decoder, torch.zeros(D, dtype=torch.float64)]

    def step(dtype, objective):
        given = [tensor.to(dtype, copy=True) for tensor in weights]
        sae = ReluSae(*given) if kind == "relu" else TopKSae(*given, k=32)
        return compute_step(sae, x.to(dtype), None, objective).gradients

    settings = {"error": "normalized", "sparsity": 8e-5} if kind == "relu" else {}
    exact = step(torch.float64, Objective(**settings))
    with mock.patch("thresher.train.objective.Matmul", Tf32Matmul) if precision == "tf32" else mock.MagicMock():
        found = step(torch.float32, Objective(**settings, precision=precision))
    return [float((found[name].double() - exact[name]).norm() / exact[name].norm()) for name in ("encoder", "decoder")]


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_the_page_states_the_error_of_a_precision(precision):
    found = errors("relu", precision) + errors("topk", precision)
    assert found == pytest.approx(stated()[precision], rel=0.5 if precision == "fp32" else 0.1)

"""Losses and gradients equal those of other libraries' training code on the same weights and batch, up to a constant.

THRESHER_PEERS_VENVS names a folder of virtual environments: `saelens`, `dictionary_learning`, `sparsify`,
`overcomplete` and `saev_release`, each with that library (`pip install sae-lens`, `pip install dictionary-learning`,
`pip install eai-sparsify`, `pip install overcomplete`, saev 0.1.0), and `saev`, `prisma` and `post` with the sources of
saev, whose objectives are newer, of ViT-Prisma and of the post's code.

Of SAELens and dictionary_learning the squared error is summed over coordinates, ours is its mean: their loss is d times
ours, with d times our coefficients; sparsify's is a share of the batch's variance; those of overcomplete, saev,
ViT-Prisma and the post are ours. Where more differs, the cases here and in `peer_problems` say so, and a table in
docs/definitions.md.
"""

import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from peer_problems import PREFIXES, D, F, Given, K, N, problem
from peer_pythons import python_of
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
from thresher.train.step import StepResult, compute_step

pytestmark = pytest.mark.peers

SCRIPT = Path(__file__).with_name("peer_gradients.py")
LIMIT = 1e-10  # relative; all is float64

# SAELens's gated SAE lets the gate's reconstruction train decoder and bias, which the paper stops (section 3.2), and so
# does ViT-Prisma's.
# sparsify's AuxK never reaches its encoder: the backward pass of its fused encoder leaves out all but the k largest.
# saev's AuxK decodes with b_dec, which so gets a gradient from it.
# overcomplete lifts the pre-activations of what did not fire on the batch wherever they are: the pre-activation loss
# less that of its thresholds.
DIFFERS = {
    ("saelens", "gated", False): ("W_dec", "b_dec"),
    ("prisma", "gated", False): ("W_dec", "b_dec"),
    ("sparsify", "topk", True): ("W_enc", "b_enc", "b_dec"),
    ("sparsify", "transcoder", True): ("W_enc", "b_enc"),
    ("saev", "topk", True): ("b_dec",),
    ("saev", "batchtopk", True): ("b_dec",),
    ("saev", "matryoshka", True): ("b_dec",),
    ("overcomplete", "jumprelu", True): ("threshold",),
}
MEANS = ("overcomplete", "saev", "saev_release", "prisma", "post")
"""Libraries whose error is a mean over coordinates."""

_ALL = ("relu", "topk", "batchtopk", "matryoshka", "jumprelu", "gated")
VARIANTS = {
    "saelens": _ALL,
    "dictionary_learning": _ALL,
    "sparsify": ("topk", "transcoder"),
    "overcomplete": ("relu", "topk", "batchtopk", "jumprelu"),
    "saev": ("relu", "topk", "batchtopk", "matryoshka"),
    "saev_release": ("relu",),
    "prisma": ("relu", "topk", "gated", "transcoder"),
    "post": ("relu",),
}
REVIVED = {
    "saelens": ("topk", "batchtopk", "matryoshka", "jumprelu"),
    "dictionary_learning": ("topk", "batchtopk", "matryoshka"),
    "sparsify": ("topk", "transcoder"),
    "overcomplete": ("topk", "jumprelu"),
    "saev": ("topk", "batchtopk", "matryoshka"),
    "saev_release": (),
    "prisma": ("relu", "topk"),
    "post": ("relu",),
}
"""The variants for whose dead features a library has a loss."""
CASES = [
    (library, variant, has_dead)
    for library, revived in REVIVED.items()
    for variant in VARIANTS[library]
    for has_dead in ((False, True) if variant in revived else (False,))
]


@dataclass
class Peer:
    loss: float
    gradients: dict[str, np.ndarray]


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Callable[[str, str, bool], Peer]:
    """Of a library, all in one process of its Python: importing it takes longest."""

    @cache
    def folder_of(library: str) -> Path:
        python, folder = python_of(library), tmp_path_factory.mktemp(library)
        for _, variant, has_dead in (case for case in CASES if case[0] == library):
            np.savez(folder / f"{variant}{'-dead' * has_dead}.in.npz", **problem(library, variant, has_dead))
        command = [str(python), str(SCRIPT), library, str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return folder

    def result(library: str, variant: str, has_dead: bool) -> Peer:
        out = dict(np.load(folder_of(library) / f"{variant}{'-dead' * has_dead}.out.npz"))
        return Peer(float(out.pop("loss")), out)

    return result


def make_sae(variant: str, given: Given, *, centres_input: bool) -> SparseAutoencoder:
    t = {name: torch.from_numpy(value) for name, value in given.items()}
    weights = (t["W_enc"].T, t["b_enc"], t["W_dec"], t["b_dec"])
    match variant:
        case "relu":
            return ReluSae(*weights, centres_input=centres_input)
        case "topk":
            return TopKSae(*weights, k=K, centres_input=centres_input)
        case "transcoder":
            return TopKSae(*weights, k=K, centres_input=False, output_mean=torch.zeros(D, dtype=torch.float64))
        case "batchtopk":
            return BatchTopKSae(*weights, k=K, centres_input=centres_input)
        case "matryoshka":
            return MatryoshkaSae(*weights, k=K, prefixes=PREFIXES, centres_input=centres_input)
        case "jumprelu":
            return JumpReluSae(*weights, log_threshold=t["threshold"].log(), centres_input=centres_input)
    return GatedSae(*weights, r_mag=t["r_mag"], b_mag=t["b_mag"], centres_input=centres_input)


def our_step(library: str, variant: str, given: Given, dead: torch.Tensor, objective: Objective) -> StepResult:
    encodes_x = library == "saev" or (library, variant) == ("dictionary_learning", "jumprelu")
    sae, x = make_sae(variant, given, centres_input=not encodes_x), torch.from_numpy(given["x"])
    target = torch.from_numpy(given["y"]) if variant == "transcoder" else None
    return compute_step(sae, x, dead if len(dead) else None, objective, target=target)


def dead_ids(library: str, variant: str, given: Given) -> torch.Tensor:
    is_dead = torch.from_numpy(given["dead"])
    if library == "dictionary_learning" or (library, variant) == ("overcomplete", "jumprelu"):
        nothing = torch.zeros(0, dtype=torch.int64)
        is_dead = is_dead & ~our_step(library, variant, given, nothing, Objective()).fired
    return is_dead.nonzero().squeeze(1)


def in_our_terms(library: str, variant: str, given: Given, dead: torch.Tensor) -> tuple[float, Objective]:
    """How many times ours a library's loss is, and the objective that gives ours."""
    is_mean = library in MEANS and (library, variant) != ("prisma", "gated")
    factor = 1.0 if is_mean else float(D)
    objective = Objective(
        sparsity=float(given["sparsity"]) / factor,
        bandwidth=float(given["bandwidth"]),
        decoder_norm=library == "saelens" and variant == "relu",
        dead=("preact" if variant == "jumprelu" else "auxk") if len(dead) else "none",
        aux=float(given["aux"]),
        aux_k=D // 2,
    )
    if library in ("post", "prisma") and is_mean:
        objective = replace(objective, error="normalized", dead="ghost" if len(dead) else "none")
    if library == "sparsify":
        y = given.get("y", given["x"])
        factor = y.size / float(np.square(y - y.mean(0)).sum())
    if library == "overcomplete":
        objective = replace(objective, sparsity=objective.sparsity * N, aux_k=F // 2)
    if variant == "jumprelu":
        objective = replace(objective, aux=objective.aux / factor)  # a sum over features: nothing of it was a mean
        if library == "overcomplete" and len(dead):  # its mean is over dead features, ours over rows
            objective = replace(objective, aux=objective.aux * N / (len(dead) + 1e-6))
    if variant == "matryoshka" and library in ("saelens", "dictionary_learning"):
        # SAELens adds the prefixes up; dictionary_learning takes the mean of what it already weighed by 1 / prefixes.
        times = len(PREFIXES) if library == "saelens" else 1 / len(PREFIXES)
        factor, objective = factor * times, replace(objective, aux=objective.aux / times)
    if len(dead) and library == "dictionary_learning":
        # Its AuxK is a share of the residual's variance over the batch, a constant to the gradient.
        residual = our_step(library, variant, given, dead, objective).residual
        variance = float((residual - residual.mean(0)).square().sum(1).mean())
        objective = replace(objective, aux=objective.aux / variance)
    return factor, objective


def in_their_names(variant: str, given: Given, result: StepResult) -> dict[str, np.ndarray]:
    gradients = {name: gradient.numpy() for name, gradient in result.gradients.items()}
    gradients["W_enc"] = gradients.pop("encoder").T
    gradients["W_dec"] = gradients.pop("decoder")
    if variant == "jumprelu":  # theirs is with respect to the threshold, not to its logarithm
        gradients["threshold"] = gradients.pop("log_threshold") / given["threshold"]
    return gradients


def across(gradient: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The part of a gradient at right angles to rows of norm 1."""
    return gradient - (gradient * rows).sum(1, keepdims=True) * rows


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize(
    ("library", "variant", "has_dead"),
    CASES,
    ids=[f"{library}, {variant}{', dead' if has_dead else ''}" for library, variant, has_dead in CASES],
)
def test_a_step_is_the_peers_but_for_a_constant(library, variant, has_dead, results, capsys):
    peer, given = results(library, variant, has_dead), problem(library, variant, has_dead)
    dead = dead_ids(library, variant, given)
    assert bool(len(dead)) == has_dead
    factor, objective = in_our_terms(library, variant, given, dead)
    ours = our_step(library, variant, given, dead, objective)
    gradients = in_their_names(variant, given, ours)
    differing = DIFFERS.get((library, variant, has_dead), ())
    compared = [name for name in peer.gradients if name not in differing]
    assert set(compared) <= set(gradients)
    for name in differing:
        assert relative(gradients[name] * factor, peer.gradients[name]) > 1e-4, f"{name} could be compared"
    if (library, variant) == ("saelens", "jumprelu"):
        # Its pre-activation loss trains the decoder's norms, along the rows, which unit norm takes out again.
        gradients["W_dec"], peer.gradients["W_dec"] = (
            across(gradient["W_dec"], given["W_dec"]) for gradient in (gradients, peer.gradients)
        )
    if (library, variant) == ("overcomplete", "jumprelu"):
        gradients["threshold"] /= objective.bandwidth  # by which it divides its kernel twice, the paper once
        peer.loss += objective.aux * float(given["threshold"][dead].sum())
    if (library, variant, has_dead) == ("overcomplete", "topk", True):
        # Its AuxK trains the reconstruction, too, whose residual the paper holds constant: not that of the dead.
        gradients, peer.gradients = (
            {name: each[name][dead] if name == "W_dec" else each[name][..., dead] for name in compared}
            for each in (gradients, peer.gradients)
        )
    errors = {name: relative(gradients[name] * factor, peer.gradients[name]) for name in compared}
    loss_error = abs(float(ours.loss) * factor - peer.loss) / abs(peer.loss)
    case = f"{library} {variant}{', dead features' * has_dead}"
    with capsys.disabled():
        print(f"\n{case}: {factor:.4g} x ours, loss off by {loss_error:.0e}, {len(errors)} gradients by", end=" ")
        print(f"at most {max(errors.values()):.0e}", end=" ")
    assert loss_error < LIMIT
    for name, error in errors.items():
        assert error < LIMIT, name

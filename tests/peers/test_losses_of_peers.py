"""Losses and gradients equal those of other libraries' training code on the same weights and batch, up to a constant.

THRESHER_PEERS_VENVS names a folder of virtual environments: `saelens`, `dictionary_learning` and `sparsify`, each with
that library (`pip install sae-lens`, `pip install dictionary-learning`, `pip install eai-sparsify`), and `post` with
the source of the post's code. Of the first two the squared error is summed over coordinates, ours is its mean: their
loss is d times ours, with d times our coefficients; sparsify's is a share of the batch's variance; the post's is ours.
Where more differs, the case below says so.
"""

import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
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
N, D, F, K = 64, 32, 256, 12
PREFIXES = (16, 80, F)
LIMIT = 1e-10  # relative; all is float64

# SAELens's gated SAE lets the gate's reconstruction train decoder and bias, which the paper stops (section 3.2).
# sparsify's AuxK never reaches its encoder: the backward pass of its fused encoder leaves out all but the k largest.
DIFFERS = {
    ("saelens", "gated", False): ("W_dec", "b_dec"),
    ("sparsify", "topk", True): ("W_enc", "b_enc", "b_dec"),
    ("sparsify", "transcoder", True): ("W_enc", "b_enc"),
}

_ALL = ("relu", "topk", "batchtopk", "matryoshka", "jumprelu", "gated")
VARIANTS = {"saelens": _ALL, "dictionary_learning": _ALL, "sparsify": ("topk", "transcoder"), "post": ("relu",)}
REVIVED = {
    "saelens": ("topk", "batchtopk", "matryoshka", "jumprelu"),
    "dictionary_learning": ("topk", "batchtopk", "matryoshka"),
    "sparsify": ("topk", "transcoder"),
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


def problem(library: str, variant: str, has_dead: bool) -> dict[str, np.ndarray]:
    """Weights and batch, and what they are scored by in the peers' convention."""
    rng = np.random.default_rng(0)
    decoder = rng.standard_normal((F, D))
    decoder /= np.linalg.norm(decoder, axis=1, keepdims=True)
    dead = np.zeros(F, bool)
    dead[3::5] = has_dead
    given = {
        "x": rng.standard_normal((N, D)),
        "dead": dead,
        "W_enc": rng.standard_normal((D, F)) * 0.3,
        # SAELens's AuxK has no relu: they agree where each row's aux_k largest dead features are above zero. In
        # dictionary_learning a feature that fires on this batch is not dead.
        "b_enc": rng.standard_normal(F) * 0.1 - 0.5 + (3.0 if library in ("saelens", "sparsify") else -3.0) * dead,
        "W_dec": decoder,
        "b_dec": rng.standard_normal(D) * 0.2,
        "k": np.array(K),
        "prefixes": np.array(PREFIXES),
        "aux": np.array(1 / 32 if has_dead else 0.0),
        "sparsity": np.array(0.2 if variant in ("relu", "jumprelu", "gated") else 0.0),
        "bandwidth": np.array(0.1),
    }
    if variant == "transcoder":
        given |= {"y": rng.standard_normal((N, D))}
    if variant == "gated":
        given |= {"r_mag": rng.standard_normal(F) * 0.2, "b_mag": rng.standard_normal(F) * 0.3}
    if variant == "jumprelu":
        given["threshold"] = np.exp(rng.standard_normal(F) * 0.3 - 1.0)
        if library == "dictionary_learning":
            # Its penalty, (L0 / target - 1)^2, is computed from the activations, after the jump, where inactive entries
            # are 0: its kernel misses those just below their threshold. Its reconstruction term is the paper's.
            given["sparsity"] = np.array(0.0)
    return given


def make_sae(variant: str, given: dict[str, np.ndarray], *, centres_input: bool = True) -> SparseAutoencoder:
    t = {name: torch.from_numpy(value) for name, value in given.items()}
    weights = (t["W_enc"].T, t["b_enc"], t["W_dec"], t["b_dec"])
    match variant:
        case "relu":
            return ReluSae(*weights)
        case "topk":
            return TopKSae(*weights, k=K)
        case "transcoder":
            return TopKSae(*weights, k=K, centres_input=False, output_mean=torch.zeros(D, dtype=torch.float64))
        case "batchtopk":
            return BatchTopKSae(*weights, k=K)
        case "matryoshka":
            return MatryoshkaSae(*weights, k=K, prefixes=PREFIXES)
        case "jumprelu":
            return JumpReluSae(*weights, log_threshold=t["threshold"].log(), centres_input=centres_input)
    return GatedSae(*weights, r_mag=t["r_mag"], b_mag=t["b_mag"])


def our_step(
    library: str, variant: str, given: dict[str, np.ndarray], objective: Objective, **more: bool
) -> StepResult:
    sae, x = make_sae(variant, given, **more), torch.from_numpy(given["x"])
    target = torch.from_numpy(given["y"]) if variant == "transcoder" else None
    is_dead = torch.from_numpy(given["dead"])
    if library == "dictionary_learning":
        is_dead = is_dead & ~compute_step(sae, x, None, objective).fired
    dead = is_dead.nonzero().squeeze(1)
    return compute_step(sae, x, dead if len(dead) else None, objective, target=target)


def in_their_names(variant: str, given: dict[str, np.ndarray], result: StepResult) -> dict[str, np.ndarray]:
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
    peer, given, factor = results(library, variant, has_dead), problem(library, variant, has_dead), float(D)
    objective = Objective(
        sparsity=float(given["sparsity"]) / D,
        bandwidth=float(given["bandwidth"]),
        decoder_norm=library == "saelens" and variant == "relu",
        dead=("preact" if variant == "jumprelu" else "auxk") if has_dead else "none",
        aux=float(given["aux"]),
        aux_k=D // 2,
    )
    if library == "post":
        factor = 1.0
        objective = replace(objective, error="normalized", sparsity=float(given["sparsity"]))
        objective = replace(objective, dead="ghost" if has_dead else "none")
    if library == "sparsify":
        y = given.get("y", given["x"])
        factor = y.size / float(np.square(y - y.mean(0)).sum())
    if variant == "jumprelu":
        objective = replace(objective, aux=objective.aux / D)  # a sum over features: nothing of it was a mean
    if variant == "matryoshka":
        # SAELens adds the prefixes up; dictionary_learning takes the mean of what it already weighed by 1 / prefixes.
        factor *= len(PREFIXES) if library == "saelens" else 1 / len(PREFIXES)
        objective = replace(objective, aux=objective.aux * D / factor)
    if has_dead and library == "dictionary_learning":
        # Its AuxK is a share of the residual's variance over the batch, a constant to the gradient.
        residual = our_step(library, variant, given, objective).residual
        variance = float((residual - residual.mean(0)).square().sum(1).mean())
        objective = replace(objective, aux=objective.aux / variance)
    is_centred = (library, variant) != ("dictionary_learning", "jumprelu")  # which encodes x itself
    ours = our_step(library, variant, given, objective, centres_input=is_centred)
    gradients = in_their_names(variant, given, ours)
    compared = [name for name in peer.gradients if name not in DIFFERS.get((library, variant, has_dead), ())]
    assert set(compared) <= set(gradients)
    if (library, variant) == ("saelens", "jumprelu"):
        # Its pre-activation loss trains the decoder's norms, along the rows, which unit norm takes out again.
        gradients["W_dec"], peer.gradients["W_dec"] = (
            across(gradient["W_dec"], given["W_dec"]) for gradient in (gradients, peer.gradients)
        )
    errors = {name: relative(gradients[name] * factor, peer.gradients[name]) for name in compared}
    loss_error = abs(float(ours.loss) * factor - peer.loss) / abs(peer.loss)
    case = f"{library} {variant}{', dead features' * has_dead}"
    with capsys.disabled():
        print(f"\n{case}: {factor:.4g} x ours, loss off by {loss_error:.0e}, {len(errors)} gradients by", end=" ")
        print(f"at most {max(errors.values()):.0e}", end=" ")
    # dictionary_learning takes its AuxK in float32.
    limit = 1e-6 if has_dead and library == "dictionary_learning" else LIMIT
    assert loss_error < limit
    for name, error in errors.items():
        assert error < limit, name

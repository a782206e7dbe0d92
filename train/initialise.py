"""Where a new SAE starts: its weights, its decoder bias, the scaling of its input.

Shapes: n rows, d_in inputs, d_sae features.
"""

import math
from typing import Any

import torch
from torch import Tensor

from .models import (
    BatchTopKSae,
    GatedSae,
    JumpReluSae,
    MatryoshkaSae,
    ReluSae,
    SparseAutoencoder,
    TopKSae,
)
from .objective import Objective
from .options import VARIANTS_OF, TrainOptions

_MEDIAN_TOLERANCE = 1e-9  # relative step of Weiszfeld's iteration; float64 rounding of a sum of 15,360 terms is 1e-14
_MEDIAN_ITERATIONS = 1000
_SCALE_ROWS = 256  # a mean of d_in x 256 products; at 65,536 features their pre-activations are 64 MB


def new_sae(options: TrainOptions, d_in: int, d_out: int | None = None) -> SparseAutoencoder:
    """An SAE of random weights under `options.seed`, biases zero, nothing fitted to data, on the CPU in float32.

    The draws are torch's `kaiming_uniform_` as the post called it: bound sqrt(6 / fan_in), where torch takes the
    second dimension for fan_in: d_sae for W_enc `(d_in, d_sae)`, d_out for W_dec, whose rows then get unit norm. The
    encoder of a transcoder is always drawn independently of its decoder.

    Parameters
    ----------
    d_out
        Width of the other site, of a transcoder.
    """
    d_sae, is_transcoder = options.d_sae(d_in), options.is_transcoder
    d_out = d_in if d_out is None else d_out
    generator = torch.Generator().manual_seed(options.seed)
    encoder = _kaiming_uniform(d_in, d_sae, generator).T.contiguous()  # (d_sae, d_in)
    decoder = _kaiming_uniform(d_sae, d_out, generator)
    decoder /= decoder.norm(dim=1, keepdim=True)
    if options.encoder_init == "transpose" and not is_transcoder:
        # Where nothing but a penalty holds features back, all that are above zero add up: their sum is near the input
        # at d_in / d_sae (Conerly et al. 2025, "Circuits updates: January"), far beyond it at 1.
        encoder = decoder * min(1.0, d_in / d_sae) if options.variant in VARIANTS_OF["target_l0"] else decoder.clone()
    weights = (encoder, torch.zeros(d_sae), decoder, torch.zeros(d_out))
    shared: dict[str, Any] = {"layer_norm": options.normalize == "layer-norm"}
    if is_transcoder:
        shared |= {"centres_input": False, "output_mean": torch.zeros(d_out), "output_scale": torch.ones(d_out)}
    match options.variant:
        case "relu":
            return ReluSae(*weights, **shared)
        case "topk":
            return TopKSae(*weights, k=options.k, **shared)
        case "batchtopk":
            return BatchTopKSae(*weights, k=options.k, **shared)
        case "matryoshka":
            return MatryoshkaSae(*weights, k=options.k, prefixes=options.prefixes(d_sae), **shared)
        case "jumprelu":
            return JumpReluSae(
                *weights, log_threshold=torch.full((d_sae,), math.log(options.initial_threshold)), **shared
            )
        case "gated":
            return GatedSae(*weights, r_mag=torch.zeros(d_sae), b_mag=torch.zeros(d_sae), **shared)
    raise ValueError(f"variant {options.variant!r} is unknown")


def _kaiming_uniform(n_out: int, fan_in: int, generator: torch.Generator) -> Tensor:
    bound = math.sqrt(6 / fan_in)
    return torch.empty(n_out, fan_in).uniform_(-bound, bound, generator=generator)


def input_scaling(x: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Mean and scale `(d_in,)` float32 by which the SAE's input is shifted and divided.

    Parameters
    ----------
    x
        `(n, d_in)` sample of the training rows.
    kind
        `none` or `layer-norm` (which is no constant): neither; `standardize`: each coordinate to mean 0 and standard
        deviation 1; `expected-norm`: no shift, the mean norm of a row to sqrt(d_in).
    """
    x = x.cpu().double()
    d_in = x.shape[1]
    mean, scale = torch.zeros(d_in, dtype=torch.float64), torch.ones(d_in, dtype=torch.float64)
    if kind == "standardize":
        mean = x.mean(0)
        scale = (x - mean).square().mean(0).sqrt()
        # A coordinate that does not vary carries no information: divided by its rounding noise it would dominate.
        constant = scale <= 1e-6 * scale.mean()
        scale[constant] = scale.mean() if scale.mean() > 0 else 1.0
    elif kind == "expected-norm":
        norm = x.norm(dim=1).mean()
        scale *= norm / math.sqrt(d_in) if norm > 0 else 1.0
    return mean.float(), scale.float()


def encoder_scale(sae: SparseAutoencoder, z: Tensor, objective: Objective) -> float:
    """What an encoder at the decoder's transpose is multiplied by, so that the SAE of a selection starts at its best.

    Unscaled, the directions that a row prefers add up to more than the row, the more of them there are to choose among:
    of 3,072 on 192 inputs, 32 leave a larger error than none. The least squares of centred rows z on what f, their
    activations at 1, reconstruct are at <z, f W_dec> / |f W_dec|^2; 1 where nothing is active.

    Parameters
    ----------
    z
        `(n, d_in)` scaled rows, of which 256 are looked at.
    """
    centred = sae.centred(z[:: max(1, len(z) // _SCALE_ROWS)])
    entries, f = sae.training_entries(centred @ sae.encoder.T, objective)
    centred, z_hat = centred.cpu().double(), entries.times(f, sae.decoder).cpu().double()
    energy = float(z_hat.square().sum())
    return float((centred * z_hat).sum()) / energy if energy > 0 else 1.0


def decoder_bias(z: Tensor, kind: str) -> Tensor:
    """Starting decoder bias `(d_in,)` float32 from scaled rows `z` (n, d_in)."""
    if kind == "zero":
        return torch.zeros(z.shape[1])
    z = z.cpu().double()  # some devices have no float64
    return (z.mean(0) if kind == "mean" else geometric_median(z)).float()


def geometric_median(points: Tensor) -> Tensor:
    """The point with the least sum of distances to `points` (n, d), float64.

    Weiszfeld's iteration with Vardi and Zhang's step at data points (PNAS 97, 2000), which neither divides by zero nor
    sticks to a data point that is not the median.
    """
    points = points.double()
    median = points.mean(0)
    spread = (points - median).norm(dim=1).mean()
    for _ in range(_MEDIAN_ITERATIONS):
        difference = points - median  # (n, d)
        distance = difference.norm(dim=1)
        apart = distance > 1e-12 * spread  # nearer than rounding: the same point
        if not apart.any():
            return median
        weight = torch.where(apart, 1 / distance.where(apart, torch.ones_like(distance)), 0.0)
        pull = weight @ difference  # (d,), the sum of unit vectors to the other points
        # n points here hold the median back by n units of force: it moves by what is left of the pull, or not at all
        n_here = float((~apart).sum())
        free = 1.0 - n_here / max(float(pull.norm()), n_here, torch.finfo(torch.float64).tiny)
        step = free * pull / weight.sum()
        median = median + step
        if step.norm() <= _MEDIAN_TOLERANCE * spread:
            break
    return median

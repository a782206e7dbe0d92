"""Weights and batches that every implementation starts from: about L0 features fire on a row, and only those."""

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Planted:
    """One problem.

    Shapes: `x` (batch, d_in); `encoder`, `decoder` (d_sae, d_in), rows of norm 1; `b_enc` (d_sae,); `dead` (m,) ids of
    features that never fire.
    """

    x: torch.Tensor
    encoder: torch.Tensor
    b_enc: torch.Tensor
    decoder: torch.Tensor
    dead: torch.Tensor
    k: int


def planted(d_in: int, d_sae: int, batch: int, l0: float, share_dead: float) -> Planted:
    """Standard normal rows, random unit directions; biases so that `l0` of the features fire on a row.

    Parameters
    ----------
    l0
        Mean number of active features a row; half of all features where it is 0, as at the start of training.
    share_dead
        Of the features that are given a bias which nothing overcomes.
    """
    generator = torch.Generator().manual_seed(0)
    decoder = torch.nn.functional.normalize(torch.randn(d_sae, d_in, generator=generator), dim=1)
    x = torch.randn(batch, d_in, generator=generator)
    dead = torch.arange(0, d_sae, round(1 / share_dead)) if share_dead else torch.empty(0, dtype=torch.int64)
    share = l0 / (d_sae - len(dead)) if l0 else 0.5
    # Rows of the encoder have norm 1, so pre-activations are normal with deviation 1 about their bias.
    b_enc = torch.full((d_sae,), float(torch.special.ndtri(torch.tensor(share, dtype=torch.float64))))
    b_enc[dead] = -2 * math.sqrt(d_in)
    return Planted(x, decoder.clone(), b_enc, decoder, dead, max(1, round(l0)))

"""Resampling of dead features: they start again at rows that are reconstructed badly.

Shapes: n sampled rows, m dead features.
"""

import torch
from torch import Tensor

from .models import SparseAutoencoder
from .optimiser import UnitNormAdam

_ENCODER_SHARE = 0.2  # of the mean norm of the other features' encoder rows: Bricken et al.'s
_STRIDE = 0x9E3779B97F4A7C15  # odd and far from small ratios: seeds and steps do not meet


@torch.no_grad()
def resample_features(
    sae: SparseAutoencoder, adam: UnitNormAdam, dead: Tensor, x: Tensor, y: Tensor, *, seed: int, step: int
) -> None:
    """Set dead features anew, and forget their moments (Bricken et al. 2023, "Neuron resampling").

    Rows are drawn in proportion to the square of their squared error, none twice while there are enough, and none at
    the decoder bias itself, from which no direction leads to it. A feature's decoder row becomes the
    direction of what its row lacks of the decoder bias, at norm 1; its encoder row the direction of the encoder's
    input, at 0.2 of the mean norm of the other features' encoder rows; its biases 0.

    Parameters
    ----------
    dead
        `(m,)` ids.
    x, y
        `(n, d_in)`, `(n, d_out)`: rows as stored, and what is reconstructed of them.
    seed, step
        Of the draw.
    """
    z, target = sae.scale(x), sae.scale_target(y)
    f = sae.encode_sparse(x)
    error = (f.pairs().times(sae.decoder) + sae.b_dec - target).square().sum(1)  # (n,)
    missing, inputs = target - sae.b_dec, sae.centred(z)
    has_direction = (missing.norm(dim=1) != 0) & (inputs.norm(dim=1) != 0)
    weight = torch.where(has_direction, error, 0.0).cpu().double().square()  # some devices have no float64
    if not torch.isfinite(weight).all() or not (weight > 0).any():
        return  # every row is perfect or at the bias, or the loss is about to stop the run
    generator = torch.Generator().manual_seed((seed * _STRIDE + step) % (1 << 63))
    n_rows = int((weight > 0).sum())
    rows = torch.multinomial(weight, len(dead), replacement=len(dead) > n_rows, generator=generator).to(x.device)
    is_alive = torch.ones(sae.d_sae, dtype=torch.bool, device=x.device).index_fill_(0, dead, False)
    alive = sae.encoder[is_alive] if bool(is_alive.any()) else sae.encoder
    norm = alive.norm(dim=1).mean() * _ENCODER_SHARE
    sae.decoder[dead] = _directions(missing[rows])
    sae.encoder[dead] = _directions(inputs[rows]) * norm
    for name, parameter in sae.parameters().items():
        if parameter.ndim == 1 and name not in ("b_dec", "log_threshold"):
            parameter.index_fill_(0, dead, 0)
    adam.forget(dead)


def _directions(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows, dim=1)

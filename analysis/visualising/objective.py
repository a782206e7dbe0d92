"""What is made large when a picture of a feature is made.

Shapes: b pictures, h x w pixels, d the length of a row, F features.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .probe import FeatureProbe


def objective(
    probe: FeatureProbe,
    images: Tensor,
    features: Tensor,
    *,
    cosine_power: float = 2.0,
    selectivity: float = 0.1,
    n_rivals: int = 16,
) -> Tensor:
    """How well each picture shows its feature; differentiable.

    z max(0.1, cos)^power - selectivity * r, with z the feature's pre-activation, cos the cosine of the centred row and
    the feature's encoder vector, as lucid's direction objective has it, and r the mean of the n_rivals largest other
    activations: a row that excites everything shows nothing.

    Parameters
    ----------
    images
        `(b, 3, h, w)`, from 0 to 1, on the probe's device.
    features
        `(b,)` int64.

    Returns
    -------
    values
        `(b,)` float32.
    """
    rows, sae = probe.rows(images), probe.sae
    vectors = sae.encoder[features]  # (b, d)
    z = (rows * vectors).sum(1) + sae.b_enc[features]
    value = z
    if cosine_power:
        cosine = (normalize(rows, dim=1) * normalize(vectors, dim=1)).sum(1)
        value = value * cosine.clamp(min=0.1) ** cosine_power
    if selectivity:
        others = torch.addmm(sae.b_enc, rows, sae.encoder.T).scatter(1, features[:, None], 0)  # (b, F)
        value = value - selectivity * others.topk(min(n_rivals, others.shape[1]), dim=1).values.relu().mean(1)
    return value

"""How alike the directions of a decoder are."""

import numpy as np
import torch
from torch import Tensor

_SAMPLE, _SEED = 512, 0  # the same features at every evaluation: a curve shows training, not the draw
_BLOCK = 8192  # features at once: 16 MB of cosines


@torch.inference_mode()
def decoder_coherence(decoder: Tensor) -> float:
    """Mean over 512 features, drawn by a fixed seed, of the largest cosine to another feature's decoder row.

    0 where all directions are orthogonal, 1 where each is there twice. NaN where there is no other feature.

    Parameters
    ----------
    decoder
        `(d_sae, d_out)`. A row of norm 0 has cosine 0 to every other.
    """
    d_sae = len(decoder)
    if d_sae < 2:
        return float("nan")
    unit = torch.nn.functional.normalize(decoder.float(), dim=1)
    drawn = np.random.default_rng(_SEED).choice(d_sae, min(_SAMPLE, d_sae), replace=False)
    ids = torch.from_numpy(np.sort(drawn)).to(decoder.device)
    largest = unit.new_full((len(ids),), -1.0)
    for start in range(0, d_sae, _BLOCK):
        cosines = unit[ids] @ unit[start : start + _BLOCK].T  # (sample, block)
        here = ((ids >= start) & (ids < start + _BLOCK)).nonzero().squeeze(1)
        cosines[here, ids[here] - start] = -1.0  # itself
        largest = torch.maximum(largest, cosines.amax(1))
    return float(largest.cpu().double().mean())

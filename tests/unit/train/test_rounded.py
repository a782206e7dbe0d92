"""bf16 finds every pair that float32 finds, on inputs made to deceive it; the numbers are float32's."""

import numpy as np
import pytest
import torch
from thresher.train.models import (
    BatchTopKSae,
    GatedSae,
    JumpReluSae,
    MatryoshkaSae,
    ReluSae,
    SparseAutoencoder,
    TopKSae,
)
from thresher.train.rounded import RoundedTiles

D_IN, D_SAE = 64, 300


def weights(g: torch.Generator, spread: float) -> tuple[torch.Tensor, ...]:
    """Directions of norms from 1 / spread to spread, biases about the size that leaves a tenth of them active."""
    norms = torch.exp((torch.rand(D_SAE, 1, generator=g) * 2 - 1) * np.log(spread))
    encoder = torch.nn.functional.normalize(torch.randn(D_SAE, D_IN, generator=g), dim=1) * norms
    b_enc = -1.3 * norms.squeeze(1) * (0.5 + torch.rand(D_SAE, generator=g))
    b_enc[5], b_enc[6] = -1e4, 50.0  # dead, and active on every row
    encoder[7] = 0.0
    b_enc[7] = 0.25
    return encoder, b_enc, torch.randn(D_SAE, D_IN, generator=g), torch.randn(D_IN, generator=g) * 0.1


def variants(w: tuple[torch.Tensor, ...], g: torch.Generator) -> list[SparseAutoencoder]:
    threshold = torch.tensor([0.4])
    return [
        ReluSae(*w),
        TopKSae(*w, k=16),
        BatchTopKSae(*w, k=16, threshold=threshold),
        MatryoshkaSae(*w, k=16, threshold=threshold, prefixes=[100, D_SAE]),
        JumpReluSae(*w, log_threshold=torch.randn(D_SAE, generator=g) - 1),
        GatedSae(*w, r_mag=torch.randn(D_SAE, generator=g) * 0.1, b_mag=torch.randn(D_SAE, generator=g)),
        ReluSae(w[0], w[1], w[2][:, :40], w[3][:40], output_mean=torch.zeros(40), centres_input=False),
    ]


def rows(g: torch.Generator) -> torch.Tensor:
    x = torch.randn(200, D_IN, generator=g)
    x[0] = 0
    x[1] = 1e-20
    x[2] *= 1e4
    x[3, 0] = 3e3  # one coordinate outweighs the rest, as in real towers
    x[10:60] += 0.5
    return x


@pytest.mark.parametrize("tile", [37, 4096])
@pytest.mark.parametrize("spread", [1.0, 10.0])
@pytest.mark.parametrize("number", range(7))
def test_the_same_features_are_active_as_in_float32(number, spread, tile):
    g = torch.Generator().manual_seed(number)
    sae = variants(weights(g, spread), g)[number]
    x = rows(g)
    exact, rounded = sae.encode_sparse(x, tile=tile), sae.encode_sparse(x, tile=tile, tiles=RoundedTiles(sae))
    f, other = exact.to_dense(), rounded.to_dense()
    size = sae.centred(sae.scale(x)).norm(dim=1, keepdim=True) * sae.encoder.norm(dim=1) + sae.b_enc.abs()
    pre = torch.addmm(sae.b_enc, sae.centred(sae.scale(x)), sae.encoder.T)
    floor = sae.floor()
    differ = (f > 0) != (other > 0)  # both are float32: only what lies on its bound to the last digit may differ
    assert differ.sum() <= 2
    if sae.variant != "topk":
        assert ((pre - (0 if floor is None else floor)).abs()[differ] <= 3e-6 * size[differ]).all()
    assert ((f - other).abs()[~differ] <= 5e-6 * size[~differ]).all()


def test_pairs_that_bf16_would_lose_are_found():
    """Sums of which bf16 makes 0 or less: rounding moves them by up to the proven bound."""
    g = torch.Generator().manual_seed(0)
    encoder = torch.nn.functional.normalize(torch.randn(4000, D_IN, generator=g), dim=1)
    x = torch.randn(50, D_IN, generator=g)
    pre = x @ encoder.T
    sae = ReluSae(encoder, -pre.amax(0) + 1e-3, encoder.clone(), torch.zeros(D_IN))  # each fires once, just so
    by_bf16 = torch.addmm(sae.b_enc.bfloat16(), x.bfloat16(), sae.encoder.bfloat16().T) > 0
    exact = sae.encode(x) > 0
    assert (exact & ~by_bf16).sum() > 200  # the control: without the margin many are lost
    assert torch.equal(sae.encode_sparse(x, tiles=RoundedTiles(sae)).to_dense() > 0, exact)


def test_a_tile_with_many_candidates_is_left_to_float32():
    g = torch.Generator().manual_seed(1)
    sae = ReluSae(
        torch.randn(D_SAE, D_IN, generator=g), torch.zeros(D_SAE), torch.randn(D_SAE, D_IN), torch.zeros(D_IN)
    )
    x = torch.randn(30, D_IN, generator=g)
    assert torch.equal(sae.encode_sparse(x, tiles=RoundedTiles(sae)).to_dense(), sae.encode(x))

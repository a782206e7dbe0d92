"""Vision transformers of open_clip with random weights, SAEs with random weights, and pictures of noise for them."""

import numpy as np
import torch
from open_clip.transformer import VisionTransformer
from thresher.harvest.vision import Tower
from thresher.train.models import ReluSae

WIDTH, LAYERS, EMBEDDING, HIDDEN, D_SAE = 32, 3, 8, 128, 24
"""Of the towers: stream, blocks, embedding, neurons of an MLP; of the SAEs."""


def tower_with(visual, name="random"):
    """A tower of 32 x 32 pixels around any module."""
    return Tower(
        visual=visual.eval().requires_grad_(False),
        name=name,
        pretrained="none",
        weights_sha256="",
        quick_gelu=False,
        preprocessing={"size": [32, 32], "mean": [0.5] * 3, "std": [0.25] * 3},
        preprocess=None,
    )


def random_tower(seed=3, **settings):
    """Four patches and a class token; no bias, gain or layer scale is left at its initial value."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        visual = VisionTransformer(
            image_size=32,
            patch_size=16,
            width=WIDTH,
            layers=LAYERS,
            heads=2,
            mlp_ratio=4,
            output_dim=EMBEDDING,
            **settings,
        )
        for parameter in visual.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return tower_with(visual)


def random_sae(d_in, *, d_out=None, variant=ReluSae, seed=1, **settings):
    """An SAE that standardises its input, or a transcoder; about half of the features fire on a row."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=draw)

    settings = {"input_mean": 0.3 * normal(d_in), "input_scale": 0.5 + normal(d_in).abs()} | settings
    if d_out is not None:
        settings |= {"output_mean": normal(d_out), "output_scale": 0.5 + normal(d_out).abs(), "centres_input": False}
    decoder = normal(D_SAE, d_out or d_in)
    return variant(
        normal(D_SAE, d_in) / d_in**0.5,
        0.1 * normal(D_SAE),
        decoder / decoder.norm(dim=1, keepdim=True),
        0.1 * normal(d_out or d_in),
        **settings,
    )


class NoisePictures:
    """Pictures by row in batches of two, as `RowPictures` gives them; those of `unreadable` rows are left out."""

    def __init__(self, tower, n=5, seed=0, unreadable=()):
        size = tower.preprocessing["size"]
        self.all = torch.randint(256, (n, *size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
        self.unreadable, self.asked = set(unreadable), []

    def pixels(self, rows):
        self.asked.append(rows.tolist())
        for start in range(0, len(rows), 2):
            places = [k for k in range(start, min(start + 2, len(rows))) if rows[k] not in self.unreadable]
            if places:
                yield np.array(places, np.int64), self.all[rows[places]]

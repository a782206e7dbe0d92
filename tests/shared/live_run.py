"""Runs whose tower is at hand: made pictures through the embedded model, a small SAE, its codes and statistics."""

from pathlib import Path

import numpy as np
from PIL import Image
from thresher.analysis.encode import encode
from thresher.analysis.options import EncodeOptions, StatsOptions
from thresher.analysis.stats import stats
from thresher.analysis.train_sae import train_sae
from thresher.harvest.options import HarvestOptions
from thresher.harvest.run import harvest
from thresher.harvest.weights import EMBEDDED

CLASSES = ("apple", "fire_truck", "red_ball", "zebra")
LAYER = 3


def make_live_run(
    folder: Path,
    *,
    name: str = "run",
    n_per_class: int = 8,
    trained: dict[str, object] | None = None,
    **harvested: object,
) -> Path:
    """A finished run on pictures in `folder/pictures`, read in fp32 and stored in float32.

    Parameters
    ----------
    trained
        Other options of the training than those of a small TopK SAE.
    harvested
        Other options of the harvest than layer 3, `resid_post`, `cls`.
    """
    pictures = folder / "pictures"
    if not pictures.exists():
        _make_pictures(pictures, n_per_class)
    options = {"layer": (LAYER,), "precision": "fp32", "dtype": "float32", "workers": 0, "device": "cpu", **harvested}
    harvest(HarvestOptions(model=EMBEDDED, **options), str(pictures), str(folder / f"{name}.zarr"))
    small = {"k": 6, "expansion": 2, "batch_size": 16, "rows": 320, "warmup": 2, "device": "cpu"}
    train_sae(folder / f"{name}.zarr", folder / name, **small, **(trained or {}))
    encode(folder / name, EncodeOptions(device="cpu"))
    stats(folder / name, StatsOptions(figures=False, min_labelled=2, null_draws=5, samples=2))
    return folder / name


def _make_pictures(folder: Path, n_per_class: int) -> None:
    draw = np.random.default_rng(0)
    for number, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for i in range(n_per_class):
            pixels = draw.integers(0, 120, (72, 80, 3), dtype=np.uint8)
            pixels[..., number % 3] += 90
            pixels[: 16 * number] //= 2
            Image.fromarray(pixels).save(folder / name / f"{i}.png")

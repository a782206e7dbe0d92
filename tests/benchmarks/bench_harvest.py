"""Harvest against the bare tower on the same batches: `python tests/benchmarks/bench_harvest.py [--images FOLDER]`.

The floor is the tower's forward pass on batches that are already decoded, in the same number of threads. Both run in
turn, several times; the table gives medians and the ratio of each pair.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from thresher.harvest.forward import TowerRunner
from thresher.harvest.options import HarvestOptions
from thresher.harvest.run import harvest
from thresher.harvest.sites import resolve_sites
from thresher.harvest.vision import load_tower

CASES = (
    # model, layer, images, batch
    ("quickstart", 4, 4096, 64),
    ("ViT-B-32", 10, 192, 16),
    ("ViT-L-14-quickgelu", 22, 24, 4),
)


def made_up_images(folder: Path, n: int) -> Path:
    """`n` noisy JPEGs of the size of ImageNet's."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(n):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
        coarse.resize((341, 256), Image.Resampling.BICUBIC).save(folder / f"{i:05d}.jpg", quality=90)
    return folder


def bare_s(model: str, pretrained: str, layer: int, n: int, batch: int) -> tuple[float, float]:
    """Wall and CPU seconds of the tower alone on `n` images in batches that are in memory."""
    tower = load_tower(model, pretrained)
    sites = resolve_sites(tower, (layer,))
    size = tower.preprocessing["size"]
    height, width = (size, size) if isinstance(size, int) else size
    pixels = torch.randint(0, 256, (batch, height, width, 3), dtype=torch.uint8)
    with TowerRunner(tower, sites, -(-n // batch)) as runner:
        [future.result() for future in [runner.submit(pixels) for _ in range(2)]]
        wall, cpu = time.perf_counter(), time.process_time()
        for future in [runner.submit(pixels) for _ in range(n // batch)]:
            future.result()
        return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few pictures of the embedded model, one round")
    parser.add_argument("--images", type=Path, help="a folder of pictures; by default noisy JPEGs of 341 x 256")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help="one model of the table")
    arguments = parser.parse_args()
    cases = CASES
    if arguments.quick:
        cases, arguments.rounds = (("quickstart", 4, 256, 64),), 1
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {arguments.rounds} rounds")
    print(f"{'model':20} {'layer':>5} {'images':>6} {'bare/s':>8} {'harvest/s':>9} {'harvest/bare':>12} {'spread':>13}")
    with tempfile.TemporaryDirectory() as scratch:
        images = arguments.images or made_up_images(
            Path(scratch) / "images", max((n for *_, n, _ in cases[1:]), default=0)
        )
        for model, layer, n, batch in cases:
            if arguments.only not in (None, model):
                continue
            bare, ours = [], []
            for i in range(arguments.rounds):
                pretrained = None if model == "quickstart" else "none"
                bare.append(n / bare_s(model, pretrained, layer, n, batch)[0])
                options = HarvestOptions(
                    model=model, pretrained=pretrained, layer=(layer,), batch_size=batch, limit=n, device="cpu"
                )
                source = "quickstart" if model == "quickstart" else images
                ours.append(harvest(options, source, Path(scratch) / f"{model}-{i}.zarr").images_per_s)
            ratios = [b / a for a, b in zip(bare, ours, strict=True)]
            print(
                f"{model:20} {layer:5d} {n:6d} {statistics.median(bare):8.2f} {statistics.median(ours):9.2f} "
                f"{statistics.median(ratios):12.3f} {min(ratios):6.3f}-{max(ratios):.3f}"
            )


if __name__ == "__main__":
    main()

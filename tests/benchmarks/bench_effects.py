"""Effects of features on image embeddings, beside the whole tower run for each and a bare matrix product.

    python tests/benchmarks/bench_effects.py [--quick] [--rounds 3]

Towers: the embedded one, and one of ViT-L/14's shape with random weights; sites on the class token's stream with 3 to 0
blocks left to run. `a change` is the price of one more feature on images whose streams are known; its MFLOP are what it
takes at least by the route taken, the last block's other tokens not counted. `at 20 an image` takes the images' streams
into account, 20 changes sharing each. CPU seconds of one thread; the best of the rounds.
"""

import argparse
import os
import time
from collections.abc import Callable
from functools import partial

import torch
from open_clip.transformer import VisionTransformer
from thresher.analysis.naming.remaining import Remaining, Streams
from thresher.harvest.continuation import embed_images
from thresher.harvest.vision import Tower, load_tower
from thresher.store.format import Site

PER_IMAGE = 20


def least(work: Callable[[], object], rounds: int) -> float:
    """CPU seconds of the fastest round."""
    found = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return min(found)


def large_tower() -> Tower:
    """ViT-L/14's shape, random weights."""
    torch.manual_seed(0)
    visual = VisionTransformer(
        image_size=224, patch_size=14, width=1024, layers=24, heads=16, mlp_ratio=4, output_dim=768
    )
    return Tower(
        visual=visual.eval().requires_grad_(False),
        name="ViT-L/14 shape",
        pretrained="none",
        weights_sha256="",
        quick_gelu=False,
        preprocessing={"size": [224, 224], "mean": [0.5] * 3, "std": [0.25] * 3},
        preprocess=None,
    )


def flop_of_a_change(tower: Tower, left: int) -> float:
    """Multiplications and additions of one changed class token, `left` blocks from the end."""
    d, e = tower.width, int(tower.visual.output_dim)  # type: ignore[arg-type]
    rows, columns = tower.visual.grid_size  # type: ignore[misc]
    t = rows * columns + 1
    if not left:
        return 2 * d * e
    whole = 24 * d * d * t + 4 * t * t * d  # queries, keys, values, output, MLP of every token; attention
    keys_and_values = 4 * d * d * t if left > 1 else 0  # of the last block, where the patches have changed too
    return (left - 1) * whole + keys_and_values + 24 * d * d + 4 * t * d + 2 * d * e


def measure(tower: Tower, n_images: int, left: list[int], bare: float, rounds: int) -> None:
    """Print a line for each number of blocks left."""
    images = torch.randn(n_images, 3, *tower.preprocessing["size"])
    forward = least(lambda: embed_images(tower, images), rounds) / n_images
    more = 1024 // n_images

    def change(remaining: Remaining, streams: Streams, n: int) -> float:
        image = torch.arange(n_images).repeat_interleave(n)
        added = torch.randn(len(image), 1, tower.width)
        return least(lambda: remaining.embeddings(streams, image, added), rounds)

    for n_left in left:
        layer = tower.n_layers - 1 - n_left
        remaining = Remaining(tower, Site(layer))
        streams = remaining.streams(images)
        streams_s = least(partial(remaining.streams, images), rounds) / n_images
        each = (change(remaining, streams, 4 + more) - change(remaining, streams, 4)) / (more * n_images)
        flop = flop_of_a_change(tower, n_left)
        saved = PER_IMAGE * forward / (streams_s + change(remaining, streams, PER_IMAGE) / n_images)
        print(
            f"{tower.name:<15}  {layer:5d}  {n_left:4d}  {forward * 1e3:10.2f}  {each * 1e3:11.4f}  "
            f"{flop / 1e6:5.2f}  {flop / each / bare:7.2f}  {forward / each:14.0f}  {saved:14.1f}"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    rounds = 1 if args.quick else args.rounds
    torch.set_num_threads(1)
    left, right = torch.randn(1024, 1024), torch.randn(1024, 4096)
    bare = 2 * 1024 * 1024 * 4096 / least(lambda: left @ right, rounds + 2)
    load = os.getloadavg()[0]
    print(
        f"rounds {rounds}, load {load:.1f}, a bare product of (1024, 1024) and (1024, 4096): {bare / 1e9:.0f} GFLOP/s"
    )
    print("tower            layer  left  forward ms  a change ms  MFLOP  of bare  forwards saved  at 20 an image")
    measure(load_tower("quickstart"), 64, [3, 2, 1, 0], bare, rounds)
    if not args.quick:
        measure(large_tower(), 2, [1, 0], bare, rounds)


if __name__ == "__main__":
    main()

"""Features against the output vectors of a ViT-L/14, beside the bare matrix product of the same size.

    python tests/benchmarks/bench_alignment.py [--quick] [--features 65536] [--blocks 3] [--rounds 1]

Random weights: the last of `--blocks` blocks of width 1,024 with 4,096 neurons and 16 heads, whose MLP is the main set;
each block before it adds an MLP and an attention, as each of the 23 does at layer 22 of the post. Chance of both kinds
is computed as `thresher align` does. The bare product multiplies the same blocks of directions and keeps nothing.
"""

import argparse
import os
import resource
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from open_clip.transformer import VisionTransformer
from thresher.analysis.align_options import AlignOptions
from thresher.analysis.alignment import SideAlignment, align_side
from thresher.analysis.cosines import unit_rows
from thresher.analysis.null_directions import BLOCK, SampleMoments
from thresher.analysis.output_directions import outputs_of_site
from thresher.progress import Reporter
from thresher.store.format import Site

LEAST_NULL = 16_384  # random directions for every set but the main one


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds."""
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall_s, time.process_time() - cpu_s


def bare_s_per_pflop(blocks: list[torch.Tensor], vectors: torch.Tensor, n: int = 8) -> tuple[float, float]:
    """Wall and CPU seconds of 10^15 multiplications and additions in plain products of these shapes."""
    turned = vectors.T
    _ = blocks[0] @ turned
    chosen = blocks[:n]
    wall_s, cpu_s = timed(lambda: [part @ turned for part in chosen])
    flop = 2 * sum(len(part) for part in chosen) * vectors.numel()
    return wall_s * 1e15 / flop, cpu_s * 1e15 / flop


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--features", type=int, default=65_536)
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=1)
    args = parser.parse_args()
    d, features, blocks = (64, 3000, 2) if args.quick else (1024, args.features, args.blocks)
    torch.manual_seed(0)
    visual = VisionTransformer(
        image_size=28, patch_size=14, width=d, layers=blocks, heads=d // 64 or 1, mlp_ratio=4.0
    ).eval()
    site = Site(blocks - 1)
    outputs = outputs_of_site(visual, site)
    directions = [unit_rows(torch.randn(min(BLOCK, features - i), d)) for i in range(0, features, BLOCK)]
    spectrum = np.geomspace(1, 1e-3, d)
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((d, d)))[0]
    moments = SampleMoments(65_536, np.zeros(d), (turn * spectrum) @ turn.T)
    vectors = outputs.main.unit_vectors()
    held_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    def align(other_blocks: bool) -> SideAlignment:
        options = AlignOptions(other_blocks=other_blocks)
        return align_side("encoder", site, directions, outputs, moments, options, torch.device("cpu"), Reporter())

    n_null = max(features, LEAST_NULL)
    main_flop = 2 * vectors.numel() * (features + 2 * n_null)
    others = (blocks - 1) * vectors.numel() + blocks * d * d
    others_flop = 2 * others * (features + 2 * LEAST_NULL)
    rows: dict[str, list[tuple[float, float, float]]] = {"the block's own MLP": [], "and the other sets": []}
    with torch.inference_mode():
        for _ in range(args.rounds):
            for (name, results), flop in zip(rows.items(), (main_flop, main_flop + others_flop), strict=True):
                before = bare_s_per_pflop(directions, vectors)
                wall_s, cpu_s = timed(lambda name=name: align(name.startswith("and")))
                after = bare_s_per_pflop(directions, vectors)
                bare_cpu_s = (before[1] + after[1]) / 2 * flop / 1e15
                results.append((wall_s, cpu_s, bare_cpu_s / cpu_s))
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{features:,} features, d {d:,}, {len(vectors):,} neurons, {len(outputs.others)} other sets, "
        f"{args.rounds} rounds, load {os.getloadavg()[0]:.1f}, {torch.get_num_threads()} threads"
    )
    print(f"{'':24}{'TFLOP':>8}{'seconds':>10}{'CPU s':>10}{'of the bare product':>22}")
    for (name, results), flop in zip(rows.items(), (main_flop, main_flop + others_flop), strict=True):
        wall_s, cpu_s, share = (statistics.median(column) for column in zip(*results, strict=True))
        print(f"{name:24}{flop / 1e12:8.2f}{wall_s:10.1f}{cpu_s:10.1f}{share:22.2f}")
    print(f"memory: {held_mb:,.0f} MB with the weights and the features, {peak_mb:,.0f} MB at most")


if __name__ == "__main__":
    main()

"""Training from a store to weights against its bare steps, and a sweep of four against theirs.

    python tests/benchmarks/bench_training.py [--d-sae 16384] [--batch 1024] [--steps 40] [--rounds 3] [--quick]

d_in 1,024, a TopK SAE, rows in a store of float16 in random order. A bare step is what training does with a batch that
lies in memory: scaling, loss and gradients, Adam, the counters of what fired. Training reads its batches from the
store, logs, and evaluates and writes no checkpoint but at its end. Steps with reading: from the end of the first step
to that of the last, with all that comes between, as many as all steps are. The rest of the command, its start and its
end, does not grow with the steps: the last column is what is left of the bare rate in a training of 2,560 steps, the
post's. Both ways run in turn, so that a busy machine slows them alike; figures are medians over rounds.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from thresher.store.reader import open_store
from thresher.store.writer import create_store
from thresher.train.loader import BatchLoader
from thresher.train.loop import train_together
from thresher.train.member import Member, Source
from thresher.train.options import TrainOptions
from thresher.train.ranks import ALONE
from thresher.train.run_dir import open_run
from thresher.train.step import StepResult

sys.path[:0] = [str(Path(__file__).resolve().parent / "store")]

from data import D_IN  # noqa: E402
from make_thresher import SITE, keys_of, spec_of  # noqa: E402

LONG = 2560


def write_store(path: Path, rows: int) -> None:
    """Rows that are sums of some of 4,096 directions and noise."""
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((4096, D_IN), np.float32) / np.sqrt(np.float32(D_IN))
    labels = np.zeros(rows, np.int32)
    with create_store(path, spec_of(labels, "random"), keys=keys_of(rows), labels=labels) as writer:
        for number in list(writer.pending):
            start, stop = writer.window_images(number)
            chosen = rng.integers(0, len(directions), (stop - start, 16))
            strength = rng.uniform(0.5, 2, (stop - start, 16, 1)).astype(np.float32)
            values = (directions[chosen] * strength).sum(1)
            values += rng.standard_normal(values.shape, np.float32) * np.float32(0.02)
            window = writer.window(number)
            window.put(start, {SITE: values}, np.ones(stop - start, bool), [], None)
            window.commit()


def bare_seconds(members: list[TrainOptions], store: Path, folder: Path) -> float:
    """Seconds of the members' steps on batches that lie in memory, each by itself."""
    opened = open_store(store)
    array = opened.activations()
    seconds = 0.0
    for number, options in enumerate(members):
        loader = BatchLoader([array], batch_size=options.batch_size, seed=0, device=torch.device("cpu"))
        batches = [loader.read(step) for step in range(8)]
        run = open_run(folder / f"{number}")
        with closing(Member(run, options, Source(array, array, 0, 0), loader, torch.device("cpu"), ALONE)) as member:
            member.take_step(batches[0])
            start = time.perf_counter()
            for step in range(1, options.steps):
                member.take_step(batches[step % len(batches)])
            seconds += (time.perf_counter() - start) * options.steps / (options.steps - 1)
    return seconds


def whole_seconds(members: list[TrainOptions], store: Path, folder: Path) -> tuple[float, float]:
    """Seconds of a training of these members together: from the call to its return, and of the steps with reading."""
    ends: list[float] = []
    take_step = Member.take_step

    def timed(member: Member, batch: list[torch.Tensor]) -> StepResult:
        result = take_step(member, batch)
        ends.append(time.perf_counter())
        return result

    start = time.perf_counter()
    paths = {folder / f"{number}": replace(options, overwrite=True) for number, options in enumerate(members)}
    with mock.patch.object(Member, "take_step", timed):
        train_together(paths, store)
    whole = time.perf_counter() - start
    steps = members[0].steps
    return whole, (ends[-1] - ends[len(members) - 1]) * steps / (steps - 1)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d-sae", type=int, default=16_384)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="small SAEs, few steps, one round")
    a = parser.parse_args()
    if a.quick:
        a.d_sae, a.batch, a.steps, a.rounds = 2048, 64, 4, 1
    options = TrainOptions(
        k=32, expansion=a.d_sae / D_IN, batch_size=a.batch, rows=a.batch * a.steps, warmup=10, device="cpu",
        eval_every=0, checkpoint_every=0, log_every=20, dead_after_rows=10**9,
    )  # fmt: skip
    sweep = [replace(options, k=k) for k in (16, 24, 32, 48)]
    found: dict[str, list[tuple[float, float, float]]] = {"one SAE": [], "four SAEs, one sweep": []}
    with tempfile.TemporaryDirectory(prefix="thresher-bench-training-") as work:
        store = Path(work) / "rows.zarr"
        write_store(store, max(4096, min(65_536, a.batch * a.steps)))
        for _ in range(a.rounds):
            for name, members in (("one SAE", [options]), ("four SAEs, one sweep", sweep)):
                whole, steps = whole_seconds(members, store, Path(work) / name)
                found[name].append((bare_seconds(members, store, Path(work) / name), whole, steps))
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}")
    print(f"{a.rounds} rounds of {a.steps} steps of {a.batch:,} rows, {a.d_sae:,} features\n")
    print(
        "| training | bare steps, s | steps with reading, s | bare / steps | start, end, s | of bare at 2,560 steps |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for name, rounds in found.items():
        bare, whole, steps = (statistics.median(column) for column in zip(*rounds, strict=True))
        ratio = statistics.median(b / s for b, _, s in rounds)
        long = LONG / a.steps
        of_whole = statistics.median(b * long / (s * long + w - s) for b, w, s in rounds)
        print(f"| {name} | {bare:.1f} | {steps:.1f} | {ratio:.3f} | {whole - steps:.1f} | {of_whole:.3f} |")


if __name__ == "__main__":
    main()

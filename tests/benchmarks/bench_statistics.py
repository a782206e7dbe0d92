"""What the statistics of many features cost: `python tests/benchmarks/bench_statistics.py [--entries 50000000]`.

Feature activations are made up with the shape of the post's: 1,221 features carry most firings with densities over two
decades, the others fire rarely and weakly; about 30 a row, labels of 1,000 classes. Each part runs alone in a process
of its own, in threads of it. `MB` is the peak resident memory above what the imports take. `of a pass` is the time
beside that of one plain numpy pass over the same entries (three `bincount`: count, sum and label of each).
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import dask.threaded  # noqa: F401 (its import is not what is timed)
import numpy as np
import torch
import zarr
from thresher.analysis.by_feature import write_by_feature
from thresher.analysis.cofiring import choose_rows, cofiring, stored_entries
from thresher.analysis.columns import Column
from thresher.analysis.entropy import label_entropy
from thresher.analysis.entropy_null import entropy_null
from thresher.analysis.exact_sums import SumUnits
from thresher.analysis.features import FeaturesInfo, open_features, read_entries
from thresher.analysis.firings import FiringsSpec, firings
from thresher.analysis.l0_counts import count_l0_of
from thresher.analysis.monosemanticity import monosemanticity
from thresher.analysis.nearest import nearest_features
from thresher.analysis.scheduler import open_compute
from thresher.analysis.statistics import FeatureStatistics, sparse_totals
from thresher.progress import Reporter

N_CLASSES, TASK_BYTES, L0, DENSE = 1000, 64_000_000, 30, 1221
NEAREST_D, EMBEDDING_DIM = 1024, 128
Blocks = Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]


def made_up(n_rows: int, d_sae: int) -> Blocks:
    """First row, indptr, index and value of blocks of rows."""
    rng = np.random.default_rng(0)
    dense = min(DENSE, d_sae // 2)
    weight = 10 ** rng.normal(0, 0.5, dense)
    bounds = np.cumsum(weight / weight.sum())
    for first in range(0, n_rows, 1 << 15):
        n = min(1 << 15, n_rows - first)
        often = np.searchsorted(bounds, rng.random((n, L0 * 4 // 5))).clip(max=dense - 1)
        seldom = rng.integers(dense, d_sae, (n, L0 - L0 * 4 // 5))
        key = np.unique(np.arange(n)[:, None] * d_sae + np.concatenate((often, seldom), axis=1))
        row, index = key // d_sae, (key % d_sae).astype(np.uint32)
        value = np.exp(rng.normal(0, 1, len(key))) * np.where(index < dense, 1, 0.01)
        yield first, np.concatenate(([0], np.cumsum(np.bincount(row, minlength=n)))), index, value.astype(np.float32)


def write(folder: Path, n_rows: int, d_sae: int) -> None:
    """Write made-up feature activations as `encode` does, and embeddings of the rows."""
    group = zarr.open_group(str(folder / "features.zarr"), mode="w", zarr_format=3)
    columns = {
        name: Column(group, name, dtype)
        for name, dtype in (("indptr", np.uint64), ("index", np.uint32), ("value", np.float32))
    }
    columns["indptr"].append(np.zeros(1, np.uint64))
    n_active, nnz = np.zeros(d_sae, np.int64), 0
    for _, indptr, index, value in made_up(n_rows, d_sae):
        columns["indptr"].append((nnz + indptr[1:]).astype(np.uint64))
        columns["index"].append(index)
        columns["value"].append(value)
        n_active += np.bincount(index, minlength=d_sae)
        nnz += len(index)
    for name, values in (
        ("rows/split", np.ones(n_rows, np.uint8)),
        ("rows/valid", np.ones(n_rows, bool)),
        ("rows/label", np.random.default_rng(1).integers(0, N_CLASSES, n_rows).astype(np.int32)),
    ):
        columns[name] = Column(group, name, values.dtype)
        columns[name].append(values)
    for column in columns.values():
        column.close()
    known = {"n_rows": n_rows, "n_encoded": n_rows, "n_train": n_rows, "nnz": nnz, "d_sae": d_sae, "d_in": NEAREST_D}
    known |= {"split": "all", "row_stop": n_rows, "held_out_start": None, "is_training_store": True, "n_store_parts": 1}
    empty = {f.name: "" if f.type in (str, "str") else 0 for f in fields(FeaturesInfo)}
    info = FeaturesInfo(**(empty | known))
    with Reporter().task("", 0, "") as task:
        write_by_feature(group, folder, n_active, n_rows, read_entries(group, info), task)
    group.attrs.update(info.to_attributes())
    embeddings = np.lib.format.open_memmap(
        folder / "embeddings.npy", mode="w+", dtype=np.float16, shape=(n_rows, EMBEDDING_DIM)
    )
    rng = np.random.default_rng(2)
    for first in range(0, n_rows, 1 << 16):
        block = embeddings[first : first + (1 << 16)]
        block[:] = rng.standard_normal(block.shape, np.float32)
    embeddings.flush()


def parts_of(folder: Path) -> dict[str, Callable[[], object]]:
    """Each part by name: what is timed."""
    features = open_features(folder)
    n_rows, d_sae = features.n_rows, features.d_sae
    reporter = Reporter()

    @cache
    def top() -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(3)
        value = -np.sort(-rng.random((d_sae, 20), np.float32), axis=1)
        return value, rng.integers(0, N_CLASSES, (d_sae, 20)).astype(np.int32)

    @cache
    def directions() -> torch.Tensor:
        return torch.randn(d_sae // 4, NEAREST_D, generator=torch.Generator().manual_seed(0))

    @cache
    def top_entropy() -> np.ndarray:
        return label_entropy(*top(), min_labelled=10)[0]

    def by_chance() -> object:
        per_class = np.full(N_CLASSES, 500)
        return entropy_null(*top(), top_entropy(), per_class, n_draws=200, seed=0)

    def numpy_pass() -> object:
        out = np.zeros((3, d_sae))
        for block in features.blocks(0, n_rows):
            label = np.repeat(block.labels, np.diff(block.indptr))
            for i, weights in enumerate((None, block.value, label)):
                out[i] += np.bincount(block.index, weights=weights, minlength=d_sae)
        return out

    def counting() -> object:
        with open_compute() as compute:
            totals = sparse_totals(
                str(features.path), 0, n_rows, split="all", k=20, task_bytes=TASK_BYTES, compute=compute,
                reporter=reporter,
            )  # fmt: skip
        return FeatureStatistics.of_totals(totals, min_labelled=10)

    @cache
    def units() -> SumUnits:
        n_active = np.diff(features.feature_starts())
        return SumUnits.of_features(n_active, n_active * 100.0, np.full(d_sae, 100.0))

    def of_firings() -> object:
        spec = FiringsSpec(split="all", samples=8, seed=0, min_labelled=10)
        with open_compute() as compute:
            found = firings(features, spec, units(), task_bytes=TASK_BYTES, compute=compute, reporter=reporter)
            return sum(len(part.labels.label) for part in found)

    def without_uld() -> object:
        with open_compute() as compute:
            return count_l0_of(features, np.arange(d_sae) < DENSE, "all", task_bytes=TASK_BYTES, compute=compute)

    def partners() -> object:
        with open_compute() as compute:
            rows = choose_rows(features, 0, n_rows, "all", None)
            read = stored_entries(features, rows, "all")
            return sum(len(p.feature) for p in cofiring(read, rows, 32, compute=compute, reporter=reporter))

    def alike() -> object:
        path = str(folder / "embeddings.npy")
        with open_compute() as compute:
            return monosemanticity(
                features, path, units(), split="all", task_bytes=TASK_BYTES, compute=compute, reporter=reporter
            )

    def nearest_matmul() -> object:
        return [float((block @ directions().T)[0, 0]) for block in directions().split(512)]

    return {
        "a plain numpy pass": numpy_pass,
        "counting, histograms, top 20, L0": counting,
        "label entropy, 20 rows": lambda: label_entropy(*top(), min_labelled=10),
        "label entropy by chance, 200 draws": by_chance,
        "samples and labels of all firings": of_firings,
        "L0 without the ULD cluster": without_uld,
        "co-firing, 32 partners": partners,
        f"monosemanticity, {EMBEDDING_DIM} dimensions": alike,
        f"32 nearest of {d_sae // 4:,}, d = {NEAREST_D:,}": lambda: nearest_features(directions(), 32),
        "   the bare matmul of that": nearest_matmul,
    }


def measure(folder: Path, name: str) -> dict[str, float]:
    """Wall and CPU seconds and peak memory of one part, in this process; those of milliseconds once more, warm."""
    work = parts_of(folder)[name]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(2):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        if wall > 1:
            break
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"wall_s": wall, "cpu_s": cpu, "mb": (peak - before) * 1024 / 1e6}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a hundred-thousand activations of 2,048 features")
    parser.add_argument("--entries", type=int, default=50_000_000)
    parser.add_argument("--features", type=int, default=65_536)
    parser.add_argument("--work", type=Path, help="where the activations are made, and left for the next time")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(measure(options.work, options.part)))
        return
    if options.quick:
        options.entries, options.features = 100_000, 2048
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "features.zarr").exists():
            write(folder, options.entries // L0, options.features)
        info = open_features(folder).info
        print(
            f"{info.nnz:,} activations of {info.d_sae:,} features on {info.n_rows:,} rows; "
            f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}"
        )
        print(f"{'':38}{'wall s':>9}{'CPU s':>9}{'of a pass':>11}{'MB':>8}")
        one_pass: dict[str, Any] | None = None
        for name in parts_of(folder):
            command = [sys.executable, __file__, "--work", str(folder), "--part", name]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(done.stderr)
            found = json.loads(done.stdout)
            one_pass = one_pass or found
            ratio = found["cpu_s"] / one_pass["cpu_s"]
            print(f"{name:38}{found['wall_s']:9.3f}{found['cpu_s']:9.3f}{ratio:11.2f}{found['mb']:8.0f}", flush=True)


if __name__ == "__main__":
    main()

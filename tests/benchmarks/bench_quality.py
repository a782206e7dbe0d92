"""How well each variant reconstructs at its sparsity, beside the same variant of SAELens and overcomplete.

    python tests/benchmarks/bench_quality.py [--variant topk ...] [--seeds 0 1 2] [--steps 2000] [--quick]

Rows are the embedded pictures' through the embedded tower, layer 4, the class token, each coordinate at mean 0 and
deviation 1. Every library trains on the same batches in the same order, as many features, Adam at the same rate with
the same course, from its own starting weights. For each library and variant a frontier: mean L0 and explained variance
over seeds at each setting of its sparsity. Where the L0 of two libraries differ, the other's explained variance is read
off its frontier at our L0, linear in log L0. `change` is how much our explained variance moved over the last fifth of
the steps, in per cent.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from thresher.harvest.options import HarvestOptions
from thresher.harvest.run import harvest
from thresher.store.reader import open_store
from thresher.train.evaluation import evaluate
from thresher.train.loader import BatchLoader
from thresher.train.loop import train_together
from thresher.train.options import TrainOptions
from thresher.train.run_dir import open_run

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE)]

from store.environments import Environment, python_of, versions  # noqa: E402

SAELENS = Environment("saelens", ("sae-lens",))
TRAINERS = Environment(
    "trainers", ("dictionary-learning", "overcomplete", "eai-sparsify", "matplotlib", "scikit-learn")
)
KS = (8.0, 16.0, 32.0, 64.0)
OURS = {
    "topk": ("k", KS),
    "batchtopk": ("k", KS),
    "matryoshka": ("k", KS),
    "relu": ("target_l0", KS),
    "gated": ("target_l0", KS),
    "jumprelu": ("target_l0", KS),
}
"""The option that sets a variant's sparsity, and its values."""
PEERS = {
    "SAELens": {
        "topk": KS,
        "batchtopk": KS,
        "matryoshka": KS,
        "relu": (1.0, 2.0, 4.0, 8.0, 16.0),
        "gated": (1.0, 2.0, 4.0, 8.0, 16.0),
        "jumprelu": (0.3, 1.0, 3.0, 10.0),
    },
    "overcomplete": {
        "topk": KS,
        "batchtopk": KS,
        "relu": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
        "jumprelu": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    },
}
"""Settings of the other libraries' own coefficients that span the same range of L0."""
BATCH, LR = 1024, 1e-3


def prepare(folder: Path, steps: int, limit: int | None) -> Path:
    """Harvest the pictures; write the rows and the batches that all see."""
    store_path = folder / "emoji.zarr"
    if not store_path.exists():
        harvest(
            HarvestOptions(model="quickstart", layer=(4,), dtype="float32", limit=limit, device="cpu"),
            "quickstart",
            store_path,
        )
    store = open_store(store_path)
    array = store.activations()
    splits = {name: array.read_positions(*store.split(name)) for name in ("train", "heldout")}
    mean, deviation = splits["train"].mean(0, dtype=np.float64), splits["train"].std(0, dtype=np.float64)
    for name, rows in splits.items():
        np.save(folder / f"{name}.npy", ((rows - mean) / deviation).astype(np.float32))
    loader = BatchLoader([array], batch_size=BATCH, seed=0, device=torch.device("cpu"))
    np.save(folder / "batches.npy", np.stack([loader.positions(step) for step in range(steps)]))
    return store_path


def train_ours(
    folder: Path, store_path: Path, variant: str, seeds: list[int], steps: int, expansion: float
) -> list[dict[str, object]]:
    """Train every setting and seed of a variant in one pass."""
    name, values = OURS[variant]
    base = TrainOptions(
        variant=variant, expansion=expansion, lr=LR, warmup=100, batch_size=BATCH, rows=BATCH * steps, device="cpu",
        order_seed=0, dead_after_rows=150 * BATCH, eval_every=0, checkpoint_every=0, overwrite=True,
        log_every=max(1, steps // 40),
    )  # fmt: skip
    members = {
        folder / f"{variant}-{value:g}-{seed}": replace(
            base,
            seed=seed,
            **{name: int(value) if name == "k" else value},  # type: ignore[arg-type]
        )
        for value in values
        for seed in seeds
    }
    train_together(members, store_path)
    store = open_store(store_path)
    found: list[dict[str, object]] = []
    for path, options in members.items():
        run = open_run(path)
        answer: dict[str, object] = {"setting": float(getattr(options, name)), "seed": options.seed}
        for split in ("train", "heldout"):
            numbers = evaluate(run.load_sae(), store.activations(), *store.split(split))
            answer[split] = {"l0": numbers.l0.mean, "ev": numbers.explained_variance}
        logged = [
            (record["step"], record["explained_variance"]) for record in run.metrics() if record["split"] == "train"
        ]
        before = np.mean([ev for step, ev in logged if 0.75 * steps <= step <= 0.8 * steps])
        after = np.mean([ev for step, ev in logged if step >= 0.95 * steps])
        answer["change"] = float(after / before - 1)
        found.append(answer)
    return found


def train_theirs(
    python: str, library: str, variant: str, folder: Path, seeds: list[int], d_sae: int, prefixes: list[int]
) -> tuple[list[dict[str, object]], str]:
    """Train the other library's settings in a process of its own; its answers, or why there are none."""
    command = [python, HERE / "quality" / "train_peer.py", library, variant, folder, "--d-sae", d_sae, "--lr", LR]
    command += ["--seeds", *seeds, "--settings", *PEERS[library][variant], "--prefixes", *prefixes]
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if run.returncode:
        return [], [line for line in run.stderr.splitlines() if line.strip()][-1]
    return [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")], ""


def frontier(answers: list[dict[str, object]], split: str) -> list[tuple[float, float, float]]:
    """Mean L0, mean and deviation of the explained variance over seeds, of each setting, ascending in L0."""
    points = []
    for setting in sorted({answer["setting"] for answer in answers}):  # type: ignore[type-var]
        chosen = [answer[split] for answer in answers if answer["setting"] == setting]
        l0, ev = ([numbers[field] for numbers in chosen] for field in ("l0", "ev"))  # type: ignore[index]
        points.append((float(np.mean(l0)), float(np.mean(ev)), float(np.std(ev))))
    return sorted(points)


def at(points: list[tuple[float, float, float]], l0: float) -> float:
    """Explained variance of a frontier at an L0, linear in its logarithm; NaN outside."""
    l0s, evs = np.log([p[0] for p in points]), [p[1] for p in points]
    return float(np.interp(np.log(l0), l0s, evs, left=np.nan, right=np.nan))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", nargs="+", default=list(OURS), choices=list(OURS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--expansion", type=float, default=8.0)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "thresher-bench-quality")
    parser.add_argument("--venvs", type=Path, help="folder of the peers' environments; by default WORK/venvs")
    parser.add_argument("--python", action="append", default=[], metavar="NAME=PATH", help="an environment's python")
    parser.add_argument("--json", type=Path, help="also write every answer here")
    parser.add_argument("--quick", action="store_true", help="TopK alone, few pictures and steps, no other library")
    a = parser.parse_args()
    if a.quick:
        a.variant, a.seeds, a.steps, a.expansion = ["topk"], [0], 20, 2.0
        a.work = Path(tempfile.mkdtemp(prefix="thresher-bench-quality-"))
    given = dict(pair.split("=", 1) for pair in a.python)
    a.work.mkdir(parents=True, exist_ok=True)
    store_path = prepare(a.work, a.steps, 600 if a.quick else None)
    d_in = open_store(store_path).activations().d_in
    d_sae = round(a.expansion * d_in)
    peers = {}
    for library, environment in (("SAELens", SAELENS), ("overcomplete", TRAINERS)):
        if not a.quick:
            found = (given[environment.name], "") if environment.name in given else None
            peers[library] = found or python_of(environment, a.venvs or a.work / "venvs", {})
    print(f"{a.steps:,} steps of {BATCH:,} rows, d_in {d_in}, {d_sae:,} features, seeds {a.seeds}; ", end="")
    print(f"{os.cpu_count()} cores, torch {torch.__version__}\n")
    print(
        "| variant | L0 | EV (train rows) | +- | EV (held out) | change % |",
        *(f" {name} at that L0 |" for name in peers),
        sep="",
    )
    print("| --- | --- | --- | --- | --- | --- |" + " --- |" * len(peers), flush=True)
    everything: dict[str, object] = {}
    for variant in a.variant:
        ours = train_ours(a.work, store_path, variant, a.seeds, a.steps, a.expansion)
        prefixes = TrainOptions(variant="matryoshka", expansion=a.expansion).prefixes(d_sae)
        frontiers, reasons = {}, {}
        for library, (python, reason) in peers.items():
            answers: list[dict[str, object]] = []
            if variant not in PEERS[library]:
                reason = "has none"
            elif python is not None:
                answers, reason = train_theirs(python, library, variant, a.work, a.seeds, d_sae, prefixes)
            everything[f"{library} {variant}"], reasons[library] = answers, reason
            frontiers[library] = frontier(answers, "train") if answers else []
        everything[f"ours {variant}"] = ours
        held_out = dict(zip([p[0] for p in frontier(ours, "train")], frontier(ours, "heldout"), strict=True))
        for l0, ev, deviation in frontier(ours, "train"):
            change = max(abs(r["change"]) for r in ours if np.isclose(r["train"]["l0"], l0, rtol=0.3))  # type: ignore[arg-type,index,type-var]
            theirs = [f"{at(points, l0):.4f}" if points else reasons[library] for library, points in frontiers.items()]
            cells = [
                variant,
                f"{l0:.1f}",
                f"{ev:.4f}",
                f"{deviation:.4f}",
                f"{held_out[l0][1]:.4f}",
                f"{100 * change:.2f}",
            ]
            print("| " + " | ".join([*cells, *theirs]) + " |", flush=True)
        if a.json:
            a.json.write_text(json.dumps(everything))
    for name, python in {environment: path for environment, path in given.items()}.items():
        print(f"\n- {name}: {versions(python, ('torch',))}")


if __name__ == "__main__":
    main()

"""How well each variant reconstructs at its sparsity, beside the same variant of SAELens and overcomplete.

    nice python tests/benchmarks/bench_quality.py [--variant topk ...] [--seeds 0 1 2] [--steps 3000] [--quick]

Rows are the embedded pictures' through the embedded tower, layer 4, the class token, each coordinate at mean 0 and
deviation 1. Every library trains on the same batches in the same order, as many features, with Adam and the same course
of the learning rate, from its own starting weights. Each is shown at its best of some rates, ours with and without
gradients scaled to the norm that SAELens's trainer always scales them to. For each library, variant and rate a
frontier: mean L0 and explained variance over seeds at each setting of its sparsity. Where the L0 of two libraries
differ, the other's explained variance is read off its frontiers at our L0, linear in log L0, and the best is shown: of
the training rows, in brackets of held-out rows at their own L0. `change` is how much our explained variance moved over
the last fifth of the steps, in per cent.

A whole run takes hours on a CPU: each SAE is noted as it is finished in WORK/runs.jsonl, and the same command goes on
with those that are not there. (Delete that file, or name another --work, to measure changed code.)
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

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
OTHERWISE: dict[str, dict[str, Any]] = {"relu": {"error": "mse", "decoder_norm": True}}
"""SAELens's loss of that name. Defaults are the post's: error over the norm of each row, decoder rows of norm 1."""
PEERS = {
    "SAELens": {
        "topk": KS,
        "batchtopk": KS,
        "matryoshka": KS,
        "relu": (0.4, 1.0, 2.0, 4.0),
        "gated": (0.4, 1.0, 2.0, 4.0, 8.0),
        "jumprelu": (0.1, 0.3, 1.0, 3.0),
    },
    "overcomplete": {
        "topk": KS,
        "batchtopk": KS,
        "relu": (1e-5, 2e-5, 5e-5, 1e-4, 1.5e-4),
        "jumprelu": (1e-5, 2e-5, 5e-5, 1e-4, 1.5e-4),
    },
}
"""Settings of the other libraries' own coefficients that span the same range of L0; in batches of 256, as overcomplete
sums its penalty over the batch."""
SPLITS = ("train", "heldout")
CLIPS = (0.0, 1.0)
"""Norms that ours are scaled down to, of a loss that is a sum over coordinates, as SAELens's is (ours is a mean)."""
DECAY = 0.8
"""Share of the steps, to the last, over which the learning rate falls: near the end few gains come of its fall."""


def prepare(folder: Path, batch: int, steps: int, limit: int | None) -> Path:
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
    loader = BatchLoader([array], batch_size=batch, seed=0, device=torch.device("cpu"))
    np.save(folder / "batches.npy", np.stack([loader.positions(step) for step in range(steps)]))
    return store_path


Answer = dict[str, Any]
"""One SAE: its setting and seed, `train` and `heldout` with `l0` and `ev`; of ours, `change`."""


class Record:
    """The SAEs that are trained, one a line of a file.

    Parameters
    ----------
    course
        What all of them share; those of another course are passed over.
    """

    def __init__(self, path: Path, course: dict[str, object]) -> None:
        self._path, self._course = path, course
        self._found: dict[tuple[str, str, float, int], Answer] = {}
        whole = ""
        for line in path.read_text().splitlines(keepends=True) if path.exists() else []:
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue  # cut short by a kill
            whole += line.rstrip("\n") + "\n"
            if entry["course"] == course:
                self._keep(entry["library"], entry["variant"], entry["answer"])
        if whole:
            path.write_text(whole)

    def _keep(self, library: str, variant: str, answer: Answer) -> None:
        self._found[library, variant, float(answer["setting"]), int(answer["seed"])] = answer

    def add(self, library: str, variant: str, answer: Answer) -> None:
        """Note one that is finished."""
        entry = {"course": self._course, "library": library, "variant": variant, "answer": answer}
        with open(self._path, "a") as file:
            file.write(json.dumps(entry) + "\n")
        self._keep(library, variant, answer)

    def missing(self, library: str, variant: str, setting: float, seeds: Sequence[int]) -> list[int]:
        """The seeds that a setting still needs."""
        return [seed for seed in seeds if (library, variant, setting, seed) not in self._found]

    def answers(self, library: str, variant: str, settings: Sequence[float], seeds: Sequence[int]) -> list[Answer]:
        """Those asked for that are finished."""
        places = [(library, variant, float(setting), seed) for setting in settings for seed in seeds]
        return [self._found[place] for place in places if place in self._found]


def train_ours(
    folder: Path, store_path: Path, variant: str, seeds: list[int], base: TrainOptions, record: Record
) -> list[Answer]:
    """Train what is missing of a variant at a rate, the seeds of each setting in one pass."""
    name, values = OURS[variant]
    base = replace(base, variant=variant, **OTHERWISE.get(variant, {}))  # type: ignore[arg-type]
    for value in values:
        members = {
            folder / f"{variant}-{value:g}-{seed}": replace(
                base,
                seed=seed,
                **{name: int(value) if name == "k" else value},  # type: ignore[arg-type]
            )
            for seed in record.missing("ours", variant, value, seeds)
        }
        if members:
            train_together(members, store_path)
        for path, options in members.items():
            record.add("ours", variant, {"setting": value, "seed": options.seed, **measured(path, store_path)})
    return record.answers("ours", variant, values, seeds)


def measured(path: Path, store_path: Path) -> Answer:
    """L0 and explained variance of a run on both splits, and how much the latter moved at the end."""
    run, store = open_run(path), open_store(store_path)
    answer: Answer = {}
    for split in ("train", "heldout"):
        numbers = evaluate(run.load_sae(), store.activations(), *store.split(split))
        answer[split] = {"l0": numbers.l0.mean, "ev": numbers.explained_variance}
    steps = run.options.steps
    logged = [(record["step"], record["explained_variance"]) for record in run.metrics() if record["split"] == "train"]
    before = np.mean([ev for step, ev in logged if 0.75 * steps <= step <= 0.8 * steps])
    after = np.mean([ev for step, ev in logged if step >= 0.95 * steps])
    answer["change"] = float(after / before - 1)
    return answer


def train_theirs(
    python: str,
    library: str,
    variant: str,
    folder: Path,
    seeds: list[int],
    d_sae: int,
    lr: float,
    prefixes: list[int],
    record: Record,
) -> tuple[list[Answer], str]:
    """Train what is missing of the other library in a process of its own; all its answers, and why any is not there."""
    settings, reason = PEERS[library][variant], ""
    wanted = [f"{setting}:{seed}" for setting in settings for seed in record.missing(library, variant, setting, seeds)]
    command = [python, HERE / "quality" / "train_peer.py", library, variant, folder, "--d-sae", d_sae, "--lr", lr]
    command += ["--decay", DECAY, "--wanted", *wanted, "--prefixes", *prefixes]
    if wanted:
        with (
            tempfile.TemporaryFile("w+") as errors,
            subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=errors, text=True) as run,
        ):
            assert run.stdout is not None
            for line in run.stdout:
                if line.startswith("{"):
                    record.add(library, variant, json.loads(line))
            if run.wait():
                errors.seek(0)
                reason = errors.read().strip().rpartition("\n")[2] or f"exit status {run.returncode}"
    return record.answers(library, variant, settings, seeds), reason


Frontier = list[tuple[float, float, float]]
"""Mean L0, mean and deviation of the explained variance over seeds, of each setting, ascending in L0."""


def frontier(answers: list[Answer], split: str) -> Frontier:
    """That of some SAEs on a split."""
    points = []
    for setting in sorted({answer["setting"] for answer in answers}):
        chosen = [answer[split] for answer in answers if answer["setting"] == setting]
        l0, ev = ([numbers[field] for numbers in chosen] for field in ("l0", "ev"))
        points.append((float(np.mean(l0)), float(np.mean(ev)), float(np.std(ev))))
    return sorted(points)


def best_at(frontiers: list[Frontier], l0: float) -> float:
    """The largest explained variance of frontiers at an L0, linear in its logarithm; NaN beyond 5 % outside of all."""
    found = [np.nan]
    for points in frontiers:
        l0s, evs = np.log([p[0] for p in points]), np.array([p[1] for p in points])
        if len(points) > 1 and l0s[0] - 0.05 <= np.log(l0) <= l0s[-1] + 0.05:
            left = int(np.clip(np.searchsorted(l0s, np.log(l0)) - 1, 0, len(points) - 2))
            slope = (evs[left + 1] - evs[left]) / (l0s[left + 1] - l0s[left])
            found.append(float(evs[left] + slope * (np.log(l0) - l0s[left])))
    return float(np.nanmax(found)) if not np.isnan(found).all() else np.nan


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", nargs="+", default=list(OURS), choices=list(OURS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--expansion", type=float, default=2.0)
    parser.add_argument("--lr", nargs="+", type=float, default=[1e-3, 3e-3, 1e-2], help="rates that are tried")
    parser.add_argument("--clip", nargs="+", type=float, default=CLIPS, help="norms that our gradients are scaled to")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "thresher-bench-quality")
    parser.add_argument("--venvs", type=Path, help="folder of the peers' environments; by default WORK/venvs")
    parser.add_argument("--python", action="append", default=[], metavar="NAME=PATH", help="an environment's python")
    parser.add_argument("--quick", action="store_true", help="TopK alone, few pictures and steps, no other library")
    a = parser.parse_args()
    if a.quick:
        a.variant, a.seeds, a.steps, a.expansion, a.lr, a.clip = ["topk"], [0], 20, 2.0, [1e-3], [0.0]
        a.work = Path(tempfile.mkdtemp(prefix="thresher-bench-quality-"))
    given = dict(pair.split("=", 1) for pair in a.python)
    a.work.mkdir(parents=True, exist_ok=True)
    store_path = prepare(a.work, a.batch, a.steps, 600 if a.quick else None)
    d_in = open_store(store_path).activations().d_in
    d_sae = round(a.expansion * d_in)
    peers = {}
    for library, environment in (("SAELens", SAELENS), ("overcomplete", TRAINERS)):
        if not a.quick:
            found = (given[environment.name], "") if environment.name in given else None
            peers[library] = found or python_of(environment, a.venvs or a.work / "venvs", {})
    print(f"{a.steps:,} steps of {a.batch:,} rows, d_in {d_in}, {d_sae:,} features, seeds {a.seeds}; ", end="")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}\n")
    print(
        "| variant | L0 | rate | clipped | EV (held out) | +- | change % |",
        *(f" {name} at that L0 |" for name in peers),
        sep="",
    )
    print("| --- | --- | --- | --- | --- | --- | --- |" + " --- |" * len(peers), flush=True)
    course = {"steps": a.steps, "d_in": d_in, "d_sae": d_sae, "batch": a.batch, "decay": DECAY}
    records = {lr: Record(a.work / "runs.jsonl", {**course, "lr": lr}) for lr in a.lr}
    tries = list(product(a.lr, a.clip))
    base = TrainOptions(
        expansion=a.expansion, warmup=100, batch_size=a.batch, rows=a.batch * a.steps, device="cpu", order_seed=0,
        dead_after_rows=150 * a.batch, eval_every=0, checkpoint_every=0, overwrite=True,
        log_every=max(1, a.steps // 200), decay=DECAY,
    )  # fmt: skip
    for variant in a.variant:
        ours = {}
        for lr, clip in tries:
            record = Record(a.work / "runs.jsonl", {**course, "lr": lr, "clip": clip})
            options = replace(base, lr=lr, clip_norm=clip / d_in)
            ours[lr, clip] = train_ours(a.work, store_path, variant, a.seeds, options, record)
        prefixes = TrainOptions(variant="matryoshka", expansion=a.expansion).prefixes(d_sae)
        frontiers: dict[str, list[dict[str, Frontier]]] = {}
        reasons = {}
        for library, (python, reason) in peers.items():
            frontiers[library] = []
            if variant not in PEERS[library]:
                reason = "has none"
            elif python is not None:
                for lr, record in records.items():
                    answers, reason = train_theirs(
                        python, library, variant, a.work, a.seeds, d_sae, lr, prefixes, record
                    )
                    if answers:
                        frontiers[library].append({split: frontier(answers, split) for split in SPLITS})
            reasons[library] = reason
        for setting in OURS[variant][1]:
            tried = {one: [answer for answer in ours[one] if answer["setting"] == setting] for one in tries}
            best_try = max(tries, key=lambda one: frontier(tried[one], "heldout")[0][1])
            points = {split: frontier(tried[best_try], split)[0] for split in SPLITS}
            cells = [variant, f"{points['train'][0]:.1f}", f"{best_try[0]:g}", "yes" if best_try[1] else "no"]
            cells += [f"{points['train'][1]:.4f} ({points['heldout'][1]:.4f})", f"{points['train'][2]:.4f}"]
            cells.append(f"{100 * max(abs(answer['change']) for answer in tried[best_try]):.2f}")
            for library, found in frontiers.items():
                best = (
                    {split: best_at([f[split] for f in found], points[split][0]) for split in SPLITS} if found else {}
                )
                cells.append(f"{best['train']:.4f} ({best['heldout']:.4f})" if best else reasons[library])
            print("| " + " | ".join(cells) + " |", flush=True)
    for name, python in {environment: path for environment, path in given.items()}.items():
        print(f"\n- {name}: {versions(python, ('torch',))}")


if __name__ == "__main__":
    main()

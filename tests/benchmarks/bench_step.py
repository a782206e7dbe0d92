"""One optimiser step of training, ours beside other libraries', each in its own environment and process.

    python tests/benchmarks/bench_step.py [--post FOLDER] [--size D_SAE,BATCH ...] [--l0 30 64] [--rounds 3] [--quick]

d_in 1,024. Every round runs each implementation once, in a new process, one after the other; the process times the
plain encoder matmul too, so that a busy machine and another build of torch weigh alike on both. Units are CPU seconds,
summed over threads, over those of that matmul (2 x batch x d_in x d_sae FLOP); figures are medians over rounds and
steps. Memory is the most that the process held above what it held after its imports. All start from the same weights
and batch, on which the given number of features fires a row; `ghost` has a tenth of its features dead; `dense` fires
half of them, as the first steps of a ReLU SAE do.

The post's code is no package: --post names a clone of github.com/HugoFry/mats_sae_training_for_ViTs.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE / "step")]

from step.implementations import IMPLEMENTATIONS, OURS, SAELENS, SAEV, TRAINERS  # noqa: E402
from store.environments import Environment, python_of, versions  # noqa: E402

SIZES = ((4096, 1024), (16384, 1024), (16384, 4096), (65536, 1024))
ENVIRONMENTS = (
    Environment(SAELENS, ("sae-lens",)),
    Environment(SAEV, ("saev",)),
    Environment(TRAINERS, ("dictionary-learning", "overcomplete", "eai-sparsify", "matplotlib", "scikit-learn")),
)
PACKAGES = {
    SAELENS: ("sae-lens", "torch"),
    SAEV: ("saev", "torch"),
    TRAINERS: ("dictionary-learning", "overcomplete", "eai-sparsify", "torch"),
    OURS: ("thresher", "torch"),
}
TIMEOUT_S = 900


@dataclass
class Timings:
    """What the processes of one implementation printed."""

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    units: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    reason: str = ""

    def add(self, answer: dict[str, object]) -> None:
        """Take in one process's answer."""
        matmul = statistics.median(cpu for cpu, _ in answer["matmul"])  # type: ignore[attr-defined]
        for cpu, wall in answer["steps"]:  # type: ignore[attr-defined]
            self.cpu.append(cpu)
            self.wall.append(wall)
            self.units.append(cpu / matmul)
        self.memory.append(int(answer["own_bytes"]))  # type: ignore[call-overload]


def run_one(python: str, name: str, size: tuple[int, int], d_in: int, l0: float, steps: int, post: str) -> Timings:
    """Run one implementation once."""
    d_sae, batch = size
    command = [python, HERE / "step" / "worker.py", name]
    command += ["--d-in", d_in, "--d-sae", d_sae, "--batch", batch, "--l0", l0, "--steps", steps]
    environment = {**os.environ, "THRESHER_POST": post, "OMP_WAIT_POLICY": "PASSIVE"}
    timings = Timings()
    try:
        run = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, timeout=TIMEOUT_S, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        timings.reason = f"no answer within {TIMEOUT_S} s"
        return timings
    if run.returncode:
        lines = [line for line in run.stderr.splitlines() if line.strip()]
        timings.reason = lines[-1] if lines else f"exit status {run.returncode}"
        return timings
    timings.add(json.loads(run.stdout.splitlines()[-1]))
    return timings


def table(timings: dict[str, Timings]) -> list[str]:
    """Markdown: a line an implementation, by family, each with its ratio to ours."""
    lines = [
        "| step | matmuls | times ours | CPU ms | wall ms | own MB | memory of ours |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    ours = {i.family: timings[n] for n, i in IMPLEMENTATIONS.items() if n in timings and n == f"ours {i.family}"}
    for name, found in timings.items():
        if not found.units:
            lines.append(f"| {name} | {found.reason} | | | | | |")
            continue
        mine = ours.get(IMPLEMENTATIONS[name].family)  # --only may leave it out
        units, memory = statistics.median(found.units), statistics.median(found.memory)
        ratios = ("", "")
        if mine is not None and mine.units:
            ratios = (f"{units / statistics.median(mine.units):.2f}", f"{memory / statistics.median(mine.memory):.2f}")
        cpu, wall = statistics.median(found.cpu) * 1e3, statistics.median(found.wall) * 1e3
        lines.append(
            f"| {name} | {units:.2f} | {ratios[0]} | {cpu:.0f} | {wall:.0f} | {memory / 1e6:.0f} | {ratios[1]} |"
        )
    return lines


def main() -> None:
    """Print a table for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small size, ours only, one round")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "thresher-bench-step")
    parser.add_argument("--venvs", type=Path, help="folder of the peers' environments; by default WORK/venvs")
    parser.add_argument("--python", action="append", default=[], metavar="NAME=PATH", help="an environment's python")
    parser.add_argument("--post", default="", metavar="FOLDER", help="clone of the post's training code")
    parser.add_argument("--size", nargs="+", default=[], metavar="D_SAE,BATCH")
    parser.add_argument("--d-in", type=int, default=1024)
    parser.add_argument("--l0", nargs="+", type=float, default=[64.0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="timed in each process, after one that warms up")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="implementations with one of the words")
    a = parser.parse_args()
    sizes = [tuple(map(int, size.split(","))) for size in a.size] or list(SIZES)
    if a.quick:
        sizes, a.rounds, a.steps, a.only, a.d_in, a.l0 = [(512, 64)], 1, 1, ["ours"], 64, [16.0]
    given = dict(pair.split("=", 1) for pair in a.python)
    names = [n for n in IMPLEMENTATIONS if not a.only or any(word in n for word in a.only)]
    wanted = {IMPLEMENTATIONS[n].environment for n in names}
    pythons: dict[str, str | None] = {OURS: given.get(OURS, sys.executable)}
    reasons: dict[str, str] = {}
    for environment in ENVIRONMENTS:
        if environment.name in wanted and environment.name not in given:
            found = python_of(environment, a.venvs or a.work / "venvs", {})
            pythons[environment.name], reasons[environment.name] = found
        elif environment.name in given:
            pythons[environment.name] = given[environment.name]
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; ", end="")
    print(f"d_in {a.d_in:,}, {a.rounds} rounds")
    for size in sizes:
        for l0 in a.l0:
            timings = {name: Timings() for name in names}
            for _ in range(a.rounds):
                for name in names:
                    environment = IMPLEMENTATIONS[name].environment
                    python = pythons.get(environment)
                    if name.startswith("post") and not a.post:
                        timings[name].reason = "its code is no package: name a clone by --post"
                    elif python is None:
                        timings[name].reason = reasons.get(environment, "no environment")
                    elif not timings[name].reason:
                        once = run_one(python, name, (size[0], size[1]), a.d_in, l0, a.steps, a.post)
                        for attribute in ("cpu", "wall", "units", "memory"):
                            getattr(timings[name], attribute).extend(getattr(once, attribute))
                        timings[name].reason = once.reason
            print(f"\n{size[0]:,} features, batch {size[1]:,}, L0 {l0:g}:\n")
            print("\n".join(table(timings)), flush=True)
    print("\nEnvironments:\n")
    for name, python in pythons.items():
        if python:
            print(f"- {name}: {versions(python, PACKAGES[name])}")


if __name__ == "__main__":
    main()

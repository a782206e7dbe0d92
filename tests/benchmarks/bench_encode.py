"""Encoding with statistics beside the bare matmul of the encoder and other libraries', each in a process of its own.

    python tests/benchmarks/bench_encode.py [--d-sae 16384 65536] [--l0 32 64] [--rounds 3] [--python saev=PATH]
                                            [--quick]

Rows of float16, d_in 1,024, in blocks of 4,096. The first tables time a pass over rows in memory: `share` is CPU
seconds (all threads) of the plain float32 product with the encoder, timed in turn with each pass in the same process,
over those of the pass; a busy machine weighs on both alike. Figures are medians over rounds. `MB` is the most that the
process held above its inputs and weights; a matmul's own tile is part of it. Every implementation makes counts, sums
and the 20 largest values of each feature; the last column says what else.

The last table times the commands on a store on disk, reading and writing included, for a number of rows and ten times
as many, in threads and in worker processes: time is to grow by ten and memory not at all. By default these are 2,048
and 20,480 rows, which takes less than five minutes on two cores; of so few, what does not depend on the rows (opening,
writing statistics) is a large part, so that the share grows with --stored-rows. "With details" adds samples, labels of
all firings and co-firing, which from a store takes a second pass. --only none leaves the first tables out.

saev's `inference` is in no release on PyPI: --python names an interpreter whose saev (of its repository) has it. The
file with the post's `get_feature_data` is not in the repository that --post of `bench_step.py` names: its algorithm is
written anew.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "encode"), str(HERE / "step")]

from encoders import IMPLEMENTATIONS, OURS, SAEV  # noqa: E402

TIMEOUT_S = 1800
STORED = (
    "encode and stats",
    "from store",
    "from store, 1 worker",
    "from store, 2 workers",
    "encode and stats, with details",
    "from store, with details",
)


def ask(python: str, script: str, *arguments: object) -> dict[str, Any] | str:
    """The answer of a script in a new process, or why there is none."""
    command = [python, HERE / "encode" / script, *arguments]
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    try:
        run = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, timeout=TIMEOUT_S, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {TIMEOUT_S} s"
    if run.returncode:
        lines = [line for line in run.stderr.splitlines() if line.strip()]
        return lines[-1] if lines else f"exit status {run.returncode}"
    return dict(json.loads(run.stdout.splitlines()[-1]))


def in_memory(names: list[str], pythons: dict[str, str], a: argparse.Namespace, d_sae: int, l0: float) -> list[str]:
    """Markdown: a line an implementation."""
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    reasons: dict[str, str] = {}
    for _ in range(a.rounds):
        for name in names:
            python = pythons.get(IMPLEMENTATIONS[name].environment)
            if python is None:
                reasons[name] = "its release has no `inference`: name an interpreter that has by --python saev=PATH"
                continue
            if name in reasons:
                continue
            sizes = ("--d-in", a.d_in, "--d-sae", d_sae, "--rows", a.rows, "--block", a.block, "--l0", l0)
            found = ask(python, "time_pass.py", name, *sizes, "--passes", 1)
            if isinstance(found, str):
                if a.strict:
                    raise SystemExit(f"{name}: {found}")
                reasons[name] = found
            else:
                answers[name].append(found)
    lines = [
        "| pass | share | CPU s | wall s | matmul, CPU s | MB | also gives |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in names:
        if not answers[name]:
            lines.append(f"| {name} | {reasons[name]} | | | | | |")
            continue
        pairs = [pair for answer in answers[name] for pair in answer["passes"]]
        share = statistics.median(bare[0] / own[0] for bare, own in pairs)
        cpu, wall = (statistics.median(own[i] for _, own in pairs) for i in (0, 1))
        bare_cpu = statistics.median(bare[0] for bare, _ in pairs)
        memory = statistics.median(answer["own_bytes"] for answer in answers[name])
        gives = IMPLEMENTATIONS[name].gives
        lines.append(
            f"| {name} | {share:.2f} | {cpu:.2f} | {wall:.2f} | {bare_cpu:.2f} | {memory / 1e6:.0f} | {gives} |"
        )
    return lines


def from_store(a: argparse.Namespace, d_sae: int, l0: float) -> Iterator[str]:
    """Markdown: a line a command and number of rows, as they are done."""
    yield "| on a store | rows | share | CPU s | wall s | rows/s of wall | MB |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for what in STORED[:2] if a.quick else STORED:
        for rows in (a.stored_rows,) if a.quick else (a.stored_rows, 10 * a.stored_rows):
            found = ask(sys.executable, "from_store.py", what, "--d-sae", d_sae, "--rows", rows, "--l0", l0)
            if isinstance(found, str):
                if a.strict:
                    raise SystemExit(f"{what}: {found}")
                yield f"| {what} | {rows:,} | {found} | | | | |"
                continue
            seconds = found["seconds"]
            bare = seconds.pop("matmul")
            cpu, wall = (sum(each[i] for each in seconds.values()) for i in (0, 1))
            yield (
                f"| {what} | {rows:,} | {bare[0] / cpu:.2f} | {cpu:.1f} | {wall:.1f} | {rows / wall:,.0f} "
                f"| {found['own_bytes'] / 1e6:.0f} |"
            )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, ours only, one round")
    parser.add_argument("--d-in", type=int, default=1024)
    parser.add_argument("--d-sae", nargs="+", type=int, default=[16_384, 65_536])
    parser.add_argument("--l0", nargs="+", type=float, default=[32.0, 64.0])
    parser.add_argument("--rows", type=int, default=8192, help="of a pass in memory")
    parser.add_argument("--block", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--stored-d-sae", type=int, default=16_384, help="features of the commands on a store")
    parser.add_argument(
        "--stored-rows", type=int, default=2048, help="and rows, and ten times as many; 0 leaves them out"
    )
    parser.add_argument("--strict", action="store_true", help="end with an error where one of them cannot run")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="passes with one of the words")
    parser.add_argument("--python", action="append", default=[], metavar="NAME=PATH", help="an environment's python")
    a = parser.parse_args()
    if a.quick:
        a.d_in, a.d_sae, a.l0, a.rows, a.block, a.rounds, a.only = 64, [512], [16.0], 512, 256, 1, ["ours"]
        a.stored_d_sae, a.stored_rows, a.strict = 512, 512, True
    pythons = {OURS: sys.executable, **dict(pair.split("=", 1) for pair in a.python)}
    names = [name for name in IMPLEMENTATIONS if not a.only or any(word in name for word in a.only)]
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {a.rounds} rounds of", end=" ")
    print(f"{a.rows:,} rows of {a.d_in:,} in blocks of {a.block:,}; {SAEV}: {pythons.get(SAEV, 'not given')}")
    for d_sae in a.d_sae if names else ():
        for l0 in a.l0:
            print(f"\n{d_sae:,} features, L0 {l0:g}:\n")
            print("\n".join(in_memory(names, pythons, a, d_sae, l0)), flush=True)
    if a.stored_rows:
        print(f"\n{a.stored_d_sae:,} features, L0 {a.l0[-1]:g}, load {os.getloadavg()[0]:.1f}:\n")
        for line in from_store(a, a.stored_d_sae, a.l0[-1]):
            print(line, flush=True)


if __name__ == "__main__":
    main()

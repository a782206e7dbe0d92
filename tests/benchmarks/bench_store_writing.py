"""Writing a store against plain files, zarr-python and tensorstore: `python tests/benchmarks/bench_store_writing.py`.

Every writer but the floor gets float32 rows in memory, as a tower gives them, and has them on the disk as float16
chunks of 1,024 rows, with their CRC-32C, synced. The floor writes just these files from float16 rows. Each runs in a
process and, for other libraries, an environment of its own, in turn, some rounds; figures are medians, ratios are
medians of the ratios within a round.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from store.bench import note
from store.data import D_IN
from store.environments import Environment, python_of
from store.process import ReaderFailed, ReaderProcess
from store.readers import OURS, TENSORSTORE, ZARR

FLOOR = "floor: plain files, each synced"


@dataclass(frozen=True)
class Writer:
    """One row of the table."""

    name: str
    environment: Environment
    script: str
    slab: int = 1024
    options: dict[str, Any] = field(default_factory=dict)


WRITERS = (
    Writer(FLOOR, OURS, "write_plain.py", options={"cast": False}),
    Writer("the same, cast by numpy", OURS, "write_plain.py"),
    Writer("the same, renamed, folder synced", OURS, "write_plain.py", options={"cast": False, "rename": True}),
    Writer("Thresher", OURS, "write_thresher.py"),
    Writer("Thresher, each window before the next", OURS, "write_thresher.py", options={"together": False}),
    Writer("Thresher, 16 tokens an image", OURS, "write_thresher.py", 16 * 1024, {"tokens": 16}),
    Writer("floor, files of 8,192 rows", OURS, "write_plain.py", 8192, {"cast": False}),
    Writer("Thresher, chunks of 8,192 rows", OURS, "write_thresher.py", 8192),
    Writer("zarr-python", ZARR, "write_zarr.py"),
    Writer("tensorstore", TENSORSTORE, "write_tensorstore.py"),
)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rows, one round")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "thresher-bench-store")
    parser.add_argument("--venvs", type=Path, help="folder of the peers' environments; by default WORK/venvs")
    parser.add_argument("--rows", type=int, default=131_072)
    parser.add_argument("--rounds", type=int, default=3)
    a = parser.parse_args()
    if a.quick:
        a.rows, a.rounds = 16_384, 1
    a.work.mkdir(parents=True, exist_ok=True)
    pythons, failures = {OURS.name: sys.executable}, {}
    answers: dict[str, list[dict[str, Any]]] = {writer.name: [] for writer in WRITERS}
    for number in range(a.rounds):
        for writer in WRITERS:
            try:
                answer = _write(writer, pythons, a.venvs or a.work / "venvs", a.work / "written", a.rows)
            except ReaderFailed as error:
                failures[writer.name] = str(error)
            else:
                answers[writer.name].append(answer)
                note(f"{number}: {writer.name}: {answer['writing_s']:.2f} s")
    gb = a.rows * D_IN * 2e-9
    print(f"{gb:.2f} GB of float16, {a.rounds} rounds, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
    print("| writer | GB/s | min to max | of the floor | CPU s/GB | own MB above the imports |")
    print("| --- | --- | --- | --- | --- | --- |")
    for writer in WRITERS:
        found = answers[writer.name]
        if not found:
            print(f"| {writer.name} | {failures[writer.name]} | | | | |")
            continue
        rates = [gb / answer["writing_s"] for answer in found]
        ratios = [floor["writing_s"] / answer["writing_s"] for floor, answer in zip(answers[FLOOR], found, strict=True)]
        print(
            f"| {writer.name} | {statistics.median(rates):.2f} | {min(rates):.2f} to {max(rates):.2f} "
            f"| {statistics.median(ratios):.2f} | {statistics.median(answer['cpu_s'] for answer in found) / gb:.2f} "
            f"| {max(answer['own'] for answer in found) / 1e6:.0f} |"
        )


def _write(writer: Writer, pythons: dict[str, str], venvs: Path, target: Path, rows: int) -> dict[str, Any]:
    name = writer.environment.name
    if name not in pythons:
        python, reason = python_of(writer.environment, venvs, {})
        if python is None:
            raise ReaderFailed(reason)
        pythons[name] = python
    shutil.rmtree(target, ignore_errors=True)
    job: dict[str, Any] = {"data": str(target), "source_rows": rows, "rows": rows, "rows_per_pass": rows, "batch": 1}
    job |= {"threads": 1, "options": writer.options | {"slab": writer.slab}}
    os.sync()  # what another writer or process left to be written is not this one's
    try:
        with ReaderProcess(pythons[name], writer.script, job) as process:
            return process.ask("make") | process.peak_above_imports
    finally:
        shutil.rmtree(target, ignore_errors=True)


if __name__ == "__main__":
    main()

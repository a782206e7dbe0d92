"""A store of the post's own size, end to end: written, verified, read."""

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from .bench import note, rate_of
from .process import ReaderProcess, drop_caches, read_through
from .readers import BATCH, D_IN, THREADS

ROWS = 2_621_440
"""The training rows of the post: 2,560 steps of 1,024 rows."""


def post_size(work: Path, rows: int | None = None) -> None:
    """Print a table of each stage: seconds, GB/s, peak memory above the imports."""
    rows = rows or ROWS
    work.mkdir(parents=True, exist_ok=True)
    store = work / "post.zarr"
    gb = rows * D_IN * 2e-9
    stages: list[tuple[str, float, dict[str, int] | None]] = []

    def started(script: str) -> ReaderProcess:
        job: dict[str, Any] = {"data": str(store), "source_rows": rows, "rows": rows, "rows_per_pass": rows}
        job |= {"batch": BATCH, "threads": THREADS, "options": {"row_order": "random"}}
        return ReaderProcess(sys.executable, script, job)

    try:
        note(f"writing {store}")
        with started("make_thresher.py") as process:
            made = process.ask("make")
            stages.append(("write, each chunk synced", made["writing_s"], process.peak_above_imports))
        note("verifying")
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "thresher.cli", "verify", str(store)], check=True, stdout=sys.stderr)
        stages.append(("`thresher verify`, a process of its own", time.perf_counter() - began, None))
        note("reading")
        read_through(store)
        with started("read_thresher.py") as process:
            opened = process.ask("open")
            stages.append(("open", opened["wall_s"], process.peak_above_imports))
            for stage, command in (("first shuffled pass, warm", "pass 0"), ("second, warm", "pass 1")):
                read = process.ask(command)
                stages.append((stage, gb / rate_of(read), process.peak_above_imports))
            check = process.ask("check 2")
        if drop_caches():
            with started("read_thresher.py") as process:
                process.ask("open")
                read = process.ask("pass 0")
                stages.append(("first shuffled pass, cold", gb / rate_of(read), process.peak_above_imports))
        else:
            note("cold: not permitted")
    finally:
        shutil.rmtree(store, ignore_errors=True)
    print(f"{rows:,} rows of {D_IN:,} float16, {gb:.2f} GB, batches of {BATCH:,}; ", end="")
    print(f"chi2/df of labels {check['chi2']:.3f} over {check['batches']} batches\n")
    print("| stage | seconds | GB/s | own MB | resident MB |\n| --- | --- | --- | --- | --- |")
    for stage, seconds, peak in stages:
        rate = "" if stage == "open" else f"{gb / seconds:.2f}"
        memory = " | ".join(f"{peak[name] / 1e6:.0f}" if peak else "" for name in ("own", "resident"))
        print(f"| {stage} | {seconds:.2f} | {rate} | {memory} |")

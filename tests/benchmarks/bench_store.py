"""Reading a store against the disk's floor and against other libraries, each in its own environment and process.

    python tests/benchmarks/bench_store.py [--quick] [--work FOLDER] [--only WORD ...] [--rounds 3] [--cold-rounds 2]
    python tests/benchmarks/bench_store.py --post-size

1,048,576 rows of 1,024 float16 (2.1 GB) that were sorted by class, read in batches of 4,096 rows. Every round runs each
reader once, in a new process, one after the other, so that a machine's moods fall on all; figures are medians over
rounds, ratios are medians of the ratios within a round.

warm: the files were read into the page cache just before, and the process has read one pass already (first pass: our
reader verifies each chunk on its first use in a process). cold: the page cache was dropped before the process opened
its data. GB count two bytes a value whatever a reader gives. Memory is the largest that was seen of the process and
its workers, above that after its imports: its own pages, and with them those of files that it has mapped. chi2/df is
that of the labels in a batch against a draw without replacement (1), the mean over 100 batches, from the rows as
delivered; of each batch some rows are compared with the source's, and rows that come twice in these batches counted.
"""

import argparse
import json
import os
import platform
import tempfile
from pathlib import Path

from store.bench import Bench
from store.data import D_IN
from store.environments import versions
from store.post_size import post_size
from store.readers import BATCH, CONFIGS, FLOORS, ROWS, SHOWN_PACKAGES
from store.tables import table

QUICK_ROWS = 65_536


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small store, one round, nothing cold")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "thresher-bench-store")
    parser.add_argument("--venvs", type=Path, help="folder of the peers' environments; by default WORK/venvs")
    parser.add_argument("--python", action="append", default=[], metavar="NAME=PATH", help="python3.12=/path/to/it")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="readers whose name has one of the words")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cold-rounds", type=int, default=2)
    parser.add_argument("--keep", action="store_true", help="keep the data for another run")
    parser.add_argument("--json", type=Path, help="also write every answer here")
    parser.add_argument("--post-size", action="store_true", help="write and read a store of 2,621,440 rows instead")
    a = parser.parse_args()
    if a.quick:
        a.rows, a.rounds, a.cold_rounds = QUICK_ROWS, 1, 0
    if a.post_size:
        post_size(a.work, a.rows if a.quick else None)
        return
    configs = [c for c in CONFIGS if not a.only or c.name in FLOORS.values() or any(word in c.name for word in a.only)]
    interpreters = dict(pair.split("=", 1) for pair in a.python)
    bench = Bench(a.work, a.venvs or a.work / "venvs", interpreters, a.rows)
    try:
        bench.prepare(configs)
        for number in range(a.rounds):
            bench.warm_round(configs, number)
        permitted = all(bench.cold_round(configs, number) for number in range(a.cold_rounds))
    finally:
        if not a.keep:
            bench.clear()
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {a.rows:,} rows of {D_IN:,}")
    print(f"float16, batches of {BATCH:,}; rounds: {a.rounds} warm, ", end="")
    print(f"{a.cold_rounds} cold" if permitted else "cold: not permitted")
    for shuffled, title in ((True, "Shuffled"), (False, "From end to end")):
        print(f"\n{title}:\n")
        print("\n".join(table(bench, configs, shuffled)))
    print("\nEnvironments:\n")
    for name, python in bench.pythons.items():
        print(f"- {name}: {versions(python, SHOWN_PACKAGES[name])}")
    if a.json:
        a.json.write_text(json.dumps({"passes": bench.passes, "checks": bench.checks, "failures": bench.failures}))


if __name__ == "__main__":
    main()

"""Each benchmark runs, on little: none of them is left behind by a change of what it measures."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
WITH_OTHERS = {"bench_store_writing"}  # needs their environments; the benchmark of reading is run below with ours alone


def run(name, *options):
    done = subprocess.run(
        [sys.executable, BENCHMARKS / f"{name}.py", "--quick", *map(str, options)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.soak
@pytest.mark.parametrize(
    "name", sorted({path.stem for path in BENCHMARKS.glob("bench_*.py")} - WITH_OTHERS - {"bench_store"})
)
def test_a_benchmark_prints_its_table(name):
    table = run(name)
    assert "load " in table or "rounds" in table
    assert len(table.splitlines()) >= 3
    assert "nan" not in table


def test_the_benchmark_of_reading_tells_mixed_batches_from_unmixed_ones(tmp_path):
    table = run("bench_store", "--work", tmp_path, "--json", tmp_path / "all.json", "--only", "Thresher", "control")
    assert "of the floor" in table
    checks = json.loads((tmp_path / "all.json").read_text())["checks"]
    mixing = {name: check["chi2"] for name, check in checks.items() if "chi2" in check}
    assert mixing["Thresher"] <= 1.1
    assert mixing["Thresher, store in source order"] <= 1.2
    assert mixing["control: the same, mixing off"] > 2

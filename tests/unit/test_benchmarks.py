"""Each benchmark runs, on little: none of them is left behind by a change of what it measures."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
# need their environments; the benchmark of reading is run below with ours alone
WITH_OTHERS = {"bench_store_writing", "bench_explorer_beside"}


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


def test_the_benchmark_of_quality_goes_on_with_what_is_not_trained_yet(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))  # it adds to it
    spec = importlib.util.spec_from_file_location("bench_quality", BENCHMARKS / "bench_quality.py")
    assert spec is not None
    assert spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    path, course = tmp_path / "runs.jsonl", {"steps": 20}
    first = {"setting": 8.0, "seed": 0, "train": {"l0": 8.0, "ev": 0.5}}
    bench.Record(path, course).add("ours", "topk", first)
    with open(path, "a") as file:
        file.write('{"course": {"steps": 20}, "libr')  # killed while it wrote
    again = bench.Record(path, course)
    assert again.missing("ours", "topk", 8.0, [0, 1]) == [1]
    assert again.missing("SAELens", "topk", 8.0, [0, 1]) == again.missing("ours", "topk", 16.0, [0, 1]) == [0, 1]
    again.add("ours", "topk", {**first, "seed": 1})
    assert [each["seed"] for each in bench.Record(path, course).answers("ours", "topk", [8, 16], [0, 1])] == [0, 1]
    assert bench.Record(path, {"steps": 30}).missing("ours", "topk", 8.0, [0]) == [0]
    assert bench.Record(path, course).missing("ours", "topk", 8.0, [0]) == []

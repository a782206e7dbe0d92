"""Training under torchrun: what one process trains, whatever is refused, stopped or killed on the way."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from thresher.store.format import Site
from trained_alike import SETTINGS

SHARED = Path(__file__).parents[1] / "shared"
WORKER = SHARED / "train_in_ranks.py"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SHARED)}
TRAIN = ["--layer", "1", "--expansion", "4", "--batch-size", "50", "--device", "cpu", "--log-every", "1"]


@pytest.fixture
def store(make_store) -> Path:
    rng = np.random.default_rng(0)
    codes = rng.exponential(2.0, (700, 40)) * (rng.random((700, 40)) < 0.06)
    rows = codes @ rng.standard_normal((40, 24)) / 5 + 0.02 * rng.standard_normal((700, 24)) + rng.standard_normal(24)
    return make_store(
        700, 24, rows=rows, dtype="float32", invalid=(13,), rows_per_chunk=100, thumbnails=False,
        sites=(Site(1), Site(2)),
    ).path  # fmt: skip


def start(n: int, log: Path, *arguments: object) -> subprocess.Popen:
    """A program, or a module named by -m, in so many processes; one without torchrun."""
    command = [sys.executable] if n == 1 else [*TORCHRUN, str(n)]
    with open(log, "a") as file:
        return subprocess.Popen([*command, *map(str, arguments)], env=ENVIRONMENT, stdout=file, stderr=file)


def run_worker(n: int, store: Path, out: Path, dtype: str, steps: int, *names: str) -> None:
    out.mkdir(exist_ok=True)
    log = out / "log"
    assert start(n, log, WORKER, store, out, dtype, steps, *names).wait(timeout=300) == 0, log.read_text()


def require_alike(one: Path, several: Path, n: int, names, limit: float = 1e-8) -> None:
    """The worker's states have the same bits in all processes, and are those of one; for the limit see test_ranks."""
    for name in names:
        digests = [(several / f"{name}.{rank}.digest").read_text() for rank in range(n)]
        assert len(set(digests)) == 1, name
        alone, together = load_file(one / f"{name}.state"), load_file(several / f"{name}.state")
        for key, a in alone.items():
            b = together[key]
            if a.dtype == torch.int64:
                assert torch.equal(a, b), (name, key)
            else:
                bound = limit if a.dtype == torch.float64 else 1e-6 * float(a.abs().max())
                assert float((a - b).abs().max()) < bound, (name, key)
        logged = [
            [json.loads(line) for line in (p / name / "metrics.jsonl").read_text().splitlines()] for p in (one, several)
        ]
        for a, b in zip(*logged, strict=True):
            assert (a["step"], a.get("n_dead")) == (b["step"], b.get("n_dead"))
            assert a["l0"] == pytest.approx(b["l0"], rel=1e-12)


def errors(log: Path) -> list[str]:
    return [line for line in log.read_text().splitlines() if line.startswith("Error: ")]


def of_rank(torchrun: subprocess.Popen, rank: int) -> int:
    """The process that torchrun started as this rank."""
    for child in Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split():
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return int(child)
    raise AssertionError(f"torchrun has no rank {rank}")


def wait_for_checkpoint(process: subprocess.Popen, folder: Path, log: Path) -> None:
    deadline = time.monotonic() + 120
    while not list(folder.glob("step-*")) and time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        time.sleep(0.01)


def test_two_processes_over_gloo_train_what_one_does(store, tmp_path):
    names = ("relu with ghost gradients", "batchtopk with AuxK")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    where = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # as torchrun sets it, and sooner
    running = []
    for folder, environment in (("one", {}), ("two", {**where, "RANK": "0"}), ("two", {**where, "RANK": "1"})):
        command = [sys.executable, WORKER, store, tmp_path / folder, "float64", 24, *names]
        running.append(subprocess.Popen(list(map(str, command)), env=ENVIRONMENT | environment))
    assert [process.wait(timeout=120) for process in running] == [0, 0, 0]
    require_alike(tmp_path / "one", tmp_path / "two", 2, names)


@pytest.mark.faults
@pytest.mark.parametrize("n", [2, 3])
def test_every_variant_and_remedy_is_trained_as_by_one_process(store, tmp_path, n):
    run_worker(1, store, tmp_path / "one", "float64", 24, *SETTINGS)
    run_worker(n, store, tmp_path / "several", "float64", 24, *SETTINGS)
    require_alike(tmp_path / "one", tmp_path / "several", n, SETTINGS)


@pytest.mark.faults
def test_a_sweep_of_two_in_float32_differs_by_rounding_only(store, tmp_path):
    options = [*TRAIN, "--variant", "topk,relu", "--k", 4, "--l1", 0.1, "--rows", 1000, "--warmup", 4]
    options += ["--dead-after-rows", 150]
    for name, n, more in (("one", 1, ()), ("parts", 1, ("--micro-batch-size", 17)), ("three", 3, ())):
        log = tmp_path / f"{name}.log"
        made = start(n, log, "-m", "thresher", "train", store, tmp_path / name, *options, *more)
        assert made.wait(timeout=200) == 0, log.read_text()
    weights = {p.parent: load_file(p) for p in sorted(tmp_path.glob("*/*/sae.safetensors"))}
    assert len(weights) == 6
    for one, tensors in weights.items():
        if one.parent.name != "one":
            continue
        for name, exact in tensors.items():
            # What another order of additions does to this very run is the measure; a tie decided otherwise would be
            # thousands of times as much.
            rounding = float((weights[tmp_path / "parts" / one.name][name] - exact).norm())
            several = float((weights[tmp_path / "three" / one.name][name] - exact).norm())
            assert rounding < 1e-4 * float(exact.norm()) + 1e-12
            assert several <= 4 * rounding + 1e-6 * float(exact.norm()), (one.name, name)


@pytest.mark.faults
@pytest.mark.parametrize("again", [1, 3])
def test_sigterm_stops_all_processes_after_one_step_and_any_number_goes_on(store, tmp_path, again):
    name = "gated with resampling"
    run_worker(1, store, tmp_path / "one", "float64", 400, name)
    out = tmp_path / "several"
    out.mkdir()
    process = start(2, out / "log", WORKER, store, out, "float64", 400, name)
    wait_for_checkpoint(process, out / name / "checkpoint", out / "log")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 1
    assert "checkpoint written: go on with the same command and --resume" in (out / "log").read_text()
    (checkpoint,) = (out / name / "checkpoint").iterdir()
    assert f"stopped by SIGTERM after step {int(checkpoint.stem[5:])} of 400" in (out / "log").read_text()
    run_worker(again, store, out, "float64", 400, name)
    require_alike(tmp_path / "one", out, again, [name], limit=1e-6)


@pytest.mark.faults
@pytest.mark.parametrize("killed", [0, 1, 2])
def test_a_process_killed_amid_three_ends_the_others_and_the_run_goes_on(store, tmp_path, killed):
    name = "topk with AuxK"
    run_worker(1, store, tmp_path / "one", "float64", 300, name)
    out = tmp_path / "several"
    out.mkdir()
    process = start(3, out / "log", WORKER, store, out, "float64", 300, name)
    wait_for_checkpoint(process, out / name / "checkpoint", out / "log")
    os.kill(of_rank(process, killed), signal.SIGKILL)
    assert process.wait(timeout=60) == 1
    assert "Signal 9 (SIGKILL)" in (out / "log").read_text()
    assert not (out / name / "sae.safetensors").exists()
    run_worker(2, store, out, "float64", 300, name)
    require_alike(tmp_path / "one", out, 2, [name], limit=1e-6)


@pytest.mark.faults
def test_what_is_refused_is_told_once_and_ends_all_processes(store, tmp_path):
    def refused(*arguments: object) -> str:
        log = tmp_path / "log"
        log.unlink(missing_ok=True)
        assert start(3, log, "-m", "thresher", "train", *arguments).wait(timeout=60) == 1
        assert len(errors(log)) == 1, log.read_text()
        (line,) = errors(log)
        assert "in <module>\n  File" not in log.read_text().split("Error: ")[0]  # no traceback of ours before it
        return line

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("precious")
    assert "exists and is not a run directory" in refused(store, tmp_path / "mine", *TRAIN, "--rows", 500)
    assert "--k 4000 exceeds the 96 features" in refused(store, tmp_path / "run", *TRAIN, "--k", 4000)
    assert "none.zarr" in refused(tmp_path / "none.zarr", tmp_path / "run", *TRAIN)
    assert "--device cuda" in refused(store, tmp_path / "run", "--layer", 1, "--device", "cuda:99")
    assert not (tmp_path / "run").exists()
    diverged = refused(store, tmp_path / "run", *TRAIN, "--lr", 1e30, "--warmup", 0, "--rows", 5000)
    assert "is not finite" in diverged
    assert "There is no checkpoint before it" in diverged


@pytest.mark.faults
def test_one_member_of_a_sweep_that_diverges_stops_alone(store, tmp_path):
    log = tmp_path / "log"
    options = [*TRAIN, "--lr", "1e30,1e-3", "--warmup", 0, "--rows", 5000, "--k", 4]
    assert start(2, log, "-m", "thresher", "train", store, tmp_path / "sweep", *options).wait(timeout=100) == 1
    finished = [p.parent.name for p in (tmp_path / "sweep").glob("*/sae.safetensors")]
    assert len(finished) == 1, log.read_text()
    assert "0.001" in finished[0]
    assert "is not finite" in log.read_text()

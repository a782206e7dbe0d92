"""Ctrl-C and SIGTERM at each stage: one line, no process left behind, and the same command finishes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.faults

THRESHER = Path(sys.executable).with_name("thresher")
HARVEST = ["harvest", "quickstart", "s.zarr", "--model", "quickstart", "--layer", "1", "--limit", "200"]
HARVEST += ["--rows-per-chunk", "16", "--workers", "1", "--device", "cpu"]
TRAIN = ["train", "s.zarr", "run", "--expansion", "2", "--k", "8", "--rows", "20000", "--batch-size", "200"]
TRAIN += ["--warmup", "10", "--device", "cpu"]
ENCODE, STATS = ["encode", "run", "--device", "cpu"], ["stats", "run"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def run(arguments, folder):
    done = subprocess.run(
        [THRESHER, *arguments], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stderr
    return time.monotonic()


def stopped(arguments, folder, number, after_s):
    """Run a command, send it a signal as a terminal would (SIGINT to every process); what it said."""
    process = subprocess.Popen(
        [THRESHER, *arguments],
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    time.sleep(after_s)
    if process.poll() is None:
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    _, error = process.communicate(timeout=60)
    return process, error


def processes_of(session):
    return subprocess.run(["pgrep", "-g", str(session)], capture_output=True, text=True).stdout.split()


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("signals")
    for arguments in (HARVEST, TRAIN, ENCODE):
        run(arguments, folder)
    return folder


@pytest.mark.parametrize("stage", ["harvest", "train", "encode", "stats", "stats in two processes"])
def test_a_signal_at_any_moment_ends_in_one_line_and_the_same_command_finishes(chain, tmp_path, stage):
    arguments = {
        "harvest": HARVEST,
        "train": TRAIN,
        "encode": ENCODE,
        "stats": STATS,
        "stats in two processes": [*STATS, "--workers", "2"],
    }[stage]
    for name in ("s.zarr", "run"):
        if not (stage == "harvest" or (stage == "train" and name == "run")):
            subprocess.run(["cp", "-r", chain / name, tmp_path / name], check=True)
    if stage == "encode":
        subprocess.run(["rm", "-r", tmp_path / "run/features.zarr"], check=True)
    began = time.monotonic()
    subprocess.run(["cp", "-r", tmp_path, tmp_path.with_name("unbroken")], check=True)
    whole_s = run(arguments, tmp_path.with_name("unbroken")) - began
    subprocess.run(["rm", "-r", tmp_path.with_name("unbroken")], check=True)

    n_stopped, is_done = 0, False
    for i in range(6):
        # past the first second, in which Python itself loads the command
        moment = 1 + max(0.0, whole_s - 1) * i / 6
        number = (signal.SIGINT, signal.SIGTERM)[i % 2]
        process, error = stopped(arguments, tmp_path, number, moment)
        if process.returncode in (0, -number):  # it was done, and Python on its way out
            is_done = True
            break
        n_stopped += 1
        assert process.returncode == 1, error
        assert "Traceback" not in error
        last = error.strip().splitlines()[-1]
        assert last.startswith("Error: ")
        assert "stopped" in last or "already holds a run" in last
        deadline = time.monotonic() + 10
        while processes_of(process.pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not processes_of(process.pid)
        if stage == "train" and (tmp_path / "run/config.json").exists():
            arguments = ["train", "s.zarr", "run", "--resume", "--device", "cpu"]
        kept = [".features.zarr.tmp"] if "are kept: give the same command again" in last else []
        assert [path.name for path in tmp_path.glob("run/.*")] == kept, error
    assert n_stopped >= 2
    if not is_done:
        run(arguments, tmp_path)
    assert not list(tmp_path.glob("run/.*"))
    made = {"harvest": "s.zarr/zarr.json", "train": "run/sae.safetensors", "encode": "run/features.zarr/zarr.json"}
    assert (tmp_path / made.get(stage, "run/stats.json")).exists()

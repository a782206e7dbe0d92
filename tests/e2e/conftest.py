"""The real commands in subprocesses, on the embedded pictures and model."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from thresher.cli import main

THRESHER = Path(sys.executable).with_name("thresher")
HARVEST = ["harvest", "quickstart", "--model", "quickstart", "--layer", "4", "--limit", "600", "--rows-per-chunk", "64"]
# Compressed, so that the store is read as one in a bucket is, chunk by chunk, and both train alike. `test_harvest.py`
# has stores without a codec.
HARVEST += ["--codec", "zstd", "--device", "cpu"]
TRAIN = ["--expansion", "4", "--k", "8", "--rows", "20000", "--batch-size", "200", "--warmup", "10", "--lr", "1e-3"]
TRAIN += ["--device", "cpu"]


def run_thresher(*arguments, status=0, cwd=None, timeout=300, environment=None):
    """Run a command; its stdout and stderr. A traceback is never what a user should see."""
    done = subprocess.run(
        [THRESHER, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=cwd,
        env={**os.environ, **(environment or {})},
    )
    assert done.returncode == status, f"{done.args} gave {done.returncode}:\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done


def run_inside(*arguments, status=0, cwd=None, environment=None):
    """The same command line in this process, a second faster: where that it is a process of its own proves nothing."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (environment or {}).items():
            patch.setenv(name, value)
        patch.chdir(cwd or Path.cwd())
        done = CliRunner().invoke(main, list(map(str, arguments)))
    if done.exit_code != status or not isinstance(done.exception, SystemExit | None):
        raise AssertionError(f"{arguments} gave {done.exit_code}:\n{done.output}") from done.exception
    return done


def refuse(*arguments, status=1, says, run=run_inside, **kwargs):
    """A command that must fail with one line that says `says`."""
    done = run(*arguments, status=status, **kwargs)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("Error: "), done.stderr
    assert says in last
    return last


@pytest.fixture(scope="session")
def chain(tmp_path_factory):
    """A folder with a store and a run that went through every command."""
    folder = tmp_path_factory.mktemp("chain")
    out = {
        "harvest": run_thresher(*HARVEST, "emoji.zarr", cwd=folder),
        "train": run_thresher("train", "emoji.zarr", "run", *TRAIN, cwd=folder),
        "encode": run_thresher("encode", "run", cwd=folder),
        "stats": run_thresher("stats", "run", "--sheet-rows", "2", cwd=folder),
    }
    return folder, out


@pytest.fixture(scope="session")
def thresher():
    """Runs a command: `thresher("info", path, status=0, cwd=...)`."""
    return run_thresher


@pytest.fixture(scope="session")
def inside():
    """Runs a command in this process: `inside("info", path, status=0, cwd=...)`."""
    return run_inside


@pytest.fixture(scope="session")
def refused():
    """Runs a command in this process that must fail: `refused("info", path, says=..., status=1)`."""
    return refuse


@pytest.fixture(scope="session")
def harvest_arguments():
    """What the chain's harvest was called with, but for its store."""
    return HARVEST


@pytest.fixture(scope="session")
def train_arguments():
    """The options that the chain's training was given."""
    return TRAIN

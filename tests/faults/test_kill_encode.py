"""Encodings killed outright at random moments end, after as many resumptions, with an unbroken one's bytes."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from thresher.train.models import ReluSae, TopKSae

ENCODE = """
import sys
import thresher.analysis.feature_writer as feature_writer
feature_writer._RECORD_EVERY_S = 0.02
from thresher.cli import main
main(["encode", *sys.argv[1:], "--block-rows", "128"])
"""

pytestmark = pytest.mark.faults
N, D_IN, D_SAE = 60_000, 32, 512


def start(log: Path, *runs: Path) -> subprocess.Popen:
    with open(log, "a") as stream:
        return subprocess.Popen(
            [sys.executable, "-c", ENCODE, *map(str, runs)], stderr=stream, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )


def features(run: Path) -> dict[str, bytes]:
    folder = run / "features.zarr"
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def rows_recorded(run: Path) -> int:
    try:
        with open(run / ".features.zarr.tmp/.progress.npz", "rb") as stream, np.load(stream) as record:
            return int(record["next_row"])
    except (FileNotFoundError, NotADirectoryError):
        return 0


@pytest.fixture
def runs(make_store, tmp_path) -> list[Path]:
    """Two runs of one store: the command line makes them, their weights are set."""
    store = make_store(N, D_IN, invalid=(5, 900, N - 1), rows_per_chunk=4096, thumbnails=False).path
    g = torch.Generator().manual_seed(0)
    encoder = torch.nn.functional.normalize(torch.randn(D_SAE, D_IN, generator=g), dim=1)
    weights = (encoder, torch.full((D_SAE,), -1.5), encoder.clone(), torch.zeros(D_IN))
    made = []
    for name, sae in (("relu", ReluSae(*weights)), ("topk", TopKSae(*weights, k=8))):
        options = ["--variant", name, "--expansion", str(D_SAE // D_IN), "--rows", "1024", "--quiet"]
        subprocess.run(
            [Path(sys.executable).with_name("thresher"), "train", store, tmp_path / name, *options], check=True
        )
        sae.save(tmp_path / name / "sae.safetensors")
        made.append(tmp_path / name)
    return made


def test_kills_at_random_moments_leave_no_trace(runs, tmp_path):
    began = time.monotonic()
    assert start(tmp_path / "whole.log", *runs).wait(timeout=300) == 0, (tmp_path / "whole.log").read_text()
    seconds = time.monotonic() - began
    whole = [features(run) for run in runs]
    for run in runs:
        shutil.rmtree(run / "features.zarr")
    moments, kills, places = random.Random(0), 0, []
    while kills < 8:
        before = rows_recorded(runs[0])
        process = start(tmp_path / "broken.log", *runs)
        deadline = time.monotonic() + 120
        while rows_recorded(runs[0]) == before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(moments.uniform(0, seconds / 20))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        assert not (runs[0] / "features.zarr").exists() or not (runs[1] / "features.zarr").exists()
        places.append(rows_recorded(runs[0]))
    assert kills >= 3, f"ended after {kills} kills: {(tmp_path / 'broken.log').read_text()}"
    assert places == sorted(places)
    left = [run for run in runs if not (run / "features.zarr").exists()]
    if left:
        assert start(tmp_path / "broken.log", *left).wait(timeout=300) == 0, (tmp_path / "broken.log").read_text()
    for run, expected in zip(runs, whole, strict=True):
        found = features(run)
        assert sorted(found) == sorted(expected)
        assert [name for name in found if found[name] != expected[name]] == []
        assert not (run / ".features.zarr.tmp").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_encode_says_what_is_kept_and_goes_on_there(runs, tmp_path, number):
    log, run = tmp_path / "stopped.log", runs[0]
    process = start(log, run)
    deadline = time.monotonic() + 120
    while not rows_recorded(run) and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(number)
    assert process.wait(timeout=60) == 1
    said = log.read_text()
    assert "Traceback" not in said
    assert "are kept: give the same command again to go on." in said.splitlines()[-1]
    kept = rows_recorded(run)
    assert kept > 0
    assert start(log, run).wait(timeout=300) == 0
    assert "rows are there from before" in log.read_text()
    assert len(features(run)) > 10

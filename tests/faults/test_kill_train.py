"""Training killed outright at ten random moments ends, after as many resumptions, with an unbroken run's bytes."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

TRAIN = """
import sys
from pathlib import Path
from thresher.train.loop import train
from thresher.train.options import TrainOptions

store, run = sys.argv[1:]
options = TrainOptions(
    variant=VARIANT, dead_remedy="ghost" if VARIANT == "relu" else "auxk", l1=0.02, k=8,
    expansion=16, lr=1e-3, warmup=20, batch_size=256,
    rows=256 * 1500, dead_after_rows=2048, device="cpu", checkpoint_every=5, log_every=3, eval_every=50,
)
train(options, store, run, resume=Path(run, "config.json").exists())
"""

pytestmark = pytest.mark.faults


def start(store: Path, run: Path, variant: str) -> subprocess.Popen:
    script = TRAIN.replace("VARIANT", repr(variant))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(run.with_suffix(".log"), "a") as log:
        return subprocess.Popen([sys.executable, "-c", script, str(store), str(run)], stderr=log, env=environment)


def newest_step(run: Path) -> int:
    return max((int(path.stem[5:]) for path in run.glob("checkpoint/step-*")), default=0)


@pytest.mark.parametrize("variant", ["topk", "relu"])
def test_ten_kills_at_random_moments_leave_no_trace(make_store, tmp_path, variant):
    rng = np.random.default_rng(0)
    codes = rng.exponential(1.0, (4000, 200)) * (rng.random((4000, 200)) < 0.04)
    rows = codes @ rng.standard_normal((200, 64)) / 8 + rng.standard_normal(64)
    store = make_store(4000, 64, rows=rows, invalid=(5, 900), rows_per_chunk=256, thumbnails=False).path

    began = time.monotonic()
    unbroken = start(store, tmp_path / "unbroken", variant)
    assert unbroken.wait() == 0, (tmp_path / "unbroken.log").read_text()
    seconds = time.monotonic() - began

    moments = random.Random(variant)
    run, kills, last = tmp_path / "broken", 0, 0
    while kills < 10:
        process = start(store, run, variant)
        deadline = time.monotonic() + 120
        while newest_step(run) <= last and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)  # past the imports, into this process's own steps
        time.sleep(moments.uniform(0, seconds / 40))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        last = newest_step(run)
        assert len(list(run.glob("checkpoint/step-*"))) in (1, 2)  # two: killed before the old one was removed
    assert kills == 10, f"the run ended after {kills} kills"
    process = start(store, run, variant)
    assert process.wait() == 0, run.with_suffix(".log").read_text()
    assert not (run / "checkpoint").exists()
    assert (run / "sae.safetensors").read_bytes() == (tmp_path / "unbroken/sae.safetensors").read_bytes()
    lines = (run / "metrics.jsonl").read_text().count("\n")
    assert lines == (tmp_path / "unbroken/metrics.jsonl").read_text().count("\n") == 500 + 30

"""A run broken at any steps, with any checkpoints between, ends with the bytes of an unbroken one."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from thresher.progress import Reporter
from thresher.train.loop import train
from thresher.train.options import TrainOptions

STEPS, BATCH = 24, 32
OPTIONS = TrainOptions(
    k=3, expansion=3, lr=3e-3, warmup=5, batch_size=BATCH, rows=STEPS * BATCH, device="cpu", dead_after_rows=96
)


class Crash(Exception):
    pass


class CrashAt(Reporter):
    """Fails after a step, as a lost machine does: nothing is saved on the way out."""

    def __init__(self, step: int) -> None:
        self.step = step

    def task(self, name, total, unit, *, done=0):
        self.seen = done // BATCH
        return nullcontext(self)

    def advance(self, n=1, **fields):
        self.seen += 1
        if self.seen == self.step:
            raise Crash


@given(
    crashes=st.lists(st.integers(1, STEPS), max_size=3),
    checkpoint_every=st.integers(0, 9),
    variant=st.sampled_from(["topk", "relu"]),
    batch=st.sampled_from([BATCH, 2 * BATCH]),
)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_crashes_leave_no_trace(make_store, tmp_path_factory, crashes, checkpoint_every, variant, batch):
    folder: Path = tmp_path_factory.mktemp("runs")
    name = f"../{folder.name}/store.zarr"
    rows = np.random.default_rng(0).standard_normal((150, 6)) + 1
    store = make_store(150, 6, rows=rows, invalid=(7,), name=name, dtype="float32").path
    options = replace(OPTIONS, variant=variant, dead_remedy="ghost" if variant == "relu" else "auxk", batch_size=batch)
    train(options, store, folder / "unbroken")
    broken = replace(options, checkpoint_every=checkpoint_every)
    for step in crashes:
        is_new = not (folder / "broken").exists()
        try:
            train(broken, store, folder / "broken", CrashAt(step), resume=not is_new)
        except Crash:
            continue
    train(broken, store, folder / "broken", resume=(folder / "broken").exists())
    assert (folder / "broken/sae.safetensors").read_bytes() == (folder / "unbroken/sae.safetensors").read_bytes()


def test_a_resumed_run_reads_in_its_own_order_whatever_memory_it_is_given_now(make_store, tmp_path):
    store = make_store(400, 6, order="source", sorted_labels=True, dtype="float32").path
    small = replace(OPTIONS, loader_memory=6 * 4 * 2 * 100 / 1e9)  # buffers of 100 rows
    train(small, store, tmp_path / "unbroken")
    with pytest.raises(Crash):
        train(replace(small, checkpoint_every=5), store, tmp_path / "broken", CrashAt(12))
    train(replace(small, checkpoint_every=5, loader_memory=1.0), store, tmp_path / "broken", resume=True)
    weights = [(tmp_path / name / "sae.safetensors").read_bytes() for name in ("unbroken", "broken")]
    assert weights[0] == weights[1]
    train(replace(small, loader_memory=1.0), store, tmp_path / "other")
    assert (tmp_path / "other" / "sae.safetensors").read_bytes() != weights[0]


def test_the_crash_is_real(make_store, tmp_path):
    with pytest.raises(Crash):
        train(OPTIONS, make_store(150, 6).path, tmp_path / "run", CrashAt(3))

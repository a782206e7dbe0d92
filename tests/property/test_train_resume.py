"""A run broken at any steps, with any checkpoints between, ends with the bytes of an unbroken one: every variant."""

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from thresher.progress import Reporter
from thresher.store.format import Site
from thresher.train.loop import train
from trained_alike import BASE, BATCH, SETTINGS, STEPS

OPTIONS = replace(BASE, k=3, checkpoint_every=500)


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


def logged(run: Path) -> list[str]:
    """Every line of the log of numbers, but for how fast it went."""
    return [
        json.dumps({name: value for name, value in json.loads(line).items() if name != "rows_per_s"})
        for line in (run / "metrics.jsonl").read_text().splitlines()
    ]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A store, and a run of each setting that nothing broke."""
    return tmp_path_factory.mktemp("unbroken")


@pytest.mark.parametrize("setting", SETTINGS)
@given(crashes=st.lists(st.integers(1, STEPS), min_size=1, max_size=3), checkpoint_every=st.integers(1, 9))
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_crashes_leave_no_trace(make_store, tmp_path_factory, unbroken, setting, crashes, checkpoint_every):
    folder: Path = tmp_path_factory.mktemp("runs")
    rows = np.random.default_rng(0).standard_normal((150, 6)) + 1
    store = unbroken / "store.zarr"
    if not store.exists():
        make_store(
            150, 6, rows=rows, invalid=(7,), place=str(store), dtype="float32", thumbnails=False,
            sites=(Site(1), Site(2)),
        )  # fmt: skip
    options = replace(SETTINGS[setting], layer=1)
    if not (unbroken / setting).exists():
        train(options, store, unbroken / setting)
    broken = replace(options, checkpoint_every=checkpoint_every)
    for step in crashes:
        is_new = not (folder / "broken").exists()
        try:
            train(broken, store, folder / "broken", CrashAt(step), resume=not is_new)
        except Crash:
            continue
    train(broken, store, folder / "broken", resume=True)
    files = [run / "sae.safetensors" for run in (folder / "broken", unbroken / setting)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert logged(folder / "broken") == logged(unbroken / setting)


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

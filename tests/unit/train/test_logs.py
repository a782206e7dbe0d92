"""TensorBoard and W&B hold what metrics.jsonl holds, once, also of a resumed run; without their packages, a line."""

import importlib.util
import json
import os
import signal
import time
from contextlib import nullcontext
from dataclasses import replace

import pytest
from thresher.progress import Reporter
from thresher.store.errors import StoreError
from thresher.train import logs
from thresher.train.logs import scalars
from thresher.train.loop import train
from thresher.train.options import TrainOptions
from thresher.train.outcome import TrainingStopped
from thresher.train.run_dir import open_run
from thresher.train.sweep import train_sweep

OPTIONS = TrainOptions(
    k=2, expansion=2, lr=3e-3, warmup=5, batch_size=64, rows=64 * 30, device="cpu", dead_after_rows=128, log_every=5,
    eval_every=10, checkpoint_every=7,
)  # fmt: skip
with_tensorboard = pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="the package tensorboard is not installed"
)
with_wandb = pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="the package wandb is not installed")


class CrashAt(Reporter):
    """Ends the training of this process after a step: as a power cut does, or by SIGTERM."""

    def __init__(self, step, number=None):
        self.step, self.number = step, number

    def task(self, name, total, unit, *, done=0):
        self.seen = done // 64
        return nullcontext(self)

    def advance(self, n=1, **fields):
        self.seen += 1
        if self.seen == self.step:
            if self.number is None:
                raise RuntimeError("power cut")
            os.kill(os.getpid(), self.number)

    def show_rows(self, rows):
        pass


def logged(run):
    """What metrics.jsonl holds, as {name: [(step, value)]}, read by other code than what logs."""
    found = {}
    for record in open_run(run).metrics():
        for name, value in record.items():
            values = (
                {f"{name}/{part}": number for part, number in value.items()}
                if isinstance(value, dict)
                else {name: value}
            )
            for each, number in values.items():
                if each not in ("step", "split") and number is not None:
                    found.setdefault(f"{record['split']}/{each}", []).append((record["step"], number))
    return found


def events(run):
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found = {}
    for path in sorted((run / "tensorboard").iterdir()):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.tensor.float_val[0]))
    return found


def same(found, expected):
    assert set(found) == set(expected)
    for name, values in expected.items():
        steps, numbers = zip(*found[name], strict=True)
        assert list(steps) == [step for step, _ in values], name
        assert list(numbers) == pytest.approx([number for _, number in values], rel=1e-6), name


def test_each_number_is_named_as_in_the_record_below_its_split():
    record = {"step": 5, "split": "heldout", "l0": {"mean": 2.0, "max": 3}, "mse": 0.5, "n": 4, "x": None, "y": True}
    assert list(scalars(record)) == [
        ("heldout/l0/mean", 2.0),
        ("heldout/l0/max", 3.0),
        ("heldout/mse", 0.5),
        ("heldout/n", 4.0),
    ]
    assert list(scalars({"step": 5, "split": "train", "loss": float("nan")})) == []


@with_tensorboard
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("steps", [(), (12,), (23, 24)], ids=["unbroken", "killed once", "killed twice"])
def test_tensorboard_holds_every_number_of_metrics_once(small_store, tmp_path, steps):
    options, run = replace(OPTIONS, tensorboard=True), tmp_path / "run"
    for n, step in enumerate(steps):
        with pytest.raises(RuntimeError, match="power cut"):
            train(options, small_store, run, CrashAt(step), resume=n > 0)
    train(options, small_store, run, resume=bool(steps))
    found = events(run)
    same(found, logged(run))
    assert [step for step, _ in found["train/loss"]] == [5, 10, 15, 20, 25, 30]
    assert [step for step, _ in found["heldout/explained_variance"]] == [10, 20, 30]


@with_tensorboard
@pytest.mark.filterwarnings("default")
def test_tensorboard_asked_for_on_resume_holds_what_was_logged_before(small_store, tmp_path):
    with pytest.raises(TrainingStopped):
        train(OPTIONS, small_store, tmp_path / "run", CrashAt(12, signal.SIGTERM))
    train(replace(OPTIONS, tensorboard=True), small_store, tmp_path / "run", resume=True)
    same(events(tmp_path / "run"), logged(tmp_path / "run"))


def records_of(path):
    """The records of a .wandb file: 7 bytes, then LevelDB's log format, blocks of 32 KiB."""
    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:  # no room for a header: padding
            at += left
            continue
        n, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + n]
        at += 7 + n
        if kind in (1, 4):  # whole, or the last of several pieces
            yield whole
            whole = b""


def finished(path, record_of):
    """The records of a file once the last one is there: W&B's own process may still write when its `finish` is done."""
    for _ in range(600):
        records = [record_of.FromString(data) for data in records_of(path)]
        if records and records[-1].HasField("exit"):
            return records
        time.sleep(0.1)
    raise AssertionError(f"W&B did not finish {path}")


def offline_runs(run):
    """What W&B's files of a run hold: {name: [(step, value)]}, and the ids of its runs."""
    from wandb.proto import wandb_internal_pb2

    found, ids = {}, []
    for path in sorted((run / "wandb").glob("offline-run-*/*.wandb")):
        for record in finished(path, wandb_internal_pb2.Record):
            if record.HasField("run"):
                ids.append(record.run.run_id)
            for item in record.history.item:
                name = item.key or "/".join(item.nested_key)
                if not name.startswith("_"):
                    found.setdefault(name, []).append((record.history.step.num, json.loads(item.value_json)))
    return found, ids


@pytest.fixture
def offline(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_RUN_ID", "WANDB_PROJECT", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb-home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("WANDB_MODE", "offline")


@with_wandb
@pytest.mark.filterwarnings("default")
def test_wandb_holds_every_number_of_metrics_once_under_one_id_of_a_run_killed_twice(small_store, tmp_path, offline):
    options, run = replace(OPTIONS, wandb="sparse"), tmp_path / "run"
    for n, step in enumerate((12, 24)):
        with pytest.raises(RuntimeError, match="power cut"):
            train(options, small_store, run, CrashAt(step), resume=n > 0)
        time.sleep(1)  # W&B names its folders by the second
    train(options, small_store, run, resume=True)
    found, ids = offline_runs(run)
    expected = logged(run)
    for name in [name for name in expected if "rows_per_s" in name]:  # the one that differs when it is logged again
        del expected[name], found[name]
    same(found, expected)
    assert len(ids) >= 3
    assert len(set(ids)) == 1


@with_wandb
@pytest.mark.filterwarnings("default")
def test_the_members_of_a_sweep_are_wandb_runs_side_by_side(small_store, tmp_path, offline):
    given = {name: [value] for name, value in OPTIONS.to_json().items() if value != getattr(TrainOptions(), name)}
    train_sweep({**given, "k": [2, 4], "wandb": ["sparse"]}, small_store, tmp_path / "sweep")
    ids = []
    for name in ("k=2", "k=4"):
        found, (run_id, *_) = offline_runs(tmp_path / "sweep" / name)
        ids.append(run_id)
        expected = logged(tmp_path / "sweep" / name)
        same({"l": found["train/loss"]}, {"l": expected["train/loss"]})
    assert ids[0] != ids[1]


@with_wandb
@pytest.mark.filterwarnings("default")
def test_wandb_without_a_login_is_one_line_before_anything_is_written(small_store, tmp_path, offline, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(
        StoreError, match=r"--wandb sparse: no login is known: `wandb login`, or set WANDB_MODE=offline"
    ):
        train(replace(OPTIONS, wandb="sparse"), small_store, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("package", "changes"), [("tensorboard", {"tensorboard": True}), ("wandb", {"wandb": "x"})])
def test_a_package_that_is_missing_is_one_line_before_anything_is_written(
    small_store, tmp_path, monkeypatch, package, changes
):
    find = importlib.util.find_spec
    monkeypatch.setattr("thresher.train.logs.find_spec", lambda name: None if name == package else find(name))
    with pytest.raises(
        ValueError, match=rf"--{package} needs the package {package}, .*pip install 'thresher\[{package}"
    ):
        train(replace(OPTIONS, **changes), small_store, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("project", ["team/project", "what?", "100%"])
def test_a_project_that_wandb_would_refuse_is_refused_before_anything_is_written(project, monkeypatch):
    monkeypatch.setattr(logs, "find_spec", lambda _: True)
    with pytest.raises(ValueError, match=r"the name of a W&B project holds none of /\\#\?%:"):
        logs.require_loggers(TrainOptions(wandb=project))

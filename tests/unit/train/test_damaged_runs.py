"""Run directories with a damaged or missing file: what is said of it, and what can still be done."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from thresher import results
from thresher.store.errors import DamagedStoreError, StoreError
from thresher.train import member
from thresher.train.loop import train
from thresher.train.options import TrainOptions
from thresher.train.outcome import TrainingStopped
from thresher.train.run_dir import open_run

OPTIONS = TrainOptions(k=4, expansion=2, warmup=2, batch_size=64, rows=64 * 6, device="cpu", checkpoint_every=2)


@pytest.fixture
def stopped(small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that stopped at its first checkpoint."""

    save = member.save_checkpoint

    def save_and_stop(*given: Any) -> None:
        save(*given)
        raise TrainingStopped("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(member, "save_checkpoint", save_and_stop)
        with pytest.raises(TrainingStopped):
            train(OPTIONS, small_store, tmp_path / "run")
    return tmp_path / "run"


def rewrite(path: Path, change: Callable[[dict, dict], None]) -> None:
    """Change the tensors and the record of a checkpoint."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        record = json.loads(file.metadata()["thresher"])
    change(tensors, record)
    save_file(tensors, path, {"thresher": json.dumps(record)})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda _, record: record.pop("step"), "it holds no 'step'"),
        (lambda _, record: record.update(step="2"), "it is of step 2, and the run has 6"),
        (lambda _, record: record.update(step=-1), "it is of step -1, and the run has 6"),
        (lambda _, record: record.update(step=7), "it is of step 7, and the run has 6"),
        (lambda _, record: record.update(format_version=9), "it is of version 9, and this thresher reads 2"),
        (
            lambda tensors, _: tensors.update(rows_since_fired=tensors["rows_since_fired"].int()),
            "rows_since_fired is (48,) torch.int32, not (48,) torch.int64",
        ),
        (
            lambda tensors, _: tensors.update(rows_since_fired=torch.zeros(5, dtype=torch.int64)),
            "rows_since_fired is (5,) torch.int64, not (48,) torch.int64",
        ),
        (lambda tensors, _: tensors.pop("rows_since_fired"), "rows_since_fired"),
        (lambda tensors, _: tensors["sae.b_dec"][3].nextafter_(torch.tensor(1.0)), "their checksum differs"),
    ],
)
def test_a_checkpoint_that_is_not_this_runs_is_refused_with_the_way_on(small_store, stopped, change, says):
    (checkpoint,) = (stopped / "checkpoint").iterdir()
    rewrite(checkpoint, change)
    wanted = rf"{re.escape(str(checkpoint))} cannot be gone on from \(.*{re.escape(says)}.*\): delete it to start"
    with pytest.raises(DamagedStoreError, match=wanted):
        train(OPTIONS, small_store, stopped, resume=True)
    checkpoint.unlink()
    assert train(OPTIONS, small_store, stopped, resume=True).steps == 6


def test_a_checkpoint_whose_record_is_no_object_is_damaged(small_store, stopped):
    (checkpoint,) = (stopped / "checkpoint").iterdir()
    save_file({"x": torch.zeros(1)}, checkpoint, {"thresher": "[1]"})
    with pytest.raises(DamagedStoreError, match="delete it to start from the beginning"):
        train(OPTIONS, small_store, stopped, resume=True)


def test_a_checkpoint_that_the_system_does_not_open_is_named(small_store, stopped):
    (checkpoint,) = (stopped / "checkpoint").iterdir()
    checkpoint.unlink()
    checkpoint.mkdir()
    with pytest.raises(OSError, match=rf"{re.escape(str(checkpoint))} cannot be read: "):
        train(OPTIONS, small_store, stopped, resume=True)


@pytest.mark.parametrize("left", [None, b"", b'{"step": 6, "sp'])
def test_a_finished_run_without_its_metrics_is_finished_all_the_same(small_store, tmp_path, left):
    train(OPTIONS, small_store, tmp_path / "run")
    metrics = tmp_path / "run" / "metrics.jsonl"
    metrics.unlink()
    if left is not None:
        metrics.write_bytes(left)
    again = train(OPTIONS, small_store, tmp_path / "run", resume=True)
    assert again.was_finished
    assert again.n_dead is None
    assert "Dead: not known, since metrics.jsonl holds no step of training" in results.of_training(again)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("site", "x", "'x' is not the path of an activation array"),
        ("target_site", "layers/1/x/cls", "is not the path of an activation array"),
        ("store.n_parts", -1, "store.n_parts is -1"),
        ("loading", {"mode": "runs"}, "notes"),
        ("loading.kind", 3, "kind"),
    ],
)
def test_a_configuration_that_cannot_be_is_damaged_and_the_way_on_is_told(stopped, name, value, says):
    config = json.loads((stopped / "config.json").read_text())
    *above, last = name.split(".")
    place = config[above[0]] if above else config
    place[last] = value
    (stopped / "config.json").write_text(json.dumps(config))
    wanted = (
        rf"config\.json is damaged: .*{re.escape(says)}.* Restore it from a copy, or remove {re.escape(str(stopped))}"
    )
    with pytest.raises(DamagedStoreError, match=wanted):
        open_run(stopped)


def test_a_configuration_cut_short_is_told_with_the_way_on(small_store, stopped):
    whole = (stopped / "config.json").read_bytes()
    (stopped / "config.json").write_bytes(whole[:100])
    with pytest.raises(DamagedStoreError, match=r"config\.json is damaged: .* Restore it from a copy, or remove"):
        train(OPTIONS, small_store, stopped, resume=True)
    shutil.rmtree(stopped)
    assert train(OPTIONS, small_store, stopped).steps == 6


def test_a_store_that_differs_in_its_fingerprint_alone_is_refused_by_it(small_store, stopped):
    config = json.loads((stopped / "config.json").read_text())
    config["store"]["fingerprint"] = "0" * 32
    (stopped / "config.json").write_text(json.dumps(config))
    with pytest.raises(StoreError, match=r"is not the store that .* was trained on: fingerprint is '0000"):
        train(OPTIONS, small_store, stopped, resume=True)

"""Whole runs: repeatable, resumable to the same bytes, refused where they do not fit, stopped with a reason."""

import json
import os
import re
import resource
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from thresher.progress import Reporter
from thresher.store.errors import StoreError
from thresher.store.files import FolderLock
from thresher.store.format import Site
from thresher.store.reader import open_store
from thresher.train.loop import train
from thresher.train.options import TrainOptions
from thresher.train.outcome import TrainingStopped
from thresher.train.recipes import resolve_options, resumed_options
from thresher.train.run_dir import open_run

TOPK = TrainOptions(
    k=4, expansion=4, lr=3e-3, warmup=10, batch_size=64, rows=64 * 60, device="cpu", dead_after_rows=128,
    checkpoint_every=7, log_every=5, eval_every=20,
)  # fmt: skip
RELU = replace(
    TOPK, variant="relu", lr=2e-2, l1=1.0, dead_remedy="ghost", b_dec_init="geometric-median",
    encoder_init="independent", normalize="none", decay=0.0,
)  # fmt: skip


class StopAt(Reporter):
    """Sends this process a signal after a number of steps, and notes what is said."""

    def __init__(self, step: int | None = None, number: int = signal.SIGTERM) -> None:
        self.step, self.number, self.said = step, number, []

    def say(self, text):
        self.said.append(text)

    warn = say

    def task(self, name, total, unit, *, done=0):
        from contextlib import nullcontext

        self.seen = done // TOPK.batch_size
        return nullcontext(self)

    def advance(self, n=1, **fields):
        self.seen += 1
        self.fields = fields
        if self.seen == self.step:
            os.kill(os.getpid(), self.number)


def weights(run: Path) -> bytes:
    return (run / "sae.safetensors").read_bytes()


def test_two_hundred_steps_under_one_seed_repeat_bit_for_bit(small_store, tmp_path):
    options = replace(RELU, rows=64 * 200)
    for name in "ab":
        train(options, small_store, tmp_path / name)
    train(replace(options, seed=1), small_store, tmp_path / "c")
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    assert weights(tmp_path / "a") != weights(tmp_path / "c")


@pytest.mark.parametrize("options", [TOPK, RELU], ids=["topk", "relu with ghost grads"])
@pytest.mark.parametrize("steps", [(1,), (6, 7, 33), (59,)])
def test_a_run_stopped_and_resumed_equals_an_unbroken_one(small_store, tmp_path, options, steps):
    train(options, small_store, tmp_path / "unbroken")
    resume = False
    for step in steps:
        with pytest.raises(TrainingStopped, match=rf"stopped by SIGTERM after step {step} of 60.*--resume"):
            train(options, small_store, tmp_path / "broken", StopAt(step), resume=resume)
        resume = True
    result = train(options, small_store, tmp_path / "broken", resume=True)
    assert weights(tmp_path / "broken") == weights(tmp_path / "unbroken")
    assert result.steps == 60

    def numbers(run):
        return [{k: v for k, v in m.items() if k != "rows_per_s"} for m in open_run(run).metrics()]

    assert numbers(tmp_path / "broken") == numbers(tmp_path / "unbroken")


def test_every_number_of_metrics_jsonl_is_defined(small_store, tmp_path):
    train(RELU, small_store, tmp_path / "run")
    page = (Path(__file__).parents[3] / "docs" / "definitions.md").read_text()
    for name in {name for m in open_run(tmp_path / "run").metrics() for name in m}:
        if name not in ("step", "rows", "split", "n_rows", "l0_above_0.1"):
            assert f"`{name}`" in page or name.replace("_", " ") in page, name


@pytest.mark.parametrize("target", [None, 6.0])
def test_a_logged_loss_is_the_error_and_the_logged_coefficient_times_the_penalty(small_store, tmp_path, target):
    options = replace(
        RELU, error="mse", dead_remedy="none", l1=0.03, target_l0=target, sparsity_warmup=25, log_every=1, eval_every=0
    )
    train(options, small_store, tmp_path / "run")
    logged = [m for m in open_run(tmp_path / "run").metrics() if m["split"] == "train"]
    for m in logged:
        assert m["loss"] == pytest.approx(m["mse"] + m["coefficient"] * m["sparsity"], rel=1e-5)
    assert (logged[0]["coefficient"], logged[1]["coefficient"] > 0) == (0, True)
    assert (logged[-1]["coefficient"] == pytest.approx(0.03)) == (target is None)


@pytest.mark.parametrize("options", [TOPK, RELU], ids=["topk", "relu with ghost grads"])
def test_dead_features_do_occur_in_the_resumed_runs(small_store, tmp_path, options):
    train(options, small_store, tmp_path / "run")
    assert any(m["dead_loss"] > 0 for m in open_run(tmp_path / "run").metrics() if m["split"] == "train")


def test_ctrl_c_stops_as_sigterm_does_and_leaves_the_handlers_as_they_were(small_store, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(TrainingStopped, match="SIGINT"):
        train(TOPK, small_store, tmp_path / "run", StopAt(3, signal.SIGINT))
    assert signal.getsignal(signal.SIGINT) is before


def test_a_crash_resumes_from_the_last_checkpoint_without_repeated_metrics(small_store, tmp_path):
    class Crash(StopAt):
        def advance(self, n=1, **fields):
            self.seen += 1
            if self.seen == 31:
                raise RuntimeError("power cut")

    train(TOPK, small_store, tmp_path / "unbroken")
    with pytest.raises(RuntimeError, match="power cut"):
        train(TOPK, small_store, tmp_path / "broken", Crash())
    with open(tmp_path / "broken/metrics.jsonl", "a") as file:
        file.write('{"step": 30, "ro')  # a line cut short
    reporter = StopAt()
    train(TOPK, small_store, tmp_path / "broken", reporter, resume=True)
    assert any("resumed at step 28" in line for line in reporter.said)
    assert weights(tmp_path / "broken") == weights(tmp_path / "unbroken")
    steps = [(m["step"], m["split"]) for m in open_run(tmp_path / "broken").metrics()]
    assert steps == [(m["step"], m["split"]) for m in open_run(tmp_path / "unbroken").metrics()]
    assert len(steps) == len(set(steps)) == 12 + 3


def test_a_run_killed_before_its_first_checkpoint_resumes_from_the_start(small_store, tmp_path):
    train(TOPK, small_store, tmp_path / "unbroken")
    shutil.copytree(tmp_path / "unbroken", tmp_path / "early")
    (tmp_path / "early/sae.safetensors").unlink()
    train(TOPK, small_store, tmp_path / "early", resume=True)
    assert weights(tmp_path / "early") == weights(tmp_path / "unbroken")


def test_metrics_hold_training_and_held_out_numbers_in_raw_units(small_store, tmp_path):
    result = train(TOPK, small_store, tmp_path / "run")
    run = open_run(tmp_path / "run")
    trained = [m for m in run.metrics() if m["split"] == "train"]
    assert [m["step"] for m in trained] == list(range(5, 61, 5))
    assert {
        "rows",
        "lr",
        "loss",
        "mse",
        "normalized_mse",
        "sparsity",
        "l0",
        "n_dead",
        "gradient_norm",
        "share_dead",
        "rows_per_s",
    } <= set(trained[0])
    assert trained[-1]["loss"] < trained[0]["loss"]

    store = open_store(small_store)
    start, stop = store.split("heldout")
    x = store.activations().read_positions(start, stop).astype(np.float64)
    sae = run.load_sae()
    x_hat = sae(torch.from_numpy(x)).double().numpy()
    held_out = [m for m in run.metrics() if m["split"] == "heldout"]
    assert [m["step"] for m in held_out] == [20, 40, 60]
    assert held_out[-1]["n_rows"] == stop - start
    assert held_out[-1]["mse"] == pytest.approx(((x_hat - x) ** 2).mean(), rel=1e-5)
    sst = ((x - x.mean(0)) ** 2).sum()
    assert result.held_out.explained_variance == pytest.approx(1 - ((x_hat - x) ** 2).sum() / sst, rel=1e-5)
    assert held_out[-1]["l0"]["mean"] == 4
    n_active = (sae.encode(torch.from_numpy(x).float()) > 0).sum(0)
    assert held_out[-1]["n_almost_dead"] == (n_active == 0).sum()  # 7 rows: one is more than 1 in 10,000
    assert held_out[-1]["share_almost_dead"] == held_out[-1]["n_almost_dead"] / 96
    w = sae.W_dec.double().numpy()
    cosines = (w @ w.T) / np.outer(np.linalg.norm(w, axis=1), np.linalg.norm(w, axis=1))
    np.fill_diagonal(cosines, -1)
    assert held_out[-1]["decoder_coherence"] == pytest.approx(cosines.max(1).mean(), rel=1e-5)


def test_training_learns_planted_directions(make_store, tmp_path):
    rng = np.random.default_rng(0)
    planted = np.linalg.qr(rng.standard_normal((16, 16)))[0]
    codes = rng.exponential(1.0, (3000, 16)) * (rng.random((3000, 16)) < 0.1)
    made = make_store(3000, 16, rows=codes @ planted, dtype="float32")
    options = TrainOptions(
        k=3, expansion=2, lr=3e-3, warmup=10, batch_size=128, rows=128 * 800, device="cpu", normalize="none",
        b_dec_init="zero",
    )  # fmt: skip
    train(options, made.path, tmp_path / "run")
    sae = open_run(tmp_path / "run").load_sae()
    cosine = np.abs(planted @ sae.W_dec.numpy().T).max(1)
    assert (cosine > 0.95).sum() >= 15


def test_the_configuration_records_the_run(small_store, tmp_path):
    train(TOPK, small_store, tmp_path / "run")
    run = open_run(tmp_path / "run")
    assert run.options == TOPK
    assert run.site == Site(1)
    assert (run.d_in, run.d_sae) == (24, 96)
    assert run.store_path == str(small_store)
    assert run.store_fingerprint == open_store(small_store).fingerprint
    assert run.config["passes"] == pytest.approx(3840 / 692)
    assert run.is_finished
    assert not (tmp_path / "run/checkpoint").exists()
    assert "finished 60 steps" in (tmp_path / "run/log.txt").read_text()


def test_a_run_finds_its_store_when_both_were_moved(make_store, tmp_path):
    (tmp_path / "job").mkdir()
    made = make_store(100, 8, name="job/store.zarr")
    train(replace(TOPK, rows=64), made.path, tmp_path / "job/run")
    (tmp_path / "job").rename(tmp_path / "moved")
    assert open_run(tmp_path / "moved/run").store_path == str(tmp_path / "moved/store.zarr")


def test_an_existing_run_is_neither_overwritten_nor_mixed_with(small_store, tmp_path):
    train(TOPK, small_store, tmp_path / "run")
    with pytest.raises(StoreError, match=r"already holds a run.*--resume.*--overwrite"):
        train(TOPK, small_store, tmp_path / "run")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("precious")
    with pytest.raises(StoreError, match="not a run directory"):
        train(replace(TOPK, overwrite=True), small_store, tmp_path / "mine")
    assert (tmp_path / "mine/thesis.txt").read_text() == "precious"


def test_overwriting_a_run_removes_what_was_made_from_it_and_nothing_else(small_store, tmp_path):
    train(TOPK, small_store, tmp_path / "run")
    (tmp_path / "run/stats.zarr").mkdir()
    (tmp_path / "run/stats.json").write_text("{}")
    (tmp_path / "run/notes.txt").write_text("mine")
    train(replace(TOPK, overwrite=True, seed=5), small_store, tmp_path / "run")
    assert not (tmp_path / "run/stats.zarr").exists()
    assert not (tmp_path / "run/stats.json").exists()
    assert (tmp_path / "run/notes.txt").exists()
    assert open_run(tmp_path / "run").options.seed == 5


def test_resuming_a_finished_run_says_so_and_changes_nothing(small_store, tmp_path):
    train(TOPK, small_store, tmp_path / "run")
    before = weights(tmp_path / "run")
    reporter = StopAt()
    result = train(TOPK, small_store, tmp_path / "run", reporter, resume=True)
    assert result.was_finished
    assert "is finished" in reporter.said[0]
    assert weights(tmp_path / "run") == before


def test_resuming_otherwise_than_started_names_the_field(small_store, make_store, tmp_path):
    with pytest.raises(StoreError, match=r"holds no config\.json"):
        train(TOPK, small_store, tmp_path / "run", resume=True)
    with pytest.raises(TrainingStopped):
        train(TOPK, small_store, tmp_path / "run", StopAt(3))
    with pytest.raises(StoreError, match=r"started with k = 4, not 5"):
        train(replace(TOPK, k=5), small_store, tmp_path / "run", resume=True)
    other = make_store(700, 24, name="other.zarr", seed=9)
    with pytest.raises(StoreError, match=r"is not the store that .* was trained on: dtype is .float32. there"):
        train(TOPK, other.path, tmp_path / "run", resume=True)
    train(replace(TOPK, log_every=1), small_store, tmp_path / "run", resume=True)


def test_options_to_resume_with_are_the_runs_own_and_what_is_given(small_store, tmp_path):
    with pytest.raises(TrainingStopped):
        train(TOPK, small_store, tmp_path / "run", StopAt(3))
    assert resumed_options(tmp_path / "run", {"k": 4, "log_every": 3}) == replace(TOPK, log_every=3)
    with pytest.raises(StoreError, match=r"started without recipe, not with post-2024"):
        train(resumed_options(tmp_path / "run", {"recipe": "post-2024"}), small_store, tmp_path / "run", resume=True)


def test_a_store_of_several_layers_wants_one_named(make_store, tmp_path):
    made = make_store(200, 8, sites=(Site(1), Site(2)))
    with pytest.raises(StoreError, match=r"several sites.*layer 1 \(0-based\).*: say which with --layer\."):
        train(TOPK, made.path, tmp_path / "run")
    with pytest.raises(StoreError, match="does not hold the site asked for"):
        train(replace(TOPK, layer=7), made.path, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert train(replace(TOPK, layer=2, rows=64), made.path, tmp_path / "run").site == Site(2)


def test_divergence_stops_with_the_step_the_rows_and_the_last_checkpoint(small_store, tmp_path):
    with pytest.raises(TrainingStopped, match=r"the loss of step \d+ is not finite.*diverged; lower --lr"):
        train(replace(RELU, lr=1e30, warmup=0), small_store, tmp_path / "run")
    assert not (tmp_path / "run/sae.safetensors").exists()


def test_weights_that_the_last_step_broke_are_never_saved(small_store, tmp_path):
    with pytest.raises(TrainingStopped, match=r"the weights after step 1 are not finite; lower --lr"):
        train(replace(RELU, lr=1e38, warmup=0, rows=64), small_store, tmp_path / "run")
    assert not (tmp_path / "run/sae.safetensors").exists()


def test_no_run_is_made_inside_a_store(small_store, tmp_path):
    with pytest.raises(StoreError, match=r"run lies inside the store .*: name another RUN, outside of it"):
        train(TOPK, small_store, Path(small_store) / "runs/run")
    assert not (Path(small_store) / "runs").exists()


def test_a_file_in_the_way_of_the_run_is_left_alone(small_store, tmp_path):
    (tmp_path / "run").write_text("mine")
    for path in (tmp_path / "run", tmp_path / "run/below"):
        with pytest.raises(StoreError, match="a file is in its way"):
            train(replace(TOPK, overwrite=True), small_store, path)
    assert (tmp_path / "run").read_text() == "mine"


def test_a_run_that_another_process_trains_is_refused(small_store, tmp_path):
    train(TOPK, small_store, tmp_path / "run")
    lock = FolderLock(tmp_path / "run")
    with pytest.raises(StoreError, match="another process"):
        train(replace(TOPK, overwrite=True), small_store, tmp_path / "run")
    lock.close()
    assert open_run(tmp_path / "run").is_finished


def test_a_checkpoint_that_does_not_fit_on_the_disk_leaves_the_one_before_it(small_store, tmp_path):
    train(TOPK, small_store, tmp_path / "unbroken")
    with pytest.raises(TrainingStopped):
        train(TOPK, small_store, tmp_path / "run", StopAt(5))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # a file may grow to 20 kB; a checkpoint has 60
    try:
        with pytest.raises(OSError, match=r"step-0000000007\.safetensors could not be written.*--resume"):
            train(TOPK, small_store, tmp_path / "run", resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    train(TOPK, small_store, tmp_path / "run", resume=True)
    assert weights(tmp_path / "run") == weights(tmp_path / "unbroken")


def test_non_finite_rows_are_named(small_store, tmp_path, monkeypatch):
    from thresher.store.batches import _RunReading
    from thresher.train.loader import BatchLoader

    read = _RunReading._read

    def corrupted(self, step):
        batch = read(self, step)
        if step == 30:
            batch.values[0][2, 3] = float("nan")
        return batch

    monkeypatch.setattr(_RunReading, "_read", corrupted)
    with pytest.raises(TrainingStopped, match=r"loss of step 31 is not finite; store row (\d+) .*verify") as caught:
        train(TOPK, small_store, tmp_path / "run")
    store = open_store(small_store)
    loader = BatchLoader([store.activations()], batch_size=64, seed=0, device=torch.device("cpu"))
    assert f"store row {store.rows_of(loader.positions(30))[2]} " in str(caught.value)
    assert "step-0000000028.safetensors" in str(caught.value)


def test_rows_that_are_not_finite_are_blamed_where_the_scaling_is_taken_from_them(small_store, tmp_path, monkeypatch):
    from thresher.train.loader import BatchLoader

    sample = BatchLoader.sample

    def corrupted(self, *given):
        rows = sample(self, *given)
        rows[0][5, 1] = float("inf")
        return rows

    monkeypatch.setattr(BatchLoader, "sample", corrupted)
    with pytest.raises(StoreError, match=r"rows that the scaling is taken from are finite: check the store with `ver"):
        train(TOPK, small_store, tmp_path / "run")


def test_what_a_kill_left_in_the_checkpoint_folder_is_cleared_away(small_store, tmp_path):
    with pytest.raises(TrainingStopped):
        train(TOPK, small_store, tmp_path / "run", StopAt(10))
    (tmp_path / "run/checkpoint/.tmpX1").write_text("half a file")
    with pytest.raises(TrainingStopped):
        train(TOPK, small_store, tmp_path / "run", StopAt(15), resume=True)
    assert [path.name for path in (tmp_path / "run/checkpoint").iterdir()] == ["step-0000000015.safetensors"]
    (tmp_path / "run/checkpoint/.tmpX2").write_text("half a file")
    train(TOPK, small_store, tmp_path / "run", resume=True)
    assert not (tmp_path / "run/checkpoint").exists()


def test_a_checkpoint_cut_short_is_refused_with_the_way_out(small_store, tmp_path):
    with pytest.raises(TrainingStopped):
        train(TOPK, small_store, tmp_path / "run", StopAt(10))
    (checkpoint,) = (tmp_path / "run/checkpoint").glob("step-*")
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    with pytest.raises(StoreError, match="delete it to start from the beginning"):
        train(TOPK, small_store, tmp_path / "run", resume=True)


def test_a_disk_too_small_is_found_before_anything_is_written(small_store, tmp_path, monkeypatch):
    import thresher.train.resources as resources

    monkeypatch.setattr(resources, "free_bytes", lambda path: 1000)
    with pytest.raises(StoreError, match=r"needs .* while training, 1 kB are free"):
        train(TOPK, small_store, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["cuda:99", "tpu", "mps"])
def test_a_device_that_is_not_there_is_refused(small_store, tmp_path, name):
    if name == "mps" and torch.backends.mps.is_available():
        pytest.skip("this machine has an MPS device")
    with pytest.raises(ValueError, match=f"--device {name}"):
        train(replace(TOPK, device=name), small_store, tmp_path / "run")


def test_the_live_display_gets_loss_l0_and_dead(small_store, tmp_path):
    reporter = StopAt()
    train(TOPK, small_store, tmp_path / "run", reporter)
    assert set(reporter.fields) == {"step", "loss", "l0", "ev", "dead"}
    assert reporter.seen == 60
    assert any("5.55 passes over 692 training rows" in line for line in reporter.said)
    assert any(
        re.match(r"memory beside the program's own: about [\d.]+ [kM]B; writes ", said) for said in reporter.said
    )


def test_the_memory_that_mixing_takes_is_told(make_store, tmp_path):
    reporter = StopAt()
    store = make_store(700, 24, rows_per_chunk=100, order="source").path
    train(TOPK, store, tmp_path / "run", reporter)  # 693 training rows of 48 bytes, all of which fit
    assert any(
        re.search(r"own: about [\d.]+ [kM]B and 33\.3 kB to mix the rows; writes ", said) for said in reporter.said
    )


def test_the_time_left_is_told_once_after_the_first_logged_step_or_five_seconds(small_store, tmp_path, monkeypatch):
    reporter = StopAt()
    train(TOPK, small_store, tmp_path / "run", reporter)
    assert len([line for line in reporter.said if re.match(r"about \d+ s at [\d,.]+ rows/s$", line)]) == 1

    class At(StopAt):
        def say(self, text):
            self.said.append((self.seen if hasattr(self, "seen") else 0, text))

    monkeypatch.setattr("thresher.train.loop._FORECAST_AFTER_S", 0.0)
    reporter = At()
    train(replace(TOPK, log_every=50), small_store, tmp_path / "slow", reporter)
    assert [step for step, text in reporter.said if text.endswith("rows/s")] == [0]  # in the first step of 60


def test_a_store_of_two_rows_trains(make_store, tmp_path):
    made = make_store(2, 8)
    result = train(replace(TOPK, rows=640), made.path, tmp_path / "run")
    assert result.held_out.n_rows == 1
    assert np.isnan(result.held_out.explained_variance)
    records = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert records[-1]["explained_variance"] is None


@pytest.mark.parametrize("normalize", ["none", "standardize", "expected-norm"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_scaling_and_precision_trains(small_store, tmp_path, normalize, precision):
    options = replace(TOPK, normalize=normalize, precision=precision)
    result = train(options, small_store, tmp_path / "run")
    assert 0 < result.held_out.explained_variance < 1


def test_the_recipe_runs_at_a_small_size(small_store, tmp_path):
    options = resolve_options({"recipe": "post-2024", "rows": 10_240, "expansion": 8, "device": "cpu"})
    result = train(options, small_store, tmp_path / "run")
    assert result.steps == 10
    sae = open_run(tmp_path / "run").load_sae()
    assert (sae.input_mean == 0).all()
    assert (sae.input_scale == 1).all()


def test_a_store_without_a_row_to_train_on_is_refused_before_a_run_is_made(make_store, tmp_path):
    store = make_store(9, 8, invalid=range(9)).path
    with pytest.raises(StoreError, match="no rows to train on"):
        train(TrainOptions(rows=64, batch_size=8), store, tmp_path / "run")
    assert not (tmp_path / "run").exists()

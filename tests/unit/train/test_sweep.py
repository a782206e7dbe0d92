"""Sweeps: which SAEs they are, each as alone, failing alone, resumed together, never over something else."""

import json
import os
import re
import resource
import signal

import numpy as np
import pytest
import torch
from thresher.progress import Reporter
from thresher.store.errors import StoreError
from thresher.store.files import FolderLock
from thresher.store.format import Site
from thresher.store.reader import ActivationArray
from thresher.train.combinations import expand
from thresher.train.loop import train
from thresher.train.member import Member
from thresher.train.outcome import TrainingStopped
from thresher.train.recipes import resolve_options
from thresher.train.run_dir import open_run
from thresher.train.sweep import train_sweep
from thresher.train.sweep_dir import open_sweep

SHARED = {
    "lr": [3e-3], "warmup": [10], "batch_size": [64], "rows": [64 * 40], "device": ["cpu"], "dead_after_rows": [128],
    "checkpoint_every": [7], "log_every": [5], "eval_every": [20],
}  # fmt: skip
GIVEN = {"k": [2, 4], "expansion": [2.0, 4.0], **SHARED}
NAMES = ["k=2,expansion=2", "k=2,expansion=4", "k=4,expansion=2", "k=4,expansion=4"]


class StopAt(Reporter):
    """Sends this process SIGTERM, or raises, after a number of steps; keeps what is said and shown."""

    def __init__(self, step=None, error=None):
        self.step, self.error, self.said, self.shown = step, error, [], []

    def say(self, text):
        self.said.append(text)

    warn = say

    def task(self, name, total, unit, *, done=0):
        from contextlib import nullcontext

        self.seen = done // 64
        return nullcontext(self)

    def advance(self, n=1, **fields):
        self.seen += 1
        if self.seen == self.step:
            if self.error:
                raise self.error
            os.kill(os.getpid(), signal.SIGTERM)

    def show_rows(self, rows):
        self.shown.append(rows)


def names(given):
    return [member.name for member in expand(given)]


def numbers(run):
    return [{k: v for k, v in m.items() if k != "rows_per_s"} for m in open_run(run).metrics()]


def same(run, other):
    return (run / "sae.safetensors").read_bytes() == (other / "sae.safetensors").read_bytes() and numbers(
        run
    ) == numbers(other)


def config(run):
    record = json.loads((run / "config.json").read_text())
    del record["store"]["path_from_run"]
    return record


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def unbroken(small_store, kept):
    """The sweep of `GIVEN`, trained once for all tests: each has the same store at another place."""
    if not (kept / "unbroken").exists():
        train_sweep(GIVEN, small_store, kept / "unbroken")
    return kept / "unbroken"


def test_all_combinations_are_named_by_what_varies_in_the_order_given():
    assert names(GIVEN) == NAMES
    assert names({"l1": [1e-4, 0.00123456789], "variant": ["relu"], "decoder_norm": [True]}) == [
        "l1=0.0001",
        "l1=0.00123456789",
    ]


def test_an_option_varies_only_the_variants_that_have_it():
    assert names({"variant": ["relu", "topk"], "k": [16, 32], "l1": [1e-4, 1e-3]}) == [
        "variant=relu,l1=0.0001",
        "variant=relu,l1=0.001",
        "variant=topk,k=16",
        "variant=topk,k=32",
    ]
    made = {member.name: member.options for member in expand({"variant": ["relu", "topk"], "k": [7], "l1": [1e-3]})}
    assert list(made) == ["variant=relu", "variant=topk"]
    assert made["variant=relu"] == resolve_options({"variant": "relu", "l1": 1e-3})
    assert made["variant=topk"] == resolve_options({"variant": "topk", "k": 7})
    assert names({"recipe": ["post-2024"], "variant": ["relu", "topk"], "k": [4, 8]}) == [
        "variant=relu",
        "variant=topk,k=4",
        "variant=topk,k=8",
    ]


def test_an_option_of_some_remedies_varies_those():
    assert names({"dead_remedy": ["none", "auxk"], "aux_k": [8, 16]}) == [
        "dead_remedy=none",
        "dead_remedy=auxk,aux_k=8",
        "dead_remedy=auxk,aux_k=16",
    ]


def test_several_seeds_share_the_order_of_the_rows_of_the_first():
    made = expand({"seed": [3, 1]})
    assert [(m.name, m.options.seed, m.options.order_seed) for m in made] == [("seed=3", 3, 3), ("seed=1", 1, 3)]
    assert [m.options.order_seed for m in expand({"seed": [3, 1], "order_seed": [9]})] == [9, 9]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batch_size": [64, 128]}, "--batch-size 64,128: SAEs that are trained together share it; give one value."),
        ({"rows": [64, 128], "k": [2, 4]}, "--rows 64,128: SAEs"),
        ({"order_seed": [1, 2]}, "--order-seed 1,2"),
        ({"wandb": ["a", "b"]}, "--wandb a,b"),
        ({"device": ["cpu", "cuda"]}, "--device cpu,cuda"),
        ({"k": [16, 0]}, "--k 0 must be at least 1"),
        ({"variant": ["topk", "batchtopk"], "l1": [1e-3]}, "--l1 0.001 is for variant relu or gated"),
        ({"k": [16, 32], "l1": [1e-3, 1e-2]}, "is for variant relu or gated and this run is topk"),
        ({"variant": ["topk", "jumprelu"], "dead_remedy": ["preact"]}, "--dead-remedy preact is for variant jumprelu"),
        ({"k": list(range(1, 41)), "lr": [i / 100 for i in range(1, 41)]}, "1,600 combinations; at most 1,000"),
        ({"site": ["a/b", "a_b"]}, "the same name of a folder"),
    ],
)
def test_what_cannot_be_trained_together_is_refused_with_the_option(given, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        expand(given)


def test_each_member_is_byte_for_byte_the_run_that_the_same_options_alone_give(small_store, tmp_path):
    given = {"variant": ["relu", "topk", "batchtopk"], "k": [4], "l1": [0.1], "seed": [0, 1], **SHARED}
    result = train_sweep(given, small_store, tmp_path / "sweep")
    assert sorted(result.results) == sorted(
        f"variant={variant},seed={seed}" for variant in ("relu", "topk", "batchtopk") for seed in (0, 1)
    )
    for member in result.sweep.members:
        train(member.options, small_store, tmp_path / "alone" / member.name)
        assert same(tmp_path / "sweep" / member.name, tmp_path / "alone" / member.name), member.name
        assert config(tmp_path / "sweep" / member.name) == config(tmp_path / "alone" / member.name)
    weights = {(tmp_path / "sweep" / m.name / "sae.safetensors").read_bytes() for m in result.sweep.members}
    assert len(weights) == 6


def test_layers_are_trained_together_each_on_its_own_rows(make_store, tmp_path):
    store = make_store(300, 8, sites=(Site(1), Site(2))).path
    train_sweep({"layer": [1, 2], "k": [2], "expansion": [2.0], **SHARED}, store, tmp_path / "sweep")
    assert [open_run(tmp_path / f"sweep/layer={layer}").site for layer in (1, 2)] == [Site(1), Site(2)]
    alone = {"layer": 2, "k": 2, "expansion": 2.0, **{name: value for name, (value,) in SHARED.items()}}
    train(resolve_options(alone), store, tmp_path / "alone")
    assert same(tmp_path / "sweep/layer=2", tmp_path / "alone")


@pytest.mark.parametrize("damaged", [{2}, {1, 2}])
def test_held_out_rows_that_cannot_be_read_stop_whom_they_concern(make_store, tmp_path, monkeypatch, damaged):
    store = make_store(300, 8, sites=(Site(1), Site(2))).path
    given = {"layer": [1, 2], "k": [2], "expansion": [2.0], **SHARED}
    train_sweep(given, store, tmp_path / "whole")
    read = ActivationArray.read_positions

    def fails(array, start, stop):
        if array.site.layer in damaged:
            raise StoreError("its held-out rows are damaged")
        return read(array, start, stop)

    monkeypatch.setattr(ActivationArray, "read_positions", fails)
    result = train_sweep(given, store, tmp_path / "sweep")
    assert {name: failure.reason for name, failure in result.failures.items()} == {
        f"layer={layer}": "its held-out rows are damaged" for layer in damaged
    }
    assert all(same(tmp_path / "sweep" / name, tmp_path / "whole" / name) for name in result.results)
    assert len(result.results) == 2 - len(damaged)


def test_the_folder_says_what_varies_and_how_each_member_stands(small_store, unbroken):
    record = json.loads((unbroken / "sweep.json").read_text())
    assert (record["format"], record["format_version"]) == ("thresher-sweep", 1)
    assert record["varying"] == ["k", "expansion"]
    assert [(m["name"], m["varies"], m["status"]) for m in record["members"]][1] == (
        "k=2,expansion=4",
        {"k": 2, "expansion": 4.0},
        "finished",
    )
    assert [member.name for member in open_sweep(unbroken).members] == NAMES
    assert sorted(path.name for path in unbroken.iterdir()) == sorted([*NAMES, "sweep.json"])


@pytest.mark.parametrize("step", [3, 20])
def test_a_stopped_sweep_resumes_all_of_its_members(small_store, unbroken, tmp_path, step):
    with pytest.raises(TrainingStopped, match=rf"broken: stopped by SIGTERM after step {step} of 40.*--resume"):
        train_sweep(GIVEN, small_store, tmp_path / "broken", StopAt(step))
    assert {m["status"] for m in json.loads((tmp_path / "broken/sweep.json").read_text())["members"]} == {"unfinished"}
    result = train_sweep({}, small_store, tmp_path / "broken", resume=True)
    assert sorted(result.results) == sorted(NAMES)
    assert all(same(tmp_path / "broken" / name, unbroken / name) for name in NAMES)


def test_members_of_different_progress_go_on_from_where_each_is(small_store, unbroken, tmp_path):
    import shutil

    with pytest.raises(RuntimeError, match="power cut"):
        train_sweep(GIVEN, small_store, tmp_path / "broken", StopAt(31, RuntimeError("power cut")))
    broken = tmp_path / "broken"
    with pytest.raises(TrainingStopped):  # a member goes on as a run of its own
        train(open_run(broken / NAMES[1]).options, small_store, broken / NAMES[1], StopAt(35), resume=True)
    train(open_run(broken / NAMES[2]).options, small_store, broken / NAMES[2], resume=True)
    shutil.rmtree(broken / NAMES[3])  # killed before it was made
    reporter = StopAt()
    result = train_sweep(GIVEN, small_store, broken, reporter, resume=True)
    assert sorted(result.results) == sorted(NAMES)
    assert result.results[NAMES[2]].was_finished
    assert any(f"{NAMES[0]}: resumed at step 28" in line for line in reporter.said)
    assert any(f"{NAMES[1]}: resumed at step 35" in line for line in reporter.said)
    assert all(same(broken / name, unbroken / name) for name in NAMES)
    again = train_sweep({}, small_store, broken, resume=True)
    assert all(each.was_finished for each in again.results.values())


def test_a_diverging_member_stops_alone_and_is_tried_again_on_resume(small_store, tmp_path):
    given = {**SHARED, "lr": [3e-3, 1e30], "k": [4], "warmup": [0]}
    reporter = StopAt()
    result = train_sweep(given, small_store, tmp_path / "sweep", reporter)
    assert list(result.results) == ["lr=0.003"]
    assert re.search(r"step \d+ .*not finite.*lower --lr", result.failures["lr=1e+30"].reason)
    assert any("lr=1e+30 stopped, the others go on: " in line for line in reporter.said)
    assert reporter.shown[-1][-1] == {"run": "lr=1e+30", "step": "stopped"}
    recorded = {m["name"]: m for m in json.loads((tmp_path / "sweep/sweep.json").read_text())["members"]}
    assert (recorded["lr=0.003"]["status"], recorded["lr=0.003"]["reason"]) == ("finished", None)
    assert (recorded["lr=1e+30"]["status"], recorded["lr=1e+30"]["reason"]) == (
        "failed",
        result.failures["lr=1e+30"].reason,
    )
    options = {name: values[0] for name, values in given.items()}
    train(resolve_options(options), small_store, tmp_path / "alone")
    assert same(tmp_path / "sweep/lr=0.003", tmp_path / "alone")
    again = train_sweep({}, small_store, tmp_path / "sweep", resume=True)
    assert again.results["lr=0.003"].was_finished
    assert list(again.failures) == ["lr=1e+30"]


def test_where_every_member_fails_all_are_told(small_store, tmp_path):
    result = train_sweep({**SHARED, "lr": [1e30, 1e31], "warmup": [0]}, small_store, tmp_path / "sweep")
    assert (list(result.results), sorted(result.failures)) == ([], ["lr=1e+30", "lr=1e+31"])


def test_where_no_member_can_start_all_are_told(make_store, tmp_path):
    made = make_store(400, 8, rows_per_chunk=50)
    for chunk in (made.path / "layers/1/resid_post/cls/c").glob("*/0"):
        with open(chunk, "r+b") as file:
            file.write(b"\xff")
    result = train_sweep(GIVEN, made.path, tmp_path / "sweep")
    assert not result.results
    assert all("is damaged" in result.failures[name].reason for name in NAMES)
    assert {member.reason is not None for member in open_sweep(tmp_path / "sweep").members} == {True}


def test_a_member_whose_checkpoint_does_not_fit_on_the_disk_stops_alone(small_store, unbroken, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))  # of the checkpoints, half have 29 kB, half 57
    try:
        result = train_sweep(GIVEN, small_store, tmp_path / "sweep")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(result.failures) == ["k=2,expansion=4", "k=4,expansion=4"]
    assert all("could not be written" in failure.reason for failure in result.failures.values())
    resumed = train_sweep({}, small_store, tmp_path / "sweep", resume=True)
    assert not resumed.failures
    assert all(same(tmp_path / "sweep" / name, unbroken / name) for name in NAMES)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you tried to"),
    ],
    ids=["Python", "GPU", "CPU"],
)
@pytest.mark.parametrize("method", ["take_step", "_start", "observe", "evaluate", "finish"])
def test_a_member_that_finds_no_memory_stops_alone(small_store, unbroken, tmp_path, monkeypatch, error, method):
    whole = getattr(Member, method)

    def failing(self, *arguments):
        if self.run.path.name == NAMES[0] and (method != "take_step" or self.state.step == 9):
            raise error
        return whole(self, *arguments)

    monkeypatch.setattr(Member, method, failing)
    result = train_sweep(GIVEN, small_store, tmp_path / "sweep")
    assert list(result.failures) == NAMES[:1]
    assert result.failures[NAMES[0]].reason.startswith("out of memory: ")
    assert all(same(tmp_path / "sweep" / name, unbroken / name) for name in NAMES[1:])
    monkeypatch.undo()
    train_sweep({}, small_store, tmp_path / "sweep", resume=True)
    assert same(tmp_path / "sweep" / NAMES[0], unbroken / NAMES[0])


def test_a_bug_in_one_member_is_no_failure_of_it_alone(small_store, tmp_path, monkeypatch):
    monkeypatch.setattr(Member, "take_step", lambda *_: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        train_sweep(GIVEN, small_store, tmp_path / "sweep")


def test_a_sweep_is_resumed_as_it_was_started_but_for_what_changes_no_weight(small_store, tmp_path):
    sweep = tmp_path / "sweep"
    with pytest.raises(TrainingStopped):
        train_sweep(GIVEN, small_store, sweep, StopAt(3))
    with pytest.raises(StoreError, match=r"was started with k = 2, 4, not 2, 8: resume without it"):
        train_sweep({**GIVEN, "k": [2, 8]}, small_store, sweep, resume=True)
    with pytest.raises(StoreError, match=r"was started with normalize = standardize, not none"):
        train_sweep({"normalize": ["none"]}, small_store, sweep, resume=True)
    with pytest.raises(ValueError, match=r"--log-every 2,3: .*share it"):
        train_sweep({"log_every": [2, 3]}, small_store, sweep, resume=True)
    train_sweep({"k": [4, 2], "log_every": [4]}, small_store, sweep, resume=True)
    assert [m["step"] for m in open_run(sweep / NAMES[0]).metrics() if m["split"] == "train"][:2] == [4, 8]


def test_nothing_is_written_where_one_member_cannot_be(small_store, make_store, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="--k 9999 exceeds the 48 features"):
        train_sweep({**GIVEN, "k": [2, 9999]}, small_store, tmp_path / "sweep")
    several = make_store(200, 8, name="several.zarr", sites=(Site(1), Site(2))).path
    with pytest.raises(StoreError, match="does not hold the site asked for"):
        train_sweep({**SHARED, "layer": [1, 7]}, several, tmp_path / "sweep")
    monkeypatch.setattr("thresher.train.resources.free_bytes", lambda _: 100_000)
    with pytest.raises(
        StoreError, match=r"sweep needs \d+ kB while training, 100 kB are free.*train fewer SAEs at once"
    ):
        train_sweep({**GIVEN, "k": [2, 4, 6]}, small_store, tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()


def test_a_sweep_is_neither_overwritten_nor_mixed_with_anything(small_store, tmp_path):
    one = {name: value for name, (value,) in SHARED.items()}
    short = {**GIVEN, "rows": [64]}
    sweep, run = tmp_path / "sweep", tmp_path / "run"
    train_sweep(short, small_store, sweep)
    train(resolve_options(one), small_store, run)
    with pytest.raises(StoreError, match=r"already holds a sweep of 4 SAEs.*--resume.*--overwrite"):
        train_sweep(short, small_store, sweep)
    for options in (one, {**one, "overwrite": True}):
        with pytest.raises(StoreError, match="holds a sweep of several SAEs, which a run does not replace"):
            train(resolve_options(options), small_store, sweep)
    for place in (run, run / "inside"):
        for overwrite in (False, True):
            with pytest.raises(StoreError, match=r"run is a run, and a sweep is not made over it or inside it"):
                train_sweep({**short, "overwrite": [overwrite]}, small_store, place)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("precious")
    with pytest.raises(StoreError, match="exists and is not a sweep"):
        train_sweep({**short, "overwrite": [True]}, small_store, tmp_path / "mine")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StoreError, match="a file is in its way"):
        train_sweep(short, small_store, tmp_path / "file")
    with pytest.raises(StoreError, match=r"holds no sweep\.json"):
        train_sweep(short, small_store, run, resume=True)
    with pytest.raises(
        StoreError, match=r"is a sweep of several SAEs: name one of them, such as .*sweep/k=2,expansion=2"
    ):
        open_run(sweep)


def test_overwriting_a_sweep_replaces_its_runs_and_leaves_what_is_the_users(small_store, tmp_path):
    sweep = tmp_path / "sweep"
    short = {**GIVEN, "rows": [64]}
    train_sweep(short, small_store, sweep)
    (sweep / NAMES[0] / "notes.txt").write_text("mine")
    (sweep / NAMES[1] / "features.zarr").mkdir()
    (sweep / "sweep.tsv").write_text("old")
    lock = FolderLock(sweep / NAMES[1])
    with pytest.raises(StoreError, match="another process"):
        train_sweep({**short, "overwrite": [True]}, small_store, sweep)
    lock.close()
    assert open_run(sweep / NAMES[0]).is_finished
    train_sweep({**short, "k": [3, 5], "overwrite": [True]}, small_store, sweep)
    assert sorted(path.name for path in sweep.iterdir()) == sorted(
        [*(f"k={k},expansion={e}" for k in (3, 5) for e in (2, 4)), NAMES[0], "sweep.json"]
    )
    assert [path.name for path in (sweep / NAMES[0]).iterdir()] == ["notes.txt"]


def test_two_processes_do_not_train_the_same_sweep(small_store, tmp_path):
    train_sweep({**GIVEN, "rows": [64]}, small_store, tmp_path / "sweep")
    lock = FolderLock(tmp_path / "sweep")
    with pytest.raises(StoreError, match="another process"):
        train_sweep({**GIVEN, "rows": [64], "overwrite": [True]}, small_store, tmp_path / "sweep")
    lock.close()


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.pop("members"),
        lambda record: record["members"][0].update(name="../outside"),
        lambda record: record["members"][0]["options"].update(k=-1),
    ],
    ids=["no members", "a name that leads out", "an option that is none"],
)
def test_a_damaged_record_is_one_line(small_store, tmp_path, change):
    train_sweep({**GIVEN, "rows": [64]}, small_store, tmp_path / "sweep")
    path = tmp_path / "sweep/sweep.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    with pytest.raises(StoreError, match=r"sweep\.json is damaged"):
        open_sweep(tmp_path / "sweep")


def test_the_live_display_has_a_line_for_each_member(small_store, tmp_path):
    reporter = StopAt()
    train_sweep(GIVEN, small_store, tmp_path / "sweep", reporter)
    assert [row["run"] for row in reporter.shown[-1]] == NAMES
    assert set(reporter.shown[-1][0]) == {"run", "step", "loss", "l0", "ev", "dead"}
    assert np.isfinite(reporter.shown[-1][0]["loss"])

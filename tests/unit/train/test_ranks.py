"""Several processes train what one trains: here as threads, whose sums are made in the order of their numbers."""

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from thresher.store.errors import StoreError
from thresher.store.format import Site
from thresher.train import member
from thresher.train.loop import train, train_together
from thresher.train.options import TrainOptions
from thresher.train.outcome import TrainingStopped
from thresher.train.ranks import ALONE, DistributedRanks, OneProcess, joined_ranks
from thresher.train.run_dir import open_run
from trained_alike import BASE, SETTINGS, STEPS, digest, in_float64, keeping_states


class Threads:
    """What threads that stand for processes have in common."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.given: list = [None] * n
        self.barrier = threading.Barrier(n, timeout=60)


class ThreadRank(OneProcess):
    """One thread in place of a process."""

    adds = True

    def __init__(self, threads: Threads, rank: int) -> None:
        self._threads, self.rank, self.n_ranks = threads, rank, threads.n

    def _exchange(self, given: object) -> list:
        self._threads.given[self.rank] = given
        self._threads.barrier.wait()
        taken = list(self._threads.given)
        self._threads.barrier.wait()
        return taken

    def add(self, tensors):
        everyone = self._exchange([tensor.clone() for tensor in tensors])
        if self.adds:
            for i, tensor in enumerate(tensors):
                tensor.copy_(sum(each[i] for each in everyone))

    def take_first(self, tensors):
        for tensor, first in zip(tensors, self._exchange([tensor.clone() for tensor in tensors])[0], strict=True):
            tensor.copy_(first)

    def collect(self, values):
        return torch.cat(self._exchange(values))

    def any(self, name):
        return next((each for each in self._exchange(name) if each), None)

    def tell(self, text):
        return self._exchange(text)[0]

    def wait(self):
        self._exchange(None)


def train_in(n: int, store: Path, members: dict[Path, TrainOptions], kind: type[ThreadRank] = ThreadRank, **how):
    """Train with `n` threads as processes; the errors of all."""
    threads, errors = Threads(n), [None] * n

    def work(rank: int) -> None:
        try:
            train_together(members, store, ranks=kind(threads, rank), **how)
        except Exception as error:
            errors[rank] = error
            threads.barrier.abort()

    workers = [threading.Thread(target=work, args=(rank,)) for rank in range(n)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return errors


@pytest.fixture
def store(make_store):
    rng = np.random.default_rng(0)
    codes = rng.exponential(2.0, (700, 40)) * (rng.random((700, 40)) < 0.06)
    rows = codes @ rng.standard_normal((40, 24)) / 5 + 0.02 * rng.standard_normal((700, 24)) + rng.standard_normal(24)
    return make_store(
        700, 24, rows=rows, dtype="float32", invalid=(13,), rows_per_chunk=100, thumbnails=False,
        sites=(Site(1), Site(2)),
    ).path  # fmt: skip


def of(options: TrainOptions) -> TrainOptions:
    return options if options.layer is not None else replace(options, layer=1)


def metrics(run: Path, *without: str) -> list[dict]:
    return [{k: v for k, v in m.items() if k not in ("rows_per_s", *without)} for m in open_run(run).metrics()]


def compare(states, n: int, one: Path, several: Path) -> None:
    for rank in range(1, n):
        assert digest(states[several.name, rank]) == digest(states[several.name, 0])
    alone, together = states[one.name, 0], states[several.name, 0]
    for name in alone:
        if alone[name].dtype == torch.int64:
            assert torch.equal(alone[name], together[name]), name
            continue
        # Sums differ by 1e-16 of gradients below 1. Where a gradient is that small Adam divides it by its epsilon,
        # 1e-8, and moves by the rate, at most 2e-2, times 1e-8, which 24 steps add up. A controller's numbers are
        # float32.
        limit = 1e-8 if alone[name].dtype == torch.float64 else 1e-6 * float(alone[name].abs().max())
        assert float((alone[name] - together[name]).abs().max()) < limit, name
    for a, b in zip(metrics(one), metrics(several), strict=True):
        assert a["l0"] == pytest.approx(b["l0"], rel=1e-12), a["step"]
        assert a.get("n_dead") == b.get("n_dead")
        flat_a, flat_b = ({k: v for k, v in m.items() if isinstance(v, float)} for m in (a, b))
        assert flat_a == pytest.approx(flat_b, rel=2e-5, abs=1e-6)  # a batch's metrics are float32 sums


@pytest.mark.parametrize("name", SETTINGS)
def test_several_processes_train_what_one_does(store, tmp_path, name):
    options = of(SETTINGS[name])
    with in_float64(), keeping_states() as states:
        train(options, store, tmp_path / "one")
        assert train_in(3, store, {tmp_path / "several": options}) == [None] * 3
    compare(states, 3, tmp_path / "one", tmp_path / "several")


def test_the_settings_do_what_they_are_named_for(store, tmp_path):
    for name, options in SETTINGS.items():
        train(of(options), store, tmp_path / name)
    logged = {name: [m for m in metrics(tmp_path / name) if m["split"] == "train"] for name in SETTINGS}
    for name in ("relu with ghost gradients", "topk with AuxK", "batchtopk with AuxK", "matryoshka", "jumprelu"):
        assert any(m["dead_loss"] > 0 for m in logged[name]), name
    for name in ("gated with resampling", "topk in parts of a batch"):
        assert "dead features resampled" in (tmp_path / name / "log.txt").read_text(), name
    coefficients = [m["coefficient"] for m in logged["relu at a target L0"]]
    assert len(set(coefficients)) == STEPS


@pytest.mark.parametrize("name", ["relu with ghost gradients", "batchtopk with AuxK"])
def test_processes_that_do_not_add_up_are_found_out(store, tmp_path, name):
    class Apart(ThreadRank):
        adds = False

    options = of(SETTINGS[name])
    with in_float64(), keeping_states() as states:
        train(options, store, tmp_path / "one")
        train_in(2, store, {tmp_path / "several": options}, Apart)
    with pytest.raises(AssertionError):
        compare(states, 2, tmp_path / "one", tmp_path / "several")


@pytest.mark.parametrize("name", ["relu with ghost gradients", "batchtopk with AuxK", "gated with resampling"])
def test_a_process_without_a_row_of_a_batch_holds_the_same_weights(store, tmp_path, name):
    options = of(replace(SETTINGS[name], batch_size=2, rows=2 * STEPS, dead_after_rows=6, micro_batch_size=None))
    with in_float64(), keeping_states() as states:
        train(options, store, tmp_path / "one")
        assert train_in(3, store, {tmp_path / "several": options}) == [None] * 3
    compare(states, 3, tmp_path / "one", tmp_path / "several")


def test_a_sweep_in_several_processes_is_that_of_one(store, tmp_path):
    sizes = {"a": replace(BASE, k=3, layer=1), "b": of(SETTINGS["relu with ghost gradients"])}
    with in_float64(), keeping_states() as states:
        train_together({tmp_path / f"{name} alone": options for name, options in sizes.items()}, store)
        together = {tmp_path / f"{name} together": options for name, options in sizes.items()}
        assert train_in(2, store, together) == [None, None]
    for name in sizes:
        compare(states, 2, tmp_path / f"{name} alone", tmp_path / f"{name} together")


def test_several_processes_go_on_where_one_was_stopped_and_one_where_several_were(store, tmp_path, monkeypatch):
    options = of(SETTINGS["gated with resampling"])
    take = member.Member.take_step

    def fails(self, batch):
        if self.state.step == 14 and self.run.path.name.startswith("broken"):
            raise RuntimeError("power cut")
        return take(self, batch)

    with in_float64(), keeping_states() as states:
        train(options, store, tmp_path / "one")
        with monkeypatch.context() as patched:
            patched.setattr(member.Member, "take_step", fails)
            with pytest.raises(RuntimeError, match="power cut"):
                train(options, store, tmp_path / "broken one")
            errors = train_in(2, store, {tmp_path / "broken two": options})
            assert all(str(error) == "power cut" for error in errors)
        assert train_in(3, store, {tmp_path / "broken one": options}, resume=True) == [None] * 3
        train(options, store, tmp_path / "broken two", resume=True)
    compare(states, 3, tmp_path / "one", tmp_path / "broken one")
    compare(states, 1, tmp_path / "one", tmp_path / "broken two")


def test_a_loss_that_is_not_finite_stops_all_processes_with_the_same_words(store, tmp_path):
    options = of(replace(SETTINGS["relu with ghost gradients"], lr=1e30, warmup=0, clip_norm=0.0))
    errors = train_in(2, store, {tmp_path / "run": options})
    assert all(isinstance(error, TrainingStopped) for error in errors), errors
    assert str(errors[0]) == str(errors[1])
    assert "is not finite" in str(errors[0])


def test_a_signal_that_one_process_gets_stops_all_after_the_same_step(store, tmp_path):
    class Signalled(ThreadRank):
        def any(self, name):
            self.calls = getattr(self, "calls", 0) + 1
            return super().any("SIGTERM" if self.rank == 1 and self.calls == 11 else name)

    options = of(SETTINGS["batchtopk with AuxK"])
    with in_float64(), keeping_states() as states:
        train(options, store, tmp_path / "one")
        errors = train_in(2, store, {tmp_path / "run": options}, Signalled)
        assert {str(error) for error in errors} == {
            f"{tmp_path / 'run'}: stopped by SIGTERM after step 11 of 24, checkpoint written: go on with the same "
            "command and --resume."
        }
        assert [p.name for p in (tmp_path / "run/checkpoint").iterdir()] == ["step-0000000011.safetensors"]
        assert train_in(3, store, {tmp_path / "run": options}, resume=True) == [None] * 3
    compare(states, 3, tmp_path / "one", tmp_path / "run")


def test_a_run_that_is_taken_is_refused_by_the_first_process(store, tmp_path):
    options = of(SETTINGS["topk with AuxK"])
    train(options, store, tmp_path / "run")
    errors = train_in(2, store, {tmp_path / "run": options})
    assert isinstance(errors[0], StoreError)
    assert "already holds a run" in str(errors[0])
    assert isinstance(errors[1], threading.BrokenBarrierError)  # the other one is ended by that


def test_a_process_by_itself_is_alone_and_half_of_torchruns_environment_is_refused(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with joined_ranks() as ranks:
        assert ranks is ALONE
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ValueError, match="MASTER_ADDR and MASTER_PORT is not set: start"), joined_ranks():
        pass


class OfMany(DistributedRanks):
    def __init__(self, rank: int) -> None:
        self.rank = rank


def test_each_process_takes_the_gpu_of_its_number(monkeypatch):
    chosen = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.set_device", chosen.append)
    monkeypatch.setenv("LOCAL_RANK", "1")
    for name in ("auto", "cuda"):
        assert OfMany(5).device(name) == torch.device("cuda", 1)
    assert chosen == [torch.device("cuda", 1)] * 2
    assert OfMany(5).device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="--device cuda:0 under torchrun: give --device cuda"):
        OfMany(5).device("cuda:0")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match=r"2 CUDA devices, too few for process 2: --nproc-per-node 2"):
        OfMany(5).device("cuda")

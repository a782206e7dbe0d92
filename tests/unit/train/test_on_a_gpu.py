"""Training on a GPU: this machine's where it has one, else one that is pretended (`pretend_cuda`)."""

import os
import signal
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from pretend_cuda import pretend_cuda
from thresher.progress import Reporter
from thresher.store.reader import open_store
from thresher.train.features import SparseFeatures
from thresher.train.loader import BatchLoader
from thresher.train.loop import train
from thresher.train.models import load_sae
from thresher.train.options import TrainOptions
from thresher.train.outcome import TrainingStopped
from thresher.train.rounded import RoundedTiles

TOPK = TrainOptions(
    k=4, expansion=4, lr=3e-3, warmup=10, batch_size=64, rows=64 * 40, dead_after_rows=128,
    checkpoint_every=15, log_every=20, eval_every=20,
)  # fmt: skip
L1 = {"l1": 1.0, "lr": 2e-2}
SETTINGS = {
    "relu": {"variant": "relu", **L1},
    "relu, ghost": {
        **{"variant": "relu", **L1, "dead_remedy": "ghost", "normalize": "none"},
        **{"b_dec_init": "geometric-median", "encoder_init": "independent"},
    },
    "relu, resampling": {"variant": "relu", **L1, "dead_remedy": "resample", "resample_every": 10},
    "relu, decoder norm, target": {"variant": "relu", "target_l0": 5.0, "decoder_norm": True},
    "topk": {},
    "topk, AdamW, clipped": {"weight_decay": 0.01, "clip_norm": 1.0, "schedule": "cosine"},
    "topk, bf16, in parts": {"precision": "bf16", "micro_batch_size": 20},
    "topk, tf32": {"precision": "tf32"},
    "batchtopk": {"variant": "batchtopk"},
    "matryoshka": {"variant": "matryoshka"},
    "jumprelu, target": {"variant": "jumprelu", "target_l0": 5.0},
    "jumprelu, preact": {"variant": "jumprelu", "dead_remedy": "preact"},
    "gated, layer norm": {"variant": "gated", **L1, "normalize": "layer-norm"},
}
IS_REAL = torch.cuda.is_available()


@pytest.fixture
def waits(monkeypatch):
    """How often the CPU waited for the device, by operation; nothing is counted on a real one."""
    if IS_REAL:
        yield Counter()
    else:
        with pretend_cuda(monkeypatch) as device:
            yield device.waits


@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_mixes_no_devices_and_gives_the_weights_of_a_cpu(name, small_store, tmp_path, waits):
    options = replace(TOPK, device="cuda:0", **SETTINGS[name])
    result = train(options, small_store, tmp_path / "gpu")
    assert result.steps == 40
    if not IS_REAL and name != "topk, tf32":  # the pretended device has the CPU's kernels
        train(replace(options, device="cpu"), small_store, tmp_path / "cpu")
        ours, of_cpu = (load_sae(tmp_path / run).tensors() for run in ("gpu", "cpu"))
        for weight in ours:
            torch.testing.assert_close(ours[weight], of_cpu[weight], rtol=1e-4, atol=1e-5)


class StopAfter(Reporter):
    """Sends this process SIGTERM after a number of steps."""

    def __init__(self, steps: int) -> None:
        self.steps_left = steps

    def task(self, name, total, unit, *, done=0):
        return nullcontext(self)

    def advance(self, n=1, **fields):
        self.steps_left -= 1
        if self.steps_left == 0:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("name", ["relu, ghost", "topk, AdamW, clipped", "batchtopk", "jumprelu, target"])
def test_a_run_stopped_and_resumed_on_a_gpu_equals_an_unbroken_one(name, small_store, tmp_path, waits):
    options = replace(TOPK, device="cuda:0", **SETTINGS[name])
    train(options, small_store, tmp_path / "unbroken")
    with pytest.raises(TrainingStopped, match="SIGTERM"):
        train(options, small_store, tmp_path / "broken", StopAfter(23))
    train(options, small_store, tmp_path / "broken", resume=True)
    ours, unbroken = (load_sae(tmp_path / run).tensors() for run in ("broken", "unbroken"))
    for weight in ours:
        assert torch.equal(ours[weight], unbroken[weight]), weight


@pytest.mark.parametrize("name", ["relu", "topk", "batchtopk", "jumprelu, target", "gated, layer norm"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_sparse_encoding_on_a_gpu_is_that_of_a_cpu(name, precision, small_store, tmp_path, waits):
    train(replace(TOPK, device="cpu", **SETTINGS[name]), small_store, tmp_path / "run")
    here, there = load_sae(tmp_path / "run"), load_sae(tmp_path / "run").to("cuda:0")
    x = open_store(small_store).activations().read_positions(0, 90)
    tiles = RoundedTiles(there) if precision == "bf16" else None
    f = there.encode_sparse(torch.from_numpy(x).to("cuda:0"), tile=32, tiles=tiles)
    torch.testing.assert_close(f.to_dense().cpu(), here.encode(torch.from_numpy(x)), rtol=1e-4, atol=1e-4)
    reconstructed = there.decode_sparse(f, torch.from_numpy(x)).cpu()
    torch.testing.assert_close(reconstructed, here(torch.from_numpy(x)), rtol=1e-4, atol=1e-4)


def test_sums_by_row_on_a_gpu_repeat_bit_for_bit(waits):
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(0, 400, (300,), generator=generator)
    counts[100:110] = 0
    n = int(counts.sum())
    indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    value = torch.rand(n, generator=generator).mul(9).exp()
    index = torch.randint(0, 1000, (n,), generator=generator)
    there = SparseFeatures(*(each.to("cuda:0") for each in (indptr, index, value)), 1000)
    first, *others = (there.sum_by_row(there.value).cpu() for _ in range(20))
    assert all(torch.equal(first, other) for other in others)
    expected = [float(part.double().sum()) for part in value.split(counts.tolist())]
    torch.testing.assert_close(first, torch.tensor(expected, dtype=torch.float64), rtol=1e-13, atol=0)


# Of a step: the choice of active pairs and their number; BatchTopK, besides, its threshold from a few rows.
MOST_WAITS = {"topk": 0, "relu": 2, "jumprelu, target": 2, "gated, layer norm": 2, "batchtopk": 5}


@pytest.mark.skipif(IS_REAL, reason="waits are counted on a pretended device")
@pytest.mark.parametrize(("name", "most"), MOST_WAITS.items())
def test_a_step_that_is_not_logged_waits_for_a_gpu_only_to_choose_its_pairs(
    name, most, small_store, tmp_path, monkeypatch
):
    quiet = {"log_every": 1000, "eval_every": 0, "checkpoint_every": 0, "decay": 0.0, "dead_after_rows": 64_000}
    found = []
    for steps in (10, 30):
        options = replace(TOPK, device="cuda:0", **SETTINGS[name], **quiet)
        with pretend_cuda(monkeypatch) as device:
            train(replace(options, rows=64 * steps), small_store, tmp_path / f"{steps}")
        found.append(device.waits.total())
    assert found[1] - found[0] <= 20 * most


@pytest.mark.skipif(IS_REAL, reason="the order of copies is seen on a pretended device")
def test_a_batch_is_held_until_the_gpu_that_it_goes_to_has_copied_it(small_store, monkeypatch):
    arrays = [open_store(small_store).activations()]
    with pretend_cuda(monkeypatch):
        loader = BatchLoader(arrays, batch_size=64, seed=0, device=torch.device("cuda", 1))
        events, event = [], torch.cuda.Event
        monkeypatch.setattr(torch.cuda, "Event", lambda: events.append(event()) or events[-1])
        assert len(list(loader.batches(0, 3))) == 3
    assert [each.recorded_on for each in events] == [("stream of", torch.device("cuda", 1))] * 3

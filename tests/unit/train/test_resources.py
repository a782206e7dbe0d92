"""What a run needs of memory and disk, against the files that it writes and the memory that it takes."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import thresher.train.resources as resources
from thresher.store.errors import StoreError
from thresher.store.format import Site
from thresher.train import member
from thresher.train.initialise import new_sae
from thresher.train.loop import train, train_together
from thresher.train.options import TrainOptions
from thresher.train.resources import Size, disk_bytes, memory_bytes
from trained_alike import SETTINGS


@pytest.mark.parametrize("name", SETTINGS)
def test_the_weights_counted_are_those_trained(name):
    size = Size(SETTINGS[name], 24, 30 if name == "transcoder" else 24)
    sae = new_sae(size.options, size.d_in, size.d_out)
    assert size.n_weights == sum(parameter.numel() for parameter in sae.parameters().values())


@pytest.mark.parametrize("name", ["relu with ghost gradients", "gated with resampling", "jumprelu", "transcoder"])
def test_a_checkpoint_has_the_size_that_is_told(make_store, tmp_path, monkeypatch, name):
    store = make_store(200, 24, widths={Site(1): 24, Site(2): 40}, sites=(Site(1), Site(2)), thumbnails=False).path
    written = []
    save = member.save_checkpoint
    monkeypatch.setattr(member, "save_checkpoint", lambda *given: written.append(save(*given).stat().st_size))
    options = replace(SETTINGS[name], layer=1, expansion=64, rows=500, checkpoint_every=9, micro_batch_size=None)
    train(options, store, tmp_path / "run")
    size = Size(options, 24, 40 if name == "transcoder" else 24)
    assert len(written) == 1
    assert size.checkpoint_bytes == pytest.approx(written[0], abs=4000)  # safetensors' header, the scaling
    assert disk_bytes([size]) == 2 * size.checkpoint_bytes  # the one before it stays until it is whole


def test_a_sweep_needs_the_sum_of_its_states_and_one_step_at_a_time():
    small, large = (Size(TrainOptions(expansion=n), 512, 512) for n in (4, 32))
    assert disk_bytes([small, large]) == small.checkpoint_bytes + 2 * large.checkpoint_bytes
    assert memory_bytes([small, large], 10) == small.checkpoint_bytes + memory_bytes([large], 10)


def test_processes_and_parts_of_a_batch_need_less_until_the_weights_weigh_more():
    whole = Size(TrainOptions(variant="jumprelu", expansion=8, batch_size=8192), 512, 512)
    parts = Size(replace(whole.options, micro_batch_size=256), 512, 512)
    assert memory_bytes([parts], 10) < memory_bytes([whole], 10, n_ranks=4) < memory_bytes([whole], 10)


def test_space_is_asked_for_all_members_at_once(make_store, tmp_path, monkeypatch):
    store = make_store(200, 24, thumbnails=False).path
    options = TrainOptions(k=3, expansion=4, batch_size=50, rows=500, device="cpu")
    members = {tmp_path / f"sweep/{n}": replace(options, seed=n, order_seed=0) for n in range(3)}
    one = Size(options, 24, 24).checkpoint_bytes
    monkeypatch.setattr(resources, "free_bytes", lambda path: 4 * one - 1)
    with pytest.raises(StoreError, match=r"sweep needs .* while training, .* are free: .*train fewer SAEs at once"):
        train_together(members, store)
    assert not (tmp_path / "sweep").exists()
    monkeypatch.setattr(resources, "free_bytes", lambda path: 4 * one)
    train_together(members, store)


MEASURE = """
import json, sys
from pathlib import Path
from thresher.train import member
from thresher.train.loop import train_together
from thresher.train.options import TrainOptions

def of_status(name):
    return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1]) * 1024

store, run, *given = sys.argv[1:]
import torch
torch.ones(64, 64) @ torch.ones(64, 64)
before = of_status("VmRSS")
members = {Path(run, str(i)): TrainOptions(**json.loads(each)) for i, each in enumerate(given)}
train_together(members, store)
print(of_status("VmHWM") - before)
"""


@pytest.mark.faults
@pytest.mark.parametrize(
    "given",
    [
        [{"variant": "topk"}],
        [{"variant": "topk", "micro_batch_size": 256}],
        [{"variant": "matryoshka"}],
        [{"variant": "relu", "dead_remedy": "ghost"}],
        [{"variant": "jumprelu"}],
        [{"variant": "gated"}],
        [{"variant": "topk", "to_layer": 2}],
        [{"variant": "topk"}, {"variant": "relu"}, {"variant": "topk", "expansion": 8}],
    ],
    ids=lambda given: " and ".join(" ".join(map(str, each.values())) for each in given),
)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory from /proc")
def test_the_memory_told_is_that_taken(make_store, tmp_path, given):
    store = make_store(20_000, 512, rows_per_chunk=1000, thumbnails=False, sites=(Site(1), Site(2))).path
    common = {"layer": 1, "device": "cpu", "rows": 4096, "dead_after_rows": 1500, "checkpoint_every": 2, "warmup": 1}
    options = [{**common, **each} for each in given]
    command = [sys.executable, "-c", MEASURE, str(store), str(tmp_path / "run"), *map(json.dumps, options)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    taken = int(done.stdout)
    sizes = [Size(TrainOptions(**each), 512, 512) for each in options]
    told = memory_bytes(sizes, 19_800)
    print(f"told {told / 1e6:.0f} MB, taken {taken / 1e6:.0f} MB: {told / taken:.2f}")
    assert 0.8 < told / taken < 1.3

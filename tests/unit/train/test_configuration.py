"""A run is held to the store that it was trained on, field by field, and keeps to the parts that the store had then."""

import json
import os
import signal
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from thresher.analysis.encode import encode
from thresher.analysis.features import open_features
from thresher.analysis.options import EncodeOptions
from thresher.progress import Reporter
from thresher.store.errors import StoreError
from thresher.store.format import Site
from thresher.store.layout import keys_sha256
from thresher.store.objects import open_objects
from thresher.store.parts import add_part, next_part
from thresher.store.reader import open_store
from thresher.store.writer import create_store
from thresher.train.configuration import is_training_store, require_training_store
from thresher.train.loop import train
from thresher.train.options import TrainOptions
from thresher.train.outcome import TrainingStopped
from thresher.train.run_dir import open_run

OPTIONS = TrainOptions(
    k=4, expansion=2, lr=3e-3, warmup=2, batch_size=32, rows=32 * 12, device="cpu", checkpoint_every=3, log_every=5
)


class StopAt(Reporter):
    """Sends this process SIGTERM after a number of steps."""

    def __init__(self, step: int) -> None:
        self.left = step

    def task(self, name, total, unit, *, done=0):
        return nullcontext(self)

    def advance(self, n=1, **fields):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)


def _write_like(made, path, *, keys=None, invalid=(), **changes) -> None:
    """A store as `made`, with other fields of provenance or spec; `invalid` are places."""
    of_spec = {name: value for name, value in changes.items() if hasattr(made.spec, name) and name != "dtype"}
    of_provenance = {name: value for name, value in changes.items() if name not in of_spec}
    keys = keys or made.keys
    provenance = replace(
        made.spec.provenance, **{"keys_sha256": keys_sha256(keys, made.labels), "n_images": len(keys)} | of_provenance
    )
    spec = replace(made.spec, **{"provenance": provenance, "dtype": provenance.dtype} | of_spec)
    with create_store(path, spec, keys=keys, labels=made.labels) as writer:
        for number in range(writer.n_windows):
            start, stop = writer.window_images(number)
            valid = ~np.isin(np.arange(start, stop), invalid)
            images = writer.order.images_at(np.arange(start, stop))
            rows = np.zeros((stop - start, made.spec.sites[Site(1)]), np.float32)
            window = writer.window(number)
            window.put(start, dict.fromkeys(spec.sites, rows), valid, [(i, "gone") for i in images[~valid].tolist()])
            window.commit()


@pytest.fixture
def made(make_store):
    return make_store(300, 8, rows_per_chunk=100, dtype="float32")


@pytest.fixture
def run(made, tmp_path):
    train(OPTIONS, made.path, tmp_path / "run")
    return open_run(tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights_sha256": "1" * 64}, "weights_sha256 is '000"),
        ({"preprocessing": {"size": 64}}, "preprocessing.size is 32 there and 64 here"),
        ({"packages": {"torch": "9"}}, "packages.torch is None there and '9' here"),
        ({"precision": "bf16", "precision_error": {"mean": 0.1}}, "precision is 'fp32' there and 'bf16' here"),
        ({"seed": 5}, "seed is 0 there and 5 here"),
        ({"dtype": "float16"}, "dtype is 'float32' there and 'float16' here"),
        ({"image_source": "elsewhere"}, "image_source is 'made up' there and 'elsewhere' here"),
        ({"sites": {Site(1): 8, Site(2): 8}}, r"sites is \['layers/1/resid_post/cls'\] there and \["),
        ({"rows_per_chunk": 50}, "rows_per_chunk is 100 there and 50 here"),
        ({"codec": "zstd"}, "codec is 'none' there and 'zstd' here"),
        ({"thumbnail_px": None}, "thumbnail_px is 128 there and None here"),
        ({"keys": [b"%d.jpg" % i for i in range(300)]}, "keys_sha256 is"),
        ({"label_names": ["other"]}, "the fingerprint of its own rows is"),
        ({"invalid": (4, 5)}, "n_valid is 300 there and 298 here"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_store_in_its_place_is_refused_by_the_field_that_differs(made, run, tmp_path, changes, message):
    other = tmp_path / "other.zarr"
    _write_like(made, other, **changes)
    store = open_store(other)
    assert not is_training_store(run, store)
    with pytest.raises(StoreError, match=rf"other\.zarr is not the store that .*run was trained on: {message}"):
        require_training_store(run, store)
    require_training_store(run, open_store(made.path))


def test_train_and_encode_refuse_another_store_in_its_place(made, tmp_path):
    with pytest.raises(TrainingStopped):
        train(OPTIONS, made.path, tmp_path / "run", StopAt(4))
    kept = tmp_path / "kept.zarr"
    made.path.rename(kept)
    _write_like(made, made.path, weights_sha256="1" * 64)
    with pytest.raises(StoreError, match="weights_sha256 is"):
        train(OPTIONS, made.path, tmp_path / "run", resume=True)
    train(OPTIONS, kept, tmp_path / "run", resume=True)
    with pytest.raises(StoreError, match=r"weights_sha256 is .*name it with --store"):
        encode(tmp_path / "run")
    with pytest.raises(StoreError, match="weights_sha256 is"):
        encode(tmp_path / "run", EncodeOptions(store=str(made.path)))


def _append(make_store, base, n, seed):
    place = next_part(open_objects(base.path))
    make_store(n, 8, place=place.url, dtype="float32", rows_per_chunk=50, key_prefix=f"more {seed} ", seed=seed)
    add_part(open_objects(base.path), place)


def test_a_run_goes_on_as_if_nothing_had_been_appended(make_store, made, tmp_path):
    _append(make_store, made, 60, 1)
    train(OPTIONS, made.path, tmp_path / "unbroken")
    encode(tmp_path / "unbroken")
    with pytest.raises(TrainingStopped):
        train(OPTIONS, made.path, tmp_path / "broken", StopAt(4))
    _append(make_store, made, 80, 2)
    train(OPTIONS, made.path, tmp_path / "broken", resume=True)
    encode(tmp_path / "broken")
    one, other = (open_features(tmp_path / name) for name in ("unbroken", "broken"))
    assert one.info.n_rows == other.info.n_rows == 360
    assert one.info.store_fingerprint == other.info.store_fingerprint
    assert one.info.n_store_parts == other.info.n_store_parts == 2
    assert (tmp_path / "unbroken/sae.safetensors").read_bytes() == (tmp_path / "broken/sae.safetensors").read_bytes()
    for array in ("index", "value", "indptr"):
        files = [sorted((tmp_path / name / "features.zarr" / array).rglob("*")) for name in ("unbroken", "broken")]
        for a, b in zip(*files, strict=True):
            assert a.is_dir() or a.read_bytes() == b.read_bytes()
    assert open_store(made.path).n_rows == 440


def test_a_store_that_has_lost_a_part_since_is_refused(make_store, made, tmp_path):
    _append(make_store, made, 60, 1)
    train(OPTIONS, made.path, tmp_path / "run")
    (made.path / "commits/parts/1.json").unlink()
    with pytest.raises(StoreError, match="n_parts is 2 there and 1 here"):
        encode(tmp_path / "run")


@pytest.fixture
def of_two_layers(make_store):
    return make_store(300, 8, sites=(Site(1), Site(2)), rows_per_chunk=100, dtype="float32").path


def _stopped(options, store, path):
    with pytest.raises(TrainingStopped):
        train(options, store, path, StopAt(4))


@pytest.mark.parametrize(
    ("started", "resumed", "message"),
    [
        ({}, {"layer": 2}, "started with site = layers/1/resid_post/cls, not layers/2/resid_post/cls"),
        ({}, {"to_layer": 2}, "started without target site, not with layers/2/resid_post/cls"),
        ({"to_layer": 2}, {"to_layer": None}, "started with target site = layers/2/resid_post/cls, not None"),
        ({}, {"order_seed": 7}, "started with order_seed = 0, not 7"),
        ({"order_seed": 7}, {"order_seed": None}, "started with order_seed = 7, not 0"),
        ({}, {"seed": 1, "order_seed": 0}, "started with seed = 0, not 1"),
        ({}, {"error": "normalized"}, "started with error = mse, not normalized"),
        ({}, {"dead_remedy": "none"}, "started with dead_remedy = auxk, not none"),
        ({}, {"clip_norm": 1.0}, "started with clip_norm = 0.0, not 1.0"),
        ({}, {"precision": "bf16"}, "started with precision = fp32, not bf16"),
        ({"variant": "relu", "target_l0": 5.0}, {"target_l0": 6.0}, "started with target_l0 = 5.0, not 6.0"),
        ({"variant": "matryoshka"}, {"groups": 2}, "started with groups = 5, not 2"),
    ],
    ids=lambda value: "",
)
def test_a_run_goes_on_only_as_it_was_started(of_two_layers, tmp_path, started, resumed, message):
    options = replace(OPTIONS, layer=1, **started)
    _stopped(options, of_two_layers, tmp_path / "run")
    with pytest.raises(StoreError, match=message):
        train(replace(options, **resumed), of_two_layers, tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    "resumed",
    [
        {"site": "resid_post", "token": "cls"},
        {"order_seed": 0},
        {"error": "mse", "dead_remedy": "auxk"},
        {"micro_batch_size": 7, "log_every": 1, "eval_every": 2, "eval_rows": 1, "checkpoint_every": 1},
    ],
    ids=["sites named", "order named", "usual options named", "what changes no weight"],
)
def test_what_means_the_same_does_not_keep_a_run_from_going_on(of_two_layers, tmp_path, resumed):
    options = replace(OPTIONS, layer=1)
    _stopped(options, of_two_layers, tmp_path / "run")
    train(replace(options, **resumed), of_two_layers, tmp_path / "run", resume=True)


def test_a_run_of_another_version_is_named_with_the_option_in_one_line(run):
    path = run.path / "config.json"
    whole = json.loads(path.read_text())
    for change, message in (({"k": ...}, "no training option 'k'"), ({"later": 1}, "unknown training option 'later'")):
        options = {name: value for name, value in (whole["options"] | change).items() if value is not ...}
        path.write_text(json.dumps(whole | {"options": options}))
        with pytest.raises(StoreError, match=rf"config\.json holds what this thresher cannot train with: {message}"):
            open_run(run.path).options  # noqa: B018 (reading it is the test)


def test_tf32_is_refused_off_cuda_before_a_run_is_made(made, tmp_path):
    with pytest.raises(ValueError, match="--precision tf32 is of CUDA devices, and this run is on cpu: leave it out"):
        train(replace(OPTIONS, precision="tf32"), made.path, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_each_step_sets_how_exact_float32_matmuls_are_and_then_leaves_it_as_it_was(made, tmp_path, monkeypatch):
    from thresher.train import member

    seen, step = [], member.compute_step

    def compute_step(*given, **named):
        seen.append(torch.get_float32_matmul_precision())
        if len(seen) == 20:
            raise RuntimeError("amid a step")
        return step(*given, **named)

    monkeypatch.setattr(member, "compute_step", compute_step)
    monkeypatch.setattr("thresher.train.loop.check_precision", lambda *given: None)
    torch.set_float32_matmul_precision("medium")
    try:
        train(OPTIONS, made.path, tmp_path / "fp32")
        with pytest.raises(RuntimeError, match="amid a step"):
            train(replace(OPTIONS, precision="tf32"), made.path, tmp_path / "tf32")
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert seen == ["highest"] * 12 + ["high"] * 8

"""A run is held to the store that it was trained on, field by field, and keeps to the parts that the store had then."""

import os
import signal
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
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
from thresher.train.loop import TrainingStopped, train
from thresher.train.options import TrainOptions
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
        ({"label_names": ["other"]}, "the fingerprint of part 0 is"),
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

import json
import os
import re
import shutil
import signal
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from listener import Listener
from PIL import Image
from thresher.harvest import forward
from thresher.harvest.images import open_images
from thresher.harvest.options import HarvestOptions
from thresher.harvest.run import harvest
from thresher.harvest.sites import capture
from thresher.harvest.vision import load_tower
from thresher.store import format as f
from thresher.store.errors import StoreError
from thresher.store.format import Site
from thresher.store.objects import LocalFolder
from thresher.store.reader import open_store
from thresher.store.row_order import RowOrder
from thresher.store.verify import verify_store
from thresher.store.writer import WindowWriter


@pytest.fixture
def options(tiny_model):
    def make(**changes):
        defaults = {"model": str(tiny_model), "layer": (1,), "workers": 0, "batch_size": 3, "rows_per_chunk": 5}
        return HarvestOptions(**(defaults | {"device": "cpu"} | changes))

    return make


@pytest.fixture
def folder(tmp_path, pictures):
    return pictures.class_folders(tmp_path / "set", n_per_class=4)  # 12 images: chunks of 5, 5 and 2


def expected_rows(tiny_model, source, layer):
    """Each image alone through open_clip's own preprocessing and a hook: (n, 32) in source order."""
    tower = load_tower(str(tiny_model))
    rows = []
    with open_images(source) as images:
        for key in images.keys:
            with Image.open(os.path.join(os.fsencode(source), key)) as picture:
                image = tower.preprocess(picture.convert("RGB"))[None]
            rows.append(capture(tower, image, [Site(layer)])[Site(layer)][0].numpy())
    return np.stack(rows)


def files_below(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("order", ["random", "source"])
def test_each_row_is_its_images_activation(tiny_model, options, folder, tmp_path, order, workers):
    result = harvest(options(order=order, workers=workers, seed=7), folder, tmp_path / "s.zarr")
    store = open_store(tmp_path / "s.zarr")
    expected = expected_rows(tiny_model, folder, 1)
    row_image = store.images(0, 12)
    assert row_image.tolist() == RowOrder(12, order=order, seed=7).images(np.arange(12)).tolist()
    assert (row_image.tolist() == list(range(12))) == (order == "source")
    got = store.activations().read(0, 12).astype(np.float32)
    np.testing.assert_allclose(
        got, expected[row_image], rtol=2.0**-11, atol=2e-6
    )  # float16's half unit; batching's sums
    assert store.labels(0, 12).tolist() == [i // 4 for i in row_image]
    assert store.keys(range(12)) == [f"{('n01440764', 'n01443537', 'zebra')[i // 4]}/{i % 4}.png" for i in row_image]
    assert store.label_names == ["tench", "goldfish", "zebra"]
    assert (result.n_rows, result.n_valid, result.n_harvested, result.unreadable) == (12, 12, 12, [])


def test_two_layers_are_harvested_in_one_pass_over_the_tower(tiny_model, options, folder, tmp_path, monkeypatch):
    forwards = []
    real = forward.capture
    monkeypatch.setattr(forward, "capture", lambda *a: forwards.append(len(a[1])) or real(*a))
    harvest(options(layer=(2, 0), dtype="float32"), folder, tmp_path / "s.zarr")
    store = open_store(tmp_path / "s.zarr")
    assert store.sites == (Site(0), Site(2))
    harvested = [3, 2, 3, 2, 2]  # batches that never straddle a chunk
    assert sorted(forwards[-5:]) == sorted(harvested)
    assert set(forwards[:-5]) == {3}  # the measurement
    for site in store.sites:
        expected = expected_rows(tiny_model, folder, site.layer)[store.images(0, 12)]
        np.testing.assert_allclose(store.activations(site).read(0, 12), expected, atol=2e-6)


def test_the_provenance_says_what_was_done(tiny_model, options, folder, tmp_path):
    harvest(options(seed=3), folder, tmp_path / "s.zarr")
    p = open_store(tmp_path / "s.zarr").provenance
    tower = load_tower(str(tiny_model))
    assert p.weights_sha256 == tower.weights_sha256
    assert (p.n_layers, p.width, p.quick_gelu, p.precision, p.dtype) == (3, 32, False, "fp32", "float16")
    assert p.preprocessing["mean"] == [0.3, 0.4, 0.5]
    assert (p.image_source, p.n_images, p.row_order, p.seed) == (str(folder), 12, "random", 3)
    assert p.packages["torch"] == torch.__version__.split("+")[0]
    assert p.precision_error is None


def test_the_error_of_a_faster_precision_is_measured_recorded_and_told(options, folder, tmp_path, tiny_model):
    listener = Listener()
    harvest(options(precision="bf16", order="source"), folder, tmp_path / "s.zarr", listener)
    error = open_store(tmp_path / "s.zarr").provenance.precision_error
    exact = expected_rows(tiny_model, folder, 1)[:3]
    got = open_store(tmp_path / "s.zarr").activations().read(0, 3).astype(np.float64)
    seen = np.linalg.norm(got - exact, axis=1) / np.linalg.norm(exact, axis=1)
    assert error["n_rows"] == 3
    assert error["max"] == pytest.approx(seen.max(), rel=0.2)  # float16 storage adds its own 2^-12 or so
    assert error["mean"] == pytest.approx(seen.mean(), rel=0.2)
    assert any("bf16: the rows of the first batch differ from fp32 by" in line for line in listener.said)


def test_unreadable_images_keep_their_rows_and_are_listed(options, folder, tmp_path, pictures, tiny_model):
    jpeg = pictures.encoded(suffix="jpg", quality=95)
    (folder / "zebra" / "1.png").write_bytes(b"a text file")
    (folder / "n01443537" / "0.png").write_bytes(jpeg[: len(jpeg) // 2])
    listener = Listener()
    result = harvest(options(), folder, tmp_path / "s.zarr", listener)
    assert (result.n_rows, result.n_valid) == (12, 10)
    reasons = {bad.key: bad.reason for bad in result.unreadable}
    assert set(reasons) == {"zebra/1.png", "n01443537/0.png"}
    assert reasons["zebra/1.png"] == "not an image in a known format"
    assert "truncated" in reasons["n01443537/0.png"]
    store = open_store(tmp_path / "s.zarr")
    for bad in result.unreadable:
        row = store.images(0, 12).tolist().index(bad.image)
        assert store.keys([row]) == [bad.key]
        assert np.isnan(store.activations().read(row, row + 1)).all()
        assert store.thumbnail(row) is None
    assert "2 of 12 images could not be read." in listener.warned
    assert any("zebra/1.png: not an image" in line for line in listener.warned)


def test_an_unreadable_image_does_not_change_another_row(options, folder, tmp_path):
    harvest(options(), folder, tmp_path / "whole.zarr")
    (folder / "zebra" / "1.png").write_bytes(b"a text file")
    harvest(options(), folder, tmp_path / "holed.zarr")
    whole, holed = (open_store(tmp_path / name).activations().read(0, 12) for name in ("whole.zarr", "holed.zarr"))
    bad = open_store(tmp_path / "holed.zarr").invalid_rows
    assert len(bad) == 1
    assert np.array_equal(np.delete(whole, bad, axis=0), np.delete(holed, bad, axis=0))


def test_strict_stops_at_an_unreadable_image_and_names_it(options, folder, tmp_path):
    (folder / "zebra" / "1.png").write_bytes(b"a text file")
    with pytest.raises(StoreError, match=r"image 'zebra/1\.png' cannot be read: not an image.*--strict"):
        harvest(options(strict=True), folder, tmp_path / "s.zarr")


def test_no_readable_image_is_an_error(options, tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "note.jpg").write_text("a note")
    with pytest.raises(StoreError, match="not one of 1 images could be read"):
        harvest(options(), tmp_path / "set", tmp_path / "s.zarr")


def test_a_file_that_vanishes_is_unreadable(options, tmp_path, pictures):
    (tmp_path / "a.png").write_bytes(pictures.encoded())
    table = tmp_path / "set.csv"
    table.write_text("path,label\na.png,0\ngone.png,0\n")
    result = harvest(options(), table, tmp_path / "s.zarr")
    assert [(bad.key, bad.reason) for bad in result.unreadable] == [("gone.png", "No such file or directory")]


def test_activations_that_are_not_finite_name_the_image(models, options, tmp_path, folder):
    from safetensors.torch import load_file, save_file

    model = models.write("nan")
    state = load_file(model / "open_clip_model.safetensors")
    state["visual.transformer.resblocks.1.mlp.c_proj.bias"][3] = float("nan")
    save_file(state, model / "open_clip_model.safetensors")
    with pytest.raises(StoreError, match=r"not finite at layer 1 .*'.*\.png' \(3 images of this batch\)"):
        harvest(options(model=str(model)), folder, tmp_path / "s.zarr")


def test_a_limit_takes_a_seeded_sample_of_every_class_not_the_first_images(options, folder, tmp_path):
    harvest(options(limit=6, seed=1), folder, tmp_path / "s.zarr")
    store = open_store(tmp_path / "s.zarr")
    chosen = np.sort(RowOrder(12, seed=1).images_at(np.arange(6)))
    keys = [f"{('n01440764', 'n01443537', 'zebra')[i // 4]}/{i % 4}.png" for i in chosen]
    assert store.n_rows == 6
    assert sorted(store.keys(range(6))) == keys
    assert len(set(store.labels(0, 6).tolist())) > 1


def test_a_limit_in_source_order_takes_the_first_images(options, folder, tmp_path):
    harvest(options(limit=5, order="source"), folder, tmp_path / "s.zarr")
    store = open_store(tmp_path / "s.zarr")
    assert store.keys(range(5)) == [f"n01440764/{i}.png" for i in range(4)] + ["n01443537/0.png"]


def test_thumbnails_show_their_rows_image(options, tmp_path, pictures):
    import io

    (tmp_path / "set").mkdir()
    for i, colour in enumerate(["red", "lime", "blue"]):
        Image.new("RGB", (300, 150), colour).save(tmp_path / "set" / f"{i}.png")
    harvest(options(), tmp_path / "set", tmp_path / "s.zarr")
    store = open_store(tmp_path / "s.zarr")
    for row, image in enumerate(store.images(0, 3)):
        with Image.open(io.BytesIO(store.thumbnail(row))) as opened:
            assert opened.size == (128, 64)
            assert np.asarray(opened)[30, 60].argmax() == image


def test_thumbnails_can_be_left_out(options, folder, tmp_path):
    harvest(options(thumbnails="off"), folder, tmp_path / "s.zarr")
    assert open_store(tmp_path / "s.zarr").thumbnail(0) is None


def test_a_stopped_harvest_goes_on_and_ends_with_the_same_bytes(options, folder, tmp_path, monkeypatch):
    harvest(options(), folder, tmp_path / "whole.zarr")
    harvest(options(), folder, tmp_path / "again.zarr")
    assert files_below(tmp_path / "whole.zarr") == files_below(tmp_path / "again.zarr")

    real = WindowWriter.write

    def interrupted(self, settle):
        if self.number:
            raise OSError(28, "No space left on device")
        return real(self, settle)

    with monkeypatch.context() as patch:
        patch.setattr(WindowWriter, "write", interrupted)
        with pytest.raises(OSError, match="No space left"):
            harvest(options(), folder, tmp_path / "part.zarr")
    result = harvest(options(), folder, tmp_path / "part.zarr")
    assert result.n_harvested == 7  # chunks of 5 and 2; the first chunk of 5 was kept
    assert files_below(tmp_path / "part.zarr") == files_below(tmp_path / "whole.zarr")


def test_a_complete_store_is_left_as_it_is(options, folder, tmp_path):
    harvest(options(), folder, tmp_path / "s.zarr")
    before = files_below(tmp_path / "s.zarr")
    listener = Listener()
    result = harvest(options(), folder, tmp_path / "s.zarr", listener)
    assert any("is complete: 12 rows; nothing to do" in line for line in listener.said)
    assert (result.n_harvested, result.n_rows) == (0, 12)
    assert files_below(tmp_path / "s.zarr") == before


@pytest.mark.parametrize("changes", [{"seed": 5}, {"layer": (2,)}, {"precision": "bf16"}, {"batch_size": 4}])
def test_other_options_do_not_go_on_in_a_store(options, folder, tmp_path, changes):
    harvest(options(), folder, tmp_path / "s.zarr")
    with pytest.raises(StoreError, match="was begun with other settings"):
        harvest(options(**changes), folder, tmp_path / "s.zarr")


def test_other_images_do_not_go_on_in_a_store(options, folder, tmp_path):
    harvest(options(), folder, tmp_path / "s.zarr")
    (folder / "zebra" / "3.png").rename(folder / "zebra" / "4.png")
    with pytest.raises(StoreError, match="keys_sha256"):
        harvest(options(), folder, tmp_path / "s.zarr")


def test_overwrite_replaces_a_store(options, folder, tmp_path):
    harvest(options(), folder, tmp_path / "s.zarr")
    harvest(options(seed=5, overwrite=True), folder, tmp_path / "s.zarr")
    assert open_store(tmp_path / "s.zarr").provenance.seed == 5


def test_something_else_at_the_stores_place_is_refused_and_kept(options, folder, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name, message in (("thesis", "not an activation store"), ("file", "not a folder")):
        for overwrite in (False, True):
            with pytest.raises(StoreError, match=message):
                harvest(options(overwrite=overwrite), folder, tmp_path / name)
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "mine"


def test_a_damaged_store_and_a_link_to_nothing_are_told_before_the_model_is_loaded(
    options, folder, tmp_path, monkeypatch
):
    harvest(options(), folder, tmp_path / "s.zarr")
    (tmp_path / "s.zarr" / "zarr.json").unlink()
    (tmp_path / "link.zarr").symlink_to(tmp_path / "nowhere")
    monkeypatch.setattr("thresher.harvest.run.load_tower", lambda *_, **__: pytest.fail("the tower was loaded"))
    with pytest.raises(StoreError, match="the rest of a store is there"):
        harvest(options(), folder, tmp_path / "s.zarr")
    with pytest.raises(StoreError, match="is a link to nothing"):
        harvest(options(), folder, tmp_path / "link.zarr")


def test_a_harvest_that_was_killed_while_it_made_the_store_begins_anew(options, folder, tmp_path):
    harvest(options(), folder, tmp_path / "s.zarr")
    (tmp_path / "s.zarr" / "zarr.json").unlink()  # the last document that is written before the mark goes
    (tmp_path / "s.zarr" / f.CREATING).touch()
    assert harvest(options(), folder, tmp_path / "s.zarr").n_harvested > 0
    assert verify_store(tmp_path / "s.zarr").problems == []


def test_a_disk_that_is_too_small_is_noticed_before_the_start(options, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(LocalFolder, "free_bytes", lambda _self: 1000)
    with pytest.raises(StoreError, match=r"needs about .* and the disk has 1 kB free"):
        harvest(options(), folder, tmp_path / "s.zarr")
    assert not (tmp_path / "s.zarr").exists()


def test_a_layer_out_of_range_leaves_nothing_behind(options, folder, tmp_path):
    with pytest.raises(ValueError, match="layer 22 is out of range"):
        harvest(options(layer=(22,)), folder, tmp_path / "s.zarr")
    assert not (tmp_path / "s.zarr").exists()


def test_size_and_time_are_told_before_the_start(options, folder, tmp_path):
    listener = Listener()
    harvest(options(), folder, tmp_path / "s.zarr", listener)
    line = next(line for line in listener.said if "12 rows, float16" in line)
    assert "layer 1 (0-based) resid_post cls (32 wide)" in line
    assert "free" in line
    assert "images/s measured on one batch" in line


def test_the_size_told_beforehand_is_near_that_of_the_store(tmp_path, tiny_model):
    rng = np.random.default_rng(0)
    folder = tmp_path / "set"
    folder.mkdir()
    for i in range(60):
        Image.fromarray(rng.integers(0, 256, (128, 128, 3), np.uint8)).save(folder / f"{i}.png")
    listener = Listener()
    chosen = HarvestOptions(model=str(tiny_model), layer=(1,), workers=0, batch_size=30, rows_per_chunk=60)
    result = harvest(chosen, folder, tmp_path / "s.zarr", listener)
    assert result.size_bytes == sum(len(data) for data in files_below(tmp_path / "s.zarr").values())
    (line,) = [line for line in listener.said if "measured on one batch" in line]
    told = 1e6 * float(re.search(r"about ([\d.]+) MB \(", line)[1])
    assert told > 60 * 8000  # noise: thumbnails of more than the usual 4 kB
    assert told == pytest.approx(result.size_bytes, rel=0.1)


def test_ctrl_c_says_that_the_same_command_goes_on(options, folder, tmp_path):
    class Interrupting(Listener):
        @contextmanager
        def task(self, *_args, **_kwargs):
            yield self

        def advance(self, n):
            self.seen = getattr(self, "seen", 0) + n
            if self.seen > 5:  # in the second chunk
                raise KeyboardInterrupt

    listener = Interrupting()
    with pytest.raises(KeyboardInterrupt):
        harvest(options(workers=1), folder, tmp_path / "s.zarr", listener)
    assert any("Stopped: 5 of 12 images are in" in line for line in listener.said)
    assert harvest(options(workers=1), folder, tmp_path / "s.zarr").n_harvested == 7


def test_a_worker_that_is_killed_is_reported_and_the_harvest_goes_on_later(options, folder, tmp_path, monkeypatch):
    from thresher.harvest import batches

    real, parent = batches.decode_image, os.getpid()

    def deadly(data):
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(data)

    with monkeypatch.context() as patch:
        patch.setattr(batches, "decode_image", deadly)
        with pytest.raises(ChildProcessError, match="a decoding process died"):
            harvest(options(workers=1), folder, tmp_path / "s.zarr")
    assert harvest(options(workers=1), folder, tmp_path / "s.zarr").n_valid == 12


def test_a_worker_that_dies_while_a_window_is_written_is_reported_too(options, folder, tmp_path, monkeypatch):
    real = WindowWriter.write

    def write(self, settle):
        real(self, settle)
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")  # torch's, in its SIGCHLD handler

    monkeypatch.setattr(WindowWriter, "write", write)
    with pytest.raises(ChildProcessError, match=r"a decoding process died \(DataLoader worker \(pid 7\)"):
        harvest(options(workers=1), folder, tmp_path / "s.zarr")


def test_processes_of_one_machine_take_a_gpu_each(options, monkeypatch):
    from thresher.harvest import run
    from thresher.harvest.ranks import Ranks

    class Second(Ranks):
        rank, n_ranks, local_rank, n_local = 5, 8, 1, 4

    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(run, "load_tower", lambda model, pretrained, device, **_: device)
    assert [run._load_tower(options(device=name), Second()) for name in ("auto", "cuda")] == ["cuda:1", "cuda:1"]
    assert chosen == [torch.device("cuda:1")] * 2
    for name in ("cpu", "cuda:3"):
        assert run._load_tower(options(device=name), Second()) == name
    assert run._load_tower(options(device="auto"), Ranks()) == "auto"  # alone
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="cuda:1: this machine has 1 CUDA devices"):
        run._load_tower(options(device="auto"), Second())


def test_the_callers_random_numbers_are_left_alone(options, folder, tmp_path):
    torch.manual_seed(11)
    before = torch.get_rng_state()
    harvest(options(workers=1), folder, tmp_path / "s.zarr")
    assert torch.equal(torch.get_rng_state(), before)


def test_sixteen_bit_cmyk_palette_and_transparent_pictures_are_rows_like_others(
    options, tmp_path, pictures, tiny_model
):
    root = tmp_path / "set"
    root.mkdir()
    pictures.picture(mode="CMYK").save(root / "cmyk.jpg")
    Image.fromarray(np.arange(40 * 40, dtype=np.uint16).reshape(40, 40) * 40).save(root / "deep.png")
    pictures.picture().quantize(16).save(root / "palette.png")
    pictures.picture(mode="RGBA").save(root / "clear.png")
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    frames[0].save(root / "moving.gif", save_all=True, append_images=frames[1:])
    result = harvest(options(), root, tmp_path / "s.zarr")
    assert (result.n_valid, result.unreadable) == (5, [])


def test_the_store_is_the_same_with_and_without_worker_processes(options, folder, tmp_path):
    for workers in (0, 2):
        harvest(options(workers=workers), folder, tmp_path / f"{workers}.zarr")
    assert files_below(tmp_path / "0.zarr") == files_below(tmp_path / "2.zarr")


@pytest.mark.parametrize("token", ["cls", "patch"])
def test_a_store_at_a_url_has_the_bytes_of_one_on_disk(options, folder, tmp_path, token):
    import fsspec

    url = f"memory://harvest-{token}/s.zarr"
    for workers in (1, 0):  # the second resumes: nothing is left
        result = harvest(options(token=token, workers=workers), folder, url)
    assert (result.store_path, result.n_harvested) == (url, 0)
    memory = fsspec.filesystem("memory")
    there = {name.split("s.zarr/", 1)[1]: memory.cat_file(name) for name in memory.find(f"/harvest-{token}") if name}
    harvest(options(token=token), folder, tmp_path / "s.zarr")
    assert there == files_below(tmp_path / "s.zarr")


def test_a_moved_source_goes_on_since_keys_are_relative(options, folder, tmp_path):
    harvest(options(), folder, tmp_path / "s.zarr")
    shutil.move(folder, tmp_path / "elsewhere")
    assert harvest(options(), tmp_path / "elsewhere", tmp_path / "s.zarr").n_harvested == 0
    assert json.loads((tmp_path / "s.zarr" / "zarr.json").read_text())["attributes"]["provenance"]["n_images"] == 12


@pytest.mark.parametrize("append", [False, True])
def test_a_store_inside_another_is_refused_before_anything_is_read_or_written(options, folder, tmp_path, append):
    outer, inner = tmp_path / "s.zarr", tmp_path / "s.zarr" / "inner.zarr"
    harvest(options(), folder, outer)
    if append:  # one that an earlier version let stand there
        shutil.copytree(outer, tmp_path / "copy.zarr")
        shutil.copytree(tmp_path / "copy.zarr", inner)
    before = sorted(path for path in outer.rglob("*"))
    with pytest.raises(StoreError, match=r"inner\.zarr lies inside the store .*s\.zarr: name another STORE"):
        harvest(options(model="no such model", append=append), tmp_path / "no images", inner)
    assert sorted(path for path in outer.rglob("*")) == before

import json

import numpy as np
import pytest
from listener import Listener
from thresher.harvest.options import HarvestOptions
from thresher.harvest.run import harvest
from thresher.store.errors import StoreError, UnfinishedStoreError
from thresher.store.format import Site
from thresher.store.objects import LocalFolder
from thresher.store.reader import open_store
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
    return pictures.class_folders(tmp_path / "set", n_per_class=4)


@pytest.fixture
def more(tmp_path, pictures):
    """Other pictures, of one class that the first set has and one that it has not."""
    root = tmp_path / "more"
    for c, name in enumerate(("okapi", "zebra")):
        (root / name).mkdir(parents=True)
        for i in range(4):
            (root / name / f"new {i}.png").write_bytes(pictures.encoded(1000 + 10 * c + i))
    return root


def files_below(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def interrupt_after(monkeypatch, n):
    real = WindowWriter.write

    def interrupted(self, settle):
        if self.number >= n:
            raise OSError(28, "No space left on device")
        return real(self, settle)

    monkeypatch.setattr(WindowWriter, "write", interrupted)


@pytest.mark.parametrize("token", ["cls", "patch"])
def test_an_appended_part_holds_the_bytes_of_a_store_of_its_own(options, folder, more, tmp_path, token):
    store = tmp_path / "s.zarr"
    harvest(options(token=token), folder, store)
    before = files_below(store)
    listener = Listener()
    result = harvest(options(token=token, append=True), more, store, listener)
    harvest(options(token=token), more, tmp_path / "alone.zarr")
    t = 4 if token == "patch" else 1
    assert (result.n_rows, result.n_valid, result.n_harvested) == (20 * t, 20 * t, 8)
    assert result.store_path == str(store)
    after = files_below(store)
    assert {name: after[name] for name in before} == before  # nothing was rewritten
    part = {name.removeprefix("parts/1/"): data for name, data in after.items() if name.startswith("parts/1/")}
    assert part == files_below(tmp_path / "alone.zarr")
    assert after.keys() - before.keys() == {"commits/parts/1.json", *(f"parts/1/{name}" for name in part)}
    opened = open_store(store)
    alone = open_store(tmp_path / "alone.zarr")
    np.testing.assert_array_equal(opened.activations().read(12 * t, 20 * t), alone.activations().read(0, 8 * t))
    assert opened.keys(range(12 * t, 20 * t)) == alone.keys(range(8 * t))
    names = [opened.label_names[label] for label in opened.labels(12 * t, 20 * t)]
    assert names == [key.split("/")[0] for key in opened.keys(range(12 * t, 20 * t))]


def test_parts_are_added_one_after_the_other(options, folder, more, tmp_path, pictures):
    third = pictures.class_folders(tmp_path / "third", n_per_class=1, classes=("gnu",))
    harvest(options(), folder, tmp_path / "s.zarr")
    harvest(options(append=True), more, tmp_path / "s.zarr")
    harvest(options(append=True, rows_per_chunk=7, order="source"), third, tmp_path / "s.zarr")
    store = open_store(tmp_path / "s.zarr")
    assert [part.n_rows for part in store.parts] == [12, 8, 1]
    assert store.keys([20]) == ["gnu/0.png"]


def test_an_append_that_was_stopped_is_not_presented_and_goes_on_by_the_same_command(
    options, folder, more, tmp_path, monkeypatch
):
    for name in ("s.zarr", "whole.zarr"):
        harvest(options(), folder, tmp_path / name)
    harvest(options(append=True), more, tmp_path / "whole.zarr")
    with monkeypatch.context() as patch:
        interrupt_after(patch, 1)
        with pytest.raises(OSError, match="No space left"):
            harvest(options(append=True), more, tmp_path / "s.zarr")
    assert open_store(tmp_path / "s.zarr").n_rows == 12
    result = harvest(options(append=True), more, tmp_path / "s.zarr")
    assert (result.n_harvested, result.n_rows) == (3, 20)
    assert files_below(tmp_path / "s.zarr") == files_below(tmp_path / "whole.zarr")


def test_a_part_that_was_finished_but_not_joined_is_joined_by_the_same_command(
    options, folder, more, tmp_path, monkeypatch
):
    from thresher.harvest import run

    harvest(options(), folder, tmp_path / "s.zarr")
    with monkeypatch.context() as patch:
        patch.setattr(run, "finish", lambda _target: (_ for _ in ()).throw(OSError("cut off")))
        with pytest.raises(OSError, match="cut off"):
            harvest(options(append=True), more, tmp_path / "s.zarr")
    assert open_store(tmp_path / "s.zarr").n_rows == 12
    result = harvest(options(append=True), more, tmp_path / "s.zarr")
    assert (result.n_harvested, result.n_rows) == (0, 20)


def test_images_that_the_store_holds_are_refused(options, folder, more, tmp_path):
    harvest(options(), folder, tmp_path / "s.zarr")
    harvest(options(append=True), more, tmp_path / "s.zarr")
    for images in (folder, more):
        with pytest.raises(StoreError, match=r"s\.zarr holds these \d+ images already: nothing to append"):
            harvest(options(append=True), images, tmp_path / "s.zarr")
    assert open_store(tmp_path / "s.zarr").n_rows == 20


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "float32"}, "dtype is 'float16' there and 'float32' here"),
        ({"precision": "bf16"}, "precision is 'fp32' there and 'bf16' here"),
        ({"layer": (1, 2)}, "arrays is .* there and .* here"),
        ({"site": ("mlp_out",)}, r"arrays is \['layers/1/resid_post/cls'\] there and \['layers/1/mlp_out/cls'\] here"),
        ({"token": "mean"}, r"arrays is .*cls.* there and .*mean.* here"),
        ({"pretrained": "none"}, "weights_sha256 is"),
    ],
)
def test_rows_of_another_kind_are_refused_and_the_field_is_named(options, folder, more, tmp_path, changes, message):
    harvest(options(), folder, tmp_path / "s.zarr")
    before = files_below(tmp_path / "s.zarr")
    with pytest.raises(StoreError, match=f"cannot take these rows: {message}"):
        harvest(options(append=True, **changes), more, tmp_path / "s.zarr")
    assert files_below(tmp_path / "s.zarr") == before


def test_images_without_class_names_do_not_join_those_with(options, folder, tmp_path, pictures):
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "a.png").write_bytes(pictures.encoded(7))
    harvest(options(), folder, tmp_path / "s.zarr")
    with pytest.raises(StoreError, match="it has some label_names, these images have no; see --label-names"):
        harvest(options(append=True), tmp_path / "flat", tmp_path / "s.zarr")


def test_there_must_be_a_finished_store_to_append_to(options, folder, more, tmp_path, monkeypatch):
    with pytest.raises(StoreError, match=r"s\.zarr does not exist"):
        harvest(options(append=True), more, tmp_path / "s.zarr")
    with monkeypatch.context() as patch:
        interrupt_after(patch, 1)
        with pytest.raises(OSError, match="No space left"):
            harvest(options(), folder, tmp_path / "s.zarr")
    with pytest.raises(UnfinishedStoreError, match="the harvest did not finish"):
        harvest(options(append=True), more, tmp_path / "s.zarr")


def test_an_unfinished_append_of_other_images_is_named(options, folder, more, tmp_path, pictures, monkeypatch):
    third = pictures.class_folders(tmp_path / "third", n_per_class=9, classes=("gnu",))
    harvest(options(), folder, tmp_path / "s.zarr")
    with monkeypatch.context() as patch:
        interrupt_after(patch, 1)
        with pytest.raises(OSError, match="No space left"):
            harvest(options(append=True), third, tmp_path / "s.zarr")
    with pytest.raises(StoreError, match=r"parts/1, which an earlier --append left unfinished \(finish that one first"):
        harvest(options(append=True), more, tmp_path / "s.zarr")
    harvest(options(append=True), third, tmp_path / "s.zarr")
    harvest(options(append=True), more, tmp_path / "s.zarr")
    assert open_store(tmp_path / "s.zarr").n_rows == 12 + 9 + 8


def test_an_addition_without_a_readable_image_leaves_the_store_as_it_was(options, folder, more, tmp_path):
    (tmp_path / "notes" / "zebra").mkdir(parents=True)
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "notes" / "zebra" / name).write_text("a note")
    harvest(options(), folder, tmp_path / "s.zarr")
    before = files_below(tmp_path / "s.zarr")
    said = (
        r"^nothing was added to .*s\.zarr: not one of 2 images could be read "
        r"\(the first: zebra/a\.jpg: not an image in a known format\)\.$"
    )
    for _ in range(2):
        with pytest.raises(StoreError, match=said):
            harvest(options(append=True), tmp_path / "notes", tmp_path / "s.zarr")
        assert not (tmp_path / "s.zarr/parts/1").exists()
    assert files_below(tmp_path / "s.zarr") == before
    report = verify_store(tmp_path / "s.zarr")
    assert (report.problems, report.leftovers) == ([], [])
    assert harvest(options(append=True), more, tmp_path / "s.zarr").n_rows == 20


def test_an_addition_that_was_half_taken_away_is_cleared_by_the_next(options, folder, more, tmp_path, monkeypatch):
    (tmp_path / "notes" / "zebra").mkdir(parents=True)
    (tmp_path / "notes" / "zebra" / "a.jpg").write_text("a note")
    harvest(options(), folder, tmp_path / "s.zarr")
    with monkeypatch.context() as patch:
        patch.setattr(LocalFolder, "delete_all", lambda self, keep: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            harvest(options(append=True), tmp_path / "notes", tmp_path / "s.zarr")
    assert open_store(tmp_path / "s.zarr").n_rows == 12
    harvest(options(append=True), more, tmp_path / "s.zarr")
    harvest(options(), more, tmp_path / "alone.zarr")
    assert files_below(tmp_path / "s.zarr/parts/1") == files_below(tmp_path / "alone.zarr")


def test_only_the_new_parts_unreadable_images_are_warned_of(options, folder, more, tmp_path):
    (folder / "zebra" / "1.png").write_bytes(b"a text file")
    (more / "okapi" / "new 2.png").write_bytes(b"another")
    harvest(options(), folder, tmp_path / "s.zarr")
    listener = Listener()
    result = harvest(options(append=True), more, tmp_path / "s.zarr", listener)
    assert listener.warned[-2:] == [
        "unreadable: okapi/new 2.png: not an image in a known format",
        "1 of 8 images could not be read.",
    ]
    assert [bad.key for bad in result.unreadable] == ["zebra/1.png", "okapi/new 2.png"]


def test_the_source_is_recorded_so_that_any_folder_leads_to_it(options, folder, more, tmp_path, monkeypatch):
    from thresher.harvest.images import open_images

    monkeypatch.chdir(tmp_path)
    harvest(options(limit=7), "set", "s.zarr")
    with open_images(more) as images:
        harvest(options(append=True), images, "s.zarr")
    first, second = (
        json.loads((tmp_path / "s.zarr" / name).read_text())["attributes"]["provenance"]
        for name in ("zarr.json", "parts/1/zarr.json")
    )
    assert (first["source"], first["limit"], first["n_images"]) == ([str(tmp_path / "set")], 7, 7)
    assert (second["source"], second["limit"]) == ([], None)  # opened by the caller
    assert open_store("s.zarr").activations(Site(1)).read(0, 15).shape == (15, 32)

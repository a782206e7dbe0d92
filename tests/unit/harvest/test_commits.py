"""Windows are written while the next ones are computed, and never more than that."""

import threading

import pytest
from thresher.harvest import batches
from thresher.harvest.options import HarvestOptions
from thresher.harvest.run import harvest
from thresher.store.errors import UnfinishedStoreError
from thresher.store.reader import open_store
from thresher.store.verify import verify_store
from thresher.store.writer import WindowWriter

WAIT_S = 20.0


@pytest.fixture
def options(tiny_model):
    def make(**changes):
        defaults = {"model": str(tiny_model), "layer": (1,), "workers": 0, "batch_size": 3, "rows_per_chunk": 5}
        return HarvestOptions(**(defaults | {"device": "cpu"} | changes))

    return make


@pytest.fixture
def folder(tmp_path, pictures):
    return pictures.class_folders(tmp_path / "set", n_per_class=8)  # 24 images: windows of 5, 5, 5, 5 and 4


def files_below(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def test_a_window_is_computed_while_the_one_before_is_written_and_one_at_a_time_is(
    options, folder, tmp_path, monkeypatch
):
    harvest(options(), folder, tmp_path / "whole.zarr")
    real_write, real_put = WindowWriter.write, WindowWriter.put
    is_begun = [threading.Event() for _ in range(6)]
    is_begun[5].set()  # after the last window there is none
    committing, most, order = [], 0, []

    def put(self, *arguments, **how):
        is_begun[self.number].set()
        real_put(self, *arguments, **how)

    def write(self, settle):
        nonlocal most
        committing.append(self.number)
        most = max(most, len(committing))
        assert is_begun[self.number + 1].wait(WAIT_S), "the tower waits for the disk"
        left = real_write(self, settle)
        order.append(committing.pop())
        return left

    monkeypatch.setattr(WindowWriter, "put", put)
    monkeypatch.setattr(WindowWriter, "write", write)
    harvest(options(), folder, tmp_path / "s.zarr")
    assert (most, order) == (1, [0, 1, 2, 3, 4])
    assert files_below(tmp_path / "s.zarr") == files_below(tmp_path / "whole.zarr")


def test_at_most_one_window_waits_to_be_written(options, folder, tmp_path, monkeypatch):
    real_write, real_window = WindowWriter.write, WindowWriter.__init__
    n_begun, n_done, ahead = 0, 0, []

    def begin(self, writer, number):
        nonlocal n_begun
        n_begun += 1
        ahead.append(n_begun - n_done)  # windows in memory, this one among them
        real_window(self, writer, number)

    def write(self, settle):
        nonlocal n_done
        threading.Event().wait(0.05)  # slower than the tower
        left = real_write(self, settle)
        n_done += 1
        return left

    monkeypatch.setattr(WindowWriter, "__init__", begin)
    monkeypatch.setattr(WindowWriter, "write", write)
    harvest(options(), folder, tmp_path / "s.zarr")
    assert len(ahead) == 5
    assert max(ahead) == 2


def test_the_next_windows_bytes_are_with_the_disk_while_one_is_synced_and_no_reader_sees_them(
    options, folder, tmp_path, monkeypatch
):
    store, real_write = tmp_path / "s.zarr", WindowWriter.write
    is_begun, real_begin, seen = [threading.Event() for _ in range(6)], WindowWriter.begin, []
    is_begun[5].set()

    def begin(self):
        real_begin(self)
        is_begun[self.number].set()

    def write(self, settle):
        assert is_begun[self.number + 1].wait(WAIT_S), "the next window waits for this one's disk"
        chunks = (store / "layers/1/resid_post/cls/c").glob("*/*")
        seen.append(sorted((int(path.parent.name), path.name) for path in chunks))
        return real_write(self, settle)

    monkeypatch.setattr(WindowWriter, "begin", begin)
    monkeypatch.setattr(WindowWriter, "write", write)
    harvest(options(), folder, store)
    for number, found in enumerate(seen):
        coming = [(each, ".0.tmp") for each in (number, number + 1) if each < 5]
        assert found == [(each, "0") for each in range(number)] + coming
    assert not list(store.rglob("*.tmp"))


def test_a_window_begun_behind_one_that_fails_is_let_go_and_written_by_the_next_harvest(
    options, folder, tmp_path, monkeypatch
):
    harvest(options(), folder, tmp_path / "whole.zarr")
    real, is_begun, real_begin = WindowWriter.write, threading.Event(), WindowWriter.begin

    def begin(self):
        real_begin(self)
        if self.number == 2:
            is_begun.set()

    def write(self, settle):
        if self.number == 1:
            assert is_begun.wait(WAIT_S)
            raise OSError(28, "No space left on device")
        return real(self, settle)

    with monkeypatch.context() as patch:
        patch.setattr(WindowWriter, "begin", begin)
        patch.setattr(WindowWriter, "write", write)
        with pytest.raises(OSError, match="No space left on device"):
            harvest(options(), folder, tmp_path / "s.zarr")
    assert harvest(options(), folder, tmp_path / "s.zarr").n_harvested == 19
    assert files_below(tmp_path / "s.zarr") == files_below(tmp_path / "whole.zarr")


@pytest.mark.parametrize("failing", [0, 2, 4])
def test_a_window_that_cannot_be_written_ends_the_harvest_with_its_own_error(
    options, folder, tmp_path, monkeypatch, failing
):
    real, tried = WindowWriter.write, []

    def write(self, settle):
        tried.append(self.number)
        if self.number == failing:
            raise OSError(28, "No space left on device")
        return real(self, settle)

    with monkeypatch.context() as patch:
        patch.setattr(WindowWriter, "write", write)
        with pytest.raises(OSError, match="No space left on device"):
            harvest(options(), folder, tmp_path / "s.zarr")
    assert tried == list(range(failing + 1))  # none after it
    with pytest.raises(UnfinishedStoreError, match=f"holds {5 * failing} of 24 rows"):
        open_store(tmp_path / "s.zarr")
    assert harvest(options(), folder, tmp_path / "s.zarr").n_harvested == 24 - 5 * failing
    assert verify_store(tmp_path / "s.zarr").problems == []


def test_an_interrupt_leaves_the_window_whole_that_is_being_written(options, folder, tmp_path, monkeypatch):
    real_write, real_decode = WindowWriter.write, batches.decode_image
    is_writing, is_interrupted = threading.Event(), threading.Event()

    def write(self, settle):
        is_writing.set()
        assert is_interrupted.wait(WAIT_S)
        return real_write(self, settle)

    def decode(data):
        if is_writing.is_set():
            is_interrupted.set()
            raise KeyboardInterrupt
        return real_decode(data)

    with monkeypatch.context() as patch:
        patch.setattr(WindowWriter, "write", write)
        patch.setattr(batches, "decode_image", decode)
        with pytest.raises(KeyboardInterrupt):
            harvest(options(), folder, tmp_path / "s.zarr")
    assert harvest(options(), folder, tmp_path / "s.zarr").n_harvested == 19

"""Windows are written while the next ones are computed, and never more than are said to be."""

import threading

import pytest
from thresher.harvest import batches
from thresher.harvest.options import HarvestOptions
from thresher.harvest.run import harvest
from thresher.store import commits
from thresher.store.errors import UnfinishedStoreError
from thresher.store.reader import open_store
from thresher.store.verify import verify_store
from thresher.store.writer import StoreWriter, WindowWriter

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


@pytest.fixture(params=[0, 1 << 20], ids=["large windows", "small windows"])
def held(request, monkeypatch, folder):
    """Windows that may be in memory beside the one that is filled."""
    monkeypatch.setattr(commits, "_HELD_BYTES", request.param)
    return 5 if request.param else 1


def test_a_window_is_computed_while_others_are_written(options, folder, tmp_path, monkeypatch, held):
    harvest(options(), folder, tmp_path / "whole.zarr")
    real_write, real_put = StoreWriter.write, WindowWriter.put
    is_begun = [threading.Event() for _ in range(5)]
    written = []

    def put(self, *arguments, **how):
        is_begun[self.number].set()
        real_put(self, *arguments, **how)

    def write(self, windows, settle):
        written.append([window.number for window in windows])
        following = min(max(written[-1]) + held, 4)  # after the last window there is none
        assert is_begun[following].wait(WAIT_S), "the tower waits for the disk"
        return real_write(self, windows, settle)

    monkeypatch.setattr(WindowWriter, "put", put)
    monkeypatch.setattr(StoreWriter, "write", write)
    harvest(options(), folder, tmp_path / "s.zarr")
    assert written == [[0], [1], [2], [3], [4]] if held == 1 else written == [[0], [1, 2, 3, 4]]
    assert files_below(tmp_path / "s.zarr") == files_below(tmp_path / "whole.zarr")


def test_no_more_windows_are_in_memory_than_are_said_to_be(options, folder, tmp_path, monkeypatch, held):
    real_write, real_window = StoreWriter.write, WindowWriter.__init__
    n_begun, n_done, ahead = 0, 0, []

    def begin(self, writer, number):
        nonlocal n_begun
        n_begun += 1
        ahead.append(n_begun - n_done)  # windows in memory, this one among them
        real_window(self, writer, number)

    def write(self, windows, settle):
        nonlocal n_done
        threading.Event().wait(0.05)  # slower than the tower
        left = real_write(self, windows, settle)
        n_done += len(windows)
        return left

    monkeypatch.setattr(WindowWriter, "__init__", begin)
    monkeypatch.setattr(StoreWriter, "write", write)
    harvest(options(), folder, tmp_path / "s.zarr")
    assert len(ahead) == 5
    assert max(ahead) <= 1 + held


@pytest.mark.parametrize("failing", [0, 2, 4])
def test_a_window_that_cannot_be_written_ends_the_harvest_with_its_own_error(
    options, folder, tmp_path, monkeypatch, failing, held
):
    real, written = StoreWriter.write, []

    def write(self, windows, settle):
        if any(window.number == failing for window in windows):
            raise OSError(28, "No space left on device")
        written.extend(window.number for window in windows)
        return real(self, windows, settle)

    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "write", write)
        with pytest.raises(OSError, match="No space left on device"):
            harvest(options(), folder, tmp_path / "s.zarr")
    assert written == list(range(len(written)))  # none after it, and none that was to be written with it
    assert len(written) == failing if held == 1 else len(written) <= failing
    with pytest.raises(UnfinishedStoreError, match=f"holds {5 * len(written)} of 24 rows"):
        open_store(tmp_path / "s.zarr")
    assert harvest(options(), folder, tmp_path / "s.zarr").n_harvested == 24 - 5 * len(written)
    assert verify_store(tmp_path / "s.zarr").problems == []


def test_an_interrupt_leaves_the_window_whole_that_is_being_written(options, folder, tmp_path, monkeypatch):
    real_write, real_decode = StoreWriter.write, batches.decode_image
    is_writing, is_interrupted = threading.Event(), threading.Event()

    def write(self, windows, settle):
        is_writing.set()
        assert is_interrupted.wait(WAIT_S)
        return real_write(self, windows, settle)

    def decode(data):
        if is_writing.is_set():
            is_interrupted.set()
            raise KeyboardInterrupt
        return real_decode(data)

    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "write", write)
        patch.setattr(batches, "decode_image", decode)
        with pytest.raises(KeyboardInterrupt):
            harvest(options(), folder, tmp_path / "s.zarr")
    assert harvest(options(), folder, tmp_path / "s.zarr").n_harvested == 19

import os

import numpy as np
import pytest
from thresher.store.errors import DamagedStoreError
from thresher.store.format import Site, chunk_file
from thresher.store.reader import open_store

pytestmark = pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system cannot be told what comes next")


@pytest.fixture
def told(monkeypatch):
    """Names of the files that the disk was told of."""
    names = []

    def advise(descriptor, offset, length, advice):
        assert (offset, length, advice) == (0, 0, os.POSIX_FADV_WILLNEED)
        names.append(os.readlink(f"/proc/self/fd/{descriptor}"))

    monkeypatch.setattr("os.posix_fadvise", advise)
    return names


def test_the_disk_is_told_once_of_each_chunk_that_comes_next(make_store, told):
    array = open_store(make_store(600, rows_per_chunk=64).path).activations()  # 10 chunks
    for start in range(0, 600, 20):
        array.read(start, min(start + 20, 600))
    chunks = [name for name in told if not name.endswith(".json")]
    assert [int(name.split("/")[-2]) for name in chunks] == list(range(2, 10))
    assert len(told) == 2 * len(chunks)


def test_the_disk_is_told_nothing_of_chunks_that_are_read_in_no_order(make_store, told):
    array = open_store(make_store(600, rows_per_chunk=64).path).activations()
    for chunk in (4, 1, 7, 0, 9, 5, 3, 8, 2, 6):
        array.read_runs(np.array([chunk * 64]), np.array([20]), np.empty((20, array.d_in), array.stored_dtype))
    assert told == []


def test_a_chunk_that_is_missing_ahead_is_an_error_only_when_it_is_read(make_store):
    made = make_store(600, rows_per_chunk=64)
    (made.path / chunk_file(Site(1).path, 3, 2)).unlink()
    array = open_store(made.path).activations()
    array.read(0, 192)
    with pytest.raises(DamagedStoreError, match="is missing"):
        array.read(192, 193)

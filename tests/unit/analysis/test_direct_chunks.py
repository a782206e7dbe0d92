"""Entries of an array, read straight from its chunks."""

import numpy as np
import pytest
import zarr
from thresher.analysis.columns import codecs
from thresher.analysis.direct_chunks import DirectArray
from thresher.store.errors import DamagedStoreError, StoreError


@pytest.fixture(params=["integer", "float"])
def stored(request, tmp_path):
    """An array of 25 entries in chunks of 10, and its path."""
    values = np.arange(25, dtype=np.uint32 if request.param == "integer" else np.float32) + 7
    compressors, checksum = codecs(request.param)[:-1], codecs(request.param)[-1:]
    array = zarr.create_array(
        str(tmp_path / "a"), shape=25, chunks=10, dtype=values.dtype, compressors=(*compressors, *checksum)
    )
    array[:] = values
    return values, tmp_path / "a"


@pytest.mark.parametrize("kept_bytes", [0, 1 << 20])
def test_every_range_reads_as_it_was_written(stored, kept_bytes):
    values, path = stored
    array = DirectArray(path, kept_bytes)
    for _ in range(2):  # checked first, then from its place in the file or from what was kept
        for start in range(26):
            for stop in range(start, 26):
                found = array.read(start, stop)
                assert found.dtype == values.dtype
                np.testing.assert_array_equal(found, values[start:stop])


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (3, 2), (0, 26)])
def test_a_range_beyond_the_array_is_refused(stored, start, stop):
    with pytest.raises(ValueError, match="not within the 25"):
        DirectArray(stored[1], 0).read(start, stop)


def test_a_changed_byte_is_found(stored):
    file = stored[1] / "c" / "1"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    array = DirectArray(stored[1], 0)
    np.testing.assert_array_equal(array.read(0, 10), stored[0][:10])
    with pytest.raises(DamagedStoreError, match=r"a/c/1 is damaged"):
        array.read(12, 13)


@pytest.mark.parametrize("left", [0, 3, 11])
def test_a_chunk_that_was_cut_off_is_damaged(stored, left):
    file = stored[1] / "c" / "0"
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(DamagedStoreError, match="damaged"):
        DirectArray(stored[1], 0).read(0, 1)


def test_a_chunk_that_is_gone_is_no_row_of_fill_values(stored):
    (stored[1] / "c" / "2").unlink()
    with pytest.raises(DamagedStoreError, match=r"chunk 2 of .* is gone"):
        DirectArray(stored[1], 0).read(24, 25)


def test_decoded_chunks_are_kept_up_to_a_number_of_bytes(stored):
    array = DirectArray(stored[1], 80)  # two chunks of 10 entries of 4 bytes
    array.read(0, 25)
    assert len(array._kept) == (0 if array.codec.name == "none" else 2)


def test_codecs_of_others_are_left_to_zarr(tmp_path):
    zarr.create_array(str(tmp_path / "a"), shape=4, chunks=4, dtype="f4", compressors=None)[:] = 1
    with pytest.raises(StoreError, match="codecs"):
        DirectArray(tmp_path / "a", 0)

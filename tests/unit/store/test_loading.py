"""The plan of a reading: what it promises of the mixing and of the memory is what batches have and what it takes."""

from contextlib import closing

import numpy as np
import pytest
from thresher.store.batches import BatchReader
from thresher.store.errors import StoreError
from thresher.store.loading import plan_loading
from thresher.store.mixing import batch_mixing, count_labels
from thresher.store.parts import merge_stores
from thresher.store.reader import open_store

D = 2
ROW_BYTES = 2 * D
SORTED = {"order": "source", "sorted_labels": True, "thumbnails": False}


def _measured(array, batch_size, n_passes, **options):
    """The plan of a reading, and the mean chi2/df of the batches of some passes."""
    counts = count_labels(array.store)
    reader = BatchReader([array], batch_size=batch_size, seed=1, last="drop", **options)
    with closing(reader.batches(0, n_passes * reader.steps_per_epoch)) as batches:
        return reader.plan, np.mean([batch_mixing(batch, counts) for batch in batches])


@pytest.fixture
def sorted_array(make_store):
    """3,960 training rows of 40 classes, sorted by class."""
    return open_store(make_store(4000, D, n_labels=40, rows_per_chunk=1024, **SORTED).path).activations()


@pytest.mark.parametrize("memory_rows", [3960, 3900, 2600, 1500])
def test_a_sorted_store_mixes_as_promised_whatever_share_of_it_fits_into_memory(sorted_array, memory_rows):
    plan, found = _measured(sorted_array, 32, 4, memory_bytes=memory_rows * ROW_BYTES)
    assert plan.mixing <= 1.1
    assert plan.memory_bytes <= memory_rows * ROW_BYTES
    assert found == pytest.approx(plan.mixing, abs=0.04)  # standard error 0.01


def test_a_store_that_fits_into_memory_is_mixed_whole_and_a_larger_one_in_equal_buffers(sorted_array):
    plan = plan_loading([sorted_array], 32, 3960 * ROW_BYTES)
    assert (plan.buffer_rows, plan.mixing, plan.memory_bytes) == (3960, 1, 3960 * ROW_BYTES)
    # Two buffers at a time in memory for one row less: no more than 1,979 rows in each
    assert plan_loading([sorted_array], 32, 3959 * ROW_BYTES).buffer_rows == 3960 / 3


@pytest.mark.parametrize("mixing", [1.1, 1.5, 3.0])
def test_the_memory_that_is_told_suffices_for_the_mixing_and_a_little_less_does_not(make_store, mixing):
    array = open_store(make_store(4000, D, codec="zstd", **SORTED).path).activations()
    array.row_bytes = 10_000_000  # so that 0.1 GB, the last digit of what is told, is 10 rows
    told = plan_loading([array], 32, 0, mixing)
    assert told.mixing > mixing
    gigabytes = float(told.notes[0].split(" GB of memory")[0].split()[-1])
    assert plan_loading([array], 32, round((gigabytes + 0.06) * 1e9), mixing).mixing <= mixing
    assert plan_loading([array], 32, round((gigabytes - 0.06) * 1e9), mixing).mixing > mixing


def test_parts_of_other_chunks_count_in_proportion(make_store, tmp_path):
    # Chunks of 16 rows in one part, of 256 in the other, which are read whole; a class has 512 rows in each.
    parts = [
        make_store(
            2048, D, n_labels=4, name=f"{n}.zarr", key_prefix=f"{n}/", rows_per_chunk=n, seed=n, codec="zstd", **SORTED
        )
        for n in (16, 256)
    ]
    merge_stores([str(part.path) for part in parts], str(tmp_path / "both.zarr"))
    array = open_store(tmp_path / "both.zarr").activations()
    plan, found = _measured(array, 32, 6, memory_bytes=3000 * ROW_BYTES)
    assert plan.run_length == (16 + 256) / 2
    assert found == pytest.approx(plan.mixing, rel=0.15)


def test_random_rows_in_large_compressed_chunks_are_not_called_those_of_a_sorted_source(make_store):
    array = open_store(make_store(500, D, tokens=50, codec="zstd", thumbnails=False).path).activations()
    (note,) = plan_loading([array], 1000, 0).notes
    assert "random order, but in chunks that are read whole" in note
    assert "--codec none" in note


@pytest.mark.parametrize(("window", "batch_size"), [(25, 256), (60, 1024), (100, 160), (600, 256)])
def test_tokens_of_images_mix_as_promised_whatever_the_size_of_a_window(make_store, window, batch_size):
    made = make_store(600, D, tokens=8, n_labels=100, rows_per_chunk=window, thumbnails=False)
    plan, found = _measured(open_store(made.path).activations(), batch_size, 12)
    assert plan.mode == "runs"
    assert found == pytest.approx(plan.mixing, abs=0.06)
    if window == 600:
        assert plan.mixing == 1


def test_the_window_that_is_told_suffices_for_the_mixing_and_one_image_less_does_not(make_store):
    def planned(window, mixing=1.1):
        made = make_store(900, D, tokens=4, rows_per_chunk=window, thumbnails=False, name=f"{window}.zarr")
        return plan_loading([open_store(made.path).activations()], 512, 0, mixing)

    (note,) = planned(50).notes
    assert "the 4 tokens of an image lie among those of 50 images" in note
    needed = int(note.rstrip(".").split("--rows-per-chunk ")[1])
    told = planned(needed)
    assert told.mixing <= 1.1 < planned(needed - 1).mixing
    assert told.notes == ()


@pytest.mark.parametrize("settings", [{"n": 9, "invalid": range(9)}, {"n": 9, "tokens": 3, "invalid": range(8)}])
def test_a_store_without_a_row_to_train_on_says_so(make_store, settings):
    store = open_store(make_store(d=D, **settings).path)
    assert store.n_train == 0
    bad = len(settings["invalid"])
    with pytest.raises(StoreError, match=rf"no rows to train on: {bad} of its 9 images .* \(cannot be read\)"):
        BatchReader([store.activations()], batch_size=2, seed=0)

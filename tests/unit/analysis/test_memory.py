"""Memory does not grow with the number of rows."""

import gc
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from thresher.analysis import by_feature, columns, features, quality, totals
from thresher.analysis.encode import encode
from thresher.analysis.options import EncodeOptions, StatsOptions
from thresher.analysis.stats import stats


@pytest.fixture
def small_buffers(monkeypatch):
    """Buffers a hundredth of their size, so that ten times the rows would show where something grows with them."""
    monkeypatch.setattr(columns.Column.__init__, "__kwdefaults__", {"chunk": 2048, "state": None})
    monkeypatch.setattr("thresher.analysis.row_columns.CHUNK", 2048)
    monkeypatch.setattr(by_feature, "_SORTED_AT_ONCE", 4096)
    monkeypatch.setattr(totals, "_ENTRIES_AT_ONCE", 4096)
    monkeypatch.setattr(features, "_BLOCK_ENTRIES", 4096)
    monkeypatch.setattr(quality, "_MAX_SECTIONS", 16)


def _peak_bytes(work: Callable[[], object]) -> int:
    work()  # once before, so that imports and caches are not counted
    # Frozen, the thousands of objects of other libraries do not put off the collection of cycles (zarr's futures).
    gc.collect()
    gc.freeze()
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        gc.unfreeze()


def test_encode_and_stats_take_the_same_memory_for_ten_times_the_rows(make_store, make_run, small_buffers):
    to_encode = EncodeOptions(block_rows=256, overwrite=True)
    to_count = StatsOptions(figures=False, overwrite=True, task_bytes=50_000)
    encode_bytes, stats_bytes = [], []
    for n in (500, 5_000):
        store = make_store(n=n, d=8, rows_per_chunk=512, name=f"{n}.zarr", thumbnails=False)
        path = make_run(store.path, d_sae=64, name=f"run-{n}").path
        encode_bytes.append(_peak_bytes(lambda path=path: encode(path, to_encode)))
        stats_bytes.append(_peak_bytes(lambda path=path: stats(path, to_count)))
    # What grows is small (one graph node a task, the sections up to their limit); eight bytes an entry would be
    # three times as much.
    assert encode_bytes[1] < 2 * encode_bytes[0]
    assert stats_bytes[1] < 2 * stats_bytes[0]


def test_entries_are_turned_to_features_in_many_ranges_as_in_one(make_store, make_run, small_buffers):
    run = make_run(make_store(n=3_000, d=8, rows_per_chunk=512).path, d_sae=64)
    encode(run.path)
    stored = features.open_features(run.path)
    indptr, index, value = stored.rows(0, 3_000)
    assert len(index) > 4 * 4096  # several ranges
    rows = np.repeat(np.arange(3_000), np.diff(indptr))
    for k in range(64):
        of = index == k
        got_rows, got_value = stored.feature(k)
        np.testing.assert_array_equal(got_rows, rows[of])
        np.testing.assert_array_equal(got_value, value[of])


def test_one_feature_with_more_entries_than_are_sorted_at_once(make_store, make_run, small_buffers):
    made = make_run(make_store(n=6_000, d=8, rows_per_chunk=512).path)
    made.sae.b_enc[7] = 1e3  # fires on every row: 6,000 entries, 4,096 at once
    made.sae.save(made.path / "sae.safetensors")
    encode(made.path)
    rows, value = features.open_features(made.path).feature(7)
    assert rows.tolist() == list(range(6_000))
    assert (value > 900).all()

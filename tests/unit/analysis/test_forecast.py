"""What `encode` and `stats` say before they start."""

import re

import numpy as np
import pytest
import zarr
from listener import Listener
from thresher.analysis import forecast
from thresher.analysis.details import details_bytes
from thresher.analysis.encode import encode
from thresher.analysis.features import open_features
from thresher.analysis.options import StatsOptions
from thresher.analysis.stats import dense_statistics, stats
from thresher.store.errors import StoreError


def test_encode_says_how_long_it_takes_before_it_starts(make_store, make_run):
    run = make_run(make_store(n=300).path)
    listener = Listener()
    encode(run.path, reporter=listener)
    (line,) = [line for line in listener.said if "to encode" in line]
    assert re.match(r"300 rows to encode, about \d+ s at [\d,.]+ rows/s on cpu; ", line)


def test_stats_says_what_it_writes_and_how_long_it_counts_before_it_starts(make_store, make_run, monkeypatch):
    run = make_run(make_store(n=300).path)
    encode(run.path)
    monkeypatch.setattr("thresher.analysis.statistics.SAMPLE_BYTES", 500)
    listener = Listener()
    stats(run.path, StatsOptions(figures=False), listener)
    assert re.match(r".*run will take at most about 1\d\d kB more$", listener.said[0])
    assert re.match(r"300 rows to count, about \d+ s on one core$", listener.said[1])


def test_a_dense_matrix_is_forecast_too(tmp_path):
    zarr.create_array(str(tmp_path / "dense.zarr"), data=np.ones((50, 7), np.float32), chunks=(8, 7))
    listener = Listener()
    dense_statistics(tmp_path / "dense.zarr", tmp_path / "out", StatsOptions(figures=False), listener)
    assert "out will take at most about" in listener.said[0]
    assert listener.said[1] == "50 rows to count, which takes seconds"


def test_counting_is_forecast_in_proportion_to_a_sample(monkeypatch):
    clock = iter([10.0, 12.0])
    monkeypatch.setattr(forecast.time, "perf_counter", lambda: next(clock))
    counted = []
    assert forecast.forecast_counting(1000, 20, lambda: counted.append(1)) == (
        "1,000 rows to count, about 1 min 40 s on one core"
    )
    assert counted == [1]


@pytest.mark.parametrize("k", [1, 20])
def test_the_statistics_take_what_was_forecast(make_store, make_run, k):
    run = make_run(make_store(n=300).path, d_sae=3000)
    encode(run.path)
    options = StatsOptions(figures=False, k=k, min_labelled=1, cofiring_rows=10)
    stats(run.path, options)
    group = zarr.open_group(str(run.path / "stats.zarr"), mode="r")
    arrays = [array for _, array in group.members(max_depth=None) if isinstance(array, zarr.Array)]
    exact = sum(array.nbytes for array in arrays if array.shape[0] in (3000, 3001))
    n_pairs, nnz = group["labels/label"].shape[0], open_features(run.path).info.nnz
    forecast_bytes = forecast.statistics_bytes(3000, k, figures=False) + details_bytes(3000, options, nnz)
    assert forecast_bytes - forecast._SMALL_BYTES - 16 * nnz == exact - 8  # 3,001 places where labels begin
    assert 0 < n_pairs <= nnz


def test_statistics_that_do_not_fit_on_the_disk_are_refused_before_they_start(make_store, make_run, monkeypatch):
    run = make_run(make_store(n=300).path)
    encode(run.path)
    monkeypatch.setattr("thresher.analysis.forecast.free_bytes", lambda _path: 1000)
    with pytest.raises(StoreError, match=r"needs up to .* and 1 kB are free: make room"):
        stats(run.path)
    assert not (run.path / "stats.zarr").exists()

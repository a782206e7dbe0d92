"""The numbers of a sample of rows: against numpy in float64, by hand, and at their edges."""

import math

import numpy as np
import pytest
import torch
from thresher.store import committed
from thresher.store.chunks import ChunkReader
from thresher.store.committed import read_committed
from thresher.store.format import CODECS, Site
from thresher.store.parts import merge_stores
from thresher.store.reader import open_store
from thresher.store.survey import (
    MIN_PLACES,
    SAMPLE_BYTES,
    SAMPLE_ROWS,
    Moments,
    sample_runs,
    survey_array,
    to_float,
)


def survey_of(rows, valid=None, *, blocks=1):
    moments = Moments(rows.shape[1])
    for part in np.array_split(np.arange(len(rows)), blocks):
        moments.add(rows[part], None if valid is None else valid[part])
    return moments.survey()


def by_numpy(rows):
    """The same numbers the long way, in numpy's widest float."""
    x = rows.astype(np.longdouble)
    mean = x.mean(0)
    return {
        "mean_norm": np.sqrt((x**2).sum(1)).mean(),
        "norm_of_mean": np.sqrt((mean**2).sum()),
        "deviation": np.sqrt(((x - mean) ** 2).sum(1).mean()),
        "zero_share": (x == 0).mean(),
        "mean": mean,
        "std": x.std(0),
        "max_abs": np.abs(x).max(0),
        "energy": (x**2).mean(0) / (x**2).mean(0).sum(),
    }


def test_three_rows_by_hand():
    s = survey_of(np.array([[3.0, 4.0], [0.0, 0.0], [0.0, -1.0]], np.float32))
    # norms 5, 0, 1; mean (1, 1); squared distances from it 4 + 9, 1 + 1, 1 + 4
    assert s.mean_norm == pytest.approx(2)
    assert s.norm_of_mean == pytest.approx(math.sqrt(2))
    assert s.deviation == pytest.approx(math.sqrt(20 / 3))
    assert s.mean_to_deviation == pytest.approx(math.sqrt(0.3))
    assert s.zero_share == 0.5
    assert [(c.index, c.mean, c.max_abs) for c in s.largest] == [(1, 1, 4), (0, 1, 3)]
    # squares: 9 in coordinate 0, 16 + 1 in coordinate 1, of 26
    assert [c.energy_share for c in s.largest] == pytest.approx([17 / 26, 9 / 26])
    assert [c.deviation for c in s.largest] == pytest.approx([math.sqrt(17 / 3 - 1), math.sqrt(2)])


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("blocks", [1, 7, 400])
def test_the_numbers_are_numpys(dtype, blocks):
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((400, 24)) * np.geomspace(0.01, 30, 24) + np.arange(24)
    rows[rng.random(rows.shape) < 0.1] = 0
    rows = rows.astype(dtype)
    s, want = survey_of(rows, blocks=blocks), by_numpy(rows)
    for name in ("mean_norm", "norm_of_mean", "deviation", "zero_share"):
        assert getattr(s, name) == pytest.approx(float(want[name]), rel=1e-12), name
    order = np.argsort(-want["energy"])[:5]
    assert [c.index for c in s.largest] == order.tolist()
    for c in s.largest:
        assert c.mean == pytest.approx(float(want["mean"][c.index]), rel=1e-12)
        assert c.deviation == pytest.approx(float(want["std"][c.index]), rel=1e-12)
        assert c.max_abs == float(want["max_abs"][c.index])
        assert c.energy_share == pytest.approx(float(want["energy"][c.index]), rel=1e-12)


def test_a_mean_a_million_times_the_deviation_costs_no_digits():
    rows = np.random.default_rng(1).standard_normal((5000, 3)) + 1e6
    s, want = survey_of(rows, blocks=50), by_numpy(rows)
    assert s.deviation == pytest.approx(float(want["deviation"]), rel=1e-10)
    assert s.mean_to_deviation == pytest.approx(float(want["norm_of_mean"] / want["deviation"]), rel=1e-10)


def test_bfloat16_bits_are_the_values_that_torch_sees():
    rows = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)).mul(100).bfloat16()
    rows[3, 2] = float("nan")
    bits = rows.view(torch.uint16).numpy()
    assert np.array_equal(to_float(bits, "bfloat16"), rows.float().numpy(), equal_nan=True)
    same = np.ones((2, 2), np.float16)
    assert to_float(same, "float16") is same


def test_rows_of_unreadable_images_are_left_out():
    rng = np.random.default_rng(2)
    rows, valid = rng.standard_normal((60, 4)).astype(np.float32), np.ones(60, bool)
    valid[[0, 17, 59]] = False
    rows[~valid] = np.nan
    s, want = survey_of(rows, valid, blocks=9), by_numpy(rows[valid])
    assert (s.n_rows, s.n_unreadable, s.n_not_finite, s.not_finite_share) == (57, 3, 0, 0)
    assert s.deviation == pytest.approx(float(want["deviation"]), rel=1e-12)


def test_values_that_are_not_finite_in_readable_rows_are_counted_and_kept_out_of_the_rest():
    rows = np.ones((10, 5), np.float32)
    rows[2, 1], rows[2, 3], rows[7, 0] = np.inf, np.nan, -np.inf
    s = survey_of(rows, blocks=3)
    assert (s.n_rows, s.n_not_finite) == (8, 2)
    assert s.not_finite_share == pytest.approx(3 / 50)
    assert s.mean_norm == pytest.approx(math.sqrt(5))


def test_equal_coordinates_come_in_the_order_of_their_index():
    rows = np.array([[1.0, -2, 1, 2, 2, -2, 2, 2]])
    assert [c.index for c in survey_of(rows).largest] == [1, 3, 4, 5, 6]


def test_rows_of_zeros_have_no_energy_and_a_ratio_of_zero():
    s = survey_of(np.zeros((4, 3), np.float16))
    assert (s.zero_share, s.mean_norm, s.mean_to_deviation) == (1, 0, 0)
    assert [(c.index, c.energy_share) for c in s.largest] == [(0, 0), (1, 0), (2, 0)]
    assert survey_of(np.array([[0.0, -0.0]])).zero_share == 1


def test_one_row_has_no_deviation_and_no_row_has_no_number():
    one = survey_of(np.array([[3.0, 4.0]]))
    assert (one.mean_norm, one.norm_of_mean, one.deviation, one.mean_to_deviation) == (5, 5, 0, math.inf)
    none = survey_of(np.full((2, 3), np.nan), np.zeros(2, bool))
    assert none.n_rows == 0
    assert math.isnan(none.mean_to_deviation)
    assert math.isnan(none.zero_share)
    assert none.largest == ()


def chunks(n_rows, rows_per_chunk):
    starts = np.arange(0, n_rows, rows_per_chunk)
    return starts, np.minimum(starts + rows_per_chunk, n_rows)


def test_a_sample_takes_one_run_from_each_of_its_chunks():
    starts, stops = chunks(1_281_167, 1024)
    first, length = sample_runs(starts, stops, 1024 * 2048)
    assert SAMPLE_ROWS <= length.sum() < SAMPLE_ROWS + len(first)
    assert len(first) * 1024 * 2048 <= SAMPLE_BYTES
    at = first // 1024
    assert len(set(at)) == len(at) == 122
    assert (first >= starts[at]).all()
    assert (first + length <= stops[at]).all()
    assert np.ptp(first % 1024) > 400  # not always the beginning of a chunk
    assert np.histogram(first, 4, (0, 1_281_167))[0].min() > 15  # from everywhere


def test_a_sample_is_fixed_by_its_seed():
    arguments = (*chunks(1_000_000, 1000), 1_000_000)
    again, other = sample_runs(*arguments), sample_runs(*arguments, seed=1)
    assert all(np.array_equal(a, b) for a, b in zip(sample_runs(*arguments), again, strict=True))
    assert not np.array_equal(again[0], other[0])


def test_a_small_array_is_sampled_whole():
    first, length = sample_runs(*chunks(1000, 64), 64 * 16)
    assert first.tolist() == list(range(0, 1000, 64))
    assert length.tolist() == [64] * 15 + [40]


def test_large_chunks_are_touched_a_few_times_only():
    first, length = sample_runs(*chunks(400_000_000, 65_536), 65_536 * 2048)
    assert len(first) == MIN_PLACES
    assert length.tolist() == [SAMPLE_ROWS // MIN_PLACES] * MIN_PLACES


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
@pytest.mark.parametrize("settings", [{}, {"codec": "zstd"}, {"tokens": 3}, {"order": "source"}])
def test_a_small_array_s_survey_is_that_of_all_its_readable_rows(make_store, dtype, settings):
    sites = {Site(1): 8, Site(2, "mlp_act"): 20}
    store = open_store(make_store(300, widths=sites, dtype=dtype, invalid=(0, 99), **settings).path)
    for site, width in sites.items():
        array = store.activations(site)
        s, n_places = survey_array(array)
        rows = array.tensor(array.read_positions(0, store.n_valid)).double().numpy()
        want = by_numpy(rows)
        assert rows.shape == (s.n_rows, width)
        assert (s.n_unreadable, s.n_not_finite) == (2 * store.tokens_per_image, 0)
        assert n_places == -(-store.n_rows // 64)
        for name in ("mean_norm", "norm_of_mean", "deviation", "zero_share"):
            assert getattr(s, name) == pytest.approx(float(want[name]), rel=1e-9), name


def test_a_survey_spans_the_parts_of_a_store_and_is_the_same_from_a_bucket(make_store, tmp_path):
    places = [str(tmp_path / "a"), "memory://survey/b"]
    for seed, place in enumerate(places):
        make_store(200, place=place, seed=seed, key_prefix=place, invalid=(3,))
    merge_stores(places, str(tmp_path / "both"))
    both = open_store(tmp_path / "both").activations()
    s, n_places = survey_array(both)
    rows = np.concatenate([open_store(place).activations().read_positions(0, 199) for place in places])
    assert s.mean_norm == pytest.approx(float(by_numpy(rows)["mean_norm"]), rel=1e-12)
    assert (s.n_rows, s.n_unreadable, n_places) == (398, 2, 8)
    assert read_committed(both).n_read == 8


def test_a_survey_reads_no_more_chunks_than_its_bytes_allow(make_store, monkeypatch):
    store = open_store(make_store(4000, 8).path)  # 63 chunks of 1 kB
    loaded = set()
    record = ChunkReader.record

    def note(reader, chunk):
        if reader.name.startswith("layers/"):
            loaded.add(chunk)
        return record(reader, chunk)

    monkeypatch.setattr(ChunkReader, "record", note)  # asked for at a chunk's first use
    s, n_places = survey_array(store.activations(), sample_bytes=10 * 64 * 16)
    assert n_places == len(loaded) == 10
    assert s.n_rows in (640, 640 - 64 + 4000 % 64)


@pytest.mark.parametrize("codec", CODECS)
def test_the_commit_records_tell_the_largest_magnitude_and_the_codec_s_gain(make_store, codec):
    rows = np.zeros((300, 8))
    rows[:, 0], rows[123, 5] = np.arange(300), -4321.5
    made = make_store(300, 8, rows=rows, codec=codec, invalid=(7,))
    found = read_committed(open_store(made.path).activations())
    chunks = list((made.path / Site(1).path / "c").glob("*/0"))
    assert (found.n_chunks, found.n_read) == (5, 5)
    assert found.max_abs == 4321.5
    assert found.stored_bytes == sum(chunk.stat().st_size for chunk in chunks)
    assert found.raw_bytes == 5 * 64 * 8 * 2
    assert found.codec_ratio == pytest.approx(found.raw_bytes / found.stored_bytes)
    assert (found.codec_ratio > 1.5) == (codec != "none")


def test_of_very_many_commit_records_a_seeded_part_is_read_and_counted(make_store, monkeypatch):
    monkeypatch.setattr(committed, "RECORDS", 8)
    monkeypatch.setattr(committed, "_TOGETHER", 4)
    rows = np.repeat(np.arange(40), 50)[:, None] * np.ones((1, 2))
    array = open_store(make_store(2000, 2, rows=rows, rows_per_chunk=50, order="source").path).activations()
    found = read_committed(array)
    assert (found.n_chunks, found.n_read) == (40, 8)
    assert found == read_committed(array)
    assert {read_committed(array, seed=seed).max_abs for seed in range(9)} <= set(range(3, 40, 4))

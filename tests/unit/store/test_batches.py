import gc

import numpy as np
import pytest
from thresher.store.batches import BatchReader
from thresher.store.buffers import BufferPool
from thresher.store.errors import DamagedStoreError
from thresher.store.format import Site, chunk_file
from thresher.store.parts import merge_stores
from thresher.store.reader import ActivationArray, open_store

N, D = 700, 8
KINDS = {
    "runs": {},
    "runs with holes": {"invalid": (0, 5, 63, 64, 200, 699)},
    "source": {"order": "source"},
    "source with holes": {"order": "source", "invalid": (0, 5, 63, 64, 200, 699)},
    "compressed": {"codec": "zstd", "invalid": (64, 65, 130)},
    "compressed source": {"codec": "blosc-lz4", "order": "source"},
    "tokens": {"n": 60, "tokens": 11, "rows_per_chunk": 16, "invalid": (3, 31)},
    "tokens in source order": {"n": 60, "tokens": 11, "rows_per_chunk": 16, "invalid": (3, 31), "order": "source"},
    "one row": {"n": 1},
}
TINY = 2 * 100 * D * 2  # bytes: buffers of 100 rows


@pytest.fixture(params=[*KINDS, "parts"])
def store(request, make_store, tmp_path):
    if request.param != "parts":
        return open_store(make_store(**{"n": N, "d": D} | KINDS[request.param]).path)
    made = [
        make_store(n, D, name=f"{n}.zarr", seed=n, key_prefix=str(n), invalid=(0, n - 1), order=order)
        for n, order in ((300, "random"), (41, "source"), (500, "random"))
    ]
    merge_stores([str(each.path) for each in made], str(tmp_path / "all.zarr"))
    return open_store(tmp_path / "all.zarr")


def _take(store, batch_size=50, stop=None, **options):
    reader = BatchReader([store.activations()], batch_size=batch_size, seed=3, **options)
    return list(reader.batches(0, stop if stop is not None else reader.steps_per_epoch * 2))


def _steps(store, n):
    """So many batches, or few where each holds fifty passes."""
    return n if store.n_train > 1 else n // 6


@pytest.mark.parametrize("memory", [TINY, 1 << 30])
def test_each_pass_holds_each_training_row_once_with_its_own_values(store, memory):
    everything = store.activations().read(0, store.n_rows)
    batches = _take(store, last="keep", memory_bytes=memory)
    rows = np.concatenate([batch.rows() for batch in batches])
    wanted = np.sort(store.rows_of(np.arange(store.n_train)))
    for number in range(2):
        np.testing.assert_array_equal(np.sort(rows[number * len(wanted) : (number + 1) * len(wanted)]), wanted)
    for batch in batches:
        np.testing.assert_array_equal(batch.values[0], everything[batch.rows()])
        assert batch.values[0].flags.c_contiguous
    assert not np.array_equal(rows[: len(wanted)], rows[len(wanted) :]) or len(wanted) == 1


def test_labels_images_and_row_numbers_are_those_of_the_rows(store):
    labels, images = store.labels(0, store.n_rows), store.images(0, store.n_rows)
    for batch in _take(store, last="keep", memory_bytes=TINY):
        np.testing.assert_array_equal(batch.labels(), labels[batch.rows()])
        np.testing.assert_array_equal(batch.images(), images[batch.rows()])


def test_batches_do_not_depend_on_the_number_of_threads_nor_on_where_reading_began(store):
    n = _steps(store, 40)
    one = _take(store, stop=n, threads=1, memory_bytes=TINY)
    four = _take(store, stop=n, threads=4, memory_bytes=TINY)
    reader = BatchReader([store.activations()], batch_size=50, seed=3, memory_bytes=TINY)
    for a, b in zip(one, four, strict=True):
        np.testing.assert_array_equal(a.values[0], b.values[0])
    for step in (0, 3, n - 1):
        np.testing.assert_array_equal(reader.read(step).values[0], one[step].values[0])
    middle = list(reader.batches(n // 2, n - 2))
    for a, b in zip(middle, one[n // 2 : n - 2], strict=True):
        np.testing.assert_array_equal(a.values[0], b.values[0])


@pytest.mark.parametrize("last", ["wrap", "keep", "drop"])
def test_the_shares_of_the_ranks_make_up_the_global_batch(store, last):
    if store.n_train < 48 and last == "drop":
        with pytest.raises(ValueError, match="do not fill one batch of 48"):
            _take(store, 48, stop=20, last=last)
        return
    n = _steps(store, 20)
    whole = _take(store, 48, stop=n, last=last, memory_bytes=TINY)
    shares = [_take(store, 48, stop=n, last=last, memory_bytes=TINY, rank=r, n_ranks=4) for r in range(4)]
    for step, batch in enumerate(whole):
        parts = [share[step].values[0] for share in shares]
        np.testing.assert_array_equal(np.concatenate(parts), batch.values[0])
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        if last != "keep":
            assert {len(part) for part in parts} == {12}


def test_a_rank_reads_its_share_alone_where_no_buffer_is_needed_and_else_all_rows(make_store, monkeypatch):
    n_read, read_runs = 0, ActivationArray.read_runs

    def counted(self, starts, lengths, out):
        nonlocal n_read
        n_read += int(lengths.sum())
        read_runs(self, starts, lengths, out)

    monkeypatch.setattr(ActivationArray, "read_runs", counted)
    found = {}
    for order in ("random", "source"):
        store = open_store(make_store(700, 4, name=order, order=order).path)
        n_read = 0
        _take(store, 33, stop=20, last="drop", rank=1, n_ranks=3)
        found[order] = n_read
    assert found == {"random": 20 * 11, "source": store.n_train}


def test_several_arrays_come_side_by_side(make_store):
    widths = {Site(1): 4, Site(2, "mlp_act"): 16}
    store = open_store(make_store(300, widths=widths).path)
    arrays = [store.activations(site) for site in widths]
    for batch in BatchReader(arrays, batch_size=32, seed=0).batches(0, 20):
        for array, values in zip(arrays, batch.values, strict=True):
            np.testing.assert_array_equal(values, array.read(0, 300)[batch.rows()])


def test_a_batch_that_is_kept_is_never_written_again(store):
    reader = BatchReader([store.activations()], batch_size=20, seed=0, memory_bytes=TINY)
    kept = [(batch.values[0][3:7], batch.values[0][3:7].copy()) for batch in reader.batches(0, _steps(store, 60))]
    for view, copy in kept:
        np.testing.assert_array_equal(view, copy)


@pytest.mark.parametrize("memory", [TINY, 1 << 30])
def test_a_reading_holds_no_batch_that_its_consumer_let_go(store, memory):
    reader = BatchReader([store.activations()], batch_size=2, seed=0, threads=2, memory_bytes=memory)
    places = set()
    for batch in reader.batches(0, 200):
        places.add(batch.values[0].ctypes.data)
        del batch
    assert len(places) < 40  # read ahead, at the consumer, on the way back


def test_memory_goes_round_when_nobody_holds_it():
    pool = BufferPool()
    first = pool.take((100, 8), np.float16)
    place = first.ctypes.data
    view = first[10:20].T
    del first
    gc.collect()
    assert pool.take((100, 8), np.float16).ctypes.data != place
    del view
    gc.collect()
    places = {pool.take((100, 8), np.float16).ctypes.data for _ in range(2)}
    assert place in places


@pytest.mark.parametrize("batch_size", [40, 99])
def test_two_buffers_serve_a_whole_reading_from_pass_to_pass(make_store, monkeypatch, batch_size):
    store = open_store(make_store(N, D, order="source").path)  # 693 training rows: buffers of 99
    reader = BatchReader([store.activations()], batch_size=batch_size, seed=0, memory_bytes=TINY)
    made, empty = [], np.empty

    def counted(shape, *options):
        made.append(shape)
        return empty(shape, *options)

    monkeypatch.setattr("thresher.store.batches.np.empty", counted)
    assert sum(len(batch.values[0]) for batch in reader.batches(0, 60)) == 60 * batch_size
    assert made.count((99, D)) == 2


def test_a_batch_larger_than_a_buffer_is_drawn_from_several(make_store):
    store = open_store(make_store(N, D, order="source").path)
    everything = store.activations().read(0, store.n_rows)
    # Room for a batch makes two buffers of 347 for the 693: a batch of 500 lies in two, or three over a pass's end.
    reader = BatchReader([store.activations()], batch_size=500, seed=0, memory_bytes=TINY)
    assert reader.plan.buffer_rows == 347
    kept = list(reader.batches(0, 40))
    for batch in kept:
        np.testing.assert_array_equal(batch.values[0], everything[batch.rows()])


@pytest.mark.parametrize("kind", ["runs", "source", "compressed"])
def test_damage_stops_the_reading_where_it_is_met(make_store, kind):
    made = make_store(N, D, **KINDS[kind])
    path = made.path / chunk_file(Site(1).path, 4, 2)
    data = bytearray(path.read_bytes())
    data[17] ^= 4
    path.write_bytes(data)
    with pytest.raises(DamagedStoreError, match="is damaged"):
        _take(open_store(made.path), stop=40)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 2, "n_ranks": 2}, "rank 2 is not one of 2"),
        ({"n_ranks": 3}, "50 rows cannot be shared equally by 3"),
        ({"last": "half"}, "last is 'half'"),
        ({"batch_size": 5000, "last": "drop"}, "693 rows do not fill one batch of 5000"),
        ({"batch_size": 0}, "at least 1"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(make_store, options, message):
    store = open_store(make_store(N, D).path)
    with pytest.raises(ValueError, match=message):
        BatchReader([store.activations()], **{"batch_size": 50, "seed": 0} | options)


def test_another_place_gives_the_same_batches_under_the_same_plan(make_store):
    here = open_store(make_store(N, D, codec="zstd", invalid=(64, 130)).path)
    there = open_store(make_store(N, D, invalid=(64, 130), name="there.zarr").path)
    plan = BatchReader([here.activations()], batch_size=50, seed=0, memory_bytes=TINY).plan
    assert plan.mode == "buffer"
    batches = [
        BatchReader([store.activations()], batch_size=50, seed=0, plan=plan).batches(0, 30) for store in (here, there)
    ]
    for a, b in zip(*batches, strict=True):
        np.testing.assert_array_equal(a.values[0], b.values[0])


def test_a_reading_that_is_given_up_ends_its_threads(store):
    import threading

    before = threading.active_count()
    reading = BatchReader([store.activations()], batch_size=20, seed=0, memory_bytes=TINY).batches(0, 1000)
    next(reading)
    reading.close()
    assert threading.active_count() == before

"""A store in a bucket: what a writer and a reader ask of it, counted."""

import threading
import time
from collections import Counter
from contextlib import closing

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from thresher.store.batches import BatchReader
from thresher.store.bucket import Bucket
from thresher.store.errors import DamagedStoreError, StoreError
from thresher.store.format import Site
from thresher.store.objects import open_objects
from thresher.store.reader import open_store


@pytest.fixture(autouse=True)
def empty_memory():
    """What `memory://` holds lasts as long as the process."""
    yield
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture
def asked(monkeypatch) -> Counter:
    """How often which method of `Bucket` was called, and how many objects `read_many` was asked for."""
    counts: Counter = Counter()
    for name in ("read", "read_many", "exists", "names", "walk"):
        method = getattr(Bucket, name)

        def counted(self, *arguments, _method=method, _name=name):
            counts[_name] += 1
            if _name == "read_many":
                counts["objects"] += len(arguments[0])
            return _method(self, *arguments)

        monkeypatch.setattr(Bucket, name, counted)
    return counts


@pytest.mark.parametrize("codec", ["none", "zstd"])
@pytest.mark.parametrize("tokens", [1, 3])
def test_it_holds_the_bytes_of_a_store_on_a_disk_and_reads_alike(make_store, codec, tokens):
    shape = {"codec": codec, "tokens": tokens, "invalid": (0, 70, 199)}
    made = make_store(200, **shape)
    make_store(200, place="memory://alike/x.zarr", **shape)
    objects = open_objects("memory://alike/x.zarr")
    files = {str(path.relative_to(made.path)): path.read_bytes() for path in made.path.rglob("*") if path.is_file()}
    assert dict(objects.walk()) == {name: len(data) for name, data in files.items()}
    assert objects.read_many(list(files)) == list(files.values())
    here, there = open_store(made.path), open_store("memory://alike/x.zarr")
    assert here.fingerprint == there.fingerprint
    assert [(bad.image, bad.key, bad.reason) for bad in here.unreadable] == [
        (bad.image, bad.key, bad.reason) for bad in there.unreadable
    ]
    n = here.n_rows
    np.testing.assert_array_equal(here.activations().read(0, n), there.activations().read(0, n))
    np.testing.assert_array_equal(here.labels(0, n), there.labels(0, n))
    np.testing.assert_array_equal(here.valid(0, n), there.valid(0, n))
    assert here.keys([0, n - 1]) == there.keys([0, n - 1])
    assert here.thumbnail(5) == there.thumbnail(5)


@pytest.mark.parametrize("invalid", [(), (0,), (63, 64, 1999)])
def test_to_open_it_takes_a_few_requests_whatever_the_number_of_chunks(make_store, asked, invalid):
    make_store(2000, 4, place="memory://opened/x.zarr", rows_per_chunk=2, invalid=invalid, thumbnails=False)
    asked.clear()
    store = open_store("memory://opened/x.zarr")
    windows = {place // 2 for place in invalid}
    assert len(store.unreadable) == len(invalid)
    n_documents = len([name for name, _ in store.objects.walk() if name.endswith("zarr.json")])
    # The metadata's documents; the records that list an unreadable image; then keys, a chunk and a record each.
    assert asked["objects"] <= n_documents + len(windows) + 2 * 2
    assert sum(asked[name] for name in ("read", "read_many", "exists", "names", "walk")) < 20


def test_a_record_of_unreadable_images_is_never_taken_for_one_without(make_store):
    for n_invalid in (1, 9, 10, 64):
        url = f"memory://never-{n_invalid}/x.zarr"
        made = make_store(64, 4, place=url, rows_per_chunk=64, invalid=tuple(range(n_invalid)), thumbnails=False)
        store = open_store(url)
        assert len(store.unreadable) == n_invalid
        np.testing.assert_array_equal(store.valid(0, 64), made.valid)


def test_a_read_of_many_chunks_asks_for_them_together_and_for_each_record_once(make_store, asked):
    made = make_store(640, 4, place="memory://many/x.zarr", rows_per_chunk=20, thumbnails=False)
    array = open_store("memory://many/x.zarr").activations()
    (rows,) = made.rows.values()
    asked.clear()
    np.testing.assert_array_equal(array.read(10, 630), rows[10:630].astype(np.float16))
    assert asked == {"read_many": 1, "objects": 2 * 32}
    asked.clear()
    starts, lengths = np.array([300, 17, 301, 100]), np.array([5, 2, 1, 40])
    out = np.empty((48, 4), np.float16)
    array.read_runs(starts, lengths, out)
    want = np.concatenate([rows[start : start + n] for start, n in zip(starts, lengths, strict=True)])
    np.testing.assert_array_equal(out, want.astype(np.float16))
    assert asked == {"read_many": 1, "objects": 4}  # chunks 15, 0, 5 and 6; their records are known


def test_thumbnails_of_many_rows_are_asked_for_together(make_store, asked):
    made = make_store(640, 4, place="memory://pictures/x.zarr", rows_per_chunk=40, invalid=(7,))
    store = open_store("memory://pictures/x.zarr")
    store.images(0, 640)
    asked.clear()
    rows = [639, 3, 3, 7, 41, 300, 0]
    want = [None if row == 7 else b"thumbnail %d" % made.row_image[row] for row in rows]
    assert store.thumbnails(rows) == want
    assert asked == {"read_many": 1, "objects": 3 * 4}  # a record, a blob and the offsets of windows 0, 1, 7 and 15
    assert store.thumbnails([]) == []


def test_a_slow_bucket_is_asked_for_more_at_a_time_as_long_as_somebody_waits(make_store, monkeypatch):
    made = make_store(4000, 4, place="memory://slow/x.zarr", rows_per_chunk=10, thumbnails=False)
    array = open_store("memory://slow/x.zarr").activations()
    read_many, mutex = Bucket.read_many, threading.Lock()
    under_way = [0, 0]  # now, most

    def slow(self, names):
        with mutex:
            under_way[0] += 1
            under_way[1] = max(under_way)
        time.sleep(0.03)
        found = read_many(self, names)
        with mutex:
            under_way[0] -= 1
        return found

    monkeypatch.setattr(Bucket, "read_many", slow)
    # Two buffers of 1,000 rows: 100 chunks each.
    reader = BatchReader([array], batch_size=100, seed=0, memory_bytes=2 * 1000 * 8)
    with closing(reader.batches(0, 40)) as batches:
        shown = [batch.values[0].copy() for batch in batches]
    assert 16 <= under_way[1] <= 64
    (rows,) = made.rows.values()
    known = {row.tobytes() for row in rows.astype(np.float16)}
    assert {row.tobytes() for row in np.concatenate(shown)} <= known


def test_what_is_kept_of_earlier_reads_is_not_asked_for_again(make_store, asked):
    make_store(640, 4, place="memory://kept/x.zarr", rows_per_chunk=20, thumbnails=False)
    array = open_store("memory://kept/x.zarr").activations()
    array.read(0, 40)
    asked.clear()
    array.read(5, 39)
    assert asked == {}


def test_a_chunk_that_is_missing_swapped_or_changed_is_an_error(make_store):
    make_store(200, 4, place="memory://spoilt/x.zarr", thumbnails=False)
    objects = open_objects("memory://spoilt/x.zarr")
    name = f"{Site(1).path}/c/1/0"
    kept, other = objects.read(name), objects.read(f"{Site(1).path}/c/0/0")
    changed = bytearray(kept)
    changed[7] ^= 1
    for spoilt, says in ((None, "is missing"), (other, "damaged"), (bytes(changed), "damaged"), (kept[:-1], "bytes")):
        objects.delete([name])
        if spoilt is not None:
            objects.write(name, spoilt)
        array = open_store(objects).activations()
        array.read(0, 64)
        with pytest.raises(DamagedStoreError, match=says):
            array.read(0, 65)
    objects.write(name, kept)
    record = f"commits/{Site(1).path}/1.json"
    objects.write(record, objects.read(f"commits/{Site(1).path}/0.json"))
    with pytest.raises(DamagedStoreError, match="belongs elsewhere"):
        open_store(objects).activations().read(0, 65)
    objects.delete([record])
    with pytest.raises(StoreError, match="did not finish"):
        open_store(objects)

"""Batches: each training row once a pass, the same rows for the same step, errors where the batch is wanted."""

import weakref

import numpy as np
import pytest
import torch
from thresher.store.reader import open_store
from thresher.train.loader import BatchLoader

CPU = torch.device("cpu")


def loader(path, **kw) -> BatchLoader:
    activations = open_store(path).activations()
    return BatchLoader([activations], **{"batch_size": 64, "seed": 1, "device": CPU, **kw})


def test_a_batch_holds_the_stored_rows_of_its_positions(small_store):
    store = open_store(small_store)
    batches = loader(small_store)
    rows = store.rows_of(batches.positions(3))
    stored = store.activations().read(0, store.n_rows)
    assert torch.equal(batches.read(3)[0], torch.from_numpy(stored[rows]))


def test_a_pass_shows_each_training_row_once_and_no_held_out_row(make_store):
    made = make_store(128 + 2, 4, dtype="float32")  # 128 rows to train on, 2 held out
    batches = loader(made.path, batch_size=32)
    for first in (0, 4):
        shown = np.concatenate([batches.positions(step) for step in range(first, first + 4)])
        assert sorted(shown) == list(range(128))
    assert not np.array_equal(batches.positions(0), batches.positions(4))


def test_reading_ahead_gives_the_batches_of_their_steps(small_store):
    batches = loader(small_store)
    ahead = list(batches.batches(5, 12))
    assert len(ahead) == 7
    for step, (batch,) in enumerate(ahead, 5):
        assert torch.equal(batch, batches.read(step)[0])


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_stored_types_arrive_as_float32_of_the_same_values(make_store, dtype):
    made = make_store(200, 8, dtype=dtype)
    store = open_store(made.path)
    batches = loader(made.path)
    (batch,) = batches.read(0)
    assert batch.dtype == torch.float32
    (rows,) = made.rows.values()
    exact = rows[store.rows_of(batches.positions(0))]
    tolerance = {"float16": 1e-3, "float32": 0, "bfloat16": 8e-3}[dtype]
    assert np.abs(batch.numpy() - exact).max() <= tolerance * np.abs(exact).max()


def test_a_batch_larger_than_the_store_goes_on_into_the_next_pass(make_store):
    batches = loader(make_store(50, 4).path, batch_size=120)
    counts = np.bincount(batches.positions(0))
    assert counts.min() >= 2
    assert counts.max() <= 3


def test_a_sample_holds_each_row_at_most_once(small_store):
    batches = loader(small_store)
    assert len(batches.sample(100)[0]) == 100
    (everything,) = batches.sample(10_000)
    assert len(everything) == batches.n_rows == 692
    assert len(everything.unique(dim=0)) == 692


def test_a_sample_is_kept_until_the_next_one_or_the_next_batch(small_store):
    batches = loader(small_store)
    kept = weakref.ref(batches.sample(100)[0])
    assert batches.sample(100)[0] is kept()
    assert batches.sample(100, 1)[0] is not kept()
    assert kept() is None
    kept = weakref.ref(batches.sample(100)[0])
    stream = batches.batches(0, 3)
    next(stream)
    assert kept() is None
    kept = weakref.ref(batches.sample(100, 1)[0])
    assert kept() is not None
    next(stream)
    assert kept() is None
    stream.close()


def test_an_error_of_the_reading_thread_is_raised_at_its_batch(small_store, monkeypatch):
    from thresher.store.batches import _RunReading

    read = _RunReading._read

    def fails(self, step):
        if step == 3:
            raise OSError("disk gone")
        return read(self, step)

    monkeypatch.setattr(_RunReading, "_read", fails)
    stream = loader(small_store).batches(0, 10)
    for _ in range(3):
        next(stream)
    with pytest.raises(OSError, match="disk gone"):
        next(stream)


def test_closing_the_stream_ends_its_thread(small_store):
    import threading

    stream = loader(small_store).batches(0, 1000)
    next(stream)
    stream.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("thresher-read")]

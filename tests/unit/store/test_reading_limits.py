"""Reading ahead goes as far as the consumer's waiting asks for, and its memory does not grow with the store."""

import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from thresher.store.batches import BatchReader
from thresher.store.objects import open_objects
from thresher.store.reader import ActivationArray, open_store


@pytest.fixture
def far_away(monkeypatch):
    """Makes every read take as long as told; counts those under way, and remembers the most."""
    state = {"delay_s": 0.05, "now": 0, "most": 0, "begun": 0}
    mutex, read_runs = threading.Lock(), ActivationArray.read_runs

    def slow(self, *arguments):
        with mutex:
            state["begun"] += 1
            state["now"] += 1
            state["most"] = max(state["most"], state["now"])
        time.sleep(state["delay_s"])
        try:
            read_runs(self, *arguments)
        finally:
            with mutex:
                state["now"] -= 1

    monkeypatch.setattr(ActivationArray, "read_runs", slow)
    return state


@pytest.fixture
def remote_array(make_store):
    """1,024 rows in 128 chunks in a bucket."""
    make_store(1024, 4, place="memory://far/away.zarr", rows_per_chunk=8, thumbnails=False)
    yield open_store(open_objects("memory://far/away.zarr")).activations()
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


def test_of_a_bucket_ever_more_chunks_are_asked_for_at_once_as_long_as_the_consumer_waits(remote_array, far_away):
    reader = BatchReader([remote_array], batch_size=64, seed=0, last="drop")
    assert reader.plan.is_chunked
    started = time.monotonic()
    assert len(list(reader.batches(0, reader.steps_per_epoch))) == 15
    assert 16 < far_away["most"] <= 64
    assert time.monotonic() - started < 128 * far_away["delay_s"]  # 6.4 s, one after the other


def test_of_a_bucket_a_few_chunks_are_asked_for_at_once_where_nobody_waits(remote_array, far_away):
    far_away["delay_s"] = 0
    reader = BatchReader([remote_array], batch_size=64, seed=0, last="drop", memory_bytes=2 * 256 * 8)
    reading = reader.batches(0, 10**6)
    next(reading)  # the first batch is always waited for
    far_away["most"] = 0
    most_begun = far_away["begun"]
    for _ in range(40):
        time.sleep(0.005)
        next(reading)
    reading.close()
    chunks_drawn = 41 * 64 // 8
    assert far_away["begun"] > most_begun
    assert far_away["begun"] <= chunks_drawn + 2 * 256 // 8 + 32  # no further ahead than the buffers


def test_of_a_disk_batches_are_read_further_ahead_only_while_the_consumer_waits(make_store, far_away):
    array = open_store(make_store(2000, 4).path).activations()
    reader = BatchReader([array], batch_size=50, seed=0, threads=40)
    assert reader.plan.mode == "runs"
    reading = reader.batches(0, 200)
    ahead = 0
    for n in range(1, 120):
        next(reading)
        ahead = max(ahead, far_away["begun"] - n)
    reading.close()
    assert 6 < far_away["most"] <= 16
    assert 6 < ahead <= 16
    far_away.update(delay_s=0, begun=0)
    patient = reader.batches(200, 300)
    time.sleep(0.05)
    for n in range(1, 20):
        next(patient)
        time.sleep(0.01)  # the next ones come meanwhile
        while far_away["now"]:
            time.sleep(0.01)
        assert far_away["begun"] - n <= 8  # two, and two more for the first, which was waited for; on a busy machine
    patient.close()


def test_batches_that_wait_take_no_more_memory_than_is_allowed(make_store, far_away):
    array = open_store(make_store(2000, 4).path).activations()
    reader = BatchReader([array], batch_size=50, seed=0, threads=40, memory_bytes=3 * 50 * 8)
    reading = reader.batches(0, 60)
    for _ in range(40):
        next(reading)
    reading.close()
    assert far_away["most"] == 3


READ = """
import resource, sys
from thresher.store.batches import BatchReader
from thresher.store.reader import open_store
reader = BatchReader([open_store(sys.argv[1]).activations()], batch_size=512, seed=0, last="drop",
                     threads=3, memory_bytes=int(sys.argv[2]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for batch in reader.batches(0, reader.steps_per_epoch):
    pass
print(reader.plan.mode, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize(("order", "mode"), [("random", "runs"), ("source", "buffer")])
def test_the_memory_of_a_reading_is_bounded_by_its_option_and_not_by_the_size_of_the_store(make_store, order, mode):
    memory, n = 6_000_000, 100_000  # rows of 26 MB
    rows = np.random.default_rng(0).standard_normal((n, 128), np.float32)
    made = make_store(n, 128, rows=rows, rows_per_chunk=8192, order=order, thumbnails=False)
    done = subprocess.run(
        [sys.executable, "-c", READ, made.path, str(memory)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found, grown_kib = done.stdout.split()
    assert found == mode
    # The option's, a checked chunk (2 MB) for each thread, and the interpreter's own for threads and numpy: 18 MB.
    assert int(grown_kib) * 1024 < memory + 3 * 2_100_000 + 6_000_000

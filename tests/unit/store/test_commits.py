"""How windows are committed in the background: which together, what a later one makes durable, what an error ends."""

import threading

import pytest
from thresher.store import commits as module
from thresher.store.commits import Commits

WAIT_S = 20.0


class Store:
    """Notes what is written together and settled; it writes when the test lets it."""

    def __init__(self, window_bytes):
        self.objects, self._bytes = self, window_bytes
        self.settled, self.written, self.failing = [], [], None
        self.is_let, self.is_writing = threading.Event(), threading.Event()

    def window_bytes(self):
        return self._bytes

    def settle(self, names):
        self.settled.append(sorted(names))

    def write(self, windows, settle):
        self.is_writing.set()
        assert self.is_let.wait(WAIT_S)
        if self.failing in [window.number for window in windows]:
            raise OSError(28, "No space left on device")
        self.written.append(([window.number for window in windows], sorted(settle)))
        return [f"record {window.number}" for window in windows]


class Window:
    def __init__(self, number):
        self.number = number


@pytest.fixture
def store(monkeypatch):
    monkeypatch.setattr(module, "_HELD_BYTES", 8)
    return Store(1)  # eight windows held, four of them written together


def test_windows_that_come_one_by_one_are_written_one_by_one_and_settle_those_before(store):
    store.is_let.set()
    commits = Commits(store)
    for number in range(3):
        commits.begin(Window(number))
        while len(store.written) <= number:
            pass
    commits.wait()
    assert store.written == [([0], []), ([1], ["record 0"]), ([2], ["record 1"])]
    assert store.settled == [["record 2"]]


def test_windows_that_wait_are_written_together_up_to_half_of_what_memory_holds(store):
    commits = Commits(store)
    commits.begin(Window(0))
    assert store.is_writing.wait(WAIT_S)
    for number in range(1, 8):
        commits.begin(Window(number))
    store.is_let.set()
    commits.wait()
    assert [numbers for numbers, _ in store.written] == [[0], [1, 2, 3, 4], [5, 6, 7]]
    assert store.written[2][1] == [f"record {number}" for number in range(1, 5)]
    assert store.settled == [["record 5", "record 6", "record 7"]]


@pytest.mark.parametrize(("window_bytes", "most"), [(1, 8), (8, 1), (100, 1)])
def test_no_more_windows_are_held_than_there_is_memory_for(store, window_bytes, most):
    store._bytes = window_bytes
    commits = Commits(store)
    for number in range(most):
        commits.begin(Window(number))
    thread = threading.Thread(target=commits.begin, args=(Window(most),))
    thread.start()
    thread.join(0.05)
    assert thread.is_alive(), "another window is taken"
    store.is_let.set()
    thread.join(WAIT_S)
    commits.wait()
    assert sorted(number for numbers, _ in store.written for number in numbers) == list(range(most + 1))


def test_after_an_error_no_window_is_begun_and_records_that_are_there_are_made_durable(store):
    store._bytes, store.failing = 8, 1
    store.is_let.set()
    commits = Commits(store)
    commits.begin(Window(0))
    commits.begin(Window(1))
    with pytest.raises(OSError, match="No space left on device"):
        commits.begin(Window(2))
    with pytest.raises(OSError, match="No space left on device"):
        commits.wait()
    assert store.written == [([0], [])]
    assert store.settled == [["record 0"]]

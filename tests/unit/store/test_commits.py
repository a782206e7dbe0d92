"""Which windows' records are written when, while windows are committed in the background."""

import threading

import pytest
from thresher.store.commits import Commits

WAIT_S = 20.0


class Store:
    """Remembers what is written together, each time; a window's bytes are written when the test lets them."""

    def __init__(self, window_bytes):
        self.objects, self.written, self.committed, self._bytes = self, [], [], window_bytes
        self.is_let = {number: threading.Event() for number in range(6)}
        self.is_writing = {number: threading.Event() for number in range(6)}

    def window_bytes(self):
        return self._bytes

    def write_all(self, files):
        self.written.append(sorted(files))

    def mark_committed(self, windows):
        self.committed += windows


class Window:
    def __init__(self, store, number, error=None):
        self.store, self.number, self.error = store, number, error

    def write(self, beside):
        self.store.is_writing[self.number].set()
        assert self.store.is_let[self.number].wait(WAIT_S)
        if self.error:
            raise self.error
        self.store.write_all({**beside, f"bytes {self.number}": []})
        return {f"record {self.number}": []}


def waiting(commits, window):
    """A thread that begins a window, once it waits for another to be written."""
    thread = threading.Thread(target=commits.begin, args=(window,))
    thread.start()
    while not commits._n_waiting:
        assert thread.is_alive()
    return thread


LARGE, SMALL = 1 << 30, 1 << 20


def test_a_window_that_no_other_follows_is_recorded_at_once():
    store = Store(LARGE)
    commits = Commits(store)
    for number in range(2):
        store.is_let[number].set()
        commits.begin(Window(store, number))
        while number not in store.committed:
            pass
    assert store.written == [["bytes 0"], ["record 0"], ["bytes 1"], ["record 1"]]
    commits.wait()
    assert len(store.written) == 4


def test_the_records_of_a_window_go_with_the_bytes_of_one_that_waits():
    store = Store(LARGE)
    commits = Commits(store)
    commits.begin(Window(store, 0))
    thread = waiting(commits, Window(store, 1))
    for event in store.is_let.values():
        event.set()
    thread.join(WAIT_S)
    commits.wait()
    assert store.written == [["bytes 0"], ["bytes 1", "record 0"], ["record 1"]]
    assert store.committed == [0, 1]


def test_two_small_windows_are_written_at_once_and_recorded_together():
    store = Store(SMALL)
    commits = Commits(store)
    for number in range(2):
        commits.begin(Window(store, number))
    assert all(store.is_writing[number].wait(WAIT_S) for number in range(2))
    store.is_let[1].set()
    while store.written != [["bytes 1"]]:
        pass
    store.is_let[0].set()
    commits.wait()
    assert store.written == [["bytes 1"], ["bytes 0"], ["record 0", "record 1"]]
    assert sorted(store.committed) == [0, 1]


def test_after_an_error_no_window_is_begun_and_those_that_are_durable_are_recorded():
    store = Store(LARGE)
    commits = Commits(store)
    store.is_let[0].set()
    commits.begin(Window(store, 0))
    commits.begin(Window(store, 1, OSError(28, "No space left on device")))
    thread_error = []

    def begin():
        try:
            commits.begin(Window(store, 2))
        except OSError as error:
            thread_error.append(error)

    thread = threading.Thread(target=begin)
    thread.start()
    while not commits._n_waiting:
        pass
    store.is_let[1].set()
    thread.join(WAIT_S)
    assert [error.errno for error in thread_error] == [28]
    assert not store.is_writing[2].is_set()
    with pytest.raises(OSError, match="No space left on device"):
        commits.wait()
    assert store.committed == [0]
    assert [names for names in store.written if "record 0" in names]


def test_an_interrupted_harvest_records_what_waited_for_a_window_that_never_came():
    store = Store(LARGE)
    commits = Commits(store)
    commits.begin(Window(store, 0))
    commits._n_waiting = 1  # of a begin that Ctrl-C ends before it is its turn
    store.is_let[0].set()
    while store.written != [["bytes 0"]]:
        pass
    commits._n_waiting = 0
    commits.close()
    assert store.written == [["bytes 0"], ["record 0"]]

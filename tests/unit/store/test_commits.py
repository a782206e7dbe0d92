"""What is made durable when, while windows are committed in the background."""

import pytest
from thresher.store.commits import Commits


class Store:
    """Notes what each window and the end made durable."""

    def __init__(self):
        self.objects, self.settled = self, []

    def settle(self, names):
        self.settled.append(("end", list(names)))


class Window:
    def __init__(self, store, number, error=None):
        self.store, self.number, self.error, self.state = store, number, error, "filled"

    def begin(self):
        self.state = "begun"

    def abandon(self):
        self.state = "let go"

    def write(self, settle):
        if self.error:
            raise self.error
        assert self.state == "begun"
        self.store.settled.append((self.number, list(settle)))
        return [f"record {self.number}"]


def test_each_window_makes_the_records_of_the_one_before_durable_and_the_end_the_last_ones():
    store = Store()
    commits = Commits(store)
    for number in range(3):
        commits.begin(Window(store, number))
    commits.wait()
    assert store.settled == [(0, []), (1, ["record 0"]), (2, ["record 1"]), ("end", ["record 2"])]
    commits.close()
    assert len(store.settled) == 4


def test_after_an_error_no_window_is_begun_and_records_that_are_there_are_made_durable():
    store = Store()
    commits = Commits(store)
    commits.begin(Window(store, 0))
    failing, next_one = Window(store, 1, OSError(28, "No space left on device")), Window(store, 2)
    commits.begin(failing)
    with pytest.raises(OSError, match="No space left on device"):
        commits.begin(next_one)
    commits.close()
    assert (failing.state, next_one.state) == ("let go", "let go")
    assert store.settled == [(0, []), ("end", ["record 0"])]

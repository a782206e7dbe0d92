import threading
import time

import pytest
from thresher.store.ahead import in_order


def test_results_come_in_order_whatever_takes_long():
    def work(i):
        time.sleep(0.002 * (7 * i % 5))
        return i * i

    assert list(in_order(work, range(40), 4)) == [i * i for i in range(40)]
    assert list(in_order(work, [], 4)) == []


def test_no_more_is_begun_than_was_said():
    begun = []
    results = in_order(lambda i: begun.append(i), range(100), 3)
    for wanted in range(1, 10):
        next(results)
        deadline_s = time.monotonic() + 5
        while len(begun) < wanted + 3 and time.monotonic() < deadline_s:
            time.sleep(0.001)
        assert len(begun) == wanted + 3
    results.close()
    assert len(begun) <= 13


def test_an_error_is_raised_where_its_result_is_wanted():
    def work(i):
        if i == 5:
            raise OSError("disk gone")
        return i

    results = in_order(work, range(10), 3)
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(OSError, match="disk gone"):
        next(results)


def test_closing_ends_the_threads():
    results = in_order(lambda i: i, range(1000), 3)
    next(results)
    results.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("thresher-ahead")]

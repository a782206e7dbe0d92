import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from thresher.harvest.ranks import Ranks, _Joined, join_ranks
from torch.distributed import TCPStore

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def joined():
    """A factory of processes that share a harvest, here of one process."""
    store = TCPStore("127.0.0.1", 0, is_master=True)

    def make(n):
        return [_Joined(store, rank, n, rank, n) for rank in range(n)]

    return make


def test_a_process_that_no_one_started_with_others_is_alone():
    ranks = join_ranks()
    assert type(ranks) is Ranks
    assert (ranks.is_first, ranks.n_ranks, ranks.share(7), ranks.threads()) == (True, 1, 7, torch.get_num_threads())
    ranks.wait_for_all("here")
    assert (ranks.count("images", 3), ranks.count("images", 4), ranks.count("windows", 1)) == (3, 7, 1)


def test_half_an_environment_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ValueError, match="WORLD_SIZE is 2, but MASTER_ADDR and MASTER_PORT is not set"):
        join_ranks()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two' in the environment, which is not a number from 1"),
        ({"WORLD_SIZE": "-2"}, "WORLD_SIZE is '-2'"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE is ''"),
        ({"RANK": "first"}, "RANK is 'first' in the environment, which is not 0 to 1"),
        ({"RANK": "2"}, "RANK is '2'"),
        ({"LOCAL_RANK": "9"}, "LOCAL_RANK is '9'"),
        ({"LOCAL_WORLD_SIZE": "0"}, "LOCAL_WORLD_SIZE is '0' in the environment, which is not 1 to 2"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT is 'http' in the environment, which is not 0 to 65535"),
    ],
)
def test_an_environment_that_holds_no_numbers_is_refused_by_name(monkeypatch, changes, says):
    whole = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, value in (whole | changes).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"^{says}.*: start the processes with torchrun, or unset what it sets\\.$"):
        join_ranks()


def test_processes_join_by_torchruns_environment():
    code = """
from thresher.harvest.ranks import join_ranks
ranks = join_ranks()
ranks.wait_for_all("a")
print(ranks.rank, ranks.n_ranks, ranks.local_rank, ranks.n_local, ranks.count("x", ranks.rank + 1) >= 1)
ranks.came("end")
while not ranks.all_came("end"): pass
"""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    done = subprocess.run([*command, sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["0 2 0 2 True", "1 2 1 2 True"]


@pytest.mark.parametrize("n", [0, 1, 5, 8])
def test_shares_sum_to_the_whole(joined, n):
    assert sum(ranks.share(n) for ranks in joined(3)) == n


def test_no_one_goes_on_before_all_have_come(joined):
    order = []
    first, second = joined(2)
    may_come = threading.Event()

    def early():
        first.wait_for_all("there")
        order.append("first goes on")

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(early)
        assert not may_come.wait(0.2)
        order.append("second comes")
        second.wait_for_all("there")
        waiting.result()
    assert order == ["second comes", "first goes on"]


def test_one_process_of_each_machine_goes_first(joined):
    store = joined(1)[0]._store
    machines = [[_Joined(store, 2 * m + i, 4, i, 2) for i in range(2)] for m in range(2)]
    order = []

    def load(ranks):
        with ranks.first_on_machine("tower"):
            order.append(ranks.rank)

    with ThreadPoolExecutor(2) as pool:
        seconds = [pool.submit(load, machine[1]) for machine in machines]
        assert not threading.Event().wait(0.2)
        assert order == []
        load(machines[1][0])
        seconds[1].result(timeout=10)
        assert order == [2, 3]  # the other machine has its own first
        load(machines[0][0])
        seconds[0].result(timeout=10)
    assert order == [2, 3, 0, 1]


def test_the_first_process_leaves_last(joined):
    first, second = joined(2)
    with ThreadPoolExecutor(1) as pool:
        leaving = pool.submit(first.leave)
        assert not threading.Event().wait(0.2)
        assert not leaving.done()
        second.leave()  # returns at once: the key-value store may end when the first is gone
        leaving.result(timeout=10)


def test_counts_are_kept_together(joined):
    first, second = joined(2)
    assert (first.count("images", 2), second.count("images", 5), first.count("images", 0)) == (2, 7, 7)


def test_the_first_error_is_told_and_ends_the_others(joined):
    first, second, third = joined(3)
    with pytest.raises(OSError, match="disk is full"), second.ending_together():
        raise OSError("disk is full")
    try:
        assert signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ())  # torchrun's must not cut the line short
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    with pytest.raises(SystemExit) as ended, third.ending_together():
        raise ValueError("a later one")
    assert ended.value.code == 1
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    for wait in (lambda: first.wait_for_all("end"), lambda: first.count("images", 1), lambda: first.all_came("end")):
        with pytest.raises(SystemExit), first.ending_together():
            wait()
    with pytest.raises(SystemExit), first.ending_together():  # torchrun's SIGTERM after another's error
        raise KeyboardInterrupt


def test_a_signal_is_told_by_the_first_alone(joined):
    first, second = joined(2)
    with pytest.raises(KeyboardInterrupt), first.ending_together():
        raise KeyboardInterrupt
    with pytest.raises(SystemExit), second.ending_together():
        raise KeyboardInterrupt


@pytest.mark.parametrize("text", ["", "abc", "-2"])
def test_threads_that_are_no_number_are_none_chosen(joined, monkeypatch, text):
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    monkeypatch.setattr("thresher.harvest.ranks._threads_of_a_fresh_process", lambda chosen: 7 if chosen is None else 0)
    assert joined(1)[0].threads() == 7


@pytest.mark.parametrize("each", [None, 3])
def test_threads_are_those_that_one_process_would_take(joined, monkeypatch, each):
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # what torchrun sets where the user has chosen nothing
    if each is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", str(each))
        environment["OMP_NUM_THREADS"] = str(2 * each)
    code = "import torch; print(torch.get_num_threads())"
    alone = int(subprocess.check_output([sys.executable, "-c", code], env=environment, text=True))
    assert [ranks.threads() for ranks in joined(2)] == [alone, alone]

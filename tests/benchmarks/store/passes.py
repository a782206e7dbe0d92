"""The process of one reader: it does what the benchmark asks, and answers with one line of JSON each time.

A reader is a class made from a `Job`; `batches(epoch)` gives the batches of a pass. Its script imports all that it
needs, then calls `serve`. A batch counts as delivered when it is one contiguous array; nothing more is touched.
"""

import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from data import D_IN, Source, chi2_per_df, labels_of, row_numbers

CHECKED_BATCHES = 100
CHECKED_ROWS = 16
"""Rows of each checked batch that are compared with the source's."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one reader is to read."""

    data: str
    """Its own file or folder."""
    source_rows: int
    """Rows of the whole source, which fixes their labels."""
    rows: int
    """Rows of its data: the source's first."""
    rows_per_pass: int
    """Rows after which a pass ends: all of them, or fewer for slow readers."""
    batch: int
    threads: int
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    """What only this reader knows."""


class Reader(Protocol):
    """One way of reading."""

    def batches(self, epoch: int) -> Iterator[Any]:
        """The batches of a pass: contiguous numpy arrays or torch tensors of `(batch, D_IN)`."""


Make = Callable[[Job], dict[str, float] | None]


def serve(open_reader: Callable[[Job], Reader] | None, make: Make | None = None) -> None:
    """Do what standard input says, line by line: `make`, `open`, `pass N`, `check N`."""
    job = Job(**json.loads(sys.argv[1]))
    _say(**memory_bytes())
    reader: Reader | None = None
    for line in sys.stdin:
        command, _, number = line.strip().partition(" ")
        started = time.perf_counter()
        if command == "make":
            assert make is not None
            _say(**(make(job) or {}), wall_s=time.perf_counter() - started)
        elif command == "open":
            assert open_reader is not None
            reader = open_reader(job)
            _say(wall_s=time.perf_counter() - started)
        elif command in ("pass", "check"):
            assert reader is not None
            _say(**(_timed_pass if command == "pass" else _checked_pass)(reader, job, int(number)))
        else:
            raise ValueError(f"no such command: {line!r}")


def _timed_pass(reader: Reader, job: Job, epoch: int) -> dict[str, float]:
    rows, first_s, took_s = 0, 0.0, 0.0
    cpu, wall = _cpu_s(), time.perf_counter()
    for batch in reader.batches(epoch):
        rows += _delivered(batch)
        took_s = time.perf_counter() - wall
        first_s = first_s or took_s
        if rows >= job.rows_per_pass:
            break  # the reader's generator ends its workers here: their CPU time counts, waiting for their end does not
    return {"wall_s": took_s, "cpu_s": _cpu_s() - cpu, "rows": rows, "first_batch_s": first_s}


def _delivered(batch: Any) -> int:
    contiguous = batch.flags.c_contiguous if isinstance(batch, np.ndarray) else batch.is_contiguous()
    if not contiguous or tuple(batch.shape[1:]) != (D_IN,):
        raise ValueError(f"a batch must be one contiguous array of (n, {D_IN}), not {tuple(batch.shape)}")
    return len(batch)


def _checked_pass(reader: Reader, job: Job, epoch: int) -> dict[str, Any]:
    """Mixing of the first batches, how many rows came more than once, whether they are the source's rows."""
    source, rng = Source(job.source_rows), np.random.default_rng(1)
    class_sizes = np.bincount(labels_of(job.source_rows)[: job.rows])
    chi2, seen = [], np.zeros(job.rows, np.uint8)
    n_batches = max(1, min(CHECKED_BATCHES, job.rows_per_pass // job.batch))
    for delivered in itertools.islice(reader.batches(epoch), n_batches):
        batch = np.asarray(delivered)
        rows = row_numbers(batch)
        np.add.at(seen, rows, 1)
        chi2.append(chi2_per_df(batch[:, 0], class_sizes))
        places = rng.integers(0, len(rows), CHECKED_ROWS)
        if not np.array_equal(batch[places], source.rows(rows[places])):
            raise ValueError("a row was delivered with other values than the source's")
    return {"chi2": float(np.mean(chi2)), "batches": len(chi2), "repeats": int((seen > 1).sum())}


def memory_bytes() -> dict[str, int]:
    """This process's own memory and all that it has mapped and touched; zeros where there is no /proc.

    Its own: anonymous pages, shared ones among them; the rest are pages of files, in the page cache anyway.
    """
    try:
        with open("/proc/self/status") as status:
            fields = dict(line.split(":", 1) for line in status)
    except FileNotFoundError:
        return {"own": 0, "resident": 0}
    kib = {name: int(fields[name].split()[0]) for name in ("RssAnon", "RssShmem", "VmRSS")}
    return {"own": (kib["RssAnon"] + kib["RssShmem"]) * 1024, "resident": kib["VmRSS"] * 1024}


def _cpu_s() -> float:
    t = os.times()
    return t.user + t.system + t.children_user + t.children_system


def _say(**answer: Any) -> None:
    print(json.dumps(answer), flush=True)

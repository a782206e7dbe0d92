"""Shuffled batches of a store's training rows, read ahead by threads.

A batch is a function of (store, batch size, seed, last, step) and of the plan, never of the threads: the state of a
reader is its step.
"""

import os
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .buffers import BufferPool
from .epochs import ChunkRuns, EpochOrder, PassOrder, Runs, UniformRuns
from .loading import MEMORY_BYTES, MIXING, LoadingPlan, plan_loading, require_training_rows
from .reader import ActivationArray
from .shuffle import BUFFER_ORDER, Permutation

Allocate = Callable[[tuple[int, ...], DTypeLike], NDArray[Any]]

_REMOTE_REQUESTS = 64  # most chunks asked for at a time
_PIECE_BYTES = 4 << 20  # of a buffer, read by one thread at a time
_PATIENCE_S = 0.02  # a wait that calls for more threads
_BATCHES_AHEAD = 16  # most
_BYTES_AHEAD = 48 << 20  # beyond two batches; more makes a disk no faster


@dataclass(frozen=True)
class Batch:
    """Some training rows, of every array that was asked for."""

    step: int
    """Number of the batch in the endless stream."""
    epoch: int
    """The pass that it begins in."""
    values: list[NDArray[Any]]
    """`(n, d_in)` in the stored dtype, one an array; row i of each is the same row of the store."""
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    order: NDArray[np.int64] | None
    """Position i of the batch is the `order[i]`-th of the runs `[starts, starts + lengths)`; None: the i-th."""
    _reader: "BatchReader"

    def positions(self) -> NDArray[np.int64]:
        """Position of each row in the store, `(n,)`."""
        positions = expand(self.starts, self.lengths)
        return positions if self.order is None else positions[self.order]

    def rows(self) -> NDArray[np.int64]:
        """Number of each row in the store, `(n,)`."""
        return self._reader.store.rows_of(self.positions())

    def labels(self) -> NDArray[np.int32]:
        """Label of each row, `(n,)`; -1 where there is none."""
        return _gather(self._reader.store.labels, self.rows(), np.int32)

    def images(self) -> NDArray[np.int64]:
        """Image of each row, `(n,)`."""
        return _gather(self._reader.store.images, self.rows(), np.int64)


class BatchReader:
    """Batches of the training rows of one store, from any step on.

    Parameters
    ----------
    arrays
        What to read of each row: one or several arrays of one store.
    batch_size
        Rows of a global batch.
    seed
        Of the order.
    last
        The last batch of a pass: `wrap` fills it from the next pass, `keep` leaves it short, `drop` leaves it out.
    rank, n_ranks
        This process's share: places `[rank * n // n_ranks, (rank + 1) * n // n_ranks)` of each global batch of n. The
        shares of all ranks are the rows of the global batch, whatever their number; of several parts, each share has
        rows of every part in proportion.
    memory_bytes
        For the buffer, where the store needs one; see `loading.plan_loading`.
    mixing
        That a buffer keeps to.
    equal_shares
        Refuse a batch that `n_ranks` does not divide, as a loop needs that averages its processes' gradients.
    threads
        Most that read at a time; by default one more than the cores for a disk, 64 for a bucket. Fewer do as long as
        nobody waits.
    plan
        How to read, in place of the plan that `memory_bytes` and `mixing` give here: the order of the rows follows from
        it, so a run that goes on keeps its own, wherever its store has been moved to.
    allocate
        Gives the arrays of a batch; by default memory that is used again once a batch is dropped.
    """

    def __init__(
        self,
        arrays: Sequence[ActivationArray],
        *,
        batch_size: int,
        seed: int,
        last: str = "wrap",
        rank: int = 0,
        n_ranks: int = 1,
        memory_bytes: int = MEMORY_BYTES,
        mixing: float = MIXING,
        equal_shares: bool = True,
        threads: int | None = None,
        plan: LoadingPlan | None = None,
        allocate: Allocate | None = None,
    ) -> None:
        if not arrays or any(array.store is not arrays[0].store for array in arrays):
            raise ValueError("the arrays of a batch come from one store")
        if not 0 <= rank < n_ranks:
            raise ValueError(f"rank {rank} is not one of {n_ranks}")
        if equal_shares and batch_size % n_ranks:
            raise ValueError(f"a batch of {batch_size} rows cannot be shared equally by {n_ranks} processes")
        self.arrays, self.store = list(arrays), arrays[0].store
        require_training_rows(self.store)
        self.seed, self.rank, self.n_ranks = seed, rank, n_ranks
        self.plan = plan or plan_loading(arrays, batch_size, memory_bytes, mixing)
        parts: list[PassOrder] = []
        firsts, first = [], 0
        for number, part in enumerate(self.store.parts):
            parts.append(self._part_order(number))
            firsts.append(first)
            first += part.positions.n_train
        self.order = EpochOrder(parts, firsts, batch_size, last)
        self.n_rows = self.order.n_rows
        self.batch_size = batch_size
        remote = any(part.objects.local is None for part in self.store.parts)
        self._threads = threads or (_REMOTE_REQUESTS if remote else len(os.sched_getaffinity(0)) + 1)
        self._memory_bytes = memory_bytes
        self._allocate = allocate or BufferPool().take

    @property
    def steps_per_epoch(self) -> int | None:
        """Batches a pass; None where batches reach from one pass into the next."""
        return self.order.steps_per_pass

    def read(self, step: int) -> Batch:
        """Batch `step`, of this rank."""
        for batch in self.batches(step, step + 1):
            return batch
        raise AssertionError("one step gives one batch")

    def batches(self, first: int, stop: int) -> Generator[Batch, None, None]:
        """Batches `[first, stop)` of this rank, in order, read ahead. Close the generator to end the reading."""
        read_ahead = _RunReading(self) if self.plan.mode == "runs" else _BufferReading(self)
        return read_ahead.batches(first, stop)

    def share(self, step: int) -> list[tuple[int, int, int]]:
        """Where this rank's rows of batch `step` lie: (pass, first place, place after the last)."""
        stretches = self.order.stretches(step)
        n = sum(last - first for _, first, last in stretches)
        begin, end = self.rank * n // self.n_ranks, (self.rank + 1) * n // self.n_ranks
        found = []
        for number, first, last in stretches:
            start, stop = max(first, first + begin), min(last, first + end)
            if start < stop:
                found.append((number, start, stop))
            begin, end = begin - (last - first), end - (last - first)
        return found

    def _part_order(self, number: int) -> PassOrder:
        part = self.store.parts[number]
        n_train = part.positions.n_train
        if not self.plan.is_chunked or n_train == 0:
            order = UniformRuns(max(1, n_train), self.plan.run_length, self.seed, number)
            order.n = n_train
            return order
        edges = np.minimum(np.arange(part.n_chunks + 1) * part.rows_per_chunk, part.n_rows)
        return ChunkRuns(part.positions.n_train_before(edges), self.seed, number)


class _RunReading:
    """Reads runs of rows straight into batches, some batches ahead."""

    def __init__(self, reader: BatchReader) -> None:
        self._reader = reader
        batch_bytes = sum(array.row_bytes for array in reader.arrays) * reader.batch_size // reader.n_ranks
        ahead = max(2, min(_BATCHES_AHEAD, _BYTES_AHEAD // max(1, batch_bytes)))
        self._most_ahead = max(1, min(ahead, reader._memory_bytes // max(1, batch_bytes)))

    def batches(self, first: int, stop: int) -> Generator[Batch, None, None]:
        if stop - first == 1:  # one batch alone: no threads
            yield self._read(first)
            return
        ahead: deque[Future[Batch]] = deque()
        depth, step = min(2, self._most_ahead), first
        pool = ThreadPoolExecutor(self._reader._threads, thread_name_prefix="thresher-read")
        try:
            for _ in range(first, stop):
                while step < stop and len(ahead) < depth:
                    ahead.append(pool.submit(self._read, step))
                    step += 1
                if not ahead[0].done():
                    depth = min(depth * 2, self._most_ahead)
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _read(self, step: int) -> Batch:
        reader = self._reader
        starts, lengths = _concatenate([reader.order.pass_runs(*stretch) for stretch in reader.share(step)])
        n = int(lengths.sum())
        values = []
        for array in reader.arrays:
            out = reader._allocate((n, array.d_in), array.stored_dtype)
            array.read_runs(starts, lengths, out)
            values.append(out)
        return Batch(step, reader.order.stretches(step)[0][0], values, starts, lengths, None, reader)


class _Buffer:
    """Some runs of one pass, in memory or on their way there."""

    def __init__(self, key: tuple[int, int], runs: Runs, first: int, n: int, values: list[NDArray[Any]]) -> None:
        self.key, self.runs, self.first, self.n, self.values = key, runs, first, n, values
        self.reads: list[Future[None]] = []
        self.uses: list[Future[None]] = []


class _BufferReading:
    """Reads long runs into a buffer, draws batches from it in random order; fills the next one meanwhile.

    Each rank fills whole buffers, though it draws but its share: a batch's rows lie one by one all over the buffer, and
    a rank's are as many in each run as any other's, so that to leave the others out would be to read row by row. With n
    ranks, n times the rows are read and n times the memory is taken (268 MB of 1,024 float16 coordinates, two passes:
    1.4 to 1.5 s of CPU a rank, be it one of one, two or four). Ranks of one machine read from its page cache; from a
    bucket each fetches all. Rows in random order on a disk need no buffer: there each rank reads its share alone.
    """

    def __init__(self, reader: BatchReader) -> None:
        self._reader = reader
        n_buffers = -(-reader.n_rows // reader.plan.buffer_rows)
        self._buffer_rows = -(-reader.n_rows // n_buffers)
        self._n_buffers = n_buffers
        self._buffers: OrderedDict[tuple[int, int], _Buffer] = OrderedDict()
        self._active = threading.Semaphore(0)
        self._n_active = 0

    def batches(self, first: int, stop: int) -> Generator[Batch, None, None]:
        readers = ThreadPoolExecutor(self._reader._threads, thread_name_prefix="thresher-read")
        drawers = ThreadPoolExecutor(1, thread_name_prefix="thresher-draw")
        self._let_read(min(self._reader._threads, 4))
        ahead: deque[Future[Batch]] = deque()
        step = first
        try:
            for _ in range(first, stop):
                while step < stop and len(ahead) < 4:
                    ahead.append(self._submit(step, readers, drawers))
                    step += 1
                self._wait_for(ahead[0])
                yield ahead.popleft().result()
        finally:
            drawers.shutdown(wait=False, cancel_futures=True)
            self._let_read(self._reader._threads)
            readers.shutdown(cancel_futures=True)
            drawers.shutdown()
            self._buffers.clear()

    def _wait_for(self, batch: "Future[Batch]") -> None:
        """Wait for a batch; as long as it is not there, let twice as many threads read every few hundredths."""
        while self._n_active < self._reader._threads and not wait_for([batch], _PATIENCE_S).done:
            self._let_read(min(self._n_active, self._reader._threads - self._n_active))

    def _let_read(self, n: int) -> None:
        self._n_active += n
        self._active.release(n)

    def _submit(self, step: int, readers: ThreadPoolExecutor, drawers: ThreadPoolExecutor) -> "Future[Batch]":
        """Draw a batch once the buffers that it needs are there; begin the buffer after them."""
        pieces: list[tuple[_Buffer, int, int]] = []
        for number, first, last in self._reader.share(step):
            while first < last:
                nth = first // self._buffer_rows
                end = min(last, (nth + 1) * self._buffer_rows)
                pieces.append((self._open(number, nth, readers, [buffer for buffer, _, _ in pieces]), first, end))
                first = end
        future = drawers.submit(self._draw, step, pieces)
        drawn: Future[None] = Future()  # `future` itself would keep its batch as long as the buffer
        future.add_done_callback(lambda _: drawn.set_result(None))
        for buffer, _, _ in pieces:
            buffer.uses = [*(use for use in buffer.uses if not use.done()), drawn]
        if self._n_buffers > 1 and pieces:
            number, nth = pieces[-1][0].key
            self._open(*((number, nth + 1) if nth + 1 < self._n_buffers else (number + 1, 0)), readers, [])
        return future

    def _open(self, number: int, nth: int, readers: ThreadPoolExecutor, in_use: list[_Buffer]) -> _Buffer:
        """A buffer of a pass, begun where it is not there yet; `in_use` are to be drawn from beside it."""
        # With one buffer for everything the rows stay in memory, and only their order changes from pass to pass.
        key = (number if self._n_buffers > 1 else 0, nth)
        if key in self._buffers:
            return self._buffers[key]
        reader, values = self._reader, None
        if len(self._buffers) >= 2:
            _, oldest = self._buffers.popitem(last=False)
            if oldest not in in_use:
                wait_for(oldest.reads)
                wait_for(oldest.uses)  # draws still to come from it; they are short
                values = oldest.values  # its memory, which waiting for its last reference would double
        if values is None:
            values = [np.empty((self._buffer_rows, array.d_in), array.stored_dtype) for array in reader.arrays]
        first = nth * self._buffer_rows
        n = min(self._buffer_rows, reader.n_rows - first)
        runs = reader.order.pass_runs(key[0], first, first + n)
        buffer = _Buffer(key, runs, first, n, values)
        ends = np.cumsum(runs[1])
        row_bytes = sum(array.row_bytes for array in reader.arrays)
        per_piece = max(1, _PIECE_BYTES // max(1, row_bytes * int(runs[1].max())))
        if reader.plan.is_chunked:
            per_piece = 1
        for begin in range(0, len(ends), per_piece):
            end = min(begin + per_piece, len(ends))
            at = int(ends[begin] - runs[1][begin]), int(ends[end - 1])
            buffer.reads.append(readers.submit(self._fill, buffer, begin, end, *at))
        self._buffers[key] = buffer
        return buffer

    def _fill(self, buffer: _Buffer, begin: int, end: int, start: int, stop: int) -> None:
        with self._active:
            for array, values in zip(self._reader.arrays, buffer.values, strict=True):
                array.read_runs(buffer.runs[0][begin:end], buffer.runs[1][begin:end], values[start:stop])

    def _draw(self, step: int, pieces: list[tuple[_Buffer, int, int]]) -> Batch:
        reader = self._reader
        n = sum(last - first for _, first, last in pieces)
        out = [reader._allocate((n, array.d_in), array.stored_dtype) for array in reader.arrays]
        stretches = reader.share(step)
        runs, order, at, base = [], [], 0, 0
        passes = [number for number, first, last in stretches for _ in range(first, last)]
        for buffer, first, last in pieces:
            for read in buffer.reads:
                read.result()
            shuffled = Permutation(buffer.n, BUFFER_ORDER, reader.seed, passes[at], buffer.key[1])
            chosen = shuffled(np.arange(first - buffer.first, last - buffer.first))
            for values, target in zip(buffer.values, out, strict=True):
                np.take(values, chosen, axis=0, out=target[at : at + last - first], mode="clip")
            runs.append(buffer.runs)
            order.append(chosen + base)
            base += buffer.n
            at += last - first
        starts, lengths = _concatenate(runs)
        epoch = reader.order.stretches(step)[0][0]
        drawn = np.concatenate(order) if order else np.empty(0, np.int64)
        return Batch(step, epoch, out, starts, lengths, drawn, reader)


def expand(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers of runs `[starts, starts + lengths)`, one after the other."""
    ends = np.cumsum(lengths)
    return np.arange(int(lengths.sum())) + np.repeat(starts - (ends - lengths), lengths)


def _concatenate(runs: list[Runs]) -> Runs:
    if len(runs) == 1:
        return runs[0]
    if not runs:  # the share of a rank in a last batch of fewer rows than ranks
        return np.empty(0, np.int64), np.empty(0, np.int64)
    return np.concatenate([starts for starts, _ in runs]), np.concatenate([lengths for _, lengths in runs])


def _gather(read: Callable[[int, int], NDArray[Any]], rows: NDArray[np.int64], dtype: type[np.generic]) -> NDArray[Any]:
    """What `read(start, stop)` says of each row, read in runs of neighbouring rows."""
    ascending = np.sort(rows)
    cuts = np.flatnonzero(np.diff(ascending) > _NEAR) + 1
    found = np.empty(len(rows), dtype)
    place = np.argsort(rows, kind="stable")
    for part, at in zip(np.split(ascending, cuts), np.split(place, cuts), strict=True):
        if len(part):
            found[at] = read(int(part[0]), int(part[-1]) + 1)[part - part[0]]
    return found


_NEAR = 4096  # rows so near to each other are read as one piece: 16 KB of labels

"""One more pass over rows that are encoded, of which nothing is kept: what its tasks need, find and give back."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .exact_sums import SumUnits
from .fused_statistics import ONE_AT_A_TIME, FusedBlock, FusedRange
from .l0_counts import add_counts, row_counts
from .label_counts import LabelSums
from .monosemanticity import SimilaritySums, open_embeddings
from .sample_search import SampledRows, SampleSearch
from .split_entries import SplitEntries

_ENTRIES_AT_ONCE = 1 << 20

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a pass is to find; arrays that it needs lie in a folder that every process reads."""

    folder: str
    number: int
    """Of the pass."""
    runs: tuple[tuple[int, int], ...]
    """Rows whose features are kept for co-firing."""
    max_l0_row: int
    """Whose features are kept."""
    embeddings: str | None


@dataclass(frozen=True)
class Known:
    """What earlier passes told."""

    units: SumUnits
    """Of the features."""
    is_counted: NDArray[np.bool_]
    """`(d_sae,)`: features outside the ULD cluster."""
    search: SampleSearch | None
    """None where samples and labels are not asked for."""


@dataclass
class Found:
    """What a range of rows adds."""

    n_entries: int
    """Activations."""
    l0: Array
    """Rows with exactly i of the features counted."""
    max_row: tuple[Array, Array] | None
    """Features and activations of the row with the largest L0, where it is among the rows."""
    n_kept: int
    """Rows, encoded, whose features are kept."""
    kept_counts: NDArray[np.int64]
    """Features on each row of the runs."""
    kept_index: NDArray[np.uint32]
    """They, row after row."""
    sampled: dict[str, Array] | None
    """Of `SampledRows.settle`."""
    labels: LabelSums | None
    similarity: SimilaritySums | None


def steps_of_range(wanted: Wanted, rows: FusedRange) -> Array:
    """Counts of `SampleSearch.count_steps` over a range of rows."""
    with ONE_AT_A_TIME:
        search = known_to(wanted).search
        assert search is not None
        counts = search.zero_steps()
        for _, block in rows.encoded():
            search.count_steps(counts, block.read.start + block.entry_rows, block.index, block.value)
    return counts


def merge_steps(_: Wanted, parts: list[Array]) -> Array:
    """Counts over all ranges, in 64 bits once 32 might not do."""
    dtype = np.uint32 if sum(int(part.max()) for part in parts) < 1 << 32 else np.uint64
    return np.asarray(np.sum(parts, axis=0, dtype=dtype))


def found_of_range(wanted: Wanted, rows: FusedRange) -> Found:
    """What a range of rows adds."""
    with ONE_AT_A_TIME:
        collected = _Collected(wanted)
        for _, block in rows.encoded():
            collected.add(block)
        return collected.found()


class _Collected:
    """What is found in the blocks of a range of rows."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._known = known_to(wanted)
        d_sae = len(self._known.is_counted)
        self._sampled, self._labels, self._similarity, self._embeddings = None, None, None, None
        if self._known.search is not None:
            self._sampled, self._labels = SampledRows(self._known.search), LabelSums.zero(d_sae)
        if wanted.embeddings is not None:
            self._embeddings = open_embeddings(wanted.embeddings)
            self._similarity = SimilaritySums.zero(d_sae, int(self._embeddings.shape[1]))
        self._n_entries = 0
        self._l0: Array = np.zeros(0, np.int64)
        self._max_row: tuple[Array, Array] | None = None
        self._n_kept, self._kept_counts, self._kept_index = 0, [np.zeros(0, np.int64)], [np.zeros(0, np.uint32)]
        self._waiting: list[tuple[Array, ...]] = []

    def add(self, block: FusedBlock) -> None:
        """Add a block of rows."""
        start, rows = block.read.start, block.entry_rows
        self._n_entries += len(rows)
        indptr = np.concatenate(([0], np.cumsum(block.counts)))
        counts = row_counts(indptr, self._known.is_counted[block.index])
        self._l0 = add_counts(self._l0, np.bincount(counts[block.valid]))
        if start <= self._wanted.max_l0_row < block.read.stop:
            of = slice(*indptr[self._wanted.max_l0_row - start : self._wanted.max_l0_row - start + 2].tolist())
            self._max_row = block.index[of], block.value[of]
        for first, stop in self._wanted.runs:
            low, high = max(first, start) - start, min(stop, block.read.stop) - start
            if low < high:
                self._n_kept += int(block.valid[low:high].sum())
                self._kept_counts.append(block.counts[low:high])
                self._kept_index.append(block.index[int(indptr[low]) : int(indptr[high])])
        if self._sampled is None and self._similarity is None:
            return
        self._waiting.append((start + rows, block.index, block.value, block.read.labels[rows]))
        if sum(len(part[0]) for part in self._waiting) >= _ENTRIES_AT_ONCE:
            self._settle()

    def found(self) -> Found:
        """All of it."""
        self._settle()
        return Found(
            self._n_entries,
            self._l0,
            self._max_row,
            self._n_kept,
            np.concatenate(self._kept_counts),
            np.concatenate(self._kept_index),
            None if self._sampled is None else self._sampled.settle(),
            self._labels,
            self._similarity,
        )

    def _settle(self) -> None:
        if not self._waiting:
            return
        row, index, value, label = (np.concatenate(arrays) for arrays in zip(*self._waiting, strict=True))
        self._waiting = []
        d_sae = len(self._known.is_counted)
        order = np.argsort(index.astype(np.uint16) if d_sae <= 1 << 16 else index, kind="stable")
        indptr = np.concatenate(([0], np.cumsum(np.bincount(index, minlength=d_sae))))
        entries = SplitEntries(0, indptr, row[order], value[order])
        if self._sampled is not None and self._labels is not None:
            self._sampled.add(row, index, value, label)
            self._labels = LabelSums.union([self._labels, LabelSums.of(entries, label[order], self._known.units)])
        if self._similarity is not None:
            self._similarity.add(entries, self._embeddings, self._known.units)


def merge_found(wanted: Wanted, parts: list[Found]) -> Found:
    """What consecutive ranges add together."""
    l0, sampled = np.zeros(0, np.int64), None
    for part in parts:
        l0 = add_counts(l0, part.l0)
    search = known_to(wanted).search
    if search is not None:
        sampled = SampledRows(search, [part.sampled for part in parts if part.sampled is not None]).settle()
    labels = [part.labels for part in parts if part.labels is not None]
    similarity = [part.similarity for part in parts if part.similarity is not None]
    return Found(
        sum(part.n_entries for part in parts),
        l0,
        next((part.max_row for part in parts if part.max_row is not None), None),
        sum(part.n_kept for part in parts),
        np.concatenate([part.kept_counts for part in parts]),
        np.concatenate([part.kept_index for part in parts]),
        sampled,
        LabelSums.union(labels) if labels else None,
        SimilaritySums.union(similarity) if similarity else None,
    )


def write_known(wanted: Wanted, known: Known) -> None:
    """Leave what the tasks of a pass need where every process reads it."""
    arrays: dict[str, Array] = {
        "of_values": known.units.of_values,
        "of_squares": known.units.of_squares,
        "is_counted": known.is_counted,
    }
    if known.search is not None:
        arrays |= {name: getattr(known.search, name) for name in ("begin", "skip", "cell_end", "end")}
        arrays |= {"m": np.array(known.search.m), "seed": np.array(known.search.seed)}
    np.savez(_path(wanted.folder, wanted.number), **arrays)  # type: ignore[arg-type]  # (of its own option, which is no array)


def known_to(wanted: Wanted) -> Known:
    """What `write_known` left, read once by each process."""
    return _read(wanted.folder, wanted.number)


def forget_known() -> None:
    """Let go of it."""
    _read.cache_clear()


@lru_cache(maxsize=1)
def _read(folder: str, number: int) -> Known:
    with np.load(_path(folder, number), allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    search = None
    if "begin" in arrays:
        search = SampleSearch(
            int(arrays["m"]), int(arrays["seed"]), *(arrays[name] for name in ("begin", "skip", "cell_end", "end"))
        )
    return Known(SumUnits(arrays["of_values"], arrays["of_squares"]), arrays["is_counted"], search)


def _path(folder: str, number: int) -> Path:
    return Path(folder) / f"known-{number}.npz"

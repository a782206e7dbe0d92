"""Arithmetic on activations sorted by feature and, within one, by falling activation: runs, ranks, counts."""

import numpy as np
from numpy.typing import NDArray


def feature_runs(index: NDArray[np.int64], n_pairs: NDArray[np.int64], at_once: int) -> list[tuple[int, int]]:
    """Cut entries sorted by feature into runs of whole features of about `at_once` pairs each."""
    if not len(index):
        return []
    starts = np.concatenate(([0], np.flatnonzero(np.diff(index)) + 1, [len(index)]))
    pairs_before = np.concatenate(([0], np.cumsum(n_pairs)))[starts]
    runs, first = [], 0
    while first < len(starts) - 1:
        last = int(np.searchsorted(pairs_before, pairs_before[first] + at_once, "right")) - 1
        last = min(max(last, first + 1), len(starts) - 1)
        runs.append((int(starts[first]), int(starts[last])))
        first = last
    return runs


def count_at_least(index: NDArray[np.int64], value: NDArray[np.float32]) -> NDArray[np.int64]:
    """For each entry, how many of its feature's entries are at least as large; sorted by feature, falling value."""
    n = len(index)
    is_last = np.ones(n, np.bool_)  # of equal activations of a feature
    is_last[:-1] = (np.diff(index) != 0) | (np.diff(value) != 0)
    last = np.flatnonzero(is_last)
    last_of_entry = last[np.searchsorted(last, np.arange(n))]
    feature_start = np.searchsorted(index, index)
    return last_of_entry + 1 - feature_start


def ranges(start: NDArray[np.int64], length: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers `start[i]` to `start[i] + length[i]`, one range after the other."""
    before = np.cumsum(length) - length
    return np.repeat(start - before, length) + np.arange(int(length.sum()))


def rank_in_run(key: NDArray[np.int64]) -> NDArray[np.int64]:
    """1, 2, 3, ... within each run of equal keys."""
    at = np.arange(len(key))
    is_first = np.ones(len(key), np.bool_)
    is_first[1:] = np.diff(key) != 0
    return at - np.maximum.accumulate(np.where(is_first, at, 0)) + 1


def first_of_largest(score: NDArray[np.float64], segment: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each run of equal `segment`, where its largest score first stands."""
    if not len(segment):
        return np.zeros(0, np.int64)
    starts = np.concatenate(([0], np.flatnonzero(np.diff(segment)) + 1))
    largest = np.maximum.reduceat(score, starts)
    is_largest = np.flatnonzero(score == np.repeat(largest, np.diff(np.append(starts, len(segment)))))
    return is_largest[np.searchsorted(is_largest, starts)]


def threshold_below(index: NDArray[np.int64], value: NDArray[np.float32], at: int) -> float:
    """Halfway from an entry's activation to the next lower one of its feature; 0 when there is none."""
    below = at + 1
    while below < len(index) and index[below] == index[at] and value[below] == value[at]:
        below += 1
    if below == len(index) or index[below] != index[at]:
        return 0.0
    return (float(value[at]) + float(value[below])) / 2

"""Feature activations turned from rows to features, in memory that depends on neither rows nor entries.

The entries are read once in row order and dealt into files by ranges of features, few enough entries a range to sort
in memory; then each range is sorted by feature and written. Rows stay ascending within a feature.
"""

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..progress import Task
from .columns import CHUNK, Column

_SORTED_AT_ONCE = 1 << 22  # entries a range: 64 MB as records, twice that while it is sorted

Array = NDArray[Any]


def write_by_feature(
    group: Any,
    folder: Path,
    n_active: NDArray[np.int64],
    n_rows: int,
    blocks: Iterable[tuple[int, Array, Array, Array]],
    task: Task,
) -> None:
    """Write `by_feature/` of a group of feature activations.

    Parameters
    ----------
    group
        Open zarr group.
    folder
        Where the files by range may lie until they are sorted: as many bytes as the entries take by row.
    n_active
        `(d_sae,)`: entries of each feature.
    n_rows
        Physical rows; decides the type of `by_feature/row`.
    blocks
        First row, indptr `(n + 1,)`, index and value of consecutive blocks of rows.
    task
        Told of each entry once it is in its place.
    """
    row_dtype = np.dtype(np.uint32 if n_rows < 2**32 else np.uint64)
    record = np.dtype([("row", row_dtype), ("feature", np.uint32), ("value", np.float32)])
    indptr = np.concatenate(([0], np.cumsum(n_active))).astype(np.uint64)
    columns = {
        "indptr": Column(group, "by_feature/indptr", np.uint64, chunk=min(CHUNK, len(indptr))),
        "row": Column(group, "by_feature/row", row_dtype),
        "value": Column(group, "by_feature/value", np.float32),
    }
    columns["indptr"].append(indptr)
    edges = _feature_ranges(n_active)  # feature edges[i] to edges[i + 1] make a range
    with tempfile.TemporaryDirectory(prefix=".by_feature-", dir=folder) as name:
        files = [Path(name) / str(i) for i in range(len(edges) - 1)]
        for records in _records(blocks, record):
            _deal(records, edges, files)
        for i, file in enumerate(files):
            if not file.exists():
                continue
            alone = edges[i + 1] - edges[i] == 1
            for records in _read_records(file, record, _SORTED_AT_ONCE if alone else None):
                # One feature alone is in order of its rows already, however many they are.
                order = slice(None) if alone else np.argsort(records["feature"], kind="stable")
                columns["row"].append(records["row"][order])
                columns["value"].append(records["value"][order])
                task.advance(len(records))
            file.unlink()
    for column in columns.values():
        column.close()


def _feature_ranges(n_active: NDArray[np.int64]) -> NDArray[np.int64]:
    """Edges of runs of features with at most `_SORTED_AT_ONCE` entries each, or of one feature that has more."""
    before = np.concatenate(([0], np.cumsum(n_active)))
    edges = [0]
    while edges[-1] < len(n_active):
        stop = int(np.searchsorted(before, before[edges[-1]] + _SORTED_AT_ONCE, side="right")) - 1
        edges.append(max(stop, edges[-1] + 1))
    return np.array(edges)


def _records(blocks: Iterable[tuple[int, Array, Array, Array]], dtype: np.dtype[Any]) -> Iterator[Array]:
    for start, indptr, index, value in blocks:
        records = np.empty(len(index), dtype)
        records["row"] = np.repeat(np.arange(start, start + len(indptr) - 1, dtype=np.uint64), np.diff(indptr))
        records["feature"] = index
        records["value"] = value
        yield records


def _deal(records: Array, edges: NDArray[np.int64], files: list[Path]) -> None:
    """Append each record to the file of its feature's range, in order."""
    if len(files) == 1:
        place, order = np.zeros(1, np.int64), np.arange(len(records))
        bounds = [0, len(records)]
    else:
        of = np.searchsorted(edges, records["feature"], side="right") - 1
        order = np.argsort(of, kind="stable")
        place, counts = np.unique(of, return_counts=True)
        bounds = [0, *np.cumsum(counts).tolist()]
    for i, first, last in zip(place.tolist(), bounds[:-1], bounds[1:], strict=True):
        with open(files[i], "ab") as file:
            file.write(records[order[first:last]].tobytes())


def _read_records(file: Path, dtype: np.dtype[Any], at_once: int | None) -> Iterator[Array]:
    with open(file, "rb") as stream:
        while True:
            records = np.fromfile(stream, dtype, count=-1 if at_once is None else at_once)
            if not len(records):
                return
            yield records

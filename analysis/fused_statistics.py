"""Statistics straight from the activation store: each Dask task encodes a range of rows and keeps the totals alone."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from ..memory import keep_freed_memory
from ..progress import Reporter, format_rate, format_s
from ..store.errors import StoreError
from .encode import predict
from .encode_source import EncodeSource, open_source
from .features import NOT_ENCODED, FeaturesInfo
from .options import EncodeOptions, StatsOptions
from .scheduler import Compute
from .section_table import SectionTable
from .statistics import reduce_totals
from .totals import FeatureTotals, merge_totals

WEIGHTS = "sae.safetensors"
_ONE_AT_A_TIME = threading.Lock()


@dataclass
class FusedTotals:
    """What a range of rows adds to the statistics of features, and to the quality of their reconstruction."""

    features: FeatureTotals
    sections: SectionTable


def encoding_of(options: StatsOptions) -> EncodeOptions:
    """The encoding that statistics from the store need: what `encode` and then `stats` would be given."""
    return EncodeOptions(
        store=options.store,
        split=options.split,
        rows=options.rows,
        precision=options.precision,
        device=options.device,
    )


def fused_totals(
    source: EncodeSource, *, k: int, task_bytes: int, compute: Compute, reporter: Reporter
) -> tuple[FusedTotals, FeaturesInfo]:
    """Totals of the rows of a source, of whose feature activations nothing is kept, and what they are of.

    One task a range of whole blocks of some `task_bytes` of stored vectors. Each process opens the store and the SAE
    once. Counts, sums and largest values are those of `encode` and `stats`, since its blocks of rows are the same ones;
    reconstruction quality is to rounding in float64.
    """
    from dask import delayed

    splits, block_rows = source.splits, source.options.block_rows
    row_bytes = sum(array.row_bytes for array in source.arrays)
    step = max(1, task_bytes // (row_bytes * block_rows)) * block_rows
    first = splits.row_start - splits.row_start % step
    ranges = [
        (max(at, splits.row_start), min(at + step, splits.row_stop)) for at in range(first, splits.row_stop, step)
    ]
    path = str(source.run_path.absolute())
    leaves = [
        delayed(_range_totals, pure=False)(path, source.options, source.sae_sha256, start, stop, k)
        for start, stop in ranges
    ]
    _, seconds = predict(source)
    reporter.say(
        f"encoding and counting {source.n:,} rows on {compute.description}, about {format_s(seconds)} at "
        f"{format_rate(source.n / seconds)} rows/s in one process"
    )
    merge: Callable[[list[FusedTotals]], FusedTotals] = _merge
    try:
        totals = reduce_totals(leaves, compute, reporter, merge)
    finally:
        _opened.cache_clear()  # this process is not a worker that more tasks may come to
    return totals, source.info(totals.sections.rows_by_split, int(totals.features.n_active.sum()))


def _range_totals(run_path: str, options: EncodeOptions, sae_sha256: str, start: int, stop: int, k: int) -> FusedTotals:
    with _ONE_AT_A_TIME:  # a matmul uses every core that the process has; two at once would hold twice the memory
        source = open_fused(run_path, options)
        if source.sae_sha256 != sae_sha256:
            raise StoreError(f"{run_path} holds other weights than those that its statistics were begun with.")
        store = source.store
        features = FeatureTotals.zero(source.sae.d_sae, k)
        sections = SectionTable.of_store(store.n_rows, store.tokens_per_image, source.splits.held_out_start)
        with source.reading(source.blocks(start, stop)) as read:
            for rows in read:
                valid = rows.split != NOT_ENCODED
                counts = np.zeros(len(valid), np.int64)
                index, value = np.empty(0, np.uint32), np.empty(0, np.float32)
                if valid.any():
                    block = source.encode(source.stored_rows(rows.vectors))
                    sections.add(rows.start, rows.split, block)
                    counts[valid], index, value = block.counts, block.index, block.value
                indptr = np.concatenate(([0], np.cumsum(counts)))
                features.add(rows.start, indptr, index, value, labels=rows.labels, valid=valid)
    return FusedTotals(features, sections)


def open_fused(run_path: Path | str, options: EncodeOptions) -> EncodeSource:
    """Open a run and the store that it is to encode, once for all the tasks of a process."""
    path = Path(run_path).absolute()
    weights = path / WEIGHTS
    return _opened(path, options, weights.stat().st_mtime_ns if weights.exists() else 0)


@lru_cache(maxsize=1)
def _opened(run_path: Path, options: EncodeOptions, _written_ns: int) -> EncodeSource:
    keep_freed_memory()
    return open_source(run_path, options)


def _merge(parts: list[FusedTotals]) -> FusedTotals:
    """Totals of the union of ranges, given in their order."""
    sections = parts[0].sections.copy()
    for part in parts[1:]:
        sections.merge(part.sections)
    return FusedTotals(merge_totals([part.features for part in parts]), sections)

"""Statistics straight from the activation store: each Dask task encodes a range of rows and keeps the totals alone."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..memory import keep_freed_memory
from ..progress import Reporter
from ..store.errors import StoreError
from .encode_source import EncodeSource, ReadBlock, open_source
from .encoded_block import EncodedBlock
from .features import NOT_ENCODED, FeaturesInfo
from .options import EncodeOptions, StatsOptions
from .scheduler import Compute
from .section_table import SectionTable
from .statistics import reduce_totals
from .totals import FeatureTotals, merge_totals

WEIGHTS = "sae.safetensors"
ONE_AT_A_TIME = threading.Lock()
"""Held by the task that encodes: a matmul uses every core that the process has; two at once would hold twice the
memory."""


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


@dataclass(frozen=True)
class FusedRange:
    """What a task needs to encode a range of rows."""

    run_path: str
    options: EncodeOptions
    sae_sha256: str
    start: int
    stop: int

    def encoded(self) -> Iterator[tuple[EncodeSource, "FusedBlock"]]:
        """Its rows, encoded block by block. One task of a process at a time may do so."""
        source = open_fused(self.run_path, self.options)
        if source.sae_sha256 != self.sae_sha256:
            raise StoreError(f"{self.run_path} holds other weights than those that its statistics were begun with.")
        with source.reading(source.blocks(self.start, self.stop)) as read:
            for rows in read:
                valid = rows.split != NOT_ENCODED
                counts = np.zeros(len(valid), np.int64)
                index, value, block = np.empty(0, np.uint32), np.empty(0, np.float32), None
                if valid.any():
                    block = source.encode(source.stored_rows(rows.vectors))
                    counts[valid], index, value = block.counts, block.index, block.value
                yield source, FusedBlock(rows, valid, counts, index, value, block)


@dataclass(frozen=True)
class FusedBlock:
    """A block of rows with its feature activations."""

    read: ReadBlock
    valid: NDArray[np.bool_]
    """`(n,)`: rows that were encoded; the others have no entries."""
    counts: NDArray[np.int64]
    """`(n,)`: entries of each row."""
    index: NDArray[np.uint32]
    value: NDArray[np.float32]
    encoded: EncodedBlock | None
    """The same with its reconstruction; None where no row was encoded."""

    @property
    def entry_rows(self) -> NDArray[np.int64]:
        """`(nnz,)`: row of each entry, from the block's first."""
        return np.repeat(np.arange(len(self.counts)), self.counts)


def fused_ranges(source: EncodeSource, task_bytes: int) -> list[FusedRange]:
    """Ranges of whole blocks of some `task_bytes` of stored vectors."""
    splits, block_rows = source.splits, source.options.block_rows
    row_bytes = sum(array.row_bytes for array in source.arrays)
    step = max(1, task_bytes // (row_bytes * block_rows)) * block_rows
    first = splits.row_start - splits.row_start % step
    path = str(source.run_path.absolute())
    return [
        FusedRange(path, source.options, source.sae_sha256, max(at, splits.row_start), min(at + step, splits.row_stop))
        for at in range(first, splits.row_stop, step)
    ]


def fused_totals(
    source: EncodeSource, *, k: int, task_bytes: int, compute: Compute, reporter: Reporter
) -> tuple[FusedTotals, FeaturesInfo]:
    """Totals of the rows of a source, of whose feature activations nothing is kept, and what they are of.

    One task a range of `fused_ranges`. Each process opens the store and the SAE once. Counts, sums and largest values
    are those of `encode` and `stats`, since its blocks of rows are the same ones; reconstruction quality is to rounding
    in float64.
    """
    from dask import delayed

    leaves = [delayed(_range_totals, pure=False)(each, k) for each in fused_ranges(source, task_bytes)]
    merge: Callable[[list[FusedTotals]], FusedTotals] = _merge
    totals = reduce_totals(leaves, compute, reporter, merge)
    return totals, source.info(totals.sections.rows_by_split, int(totals.features.n_active.sum()))


def _range_totals(rows: FusedRange, k: int) -> FusedTotals:
    with ONE_AT_A_TIME:
        features, sections = None, None
        for source, block in rows.encoded():
            if features is None or sections is None:
                features = FeatureTotals.zero(source.sae.d_sae, k)
                store = source.store
                sections = SectionTable.of_store(store.n_rows, store.tokens_per_image, source.splits.held_out_start)
            if block.encoded is not None:
                sections.add(block.read.start, block.read.split, block.encoded)
            indptr = np.concatenate(([0], np.cumsum(block.counts)))
            features.add(
                block.read.start, indptr, block.index, block.value, labels=block.read.labels, valid=block.valid
            )
        assert features is not None
        assert sections is not None
    return FusedTotals(features, sections)


def close_fused() -> None:
    """Let go of what this process opened, once no more tasks may come to it."""
    _opened.cache_clear()


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

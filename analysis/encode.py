"""Writes the feature activations of an activation store: `encode RUN`."""

import hashlib
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .._version import __version__
from ..progress import Reporter, format_bytes, format_rate, format_s
from ..store.ahead import in_order
from ..store.errors import MissingStoreError, StoreError
from ..store.files import FolderLock, free_bytes
from ..store.provenance import Provenance
from ..store.reader import ActivationArray, ActivationStore, open_store
from . import features as format_
from .by_feature import write_by_feature
from .columns import CHUNK
from .encoded_block import EncodedBlock, encode_block
from .features import FEATURES_ZARR, FeaturesInfo
from .folders import new_folder, refuse_existing
from .options import EncodeOptions
from .quality import Quality, SectionSums, section_edges, write_sections
from .row_columns import RowColumns
from .row_splits import RowSplits

if TYPE_CHECKING:
    from ..train.models import SparseAutoencoder

_SAMPLE_RUNS, _SAMPLE_RUN_ROWS = 16, 64  # 1,024 rows from all over the store predict the size to a few percent
_ROW_BYTES = 8 + 3 * 4 + 4 + 2  # indptr, three float32, label, split and valid
_ENTRY_BYTES = 8  # index and value, by row and again by feature
_BLOCKS_AHEAD = 3  # read while one is encoded: from a bucket, 16 chunks of 1024 rows are then under way
_DEALT_BYTES = 12  # what an entry takes on disk while it is sorted by feature


@dataclass(frozen=True, kw_only=True)
class EncodeResult:
    """What `encode` wrote."""

    features_path: Path
    n_rows: int
    """Rows encoded."""
    d_sae: int
    nnz: int
    mean_l0: float
    predicted_bytes: int
    written_bytes: int
    quality: dict[str, Quality]
    """By split: `train`, `heldout`, `all`, those with rows."""
    seconds: float
    rows_per_s: float


def encode(
    run_path: str | Path, options: EncodeOptions | None = None, reporter: Reporter | None = None
) -> EncodeResult:
    """Encode the rows of an activation store with the SAE of a run, into `RUN/features.zarr`.

    Raises
    ------
    ValueError
        When an option does not fit the run.
    StoreError
        When the run has no SAE, the store is not the one that it was trained on (or, with `store`, not of the same
        site), features are there already, or they would be larger than the limit.
    """
    options, reporter = options or EncodeOptions(), reporter or Reporter()
    run_path = Path(run_path)
    source = _open_source(run_path, options)
    path = run_path / FEATURES_ZARR
    refuse_existing(path, overwrite=options.overwrite)
    predicted, predicted_s = _predict(source, options)
    _check_size(predicted, path, options, reporter)
    n = source.stop - source.start
    reporter.say(
        f"{n:,} rows to encode, about {format_s(predicted_s)} at {format_rate(n / predicted_s)} rows/s on "
        f"{source.sae.device}; then their activations are sorted by feature"
    )
    start_s = time.monotonic()
    with closing(FolderLock(run_path)), new_folder(path, overwrite=options.overwrite) as folder:
        info = _write(source, folder, options, reporter)
    seconds = time.monotonic() - start_s
    arrays = format_.open_features(path).sections
    quality = {name: Quality.of_sections(arrays, codes) for name, codes in format_.SPLIT_CODES.items()}
    return EncodeResult(
        features_path=path,
        n_rows=info.n_encoded,
        d_sae=info.d_sae,
        nnz=info.nnz,
        mean_l0=info.nnz / info.n_encoded,
        predicted_bytes=predicted,
        written_bytes=sum(f.stat().st_size for f in path.rglob("*") if f.is_file()),
        quality={name: q for name, q in quality.items() if q is not None},
        seconds=seconds,
        rows_per_s=info.n_encoded / seconds,
    )


@dataclass(frozen=True)
class _Source:
    """What is encoded, with what."""

    sae: "SparseAutoencoder"
    sae_sha256: str
    store: ActivationStore
    array: ActivationArray
    is_training_store: bool
    splits: RowSplits
    start: int
    """First position."""
    stop: int
    """Position after the last."""

    def read(self, rows: tuple[int, int]) -> tuple[NDArray[np.uint8], NDArray[np.int32], NDArray[Any]]:
        """Split and label of each row of a range, and the vectors of those to encode."""
        split = self.splits.codes(*rows)
        encoded = split != format_.NOT_ENCODED
        if not encoded.any():
            return split, self.store.labels(*rows), np.empty((0, self.array.d_in), self.array.stored_dtype)
        vectors = self.array.read(*rows)
        return split, self.store.labels(*rows), vectors if encoded.all() else vectors[encoded]


def _open_source(run_path: Path, options: EncodeOptions) -> _Source:
    from ..devices import choose_device
    from ..train.configuration import is_training_store, one_site, require_training_store
    from ..train.interchange import origin_of, require_same_tower
    from ..train.run_dir import open_run

    run = open_run(run_path)
    if options.store is None:
        try:
            store = open_store(run.store_path, n_parts=run.n_store_parts)
        except MissingStoreError:
            how = "imported for" if run.is_imported else "trained on"
            raise StoreError(
                f"{run_path} was {how} {run.store_path}, where there is no store any more: say where it is with "
                "--store."
            ) from None
        try:
            require_training_store(run, store)
        except StoreError as error:
            raise StoreError(f"{error} To encode another store of the same site, name it with --store.") from None
    else:
        store = open_store(options.store)
    if run.known_site is None:
        array = store.activations(one_site(store, None, None, None, ("--layer", "--site", "--token")))
    else:
        array = store.activations(run.site)
    is_same = is_training_store(run, store)
    what = f"{store.url} does not fit the SAE of {run_path}"
    if run.has_store:
        Provenance.from_json(run.provenance).require_same_space(store.provenance, what)
    else:
        require_same_tower(origin_of(run), store)
    if not is_same and options.split != "all":
        why = "trained on another store, so that none of its rows is a training row"
        if run.is_imported:
            why = "imported, and which rows it was trained on is not known"
        raise ValueError(f"split must be all for {store.url}: the run was {why}; got {options.split!r}")
    sae = run.load_sae(choose_device(options.device))
    if sae.d_in != array.d_in:
        raise StoreError(f"{what}: d_in is {sae.d_in} there and {array.d_in} here.")
    start, stop = store.split(options.split)
    stop = stop if options.rows is None else min(stop, start + options.rows)
    if start == stop:
        raise StoreError(f"{store.url} has no rows in the split {options.split!r}.")
    return _Source(
        sae=sae,
        sae_sha256=hashlib.sha256((run_path / "sae.safetensors").read_bytes()).hexdigest(),
        store=store,
        array=array,
        is_training_store=is_same,
        splits=RowSplits(store, start, stop, is_training_store=is_same),
        start=start,
        stop=stop,
    )


def _predict(source: _Source, options: EncodeOptions) -> tuple[int, float]:
    """Size of the features before compression, and seconds of encoding, from a sample of rows spread over the rows."""
    n = source.stop - source.start
    runs = min(_SAMPLE_RUNS, -(-n // _SAMPLE_RUN_ROWS))
    length = min(_SAMPLE_RUN_ROWS, n // runs)
    starts = source.start + np.arange(runs) * (n // runs)
    sample = np.empty((runs * length, source.array.d_in), source.array.stored_dtype)
    source.array.read_runs(starts, np.full(runs, length), sample)
    block, seconds = _timed_block(source, sample, options)
    if seconds < 1:  # the first block also pays for what torch sets up once
        block, seconds = _timed_block(source, sample, options)
    nnz = len(block.index) / len(sample) * n
    last_chunks = 4 * 4 * CHUNK  # of index and value, by row and by feature: chunks are written whole
    size = int(2 * _ENTRY_BYTES * nnz + last_chunks + _ROW_BYTES * source.store.n_rows + 8 * source.sae.d_sae)
    return size, seconds / len(sample) * n


def _timed_block(source: _Source, rows: NDArray[np.generic], options: EncodeOptions) -> tuple[EncodedBlock, float]:
    start_s = time.perf_counter()
    block = encode_block(source.sae, source.array, rows, tile_features=options.tile_features)
    return block, time.perf_counter() - start_s


def _check_size(predicted: int, path: Path, options: EncodeOptions, reporter: Reporter) -> None:
    reporter.say(f"{path} will take at most about {format_bytes(predicted)}")
    limit = int(options.size_limit_gb * 1e9)
    if predicted > limit and not options.force:
        raise StoreError(
            f"{path} would take about {format_bytes(predicted)}, more than the limit of {format_bytes(limit)}: "
            "encode fewer rows with --rows, or give --force."
        )
    # Entries lie on disk once more, as records, while they are turned to features.
    needed = predicted + int(predicted / (2 * _ENTRY_BYTES) * _DEALT_BYTES)
    free = free_bytes(path)
    if needed > free:
        raise StoreError(
            f"{path} needs up to {format_bytes(needed)} of disk while it is written and {format_bytes(free)} are free: "
            "encode fewer rows with --rows, or make room."
        )


def _write(source: _Source, folder: Path, options: EncodeOptions, reporter: Reporter) -> FeaturesInfo:
    import zarr

    group = zarr.open_group(str(folder), mode="w", zarr_format=3)
    n_active = np.zeros(source.sae.d_sae, np.int64)
    sections = _write_rows(source, group, n_active, options, reporter)
    by_split = {code: sum(s.n for s in sections if s.split == code) for code in format_.SPLIT_CODES["all"]}
    store, splits = source.store, source.splits
    info = FeaturesInfo(
        n_rows=store.n_rows,
        n_encoded=sum(by_split.values()),
        n_train=by_split[format_.TRAIN],
        n_held_out=by_split[format_.HELD_OUT],
        n_unreadable=store.n_rows - store.n_valid,
        nnz=int(n_active.sum()),
        d_in=source.sae.d_in,
        d_sae=source.sae.d_sae,
        split=options.split,
        row_start=splits.row_start,
        row_stop=splits.row_stop,
        held_out_start=splits.held_out_start,
        store=store.objects.absolute_url,
        store_fingerprint=store.fingerprint,
        n_store_parts=len(store.parts),
        is_training_store=source.is_training_store,
        site=source.array.site.path,
        sae_sha256=source.sae_sha256,
        thresher=__version__,
    )
    write_sections(group, sections)
    with reporter.task("sorting by feature", info.nnz, "entries") as task:
        write_by_feature(group, folder, n_active, info.n_rows, format_.read_entries(group, info), task)
    group.attrs.update(info.to_attributes())  # last: what has these is whole
    return info


def _write_rows(
    source: _Source, group: Any, n_active: NDArray[np.int64], options: EncodeOptions, reporter: Reporter
) -> list[SectionSums]:
    """Write every array that goes by rows; count each feature's entries into `n_active`."""
    columns, store = RowColumns(group, source.store.n_rows), source.store
    edges = section_edges(store.n_rows, store.tokens_per_image, source.splits.held_out_start)
    sections: dict[tuple[int, int], SectionSums] = {}
    starts = range(0, store.n_rows, options.block_rows)
    blocks = [(start, min(start + options.block_rows, store.n_rows)) for start in starts]
    with (
        reporter.task("encoding", source.stop - source.start, "rows") as task,
        closing(in_order(source.read, blocks, _BLOCKS_AHEAD)) as read,
    ):
        for first, _ in blocks:
            split, labels, rows = next(read)
            block = None
            if len(rows):
                block = encode_block(source.sae, source.array, rows, tile_features=options.tile_features)
                n_active += np.bincount(block.index, minlength=len(n_active))
                _add_to_sections(sections, edges, first, split, block)
            columns.append(split, labels, block)
            task.advance(len(rows))
    columns.close()
    return [sections[key] for key in sorted(sections)]


def _add_to_sections(
    sections: dict[tuple[int, int], SectionSums],
    edges: NDArray[np.int64],
    first: int,
    split: NDArray[np.uint8],
    block: EncodedBlock,
) -> None:
    """Add a block's encoded rows, of the physical rows from `first` on, to the sums of their section and split."""
    encoded = np.flatnonzero(split != format_.NOT_ENCODED)
    section_of = np.searchsorted(edges, first + encoded, side="right") - 1
    for section in np.unique(section_of).tolist():
        start, stop = np.searchsorted(section_of, [section, section + 1])
        codes = split[encoded[start:stop]]
        for code in np.unique(codes).tolist():
            key, at = (section, code), start + np.flatnonzero(codes == code)
            if key not in sections:
                row_start, row_stop = edges[section : section + 2].tolist()
                sections[key] = SectionSums.zero(code, row_start, row_stop, block.x.shape[1])
            sections[key].add(block.x[at], block.norm[at], block.sse[at], block.l1[at])

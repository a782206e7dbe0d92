"""What is encoded: the rows of a store that fit the SAE of a run."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .._version import __version__
from ..store.ahead import in_order
from ..store.errors import MissingStoreError, StoreError
from ..store.provenance import Provenance
from ..store.reader import ActivationArray, ActivationStore, open_store
from .encoded_block import EncodedBlock, StoredRows, encode_block
from .features import NOT_ENCODED, FeaturesInfo
from .options import EncodeOptions
from .row_splits import RowSplits

if TYPE_CHECKING:
    from ..train.models import SparseAutoencoder
    from ..train.run_dir import Run
    from ..train.tiles import Tiles

_BLOCKS_AHEAD = 3  # read while one is encoded: from a bucket, 16 chunks of 1024 rows are then under way


@dataclass(frozen=True)
class ReadBlock:
    """Consecutive physical rows, as they are read for any SAE."""

    start: int
    stop: int
    split: NDArray[np.uint8]
    """`(n,)`: in the codes of the source that read them; of another one's, the same rows are to be encoded."""
    labels: NDArray[np.int32]
    vectors: tuple[NDArray[Any], ...]
    """Of those to encode, stored: what is read and, for a transcoder, what is reconstructed."""

    @property
    def encoded(self) -> NDArray[np.bool_]:
        """`(n,)`: whether each row is to be encoded."""
        return self.split != NOT_ENCODED


@dataclass(frozen=True)
class EncodeSource:
    """What is encoded, with what."""

    run_path: Path
    sae: "SparseAutoencoder"
    sae_sha256: str
    store: ActivationStore
    arrays: tuple[ActivationArray, ...]
    """What is read and, for a transcoder, what is reconstructed."""
    is_training_store: bool
    splits: RowSplits
    options: EncodeOptions
    start: int
    """First position."""
    stop: int
    """Position after the last."""

    @property
    def n(self) -> int:
        """Rows to encode."""
        return self.stop - self.start

    @property
    def reads(self) -> tuple[Any, ...]:
        """What it reads: sources that agree in it can share one reading."""
        sites = tuple(array.site.path for array in self.arrays)
        return (
            self.store.objects.absolute_url,
            self.store.fingerprint,
            self.store.n_rows,
            sites,
            self.start,
            self.stop,
        )

    @property
    def identity(self) -> str:
        """What decides every number that encoding gives."""
        options = [getattr(self.options, name) for name in ("split", "block_rows", "tile_features", "precision")]
        how = (self.sae_sha256, self.is_training_store, self.sae.device.type, __version__)
        return json.dumps([*self.reads, *options, *how])

    def blocks(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The blocks of rows among `[start, stop)`: always the same ones, whatever range is asked for.

        A matmul's last digits depend on the rows that are multiplied together.
        """
        step = self.options.block_rows
        first = start - start % step
        return [(max(start, at), min(at + step, stop)) for at in range(first, stop, step)]

    def read(self, rows: tuple[int, int]) -> ReadBlock:
        """Read the rows `[start, stop)`, the vectors of those to encode only."""
        split = self.splits.codes(*rows)
        encoded, labels = split != NOT_ENCODED, self.store.labels(*rows)
        if encoded.all():
            vectors = tuple(array.read(*rows) for array in self.arrays)
        elif encoded.any():
            vectors = tuple(array.read(*rows)[encoded] for array in self.arrays)
        else:
            vectors = tuple(np.empty((0, array.d_in), array.stored_dtype) for array in self.arrays)
        return ReadBlock(*rows, split, labels, vectors)

    @contextmanager
    def reading(self, blocks: list[tuple[int, int]]) -> Iterator[Iterator[ReadBlock]]:
        """Read blocks of rows one after the other, the next ones while one is encoded."""
        with closing(in_order(self.read, blocks, _BLOCKS_AHEAD)) as read:
            yield read

    def stored_rows(self, vectors: tuple[NDArray[Any], ...]) -> StoredRows:
        """The vectors of a block as every SAE takes them."""
        return StoredRows.of(self.arrays, vectors)

    def encode(self, rows: StoredRows) -> EncodedBlock:
        """Encode the rows of a block."""
        return encode_block(self.sae, rows, tile_features=self.options.tile_features, tiles=self._tiles)

    @cached_property
    def _tiles(self) -> "Tiles | None":
        if self.options.precision == "fp32":
            return None
        from ..train.rounded import RoundedTiles

        return RoundedTiles(self.sae)

    def info(self, rows_by_split: dict[int, int], nnz: int) -> FeaturesInfo:
        """What the feature activations are of.

        Parameters
        ----------
        rows_by_split
            Rows encoded, by the code of their split.
        nnz
            Activations.
        """
        from .features import HELD_OUT, TRAIN

        store, splits = self.store, self.splits
        return FeaturesInfo(
            n_rows=store.n_rows,
            n_encoded=sum(rows_by_split.values()),
            n_train=rows_by_split.get(TRAIN, 0),
            n_held_out=rows_by_split.get(HELD_OUT, 0),
            n_unreadable=store.n_rows - store.n_valid,
            nnz=nnz,
            d_in=self.sae.d_in,
            d_sae=self.sae.d_sae,
            split=self.options.split,
            row_start=splits.row_start,
            row_stop=splits.row_stop,
            held_out_start=splits.held_out_start,
            store=store.objects.absolute_url,
            store_fingerprint=store.fingerprint,
            n_store_parts=len(store.parts),
            is_training_store=self.is_training_store,
            site=self.arrays[0].site.path,
            target_site=None if len(self.arrays) == 1 else self.arrays[1].site.path,
            sae_sha256=self.sae_sha256,
            thresher=__version__,
            precision=self.options.precision,
            n_asked=self.options.rows,
        )


def open_source(run_path: Path, options: EncodeOptions) -> EncodeSource:
    """Open a run and the store that it is to encode.

    Raises
    ------
    ValueError, StoreError
        As `encode`.
    """
    from ..devices import choose_device
    from ..train.configuration import is_training_store
    from ..train.interchange import origin_of, require_same_tower
    from ..train.run_dir import open_run

    run = open_run(run_path)
    store = _open_store(run, options.store)
    arrays = _open_arrays(run, store)
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
    for name, wanted, array in zip(("d_in", "d_out"), (sae.d_in, sae.d_out), arrays, strict=False):
        if wanted != array.d_in:
            raise StoreError(f"{what}: {name} is {wanted} there and {array.d_in} here.")
    start, stop = store.split(options.split)
    stop = stop if options.rows is None else min(stop, start + options.rows)
    if start == stop:
        raise StoreError(f"{store.url} has no rows in the split {options.split!r}.")
    return EncodeSource(
        run_path=run_path,
        sae=sae,
        sae_sha256=hashlib.sha256((run_path / "sae.safetensors").read_bytes()).hexdigest(),
        store=store,
        arrays=arrays,
        is_training_store=is_same,
        splits=RowSplits(store, start, stop, is_training_store=is_same),
        options=options,
        start=start,
        stop=stop,
    )


def _open_store(run: "Run", url: str | None) -> ActivationStore:
    from ..train.configuration import require_training_store

    if url is not None:
        return open_store(url)
    try:
        store = open_store(run.store_path, n_parts=run.n_store_parts)
    except MissingStoreError:
        how = "imported for" if run.is_imported else "trained on"
        raise StoreError(
            f"{run.path} was {how} {run.store_path}, where there is no store any more: say where it is with --store."
        ) from None
    try:
        require_training_store(run, store)
    except StoreError as error:
        raise StoreError(f"{error} To encode another store of the same site, name it with --store.") from None
    return store


def _open_arrays(run: "Run", store: ActivationStore) -> tuple[ActivationArray, ...]:
    from ..train.configuration import one_site

    if run.known_site is None:
        return (store.activations(one_site(store, None, None, None, ("--layer", "--site", "--token"))),)
    source = store.activations(run.site)
    return (source,) if run.target_site is None else (source, store.activations(run.target_site))

"""The tower's own embeddings of the images that a run was encoded on: `embed RUN [IMAGES]`.

`RUN/embeddings.npy` holds `(rows, e)` float32, row r that of the image of row r of the store, of unit length; a row of
NaN where the image could not be read. `RUN/embeddings.json` says of what. They are the image encoder's embeddings that
`stats` scores monosemanticity by.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..harvest.continuation import embed_images
from ..harvest.images import ImageSet
from ..harvest.recorded import Source, recorded_images
from ..harvest.rewrite import load_recorded_clip, recorded_tower
from ..harvest.vision import Tower
from ..progress import Reporter
from ..store.errors import StoreError
from ..store.files import FolderLock, free_bytes, sync_folder, write_atomically
from ..store.part import StorePart
from ..store.reader import ActivationStore, open_store
from ..train.run_dir import open_run
from .embed_options import EmbedOptions
from .evaluation_images import decoded
from .features import open_features
from .folders import refuse_existing

EMBEDDINGS_NPY, EMBEDDINGS_JSON = "embeddings.npy", "embeddings.json"
_UNFINISHED = ".embeddings.tmp"
_ROWS_A_PIECE = 8192
"""Rows that a kill may cost."""


@dataclass(frozen=True, kw_only=True)
class EmbedResult:
    """What `embed` wrote."""

    path: Path
    n_rows: int
    n_unreadable: int
    dim: int
    n_kept: int
    """Rows that an earlier call, which was stopped, had embedded."""
    seconds: float


@dataclass(frozen=True, kw_only=True)
class EmbeddingsOf:
    """What embeddings are of: the document of embeddings.json, but for the numbers."""

    store: str
    store_fingerprint: str
    model: str
    pretrained: str
    weights_sha256: str
    precision: str


def embed(
    run_path: Path | str,
    images: Source | None = None,
    options: EmbedOptions | None = None,
    reporter: Reporter | None = None,
) -> EmbedResult:
    """Embed every image of the encoded store by the run's tower; the same call again goes on after a kill.

    Parameters
    ----------
    images
        Where the images are now; by default where they were harvested from.

    Raises
    ------
    StoreError
        When the run has embeddings, was not encoded, its store holds several tokens an image, or images or tower are
        not those of the store any more.
    ValueError, FileNotFoundError, ConnectionError
        As `recorded_images` and `load_recorded_clip` raise them.
    """
    run_path, options, reporter = Path(run_path), options or EmbedOptions(), reporter or Reporter()
    started = time.monotonic()
    run = open_run(run_path)
    store = _store(run_path)
    refuse_existing(run_path / EMBEDDINGS_NPY, overwrite=options.overwrite)
    provenance = store.provenance
    tower = recorded_tower(load_recorded_clip(provenance), provenance, options.device)
    of = EmbeddingsOf(
        store=store.url,
        store_fingerprint=store.fingerprint,
        model=tower.name,
        pretrained=str(tower.pretrained),
        weights_sha256=tower.weights_sha256,
        precision=provenance.precision,
    )
    with closing(FolderLock(run.path)), _unfinished(run_path / _UNFINISHED, of) as folder:
        n_kept = sum(_n_rows(path) for path in folder.glob("*.npy"))
        with reporter.task("embedding", store.n_rows, "images", done=n_kept) as task:
            first = 0
            for part in store.parts:
                pieces = [
                    (start, min(start + _ROWS_A_PIECE, part.n_rows)) for start in range(0, part.n_rows, _ROWS_A_PIECE)
                ]
                missing = [piece for piece in pieces if not _file(folder, first + piece[0]).exists()]
                if missing:
                    with recorded_images(part.provenance, images) as opened:
                        for start, stop in missing:
                            values = _embedded(tower, opened, part, start, stop, options)
                            if start == first == 0:
                                _require_space(run_path, store.n_rows, values)
                            write_atomically(_file(folder, first + start), _npy(values))
                            task.advance(stop - start)
                first += part.n_rows
        n_unreadable, dim = _join(folder, run_path / EMBEDDINGS_NPY, store.n_rows)
    document = {**asdict(of), "n_rows": store.n_rows, "n_unreadable": n_unreadable, "dim": dim}
    write_atomically(run_path / EMBEDDINGS_JSON, json.dumps(document, indent=2).encode() + b"\n")
    return EmbedResult(
        path=run_path / EMBEDDINGS_NPY,
        n_rows=store.n_rows,
        n_unreadable=n_unreadable,
        dim=dim,
        n_kept=n_kept,
        seconds=time.monotonic() - started,
    )


def embeddings_of(run_path: Path | str, store_fingerprint: str) -> Path | None:
    """The embeddings that `embed` made of a store's images, None where it made none of this store."""
    path = Path(run_path)
    try:
        document = json.loads((path / EMBEDDINGS_JSON).read_text())
    except (FileNotFoundError, ValueError):
        return None
    is_of = isinstance(document, dict) and document.get("store_fingerprint") == store_fingerprint
    return path / EMBEDDINGS_NPY if is_of and (path / EMBEDDINGS_NPY).exists() else None


def _store(run_path: Path) -> ActivationStore:
    info = open_features(run_path).info
    store = open_store(info.store, n_parts=info.n_store_parts)
    if store.fingerprint != info.store_fingerprint:
        raise StoreError(f"{info.store} holds other rows than were encoded: encode again with --overwrite.")
    if store.tokens_per_image != 1:
        raise StoreError(
            f"{info.store} holds {store.tokens_per_image} rows an image, and an embedding is of an image as a whole: "
            "encode a store of --token cls or mean."
        )
    return store


def _embedded(
    tower: Tower, images: ImageSet, part: StorePart, start: int, stop: int, options: EmbedOptions
) -> NDArray[np.float32]:
    """Unit embeddings of the rows `[start, stop)` of a part, NaN where an image could not be read."""
    chosen = part.order.images_at(np.arange(start, stop))
    found: NDArray[np.float32] | None = None
    for places, pixels in decoded(images, chosen, tower, batch_size=options.batch_size, workers=options.workers):
        values = embed_images(tower, tower.normalise(pixels)).cpu().numpy()
        if found is None:
            found = np.full((stop - start, values.shape[1]), np.nan, np.float32)
        found[places] = values
    if found is None:
        raise StoreError(f"none of the images of rows {start:,} to {stop:,} can be read: name IMAGES.")
    return found


@contextmanager
def _unfinished(folder: Path, of: EmbeddingsOf) -> Iterator[Path]:
    """A folder for pieces, with those of an earlier call on the same images and tower; gone when all are joined."""
    wanted = json.dumps(asdict(of)).encode()
    if folder.exists() and (not (folder / "of.json").exists() or (folder / "of.json").read_bytes() != wanted):
        shutil.rmtree(folder)
    folder.mkdir(exist_ok=True)
    write_atomically(folder / "of.json", wanted)
    yield folder
    shutil.rmtree(folder)


def _join(folder: Path, path: Path, n_rows: int) -> tuple[int, int]:
    """Make one file of the pieces; gives the rows without an embedding, and its columns."""
    pieces: Sequence[Path] = sorted(folder.glob("*.npy"))
    dim = int(np.load(pieces[0], mmap_mode="r").shape[1])
    temporary = path.with_name(f".{path.name}.tmp")
    whole = np.lib.format.open_memmap(temporary, "w+", np.float32, (n_rows, dim))
    n_unreadable = 0
    for piece in pieces:
        values = np.load(piece)
        start = int(piece.stem)
        whole[start : start + len(values)] = values
        n_unreadable += int(np.isnan(values[:, 0]).sum())
    whole.flush()
    del whole
    os.replace(temporary, path)
    sync_folder(path.parent)
    return n_unreadable, dim


def _file(folder: Path, row: int) -> Path:
    return folder / f"{row:015d}.npy"


def _n_rows(path: Path) -> int:
    return int(np.load(path, mmap_mode="r").shape[0])


def _npy(values: NDArray[Any]) -> bytes:
    buffer = BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def _require_space(run_path: Path, n_rows: int, values: NDArray[np.float32]) -> None:
    """`StoreError` where the pieces and the file made of them will not fit; the pieces stay until it is made."""
    needed, free = 2 * n_rows * values.shape[1] * values.itemsize, free_bytes(run_path)
    if needed > free:
        raise StoreError(
            f"{run_path} has {free / 1e9:.2f} GB free, and the embeddings of {n_rows:,} images take {needed / 1e9:.2f} "
            "GB while they are written: make room."
        )

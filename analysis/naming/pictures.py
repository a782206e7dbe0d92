"""The images of a run's rows: as pixels, and as unit embeddings of its tower, each embedded once.

Shapes: N rows of the store, k rows asked for, e the length of an embedding.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from ...harvest.continuation import embed_images
from ...harvest.images import ImageSet
from ...harvest.recorded import Source, recorded_images
from ...harvest.vision import Tower
from ...progress import Reporter
from ...store.errors import StoreError
from ...store.reader import ActivationArray, ActivationStore
from ...train.run_dir import remove
from ..embed import embeddings_of
from ..evaluation_images import decoded
from .kept_rows import are_whole, keep, kept_rows
from .split import images_of
from .stream import pooled_embedding

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


class RowPictures:
    """Images of rows, opened where they are first asked for; a context manager.

    Parameters
    ----------
    run_path
        Whose `embeddings.npy`, where `embed` made it of this store, is read; else embeddings of the rows asked for are
        kept below `naming/`.
    tower
        The store's, on the device where images are embedded.
    source
        Where the images are now; by default where they were harvested from.
    stored
        The store's vectors, where they are all that embeddings are made of: the class token after the last block.
        Embeddings are then made of them, and no image is read.
    workers
        Decoding processes; by default as many as a harvest takes.

    Raises
    ------
    StoreError
        When the store holds several rows an image.
    """

    def __init__(
        self,
        run_path: Path,
        store: ActivationStore,
        tower: Tower,
        source: Source | None = None,
        *,
        stored: ActivationArray | None = None,
        batch_size: int = 64,
        workers: int | None = None,
        reporter: Reporter | None = None,
    ) -> None:
        if store.tokens_per_image != 1:
            raise StoreError(
                f"{store.url} holds {store.tokens_per_image} rows an image, and names are of images as a whole: name "
                "the features of a run on a store of --token cls or mean."
            )
        self.store, self.tower = store, tower
        self._source, self._batch_size, self._workers = source, batch_size, workers
        self._reporter = reporter or Reporter()
        self._images: dict[int, ImageSet] = {}
        self._opened = ExitStack()
        whole = embeddings_of(run_path, store.fingerprint)
        self.stored = stored
        self._is_whole = whole is not None
        self._known = _whole(whole, store.n_rows) if whole is not None else self._kept(run_path / "naming")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def pixels(self, rows: Ints) -> Iterator[tuple[Ints, Tensor]]:
        """Some rows' images as the tower takes them, a batch at a time; one that cannot be read is left out.

        Parameters
        ----------
        rows
            `(k,)`; batches are shorter where rows are of several parts.

        Yields
        ------
        places
            `(b,)`: which of the rows.
        pixels
            `(b, height, width, 3)` uint8, on the CPU; `tower.normalise` makes the tower's input of them.

        Raises
        ------
        ValueError, FileNotFoundError, StoreError
            As `recorded_images`, where the images are not at hand.
        """
        edges = np.cumsum([0, *(part.n_rows for part in self.store.parts)])
        firsts = np.cumsum([0, *(part.n_images for part in self.store.parts)])
        number = np.searchsorted(edges, rows, side="right") - 1
        for part in np.unique(number).tolist():
            places = np.flatnonzero(number == part)
            chosen = images_of(self.store, rows[places]) - firsts[part]
            for found, pixels in decoded(
                self.images(part), chosen, self.tower, batch_size=self._batch_size, workers=self._workers
            ):
                yield places[found], pixels

    def embeddings(self, rows: Ints) -> Floats:
        """Unit embeddings `(k, e)` of some rows' images; NaN where an image cannot be read. Raises as `pixels`."""
        if self._is_whole:
            return np.array(self._known[rows], np.float32)
        wanted = np.unique(rows)
        there = np.asarray(self._known[wanted])
        missing = wanted[~(np.isnan(there).all(axis=1) | are_whole(there))]
        if len(missing):
            self._embed(missing)
        return np.array(self._known[rows], np.float32)

    def images(self, part: int = 0) -> ImageSet:
        """The images that a part of the store was harvested from; its image numbers count them."""
        if part not in self._images:
            opened = recorded_images(self.store.parts[part].provenance, self._source)
            self._images[part] = self._opened.enter_context(opened)
        return self._images[part]

    def _embed(self, rows: Ints) -> None:
        """Embed rows that are not known; the file keeps them."""
        found = np.full((len(rows), self._known.shape[1]), np.nan, np.float32)
        if self.stored is not None:
            positions = self.store.positions_of(rows)
            readable = positions >= 0
            found[readable] = self._of_stored(self.stored, positions[readable])
            keep(self._known, rows, found)
            return
        with self._reporter.task("embedding images", len(rows), "images") as task:
            for places, pixels in self.pixels(rows):
                found[places] = embed_images(self.tower, self.tower.normalise(pixels)).cpu().numpy()
                task.advance(len(places))
        keep(self._known, rows, found)

    def _of_stored(self, stored: ActivationArray, positions: Ints) -> Floats:
        vectors = np.empty((len(positions), stored.d_in), stored.stored_dtype)
        stored.read_runs(positions, np.ones_like(positions), vectors)
        stream = stored.tensor(vectors).float().to(self.tower.device)[:, None]  # (k, 1, d): the class token alone
        return normalize(pooled_embedding(self.tower, stream), dim=-1).cpu().numpy()

    def _kept(self, folder: Path) -> Floats:
        """A file of all rows, of which the disk holds those that were written."""
        how = "stored" if self.stored is not None else self.tower.precision
        of = f"{self.store.fingerprint} {self.tower.weights_sha256} {how}"
        path = folder / f"images-{hashlib.sha256(of.encode()).hexdigest()[:16]}.npy"
        shape = (self.store.n_rows, int(self.tower.visual.output_dim))  # type: ignore[arg-type]
        folder.mkdir(exist_ok=True)
        found = kept_rows(path, self.store.n_rows, "r+")
        if found is None:
            remove(path)
            temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # the run is not locked yet
            np.lib.format.open_memmap(temporary, "w+", np.float32, shape).flush()
            os.replace(temporary, path)
            found = np.lib.format.open_memmap(path, "r+")
        return found


def _whole(path: Path, n_rows: int) -> Floats:
    """The embeddings that `embed` made of all rows."""
    found = kept_rows(path, n_rows, "r")
    if found is None:
        raise StoreError(f"{path} is damaged: make it again with `thresher embed --overwrite`.")
    return found

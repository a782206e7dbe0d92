"""CLIP's space as a run's own images lie in it: the tower's embeddings of pictures, their mean, features' top images.

Shapes: n pictures or features, e the length of an embedding.
"""

from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from ...harvest.continuation import embed_images
from ..naming.pictures import RowPictures

N_TOP = 16
"""Images on which a feature is largest, whose embeddings are averaged."""
_MEAN_ROWS = 1000
"""Random rows that the mean over images is estimated from: off by 1 / sqrt(1,000) of the spread, 3 %."""

Floats = NDArray[np.float32]


class ImageSpace:
    """Embeddings of a run's images and of any others.

    Parameters
    ----------
    pictures
        Of the run's rows, with the tower that embeds.
    top_row
        `(F, k)`, of stats.zarr: rows on which each feature is largest, falling, -1 unfilled.
    seed
        Of the rows that the mean is estimated from.
    """

    def __init__(self, pictures: RowPictures, top_row: NDArray[np.int64], *, seed: int = 0) -> None:
        self.pictures, self._top_row, self._seed = pictures, top_row[:, :N_TOP], seed

    @cached_property
    def mean(self) -> Floats:
        """Mean `(e,)` of the unit embeddings of the run's images."""
        n_rows = self.pictures.store.n_rows
        n = min(_MEAN_ROWS, n_rows)
        rows = np.sort(np.random.default_rng([self._seed, 7]).choice(n_rows, n, replace=False))
        found = self.pictures.embeddings(rows)
        mean: Floats = found[np.isfinite(found[:, 0])].mean(axis=0)
        return mean

    def embed(self, pixels: NDArray[np.uint8]) -> Floats:
        """Unit embeddings `(n, e)` of pictures `(n, height, width, 3)`."""
        tower = self.pictures.tower
        return embed_images(tower, tower.normalise(torch.tensor(pixels))).cpu().numpy()

    def top_images(self, features: NDArray[np.int64]) -> Floats:
        """Mean embedding `(n, e)` of each feature's top images, less the mean over images; NaN where there are none."""
        rows = self._top_row[features]
        wanted, place = np.unique(rows[rows >= 0], return_inverse=True)
        found = self.pictures.embeddings(wanted)[place]  # (entries, e)
        is_read = np.isfinite(found[:, 0])
        owner = np.nonzero(rows >= 0)[0][is_read]
        sums, n = np.zeros((len(features), len(self.mean))), np.bincount(owner, minlength=len(features))[:, None]
        np.add.at(sums, owner, found[is_read])
        means = np.where(n > 0, sums / np.maximum(n, 1), np.nan)
        return (means - self.mean).astype(np.float32)

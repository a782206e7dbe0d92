"""The images that a harvest takes of a source, and those that a store was made from, opened without torch."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike

import numpy as np

from ..store.errors import StoreError
from ..store.layout import keys_sha256
from ..store.provenance import Provenance
from ..store.row_order import RowOrder
from .images import ImageSet, open_images

Source = str | PathLike[str] | Sequence[str | PathLike[str]]


def select_images(images: ImageSet, limit: int | None, order: str, seed: int) -> ImageSet:
    """The images that `--limit` leaves: a seeded sample in source order, or the first ones with `--order source`."""
    if limit is None or limit >= images.n_images:
        return images
    chosen = RowOrder(images.n_images, order=order, seed=seed).images_at(np.arange(limit))
    return images.take(np.sort(chosen))


@contextmanager
def recorded_images(provenance: Provenance, source: Source | None = None) -> Iterator[ImageSet]:
    """Open the images that a store (or part) was harvested from, in the order that its image numbers count.

    Their keys and labels are those that the store was made with, so they also serve to write its static arrays again.

    Parameters
    ----------
    provenance
        Of the store.
    source
        Where the images are now; by default where they were.

    Raises
    ------
    ValueError
        When the record does not say where they were and `source` is None, or that is no image source any more.
    FileNotFoundError
        When it does not exist any more.
    StoreError
        When other images are there: other keys or labels.
    """
    if source is None and not provenance.source:
        raise ValueError(f"the store does not record where its images are ({provenance.image_source}): name IMAGES.")
    with open_images(provenance.source if source is None else source) as opened:
        images = select_images(opened, provenance.limit, provenance.row_order, provenance.seed)
        found = keys_sha256(images.keys, images.labels)
        if found != provenance.keys_sha256:
            raise StoreError(
                f"{images.description} holds other images than were harvested ({images.n_images:,} against "
                f"{provenance.n_images:,}; keys_sha256 is {found}, not {provenance.keys_sha256}): name the original "
                "IMAGES."
            )
        yield images

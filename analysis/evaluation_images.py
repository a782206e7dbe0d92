"""Images to evaluate on: those that an SAE was not trained on, with their captions, decoded for the tower."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from math import ceil
from os import fsencode

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..harvest.batches import decoded_batches
from ..harvest.captions import CAPTION, class_captions
from ..harvest.images import ImageSet
from ..harvest.options import HarvestOptions
from ..harvest.plan import make_decoder
from ..harvest.vision import Tower
from ..store import format as f
from ..store.part import StorePart
from ..store.reader import ActivationStore
from ..store.row_order import RowOrder
from .contrastive import Ints, balanced_sample

_KEYS_AT_ONCE = 1 << 18
_COMPARED_LABELS = 2_000


@dataclass(frozen=True)
class HeldOut:
    """Which images of a set an SAE was not trained on.

    Parameters
    ----------
    images
        Their numbers in the set, ascending.
    n_trained_on
        Images of the set that are among the training images, by key.
    n_in_store
        Images of the set that the store holds, by key: 0 where the set has other images, or other keys for the same.
    """

    images: Ints
    n_trained_on: int
    n_in_store: int

    @property
    def note(self) -> str:
        """One line that says what was left out, or that nothing could be."""
        if not self.n_in_store:
            return (
                "none of the images has the key of one in the store: all are taken as not trained on. That is wrong if "
                "they are the store's images under other paths."
            )
        return f"{self.n_trained_on:,} images that the SAE was trained on are left out, {len(self.images):,} are left"


def held_out_images(images: ImageSet, store: ActivationStore) -> HeldOut:
    """The images of a set that are not among a store's training images, by key.

    The store's keys are streamed: what is held is 8 bytes for each image of the set.
    """
    digests = _digests(images.keys)
    order = np.argsort(digests)
    ascending = digests[order]
    is_known, is_trained_on = (np.zeros(images.n_images, np.bool_) for _ in range(2))
    for part in store.parts:
        for keys, trained in _keys(part):
            found = _digests(keys)
            place = np.minimum(np.searchsorted(ascending, found), len(ascending) - 1)
            hit = ascending[place] == found
            is_known[order[place[hit]]] = True
            is_trained_on[order[place[hit & trained]]] = True
    return HeldOut(np.flatnonzero(~is_trained_on), int(is_trained_on.sum()), int(is_known.sum()))


def _digests(keys: Sequence[bytes]) -> NDArray[np.uint64]:
    return np.frombuffer(b"".join(blake2b(key, digest_size=8).digest() for key in keys), np.uint64)


def _keys(part: StorePart) -> Iterator[tuple[list[bytes], NDArray[np.bool_]]]:
    """Keys of a part's images, some at a time, and whether each is a training image."""
    for start in range(0, part.n_images, _KEYS_AT_ONCE):
        stop = min(start + _KEYS_AT_ONCE, part.n_images)
        edges = part.array(f.KEY_OFFSET).read(start, stop + 1).tolist()
        blob = part.array(f.KEY_BLOB).read(edges[0], edges[-1]).tobytes()
        keys = [blob[a - edges[0] : b - edges[0]] for a, b in pairwise(edges)]
        # one row tells: an image's rows are all trained on, or none is
        position = part.positions.of_rows(part.order.rows(np.arange(start, stop))[:, 0])
        yield keys, (position >= 0) & (position < part.positions.n_train)


@dataclass(frozen=True)
class CaptionedImages:
    """Images with captions.

    Parameters
    ----------
    images
        `(n,)`: their numbers in the set.
    own
        `(n,)`: each one's caption.
    captions
        Every caption that the classes of the set have, each text once. Two classes of one name share theirs.
    names
        The class name in each caption.
    """

    images: Ints
    own: Ints
    captions: list[str]
    names: list[str]

    def sample(self, n: int, seed: int) -> "CaptionedImages":
        """At most n of them, drawn as evenly over the captions as they allow."""
        chosen = balanced_sample(self.own, n, seed)
        return CaptionedImages(self.images[chosen], self.own[chosen], self.captions, self.names)


def captioned(
    images: ImageSet, among: Ints, template: str = CAPTION, store: ActivationStore | None = None
) -> CaptionedImages:
    """The labelled images of some of a set, with the captions of their classes.

    Parameters
    ----------
    among
        Numbers of images of the set.
    template
        Of the captions.
    store
        Whose class names to take (they may have been given by `harvest --label-names`) where its images have the same
        labels as those of the set, by key.

    Raises
    ------
    ValueError
        When no image has a label, the classes have no names, or the images have fewer than two captions.
    """
    names = images.label_names
    if store is not None and store.label_names is not None and _labels_agree(images, store):
        names = store.label_names
    labelled = among[images.labels[among] >= 0]
    if names is None or not len(labelled):
        what = "no names of classes" if len(labelled) else "no labels"
        raise ValueError(f"{images.description} has {what}, and captions are made of them.")
    every = class_captions(names, template)
    captions = list(dict.fromkeys(every))
    number = {caption: i for i, caption in enumerate(captions)}
    of_class = np.array([number[caption] for caption in every])
    own = of_class[images.labels[labelled]]
    if len(np.unique(own)) < 2:
        raise ValueError(
            f"the {len(labelled):,} images of {images.description} to evaluate on have one caption ({every[0]!r}): "
            "telling captions apart needs two."
        )
    return CaptionedImages(labelled, own, captions, list(dict.fromkeys(class_captions(names, "{}"))))


def _labels_agree(images: ImageSet, store: ActivationStore) -> bool:
    """Whether the images that set and store share, of some held-out ones, have the same labels."""
    start, stop = store.split("heldout")
    rows = store.rows_of(np.arange(start, min(stop, start + _COMPARED_LABELS)))
    theirs = {
        fsencode(key): int(store.labels(row, row + 1)[0])
        for key, row in zip(store.keys(rows), rows.tolist(), strict=True)
    }
    shared = [(int(images.labels[i]), theirs[key]) for i, key in enumerate(images.keys) if key in theirs]
    return bool(shared) and all(ours == stored for ours, stored in shared)


def decoded(
    images: ImageSet, chosen: Ints, tower: Tower, *, batch_size: int, workers: int | None = None
) -> Iterator[tuple[Ints, Tensor]]:
    """Some images of a set as the tower takes them, some at a time; one that cannot be read is left out.

    Yields
    ------
    places
        `(b,)`: which of the chosen.
    pixels
        `(b, height, width, 3)` uint8.
    """
    some = images.take(chosen)
    order = RowOrder(some.n_images, 1, batch_size, "source", 0)
    decoder = make_decoder(some, order, tower, None)
    n_workers = HarvestOptions().workers if workers is None else workers
    n_workers = min(n_workers, ceil(some.n_images / batch_size) - 1)  # one batch is made here sooner
    batches = decoded_batches(
        decoder,
        order,
        range(order.n_windows),
        batch_size=batch_size,
        workers=n_workers,
        pin=tower.device.type == "cuda",
    )
    with closing(batches):
        for batch in batches:
            kept = np.flatnonzero(batch.valid)
            if len(kept):
                yield batch.start + kept, batch.pixels[torch.from_numpy(kept)]

"""What an SAE in its place costs the model that it is spliced into: contrastive loss and zero-shot accuracy.

Shapes: n images, T tokens of an image at the site, d the length of a vector, e the length of an embedding.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import log, nan
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..harvest.captions import CAPTION, embed_captions, logit_scale
from ..harvest.continuation import embed_images, first_block_after, stream_entering
from ..harvest.images import ImageSet, open_images
from ..harvest.rewrite import load_recorded_clip, recorded_tower
from ..harvest.splice import Autoencoder, place_in, splice
from ..harvest.vision import Tower
from ..progress import Reporter
from ..store.format import Site, first_token
from ..store.provenance import Provenance
from ..store.reader import ActivationArray, open_store
from ..train.configuration import require_training_store
from ..train.run_dir import open_run
from .contrastive import (
    MAX_BATCH,
    POST_BATCH,
    ContrastiveNumbers,
    Floats,
    Ints,
    caption_batches,
    loss_recovered,
    repeated_batches,
    score_embeddings,
)
from .evaluation_images import CaptionedImages, HeldOut, captioned, decoded, held_out_images

MEAN_ROWS = 65_536
"""Training rows that a mean ablation's mean is taken over, at most."""
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True, kw_only=True)
class FidelityResult:
    """A model's contrastive loss and zero-shot accuracy, as it is and with a site replaced.

    Parameters
    ----------
    batch_size
        B of the contrastive batches; guessing loses ln B.
    repeats_captions
        Whether a batch may hold a caption more than once, as the post's do: that puts a floor under the loss.
    original, sae, zero, mean
        As it is; with the SAE's reconstruction; with zeros; with the mean of the training rows. None where not asked.
    loss_recovered, loss_recovered_of_mean
        (L_zero - L_sae) / (L_zero - L_original), and the same of the mean ablation: 1 of a perfect SAE. NaN where
        undefined.
    """

    site: Site
    n_images: int
    n_unreadable: int
    n_captions: int
    batch_size: int
    n_batches: int
    ln_batch_size: float
    repeats_captions: bool
    logit_scale: float
    caption: str
    original: ContrastiveNumbers
    sae: ContrastiveNumbers
    zero: ContrastiveNumbers
    mean: ContrastiveNumbers | None
    loss_recovered: float
    loss_recovered_of_mean: float


@dataclass(frozen=True)
class Captions:
    """What images are compared with.

    Parameters
    ----------
    embeddings
        `(C, e)`, of norm 1.
    logit_scale
        Of the model.
    """

    embeddings: Floats
    logit_scale: float


def load_model(provenance: Provenance, captions: list[str], device: str = "auto") -> tuple[Tower, Captions]:
    """The tower of a store, and its model's embeddings of captions.

    Raises
    ------
    StoreError
        When the recorded model is not that of the store any more.
    ValueError, FileNotFoundError, ConnectionError
        When the model, or the tokenizer of its text tower, cannot be loaded.
    """
    clip = load_recorded_clip(provenance)
    tower = recorded_tower(clip, provenance, device)
    embeddings = embed_captions(clip, captions, tower.device).double().numpy()
    return tower, Captions(embeddings, logit_scale(clip))


def evaluate_fidelity(
    run_path: Path | str,
    images: str | Path | list[str],
    *,
    n_images: int | None = None,
    caption: str = CAPTION,
    batch_size: int | None = None,
    repeat_captions: bool = False,
    label_names: str | Path | None = None,
    store_path: Path | str | None = None,
    device: str = "auto",
    seed: int = 0,
    reporter: Reporter | None = None,
) -> FidelityResult:
    """What a run's SAE costs its tower on images that it was not trained on.

    Parameters
    ----------
    run_path
        A finished run.
    images
        As `harvest` takes them; they need labels. The run's training images are left out, by key.
    n_images
        A seeded sample of so many, even over the captions; all where None.
    caption
        Template of the captions.
    batch_size
        Of the contrastive loss; by default 1000, or the number of captions where there are fewer (1024 with
        `repeat_captions`).
    repeat_captions
        The post's protocol: batches whose captions repeat.
    label_names
        File of class names, as for `harvest`.
    store_path
        Where the run's store is now.
    device
        Of tower and SAE.
    seed
        Of the sample and the batches.

    Raises
    ------
    ValueError
        When the images have no labels or names, or the site is not one that can be spliced.
    StoreError
        When run, store or tower do not match.
    """
    reporter = reporter or Reporter()
    run = open_run(run_path)
    sae = run.load_sae()
    store = open_store(store_path or run.store_path, n_parts=run.n_store_parts)
    require_training_store(run, store)
    with open_images(images, label_names=label_names) as opened:
        held_out = held_out_images(opened, store)
        (reporter.say if held_out.n_in_store else reporter.warn)(held_out.note)
        names_of = store if label_names is None else None
        chosen = captioned(opened, _some(held_out, opened), caption, names_of)
        if n_images is not None:
            chosen = chosen.sample(n_images, seed)
        tower, captions = load_model(store.provenance, chosen.captions, device)
        target = run.target_site
        for place in (run.site, target or run.site):
            place_in(tower.visual, place)  # before what takes long
        mean = training_mean(store.activations(target or run.site))
        return fidelity(
            tower,
            captions,
            opened,
            chosen,
            sae.to(tower.device),
            run.site,
            target=target,
            mean=mean,
            caption=caption,
            batch_size=batch_size,
            repeat_captions=repeat_captions,
            seed=seed,
            reporter=reporter,
        )


def _some(held_out: HeldOut, images: ImageSet) -> Ints:
    if not len(held_out.images):
        raise ValueError(
            f"all {images.n_images:,} images of {images.description} have keys of training images: name others."
        )
    return held_out.images


def fidelity(
    tower: Tower,
    captions: Captions,
    images: ImageSet,
    chosen: CaptionedImages,
    sae: Autoencoder,
    site: Site,
    *,
    target: Site | None = None,
    mean: Tensor | None = None,
    caption: str = CAPTION,
    batch_size: int | None = None,
    repeat_captions: bool = False,
    seed: int = 0,
    images_at_once: int = 64,
    reporter: Reporter | None = None,
) -> FidelityResult:
    """What an SAE costs a tower on given images.

    What comes before the site is computed once, the rest once for each way that the site is replaced. Memory does not
    grow with the images, but for their embeddings.

    Parameters
    ----------
    chosen
        Which of the images, with their captions.
    mean
        `(d,)` or `(T, d)`; None leaves the mean ablation out.
    """
    reporter = reporter or Reporter()
    replaced = target or site
    ways: dict[str, Callable[[], AbstractContextManager[Any] | None]] = {
        "original": lambda: None,
        "sae": lambda: splice(tower, sae, site, target=target),
        "zero": lambda: splice(tower, None, replaced, replace="zero"),
        **({} if mean is None else {"mean": lambda: splice(tower, None, replaced, replace="mean", mean=mean)}),
    }
    layer = first_block_after(site)
    found: dict[str, list[Floats]] = {way: [] for way in ways}
    read = []
    with reporter.task("evaluate", len(chosen.images), "images") as task:
        for places, pixels in decoded(images, chosen.images, tower, batch_size=images_at_once):
            batch = tower.normalise(pixels)
            stream = stream_entering(tower, batch, [layer] if layer else []).get(layer)
            for way, splicing in ways.items():
                embedded = embed_images(tower, batch, splicing(), layer=layer, stream=stream)
                found[way].append(embedded.cpu().double().numpy())
            read.append(places)
            task.advance(len(places))
    if not read:
        raise ValueError(f"none of the {len(chosen.images):,} images to evaluate on can be read.")
    own = chosen.own[np.concatenate(read)]
    batches = contrastive_batches(own, batch_size, repeat_captions=repeat_captions, seed=seed)
    numbers = {
        way: score_embeddings(np.concatenate(parts), captions.embeddings, own, batches, captions.logit_scale)
        for way, parts in found.items()
    }
    return FidelityResult(
        site=site,
        n_images=len(own),
        n_unreadable=len(chosen.images) - len(own),
        n_captions=len(chosen.captions),
        batch_size=batches.shape[1],
        n_batches=len(batches),
        ln_batch_size=log(batches.shape[1]),
        repeats_captions=repeat_captions,
        logit_scale=captions.logit_scale,
        caption=caption,
        original=numbers["original"],
        sae=numbers["sae"],
        zero=numbers["zero"],
        mean=numbers.get("mean"),
        loss_recovered=_recovered(numbers, "zero"),
        loss_recovered_of_mean=_recovered(numbers, "mean"),
    )


def _recovered(numbers: Mapping[str, ContrastiveNumbers], ablation: str) -> float:
    if ablation not in numbers:
        return nan
    return loss_recovered(numbers[ablation].loss, numbers["original"].loss, numbers["sae"].loss)


def contrastive_batches(own: Ints, batch_size: int | None, *, repeat_captions: bool = False, seed: int = 0) -> Ints:
    """Batches `(m, B)` of at most 1000 images that hold a caption once, or the post's, whose captions repeat."""
    if batch_size is not None and batch_size < 2:
        raise ValueError(f"batch_size {batch_size} must be at least 2: a batch of one loses nothing.")
    if repeat_captions:
        return repeated_batches(len(own), batch_size or POST_BATCH, seed)
    return caption_batches(own, batch_size or MAX_BATCH, seed)


def training_mean(array: ActivationArray, n_rows: int = MEAN_ROWS) -> Tensor:
    """Mean of the first training rows of a site, float32: `(d,)`, or `(T, d)` with one for each stored token."""
    store = array.store
    n_tokens = store.tokens_per_image
    total = torch.zeros(n_tokens, array.d_in, dtype=torch.float64)
    count = torch.zeros(n_tokens, dtype=torch.float64)
    stop = min(n_rows, store.n_train)
    for start in range(0, stop, _ROWS_AT_ONCE):
        end = min(start + _ROWS_AT_ONCE, stop)
        rows = store.rows_of(np.arange(start, end))
        token = torch.zeros(len(rows), dtype=torch.int64)
        if n_tokens > 1:
            first = int(rows.min())
            stored = store.tokens(first, int(rows.max()) + 1)[rows - first].astype(np.int64)
            token = torch.from_numpy(stored - first_token(array.site.token))
        total.index_add_(0, token, array.tensor(array.read_positions(start, end)).to(torch.float64))
        count += torch.bincount(token, minlength=n_tokens)
    mean = (total / count.clamp(min=1)[:, None]).float()
    return mean if n_tokens > 1 else mean[0]

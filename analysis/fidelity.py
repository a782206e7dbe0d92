"""What an SAE in its place costs the model that it is spliced into: contrastive loss and zero-shot accuracy.

Shapes: n images, T tokens of an image at the site, d the length of a vector.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import log, nan
from pathlib import Path

from torch import Tensor

from ..harvest.captions import CAPTION
from ..harvest.images import ImageSet
from ..harvest.splice import Autoencoder
from ..harvest.vision import Tower
from ..progress import Reporter
from ..store.format import Site
from .contrastive import (
    MAX_BATCH,
    POST_BATCH,
    ContrastiveNumbers,
    Ints,
    caption_batches,
    loss_recovered,
    repeated_batches,
    score_embeddings,
)
from .evaluation_images import CaptionedImages
from .evaluation_setting import Captions, open_setting
from .spliced_embeddings import embed_ways, ways_to_replace


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
    with open_setting(
        run_path,
        images,
        n_images=n_images,
        caption=caption,
        label_names=label_names,
        store_path=store_path,
        device=device,
        seed=seed,
        reporter=reporter,
    ) as setting:
        return fidelity(
            setting.tower,
            setting.captions,
            setting.images,
            setting.chosen,
            setting.sae,
            setting.site,
            target=setting.target,
            mean=setting.mean,
            caption=caption,
            batch_size=batch_size,
            repeat_captions=repeat_captions,
            seed=seed,
            reporter=reporter,
        )


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
    ways = ways_to_replace(tower, sae, site, target=target, mean=mean)
    read, embedded = embed_ways(
        tower, images, chosen.images, site, ways, images_at_once=images_at_once, reporter=reporter
    )
    own = chosen.own[read]
    batches = contrastive_batches(own, batch_size, repeat_captions=repeat_captions, seed=seed)
    numbers = {
        way: score_embeddings(found, captions.embeddings, own, batches, captions.logit_scale)
        for way, found in embedded.items()
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

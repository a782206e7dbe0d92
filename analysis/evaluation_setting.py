"""What an evaluation of a run on images needs, opened and checked: tower, texts, SAE, the images to look at.

Shapes: C captions, T tokens of an image at the site, d the length of a vector, e the length of an embedding.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..harvest.captions import CAPTION, class_captions, embed_captions, embed_templates, logit_scale
from ..harvest.images import ImageSet, open_images
from ..harvest.rewrite import load_recorded_clip, recorded_tower
from ..harvest.splice import place_in
from ..harvest.vision import LoadedClip, Tower
from ..progress import Reporter
from ..store.format import Site, first_token
from ..store.provenance import Provenance
from ..store.reader import ActivationArray, ActivationStore, open_store
from ..train.configuration import one_site, require_training_store
from ..train.interchange import origin_of, require_same_tower
from ..train.models import SparseAutoencoder
from ..train.run_dir import Run, open_run
from .contrastive import Floats
from .evaluation_images import CaptionedImages, HeldOut, captioned, held_out_images

MEAN_ROWS = 65_536
"""Training rows that a mean ablation's mean is taken over, at most."""
_ROWS_AT_ONCE = 4096


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


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A run's SAE, its tower, and images with captions.

    Parameters
    ----------
    classes
        `(C, e)`, of norm 1: what zero-shot predictions compare with; the captions', or the means of templates.
    chosen
        Images that the SAE was not trained on.
    trained_on
        Those that it was, where the set holds some.
    note
        One line that says what was left out, or that nothing could be.
    mean
        `(d,)` or `(T, d)`: of the training rows at the site that is replaced.
    """

    run: Run
    sae: SparseAutoencoder
    site: Site
    target: Site | None
    tower: Tower
    captions: Captions
    classes: Floats
    images: ImageSet
    chosen: CaptionedImages
    trained_on: CaptionedImages | None
    held_out: HeldOut
    note: str
    mean: Tensor


@contextmanager
def open_setting(
    run_path: Path | str,
    images: str | Path | Sequence[str],
    *,
    n_images: int | None = None,
    caption: str = CAPTION,
    templates: str = "none",
    label_names: str | Path | None = None,
    store_path: Path | str | None = None,
    device: str = "auto",
    seed: int = 0,
    reporter: Reporter | None = None,
) -> Iterator[Setting]:
    """Open and check everything; what is wrong is said before an image is decoded.

    Raises
    ------
    ValueError
        When the images have no labels or names, all were trained on, or the site is not one that can be spliced.
    StoreError
        When run, store or tower do not match.
    """
    reporter = reporter or Reporter()
    class_captions([], caption)  # a template that will not do, before anything is read
    run = open_run(run_path)
    sae = run.load_sae()
    store = _open_store(run, store_path)
    site = run.known_site or one_site(store, None, None, None, ("--layer", "--site", "--token"))
    with open_images(images if isinstance(images, str | Path) else list(images), label_names=label_names) as opened:
        held_out, note, is_sure = _held_out(run, store, opened)
        (reporter.say if is_sure else reporter.warn)(note)
        if not len(held_out.images):
            raise ValueError(
                f"all {opened.n_images:,} images of {opened.description} have keys of training images: name others."
            )
        names_of = store if label_names is None else None
        chosen = captioned(opened, held_out.images, caption, names_of)
        trained_on = None
        if held_out.n_trained_on:
            among = np.setdiff1d(np.arange(opened.n_images), held_out.images)
            with suppress(ValueError):  # of one caption, or without labels: then there is nothing to compare with
                trained_on = captioned(opened, among, caption, names_of)
        if n_images is not None:
            chosen = chosen.sample(n_images, seed)
        clip = load_recorded_clip(store.provenance)
        tower = recorded_tower(clip, store.provenance, device)
        target = run.target_site
        for place in (site, target or site):
            place_in(tower.visual, place)  # before what takes long
        captions = _embedded(clip, chosen.captions, tower)
        classes = captions.embeddings
        if templates != "none":
            classes = embed_templates(clip, chosen.names, templates, tower.device).double().numpy()
        yield Setting(
            run=run,
            sae=sae.to(tower.device),
            site=site,
            target=target,
            tower=tower,
            captions=captions,
            classes=classes,
            images=opened,
            chosen=chosen,
            trained_on=trained_on,
            held_out=held_out,
            note=note,
            mean=training_mean(store.activations(target or site)),
        )


def _open_store(run: Run, store_path: Path | str | None) -> ActivationStore:
    if not run.has_store:
        store = open_store(store_path or run.store_path)  # which says that one must be named
        require_same_tower(origin_of(run), store)
        return store
    store = open_store(store_path or run.store_path, n_parts=run.n_store_parts)
    require_training_store(run, store)
    return store


def _held_out(run: Run, store: ActivationStore, images: ImageSet) -> tuple[HeldOut, str, bool]:
    """Images that the SAE was not trained on, a line about it, and whether that is sure."""
    if run.is_imported:
        note = (
            f"{run.path} was imported, and which images its SAE was trained on is not known: none is left out, and the "
            "numbers are those of training images where it was trained on some of these."
        )
        return HeldOut(np.arange(images.n_images), 0, 0), note, False
    held_out = held_out_images(images, store)
    return held_out, held_out.note, bool(held_out.n_in_store)


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
    return tower, _embedded(clip, captions, tower)


def _embedded(clip: LoadedClip, captions: list[str], tower: Tower) -> Captions:
    return Captions(embed_captions(clip, captions, tower.device).double().numpy(), logit_scale(clip))


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

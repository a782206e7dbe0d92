"""The spliced contrastive loss while an SAE is trained: what does not change between evaluations is computed once."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from math import log
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..harvest.continuation import embed_images, first_block_after, stream_entering
from ..harvest.images import open_images
from ..harvest.splice import place_in, splice
from ..harvest.vision import Tower
from ..progress import Reporter, format_bytes, format_rate, format_s
from ..store.format import Site
from ..store.reader import ActivationStore
from ..train.models import SparseAutoencoder
from ..train.options import TrainOptions
from .contrastive import (
    MAX_BATCH,
    ContrastiveNumbers,
    Floats,
    Ints,
    caption_batches,
    format_floor,
    loss_recovered,
    score_embeddings,
)
from .evaluation_images import captioned, decoded, held_out_images
from .evaluation_setting import Captions, load_model

_IMAGES_AT_ONCE = 64


def splicer(options: TrainOptions, store: ActivationStore, reporter: Reporter) -> "HeldOutSplice":
    """What scores SAEs of a store in its tower, on a sample of the images that the options name.

    Decodes the sample, and embeds the captions.

    Raises
    ------
    ValueError
        When the images have no labels, all were trained on or too few have captions, or the model has no text tower.
    StoreError
        When the model is not that of the store any more.
    """
    assert options.images is not None
    with open_images(options.images) as images:
        held_out = held_out_images(images, store)
        if not len(held_out.images):
            raise ValueError(
                f"--images {options.images}: all {images.n_images:,} have keys of training images; name others to "
                "evaluate on."
            )
        (reporter.say if held_out.n_in_store else reporter.warn)(f"--images {options.images}: {held_out.note}")
        chosen = captioned(images, held_out.images, options.caption, store).sample(options.images_rows, options.seed)
        tower, captions = load_model(store.provenance, chosen.captions, options.device)
        read, pixels = [], []
        with reporter.task("images", len(chosen.images), "images") as task:
            for places, some in decoded(images, chosen.images, tower, batch_size=_IMAGES_AT_ONCE):
                read.append(places)
                pixels.append(some)
                task.advance(len(places))
    if not read:
        raise ValueError(f"--images {options.images}: none of the {len(chosen.images):,} chosen can be read.")
    own = chosen.own[np.concatenate(read)]
    return HeldOutSplice(tower, captions, torch.cat(pixels), own, options.seed, options.images_memory, reporter)


class HeldOutSplice:
    """Evaluates SAEs spliced into a tower, on a fixed sample of images.

    Parameters
    ----------
    pixels
        `(n, height, width, 3)` uint8.
    own
        `(n,)`: each image's caption.
    seed
        Of the contrastive batches.
    memory
        In GB: for the residual stream that enters the first block after a site, so that those before it run once.
    """

    def __init__(
        self, tower: Tower, captions: Captions, pixels: Tensor, own: Ints, seed: int, memory: float, reporter: Reporter
    ) -> None:
        self._tower, self._captions, self._pixels, self._own = tower, captions, pixels, own
        self._batches = caption_batches(own, MAX_BATCH, seed)
        if self._batches.shape[1] < 2:
            raise ValueError("the images to evaluate on have one caption: telling captions apart needs two.")
        self._memory_left, self._reporter = round(memory * 1e9), reporter
        self._streams: dict[int, Tensor] = {}
        """What enters a block, `(n, t, d)` on the CPU, of those that fit the memory."""
        self._original: ContrastiveNumbers | None = None
        self._zero: dict[Site, ContrastiveNumbers] = {}

    def prepare(self, places: Sequence[tuple[Site, Site | None]]) -> None:
        """Compute what does not change between evaluations, and say what each will cost.

        Raises
        ------
        ValueError
            When one of the sites is no place that can be spliced.
        """
        for site in dict.fromkeys(site for pair in places for site in pair if site is not None):
            place_in(self._tower.visual, site)
        started_s = time.monotonic()
        layers = sorted({first_block_after(site) for site, _ in places})
        self._hold_streams(layers)
        if self._original is None:
            self._original = self._numbers(layers[-1], None)
        each_s = {}
        for site, target in places:
            begun_s, layer = time.monotonic(), first_block_after(site)
            self._zero[target or site] = self._numbers(
                layer, partial(splice, self._tower, None, target or site, replace="zero")
            )
            each_s[site] = time.monotonic() - begun_s
        self._announce(each_s, time.monotonic() - started_s)

    def _announce(self, each_s: dict[Site, float], seconds: float) -> None:
        """Say what was found and what an evaluation costs, by the site that is read."""
        assert self._original is not None
        n, b, n_layers = len(self._own), self._batches.shape[1], self._tower.n_layers
        zero = ", ".join(f"{site.site} of layer {site.layer} {found.loss:.4f}" for site, found in self._zero.items())
        self._reporter.say(
            f"spliced contrastive loss on {n:,} held-out images, {len(self._batches)} batches of {b} (guessing: "
            f"{format_floor(b)}): original {self._original.loss:.4f}, zero-ablated {zero}; {format_s(seconds)}"
        )
        for site, cost_s in each_s.items():
            layer = first_block_after(site)
            stream = self._streams.get(layer)
            blocks = n_layers if stream is None else n_layers - layer
            held = "" if stream is None else f" (what comes before them is held in {format_bytes(stream.nbytes)})"
            self._reporter.say(
                f"each evaluation of an SAE of {site} runs {blocks} of the tower's {n_layers} blocks{held}: "
                f"{format_rate(n / cost_s)} images/s, {'under 1 s' if cost_s < 1 else format_s(cost_s)}"
            )

    def evaluate(self, sae: SparseAutoencoder, site: Site, target: Site | None) -> dict[str, Any]:
        """The numbers, as metrics.jsonl holds them."""
        replaced = target or site
        if self._original is None or replaced not in self._zero:
            self.prepare([(site, target)])
        assert self._original is not None
        numbers = self._numbers(first_block_after(site), partial(splice, self._tower, sae, site, target=target))
        original, zero = self._original, self._zero[replaced]
        return {
            "contrastive_loss": numbers.loss,
            "contrastive_loss_standard_error": numbers.loss_standard_error,
            "contrastive_loss_original": original.loss,
            "contrastive_loss_zero": zero.loss,
            "contrastive_batch_size": self._batches.shape[1],
            "ln_contrastive_batch_size": log(self._batches.shape[1]),
            "loss_recovered": loss_recovered(zero.loss, original.loss, numbers.loss),
            "zero_shot_top1": numbers.top1,
            "zero_shot_top5": numbers.top5,
            "zero_shot_top1_original": original.top1,
            "zero_shot_top5_original": original.top5,
            "n_images": len(self._own),
        }

    def _hold_streams(self, layers: Sequence[int]) -> None:
        """Compute what enters these blocks, where it fits the memory; the later ones first, which save the most."""
        wanted = []
        for layer in sorted(set(layers) - {0, *self._streams}, reverse=True):
            first = stream_entering(self._tower, self._tower.normalise(self._pixels[:1]), [layer])[layer]
            size = first.nbytes * len(self._own)
            if size > self._memory_left:
                self._reporter.warn(
                    f"what enters block {layer} (0-based) takes {format_bytes(size)}, and --images-memory leaves "
                    f"{format_bytes(self._memory_left)}: each evaluation runs the whole tower."
                )
                continue
            self._memory_left -= size
            self._streams[layer] = torch.empty(len(self._own), *first.shape[1:])
            wanted.append(layer)
        if not wanted:
            return
        with self._reporter.task("tower", len(self._own), "images") as task:
            for start in range(0, len(self._own), _IMAGES_AT_ONCE):
                rows = slice(start, start + _IMAGES_AT_ONCE)
                images = self._tower.normalise(self._pixels[rows])
                for layer, stream in stream_entering(self._tower, images, wanted).items():
                    self._streams[layer][rows] = stream.cpu()
                task.advance(len(images))

    def _numbers(self, layer: int, splicing: Callable[[], AbstractContextManager[Any]] | None) -> ContrastiveNumbers:
        """Scores of the tower with something replaced at or after the entrance of a block."""
        tower, held = self._tower, self._streams.get(layer)
        found: list[Floats] = []
        for start in range(0, len(self._own), _IMAGES_AT_ONCE):
            rows = slice(start, start + _IMAGES_AT_ONCE)
            images = tower.normalise(self._pixels[rows]) if held is None else None
            stream = None if held is None else held[rows].to(tower.device)
            spliced = splicing() if splicing is not None else None
            found.append(embed_images(tower, images, spliced, layer=layer, stream=stream).cpu().double().numpy())
        captions = self._captions
        return score_embeddings(
            np.concatenate(found), captions.embeddings, self._own, self._batches, captions.logit_scale
        )

"""Contrastive loss and zero-shot accuracy of several ways to replace a site, with intervals, as JSON holds them.

A loss has two intervals. Over images: the percentile bootstrap of what each image adds to the loss, the other images
and captions of its batch held fixed. Over batches: the same of whole batches' losses, where there are 20 or more; it
counts how alike what images of a batch add is. Differences from the original and the loss recovered are resampled as
pairs: each set of images gives both numbers.

Shapes: n images, C captions, m batches of B images, e the length of an embedding.
"""

from collections.abc import Mapping
from math import log, nan, sqrt
from typing import Any

import numpy as np

from .bootstrap import MIN_UNITS, interval, mean_intervals, resampled_sums
from .contrastive import Embeddings, Floats, Ints, image_losses
from .zero_shot import ZeroShot

Interval = tuple[float, float] | None


def losses_of_images(
    embedded: Mapping[str, Embeddings], captions: Floats, own: Ints, batches: Ints, logit_scale: float
) -> dict[str, Floats]:
    """What each image of each batch adds to the loss, by way, `(m, B)`."""
    return {
        way: np.stack([image_losses(images[batch], captions[own[batch]], logit_scale) for batch in batches])
        for way, images in embedded.items()
    }


def contrastive_numbers(losses: Mapping[str, Floats], own: Ints, batches: Ints, seed: int = 0) -> dict[str, Any]:
    """The loss of each way, its difference from that of `original`, and the loss recovered.

    Parameters
    ----------
    losses
        By way, `(m, B)`.
    own, batches
        `(n,)`, `(m, B)`: what they are of.
    """
    ways = list(losses)
    values = np.column_stack([losses[way].ravel() for way in ways])  # (m B, ways)
    n, b = len(values), batches.shape[1]
    replicates = dict(zip(ways, (resampled_sums(values, seed=seed) / n).T, strict=True))
    mean = {way: float(losses[way].mean()) for way in ways}

    def over_images(drawn: Floats) -> Interval:
        return interval(drawn) if n >= MIN_UNITS else None

    found: dict[str, Any] = {}
    for way in ways:
        of_batches = losses[way].mean(axis=1)
        difference = losses[way] - losses["original"]
        found[way] = {
            "loss": mean[way],
            "loss_standard_error": float(of_batches.std(ddof=1) / sqrt(len(of_batches)))
            if len(of_batches) > 1
            else nan,
            "loss_interval_images": over_images(replicates[way]),
            "loss_interval_batches": mean_intervals(of_batches[:, None], seed=seed)[0],
            "difference": mean[way] - mean["original"],
            "difference_interval_images": over_images(replicates[way] - replicates["original"]),
            "difference_interval_batches": mean_intervals(difference.mean(axis=1)[:, None], seed=seed)[0],
        }
    record: dict[str, Any] = {
        "batch_size": b,
        "n_batches": len(batches),
        "n_images_in_batches": n,
        "ln_batch_size": log(b),
        "floor": caption_floor(own, batches),
        "ways": found,
    }
    for ablation, name in (("zero", "loss_recovered"), ("mean", "loss_recovered_of_mean")):
        if ablation in losses and "sae" in losses:
            gap = mean[ablation] - mean["original"]
            with np.errstate(divide="ignore", invalid="ignore"):
                drawn = (replicates[ablation] - replicates["sae"]) / (replicates[ablation] - replicates["original"])
            record[name] = (mean[ablation] - mean["sae"]) / gap if gap else nan
            record[f"{name}_interval_images"] = over_images(drawn)
    return record


def caption_floor(own: Ints, batches: Ints) -> float:
    """What the repetition of captions alone costs any model, in nats: the mean of ln m, m images of one caption."""
    total = 0.0
    for batch in batches:
        m = np.bincount(own[batch])
        m = m[m > 0]
        total += float((m * np.log(m)).sum()) / len(batch)
    return total / len(batches)


def zero_shot_numbers(predictions: Mapping[str, ZeroShot], seed: int = 0) -> dict[str, Any]:
    """Accuracy of each way, its difference from that of `original`, agreement and divergence, with intervals."""
    found: dict[str, Any] = {}
    for way, of in predictions.items():
        change = of.top1 - predictions["original"].top1
        columns = {
            "top1": of.top1,
            "top5": of.top5,
            "difference": change,
            "agreement": of.agrees,
            "mean_kl": of.kl,
        }
        intervals = mean_intervals(np.column_stack(list(columns.values())), seed=seed)
        found[way] = {name: float(values.mean()) for name, values in columns.items()}
        found[way] |= {f"{name}_interval": each for name, each in zip(columns, intervals, strict=True)}
    return found

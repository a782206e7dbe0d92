"""The numbers of a contrastive model on captioned images: symmetric InfoNCE over batches, zero-shot accuracy.

All in float64. Shapes: n images, C captions, each of them another text, B images of a batch, e the length of an
embedding.
"""

from dataclasses import dataclass
from math import log, nan, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Embeddings = NDArray[np.floating[Any]]
"""Of images: as a tower gives them, computed with in float64."""
Ints = NDArray[np.int64]

MAX_BATCH = 1000
POST_BATCH = 1024


@dataclass(frozen=True, kw_only=True)
class ContrastiveNumbers:
    """What a set of image embeddings scores.

    Parameters
    ----------
    loss
        Mean over batches of the symmetric InfoNCE, in nats.
    loss_standard_error
        Of that mean, from the deviation between batches; NaN of a single batch.
    top1, top5
        Share of the images whose own caption is the nearest, or among the five nearest, of all.
    """

    loss: float
    loss_standard_error: float
    top1: float
    top5: float


def score_embeddings(
    images: Embeddings, captions: Floats, own: Ints, batches: Ints, logit_scale: float
) -> ContrastiveNumbers:
    """Every number of some image embeddings.

    Parameters
    ----------
    images
        `(n, e)`, of norm 1.
    captions
        `(C, e)`, of norm 1.
    own
        `(n,)`: each image's caption.
    batches
        `(m, B)`: the images of each batch.
    logit_scale
        The model's.
    """
    losses = np.array([info_nce(images[batch], captions[own[batch]], logit_scale) for batch in batches])
    error = float(losses.std(ddof=1) / sqrt(len(losses))) if len(losses) > 1 else nan
    top1, top5 = zero_shot_accuracy(images, captions, own, (1, 5))
    return ContrastiveNumbers(loss=float(losses.mean()), loss_standard_error=error, top1=top1, top5=top5)


def info_nce(images: Embeddings, captions: Floats, logit_scale: float) -> float:
    """Symmetric InfoNCE of a batch, in nats: the mean of the cross-entropies by rows and by columns (Radford 2021).

    Parameters
    ----------
    images, captions
        `(B, e)`, of norm 1; caption i is that of image i.
    """
    return float(image_losses(images, captions, logit_scale).mean())


def image_losses(images: Embeddings, captions: Floats, logit_scale: float) -> Floats:
    """What each image of a batch adds to its InfoNCE, `(B,)`: the mean of its own row's and its caption's column's."""
    logits = logit_scale * (images.astype(np.float64) @ captions.T)  # (B, B)
    own = np.diagonal(logits)
    losses: Floats = ((log_sum_exp(logits) - own) + (log_sum_exp(logits.T) - own)) / 2
    return losses


def log_sum_exp(rows: Floats) -> Floats:
    """Log of the sum of exponentials along each row."""
    largest = rows.max(axis=1, keepdims=True)
    result: Floats = largest[:, 0] + np.log(np.exp(rows - largest).sum(axis=1))
    return result


def zero_shot_accuracy(images: Embeddings, captions: Floats, own: Ints, ks: tuple[int, ...]) -> tuple[float, ...]:
    """Share of the images whose own caption is among the k nearest, for each k.

    Of captions that are equally near any order is as likely: an image counts as much as it would on average. Embeddings
    that are all alike thus score what guessing does.
    """
    counts = np.zeros(len(ks))
    for start in range(0, len(images), 4096):
        rows = slice(start, start + 4096)
        cosines = images[rows].astype(np.float64) @ captions.T  # (rows, C)
        mine = np.take_along_axis(cosines, own[rows, None], axis=1)
        nearer, as_near = (cosines > mine).sum(axis=1), (cosines == mine).sum(axis=1)
        counts += [np.clip((k - nearer) / as_near, 0, 1).sum() for k in ks]
    return tuple(float(count) / len(images) for count in counts)


def loss_recovered(ablated: float, original: float, spliced: float) -> float:
    """(L_ablated - L_spliced) / (L_ablated - L_original): 1 of a perfect SAE, 0 of one no better than the ablation.

    NaN where the ablation does not change the loss.
    """
    gap = ablated - original
    return (ablated - spliced) / gap if gap else nan


def caption_batches(own: Ints, batch_size: int, seed: int) -> Ints:
    """As many batches of B images as there can be, no caption twice in one and no image in two; `(m, B)`.

    B is `batch_size`, or the number of captions that the images have where that is less. Which images are left over is
    drawn.
    """
    assert len(own)
    draw = np.random.default_rng(seed)
    count = np.bincount(own)
    b = min(batch_size, int((count > 0).sum()))
    # With m batches a caption serves m times at most. The images that can serve grow ever more slowly with m, so that
    # the m for which they suffice are those up to the largest.
    m = 0
    while np.minimum(count, m + 1).sum() >= (m + 1) * b:
        m += 1
    by_caption = _shuffled_by_caption(own, draw)
    serves = by_caption[_rank_in_caption(own[by_caption]) < m]
    kept = np.sort(draw.permutation(len(serves))[: m * b])
    # A caption's images are at most m, one after the other: dealt to the batches in turn, no two meet.
    return np.ascontiguousarray(serves[kept].reshape(b, m).T)


def repeated_batches(n_images: int, batch_size: int, seed: int) -> Ints:
    """Whole batches of images drawn without regard to their captions, as the post's; `(m, B)`.

    Captions that meet in a batch put a floor under its loss. One smaller batch where there are fewer images.
    """
    b = min(batch_size, n_images)
    order = np.random.default_rng(seed).permutation(n_images)
    return order[: n_images // b * b].reshape(-1, b)


def balanced_sample(own: Ints, n: int, seed: int) -> Ints:
    """At most n images, drawn so that every caption has as many as another, or all it has; ascending."""
    order = _shuffled_by_caption(own, np.random.default_rng(seed))
    turn = _rank_in_caption(own[order])
    return np.sort(order[np.argsort(turn, kind="stable")[:n]])


def _shuffled_by_caption(own: Ints, draw: np.random.Generator) -> Ints:
    """Images caption after caption, the captions and the images of each in a drawn order."""
    order = draw.permutation(len(own))
    place = draw.permutation(int(own.max(initial=-1)) + 1)
    return order[np.argsort(place[own[order]], kind="stable")]


def _rank_in_caption(grouped: Ints) -> Ints:
    """0, 1, 2, ... along each run of equal numbers."""
    starts = np.flatnonzero(np.diff(grouped, prepend=-1))
    return np.arange(len(grouped)) - np.repeat(starts, np.diff(starts, append=len(grouped)))


def format_floor(batch_size: int) -> str:
    """The loss of guessing, said beside a loss."""
    return f"ln {batch_size} = {log(batch_size):.3f}"

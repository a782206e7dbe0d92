"""What a contrastive loss is made of, and what it would be at another logit scale.

Where captions repeat in a batch, a model is asked for what nobody can tell: which of two equal captions is an image's.
With m_i images of image i's caption in the batch, s the logits, and both cross-entropies of the symmetric loss halved,
its mean over the batch is, exactly, the sum of four parts:

    floor       ln m_i: what the repetition alone costs, of any model
    captions    log sum over the captions - log sum over those equal to the own one: image i among the captions
    images      log sum over the images - log sum over those with the same caption: a caption among the images
    spread      log sum over the images with the caption - ln m_i - own logit: how unevenly near to their caption the
                images of one caption are. Its mean is never below 0, and 0 where they are equally near

Without repetition floor and spread are 0. All in float64. Shapes: B images of a batch, C captions.
"""

from math import exp, log, sqrt

import numpy as np

from .contrastive import Embeddings, Floats, Ints, info_nce, log_sum_exp

PARTS = ("floor", "captions", "images", "spread")
_SCALES = (0.01, 10.0)  # of the model's own
_GOLDEN = (sqrt(5) - 1) / 2
_TOLERANCE = 1e-3  # of ln scale: the loss is flat there


def loss_parts(images: Embeddings, captions: Floats, own: Ints, logit_scale: float) -> Floats:
    """The parts of each image of a batch, `(B, 4)` in the order of `PARTS`; their sums over a row are its loss.

    Parameters
    ----------
    images
        `(B, e)`, of norm 1.
    captions
        `(C, e)`, of norm 1.
    own
        `(B,)`: each image's caption.
    """
    logits = logit_scale * (images.astype(np.float64) @ captions[own].T)  # (B, B)
    same = own[:, None] == own
    among_same = log_sum_exp(np.where(same, logits.T, -np.inf))  # of a caption, over its images
    log_m = np.log(same.sum(axis=1))
    diagonal = np.diagonal(logits)
    return np.column_stack(
        [
            log_m,
            (log_sum_exp(logits) - (diagonal + log_m)) / 2,
            (log_sum_exp(logits.T) - among_same) / 2,
            (among_same - log_m - diagonal) / 2,
        ]
    )


def best_scale(
    images: Embeddings, captions: Floats, own: Ints, batches: Ints, logit_scale: float
) -> tuple[float, float]:
    """The logit scale at which the mean loss of some batches is least, and that loss.

    The loss is convex in the scale (a log-sum-exp less a linear function), so that a golden-section search finds the
    only minimum. Between a hundredth and ten times the model's own.
    """

    def loss(log_scale: float) -> float:
        scale = exp(log_scale)
        return float(np.mean([info_nce(images[batch], captions[own[batch]], scale) for batch in batches]))

    low, high = (log(factor * logit_scale) for factor in _SCALES)
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = loss(left), loss(right)
    while high - low > _TOLERANCE:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = loss(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = loss(right)
    return exp((low + high) / 2), min(at_left, at_right)

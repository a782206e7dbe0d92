"""Zero-shot predictions of image embeddings: right or wrong image by image, and how far two models' differ.

All in float64. Shapes: n images, C classes, e the length of an embedding.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .contrastive import Embeddings, Floats, Ints, log_sum_exp

_IMAGES_AT_ONCE = 4096


@dataclass(frozen=True)
class ZeroShot:
    """What a model predicts of each image.

    Parameters
    ----------
    top1, top5
        `(n,)`: whether its own class is the nearest, or among the five nearest; between 0 and 1 where classes are
        equally near, of which any order is as likely.
    kl
        `(n,)`, nats: KL(original || this model) of the softmax over the classes, at the model's logit scale.
    agrees
        `(n,)`: 1.0 where the nearest class is the original's, else 0.0.
    """

    top1: Floats
    top5: Floats
    kl: Floats
    agrees: Floats


def zero_shot(images: Embeddings, original: Embeddings, classes: Floats, own: Ints, logit_scale: float) -> ZeroShot:
    """Predictions of some embeddings beside those of the original model.

    Parameters
    ----------
    images, original
        `(n, e)`, of norm 1.
    classes
        `(C, e)`, of norm 1.
    own
        `(n,)`: each image's class.
    """
    parts = list(_parts(images, original, classes, own, logit_scale))
    return ZeroShot(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _parts(
    images: Embeddings, original: Embeddings, classes: Floats, own: Ints, logit_scale: float
) -> Iterator[tuple[Floats, ...]]:
    for start in range(0, len(images), _IMAGES_AT_ONCE):
        rows = slice(start, start + _IMAGES_AT_ONCE)
        cosines = images[rows].astype(np.float64) @ classes.T  # (rows, C)
        theirs = original[rows].astype(np.float64) @ classes.T
        mine = np.take_along_axis(cosines, own[rows, None], axis=1)
        nearer, as_near = (cosines > mine).sum(axis=1), (cosines == mine).sum(axis=1)
        log_p, log_q = (logit_scale * c - log_sum_exp(logit_scale * c)[:, None] for c in (theirs, cosines))
        yield (
            *(np.clip((k - nearer) / as_near, 0, 1) for k in (1, 5)),
            (np.exp(log_p) * (log_p - log_q)).sum(axis=1),
            (cosines.argmax(axis=1) == theirs.argmax(axis=1)).astype(np.float64),
        )

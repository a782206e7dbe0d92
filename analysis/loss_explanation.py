"""Why an SAE in its place raises or lowers a contrastive loss: the same comparison under each suspected cause.

The post's spliced model had a lower loss (1.775) than the original (1.895). Its batches of 1024 repeated captions, its
images were those that the SAE was trained on, and nothing was compared with the loss. For each set of images (held
out, trained on) and each protocol (captions once, captions repeated) this gives the loss of the original, of the SAE,
of the SAE with its error added back and of an error of the same size in a random direction; the parts of the loss
(`loss_parts.py`), which say what repeated captions contribute; and both losses at their best logit scale, which says
whether the difference is one of calibration.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .bootstrap import MIN_UNITS, interval, resampled_sums
from .contrastive import Embeddings, Floats, Ints
from .evaluation_numbers import contrastive_numbers, losses_of_images
from .fidelity import contrastive_batches
from .loss_parts import PARTS, best_scale, loss_parts

_BATCHES_TO_SCALE = 16  # the search looks at each some twenty times


def explained(
    what: str,
    embedded: Mapping[str, Embeddings],
    captions: Floats,
    own: Ints,
    logit_scale: float,
    *,
    batch_size: int | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """A record for each protocol, of one set of images.

    Parameters
    ----------
    what
        Which images they are.
    embedded
        `(n, e)` by way: `original`, `sae` and any others.
    batch_size
        Of the batches whose captions differ; the others are the post's.
    """
    records = []
    for repeats in (False, True):
        batches = contrastive_batches(own, None if repeats else batch_size, repeat_captions=repeats, seed=seed)
        losses = losses_of_images(embedded, captions, own, batches, logit_scale)
        scaled = {
            way: best_scale(embedded[way], captions, own, batches[:_BATCHES_TO_SCALE], logit_scale)
            for way in ("original", "sae")
        }
        records.append(
            {
                "images": what,
                "n_images": len(own),
                "repeats_captions": repeats,
                **contrastive_numbers(losses, own, batches, seed),
                "parts": _parts(embedded, captions, own, batches, logit_scale, seed),
                "best_scale": {
                    "n_batches": min(len(batches), _BATCHES_TO_SCALE),
                    **{way: {"logit_scale": scale, "loss": loss} for way, (scale, loss) in scaled.items()},
                    "difference": scaled["sae"][1] - scaled["original"][1],
                },
            }
        )
    return records


def _parts(
    embedded: Mapping[str, Embeddings], captions: Floats, own: Ints, batches: Ints, logit_scale: float, seed: int
) -> dict[str, Any]:
    """Each part of the original's loss, of the SAE's, and the difference with its interval over images."""
    original, sae = (
        np.concatenate([loss_parts(embedded[way][b], captions, own[b], logit_scale) for b in batches])
        for way in ("original", "sae")
    )  # (m B, 4)
    change = sae - original
    drawn = resampled_sums(change, seed=seed) / len(change)
    return {
        part: {
            "original": float(original[:, i].mean()),
            "sae": float(sae[:, i].mean()),
            "difference": float(change[:, i].mean()),
            "difference_interval_images": interval(drawn[:, i]) if len(change) >= MIN_UNITS else None,
        }
        for i, part in enumerate(PARTS)
    }

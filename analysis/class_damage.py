"""What an SAE in its place costs each class: zero-shot accuracy before and after, worst first."""

from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np

from ..store.files import write_atomically
from .contrastive import Floats, Ints

_NORMAL_95 = 1.959963984540054
COLUMNS = ("class", "n", "top1_original", "top1_sae", "difference", "low", "high", "mean_kl", "agreement")


def class_damage(
    names: list[str], own: Ints, original: Floats, sae: Floats, kl: Floats, agrees: Floats
) -> list[dict[str, Any]]:
    """A record for each class that has images, by falling damage, of equals the more certain first.

    Parameters
    ----------
    names
        `(C,)`.
    own
        `(n,)`: each image's class.
    original, sae
        `(n,)`: whether the original and the spliced model are right.
    kl, agrees
        `(n,)`: of their predictions; see `zero_shot.ZeroShot`.
    """
    n = np.bincount(own, minlength=len(names))
    change = sae - original
    gained, lost, *sums = (
        np.bincount(own, values, minlength=len(names))
        for values in (np.maximum(change, 0), np.maximum(-change, 0), original, sae, kl, agrees)
    )
    records = []
    for c in np.flatnonzero(n).tolist():
        count = int(n[c])
        before, after, divergence, agreement = (float(total[c]) / count for total in sums)
        low, high = paired_interval(float(gained[c]), float(lost[c]), count)
        values = (names[c], count, before, after, after - before, low, high, divergence, agreement)
        records.append(dict(zip(COLUMNS, values, strict=True)))
    return sorted(records, key=lambda r: (r["difference"], r["high"], r["class"]))


def paired_interval(gained: float, lost: float, n: int) -> tuple[float, float]:
    """95 % interval of the difference of two shares of the same n images.

    Wald's with half an image added to each cell of the 2 x 2 table (Agresti and Min 2005), which holds its level on a
    few images and has a width where no image changed.

    Parameters
    ----------
    gained, lost
        Images right after and not before, and the reverse.
    """
    total, b, c = n + 2, gained + 0.5, lost + 0.5
    difference = (b - c) / total
    width = _NORMAL_95 * sqrt(max(0.0, b + c - (b - c) ** 2 / total)) / total
    return max(-1.0, difference - width), min(1.0, difference + width)


def write_classes(path: Path, records: list[dict[str, Any]]) -> None:
    """Write the records as tab-separated values."""
    lines = ["\t".join(COLUMNS)]
    for record in records:
        values = [record[name] for name in COLUMNS]
        lines.append("\t".join(_cell(value) for value in values))
    write_atomically(path, ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape"))


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return " ".join(str(value).split())

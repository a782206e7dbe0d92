"""Where in an image a feature fires, of stores that hold every patch.

Shapes: T stored tokens an image, S patches on a side.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....store.format import first_token
from ..page import Query, Unavailable
from ..runs import ExploredRun

_N_IMAGES = 16
_ENTRIES_AT_ONCE = 1 << 21  # 24 MB of a feature's rows and values: of more, the rows of each window are looked for


def has_patches(run: ExploredRun) -> bool:
    """Whether heat maps can be made: every patch of an image is stored and encoded."""
    return _side(run) is not None


def _side(run: ExploredRun) -> int | None:
    """Patches on a side of the image; None where they are not stored, or are no square."""
    if run.features is None or run.store is None or run.site is None or run.site.token not in ("patch", "all"):
        return None
    n = run.store.tokens_per_image - (1 - first_token(run.site.token))
    side = math.isqrt(max(n, 0))
    return side if side > 1 and side * side == n else None


def heat_answer(run: ExploredRun, query: Query) -> dict[str, Any]:
    """Activations of a feature on all patches of the images on which it is largest.

    Of each image: `rows`, those of the feature's top rows that are its tokens; `at`, their patches (-1 for the class
    token); `values`, S rows of S patches from the top left, end to end.
    """
    feature = run.require_feature(query.path["feature"])
    side = _side(run)
    if side is None:
        raise Unavailable(f"{run.name} was not trained on single patches of images, so there are no heat maps.")
    store, site = run.require_store(), run.site
    assert site is not None
    skipped = 1 - first_token(site.token)  # the class token, where it is stored
    images: dict[tuple[int, int], dict[str, Any]] = {}
    edges = np.cumsum([0, *(part.n_rows for part in store.parts)])
    for row in run.stored.statistics.top_row[feature, :_N_IMAGES].tolist():
        if row < 0:
            break
        number = int(np.searchsorted(edges, row, side="right")) - 1
        order, local = store.parts[number].order, np.array([row - edges[number]])
        image, token = int(order.images(local)[0]), int(order.tokens(local)[0])
        if (number, image) not in images:
            rows = order.rows(np.array([image]))[0][skipped:] + edges[number]
            images[number, image] = {"rows": [], "at": [], "values": _activations(run, feature, rows).tolist()}
        images[number, image]["rows"].append(row)
        images[number, image]["at"].append(token - skipped)
    return {
        "feature": feature,
        "side": side,
        "crop": _crop(store.provenance.preprocessing),
        "images": [*images.values()],
    }


def _crop(preprocessing: dict[str, Any]) -> str:
    """Which part of a picture the patches cover: its `middle` square, or the `whole` of it, pressed or padded."""
    modes = {"shortest": "middle", "squash": "whole", "longest": "padded"}
    return modes.get(str(preprocessing.get("resize_mode", "shortest")), "middle")


def _activations(run: ExploredRun, feature: int, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """`(len(rows),)`: a feature's activations on rows of one window, 0 where it does not fire."""
    firing, value = _entries(run, feature, int(rows.min()), int(rows.max()))
    found = np.zeros(len(rows))
    if len(firing):
        place = np.minimum(np.searchsorted(firing, rows), len(firing) - 1)
        found = np.where(firing[place] == rows, value[place].astype(np.float64), 0.0)
    return found


def _entries(run: ExploredRun, feature: int, low: int, high: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The rows from `low` to `high` on which a feature fires, ascending, and its values there; more at both ends."""
    features = run.require_features()
    first, stop = (int(edge) for edge in features._read("by_feature/indptr", feature, feature + 2))

    def start_of(row: int) -> int:
        """The first entry at or after a row, by halves; a few thousand entries more or less do not matter."""
        left, right = first, stop
        while right - left > _ENTRIES_AT_ONCE // 2:
            middle = (left + right) // 2
            if int(features._read("by_feature/row", middle, middle + 1)[0]) < row:
                left = middle
            else:
                right = middle
        return left

    if stop - first > _ENTRIES_AT_ONCE:
        first, stop = start_of(low), min(stop, start_of(high + 1) + _ENTRIES_AT_ONCE // 2)
    return features._read("by_feature/row", first, stop).astype(np.int64), features._read(
        "by_feature/value", first, stop
    )

"""The atlas: a map of the features' decoder directions, and which of them a phrase is about."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import phrases
from ..atlas_map import atlas_of
from ..page import Answer, Chapter, Chosen, Endpoint, Page, Query, Unavailable
from ..runs import ExploredRun

MOST_FOUND = 200


@dataclass(frozen=True)
class Atlas:
    """What the page says; the map itself is `atlas.bin`."""

    n_shown: int
    n_dead: int
    n_uld: int
    is_ready: bool
    has_thumbnails: bool
    k: int
    """Rows that a mean top activation is over."""
    sensitive: list[int]
    """Features whose pictures are blurred, of those on the map."""
    longest_phrase: int
    has_names: bool


def view(run: ExploredRun, query: Query) -> Atlas:
    """The atlas of a run; the first visit has it made."""
    atlas = atlas_of(run)
    atlas.start()
    sensitive = np.intersect1d(np.array(sorted(run.annotations.sensitive), np.int64), run.shown)
    return Atlas(
        n_shown=len(run.shown),
        n_dead=int(run.is_dead.sum()),
        n_uld=int((run.is_uld & ~run.is_dead).sum()),
        is_ready=atlas.is_ready,
        has_thumbnails=run.has_thumbnails,
        k=run.stored.statistics.k,
        sensitive=sensitive.tolist(),
        longest_phrase=phrases.LONGEST_PHRASE,
        has_names=run.names.are_any,
    )


def progress(run: ExploredRun, query: Query) -> dict[str, Any]:
    """How far the map is made: `is_ready`, and `share` of the work."""
    atlas = atlas_of(run)
    atlas.start()
    if not atlas.is_ready:
        try:
            atlas.positions()
        except Unavailable as error:
            return {"is_ready": False, "share": atlas.share, "message": str(error)}
    return {"is_ready": True, "share": 1.0, "message": ""}


def points(run: ExploredRun, query: Query) -> Answer:
    """The shown features on the map, ascending, as little-endian columns of 4 bytes an entry.

    Their ids (int32), x and y from -1 to 1, densities, label entropies in nats (NaN undefined), mean top activations
    (float32), and the row on which each is largest (int32).
    """
    positions, shown, of = atlas_of(run).positions(), run.shown, run.stored.statistics
    columns: tuple[NDArray[Any], ...] = (
        shown.astype("<i4"),
        positions[:, 0].astype("<f4"),
        positions[:, 1].astype("<f4"),
        run.density[shown].astype("<f4"),
        of.label_entropy[shown].astype("<f4"),
        of.mean_top[shown].astype("<f4"),
        of.top_row[shown, 0].astype("<i4"),
    )
    rows = [row for row in of.top_row[shown, 0].tolist() if row >= 0] if run.has_thumbnails else []
    return Answer(b"".join(column.tobytes() for column in columns), "application/octet-stream", rows=rows)


def names(run: ExploredRun, query: Query) -> dict[str, Any]:
    """What features are called, by number."""
    return {"names": run.names.columns(run.annotations.features).names}


def phrase(run: ExploredRun, query: Query) -> dict[str, Any]:
    """The shown features that a phrase `q` describes best, `n` of them, with their scores: cosines after centring."""
    n = query.integer("n", 20, 1, MOST_FOUND)
    text = phrases.clean_phrase(query.values.get("q", ""))
    ids, scores = phrases.rank(run, text)
    called = run.names.now()
    found = [
        {
            "feature": feature,
            "score": round(score, 4),
            "name": called.of(feature),
            "row": int(run.stored.statistics.top_row[feature, 0]),
            "is_sensitive": run.annotations.is_sensitive(feature),
        }
        for feature, score in zip(ids[:n].tolist(), scores[:n].tolist(), strict=True)
    ]
    return {"phrase": text, "is_exact": phrases.phrase_space(run).is_exact, "features": found}


def phrase_scores(run: ExploredRun, query: Query) -> Answer:
    """Scores of all shown features for a phrase `q`, ascending by feature, as little-endian float32."""
    found = phrases.scores(run, query.values.get("q", ""))
    return Answer(found.astype("<f4").tobytes(), "application/octet-stream")


def _made(run: ExploredRun, chosen: Chosen) -> Iterable[Query]:
    atlas_of(run).wait()
    return (Query(),)


def _once(run: ExploredRun, chosen: Chosen) -> Iterable[Query]:
    return (Query(),) if run.names.are_any else ()


CHAPTER = Chapter(
    pages=(Page("atlas", "/atlas", view),),
    endpoints=(
        Endpoint("/atlas-progress.json", progress),
        Endpoint("/atlas.bin", points, exports=_made),
        Endpoint("/names.json", names, is_slow=True, exports=_once),
        Endpoint("/phrase.json", phrase, is_slow=True),
        Endpoint("/phrase.bin", phrase_scores, is_slow=True),
    ),
)

"""The agreement of pictures, top images and names, written into `stats.zarr`.

`visualise` and `name` each write it when they are done, of the pictures and names that there are then: without a name
or a picture the percentiles that need it are NaN. Statistics that are computed again lack it, since their top images
may be others; `visualise` given as before, which finds its pictures made, writes it anew.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ...harvest.vision import LoadedClip
from ...progress import Reporter
from ...store.errors import StoreError
from ...store.files import write_atomically
from ..columns import write_array
from ..naming.names_file import read_names
from ..naming.pictures import RowPictures
from ..naming.text_space import load_text_space
from ..naming.vocabulary import Vocabulary
from ..stored_statistics import STATS_ZARR, open_statistics
from ..whole_file import read_whole
from .agreement import ARRAYS, MOST_OTHERS, Agreement, agreement
from .image_space import ImageSpace
from .visualisations_file import FOLDER

EMBEDDINGS = "embeddings.safetensors"
"""In `RUN/visualisations`: `feature` `(n,)` and `embedding` `(n, e)`, the mean unit embedding of its pictures."""

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class AgreementResult:
    """What was written."""

    n_features: int
    """With all three witnesses."""
    n_pictures: int
    n_names: int
    median: float
    """Agreement of those; NaN where there are none."""

    def line(self) -> str:
        """One line for a terminal."""
        if not self.n_features:
            return (
                f"agreement of picture, top images and name: no feature has all three ({self.n_pictures:,} have a "
                f"picture, {self.n_names:,} a name)"
            )
        return (
            f"agreement of picture, top images and name: median percentile {self.median:.3g} over "
            f"{self.n_features:,} features that have all three (chance 50)"
        )


def write_embeddings(run_path: Path, features: NDArray[np.int64], embeddings: Floats) -> None:
    """Keep pictures' embeddings `(n, e)` for later agreements."""
    data = save({"feature": features.astype(np.int64), "embedding": np.ascontiguousarray(embeddings, np.float32)})
    write_atomically(run_path / FOLDER / EMBEDDINGS, data)


def write_agreement(
    run_path: Path, clip: LoadedClip, pictures: RowPictures, *, reporter: Reporter | None = None
) -> AgreementResult | None:
    """Compute the agreement of every feature and write it into the run's statistics; the caller holds the run's lock.

    Names and pictures stand without it: where it cannot be computed, for want of statistics, of the run's images or of
    a text tower, the reporter warns.

    Parameters
    ----------
    clip
        The run's model, for the words.
    pictures
        Its images, with the tower in the precision that pictures were embedded in.

    Returns
    -------
    result
        None where there is neither a picture nor a name, or a warning was given.
    """
    reporter = reporter or Reporter()
    try:
        return _computed(run_path, clip, pictures, reporter)
    except (StoreError, ValueError, OSError) as error:
        reporter.warn(f"the agreement of pictures, top images and names is not computed: {error}")
        return None


def _computed(run_path: Path, clip: LoadedClip, pictures: RowPictures, reporter: Reporter) -> AgreementResult | None:
    stored = open_statistics(run_path)
    _forget(run_path)  # what there is may be of other names and pictures
    d_sae, space = stored.statistics.d_sae, ImageSpace(pictures, stored.statistics.top_row)
    e = len(space.mean)
    of_pictures, of_images, of_names = (np.full((d_sae, e), np.nan, np.float32) for _ in range(3))
    drawn, embeddings = _read_embeddings(run_path, d_sae, e)
    of_pictures[drawn] = embeddings - space.mean
    named = {feature: each.name for feature, each in read_names(run_path, d_sae)[0].items()}
    if not len(drawn) and not named:
        return None
    if named:
        phrases = tuple(sorted(set(named.values())))
        texts = load_text_space(
            run_path, clip, Vocabulary(phrases, ()), device=pictures.tower.device, reporter=reporter
        )
        place = {phrase: number for number, phrase in enumerate(phrases)}
        of_names[list(named)] = texts.unit(np.array([place[phrase] for phrase in named.values()]))
    # top images of as many others as are compared, and of every feature that has another witness
    alive = np.flatnonzero(stored.statistics.is_alive)
    others = np.random.default_rng(0).permutation(alive)[: MOST_OTHERS + 1]
    wanted = np.union1d(np.union1d(others, drawn), np.array(list(named), np.int64))
    of_images[wanted] = space.top_images(wanted)
    found = agreement(of_pictures, of_images, of_names)
    _write(run_path, found)
    both = found.agreement[np.isfinite(found.agreement)]
    return AgreementResult(
        n_features=len(both),
        n_pictures=len(drawn),
        n_names=len(named),
        median=float(np.median(both)) if len(both) else float("nan"),
    )


def _read_embeddings(run_path: Path, d_sae: int, e: int) -> tuple[NDArray[np.int64], Floats]:
    """Features with pictures and the embeddings of those; none where the file is not there or not of this run."""
    none = np.empty(0, np.int64), np.empty((0, e), np.float32)
    try:
        found = load(read_whole(run_path / FOLDER / EMBEDDINGS, 1 << 32))
        feature, embedding = found["feature"], found["embedding"]
    except (OSError, SafetensorError, KeyError):
        return none
    is_of = feature.ndim == 1 and feature.dtype == np.int64 and embedding.dtype == np.float32
    if not is_of or embedding.shape != (len(feature), e) or not np.isfinite(embedding).all():
        return none
    if len(feature) and not 0 <= feature.min() <= feature.max() < d_sae:
        return none
    return feature, embedding


def _forget(run_path: Path) -> None:
    """Remove the arrays; `agreement` goes first and comes last, so that where it is the others are its own."""
    import zarr

    group: Any = zarr.open_group(str(run_path / STATS_ZARR), mode="r+")
    for name in reversed(ARRAYS):
        if name in group:
            del group[name]


def _write(run_path: Path, found: Agreement) -> None:
    import zarr

    group: Any = zarr.open_group(str(run_path / STATS_ZARR), mode="r+")
    for name in ARRAYS:
        write_array(group, name, getattr(found, name))

"""What naming a run's features works with: its SAE, tower, store, images and split, opened and held to each other.

Shapes: n features, P rows of the pool, e the length of an embedding, d the width of the tower's stream.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...harvest.recorded import Source
from ...harvest.rewrite import load_recorded_clip, recorded_tower
from ...harvest.vision import LoadedClip, Tower
from ...progress import Reporter
from ...store.errors import StoreError
from ...store.format import Site
from ...store.reader import ActivationStore, open_store
from ...train.models import SparseAutoencoder
from ...train.run_dir import Run, open_run
from ..features import FeatureActivations, open_features, refuse_other_weights
from .directions import mean_stream
from .effects import needs_images
from .options import NameOptions
from .pictures import RowPictures
from .scores import equal_controls
from .split import FeatureRows, NamingSplit, feature_rows, split_rows

POOL_ROWS = 2048
"""Random rows of each side: images on which features do not fire are drawn of them, and the mean embedding."""
_MEAN_ROWS = 1024
_ROWS_AT_ONCE = 1 << 20

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class NamingSetting:
    """A run, ready to have its features named.

    Parameters
    ----------
    site, target
        Where its SAE reads, and what a transcoder reconstructs; None of an SAE.
    pool
        `(P,)`, ascending: random encoded rows of both sides.
    pool_is_naming
        `(P,)`.
    """

    run: Run
    options: NameOptions
    features: FeatureActivations
    store: ActivationStore
    clip: LoadedClip
    tower: Tower
    sae: SparseAutoencoder
    site: Site
    target: Site | None
    pictures: RowPictures
    split: NamingSplit
    pool: Ints
    pool_is_naming: NDArray[np.bool_]

    @cached_property
    def pool_embeddings(self) -> Floats:
        """`(P, e)`, unit; NaN where an image cannot be read."""
        return self.pictures.embeddings(self.pool)

    @cached_property
    def mean_embedding(self) -> Floats:
        """`(e,)`: mean over the pool's rows of the naming side."""
        found: Floats = np.nanmean(self.pool_embeddings[self.pool_is_naming], axis=0, dtype=np.float64)
        return found.astype(np.float32)

    @cached_property
    def mean_stream(self) -> Floats:
        """`(d,)`: mean of the tower's stream where the features write."""
        written = self.target or self.site
        if written.site in ("resid_pre", "resid_post"):
            sections = self.features.sections
            mean: Floats = sections["x_sum"].sum(axis=0) / sections["n"].sum()
            return mean.astype(np.float32)
        return mean_stream(self.tower, written, self.pictures, self.pool[self.pool_is_naming][:_MEAN_ROWS])

    @cached_property
    def controls(self) -> tuple[Ints, NDArray[np.float64]]:
        """For each feature another random one that fires, and how much longer its own vector is; `(F,)` each."""
        alive = np.flatnonzero(np.diff(self.features.feature_starts()))
        norms = self.sae.W_dec.detach().float().norm(dim=1).cpu().numpy()
        others, factors = np.arange(self.sae.d_sae), np.zeros(self.sae.d_sae)
        others[alive], factors[alive] = equal_controls(alive, norms, np.random.default_rng([self.options.seed, 13]))
        return others, factors

    def rows_of(self, feature: int) -> FeatureRows:
        """The rows that name a feature and those that score it."""
        o = self.options
        return feature_rows(
            self.features, feature, self.split, self.pool, naming=o.naming_rows, scoring=o.scoring_rows, seed=o.seed
        )


@contextmanager
def open_setting(
    run_path: Path,
    options: NameOptions,
    *,
    images: Source | None = None,
    groups: NDArray[np.integer] | None = None,
    reporter: Reporter | None = None,
) -> Iterator[NamingSetting]:
    """Open a run to have its features named.

    Parameters
    ----------
    images
        Where they are now, by default what the options say, or where they were harvested from.
    groups
        As of `split_rows`.

    Raises
    ------
    StoreError
        When the run was not encoded, or by another SAE; its store holds other rows than were encoded, or several an
        image; or its tower is not the store's any more.
    ValueError, FileNotFoundError, ConnectionError
        As `load_recorded_clip`.
    """
    run, features = open_run(run_path), open_features(run_path)
    info = features.info
    refuse_other_weights(run_path, features)
    store = open_store(options.store or info.store, n_parts=info.n_store_parts)
    if store.fingerprint != info.store_fingerprint:
        raise StoreError(f"{store.url} holds other rows than were encoded: encode again with --overwrite.")
    if store.tokens_per_image != 1:
        raise StoreError(
            f"{store.url} holds {store.tokens_per_image} rows an image, and names are of images as a whole: name the "
            "features of a run on a store of --token cls or mean."
        )
    provenance = store.provenance
    clip = load_recorded_clip(provenance)
    # in fp32 whatever the store's precision: the effect of a feature is a small difference of embeddings
    tower = recorded_tower(clip, replace(provenance, precision="fp32"), options.device)
    sae = run.load_sae(tower.device)
    site, target = Site.parse(info.site), run.target_site
    stored = None if needs_images(tower, target or site) or target is not None else store.activations(site)
    split = split_rows(store, groups=groups, seed=options.seed)

    def valid(rows: Ints) -> NDArray[np.bool_]:
        found = np.empty(len(rows), bool)
        for start in range(0, store.n_rows, _ROWS_AT_ONCE):
            stop = min(start + _ROWS_AT_ONCE, store.n_rows)
            here = (rows >= start) & (rows < stop)
            if here.any():
                found[here] = features.row_numbers("valid", start, stop)[rows[here] - start]
        return found

    sides = [split.pool(POOL_ROWS, valid, info.n_encoded, naming=side, seed=options.seed) for side in (True, False)]
    pool = np.sort(np.concatenate(sides))
    with RowPictures(
        run_path,
        store,
        tower,
        images if images is not None else options.images,
        stored=stored,
        batch_size=options.batch_size,
        workers=options.workers,
        reporter=reporter,
    ) as pictures:
        yield NamingSetting(
            run, options, features, store, clip, tower, sae, site, target, pictures, split, pool, split.is_naming(pool)
        )

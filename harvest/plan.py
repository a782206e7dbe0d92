"""What a harvest settles before it touches the store: images, sites, row order, provenance."""

from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
import torch
from numpy.typing import NDArray

from ..progress import Reporter
from ..store.format import Site
from ..store.layout import StoreSpec, keys_sha256
from ..store.provenance import Provenance
from ..store.shuffle import random_row_order
from .batches import Batch, RowDecoder
from .decode import THUMBNAIL_PX
from .images import ImageSet
from .options import HarvestOptions
from .sites import capture, relative_errors, resolve_sites
from .vision import Tower

_AUTO_THUMBNAILS = 2_000_000  # images up to which `--thumbnails auto` stores them: 8 GB at 4 kB each
_PACKAGES = ("thresher", "torch", "torchvision", "open_clip_torch", "pillow", "numpy", "zarr")


@dataclass(frozen=True)
class Job:
    """All that is settled before the store is touched."""

    images: ImageSet
    tower: Tower
    sites: tuple[Site, ...]
    spec: StoreSpec
    row_image: NDArray[np.uint32]
    decoder: RowDecoder

    @property
    def n_batches(self) -> int:
        """Batches of the whole store; none straddles two chunks."""
        full, rest = divmod(self.spec.n_rows, self.spec.rows_per_chunk)
        size = self.spec.provenance.batch_size
        return full * -(-self.spec.rows_per_chunk // size) + -(-rest // size)

    def key(self, row: int) -> str:
        """The key of a row's image, as text."""
        return self.images.keys[int(self.row_image[row])].decode("utf-8", "backslashreplace")


def select_images(images: ImageSet, options: HarvestOptions) -> ImageSet:
    """The images that `--limit` leaves: a seeded sample in source order, or the first ones with `--order source`."""
    if options.limit is None or options.limit >= images.n_images:
        return images
    if options.order == "source":
        return images.take(np.arange(options.limit))
    return images.take(np.sort(random_row_order(images.n_images, options.seed)[: options.limit]))


def prepare(options: HarvestOptions, images: ImageSet, tower: Tower, reporter: Reporter) -> Job:
    """Settle sites, row order and provenance; measure the precision's error on the first batch."""
    sites = resolve_sites(tower, options.layer, options.site, options.token)
    n = images.n_images
    row_image = random_row_order(n, options.seed) if options.order == "random" else np.arange(n, dtype=np.uint32)
    wants_thumbnails = options.thumbnails == "on" or (options.thumbnails == "auto" and n <= _AUTO_THUMBNAILS)
    thumbnail_px = THUMBNAIL_PX if wants_thumbnails else None
    decoder = RowDecoder(images, row_image, tower.pixels, tower.preprocessing["size"], thumbnail_px)
    precision_error = None
    exact, tower = tower, tower.at_precision(options.precision)
    if tower is not exact:
        first = decoder[0, min(options.batch_size, options.rows_per_chunk, n)]
        precision_error = _precision_error(exact, tower, sites, first)
        reporter.say(_precision_line(options.precision, precision_error))
    provenance = Provenance(
        model=tower.name,
        pretrained=tower.pretrained,
        weights_sha256=tower.weights_sha256,
        quick_gelu=tower.quick_gelu,
        n_layers=tower.n_layers,
        width=tower.width,
        preprocessing=tower.preprocessing,
        precision=options.precision,
        dtype=options.dtype,
        batch_size=options.batch_size,
        image_source=images.description,
        n_images=n,
        keys_sha256=keys_sha256(images.keys, images.labels),
        row_order=options.order,
        seed=options.seed,
        packages={name: version(name) for name in _PACKAGES},
        precision_error=precision_error,
    )
    spec = StoreSpec(
        provenance=provenance,
        sites=sites,
        d_in=tower.width,
        n_rows=n,
        rows_per_chunk=options.rows_per_chunk,
        dtype=options.dtype,
        codec=options.codec,
        thumbnail_px=thumbnail_px,
        label_names=images.label_names,
    )
    return Job(images, tower, sites, spec, row_image, decoder)


def _precision_error(exact: Tower, tower: Tower, sites: tuple[Site, ...], first: Batch) -> dict[str, float]:
    """Relative L2 error of the rows of the first batch against fp32, over its readable images and every site."""
    pixels = exact.normalise(first.pixels)
    wanted, got = (capture(t, pixels, sites) for t in (exact, tower))
    valid = torch.from_numpy(first.valid)
    errors = torch.cat([relative_errors(got[site], wanted[site])[valid] for site in sites])
    if not len(errors):
        return {"n_rows": 0.0}
    return {"n_rows": float(len(errors)), "max": float(errors.max()), "mean": float(errors.mean())}


def _precision_line(precision: str, error: dict[str, float]) -> str:
    if not error["n_rows"]:
        return f"{precision}: no image of the first batch can be read, so its error against fp32 is not known."
    return (
        f"{precision}: the rows of the first batch differ from fp32 by {error['mean']:.2%} on average, "
        f"{error['max']:.2%} at most (relative L2)."
    )

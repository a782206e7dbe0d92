"""What a harvest settles before it touches the store: images, sites, row order, provenance."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

import torch

from ..progress import Reporter
from ..store.format import Site
from ..store.layout import StoreSpec, keys_sha256
from ..store.objects import is_url
from ..store.provenance import Provenance
from ..store.row_order import RowOrder
from .batches import Batch, ImageDecoder
from .decode import THUMBNAIL_PX
from .images import EMBEDDED_IMAGES, ImageSet
from .options import HarvestOptions
from .sites import capture, relative_errors, resolve_sites, tokens_per_image, vector_width
from .vision import Tower

_AUTO_THUMBNAILS = 2_000_000  # images up to which `--thumbnails auto` stores them: 8 GB at 4 kB each
_PACKAGES = ("thresher", "torch", "torchvision", "open_clip_torch", "pillow", "numpy", "zarr")


@dataclass(frozen=True)
class Job:
    """All that is settled before the store is touched."""

    images: ImageSet
    tower: Tower
    spec: StoreSpec
    order: RowOrder
    decoder: ImageDecoder

    @property
    def sites(self) -> tuple[Site, ...]:
        """What is read of the tower."""
        return tuple(self.spec.sites)

    @property
    def n_batches(self) -> int:
        """Batches of the whole store; none straddles two windows."""
        full, rest = divmod(self.spec.n_images, self.spec.rows_per_chunk)
        size = self.spec.provenance.batch_size
        return full * -(-self.spec.rows_per_chunk // size) + -(-rest // size)

    def key(self, image: int) -> str:
        """The key of an image, as text."""
        return self.images.keys[image].decode("utf-8", "backslashreplace")


def lasting_source(source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[str]:
    """An image source as it can be opened again from any folder: absolute paths, URLs, or the word `quickstart`."""
    parts = [source] if isinstance(source, str | os.PathLike) else source
    names = [os.fspath(part) for part in parts]
    return [name if name == EMBEDDED_IMAGES or is_url(name) else os.path.abspath(name) for name in names]


def prepare(
    options: HarvestOptions, images: ImageSet, source: Sequence[str], tower: Tower, reporter: Reporter, *, measure: bool
) -> Job:
    """Settle sites, row order and provenance.

    Parameters
    ----------
    options
        Of the harvest.
    images
        Those to harvest, after `recorded.select_images`.
    source
        Where they come from, as `lasting_source` gives it; empty where they were opened by the caller.
    tower
        In fp32.
    reporter
        Told of the precision's error.
    measure
        Whether to measure that error, on the first batch.
    """
    sites = resolve_sites(tower, options.layer, options.site, options.token)
    n = images.n_images
    n_tokens = tokens_per_image(tower, options.token)
    order = RowOrder(n, n_tokens, options.rows_per_chunk, options.order, options.seed)
    wants_thumbnails = options.thumbnails == "on" or (options.thumbnails == "auto" and n <= _AUTO_THUMBNAILS)
    thumbnail_px = THUMBNAIL_PX if wants_thumbnails else None
    decoder = make_decoder(images, order, tower, thumbnail_px)
    precision_error = None
    exact, tower = tower, tower.at_precision(options.precision)
    if measure and tower is not exact:
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
        source=list(source),
        limit=options.limit,
        n_images=n,
        keys_sha256=keys_sha256(images.keys, images.labels),
        row_order=options.order,
        seed=options.seed,
        packages=package_versions(),
        precision_error=precision_error,
    )
    spec = StoreSpec(
        provenance=provenance,
        sites={site: vector_width(tower, site) for site in sites},
        n_images=n,
        tokens_per_image=n_tokens,
        rows_per_chunk=options.rows_per_chunk,
        dtype=options.dtype,
        codec=options.codec,
        thumbnail_px=thumbnail_px,
        label_names=images.label_names,
    )
    return Job(images, tower, spec, order, decoder)


def package_versions() -> dict[str, str]:
    """Versions of what computes rows."""
    return {name: version(name) for name in _PACKAGES}


def make_decoder(images: ImageSet, order: RowOrder, tower: Tower, thumbnail_px: int | None) -> ImageDecoder:
    """Decodes images for a tower."""
    return ImageDecoder(images, order, tower.pixels, tower.preprocessing["size"], thumbnail_px)


def _precision_error(exact: Tower, tower: Tower, sites: tuple[Site, ...], first: Batch) -> dict[str, float]:
    """Relative L2 error of the rows of the first batch against fp32, over its readable images and every site."""
    pixels = exact.normalise(first.pixels)
    wanted, got = (capture(t, pixels, sites) for t in (exact, tower))
    valid = torch.from_numpy(first.valid)
    errors = torch.cat([relative_errors(got[site], wanted[site])[valid].flatten() for site in sites])
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

"""What several rooms' tests share: small stores with known rows."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from thresher.store.format import Site
from thresher.store.layout import StoreSpec, keys_sha256
from thresher.store.provenance import Provenance
from thresher.store.row_order import RowOrder
from thresher.store.writer import create_store

# As the command line sets it, and before any test imports torch: threads that spin while they wait make small tests
# ten times slower on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_FSYNC = os.fsync


@dataclass
class MadeStore:
    """A store on disk and what went into it."""

    path: Path
    spec: StoreSpec
    rows: dict[Site, np.ndarray]
    """(n_rows, width) float32 before rounding; what stands on invalid rows is noise that must never be read back."""
    labels: np.ndarray
    """Of the images, in source order."""
    keys: list[bytes]
    row_image: np.ndarray
    """Image of each row."""
    valid: np.ndarray
    """Of the rows."""
    order: RowOrder


@contextmanager
def _unsynced() -> Iterator[None]:
    """Write without waiting for the disk: a made store need not outlive a power cut, and a busy disk takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        if os.fsync is _FSYNC:  # not where a test watches it
            patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture
def make_store(tmp_path: Path) -> Callable[..., MadeStore]:
    """A factory of finished stores; every argument has a default."""

    def make(
        n: int = 300,
        d: int = 8,
        *,
        name: str = "made.zarr",
        place: object = None,
        sites: tuple[Site, ...] = (Site(1),),
        widths: dict[Site, int] | None = None,
        tokens: int = 1,
        dtype: str = "float16",
        codec: str = "none",
        rows_per_chunk: int = 64,
        invalid: tuple[int, ...] = (),
        order: str = "random",
        n_labels: int = 5,
        sorted_labels: bool = False,
        labels: np.ndarray | None = None,
        label_names: list[str] | None = None,
        unlabelled: tuple[int, ...] = (),
        rows: np.ndarray | None = None,
        seed: int = 0,
        thumbnails: bool = True,
        windows: range | None = None,
        key_prefix: str = "",
    ) -> MadeStore:
        """`n` images; `invalid` are places in the row order (rows, where an image has one token)."""
        rng = np.random.default_rng(seed)
        keys = [f"{key_prefix}class {i % n_labels}/picture {i}.jpg".encode() for i in range(n)]
        if labels is None:
            labels = (np.arange(n) * n_labels // n if sorted_labels else np.arange(n) % n_labels).astype(np.int32)
        labels[list(unlabelled)] = -1
        provenance = Provenance(
            model="tiny",
            pretrained="none",
            weights_sha256="0" * 64,
            quick_gelu=False,
            n_layers=3,
            width=d,
            preprocessing={"size": 32},
            precision="fp32",
            dtype=dtype,
            batch_size=16,
            image_source="made up",
            source=[],
            limit=None,
            n_images=n,
            keys_sha256=keys_sha256(keys, labels),
            row_order=order,
            seed=seed,
        )
        spec = StoreSpec(
            provenance=provenance,
            sites=widths or dict.fromkeys(sites, d),
            n_images=n,
            tokens_per_image=tokens,
            rows_per_chunk=rows_per_chunk,
            dtype=dtype,
            codec=codec,
            thumbnail_px=128 if thumbnails else None,
            label_names=label_names or [f"class {i}" for i in range(n_labels)],
        )
        row_order = spec.order()
        values = {
            site: rng.standard_normal((n * tokens, width)).astype(np.float32) if rows is None else rows.astype("f4")
            for site, width in spec.sites.items()
        }
        valid = np.ones(n, bool)
        valid[list(invalid)] = False  # by place
        path = tmp_path / name
        with (
            _unsynced(),
            create_store(place if place is not None else path, spec, keys=keys, labels=labels) as writer,
        ):
            for number in windows if windows is not None else range(writer.n_windows):
                window = writer.window(number)
                start, stop = writer.window_images(number)
                step = 23  # batches that do not divide a window
                for first in range(start, stop, step):
                    last = min(first + step, stop)
                    of_places = row_order.rows_at(np.arange(first, last))  # (n, T)
                    images = row_order.images_at(np.arange(first, last))
                    here = valid[first:last]
                    window.put(
                        first,
                        {site: values[site][of_places] for site in spec.sites},
                        here,
                        [(image, "cannot be read") for image in images[~here].tolist()],
                        [b"thumbnail %d" % image if ok else None for image, ok in zip(images, here, strict=True)],
                    )
                window.commit()
        row_image = row_order.images(np.arange(row_order.n_rows))
        row_valid = valid[row_order.places(row_image)]
        return MadeStore(path, spec, values, labels, keys, row_image, row_valid, row_order)

    return make

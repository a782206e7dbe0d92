"""What several rooms' tests share: small stores with known rows."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from thresher.store.format import Site
from thresher.store.layout import StoreSpec, keys_sha256
from thresher.store.provenance import Provenance
from thresher.store.shuffle import random_row_order
from thresher.store.writer import create_store

# As the command line sets it, and before any test imports torch: threads that spin while they wait make small tests
# ten times slower on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@dataclass
class MadeStore:
    """A store on disk and what went into it."""

    path: Path
    spec: StoreSpec
    rows: dict[Site, np.ndarray]
    """(n, d) float32 before rounding; what stands on invalid rows is noise that must never be read back."""
    labels: np.ndarray
    keys: list[bytes]
    row_image: np.ndarray
    valid: np.ndarray


@pytest.fixture
def make_store(tmp_path: Path) -> Callable[..., MadeStore]:
    """A factory of finished stores; every argument has a default."""

    def make(
        n: int = 300,
        d: int = 8,
        *,
        name: str = "made.zarr",
        sites: tuple[Site, ...] = (Site(1),),
        dtype: str = "float16",
        codec: str = "none",
        rows_per_chunk: int = 64,
        invalid: tuple[int, ...] = (),
        order: str = "random",
        n_labels: int = 5,
        unlabelled: tuple[int, ...] = (),
        rows: np.ndarray | None = None,
        seed: int = 0,
        thumbnails: bool = True,
        chunks: range | None = None,
    ) -> MadeStore:
        rng = np.random.default_rng(seed)
        keys = [f"class {i % n_labels}/picture {i}.jpg".encode() for i in range(n)]
        labels = (np.arange(n) % n_labels).astype(np.int32)
        labels[list(unlabelled)] = -1
        row_image = random_row_order(n, seed) if order == "random" else np.arange(n, dtype=np.uint32)
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
            n_images=n,
            keys_sha256=keys_sha256(keys, labels),
            row_order=order,
            seed=seed,
        )
        spec = StoreSpec(
            provenance=provenance,
            sites=sites,
            d_in=d,
            n_rows=n,
            rows_per_chunk=rows_per_chunk,
            dtype=dtype,
            codec=codec,
            thumbnail_px=128 if thumbnails else None,
            label_names=[f"class {i}" for i in range(n_labels)],
        )
        values = {
            site: rng.standard_normal((n, d)).astype(np.float32) if rows is None else rows.astype(np.float32)
            for site in sites
        }
        valid = np.ones(n, bool)
        valid[list(invalid)] = False
        path = tmp_path / name
        with create_store(path, spec, keys=keys, row_image=row_image, row_label=labels[row_image]) as writer:
            for chunk in chunks if chunks is not None else range(writer.n_chunks):
                start, stop = writer.chunk_rows(chunk)
                writer.write_chunk(
                    chunk,
                    {site: values[site][start:stop] for site in sites},
                    valid[start:stop],
                    [(row, "cannot be read") for row in invalid if start <= row < stop],
                    [b"thumbnail %d" % row if valid[row] else None for row in range(start, stop)],
                )
        return MadeStore(path, spec, values, labels, keys, row_image, valid)

    return make

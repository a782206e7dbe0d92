"""Small stores of synthetic activations for the trainer's tests."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from thresher.store.format import Site
from thresher.store.provenance import Provenance
from thresher.store.reader import open_store
from thresher.store.writer import StoreSpec, create_store, keys_sha256


def write_store(
    path: Path,
    rows: NDArray[np.float32],
    *,
    layers: tuple[int, ...] = (3,),
    dtype: str = "float32",
    row_order: str = "random",
    unreadable: tuple[int, ...] = (),
    rows_per_chunk: int = 100,
) -> Path:
    """Write a store whose row r is `rows[r]`, on every layer."""
    n, d = rows.shape
    keys = [f"image-{i}".encode() for i in range(n)]
    labels = np.full(n, -1, np.int32)
    provenance = Provenance(
        model="synthetic",
        pretrained="none",
        weights_sha256="0" * 64,
        quick_gelu=False,
        n_layers=6,
        width=d,
        preprocessing={},
        precision="fp32",
        dtype=dtype,
        batch_size=1,
        image_source="synthetic",
        n_images=n,
        keys_sha256=keys_sha256(keys, labels),
        row_order=row_order,
        seed=0,
    )
    sites = tuple(Site(layer) for layer in layers)
    spec = StoreSpec(
        provenance=provenance,
        sites=sites,
        d_in=d,
        n_rows=n,
        rows_per_chunk=rows_per_chunk,
        dtype=dtype,
        thumbnail_px=None,
    )
    writer = create_store(path, spec, keys=keys, row_image=np.arange(n, dtype=np.uint32), row_label=labels)
    for chunk in range(-(-n // rows_per_chunk)):
        start, stop = chunk * rows_per_chunk, min(n, (chunk + 1) * rows_per_chunk)
        bad = [r for r in unreadable if start <= r < stop]
        valid = ~np.isin(np.arange(start, stop), bad)
        writer.write_chunk(chunk, {site: rows[start:stop] for site in sites}, valid, [(r, "not an image") for r in bad])
    writer.close()
    open_store(path)
    return path


def synthetic_rows(n: int, d: int, *, seed: int = 0, n_concepts: int = 64) -> NDArray[np.float32]:
    """Sparse sums of `n_concepts` directions plus noise and an offset: what an SAE can find, `(n, d)`."""
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((n_concepts, d)) / np.sqrt(d)
    codes = rng.exponential(2.0, (n, n_concepts)) * (rng.random((n, n_concepts)) < 0.06)
    offset = rng.standard_normal(d)
    return (codes @ directions + 0.02 * rng.standard_normal((n, d)) + offset).astype(np.float32)


@pytest.fixture
def store_of() -> Callable[..., Path]:
    """`write_store`."""
    return write_store


@pytest.fixture
def small_rows() -> NDArray[np.float32]:
    """`(700, 24)` synthetic activations."""
    return synthetic_rows(700, 24)


@pytest.fixture
def small_store(tmp_path: Path, small_rows: NDArray[np.float32]) -> Path:
    """A store of `small_rows`, one site."""
    return write_store(tmp_path / "store.zarr", small_rows)

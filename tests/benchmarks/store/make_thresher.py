"""Writes the source as a Thresher store. Options: `row_order` random | source.

Apart from the reader, which needs no torch: the writer casts by it, and memory counts from after the imports.
"""

import time
from contextlib import closing

import numpy as np
import torch  # noqa: F401
from data import D_IN, Source
from passes import Job, serve
from thresher.store.commits import Commits
from thresher.store.format import Site
from thresher.store.layout import StoreSpec, keys_sha256
from thresher.store.provenance import Provenance
from thresher.store.writer import create_store

SITE = Site(22)


def keys_of(rows: int) -> list[bytes]:
    """Made-up ids of images."""
    return [b"%07d.jpg" % i for i in range(rows)]


def spec_of(labels: np.ndarray, row_order: str, **fields: object) -> StoreSpec:
    """The settings of a store of images with these labels, its provenance made up."""
    provenance = Provenance(
        model="none",
        pretrained="none",
        weights_sha256="0" * 64,
        quick_gelu=False,
        n_layers=24,
        width=D_IN,
        preprocessing={},
        precision="fp32",
        dtype="float16",
        batch_size=1024,
        image_source="made up",
        source=["made up"],
        limit=None,
        n_images=len(labels),
        keys_sha256=keys_sha256(keys_of(len(labels)), labels),
        row_order=row_order,
        seed=0,
    )
    sites = {SITE: D_IN}
    return StoreSpec(provenance=provenance, sites=sites, n_images=len(labels), thumbnail_px=None, **fields)  # type: ignore[arg-type]


def make(job: Job) -> dict[str, float]:
    """The source as a store, written by Thresher's writer in the store's own row order."""
    source = Source(job.source_rows)
    labels = source.labels[: job.rows]
    spec, keys = spec_of(labels, job.options["row_order"]), keys_of(job.rows)
    writing_s = 0.0
    with (
        create_store(job.data, spec, keys=keys, labels=labels, overwrite=True) as writer,
        closing(Commits(writer)) as commits,
    ):
        for number in list(writer.pending):
            start, stop = writer.window_images(number)
            images = writer.order.images_at(np.arange(start, stop))
            rows = source.rows(images).astype(np.float32)
            started = time.perf_counter()
            window = writer.window(number)
            window.put(start, {SITE: rows}, np.ones(len(rows), np.bool_), [], None)
            commits.begin(window)
            writing_s += time.perf_counter() - started
        started = time.perf_counter()
        commits.wait()
        writing_s += time.perf_counter() - started
    return {"writing_s": writing_s}


if __name__ == "__main__":
    serve(None, make)

"""Thresher's own reader: the batches of a pass, or the rows from end to end.

Options: `order` scan, else batches; `mixing` False turns it off; `row_order` of the store that `make` writes.
"""

import time
from collections.abc import Iterator

import numpy as np
from data import D_IN, Source
from passes import Job, serve
from thresher.store.batches import BatchReader
from thresher.store.format import Site
from thresher.store.layout import StoreSpec
from thresher.store.provenance import Provenance
from thresher.store.reader import open_store
from thresher.store.writer import create_store

SITE = Site(22)


def spec_of(rows: int, row_order: str, d_in: int = D_IN, **fields: object) -> StoreSpec:
    """The settings of a store whose provenance is made up."""
    provenance = Provenance(
        model="none",
        pretrained="none",
        weights_sha256="0" * 64,
        quick_gelu=False,
        n_layers=24,
        width=d_in,
        preprocessing={},
        precision="fp32",
        dtype=str(fields.get("dtype", "float16")),
        batch_size=1024,
        image_source="made up",
        source=["made up"],
        limit=None,
        n_images=rows,
        keys_sha256="0" * 64,
        row_order=row_order,
        seed=0,
    )
    return StoreSpec(provenance=provenance, sites={SITE: d_in}, n_images=rows, thumbnail_px=None, **fields)  # type: ignore[arg-type]


def make(job: Job) -> dict[str, float]:
    """The source as a store, written by Thresher's writer in the store's own row order."""
    source = Source(job.source_rows)
    spec = spec_of(job.rows, job.options["row_order"])
    keys = [b"%07d.jpg" % i for i in range(job.rows)]
    writing_s = 0.0
    with create_store(job.data, spec, keys=keys, labels=source.labels[: job.rows], overwrite=True) as writer:
        for number in list(writer.pending):
            start, stop = writer.window_images(number)
            images = writer.order.images_at(np.arange(start, stop))
            rows = source.rows(images).astype(np.float32)
            started = time.perf_counter()
            window = writer.window(number)
            window.put(start, {SITE: rows}, np.ones(len(rows), np.bool_), [], None)
            window.commit()
            writing_s += time.perf_counter() - started
    return {"writing_s": writing_s}


class Thresher:
    def __init__(self, job: Job) -> None:
        self.job, self.array = job, open_store(job.data).activations(SITE)
        if job.options.get("order") == "scan":
            self.out = np.ones((job.batch, D_IN), np.float16)
            return
        # With no memory for a buffer and any mixing allowed, a batch is one stretch of the source.
        off = {} if job.options.get("mixing", True) else {"memory_bytes": 1, "mixing": 1e9}
        self.reader = BatchReader([self.array], batch_size=job.batch, seed=job.seed, last="drop", **off)

    def batches(self, epoch: int) -> Iterator[np.ndarray]:
        if self.job.options.get("order") == "scan":
            for start in range(0, self.job.rows // self.job.batch * self.job.batch, self.job.batch):
                self.array.read_runs(np.array([start]), np.array([self.job.batch]), self.out)
                yield self.out
            return
        steps = self.reader.steps_per_epoch
        assert steps is not None
        for batch in self.reader.batches(epoch * steps, (epoch + 1) * steps):
            yield batch.values[0]


if __name__ == "__main__":
    serve(Thresher, make)

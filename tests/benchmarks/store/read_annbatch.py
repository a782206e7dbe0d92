"""annbatch's Loader through the zarrs pipeline, as its documentation sets it up, over rows that were shuffled before.

Its documentation has the data shuffled when they are written, so its rows come in a random order here too. Chunks of
1,024 rows in shards of 65,536 rows; 64 chunks a preload, the same buffer as the others'.
"""

from collections.abc import Iterator

import numpy as np
import zarr
import zarrs  # noqa: F401  (the codec pipeline that is named below)
from annbatch import Loader
from data import D_IN, Source
from passes import Job, serve

CHUNK, SHARD, PRELOAD = 1024, 65536, 64


def make(job: Job) -> None:
    """The source in a random order of its rows, as annbatch's own writer shuffles it."""
    shard = min(SHARD, job.rows // CHUNK * CHUNK)
    array = zarr.create_array(
        job.data,
        shape=(job.rows, D_IN),
        chunks=(CHUNK, D_IN),
        shards=(shard, D_IN),
        dtype="float16",
        compressors=None,
        overwrite=True,
    )
    source, order = Source(job.source_rows), np.random.default_rng(0).permutation(job.rows)
    for start in range(0, job.rows, shard):
        array[start : start + shard] = source.rows(order[start : start + shard])


class Annbatch:
    def __init__(self, job: Job) -> None:
        zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
        self.loader = Loader(
            batch_size=job.batch,
            chunk_size=CHUNK,
            preload_nchunks=min(PRELOAD, job.rows // CHUNK),
            shuffle=True,
            preload_to_gpu=False,
            rng=np.random.default_rng(job.seed),
        )
        self.loader.add_datasets([zarr.open_array(job.data, mode="r")])

    def batches(self, epoch: int) -> Iterator[np.ndarray]:
        del epoch  # the loader goes on with its own generator
        for batch in self.loader:
            yield batch["X"]


serve(Annbatch, make)

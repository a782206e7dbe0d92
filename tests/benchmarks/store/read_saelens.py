"""SAELens' cached activations: its ActivationsStore over a Hugging Face dataset, with its mixing buffer of 65,536 rows.

A row of the dataset is a "context" of 256 vectors, in the order of the source: its runner's own shuffle is an index map
that is not saved.
"""

from collections.abc import Iterator
from typing import Any

import datasets
import torch
from data import D_IN, Source
from passes import Job, serve
from sae_lens.training.activations_store import ActivationsStore

HOOK, CONTEXT, BUFFER_ROWS = "activations", 256, 65536


def make(job: Job) -> None:
    """The first rows of the source, as `CacheActivationsRunner` saves them."""
    features = datasets.Features({HOOK: datasets.Array2D((CONTEXT, D_IN), "float16")})

    def rows() -> Iterator[dict[str, Any]]:
        for block in Source(job.source_rows).blocks(CONTEXT, job.rows // CONTEXT * CONTEXT):
            yield {HOOK: block}

    datasets.Dataset.from_generator(rows, features=features, cache_dir=f"{job.data}.making").save_to_disk(job.data)


class SAELens:
    def __init__(self, job: Job) -> None:
        self.job = job

    def batches(self, epoch: int) -> Iterator[torch.Tensor]:
        torch.manual_seed(self.job.seed + epoch)
        store = ActivationsStore(
            model=None,
            dataset=None,
            streaming=False,
            hook_name=HOOK,
            hook_head_index=None,
            context_size=CONTEXT,
            d_in=D_IN,
            n_batches_in_buffer=min(BUFFER_ROWS, self.job.rows) // CONTEXT,
            total_training_tokens=self.job.rows,
            store_batch_size_prompts=16,
            train_batch_size_tokens=self.job.batch,
            prepend_bos=False,
            normalize_activations="none",
            device=torch.device("cpu"),
            dtype="float16",
            cached_activations_path=self.job.data,
        )
        yield from store.get_data_loader()


serve(SAELens, make)

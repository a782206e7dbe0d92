"""saev as the package index has it: its Dataset under the shuffling torch DataLoader of its training loop.

It stores float32 and gives float32: its GB/s count the rows as the others', at two bytes a value. (Its repository has
a newer ShuffledDataLoader, which no release on the index holds.)
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from data import D_IN, Source
from passes import Job, serve
from saev import activations, config

LAYER = 22


def make(job: Job) -> None:
    """The first rows of the source, as saev's ShardWriter lays them out: float32, one CLS token an image."""
    folder = Path(job.data)
    folder.mkdir(parents=True, exist_ok=True)
    metadata = activations.Metadata("clip", "ViT-L-14/openai", (LAYER,), 0, True, D_IN, 42, job.rows, job.rows, "flat")
    metadata.dump(str(folder / "metadata.json"))
    with open(folder / "acts000000.bin", "wb") as file:
        for block in Source(job.source_rows).blocks(65536, job.rows):
            file.write(block.astype(np.float32).data)


class Saev:
    def __init__(self, job: Job) -> None:
        data = config.DataLoad(shard_root=job.data, patches="cls", layer=LAYER, scale_mean=False, scale_norm=False)
        self.job, self.rows = job, activations.Dataset(data)

    def batches(self, epoch: int) -> Iterator[torch.Tensor]:
        torch.manual_seed(self.job.seed + epoch)
        # shuffle=True of its training loop, but for the end of a pass: workers would read what nobody takes.
        sampler = torch.utils.data.RandomSampler(self.rows, num_samples=self.job.rows_per_pass)
        loader = torch.utils.data.DataLoader(
            self.rows, batch_size=self.job.batch, num_workers=self.job.threads, sampler=sampler
        )
        for batch in loader:
            yield batch["act"]


serve(Saev, make)

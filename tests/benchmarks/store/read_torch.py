"""A torch DataLoader over a zarr array: a Dataset of single rows, or one of blocks of a batch's size.

Options: `array` path in the data; `item` row | block.
"""

from collections.abc import Iterator
from typing import Any

import torch
import zarr
from passes import Job, serve


class Rows(torch.utils.data.Dataset):
    """Items of `size` consecutive rows; each worker opens the array itself."""

    def __init__(self, job: Job, size: int) -> None:
        self.job, self.size, self.array = job, size, None

    def __len__(self) -> int:
        return self.job.rows // self.size

    def __getitem__(self, i: int) -> torch.Tensor:
        if self.array is None:
            opened: Any = zarr.open(self.job.data, mode="r")
            self.array = opened[self.job.options["array"]] if "array" in self.job.options else opened
        rows = torch.from_numpy(self.array[i * self.size : (i + 1) * self.size])
        return rows[0] if self.size == 1 else rows


class TorchLoader:
    def __init__(self, job: Job) -> None:
        self.job = job

    def batches(self, epoch: int) -> Iterator[torch.Tensor]:
        torch.manual_seed(self.job.seed + epoch)
        by_row = self.job.options["item"] == "row"
        items = Rows(self.job, 1 if by_row else self.job.batch)
        n_items = self.job.rows_per_pass // items.size  # no more, or workers would read what nobody takes
        yield from torch.utils.data.DataLoader(
            items,
            batch_size=self.job.batch if by_row else None,
            sampler=torch.utils.data.RandomSampler(items, num_samples=n_items),
            num_workers=self.job.threads,
        )


serve(TorchLoader)

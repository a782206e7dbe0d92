"""The numbers of SAEs, and of transcoders, on a range of stored rows that is read once for all of them."""

from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from ..store.ahead import in_order
from ..store.reader import ActivationArray
from .coherence import decoder_coherence
from .metrics import ReconstructionMetrics, ReconstructionResult
from .models import SparseAutoencoder

_BLOCK_ROWS = 1024
_AHEAD = 7  # blocks, of one array each, read while one is evaluated, for stores in buckets


class Block:
    """The same rows of several arrays, each on the device from when it is first asked for.

    Parameters
    ----------
    read
        What was read of each array, or why it was not.
    """

    def __init__(self, read: dict[ActivationArray, NDArray[Any] | Exception], device: torch.device) -> None:
        self._read, self._device = read, device
        self._tensors: dict[ActivationArray, Tensor] = {}

    def of(self, array: ActivationArray) -> Tensor:
        """`(n, d_in)` float32. What kept them from being read is raised here, where it concerns nobody else."""
        if array not in self._tensors:
            values = self._read[array]
            if isinstance(values, Exception):
                raise values
            self._tensors[array] = array.tensor(values).to(self._device).float()
        return self._tensors[array]


def read_blocks(
    arrays: Sequence[ActivationArray], start: int, stop: int, device: torch.device
) -> Generator[Block, None, None]:
    """Positions `[start, stop)` of arrays of one store, in a memory that does not grow with them.

    Close the generator to end the reading.
    """
    spans = [(first, min(stop, first + _BLOCK_ROWS)) for first in range(start, stop, _BLOCK_ROWS)]
    wanted = [(array, *span) for span in spans for array in arrays]
    with closing(in_order(_read, wanted, _AHEAD)) as read:
        for values in zip(*[read] * len(arrays), strict=True):
            yield Block(dict(zip(arrays, values, strict=True)), device)


def _read(wanted: tuple[ActivationArray, int, int]) -> NDArray[Any] | Exception:
    array, first, last = wanted
    try:
        return array.read_positions(first, last)
    except Exception as error:
        return error


class Evaluation:
    """Reconstruction and sparsity of an SAE on rows that come in blocks.

    Parameters
    ----------
    activations, target
        What it reads, and what it reconstructs: the same, but for a transcoder.
    """

    def __init__(self, sae: SparseAutoencoder, activations: ActivationArray, target: ActivationArray) -> None:
        self._sae, self._activations, self._target = sae, activations, target
        self._metrics = ReconstructionMetrics(sae.d_out, sae.d_sae)
        self._n_active = torch.zeros(sae.d_sae, dtype=torch.int64, device=sae.device)

    def update(self, block: Block) -> None:
        """Add rows."""
        x = block.of(self._activations)
        f = self._sae.encode_sparse(x)
        self._n_active += torch.bincount(f.index, minlength=f.d_sae)
        self._metrics.update(block.of(self._target), self._sae.decode_sparse(f, x), f)

    def result(self) -> ReconstructionResult:
        """The numbers so far."""
        return self._metrics.result()

    def of_features(self) -> dict[str, Any]:
        """The state of the features, as metrics.jsonl holds it."""
        n_almost_dead = count_almost_dead(self._n_active, self.result().n_rows)
        return {
            "n_almost_dead": n_almost_dead,
            "share_almost_dead": n_almost_dead / self._sae.d_sae,
            "decoder_coherence": decoder_coherence(self._sae.decoder),
        }


def evaluate(sae: SparseAutoencoder, activations: ActivationArray, start: int, stop: int) -> ReconstructionResult:
    """Reconstruction and sparsity of one SAE on positions `[start, stop)`."""
    evaluation = Evaluation(sae, activations, activations)
    with closing(read_blocks([activations], start, stop, sae.device)) as blocks:
        for block in blocks:
            evaluation.update(block)
    return evaluation.result()


def count_almost_dead(n_active: Tensor, n_rows: int) -> int:
    """Features that fire on less than one row in 10,000, those that never fire among them.

    Parameters
    ----------
    n_active
        `(d_sae,)` rows, of `n_rows`, on which each is above 0.
    """
    return int((n_active * 10_000 < n_rows).sum())

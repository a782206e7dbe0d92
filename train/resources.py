"""What training needs of the machine's memory and disk."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..progress import format_bytes
from ..store.errors import StoreError
from ..store.files import free_bytes
from .member import SAMPLE_ROWS
from .options import TrainOptions
from .step import BLOCK_BYTES

_VECTORS = {"jumprelu": 2, "gated": 3}  # trained numbers a feature beside its weights; 1 of the other variants
_PENALISED = ("relu", "jumprelu", "gated")

# Measured on a CPU as the peak of resident memory, at d_in = 512, 8,192 features and batches of 1,024 rows taken whole
# and in four parts: within a tenth of it for every variant. Freed memory that malloc keeps in pieces is part of it.
_BUFFERS = {"relu": 2, "jumprelu": 6, "gated": 10}  # of (rows, d_sae) at a time; 2 of the other variants
_COPIES = 1  # of all weights beside the gradients, in a step; one more where many features are active at first
_SAMPLE_COPIES = 8  # of the sampled rows, as float32: two float64 ones stand beside them; a transcoder has two samples
_BATCH_COPIES = 8  # of the batch


@dataclass(frozen=True)
class Size:
    """What is trained.

    Parameters
    ----------
    d_in, d_out
        Widths of what is read and of what is reconstructed.
    """

    options: TrainOptions
    d_in: int
    d_out: int

    @property
    def d_sae(self) -> int:
        """Features."""
        return self.options.d_sae(self.d_in)

    @property
    def n_weights(self) -> int:
        """Trained numbers."""
        return (self.d_in + self.d_out + _VECTORS.get(self.options.variant, 1)) * self.d_sae + self.d_out

    @property
    def checkpoint_bytes(self) -> int:
        """Of a checkpoint: weights, two moments, the int64 counters of the features."""
        return 3 * 4 * self.n_weights + 8 * self.d_sae

    def start_bytes(self, n_sampled: int) -> int:
        """What the start from a sample of rows needs beside the state."""
        width = _SAMPLE_COPIES * self.d_out + 2 * self.d_in * self.options.is_transcoder
        return 4 * (n_sampled * width + self.n_weights)

    def step_bytes(self, n_ranks: int) -> int:
        """What a step needs beside the state: gradients, buffers, copies."""
        options = self.options
        share = -(-options.batch_size // n_ranks)
        rows = min(share, options.micro_batch_size or max(1, BLOCK_BYTES // (4 * self.d_sae)))
        copies = 1 + _COPIES + (options.variant in _PENALISED) + (rows < share)  # each block has its own gradients
        buffers = _BUFFERS.get(options.variant, 2) + (options.precision == "bf16")
        return 4 * (
            copies * self.n_weights
            + buffers * rows * self.d_sae
            + _BATCH_COPIES * share * (self.d_in + self.d_out) // 2
        )


def memory_bytes(sizes: Sequence[Size], n_rows: int, n_ranks: int = 1) -> int:
    """Most memory that training takes in a process, beside the program's own and what mixes the rows.

    Parameters
    ----------
    sizes
        Of the SAEs that are trained together: all states stay, and they take their steps in turn.
    n_rows
        Training rows of the store.
    n_ranks
        Processes that share each batch.
    """
    states = sum(size.checkpoint_bytes for size in sizes)
    n_sampled = min(SAMPLE_ROWS, n_rows)
    return states + max(max(size.start_bytes(n_sampled), size.step_bytes(n_ranks)) for size in sizes)


def disk_bytes(sizes: Sequence[Size]) -> int:
    """Most that run directories hold while their SAEs train: a checkpoint each, and the one that is being written.

    The weights of a finished SAE take a third of its checkpoint, which they replace.
    """
    return sum(size.checkpoint_bytes for size in sizes) + max(size.checkpoint_bytes for size in sizes)


def check_space(run_path: Path, sizes: Sequence[Size]) -> None:
    """Raise `StoreError` where the disk does not hold the runs."""
    needed, free = disk_bytes(sizes), free_bytes(run_path)
    if needed > free:
        raise StoreError(
            f"{run_path} needs {format_bytes(needed)} while training, {format_bytes(free)} are free: "
            f"make room, or {'lower --expansion' if len(sizes) == 1 else 'train fewer SAEs at once'}."
        )

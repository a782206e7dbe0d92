"""What a run needs of the machine's memory and disk."""

from collections.abc import Sequence
from pathlib import Path

from ..progress import format_bytes
from ..store.errors import StoreError
from ..store.files import free_bytes


def memory_bytes(d_in: int, d_sae: int, batch_size: int) -> int:
    """Memory of training: weights, two moments and gradients, two (batch, d_sae) buffers, a few (batch, d_in)."""
    return 4 * (4 * 2 * d_in * d_sae + 2 * batch_size * d_sae + 8 * batch_size * d_in)


def disk_bytes(d_in: int, d_sae: int) -> int:
    """Most that a run directory holds while it trains: weights, and two checkpoints of weights and two moments."""
    return 4 * 2 * d_in * d_sae * (1 + 2 * 3)


def check_space(run_path: Path, sizes: Sequence[tuple[int, int]]) -> None:
    """Raise `StoreError` where the disk does not hold runs of these (d_in, d_sae)."""
    needed, free = sum(disk_bytes(*size) for size in sizes), free_bytes(run_path)
    if needed > free:
        raise StoreError(
            f"{run_path} needs {format_bytes(needed)} while training, {format_bytes(free)} are free: "
            f"make room, or {'lower --expansion' if len(sizes) == 1 else 'train fewer SAEs at once'}."
        )

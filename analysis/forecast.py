"""What `stats` will write and how long it will count, told before it starts."""

import time
from collections.abc import Callable
from pathlib import Path

from ..progress import format_bytes, format_rate, format_s
from ..store.errors import StoreError
from ..store.files import free_bytes
from .activation_bins import N_BINS

SAMPLE_BYTES = 4_000_000
"""Of features, read and counted once to learn the rate: some tenths of a second."""
# n_active, sum, max, mean_top, n_pos, label_entropy, n_labelled, is_uld, effective_n; 64 bins of a histogram
_FEATURE_BYTES = 8 + 8 + 4 + 4 + 2 + 4 + 2 + 1 + 4 + N_BINS * 4
_TOP_BYTES = 8 + 4 + 4  # row, value and label of one of the k largest values
_FIGURES_BYTES = 10_000_000  # five figures of 50 kB; contact sheets of 12 features are 2 MB each
_SMALL_BYTES = 100_000  # stats.json, metadata, the L0 histograms


def statistics_bytes(d_sae: int, k: int, *, figures: bool) -> int:
    """Bytes that the statistics of `d_sae` features take on disk at most."""
    return d_sae * (_FEATURE_BYTES + k * _TOP_BYTES) + _SMALL_BYTES + (_FIGURES_BYTES if figures else 0)


def forecast_counting(n_rows: int, n_sample: int, count_sample: Callable[[], object]) -> str:
    """How long counting takes on one core, in words, from counting a sample once.

    Parameters
    ----------
    n_rows
        Rows to count.
    n_sample
        Rows that `count_sample` counts.
    """
    if n_sample >= n_rows:
        return f"{n_rows:,} rows to count, which takes seconds"
    start_s = time.perf_counter()
    count_sample()
    seconds = (time.perf_counter() - start_s) * n_rows / n_sample
    return f"{n_rows:,} rows to count, about {format_s(seconds)} on one core"


def forecast_passes(n_rows: int, pass_s: float, n_passes: int, where: str) -> str:
    """How long it takes to encode rows of which nothing is kept, in words.

    Parameters
    ----------
    pass_s
        Seconds that one process takes for all of them once.
    """
    rate = format_rate(n_rows / pass_s)
    if n_passes == 1:
        return (
            f"encoding and counting {n_rows:,} rows on {where}, about {format_s(pass_s)} at {rate} rows/s of a process"
        )
    return (
        f"encoding {n_rows:,} rows on {where} twice, to count and then for the details of all firings: about "
        f"{format_s(2 * pass_s)} at {rate} rows/s of a process"
    )


def require_space(out_dir: Path, d_sae: int, k: int, *, figures: bool, more_bytes: int = 0) -> str:
    """What will be written to `out_dir`, in words.

    Parameters
    ----------
    more_bytes
        Of the details (`details.details_bytes`).

    Raises
    ------
    StoreError
        When the disk does not hold it.
    """
    need, free = statistics_bytes(d_sae, k, figures=figures) + more_bytes, free_bytes(out_dir)
    if need > free:
        raise StoreError(
            f"{out_dir} needs up to {format_bytes(need)} for the statistics of {d_sae:,} features and "
            f"{format_bytes(free)} are free: make room, or keep fewer values of each feature with --k."
        )
    return f"{out_dir} will take at most about {format_bytes(need)} more"

"""What a harvest says before it starts: what it will write, how large that is, how long it takes."""

import time

import torch

from ..progress import Reporter, format_bytes, format_rate, format_s
from ..store.layout import predicted_bytes
from ..store.writer import StoreWriter
from .batches import Batch
from .forward import TowerRunner
from .options import HarvestOptions
from .plan import Job
from .ranks import Ranks

_FEW = 8  # images that tell how fast a tower is
_SAMPLED_KEYS = 1000  # keys whose length is taken for all
_LARGE_WINDOW = 1 << 28  # bytes of memory that the user should know of


def announce(
    options: HarvestOptions, job: Job, writer: StoreWriter, n_left: int, ranks: Ranks, reporter: Reporter
) -> None:
    """Say what will be written and how long it takes, measured on one batch.

    Parameters
    ----------
    options, job, writer
        Of the harvest.
    n_left
        Images that are not harvested yet.
    ranks
        The processes that share the work.
    reporter
        To say it to.
    """
    spec = job.spec
    start, stop = writer.window_images(writer.pending[0])
    first = job.decoder[start, min(stop, start + options.batch_size)]
    forward_s = _forward_s(job, first, ranks) / ranks.n_ranks
    decode_s = first.decode_s / len(first.valid) / max(1, options.workers) / (ranks.n_ranks / ranks.n_local)
    on_cpu = job.tower.device.type == "cpu"  # where decoding and the tower share the cores
    total_s = n_left * (forward_s + decode_s if on_cpu else max(forward_s, decode_s))
    free = writer.objects.free_bytes()
    of_images = f" ({spec.n_images:,} images of {spec.tokens_per_image} tokens)" if spec.tokens_per_image > 1 else ""
    resumed = f", {spec.n_images - n_left:,} images from before" if n_left < spec.n_images else ""
    arrays = ", ".join(f"{site} ({width} wide)" for site, width in spec.sites.items())
    reporter.say(
        f"{writer.objects}: {spec.n_rows:,} rows{of_images}{resumed}, {spec.dtype}: {arrays}; about "
        f"{format_bytes(_measured_bytes(job, first))}{'' if free is None else f' ({format_bytes(free)} free)'}, about "
        f"{format_s(total_s)} on {job.tower.device.type}{_processes(ranks)} ({format_rate(n_left / total_s)} images/s "
        "measured on one batch)."
    )
    memory_bytes = writer.window_bytes() * min(2, len(writer.pending))  # one is written while the next is filled
    if memory_bytes > _LARGE_WINDOW:
        images = min(spec.rows_per_chunk, spec.n_images)
        reporter.say(
            f"{images:,} images are written together, from {format_bytes(memory_bytes)} of memory"
            f"{' a process' if ranks.n_ranks > 1 else ''}; a smaller --rows-per-chunk takes less, and mixes less."
        )


def _processes(ranks: Ranks) -> str:
    return f", in {ranks.n_ranks} processes" if ranks.n_ranks > 1 else ""


def _measured_bytes(job: Job, batch: Batch) -> int:
    """Size of the finished store, with keys and thumbnails as large as those of a first batch."""
    keys = job.images.keys[:_SAMPLED_KEYS]
    measured = {"key_bytes": sum(map(len, keys)) / len(keys)}
    if pictures := [picture for picture in batch.thumbnails or [] if picture]:
        measured["thumbnail_bytes"] = sum(map(len, pictures)) / len(pictures)
    return predicted_bytes(job.spec, **measured)


def _forward_s(job: Job, batch: Batch, ranks: Ranks) -> float:
    """Seconds an image, with as many batches at a time as this process will run."""
    with TowerRunner(job.tower, job.sites, job.n_batches, ranks) as runner:
        seconds = _measured_s(runner, batch.pixels[:_FEW])
        # A GPU or a small tower is measured again, warm, on a whole batch; a large one on a CPU would take minutes.
        if seconds < 1 or job.tower.device.type != "cpu":
            seconds = _measured_s(runner, batch.pixels)
            return seconds / (runner.n_parallel * len(batch.pixels))
        return seconds / (runner.n_parallel * len(batch.pixels[:_FEW]))


def _measured_s(runner: TowerRunner, pixels: torch.Tensor) -> float:
    started = time.perf_counter()
    for future in [runner.submit(pixels) for _ in range(runner.n_parallel)]:
        future.result()  # waits for the device
    return time.perf_counter() - started

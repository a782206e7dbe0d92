"""Repairs a store whose rows can be harvested again: `verify --repair`."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from ..progress import Reporter
from ..store.errors import StoreError
from ..store.layout import StoreSpec
from ..store.objects import Lock, Objects
from ..store.part_repair import Harvest
from ..store.provenance import Provenance
from ..store.repair import repair_store
from ..store.verify import VerifyReport
from .batches import naming_dead_workers
from .images import ImageSet
from .loop import ComputedBatch
from .plan import package_versions
from .recorded import recorded_images
from .rewrite import recompute_windows


def repair(
    place: str | Path | Objects, images: Sequence[str] = (), reporter: Reporter | None = None, *, device: str = "auto"
) -> VerifyReport:
    """Check every byte of a store, and repair what is damaged; rows come from the recorded images and tower.

    Parameters
    ----------
    place
        Path or URL of the store.
    images
        Where the images are now, as `harvest` takes them; by default where they were. In a store of several parts it
        serves those whose images they are.
    reporter
        Told how far it is.
    device
        Where the tower runs; see `HarvestOptions`.

    Raises
    ------
    StoreError
        When there is no store, it was not laid out, or another process writes it.
    ChildProcessError
        When a decoding process dies.
    """
    reporter = reporter or Reporter()

    def windows(
        spec: StoreSpec, numbers: Sequence[int], opened: ImageSet, held: Lock
    ) -> Generator[ComputedBatch, None, None]:
        return recompute_windows(spec, numbers, opened, device=device, held=held, reporter=reporter)

    harvest = Harvest(images=partial(_images, list(images)), windows=windows, versions=package_versions())
    with naming_dead_workers():
        return repair_store(place, harvest, reporter)


@contextmanager
def _images(given: list[str], provenance: Provenance) -> Iterator[Any]:
    """The images of a provenance: those given if they are the ones, else where they were."""
    with ExitStack() as stack:
        try:
            images = stack.enter_context(recorded_images(provenance, given or None))
        except StoreError:
            if not given:
                raise
            try:
                images = stack.enter_context(recorded_images(provenance))
            except (StoreError, ValueError, OSError):
                images = None
            if images is None:
                raise  # what is wrong with those given
        yield images

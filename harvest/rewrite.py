"""Harvests windows of a finished store again, from what its provenance records."""

from collections.abc import Generator, Sequence
from contextlib import closing

from ..progress import Reporter
from ..store.errors import StoreError
from ..store.layout import StoreSpec
from ..store.provenance import Provenance
from .batches import Closable
from .images import ImageSet
from .loop import ComputedBatch, computed_batches
from .options import HarvestOptions
from .plan import Job, make_decoder, package_versions
from .vision import LoadedClip, Tower, load_clip, tower_of


def recompute_windows(
    spec: StoreSpec,
    windows: Sequence[int],
    images: ImageSet,
    *,
    device: str = "auto",
    workers: int | None = None,
    held: Closable | None = None,
    reporter: Reporter | None = None,
) -> Generator[ComputedBatch, None, None]:
    """The vectors of some windows of a store, computed again in the batches in which they were first.

    Batches of a window come one after the other, so that one `WindowWriter` at a time is enough:

        for part in recompute_windows(spec, windows, images):
            window = window or WindowWriter(writer, part.window)
            part.put_into(window)
            if part.is_last:
                window.commit()
                window = None

    On the machine, with the packages and the device of the first time, the bytes are those of the first time.

    Parameters
    ----------
    spec
        Of the store, its provenance included.
    windows
        Their numbers, `RowOrder.n_windows` in all.
    images
        As `recorded.recorded_images` gives them.
    device
        Where the tower runs; see `HarvestOptions`.
    workers
        Decoding processes; by default as many as a harvest takes.
    held
        What decoding processes let go of, such as the lock of a store.
    reporter
        Warned where other versions of packages than the first time are at work.

    Raises
    ------
    StoreError
        When the recorded model is not the one of the store any more: its weights, activation function or preprocessing.
    ValueError, FileNotFoundError, ConnectionError
        As `vision.load_tower` raises them, when the recorded model cannot be loaded any more.
    """
    provenance = spec.provenance
    tower = recorded_tower(load_recorded_clip(provenance), provenance, device)
    _warn_of_other_versions(provenance, reporter or Reporter())
    order = spec.order()
    job = Job(images, tower, spec, order, make_decoder(images, order, tower, spec.thumbnail_px))
    n_workers = HarvestOptions().workers if workers is None else workers
    with closing(computed_batches(job, windows, workers=n_workers, held=held)) as computed:
        yield from computed


def load_recorded_clip(provenance: Provenance) -> LoadedClip:
    """The model of a store, both its towers.

    Raises
    ------
    ValueError, FileNotFoundError, ConnectionError
        As `vision.load_tower` raises them, when it cannot be loaded any more.
    """
    return load_clip(
        provenance.model,
        provenance.pretrained,
        seed=provenance.seed,
        allow_activation_mismatch=True,  # it was settled when the store was made; what matters is compared below
    )


def recorded_tower(clip: LoadedClip, provenance: Provenance, device: str = "auto") -> Tower:
    """The image tower of a store's model, in the store's precision.

    Raises
    ------
    StoreError
        When it is not the one of the store any more: its weights, activation function or preprocessing.
    """
    tower = tower_of(clip, device)
    here = {
        "weights_sha256": tower.weights_sha256,
        "quick_gelu": tower.quick_gelu,
        "width": tower.width,
        "preprocessing": tower.preprocessing,
    }
    for name, value in here.items():
        if value != getattr(provenance, name):
            raise StoreError(
                f"{provenance.model} ({provenance.pretrained}) is not the model of this store any more: {name} is "
                f"{getattr(provenance, name)!r} there and {value!r} here."
            )
    return tower.at_precision(provenance.precision)


def _warn_of_other_versions(provenance: Provenance, reporter: Reporter) -> None:
    now = package_versions()
    others = [
        f"{name} {was} then, {now.get(name)} now" for name, was in provenance.packages.items() if now.get(name) != was
    ]
    if others:
        reporter.warn(f"The last bits of recomputed rows may differ from the first time: {'; '.join(others)}.")

"""Where a harvest writes: a new store, one that was begun, or a further part of a finished one."""

from dataclasses import dataclass

from ..progress import format_bytes
from ..store.attributes import read_group_attributes
from ..store.errors import StoreError
from ..store.format import CREATING, GROUP_JSON, METADATA_RECORD
from ..store.layout import StoreSpec, predicted_bytes
from ..store.objects import Objects
from ..store.part import StorePart
from ..store.parts import add_part, next_part, open_parts
from ..store.provenance import Provenance
from ..store.writer import StoreWriter, create_store, resume_store
from .plan import Job


@dataclass(frozen=True)
class Target:
    """The place that the user named, and the place of the rows: with `--append` a part below it."""

    store: Objects
    rows: Objects
    parts: tuple[StorePart, ...] = ()
    """What the store holds already; empty without `--append`."""

    @property
    def is_begun(self) -> bool:
        """Whether the rows' metadata stands, so that a harvest may go on there."""
        return self.rows.exists(GROUP_JSON) and not self.rows.exists(CREATING)


def find_target(store: Objects, *, append: bool, overwrite: bool) -> Target:
    """Settle where the rows go; fails before a model is loaded where they cannot go there.

    Raises
    ------
    StoreError
        When something else stands there; with `append`, when no finished store does.
    """
    if append:
        parts = tuple(open_parts(store))
        return Target(store, next_part(store), parts)
    if store.local is not None and store.local.exists() and not store.local.is_dir():
        raise StoreError(f"{store} exists and is not a folder: name another STORE.")
    if store.local is not None and store.local.is_symlink() and not store.local.exists():
        raise StoreError(f"{store} is a link to nothing: make the folder that it names, or name another STORE.")
    if store.exists(METADATA_RECORD) and not store.exists(CREATING) and not overwrite:
        read_group_attributes(store)  # says so where it is damaged
    is_taken = bool(store.names()) and not store.exists(GROUP_JSON) and not store.exists(CREATING)
    if is_taken and not overwrite:
        raise StoreError(f"{store} is not empty and is not an activation store: name another STORE.")
    return Target(store, store)


def open_writer(target: Target, job: Job, *, overwrite: bool) -> StoreWriter:
    """Make the store, or go on in it; holds it against other harvests.

    Raises
    ------
    StoreError
        When it was begun with other settings, the disk is too small, or with `--append` the rows cannot be a part of
        the store.
    """
    _require_new_part_of(target, job.spec)
    if target.is_begun and not overwrite:
        return resume_store(target.rows, job.spec)
    need, free = predicted_bytes(job.spec), target.rows.free_bytes()
    if free is not None and need > free:
        raise StoreError(
            f"{target.store} needs about {format_bytes(need)} and the disk has {format_bytes(free)} free: "
            "free some, name a STORE on another disk, or use --thumbnails off or --limit."
        )
    images = job.images
    return create_store(target.rows, job.spec, keys=images.keys, labels=images.labels, overwrite=overwrite)


def finish(target: Target) -> None:
    """Make an appended part one of the store's."""
    if target.parts:
        add_part(target.store, target.rows)


def _require_new_part_of(target: Target, spec: StoreSpec) -> None:
    for part in target.parts:
        if part.provenance.keys_sha256 == spec.provenance.keys_sha256:
            raise StoreError(f"{target.store} holds these {spec.n_images:,} images already: nothing to append.")
    for part in target.parts[:1]:
        what = f"{target.store} cannot take these rows"
        part.provenance.require_same_kind(spec.provenance, what)
        ours = spec.attributes()
        for name in ("arrays", "tokens_per_image"):
            if part.attributes[name] != ours[name]:
                raise StoreError(f"{what}: {name} is {part.attributes[name]!r} there and {ours[name]!r} here.")
        if (part.attributes["label_names"] is None) != (spec.label_names is None):
            there, here = ("no", "some") if part.attributes["label_names"] is None else ("some", "no")
            raise StoreError(f"{what}: it has {there} label_names, these images have {here}; see --label-names.")
    if target.parts and target.is_begun:
        begun = Provenance.from_json(read_group_attributes(target.rows)["provenance"])
        begun.require_same_rows(
            spec.provenance,
            f"{target.rows}, which an earlier --append left unfinished (finish that one first, or delete it), has "
            "other settings",
        )

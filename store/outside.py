"""Keeps stores and runs from being written inside another store."""

from pathlib import Path, PurePosixPath

from . import format as f
from .attributes import read_group_attributes
from .bucket_errors import answer_of
from .errors import MissingStoreError, StoreError, UnreachableStoreError
from .objects import LocalFolder, Objects, open_objects

_DENIED = (401, 403)


def require_outside_stores(place: str | Path | Objects, name: str) -> None:
    """Check that no folder above a place is a store, before anything is written there.

    `verify` would take what is written inside a store for files that belong to nothing, and a harvest that replaces the
    store would delete them.

    Parameters
    ----------
    place
        Path or URL to write to; it need not be there.
    name
        Of the argument: `STORE`, `RUN`, `OUT`.

    Raises
    ------
    StoreError
        Naming the store that it lies in.
    """
    objects = open_objects(place)
    for folder in _folders_above(objects):
        if _is_store(folder):
            raise StoreError(f"{objects} lies inside the store {folder}: name another {name}, outside of it.")


def _folders_above(objects: Objects) -> list[Objects]:
    """The folders that hold a place, nearest first."""
    if objects.local is not None:
        return [LocalFolder(folder) for folder in objects.local.resolve().parents]
    scheme, _, path = objects.url.partition("://")
    return [open_objects(f"{scheme}://{folder}") for folder in list(PurePosixPath(path.strip("/")).parents)[:-1]]


def _is_store(folder: Objects) -> bool:
    """Whether a folder holds a store, or what a harvest left of one that it began."""
    try:
        group, record = folder.read_many([f.GROUP_JSON, f.METADATA_RECORD])
        if group is None:
            return record is not None or folder.read_many([f.CREATING]) == [b""]
        read_group_attributes(folder)
    except (MissingStoreError, OSError):
        return False
    except UnreachableStoreError as error:
        if answer_of(error)[0] in _DENIED:  # an account that may use the place need not be let in above it
            return False
        raise
    except StoreError:  # damaged, or of another version
        return True
    return True

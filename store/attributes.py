"""The attributes of a store's group, read from its zarr.json."""

import json
from typing import Any

from . import format as f
from .errors import DamagedStoreError, MissingStoreError, StoreError
from .objects import Objects
from .records import VERIFY


def read_group_attributes(objects: Objects) -> dict[str, Any]:
    """The attributes of a store's group.

    Raises
    ------
    MissingStoreError
        When there is no store.
    StoreError
        When it is damaged, or of another version.
    """
    try:
        document = json.loads(objects.read(f.GROUP_JSON))
        attributes = document["attributes"]
        name, version = attributes.get("format"), attributes.get("version")
    except (FileNotFoundError, NotADirectoryError):
        _require_none(objects, "is missing")
        what = "holds no zarr.json: it is not an activation store" if objects.exists() else "does not exist"
        raise MissingStoreError(f"{objects} {what}. `thresher harvest IMAGES {objects}` makes one.") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        _require_none(objects, "is damaged")
        raise MissingStoreError(f"{objects}/zarr.json is not the metadata of an activation store.") from None
    if name != f.FORMAT_NAME:
        _require_none(objects, "is damaged")
        raise MissingStoreError(
            f"{objects} is a zarr array or group, but not an activation store (its format attribute is {name!r})."
        )
    if version != f.FORMAT_VERSION:
        raise StoreError(
            f"{objects} has version {version} of the store format; this Thresher reads {f.FORMAT_VERSION}."
        )
    return attributes


def _require_none(objects: Objects, what: str) -> None:
    """Check that a place without a store's zarr.json does not hold one all the same, by another of its files."""
    if objects.exists(f.METADATA_RECORD) and not objects.exists(f.CREATING):
        raise DamagedStoreError(f"{objects}/zarr.json {what}, but the rest of a store is there. {VERIFY}") from None

"""The attributes of a store's group, read from its zarr.json."""

import json
from typing import Any

from . import format as f
from .errors import StoreError
from .objects import Objects


def read_group_attributes(objects: Objects) -> dict[str, Any]:
    """The attributes of a store's group.

    Raises
    ------
    StoreError
        When there is no store, or one of another version.
    """
    try:
        document = json.loads(objects.read(f.GROUP_JSON))
        attributes = document["attributes"]
        name, version = attributes.get("format"), attributes.get("version")
    except (FileNotFoundError, NotADirectoryError):
        what = "holds no zarr.json: it is not an activation store" if objects.exists() else "does not exist"
        raise StoreError(f"{objects} {what}. `thresher harvest IMAGES {objects}` makes one.") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise StoreError(f"{objects}/zarr.json is not the metadata of an activation store.") from None
    if name != f.FORMAT_NAME:
        raise StoreError(
            f"{objects} is a zarr array or group, but not an activation store (its format attribute is {name!r})."
        )
    if version != f.FORMAT_VERSION:
        raise StoreError(
            f"{objects} has version {version} of the store format; this Thresher reads {f.FORMAT_VERSION}."
        )
    return attributes

"""The stored alignment of a run, whatever lies in its place."""

from pathlib import Path

from ...store.errors import StoreError
from ..stored_alignment import ALIGNMENT_JSON, StoredAlignment, open_alignment


def opened_alignment(run_path: Path) -> StoredAlignment:
    """What `thresher align` stored; `StoreError` where there is none, or it is damaged."""
    try:
        return open_alignment(run_path)
    except (OSError, AttributeError, TypeError) as error:  # a folder in its place, JSON that is no object
        raise StoreError(f"{ALIGNMENT_JSON} is damaged ({error}): run `thresher align --overwrite`.") from error

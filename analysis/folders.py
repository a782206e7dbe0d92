"""Folders that appear whole: written beside their place under a temporary name, renamed when complete."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..store.errors import StoreError
from ..store.files import sync_folder


@contextmanager
def new_folder(path: Path, *, overwrite: bool, resumes: bool = False, one_sync: bool = False) -> Iterator[Path]:
    """Give a temporary folder to fill, which takes the name `path` when the block ends without an error.

    What a killed process leaves under the temporary name is removed by the next one; one process at a time writes
    (the caller holds the run directory's lock).

    Parameters
    ----------
    path
        The name.
    overwrite
        Whether it may be taken from what has it already.
    resumes
        Leave what an interrupted block has filled, and give it to the next one.
    one_sync
        Make what was written durable by one sync of the whole system, where tens of thousands of small files take
        minutes one by one.

    Raises
    ------
    StoreError
        When `path` exists and `overwrite` is False.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    retired = path.with_name(f".{path.name}.old")
    if retired.exists() and not path.exists():
        os.rename(retired, path)  # killed between the two renames below: what was there is there again
    refuse_existing(path, overwrite=overwrite)
    for leftover in (retired,) if resumes else (temporary, retired):
        if leftover.exists():
            shutil.rmtree(leftover)
    temporary.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
    except BaseException:
        if not resumes:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    if one_sync:
        os.sync()
    else:
        _sync_tree(temporary)
    if path.exists():
        os.rename(path, retired)
    os.rename(temporary, path)
    sync_folder(path.parent)
    shutil.rmtree(retired, ignore_errors=True)


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Raise `StoreError` when `path` exists and may not be replaced."""
    if path.exists() and not overwrite:
        raise StoreError(f"{path} exists: give --overwrite to replace it.")


def _sync_tree(folder: Path) -> None:
    """Make every file below durable before the name says that it is there."""
    for root, _, names in os.walk(folder):
        for name in names:
            descriptor = os.open(os.path.join(root, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_folder(Path(root))

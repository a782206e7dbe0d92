"""Whole files written so that a reader sees the old bytes, the new bytes or none, whatever is killed when."""

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

from .errors import StoreError

_SYNCS_AT_ONCE = 16  # a window of one site: two files, two records, five folders
_OPEN_AT_ONCE = 128


def write_atomically(path: Path, *parts: bytes | memoryview) -> None:
    """Write a file under a temporary name, sync it, give it its name, sync the folder.

    One process owns a path, so the temporary name is fixed: what a killed process leaves behind, its successor
    overwrites.
    """
    write_all_atomically({path: parts})


def write_all_atomically(files: Mapping[Path, Sequence[bytes | memoryview]]) -> None:
    """Write several files, each atomically, in no order; when this returns, all of them are durable.

    Their syncs run side by side: a disk takes ten in little more than the time of one.
    """
    folders = _made_folders(files)
    if len(files) == 1 and len(folders) == 1:
        _write_synced(*next(iter(files.items())))
        sync_folder(*folders)
        return
    _side_by_side(_write_synced, files.items())
    _side_by_side(sync_folder, [(folder,) for folder in folders])


class RecordedFiles:
    """Files, and others that say so: a record has its name only once all files are durable.

    Under temporary names, the first of them are written when this is made, which may be while others are still synced;
    `finish` does the rest. The disk is waited for once. What is read without its record is nothing, so files may have
    their names before their bytes are durable; files, records and folders are synced side by side, then the records are
    named. Files that are neither finished nor abandoned are overwritten by who writes them next.

    Parameters
    ----------
    files, records
        Bytes by path.
    """

    def __init__(
        self, files: Mapping[Path, Sequence[bytes | memoryview]], records: Mapping[Path, Sequence[bytes | memoryview]]
    ) -> None:
        self._left = _made_folders(records)
        self._folders = _made_folders(files)
        self._records = list(records)
        self._work = [(path, parts, True) for path, parts in files.items()]
        self._work += [(path, parts, False) for path, parts in records.items()]
        self._opened = ExitStack()
        with ExitStack() as opened:
            self._descriptors = [self._write(opened, *each[:2]) for each in self._work[:_OPEN_AT_ONCE]]
            self._opened = opened.pop_all()

    def finish(self, folders: Collection[Path] = ()) -> set[Path]:
        """Make all of it durable.

        Parameters
        ----------
        folders
            Synced along with the files.

        Returns
        -------
        set
            Folders that are still to be synced, so that the records' names are durable too.
        """
        for start in range(0, len(self._work), _OPEN_AT_ONCE):
            some = self._work[start : start + _OPEN_AT_ONCE]
            with self._opened as opened:
                if start:
                    self._descriptors = [self._write(opened, *each[:2]) for each in some]
                for path, _, is_named in some:
                    if is_named:
                        os.replace(_temporary(path), path)
                if start + _OPEN_AT_ONCE >= len(self._work):
                    for folder in self._folders.union(folders):
                        self._descriptors.append(os.open(folder, os.O_RDONLY))
                        opened.callback(os.close, self._descriptors[-1])
                _side_by_side(os.fsync, [(descriptor,) for descriptor in self._descriptors])
        for path in self._records:
            os.replace(_temporary(path), path)
        return self._left

    def abandon(self) -> None:
        """Let go of what is written."""
        self._opened.close()

    @staticmethod
    def _write(opened: ExitStack, path: Path, parts: Sequence[bytes | memoryview]) -> int:
        file = opened.enter_context(open(_temporary(path), "wb"))  # noqa: SIM115  (of the same stack)
        file.writelines(parts)
        file.flush()
        return file.fileno()


def sync_folders(folders: Collection[Path]) -> None:
    """Make the names in some folders durable."""
    _side_by_side(sync_folder, [(folder,) for folder in folders])


def _made_folders(files: Iterable[Path]) -> set[Path]:
    """The folders of files, made where they are not there, with those above that they were made in."""
    folders = {path.parent for path in files}
    for folder in list(folders):
        made = folder
        while not made.is_dir():  # a new folder is a name in the one above, which must be durable too
            folders.add(made := made.parent)
        if made != folder:
            folder.mkdir(parents=True, exist_ok=True)
    return folders


def _temporary(path: Path) -> Path:
    """What a file is called while it is written."""
    return path.with_name(f".{path.name}.tmp")


def _side_by_side(work: Callable[..., None], arguments: Iterable[tuple[Any, ...]]) -> None:
    """Do some work for each of some arguments; when this returns or raises, none of it goes on."""
    running = [_syncers(os.getpid()).submit(work, *each) for each in arguments]
    try:
        for future in running:
            future.result()
    finally:
        wait(running)


@cache
def _syncers(pid: int) -> ThreadPoolExecutor:
    """The threads of a process, which a fork does not inherit: to start some for each commit doubles its CPU time."""
    return ThreadPoolExecutor(_SYNCS_AT_ONCE, thread_name_prefix=f"thresher-sync-{pid}")


def _write_synced(path: Path, parts: Sequence[bytes | memoryview]) -> None:
    temporary = _temporary(path)
    with open(temporary, "wb") as file:
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class FolderLock:
    """Holds a folder against a second writer, until closed or until this process ends."""

    def __init__(self, folder: Path) -> None:
        self._descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._descriptor)
            if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN):
                raise StoreError(
                    f"{folder} is being written by another process: wait for it or end it first."
                ) from None
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP):
                raise
            self._descriptor = -1  # some network file systems have no locks; there the user alone keeps writers apart

    def close(self) -> None:
        """Release the folder."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def free_bytes(path: Path) -> int:
    """Bytes that can still be written where `path` is or would be."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free

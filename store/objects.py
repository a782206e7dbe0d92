"""Where the files of a store live: a folder, or a prefix of a bucket, holding objects named by keys with slashes."""
# ruff: noqa: D102  (what overrides an abstract method does what its docstring says)

import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from .files import FolderLock, RecordedFiles, free_bytes, sync_folders, write_all_atomically

Files = Mapping[str, Sequence[bytes | memoryview]]
"""Bytes of objects, in parts, by name."""


class Lock(Protocol):
    """A place held against a second writer."""

    def close(self) -> None:
        """Release it."""


class Objects(ABC):
    """The objects below one place. It pickles, and survives a fork."""

    url: str
    """As the user named it."""
    local: Path | None = None
    """The folder, where the place is on a disk: there, files may be read with `preadv`."""

    def __str__(self) -> str:
        return self.url

    @property
    def absolute_url(self) -> str:
        """What names the place from any working directory: an absolute path, or the URL."""
        return self.url if self.local is None else str(self.local.absolute())

    @abstractmethod
    def read(self, name: str) -> bytes:
        """All bytes of an object; `FileNotFoundError` where there is none."""

    @abstractmethod
    def read_many(self, names: Sequence[str]) -> list[bytes | None]:
        """The bytes of each object, None where it is missing. Side by side where that is faster."""

    @abstractmethod
    def exists(self, name: str = "") -> bool:
        """Whether an object, or a folder, has this name."""

    @abstractmethod
    def write_all(self, files: Files) -> None:
        """Write objects, each atomically from its parts, in no order; when this returns, all of them are durable."""

    def begin(self, files: Files, records: Files) -> "Begun":
        """Begin to write objects and then others that say so: a record is there only once all objects are durable.

        Parameters
        ----------
        files, records
            Bytes by name. They must stay as they are until it is finished.
        """
        return Begun(self, files, records)

    def settle(self, names: Collection[str]) -> None:  # noqa: B027 (where nothing is left to settle)
        """Make durable what `Begun.finish` gave back."""

    def write(self, name: str, *parts: bytes | memoryview) -> None:
        """Write one object atomically."""
        self.write_all({name: parts})

    @abstractmethod
    def names(self, folder: str = "") -> set[str]:
        """Last components of the names directly below a folder; none where there is no such folder."""

    @abstractmethod
    def walk(self, folder: str = "") -> Iterator[tuple[str, int]]:
        """Every object below a folder: its name from the root, its size in bytes."""

    @abstractmethod
    def delete(self, names: Iterable[str]) -> None:
        """Remove objects; those that are missing do not matter."""

    @abstractmethod
    def delete_all(self, keep: Collection[str] = ()) -> None:
        """Remove everything but the objects named."""

    @abstractmethod
    def child(self, name: str) -> "Objects":
        """The folder `name` as a place of its own."""

    @abstractmethod
    def lock(self) -> Lock:
        """Hold the place against a second writer; `StoreError` where another process holds it."""

    def free_bytes(self) -> int | None:
        """Bytes that can still be written; None where that is not known."""
        return None

    @property
    def size_bytes(self) -> int:
        """Of all objects together."""
        return sum(n_bytes for _, n_bytes in self.walk())


class Begun:
    """Objects, and others that say so, on their way."""

    def __init__(self, objects: Objects, files: Files, records: Files) -> None:
        self._objects, self._files, self._records = objects, files, records

    def finish(self, settle: Collection[str] = ()) -> Collection[str]:
        """Make all of it durable.

        Parameters
        ----------
        settle
            What earlier ones gave back; durable along with the objects.

        Returns
        -------
        Collection
            What is not durable yet of the records' names: to be given to the next one, or to `settle`.
        """
        self._objects.write_all(self._files)
        self._objects.write_all(self._records)
        return ()

    def abandon(self) -> None:
        """Leave it as it is."""


class LocalFolder(Objects):
    """Objects that are files below a folder."""

    def __init__(self, path: Path) -> None:
        self.local: Path = path
        self.url = str(path)

    def read(self, name: str) -> bytes:
        return (self.local / name).read_bytes()

    def read_many(self, names: Sequence[str]) -> list[bytes | None]:
        found: list[bytes | None] = []
        for name in names:
            try:
                found.append((self.local / name).read_bytes())
            except (FileNotFoundError, NotADirectoryError):
                found.append(None)
        return found

    def exists(self, name: str = "") -> bool:
        return (self.local / name).exists()

    def write_all(self, files: Files) -> None:
        write_all_atomically({self.local / name: parts for name, parts in files.items()})

    def begin(self, files: Files, records: Files) -> "Begun":
        return _BegunFiles(self, files, records)

    def settle(self, names: Collection[str]) -> None:
        sync_folders([self.local / name for name in names])

    def names(self, folder: str = "") -> set[str]:
        try:
            return {entry.name for entry in os.scandir(self.local / folder)}
        except (FileNotFoundError, NotADirectoryError):
            return set()

    def walk(self, folder: str = "") -> Iterator[tuple[str, int]]:
        for parent, _, files in os.walk(self.local / folder):
            for file in files:
                path = Path(parent, file)
                try:
                    yield path.relative_to(self.local).as_posix(), path.stat().st_size
                except FileNotFoundError:
                    continue  # a temporary file that another process just renamed

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            (self.local / name).unlink(missing_ok=True)

    def delete_all(self, keep: Collection[str] = ()) -> None:
        for child in self.local.iterdir():
            if child.name not in keep:
                shutil.rmtree(child) if child.is_dir() and not child.is_symlink() else child.unlink()

    def child(self, name: str) -> "LocalFolder":
        return LocalFolder(self.local / name)

    def lock(self) -> Lock:
        self.local.mkdir(parents=True, exist_ok=True)
        return FolderLock(self.local)

    def free_bytes(self) -> int | None:
        return free_bytes(self.local)


class _BegunFiles(Begun):
    """Files whose bytes are given to the system at once."""

    def __init__(self, folder: LocalFolder, files: Files, records: Files) -> None:
        self._root = folder.local
        of_paths = ({self._root / name: parts for name, parts in some.items()} for some in (files, records))
        self._written = RecordedFiles(*of_paths)

    def finish(self, settle: Collection[str] = ()) -> Collection[str]:
        left = self._written.finish([self._root / name for name in settle])
        return [str(folder.relative_to(self._root)) for folder in left]

    def abandon(self) -> None:
        self._written.abandon()


def is_url(place: str | Path) -> bool:
    """Whether a place is named by a URL such as `s3://bucket/key`, not by a path."""
    return "://" in str(place)


def open_objects(place: "str | Path | Objects") -> Objects:
    """The objects at a path, or at a URL that fsspec knows.

    Raises
    ------
    ValueError
        When the URL's scheme is not known, or its package is not installed.
    """
    if isinstance(place, Objects):
        return place
    text = str(place)
    if text.startswith("file://"):
        return LocalFolder(Path(text.removeprefix("file://")))
    if not is_url(text):
        return LocalFolder(Path(place))
    from .bucket import Bucket

    return Bucket(text)

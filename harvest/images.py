"""Image sets: where images come from, under stable keys, in a fixed order."""

import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
from numpy.typing import NDArray

from .labels import class_names, read_label_names, unnamed_note

IMAGE_SUFFIXES = frozenset(
    b".jpg .jpeg .jpe .jfif .png .webp .bmp .gif .tif .tiff .ppm .pgm .pnm .jp2 .avif".split(),
)
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")

EMBEDDED_IMAGES = "quickstart"
"""The word for the pictures that come with the package."""


class Keys(Sequence[bytes]):
    """A long list of byte strings in two arrays, so that a million keys cost little more than their bytes."""

    def __init__(self, keys: Iterable[bytes]) -> None:
        blob = bytearray()
        ends = [0]
        for key in keys:
            blob += key
            ends.append(len(blob))
        self._blob = bytes(blob)
        self._ends = np.array(ends, np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, i: int) -> bytes: ...
    @overload
    def __getitem__(self, i: slice) -> list[bytes]: ...
    def __getitem__(self, i: int | slice) -> bytes | list[bytes]:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        if not -len(self) <= i < len(self):
            raise IndexError(f"key {i} of {len(self)}")
        i %= len(self)
        return self._blob[self._ends[i] : self._ends[i + 1]]

    def __iter__(self) -> Iterator[bytes]:
        return (self[i] for i in range(len(self)))


class ImageSet(ABC):
    """Images in a fixed order, each with a stable key and, where the source has one, a label.

    Reading is safe in forked and spawned processes. A set may hold temporary files: `close` it, or use `with`.
    """

    def __init__(
        self,
        *,
        keys: Keys,
        labels: NDArray[np.int32],
        classes: Sequence[str] | None,
        description: str,
        notes: Sequence[str] = (),
    ) -> None:
        assert len(keys) == len(labels)
        self.keys = keys
        """Stable ids in source order: relative paths or tar members, as bytes."""
        self.labels = labels
        """`(n_images,)`, -1 where there is none."""
        self.classes = list(classes) if classes is not None else None
        """What the labels stand for in the source (folders, words); None where they are bare numbers or absent."""
        self.label_names = class_names(self.classes) if self.classes is not None else None
        """Name of each class, or None."""
        self.description = description
        """Where the images come from, one line."""
        self.notes = list(notes)
        """What the user should know of how the source was read, a line each."""

    @property
    def n_images(self) -> int:
        """Number of images, unreadable ones included."""
        return len(self.keys)

    @abstractmethod
    def read(self, i: int) -> bytes:
        """Encoded bytes of image `i`.

        Raises
        ------
        OSError
            When it cannot be read.
        """

    def metadata(self, i: int) -> dict[str, Any]:
        """What the source says of image `i` beside its label: caption, attributes. Empty where it says nothing."""
        return {}

    def caption(self, i: int) -> str | None:
        """The source's caption of image `i`, or None."""
        caption = self.metadata(i).get("caption")
        return caption if isinstance(caption, str) else None

    def take(self, images: NDArray[np.integer]) -> "ImageSet":
        """The images of these positions, in this order."""
        return _TakenImages(self, np.asarray(images, np.int64))

    def close(self) -> None:  # noqa: B027 (most sources hold nothing)
        """Remove temporary files. Reading is over."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _TakenImages(ImageSet):
    def __init__(self, whole: ImageSet, images: NDArray[np.int64]) -> None:
        super().__init__(
            keys=Keys(whole.keys[int(i)] for i in images),
            labels=whole.labels[images],
            classes=whole.classes,
            description=whole.description,
            notes=whole.notes,
        )
        self.label_names = whole.label_names
        self._whole = whole
        self._images = images

    def read(self, i: int) -> bytes:
        return self._whole.read(int(self._images[i]))

    def metadata(self, i: int) -> dict[str, Any]:
        return self._whole.metadata(int(self._images[i]))

    def close(self) -> None:
        self._whole.close()


def read_regular_file(path: bytes) -> bytes:
    """All bytes of a file.

    Raises
    ------
    OSError
        When it cannot be read, or is no file: a named pipe would keep the harvest waiting for ever, a device never end.
    """
    if b"\0" in path:
        raise OSError("no file can have a zero byte in its name")
    # without O_NONBLOCK, opening a named pipe waits for someone to write to it
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError("not a file")
        return file.read()


def open_images(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], *, label_names: str | Path | None = None
) -> ImageSet:
    """Open an image source.

    Parameters
    ----------
    source
        A folder of class folders (the label is the folder's rank in sorted order, as ImageNet has it) or a flat folder;
        WebDataset tars: one, a glob, a brace range (`part-{000..127}.tar`), a folder that holds only tars, or a list;
        a CSV with the columns `path` and `label`; or the word `quickstart` for the embedded pictures.
    label_names
        File of class names; see `labels.read_label_names`.

    Raises
    ------
    ValueError
        When the source is of no known kind, or holds no image.
    FileNotFoundError
        When it does not exist.
    """
    images = _open_source(source)
    if images.n_images == 0:
        images.close()
        raise ValueError(f"{images.description} holds no images (known: {_suffix_list()}).")
    if label_names is not None:
        images.label_names = read_label_names(label_names, images.classes, images.labels)
    elif note := unnamed_note(images.label_names):
        images.notes.append(note)
    return images


def _open_source(source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> ImageSet:
    from .folders import open_folder
    from .manifest import open_csv
    from .tars import expand_tars, open_tars

    if not isinstance(source, str | os.PathLike):
        parts = [os.fspath(part) for part in source]
        if len(parts) != 1:
            folders = [part for part in parts if Path(part).is_dir()]
            if folders:
                raise ValueError(
                    f"{folders[0]} is a folder: of folders IMAGES takes one, and several tars. Name their common "
                    "parent, or list the files in a CSV of path,label."
                )
            return open_tars([tar for part in parts for tar in expand_tars(part)], f"{len(parts)} sources")
        source = parts[0]
    name = os.fspath(source)
    if name == EMBEDDED_IMAGES:
        folder = Path(__file__).parent / "quickstart" / "images"
        return open_tars(expand_tars(str(folder / "*.tar.gz")), name)
    if "://" in name:
        raise ValueError(f"{name}: images are read from local disks; copy them here first.")
    path = Path(name)
    if path.is_dir():
        tars = sorted(str(p) for p in path.iterdir() if p.name.endswith(TAR_SUFFIXES))
        if tars and not any(p.is_dir() or p.suffix.lower().encode() in IMAGE_SUFFIXES for p in path.iterdir()):
            return open_tars(tars, name)
        return open_folder(path)
    if name.lower().endswith(".csv"):
        return open_csv(path)
    if name.endswith(TAR_SUFFIXES):
        return open_tars(expand_tars(name), name)
    if not path.exists():
        raise FileNotFoundError(f"{name} does not exist.")
    raise ValueError(
        f"{name} is no image source; give a folder, WebDataset tars ({', '.join(TAR_SUFFIXES)}), a .csv "
        "or `quickstart`."
    )


def _suffix_list() -> str:
    return " ".join(sorted(suffix.decode() for suffix in IMAGE_SUFFIXES))

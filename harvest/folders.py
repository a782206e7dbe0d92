"""Images in folders: class folders as ImageNet has them, or a flat folder."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .images import IMAGE_SUFFIXES, ImageSet, Keys, read_regular_file
from .labels import NO_LABEL


class FolderImages(ImageSet):
    """Images below a folder; the key is the path relative to it."""

    def __init__(self, root: bytes, **fields: object) -> None:
        super().__init__(**fields)  # type: ignore[arg-type]
        self._root = root

    def read(self, i: int) -> bytes:
        """Encoded bytes of image `i`."""
        return read_regular_file(os.path.join(self._root, self.keys[i]))


def open_folder(path: Path) -> FolderImages:
    """Open a folder of images.

    Where subfolders hold images, each subfolder is a class: its label is its rank among the subfolders in sorted order,
    empty ones counted, so that a label is ImageNet's own class number whatever is missing. Images deeper in a class
    folder belong to it; images beside the class folders have no label. Hidden files and files that are not images by
    their suffix are ignored, and counted.
    """
    root = os.fsencode(path)
    n_ignored = [0]
    loose, folders = _list_folder(root, b"", n_ignored)
    images: list[bytes] = list(loose)
    labels = [NO_LABEL] * len(loose)
    for label, folder in enumerate(folders):
        found = list(_walk(root, folder, n_ignored, {os.path.realpath(root)}))
        images += found
        labels += [label] * len(found)
    has_classes = len(images) > len(loose)
    notes = []
    if n_ignored[0]:
        notes.append(f"{n_ignored[0]:,} files in {path} are not images by their name and were ignored.")
    if has_classes and loose:
        notes.append(f"{len(loose):,} images lie beside the class folders of {path} and have no label.")
    return FolderImages(
        root,
        keys=Keys(images),
        labels=np.array(labels, np.int32),
        classes=[folder.decode("utf-8", "replace") for folder in folders] if has_classes else None,
        description=str(path),
        notes=notes,
    )


def _walk(root: bytes, folder: bytes, n_ignored: list[int], above: set[bytes]) -> Iterator[bytes]:
    real = os.path.realpath(os.path.join(root, folder))
    if real in above:  # a link to a folder that we are in
        return
    images, folders = _list_folder(root, folder, n_ignored)
    yield from images
    for sub in folders:
        yield from _walk(root, sub, n_ignored, above | {real})


def _list_folder(root: bytes, folder: bytes, n_ignored: list[int]) -> tuple[list[bytes], list[bytes]]:
    """The images and the subfolders of `folder`, as sorted paths relative to `root`."""
    images, folders = [], []
    with os.scandir(os.path.join(root, folder)) as entries:
        for entry in entries:
            path = os.path.join(folder, entry.name)
            if _is_folder(entry):
                if not entry.name.startswith(b"."):
                    folders.append(path)
            elif not entry.name.startswith(b".") and os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:
                images.append(path)
            else:
                n_ignored[0] += 1
    return sorted(images), sorted(folders)


def _is_folder(entry: "os.DirEntry[bytes]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: an image by its name that reading will find unreadable
        return False

"""The digest of a part's keys and labels, from its arrays, in memory that does not grow with them."""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import format as f
from .errors import DamagedStoreError
from .part_files import ArrayFiles, PartFiles

_KEYS_AT_ONCE = 1 << 16
_LABELS_AT_ONCE = 1 << 26  # images whose labels are in memory: 256 MB. A part of more is gone through several times
_LENGTH_BYTES = 8  # before each key, as in `layout.keys_sha256`
_UNSEEN = -(1 << 31)


Read = Callable[[ArrayFiles, int], NDArray[Any]]


def image_digest(files: PartFiles, read: Read | None = None) -> str:
    """What `layout.keys_sha256` gives for the keys and labels that a part holds.

    Parameters
    ----------
    files
        Of the part.
    read
        Gives a chunk of an array; by default `PartFiles.read_chunk`, which checks it against its record.

    Raises
    ------
    DamagedStoreError
        When a chunk is damaged, the keys' edges do not ascend to the end of their bytes, or rows of one image have
        different labels.
    """
    read = read or files.read_chunk
    digest = hashlib.sha256()
    blob = _Stream(files.array(f.KEY_BLOB), read)
    for edges in _edges(_Stream(files.array(f.KEY_OFFSET), read)):
        lengths: NDArray[np.int64] = np.diff(edges.astype(np.int64)).astype(np.int64)
        if (lengths < 0).any() or int(edges[-1]) > blob.size:
            raise DamagedStoreError(f"{f.KEY_OFFSET} does not ascend to the {blob.size:,} bytes of {f.KEY_BLOB}")
        digest.update(_with_lengths(lengths, blob.read(int(edges[-1] - edges[0]))).data)
    if blob.at != blob.size:
        raise DamagedStoreError(f"{f.KEY_OFFSET} ends at byte {blob.at:,} of the {blob.size:,} of {f.KEY_BLOB}")
    for start in range(0, files.spec.n_images, _LABELS_AT_ONCE):
        digest.update(_labels(files, read, start, min(start + _LABELS_AT_ONCE, files.spec.n_images)))
    return digest.hexdigest()


class _Stream:
    """The elements of an array, in order."""

    def __init__(self, array: ArrayFiles, read: Read) -> None:
        self._array, self._read, self.size, self.at = array, read, array.shape[0], 0
        self._chunk, self._values = -1, np.empty(0, array.dtype)

    def read(self, n: int) -> NDArray[np.generic]:
        """The next `n`."""
        found, stop = [self._values[:0]], self.at + n
        while self.at < stop:
            chunk, first = divmod(self.at, self._array.chunk_shape[0])
            if chunk != self._chunk:
                self._chunk, self._values = chunk, self._read(self._array, chunk)
            found.append(self._values[first : first + stop - self.at])
            self.at += len(found[-1])
        return np.concatenate(found)


def _edges(stream: _Stream) -> Iterator[NDArray[np.uint64]]:
    """The edges of the keys, some at a time; the last of one is the first of the next."""
    last = stream.read(1)
    while stream.at < stream.size:
        edges = np.concatenate([last, stream.read(min(_KEYS_AT_ONCE, stream.size - stream.at))])
        yield edges
        last = edges[-1:]


def _with_lengths(lengths: NDArray[np.int64], keys: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Keys end to end, each after its length as 8 bytes, the least significant first."""
    ends = np.cumsum(lengths + _LENGTH_BYTES)
    out = np.empty(int(ends[-1]), np.uint8)
    of_lengths = ((ends - lengths - _LENGTH_BYTES)[:, None] + np.arange(_LENGTH_BYTES)).ravel()
    out[of_lengths] = lengths.astype("<u8").view(np.uint8)
    is_key = np.ones(len(out), np.bool_)
    is_key[of_lengths] = False
    out[is_key] = keys
    return out


def _labels(files: PartFiles, read: Read, start: int, stop: int) -> bytes:
    """The bytes of the labels of images `[start, stop)`, which every row of an image must agree on."""
    labels = np.full(stop - start, _UNSEEN, np.int32)
    array = files.array(f.ROW_LABEL)
    for chunk in range(array.n_chunks):
        first, last = array.extent(chunk)
        of_rows = read(array, chunk)[: last - first]
        images = files.order.images(np.arange(first, last))
        if stop - start < files.spec.n_images:
            here = (images >= start) & (images < stop)
            of_rows, images = of_rows[here], images[here]
        before = labels[images - start]
        labels[images - start] = of_rows
        differs = (labels[images - start] != of_rows) | ((before != _UNSEEN) & (before != of_rows))
        if differs.any():
            raise DamagedStoreError(f"rows {first:,} to {last - 1:,} of the part give one image several labels")
    return labels.tobytes()

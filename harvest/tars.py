"""Images in WebDataset tars, each tar indexed once and then read by offset."""

import glob
import gzip
import json
import os
import re
import shutil
import tarfile
import tempfile
import weakref
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .images import IMAGE_SUFFIXES, ImageSet, Keys
from .labels import NO_LABEL, labels_from_words

_BLOCK = 512  # bytes of a tar header, and what a tar is padded to
_OPEN_TARS = 64  # descriptors a process keeps, far below the usual limit of 1024


@dataclass
class _Index:
    """Where each image lies, a number a list entry; -1 where a sample has no such sidecar."""

    tar: list[int] = field(default_factory=list)
    image: list[tuple[int, int]] = field(default_factory=list)  # offset, bytes
    json: list[tuple[int, int]] = field(default_factory=list)
    text: list[tuple[int, int]] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    name_of_label: dict[int, str] = field(default_factory=dict)
    n_ignored: int = 0
    notes: list[str] = field(default_factory=list)


class TarImages(ImageSet):
    """Images of WebDataset tars; the key is the member's path, after the tar's name where there are several tars."""

    def __init__(self, paths: list[str], index: _Index, spool: tempfile.TemporaryDirectory[str], **fields: Any) -> None:
        super().__init__(**fields)
        self._paths = paths
        self._tar = np.array(index.tar, np.int32)
        self._image, self._json, self._text = (
            np.array(places, np.int64).reshape(-1, 2) for places in (index.image, index.json, index.text)
        )
        self._spool: tempfile.TemporaryDirectory[str] | None = spool
        self._descriptors: dict[int, int] = {}

    def read(self, i: int) -> bytes:
        """Encoded bytes of image `i`."""
        return self._read(i, self._image)

    def metadata(self, i: int) -> dict[str, Any]:
        """The sample's `.json`, with its `.txt` as `caption` where the `.json` has none."""
        found: dict[str, Any] = {}
        if self._json[i, 0] >= 0:
            found = _parse_sidecar(self._read(i, self._json)) or {}
        if "caption" not in found and self._text[i, 0] >= 0:
            found["caption"] = self._read(i, self._text).decode("utf-8", "replace").strip()
        return found

    def close(self) -> None:
        """Remove the unpacked tars. Reading is over."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()
        if self._spool is not None:
            self._spool.cleanup()
            self._spool = None

    def __getstate__(self) -> dict[str, Any]:
        # The process that made the temporary files removes them; a copy in another process only reads.
        return self.__dict__ | {"_descriptors": {}, "_spool": None}

    def _read(self, i: int, places: NDArray[np.int64]) -> bytes:
        offset, n_bytes = (int(x) for x in places[i])
        data = os.pread(self._descriptor(int(self._tar[i])), n_bytes, offset)
        if len(data) != n_bytes:
            raise OSError(
                f"{self._paths[self._tar[i]]} ends before byte {offset + n_bytes}: it was cut since it was indexed"
            )
        return data

    def _descriptor(self, tar: int) -> int:
        descriptor = self._descriptors.pop(tar, None)
        if descriptor is None:
            if len(self._descriptors) >= _OPEN_TARS:
                os.close(self._descriptors.pop(next(iter(self._descriptors))))  # the one unused for longest
            descriptor = os.open(self._paths[tar], os.O_RDONLY)
        self._descriptors[tar] = descriptor
        return descriptor


def expand_tars(pattern: str) -> list[str]:
    """Paths of the tars that a name, a glob or a brace range (`part-{000..127}.tar`) stands for, in sorted order.

    Raises
    ------
    FileNotFoundError
        When there are none.
    """
    paths: list[str] = []
    for name in _expand_braces(pattern):
        paths += [name] if os.path.exists(name) else sorted(glob.glob(name))
    if not paths:
        raise FileNotFoundError(f"{pattern}: there is no such tar.")
    return paths


def open_tars(paths: Sequence[str], description: str) -> TarImages:
    """Index tars of WebDataset samples: members whose names agree up to the first dot of the file name.

    A sample's label comes from its `.json` (`label_id`, `label`) or its `.cls`, its caption from its `.json`
    (`caption`) or its `.txt`. A tar without sidecars is a list of images without labels. Gzip has no random access, so
    a `.tar.gz` is unpacked once to a plain tar in the folder for temporary files (TMPDIR), removed on `close`.

    Raises
    ------
    ValueError
        When a tar is cut short or damaged, or gives one label two names. Nothing of a damaged tar is used: what is
        missing from it would be missing from every number later.
    """
    spool = tempfile.TemporaryDirectory(prefix="thresher-images-")
    try:
        index = _Index()
        prefixes = _prefixes(paths)
        plain: list[str] = []
        for number, path in enumerate(paths):
            plain.append(path if path.endswith(".tar") else _unpack(path, Path(spool.name) / f"{number}.tar"))
            _index_tar(index, number, path, plain[-1], prefixes[number])
        labels, classes = _labels(index)
    except BaseException:
        spool.cleanup()
        raise
    notes = index.notes
    if index.n_ignored:
        notes.append(f"{index.n_ignored:,} members of the tars are neither images nor sidecars and were ignored.")
    images = TarImages(
        plain,
        index,
        spool,
        keys=Keys(index.keys),
        labels=labels,
        classes=classes,
        description=description,
        notes=notes,
    )
    weakref.finalize(images, spool.cleanup)
    return images


def _index_tar(index: _Index, number: int, shown: str, path: str, prefix: bytes) -> None:
    with open(path, "rb") as file:
        sample: list[tuple[bytes, bytes, tuple[int, int]]] = []  # member, its suffix, its place
        stem = (b"", b"")
        last = ""
        tar = None
        try:
            tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 - it only borrows the file
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
                last = member.name
                if not member.isfile():
                    continue
                name = member.name.encode("utf-8", "surrogateescape").removeprefix(b"./")
                folder, _, base = name.rpartition(b"/")
                first, _, suffix = base.partition(b".")
                if base.startswith(b"."):
                    index.n_ignored += 1
                    continue
                if (folder, first) != stem:
                    _add_sample(index, number, file.fileno(), prefix, sample)
                    sample, stem = [], (folder, first)
                sample.append((name, suffix.lower(), (member.offset_data, member.size)))
            _add_sample(index, number, file.fileno(), prefix, sample)
            _check_end(index, file.fileno(), tar.offset, shown, last)
        except tarfile.TarError as error:
            raise _cut(shown, tar.offset if tar is not None else 0, last, str(error)) from error


def _check_end(index: _Index, descriptor: int, offset: int, shown: str, last: str) -> None:
    """Tell a tar's proper end from a cut: tarfile itself takes half a header for the end."""
    after = os.pread(descriptor, _BLOCK, offset)
    if not after:
        index.notes.append(f"{shown} has no end mark after its last member {last!r}; it may have been cut short there.")
    elif after.strip(b"\0") or len(after) < _BLOCK:
        raise _cut(shown, offset, last, "no whole header there")


def _cut(shown: str, offset: int, last: str, reason: str) -> ValueError:
    after = f"after the member {last!r}" if last else "before its first member"
    return ValueError(
        f"{shown} is cut short or damaged at byte {offset:,}, {after} ({' '.join(reason.split())}): "
        "fetch it again, or leave it out of IMAGES."
    )


def _add_sample(
    index: _Index, number: int, descriptor: int, prefix: bytes, sample: list[tuple[bytes, bytes, tuple[int, int]]]
) -> None:
    images = [m for m in sample if b"." + m[1] in IMAGE_SUFFIXES]
    # `cat.seg.png` beside `cat.jpg` is another view of the sample; alone, it is an image with a dot in its name
    images = images or [m for m in sample if b"." + m[1].rpartition(b".")[2] in IMAGE_SUFFIXES]
    places = {suffix: place for _, suffix, place in sample}
    sidecars = {b"json", b"cls", b"txt"}
    index.n_ignored += sum(1 for m in sample if m not in images and m[1] not in sidecars)
    if not images:
        return
    word = ""
    if b"json" in places:
        said = _parse_sidecar(_pread(descriptor, places[b"json"]))
        if said is not None:
            word = _word_of(index, said)
    if not word and b"cls" in places:
        word = _pread(descriptor, places[b"cls"]).decode("utf-8", "replace").strip()
    for name, _, place in images:
        index.tar.append(number)
        index.image.append(place)
        index.json.append(places.get(b"json", (-1, -1)))
        index.text.append(places.get(b"txt", (-1, -1)))
        index.keys.append(prefix + name)
        index.words.append(word)


def _word_of(index: _Index, said: dict[str, Any]) -> str:
    label, label_id = said.get("label"), said.get("label_id")
    if isinstance(label_id, int) and not isinstance(label_id, bool):
        if isinstance(label, str):
            known = index.name_of_label.setdefault(label_id, label)
            if known != label:
                raise ValueError(f"label_id {label_id} is called both {known!r} and {label!r} by the tars' JSON.")
        return str(label_id)
    return str(label) if isinstance(label, str | int) and not isinstance(label, bool) else ""


def _labels(index: _Index) -> tuple[NDArray[np.int32], list[str] | None]:
    labels, classes = labels_from_words(index.words)
    if classes is None and index.name_of_label:
        n_classes = max(int(labels.max(initial=NO_LABEL)), *index.name_of_label) + 1
        classes = [index.name_of_label.get(i, f"class {i}") for i in range(n_classes)]
    return labels, classes


def _parse_sidecar(data: bytes) -> dict[str, Any] | None:
    try:
        said = json.loads(data)
    except ValueError:
        return None
    return said if isinstance(said, dict) else None


def _pread(descriptor: int, place: tuple[int, int]) -> bytes:
    return os.pread(descriptor, place[1], place[0])


def _unpack(path: str, plain: Path) -> str:
    try:
        with gzip.open(path, "rb") as packed, open(plain, "wb") as out:
            shutil.copyfileobj(packed, out, 1 << 20)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(
            f"{path} is cut short or damaged ({error}): fetch it again, or leave it out of IMAGES."
        ) from error
    return str(plain)


def _prefixes(paths: Sequence[str]) -> list[bytes]:
    if len(paths) == 1:
        return [b""]
    parent = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
    names = [os.path.relpath(os.path.abspath(path), parent) for path in paths]
    return [os.fsencode(re.sub(r"\.(tar|tar\.gz|tgz)$", "", name)) + b"/" for name in names]


def _expand_braces(pattern: str) -> Iterator[str]:
    match = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if match is None:
        yield pattern
        return
    first, last = match[1], match[2]
    for number in range(int(first), int(last) + 1):
        yield from _expand_braces(f"{pattern[: match.start()]}{number:0{len(first)}d}{pattern[match.end() :]}")

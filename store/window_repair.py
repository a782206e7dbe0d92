"""Puts rows that were made again in place of the damaged chunks of their window, and holds them to what is left."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..progress import Reporter
from . import format as f
from .codec import CHECKSUM_BYTES
from .errors import DamagedStoreError
from .metadata import is_self_consistent
from .part_files import ArrayFiles, PartFiles
from .provenance import differences
from .self_repair import Key
from .survey import to_float
from .writer import EncodedChunk, WindowWriter

BIT_FOR_BIT = "harvested again and restored bit for bit"
ANEW = "harvested again and recorded anew"
_AS_THE_REST = "harvested again; its record was lost, and the rest of its window came out bit for bit"
_UNKNOWN = "harvested again and recorded anew; its record was lost, and with it whether these are the same bits"

_UNTOUCHED = 0.05  # relative difference below which a row of a damaged chunk is one that the damage did not touch
_ROW_PACKAGES = ("torch", "torchvision", "open_clip_torch", "pillow")  # which decide what a row's last bits are


class WindowRepair:
    """Writes the damaged chunks of windows.

    Parameters
    ----------
    files
        Of the part.
    versions
        Of the packages here.
    reporter
        Told of rows that are not, to the last bit, what they were.
    """

    def __init__(self, files: PartFiles, versions: Mapping[str, str], reporter: Reporter) -> None:
        self._files, self._reporter = files, reporter
        then = files.spec.provenance.packages
        here = {name: versions[name] for name in _ROW_PACKAGES if name in versions and name in then}
        self._other_versions = differences("packages", {name: then[name] for name in here}, here)

    def write(self, window: WindowWriter, damaged: Collection[Key]) -> tuple[dict[Key, str], str]:
        """Write the damaged chunks of a window from its rows.

        A chunk is the one that was committed where its bytes have the committed checksum, or, where the record is lost,
        are those that still stand, or where all other vectors of its window are. Others are written only where the
        packages are those of then, and what no damage touched shows that the images are.

        Parameters
        ----------
        window
            With all of its rows.
        damaged
            The chunks to write.

        Returns
        -------
        How each chunk that was written came to be, and why others were not.
        """
        chunks = {(chunk.array, chunk.number): chunk for chunk in window.encoded()}
        records = {key: self._record(key) for key in chunks}
        for key, chunk in chunks.items():
            changed = _changed_images(chunk, records[key])
            if changed:
                return {}, f"the images of window {window.number} are not read as they were: {changed}"
        known = {key: self._is_as_committed(chunk, records[key]) for key, chunk in chunks.items()}
        told = {is_same for key, is_same in known.items() if key[0].startswith("layers/") and is_same is not None}
        how: dict[Key, str] = {}
        others: list[Key] = []
        for key in damaged:
            if known[key] or (known[key] is None and key[0].startswith("layers/") and told == {True}):
                self._write(chunks[key], with_record=records[key] is None)
                how[key] = BIT_FOR_BIT if known[key] else _AS_THE_REST
            else:
                others.append(key)
        if others and self._other_versions:
            return how, (
                f"its rows {_may(known, others)} otherwise than they were committed, and {self._other_versions[0]}: "
                "repair it with that version"
            )
        if False in [known[key] for key in others]:
            distances = self._distances(chunks, damaged)
            sign = self._sign_of_other_images(window.number, known, others, damaged, distances)
            if sign:
                return how, (
                    f"the images of window {window.number} are others than were harvested, though named alike: {sign}. "
                    "Name the original IMAGES"
                )
            self._reporter.warn(_comparison(window.number, distances))
        for key in others:
            self._write(chunks[key], with_record=True)
            how[key] = _UNKNOWN if known[key] is None else ANEW
        return how, ""

    def _record(self, key: Key) -> dict[str, Any] | None:
        """The commit record of a chunk; None where it cannot be believed."""
        try:
            return self._files.parse_record(*key, self._files.objects.read_many([f.record_file(*key)])[0])
        except DamagedStoreError:
            return None

    def _is_as_committed(self, chunk: EncodedChunk, record: dict[str, Any] | None) -> bool | None:
        """Whether a chunk came out as it was committed; None where its record is lost, and what stands there too."""
        if record is not None:
            fields = ("bytes", "crc32c", "files", "chunks")  # the last two of thumbnails
            return all(record.get(field) == chunk.record.get(field) for field in fields)
        names = list(chunk.files)
        standing = self._files.objects.read_many(names)
        if all(b"".join(chunk.files[name]) == data for name, data in zip(names, standing, strict=True)):
            return True
        if not chunk.array.startswith("layers/") or standing[0] is None or not is_self_consistent(standing[0]):
            return None
        # Its own checksum is right; if some of its rows are these, it is not the chunk of another place.
        is_the_chunk = (self._row_differences(self._files.array(chunk.array), chunk) < _UNTOUCHED).any()
        return False if is_the_chunk else None

    def _sign_of_other_images(
        self,
        window: int,
        known: Mapping[Key, bool | None],
        others: Collection[Key],
        damaged: Collection[Key],
        distances: NDArray[np.float64],
    ) -> str:
        """What shows that rows differ because their images do, and not the machine; empty where nothing does."""
        largest = float(distances.max(initial=0.0))
        if largest >= _UNTOUCHED:
            return f"stored vectors that no damage touched differ from the new ones by {largest:.2g} (relative L2)"
        if known.get((f.THUMBS, window)) is False and (f.THUMBS, window) not in damaged:
            return "its thumbnails, which no damage touched, differ from the new ones"
        if (
            len(distances)
            and largest == 0
            and any(key[0].startswith("layers/") for key in others if known[key] is False)
        ):
            return "the vectors that no damage touched come out bit for bit, and others do not"
        return ""

    def _write(self, chunk: EncodedChunk, *, with_record: bool) -> None:
        self._files.objects.write_all(chunk.files)
        if with_record:
            self._files.objects.write_all(chunk.record_files)

    def _distances(self, chunks: Mapping[Key, EncodedChunk], damaged: Collection[Key]) -> NDArray[np.float64]:
        """How far each row of a window that no damage touched is from the new one (relative L2)."""
        found = [np.empty(0)]
        for key, chunk in chunks.items():
            if key[0].startswith("layers/"):
                some = self._row_differences(self._files.array(key[0]), chunk)
                found.append(some[some < _UNTOUCHED] if key in damaged else some)
        return np.concatenate(found)

    def _row_differences(self, array: ArrayFiles, chunk: EncodedChunk) -> NDArray[np.float64]:
        """Relative distance of each readable row of a chunk, as it stands, from the new one; none where it is lost."""
        (name,) = chunk.files
        new = b"".join(chunk.files[name])
        standing = self._files.objects.read_many([name])[0]
        is_whole = standing is not None and is_self_consistent(standing)
        # A damaged stream of a compressor is not decoded: it may say anything, and crash.
        if standing is None or not (is_whole or (array.codec.name == "none" and len(standing) == len(new))):
            return np.empty(0)
        dtype = self._files.spec.dtype
        a, b = (
            to_float(array.codec.decode(data[:-CHECKSUM_BYTES], array.chunk_shape, array.dtype), dtype)
            for data in (standing, new)
        )
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            distance = np.linalg.norm(a.astype(np.float64) - b, axis=1) / np.linalg.norm(b.astype(np.float64), axis=1)
        return distance[np.isfinite(distance)]


def _comparison(window: int, distances: NDArray[np.float64]) -> str:
    told = (
        f"{len(distances):,} stored vectors of the window that no damage touched differ from the new ones by "
        f"{distances.max():.2g} at most (relative L2)"
        if len(distances)
        else "no row of the window is left to compare them with"
    )
    return f"window {window}: its rows come out otherwise than on the machine of then; {told}."


def _may(known: Mapping[Key, bool | None], keys: Collection[Key]) -> str:
    return "come out" if False in [known[key] for key in keys] else "may come out"


def _changed_images(chunk: EncodedChunk, record: dict[str, Any] | None) -> str:
    """How the images of a chunk that could be read are others than its record says; empty where they are not."""
    if record is None or "valid_rows" not in record:
        return ""
    if record["valid_rows"] != chunk.record["valid_rows"]:
        return f"chunk {chunk.number} had {record['valid_rows']} readable rows, now {chunk.record['valid_rows']}"
    then, now = ({image for image, _ in each.get("unreadable", ())} for each in (record, chunk.record))
    if then != now:
        return f"images {sorted(then ^ now)[:5]} could be read at one time and not at the other"
    return ""

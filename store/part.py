"""One part of a store: what one harvest wrote, finished and undamaged as far as its metadata shows."""

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import format as f
from .attributes import read_group_attributes
from .chunks import ChunkReader
from .codec import CHECKSUM_BYTES, unseal
from .errors import DamagedStoreError, StoreError, UnfinishedStoreError
from .objects import Objects
from .positions import Positions
from .provenance import Provenance
from .records import VERIFY, crc32c, decode_record, encode_record, to_hex
from .row_order import Indices, RowOrder

_WINDOWS_AT_ONCE = 16  # whose thumbnails are read together: some 64 MB of them


class StorePart:
    """The rows of one harvest, by their numbers in it.

    Parameters
    ----------
    objects
        Of the part.
    reference
        Where it is, as the store that it is part of names it (`parts/1`, `../other.zarr`); None for the store's own
        rows.

    Raises
    ------
    StoreError
        When there is no store.
    UnfinishedStoreError
        When its harvest has not committed every chunk.
    DamagedStoreError
        When its metadata is not what was committed.
    """

    def __init__(self, objects: Objects, reference: str | None = None) -> None:
        self.objects = objects
        self.name = part_name(reference)
        """As messages call it."""
        self.attributes = attributes = read_group_attributes(objects)
        self.metadata_crc32c = check_metadata(objects)  # before anything that the attributes say is believed
        self.n_rows: int = attributes["n_rows"]
        self.n_images: int = attributes["n_images"]
        self.tokens_per_image: int = attributes["tokens_per_image"]
        self.rows_per_chunk: int = attributes["rows_per_chunk"]
        self.row_order: str = attributes["row_order"]
        self.thumbnail_px: int | None = attributes["thumbnail_px"]
        self.sites = tuple(f.Site.parse(name) for name in attributes["arrays"])
        self.n_chunks = f.n_chunks(self.n_rows, self.rows_per_chunk)
        self.provenance = Provenance.from_json(attributes["provenance"])
        self.order = RowOrder(
            self.n_images, self.tokens_per_image, self.rows_per_chunk, self.row_order, attributes["seed"]
        )
        self._require_committed()
        self._readers: dict[str, ChunkReader] = {}
        self.unreadable: list[tuple[int, str]] = self._read_unreadable()
        """(image, reason) of each image that could not be read, in the order of the source."""
        self.positions = Positions(self.order, np.array([image for image, _ in self.unreadable], np.int64))

    @property
    def fingerprint(self) -> str:
        """What tells this part from every other: a digest of its metadata, provenance and images included."""
        return self.metadata_crc32c + self.provenance.keys_sha256[:24]

    def array(self, name: str) -> ChunkReader:
        """The reader of an array."""
        if name not in self._readers:
            self._readers[name] = ChunkReader(self.objects, name, self.metadata_crc32c)
        return self._readers[name]

    def tokens(self, start: int, stop: int) -> NDArray[np.uint16]:
        """Place in the tower's sequence of the token of each row `[start, stop)`; 0 is the class token."""
        if self.tokens_per_image > 1:
            return self.array(f.ROW_TOKEN).read(start, stop)
        return np.zeros(stop - start, np.uint16)

    def keys(self, images: Iterable[int]) -> list[str]:
        """The stable id of each image; bytes that are not UTF-8 come as surrogates (`os.fsdecode`)."""
        offset, blob = self.array(f.KEY_OFFSET), self.array(f.KEY_BLOB)
        keys = []
        for image in images:
            start, stop = (int(edge) for edge in offset.read(image, image + 2))
            keys.append(os.fsdecode(blob.read(start, stop).tobytes()))
        return keys

    def thumbnails(self, images: Indices) -> list[bytes | None]:
        """WebP bytes of each image, None where the part holds none.

        Raises
        ------
        DamagedStoreError
            When the bytes are not those that were committed.
        """
        found: list[bytes | None] = [None] * len(images)
        if self.thumbnail_px is None:
            return found
        window, nth = np.divmod(self.order.places(images), self.rows_per_chunk)
        windows: list[int] = np.unique(window).tolist()
        for begin in range(0, len(windows), _WINDOWS_AT_ONCE):
            some = windows[begin : begin + _WINDOWS_AT_ONCE]
            for each, (blob, offset) in zip(some, self._read_thumbnails(some), strict=True):
                for i in np.flatnonzero(window == each).tolist():
                    start, stop = offset[nth[i] : nth[i] + 2].tolist()
                    found[i] = bytes(blob[start:stop]) or None
        return found

    def _read_thumbnails(self, windows: list[int]) -> Iterator[tuple[memoryview, NDArray[np.uint64]]]:
        """The pictures of each window end to end, and where each begins."""
        paths = [f.thumbs_chunks(window) for window in windows]
        names = [
            [f.thumbs_record_file(w), path["blob"], path["offset"]] for w, path in zip(windows, paths, strict=True)
        ]
        read = iter(self.objects.read_many([name for some in names for name in some]))
        for window, path in zip(windows, paths, strict=True):
            record, blob, offset = islice(read, 3)
            committed = self._thumbnails_record(window, record)["chunks"]
            yield (
                self._unsealed(path["blob"], blob, committed["blob"]),
                np.frombuffer(self._unsealed(path["offset"], offset, committed["offset"]), np.uint64),
            )

    def _thumbnails_record(self, window: int, data: bytes | None) -> dict[str, Any]:
        where = f"{self.objects}/{f.thumbs_record_file(window)}"
        if data is None:
            raise DamagedStoreError(f"{where} is missing. {VERIFY}")
        record = decode_record(data, where)
        if (record.get("chunk"), record.get("metadata_crc32c")) != (window, self.metadata_crc32c):
            raise DamagedStoreError(f"{where} belongs to other thumbnails. {VERIFY}")
        return record

    def _unsealed(self, name: str, data: bytes | None, committed: dict[str, Any]) -> memoryview:
        if data is None:
            raise DamagedStoreError(f"{self.objects}/{name} is missing, though it was committed. {VERIFY}")
        return unseal(data, int(committed["crc32c"], 16), f"{self.objects}/{name}")

    def _read_unreadable(self) -> list[tuple[int, str]]:
        # A window's list stands in the record of its first chunk.
        valid = self.array(f.ROW_VALID)
        first: Sequence[int] = range(0, self.n_chunks, self.tokens_per_image)
        if self.objects.local is None:
            # Thousands of requests, where one listing tells the few records that are longer than one without a list.
            sizes = dict(self.objects.walk(f"commits/{f.ROW_VALID}"))
            first = [c for c in first if sizes.get(f.record_file(f.ROW_VALID, c)) != self._bytes_without_list(c)]
        return sorted(
            (int(image), str(reason)) for record in valid.records(first) for image, reason in record["unreadable"]
        )

    def _bytes_without_list(self, chunk: int) -> int:
        """Size of the record of a chunk of `rows/valid` whose images could all be read."""
        start = chunk * self.rows_per_chunk
        stop = min(start + self.rows_per_chunk, self.n_rows)
        record = {
            **{"array": f.ROW_VALID, "chunk": chunk, "metadata_crc32c": self.metadata_crc32c},
            **{"bytes": self.rows_per_chunk + CHECKSUM_BYTES, "crc32c": to_hex(0)},
            **{"rows": [start, stop], "valid_rows": stop - start, "unreadable": []},
        }
        return len(encode_record(record))

    def _require_committed(self) -> None:
        missing: set[int] = set()  # windows
        for array in [*(site.path for site in self.sites), f.ROW_VALID]:
            names = self.objects.names(f"commits/{array}")
            missing |= {c // self.tokens_per_image for c in range(self.n_chunks) if f"{c}.json" not in names}
        if self.thumbnail_px is not None:
            names = self.objects.names(f"commits/{f.THUMBS}")
            missing |= {window for window in range(self.order.n_windows) if f"{window}.json" not in names}
        if missing:
            rows = (self.order.window_rows(window) for window in missing)
            done = self.n_rows - sum(stop - start for start, stop in rows)
            raise UnfinishedStoreError(
                f"{self.objects} holds {done:,} of {self.n_rows:,} rows: the harvest did not finish. "
                "Run the same `thresher harvest` again to resume it."
            )


def part_name(reference: str | None) -> str:
    """What messages call a part: by where it is, since rows of the store's own, where there are any, come before it."""
    return "its own rows" if reference is None else f"part {reference}"


def check_metadata(objects: Objects) -> str:
    """Check every document that a store's metadata record names; gives the record's own checksum.

    Raises
    ------
    DamagedStoreError
        Naming the document that is missing or changed.
    """
    try:
        data = objects.read(f.METADATA_RECORD)
    except FileNotFoundError:
        raise DamagedStoreError(f"{objects}/{f.METADATA_RECORD} is missing. {VERIFY}") from None
    files = decode_record(data, f"{objects}/{f.METADATA_RECORD}")["files"]
    for (name, checksum), document in zip(files.items(), objects.read_many(list(files)), strict=True):
        if document is None:
            raise DamagedStoreError(f"{objects}/{name} is missing. {VERIFY}")
        found = to_hex(crc32c(document))
        if found != checksum:
            raise DamagedStoreError(
                f"{objects}/{name} is damaged: it has checksum {found}, {checksum} was committed. {VERIFY}"
            )
    return to_hex(crc32c(data))


def require_alike(first: StorePart, other: StorePart) -> None:
    """Check that two parts can be one store.

    Raises
    ------
    StoreError
        Naming what differs.
    """
    what = f"{other.objects} cannot be joined with {first.objects}"
    first.provenance.require_same_kind(other.provenance, what)
    for name in ("arrays", "tokens_per_image"):
        mine, theirs = first.attributes[name], other.attributes[name]
        if mine != theirs:
            raise StoreError(f"{what}: {name} is {mine!r} there and {theirs!r} here.")
    if (first.attributes["label_names"] is None) != (other.attributes["label_names"] is None):
        raise StoreError(f"{what}: label_names are in one of them only; harvest with --label-names.")

"""What the commit records of an array say of all its chunks."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .shuffle import Permutation

if TYPE_CHECKING:
    from .reader import ActivationArray

RECORDS = 16_384
"""Records that are read: all of an array of up to 16 million rows at the default size of chunks."""

_RECORD_ORDER = 9  # first word of the key of their order, see `shuffle`
_TOGETHER = 1024  # neighbours come in one round of requests from a bucket


@dataclass(frozen=True, kw_only=True)
class Committed:
    """What the commit records of an array's chunks say."""

    n_chunks: int
    n_read: int
    """Chunks whose record was read; the other numbers are of these."""
    max_abs: float
    """Largest magnitude, before it was rounded to the stored dtype."""
    stored_bytes: int
    """Of the chunks' files."""
    raw_bytes: int
    """Of the same chunks without compression and checksum."""

    @property
    def codec_ratio(self) -> float:
        """How many times smaller the codec made the chunks."""
        return self.raw_bytes / self.stored_bytes


def read_committed(array: "ActivationArray", seed: int = 0) -> Committed:
    """What the commit records of an array say: all of them, or random ones where there are more than `RECORDS`."""
    readers = [part.array(array.site.path) for part in array.store.parts]
    groups = [
        (reader, range(first, min(first + _TOGETHER, reader.n_chunks)))
        for reader in readers
        for first in range(0, reader.n_chunks, _TOGETHER)
    ]
    n_groups = min(len(groups), RECORDS // _TOGETHER)
    chosen = Permutation(len(groups), _RECORD_ORDER, seed)(np.arange(n_groups)).tolist()
    n_read, max_abs, stored_bytes, raw_bytes = 0, 0.0, 0, 0
    for reader, chunks in (groups[i] for i in chosen):
        for chunk in chunks:
            record = reader.record(chunk)
            n_read += 1
            max_abs = max(max_abs, float(record["max_abs"]))
            stored_bytes += int(record["bytes"])
            raw_bytes += reader.chunk_rows * reader.row_bytes
    return Committed(
        n_chunks=sum(reader.n_chunks for reader in readers),
        n_read=n_read,
        max_abs=max_abs,
        stored_bytes=stored_bytes,
        raw_bytes=raw_bytes,
    )

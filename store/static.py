"""The arrays that are known and written when a store is made: each row's image, label and token, the images' keys."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import format as f
from .codec import ChunkCodec, encode_chunk
from .layout import StoreSpec, static_arrays
from .objects import Objects
from .records import encode_record
from .row_order import RowOrder


def write_static_array(
    objects: Objects,
    spec: StoreSpec,
    name: str,
    keys: Sequence[bytes],
    labels: NDArray[np.signedinteger[Any]],
    metadata_crc32c: str,
    only: set[int] | None = None,
) -> None:
    """Write and record an array that is known when the store is made, in memory that does not grow with its rows.

    Parameters
    ----------
    objects
        Of the store.
    spec
        Of the store.
    name
        `rows/image`, `rows/label`, `rows/token`, `images/key_blob` or `images/key_offset`.
    keys, labels
        Of the images, in source order.
    metadata_crc32c
        Of the store's metadata record.
    only
        The chunks to write; all of them where None.
    """
    size, dtype, fill, _ = static_arrays(spec, sum(map(len, keys)))[name]
    length = min(f.STATIC_CHUNK, size)
    for chunk, values in enumerate(_static_values(spec, name, keys, labels)):
        if only is not None and chunk not in only:
            continue
        padded = np.full(length, fill, dtype)
        padded[: len(values)] = values
        parts, committed = encode_chunk(padded, ChunkCodec("none"))
        objects.write(f.chunk_file(name, chunk, 1), *parts)
        identity = {"array": name, "chunk": chunk, "metadata_crc32c": metadata_crc32c}
        objects.write(f.record_file(name, chunk), encode_record({**identity, **committed}))


def _static_values(
    spec: StoreSpec, name: str, keys: Sequence[bytes], labels: NDArray[np.signedinteger[Any]]
) -> Iterator[NDArray[Any]]:
    """The values of a static array, chunk after chunk."""
    if name == f.KEY_BLOB:
        blob = np.frombuffer(b"".join(keys), np.uint8)
        yield from (blob[i : i + f.STATIC_CHUNK] for i in range(0, len(blob), f.STATIC_CHUNK))
        return
    if name == f.KEY_OFFSET:
        edges = np.zeros(len(keys) + 1, np.uint64)
        np.cumsum(np.fromiter(map(len, keys), np.uint64, len(keys)), out=edges[1:])
        yield from (edges[i : i + f.STATIC_CHUNK] for i in range(0, len(edges), f.STATIC_CHUNK))
        return
    order = spec.order()
    for start in range(0, spec.n_rows, f.STATIC_CHUNK):
        values = ordered_values(spec, order, name, start, min(start + f.STATIC_CHUNK, spec.n_rows))
        yield labels[values] if name == f.ROW_LABEL else values


def ordered_values(spec: StoreSpec, order: RowOrder, name: str, start: int, stop: int) -> NDArray[np.int64]:
    """What the order of the rows says of rows `[start, stop)`: their tokens for `rows/token`, else their images."""
    rows = np.arange(start, stop)
    if name == f.ROW_TOKEN:
        return order.tokens(rows) + f.first_token(next(iter(spec.sites)).token)
    return order.images(rows)

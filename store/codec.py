"""A chunk's bytes: the array in little-endian C order, through the store's codec, then its CRC-32C."""

from typing import Any

import numpy as np
from numcodecs import blosc
from numcodecs.zstd import Zstd
from numpy.typing import NDArray

from .errors import DamagedStoreError, StoreError
from .records import crc32c, to_hex

ZSTD_LEVEL = 1
BLOSC_LEVEL = 5
CHECKSUM_BYTES = 4


class ChunkCodec:
    """Turns chunks into bytes and back, as zarr v3's `bytes`, (`zstd` | `blosc`), `crc32c` codecs do."""

    def __init__(self, name: str) -> None:
        self.name = name

    def encode(self, chunk: NDArray[Any]) -> bytes | memoryview:
        """The bytes of a chunk, without the checksum."""
        if self.name == "none":
            return np.ascontiguousarray(chunk).data.cast("B")
        if self.name == "zstd":
            return bytes(Zstd(level=ZSTD_LEVEL).encode(np.ascontiguousarray(chunk)))
        return bytes(
            blosc.compress(np.ascontiguousarray(chunk), b"lz4", BLOSC_LEVEL, blosc.SHUFFLE, typesize=chunk.itemsize)
        )

    def decode(self, payload: bytes | memoryview, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """The chunk of a payload, `shape`; a view of the payload where there is no compressor."""
        if self.name == "zstd":
            payload = Zstd().decode(payload)
        elif self.name == "blosc-lz4":
            payload = blosc.decompress(payload)
        return np.frombuffer(payload, dtype).reshape(shape)

    @classmethod
    def of_metadata(cls, chain: list[dict[str, Any]], array: str) -> "ChunkCodec":
        """The codec of a chain found in an array's metadata.

        Raises
        ------
        StoreError
            When the chain is not one that a store of this format has.
        """
        names = [codec["name"] for codec in chain]
        for name, middle in (("none", []), ("zstd", ["zstd"]), ("blosc-lz4", ["blosc"])):
            if names == ["bytes", *middle, "crc32c"]:
                return cls(name)
        raise StoreError(f"{array} has the codecs {names}, which this version of the format does not know.")


def seal(payload: bytes | memoryview) -> tuple[bytes, int]:
    """The checksum that follows a payload on disk, and its value."""
    checksum = crc32c(payload)
    return checksum.to_bytes(CHECKSUM_BYTES, "little"), checksum


def encode_chunk(values: NDArray[Any], codec: ChunkCodec) -> tuple[list[bytes | memoryview], dict[str, Any]]:
    """The bytes of a chunk's file, in parts, and what its commit record says of them."""
    payload = codec.encode(values)
    checksum_bytes, checksum = seal(payload)
    return [payload, checksum_bytes], {"bytes": len(payload) + len(checksum_bytes), "crc32c": to_hex(checksum)}


def unseal(data: bytes | memoryview, expected: int, what: str) -> memoryview:
    """The payload of a chunk file.

    Raises
    ------
    DamagedStoreError
        When the file's own checksum or the committed one does not match its bytes.
    """
    payload = memoryview(data)[:-CHECKSUM_BYTES]
    own = int.from_bytes(data[-CHECKSUM_BYTES:], "little")
    found = crc32c(payload)
    if found != expected or own != expected:
        raise DamagedStoreError(
            f"{what} is damaged: its bytes have checksum {found:08x}, {expected:08x} was committed. "
            "Run `thresher verify` to see all that is wrong."
        )
    return payload

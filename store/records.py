"""Commit records: one small file a chunk that says which bytes the chunk must have, checked itself by a checksum."""

import json
import re
from collections.abc import Iterator
from typing import Any

import google_crc32c
import numpy as np

from .errors import DamagedStoreError
from .objects import Objects

VERIFY = "Run `thresher verify` to see all that is wrong."


def crc32c(data: bytes | memoryview) -> int:
    """CRC-32C (Castagnoli; RFC 3720), the checksum of zarr's `crc32c` codec."""
    # The library takes no writable memoryview, but a numpy view of one, without a copy.
    return int(google_crc32c.value(np.frombuffer(data, np.uint8))) if len(data) else 0


def to_hex(checksum: int) -> str:
    """A CRC-32C as records show it: eight hexadecimal digits."""
    return f"{checksum:08x}"


def encode_record(record: dict[str, Any]) -> bytes:
    """A record as its file holds it: one line of JSON whose last field is the checksum of all before it."""
    body = json.dumps(record, ensure_ascii=True, separators=(",", ":"))
    checksum = to_hex(crc32c(body.encode()))
    return f'{body[:-1]},"record_crc32c":"{checksum}"}}\n'.encode()


def decode_record(data: bytes, path: str) -> dict[str, Any]:
    """Read a record back.

    Raises
    ------
    DamagedStoreError
        When a byte of it has changed.
    """
    head, separator, tail = data.rpartition(b',"record_crc32c":"')
    if not separator or tail != f'{to_hex(crc32c(head + b"}"))}"}}\n'.encode():
        raise DamagedStoreError(f"{path} is damaged: its checksum does not match its text. {VERIFY}")
    return json.loads(head + b"}")


def corrected_record(data: bytes) -> bytes | None:
    """The text of a record of which one byte has changed; None where that is not what happened to it.

    A record of 200 bytes has 51,000 neighbours that differ in one byte: where more has changed, one of them has a right
    checksum by chance in one case of 84,000. So what it says is to be held to what else is known.
    """
    mark, end = b',"record_crc32c":"', b'"}\n'
    at = len(data) - len(mark) - 8 - len(end)
    if at < 1:
        return None
    head, tail = data[:at], data[at:]
    found = crc32c(head + b"}")
    whole = mark + to_hex(found).encode() + end
    if sum(a != b for a, b in zip(tail, whole, strict=True)) == 1:
        return head + whole
    if not re.fullmatch(re.escape(mark) + rb"[0-9a-f]{8}" + re.escape(end), tail):
        return None
    changes = list(_changed_bytes(found ^ int(tail[len(mark) : -len(end)], 16), at + 1))
    if len(changes) != 1 or changes[0][0] == at:  # the bracket after the head is not stored
        return None
    place, change = changes[0]
    return head[:place] + bytes((head[place] ^ change,)) + head[place + 1 :] + tail


def _changed_bytes(difference: int, n: int) -> Iterator[tuple[int, int]]:
    """Each place among `n` bytes, and what is to be XORed there, that changes their CRC-32C by this difference.

    The checksum is linear: a change at the last byte changes it by an entry of the table, one before it by that entry
    after a step over a zero byte. So the difference is stepped back, byte by byte, until it is an entry.
    """
    of_top_byte = {entry >> 24: number for number, entry in enumerate(_TABLE)}
    numbers = {entry: number for number, entry in enumerate(_TABLE)}
    for place in range(n - 1, -1, -1):
        if numbers.get(difference, 0):
            yield place, numbers[difference]
        number = of_top_byte[difference >> 24]
        difference = ((difference ^ _TABLE[number]) << 8 & 0xFFFFFFFF) | number


def _table() -> list[int]:
    """What a byte changes a CRC-32C by: the polynomial 0x1EDC6F41, bits reversed (RFC 3720)."""
    entries = []
    for entry in range(256):
        for _ in range(8):
            entry = entry >> 1 ^ (0x82F63B78 if entry & 1 else 0)
        entries.append(entry)
    return entries


_TABLE = _table()


def read_record(objects: Objects, name: str) -> dict[str, Any]:
    """Read one record; see `decode_record`."""
    return decode_record(objects.read(name), f"{objects}/{name}")

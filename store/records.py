"""Commit records: one small file a chunk that says which bytes the chunk must have, checked itself by a checksum."""

import json
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
    mark = b',"record_crc32c":"'
    at = len(data) - len(mark) - 8 - len(b'"}\n')
    if at < 1:
        return None
    head, tail = data[:at], data[at:]
    whole = mark + to_hex(crc32c(head + b"}")).encode() + b'"}\n'
    if sum(a != b for a, b in zip(tail, whole, strict=True)) == 1:
        return head + whole
    found = set()
    for i in range(at):
        before, after = head[:i], head[i + 1 :] + b"}"
        for byte in range(256):
            text = before + bytes((byte,)) + after
            if mark + b"%08x" % google_crc32c.value(text) + b'"}\n' == tail:
                found.add(text[:-1] + tail)
    return found.pop() if len(found) == 1 else None


def read_record(objects: Objects, name: str) -> dict[str, Any]:
    """Read one record; see `decode_record`."""
    return decode_record(objects.read(name), f"{objects}/{name}")

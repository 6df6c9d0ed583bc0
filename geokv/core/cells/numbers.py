"""Numbers in payloads: whole ones of 64 bits and floating ones, each with one encoding.

    i, zigzag varint       whole
    f, 8 bytes             IEEE 754, big-endian

A floating number that is whole and fits is stored as a whole one, so equal numbers have equal bytes.
"""

from __future__ import annotations

import math
from struct import Struct

from geokv.core.cells.operation import AMOUNT_MAX, Number
from geokv.core.cells.varint import read_varint, unzigzag, varint, zigzag
from geokv.errors import RecordError

_FLOAT = Struct(">d")


def encode_number(number: Number) -> bytes:
    if isinstance(number, float):
        if not number.is_integer() or abs(number) > AMOUNT_MAX:
            return b"f" + _FLOAT.pack(number)
        number = int(number)
    return b"i" + varint(zigzag(number))


def decode_number(payload: bytes, offset: int = 0) -> Number:
    """The number that the rest of the payload is. Raises RecordError."""
    kind = payload[offset : offset + 1]
    if kind == b"i":
        number, end = read_varint(payload, offset + 1)
        if end == len(payload):
            return unzigzag(number)
    elif kind == b"f" and len(payload) == offset + 1 + _FLOAT.size:
        decoded: float = _FLOAT.unpack_from(payload, offset + 1)[0]
        if math.isfinite(decoded):
            return decoded
    raise RecordError(f"not a number: {payload[offset : offset + 16]!r}")

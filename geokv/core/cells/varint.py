"""Whole numbers in few bytes: LEB128, in its one shortest form.

Invariants: one number has one encoding; `read_varint` refuses any other (RecordError), and never reads past the end.
"""

from __future__ import annotations

from typing import Final

from geokv.errors import RecordError

VARINT_BYTES_MAX: Final = 19  # 133 bits: totals of counters have at most 128


def append_varint(out: bytearray, number: int) -> None:
    """Append a number of 0 or more."""
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)


def varint(number: int) -> bytes:
    """The encoding alone."""
    if number < 128:
        return bytes((number,))
    out = bytearray()
    append_varint(out, number)
    return bytes(out)


def read_varint(buffer: bytes, offset: int) -> tuple[int, int]:
    """(number, offset behind it). Raises RecordError where none stands, or not in its shortest form."""
    try:
        byte = buffer[offset]
        if byte < 128:
            return byte, offset + 1
        number, shift = byte & 127, 7
        for position in range(offset + 1, offset + VARINT_BYTES_MAX):
            byte = buffer[position]
            number |= (byte & 127) << shift
            if byte < 128:
                if byte == 0:
                    raise RecordError(f"number at byte {offset} is not in its shortest form")
                return number, position + 1
            shift += 7
    except IndexError:
        raise RecordError(f"number at byte {offset} is cut off") from None
    raise RecordError(f"number at byte {offset} has more than {VARINT_BYTES_MAX} bytes")


def zigzag(number: int) -> int:
    """A signed number as one of 0 or more, small ones staying small: 0, -1, 1, -2 … as 0, 1, 2, 3 …"""
    return number << 1 if number >= 0 else (-number << 1) - 1


def unzigzag(number: int) -> int:
    """Inverse of `zigzag`."""
    return -((number + 1) >> 1) if number & 1 else number >> 1

"""The LWW cell: a last-writer-wins register in bytes that sort as its versions do.

    1   tag (1 = lww)
    8   version, big-endian                  } these four, compared as bytes, are the total order:
    n   origin: dc NUL node NUL incarnation  } version, then dc, then node, then dot
    8   number, big-endian                   }
    1   flags (1 tombstone, 2 has a deadline, 4 ended by an update under a later policy)
    8   deadline in HLC milliseconds, big-endian (0: none)
    8   version that it replaced, big-endian (0: none): the newest of the key that its writer had seen
        value

So merging two LWW cells is `max(a, b)`: one comparison in C, commutative, associative and idempotent by construction.

A write that had seen another names its version, or a later one, as the one that it replaced; so of two cells the one that
wins tells whether it is newer or only concurrent (`is_concurrent`).

Invariants: two cells with equal version, origin and number are the same cell, or one of them is the other, ended: it sorts just
above it, and below all that is later. A tombstone has no value.
Format page: docs/formats/record.md.
"""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple

from geokv.errors import RecordError

TAG: Final = b"\x01"
TOMBSTONE: Final = 1
DEADLINE: Final = 2
ENDED: Final = 4
_TAIL = Struct(">BQQ")
_U64 = Struct(">Q")
VERSION_MAX: Final = (1 << 63) - 1


class LwwCell(NamedTuple):
    """A decoded LWW cell. `deadline_ms` is 0 where there is none."""

    version: int
    origin: bytes
    number: int
    is_tombstone: bool
    deadline_ms: int
    replaced: int
    value: bytes


def encode_lww(
    version: int, origin: bytes, number: int, is_tombstone: bool, deadline_ms: int, replaced: int, value: bytes
) -> bytes:
    flags = (TOMBSTONE if is_tombstone else 0) | (DEADLINE if deadline_ms else 0)
    return (
        TAG + version.to_bytes(8, "big") + origin + number.to_bytes(8, "big") + _TAIL.pack(flags, deadline_ms, replaced) + value
    )


def lww_version(cell: bytes) -> int:
    """The version alone, without decoding the rest."""
    return int.from_bytes(cell[1:9], "big")


def lww_tail(cell: bytes) -> int:
    """Offset of the flags byte."""
    return cell.index(b"\0", cell.index(b"\0", 9) + 1) + 17


def is_concurrent(one: bytes, other: bytes) -> bool:
    """Whether neither of two different cells of a key had seen the other, so that merging them discards a concurrent value.

    Exact for two writes that meet; of three, one may hide the other's chain: a loser that arrives after its winner was
    overwritten here is told as seen (where the two met, in the other datacenter, it is not).
    """
    winner, loser = (one, other) if one > other else (other, one)
    tail = lww_tail(winner) + 9
    return one != other and winner[tail : tail + 8] < loser[1:9]


def decode_lww(cell: bytes) -> LwwCell:
    """Raises RecordError when the bytes are not an LWW cell."""
    try:
        if cell[:1] != TAG:
            raise ValueError("tag")
        tail = lww_tail(cell)
        flags, deadline_ms, replaced = _TAIL.unpack_from(cell, tail)
    except Exception as error:
        raise RecordError(f"not an lww cell: {cell[:24]!r} ({error})") from error
    return LwwCell(
        lww_version(cell),
        cell[9 : tail - 8],
        _U64.unpack_from(cell, tail - 8)[0],
        bool(flags & TOMBSTONE),
        deadline_ms,
        replaced,
        cell[tail + _TAIL.size :],
    )


def ended(cell: bytes) -> bytes:
    """What is left of a cell that an update under a later policy has seen: a tombstone that stands where it stood."""
    tail = lww_tail(cell)
    return cell[:tail] + _TAIL.pack(TOMBSTONE | ENDED, 0, _U64.unpack_from(cell, tail + 9)[0])


def live_value(cell: bytes, now_ms: int) -> bytes | None:
    """The value a reader sees at `now_ms`: None for a tombstone and for a cell past its deadline."""
    tail = lww_tail(cell)
    flags = cell[tail]
    if flags:
        if flags & TOMBSTONE:
            return None
        if flags & DEADLINE and _U64.unpack_from(cell, tail + 1)[0] <= now_ms:
            return None
    return cell[tail + 17 :]

"""An origin: one run of a coordinator, named by datacenter, node and incarnation.

Its packed form is `dc NUL node NUL incarnation` with the incarnation as eight big-endian bytes, so that packed origins
sort as (dc, node, incarnation) do; the LWW tie-break rests on it. Packed origins are interned: the same bytes object
serves as dictionary key on every path.

Invariants: names contain no NUL and at most 31 bytes; an incarnation is never used by two runs (it is drawn from time
and random bits, see `draw_incarnation`).
"""

from __future__ import annotations

import random
from functools import lru_cache
from typing import NamedTuple

NAME_BYTES_MAX = 31
PACKED_BYTES_MAX = 2 * (NAME_BYTES_MAX + 1) + 8
_RANDOM_BITS = 20


class Origin(NamedTuple):
    """(dc, node, incarnation); sorts like its packed form."""

    dc: str
    node: str
    incarnation: int

    def packed(self) -> bytes:
        return b"%b\0%b\0%b" % (self.dc.encode(), self.node.encode(), self.incarnation.to_bytes(8, "big"))

    def __str__(self) -> str:
        return f"{self.dc}/{self.node}/{self.incarnation:016x}"


@lru_cache(maxsize=8192)
def unpack_origin(packed: bytes) -> Origin:
    """Inverse of `Origin.packed`. Raises ValueError when the bytes are not a packed origin."""
    dc, _, rest = packed.partition(b"\0")
    node, separator, incarnation = rest.partition(b"\0")
    if not separator or len(incarnation) != 8 or not dc or not node:
        raise ValueError(f"not a packed origin: {packed!r}")
    return Origin(dc.decode(), node.decode(), int.from_bytes(incarnation, "big"))


def is_origin(packed: bytes) -> bool:
    """Whether these bytes are a packed origin."""
    try:
        unpack_origin(packed)
    except ValueError:
        return False
    return True


def draw_incarnation(wall_ms: int, rng: random.Random) -> int:
    """64 bits: 44 of wall milliseconds, 20 random. Drawn, never counted on from a disk that may be an old copy."""
    return (wall_ms & ((1 << 44) - 1)) << _RANDOM_BITS | rng.getrandbits(_RANDOM_BITS)

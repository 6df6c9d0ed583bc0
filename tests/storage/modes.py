"""Tests of storage that hold whether files are encrypted or not: each of them runs in both modes.

A module of tests takes its CrashDisk from here and says `pytestmark = pytest.mark.usefixtures("mode")`.
"""

import random

from geokv.storage import crash_disk
from geokv.storage.encryption.keys import KeyRing, Keys
from geokv.storage.wal_format import FRAME_HEADER_BYTES, RUN_BYTES, SEALED_BYTES, SEGMENT_HEADER_BYTES, SEGMENT_HEADER_BYTES_MAX

RING = KeyRing({"old": bytes(range(16)), "new": bytes(range(32))}, "new")
MODES = ("plain", "encrypted")
_now = ["plain"]


def enter(mode: str) -> None:
    """From now on disks are of that mode; the fixture does this."""
    _now[0] = mode


def is_encrypted() -> bool:
    return _now[0] == "encrypted"


def keys() -> Keys:
    """As the mode wants it; the draws are the same every time."""
    return Keys(RING, random.Random(7).randbytes) if is_encrypted() else Keys()


def frame_start(offset: int) -> int:
    """Where the frame begins whose payload stands at `offset`."""
    return offset - FRAME_HEADER_BYTES - (RUN_BYTES if is_encrypted() else 0)


def frame_extra_bytes() -> int:
    """By how much a frame is longer than its payload."""
    return FRAME_HEADER_BYTES + (SEALED_BYTES if is_encrypted() else 0)


def header_bytes() -> int:
    """The length of a segment's header."""
    return SEGMENT_HEADER_BYTES_MAX if is_encrypted() else SEGMENT_HEADER_BYTES


class CrashDisk(crash_disk.CrashDisk):
    """With keys where the mode has them."""

    def __init__(self, rng: random.Random | None = None, capacity_bytes: int | None = None) -> None:
        super().__init__(rng, capacity_bytes, keys())

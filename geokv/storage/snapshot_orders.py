"""What is said about snapshots: the orders that a node gives, and what there is. Values; `storage.snapshots` does the work."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from geokv.errors import InvalidRequest

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class SnapshotFile:
    """One file of a snapshot. `nbytes`: its size in a node's folder; from `used` on it is zeros, which are not kept here.

    `identity`: files of one node with the same path and identity are the same; empty: do not rely on it.
    """

    path: str
    nbytes: int
    used: int
    identity: str = ""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a SNAPSHOT file says. `cut`: every record that the node stamped up to this HLC is in it."""

    name: str
    cut: int
    taken_ms: int
    segment: int
    offset: int
    files: tuple[SnapshotFile, ...]

    def summary(self) -> dict[str, Any]:
        """For people and for who fetches it; without the files."""
        return {
            "name": self.name,
            "cut": str(self.cut),
            "taken_ms": self.taken_ms,
            "files": len(self.files),
            "bytes": sum(file.used for file in self.files),
        }


@dataclass(frozen=True, slots=True)
class Take:
    """Take one, now. `first_segment`: the oldest of the log that is kept."""

    name: str
    cut: int
    taken_ms: int
    first_segment: int


@dataclass(frozen=True, slots=True)
class Remove:
    """Remove one."""

    name: str


@dataclass(frozen=True, slots=True)
class Look:
    """Remove what is half made or too old at `now_ms`; what there is."""

    now_ms: int


Order = Take | Remove | Look


def check_name(name: str) -> str:
    """Raises InvalidRequest for what is no name of a snapshot."""
    if not NAME.fullmatch(name):
        raise InvalidRequest(f"{name!r} is no name of a snapshot: 1 to 64 letters, digits, '.', '_' or '-', not a sign first")
    return name

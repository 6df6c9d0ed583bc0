"""What the real host needs of a node and of a log: their faces, so that it can be tried with small ones.

Not here: their promises. See geokv.node, geokv.storage and the machine contract in geokv.protocol.effects.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from geokv.protocol.effects import Effect, Event


class Machine(Protocol):
    """A node: pure, driven from one thread."""

    @property
    def incarnation(self) -> int: ...

    @property
    def is_refusing(self) -> str: ...

    def handle(self, event: Event, now_us: int) -> Sequence[Effect]: ...

    def wake_at_us(self) -> int | None: ...

    def metrics(self) -> Mapping[str, int | float]: ...


class Snapshots(Protocol):
    """The snapshots in the node's folder. Called on any thread."""

    def do(self, order: Any) -> list[Any]: ...

    def read(self, name: str, path: str, offset: int, length: int) -> bytes: ...


class LogFile(Protocol):
    """The write-ahead log. `append`, `sync` and `room_bytes` are called on one thread, the others on any."""

    def append(self, payload: bytes) -> tuple[int, int]: ...

    def sync(self) -> None: ...

    def room_bytes(self) -> int: ...

    def prepare(self) -> None: ...

    def read(self, segment: int, offset: int, length: int) -> bytes: ...

    def trim(self, segment: int) -> None: ...


@dataclass(slots=True)
class Opened:
    """A node recovered from its disk, with what its effects are performed on.

    `room_bytes_low`: with less room than this in the log the next segment is made. `build` runs a job of the engine and
    installs what it made; `stop_building` ends the process that does so: the job that runs fails, a later one runs here.
    `pace` says how fast that process may write, and whether at all. `close` syncs and lets go of the log.
    """

    machine: Machine
    log: LogFile
    build: Callable[[Any], None]
    stop_building: Callable[[], None]
    pace: Callable[[int, bool], None]
    snapshots: Snapshots
    close: Callable[[], None]
    room_bytes_low: int


Opener = Callable[[], Opened]
"""Opens the disk and recovers a node from it: slow, blocking, called off the loop. Raises StorageError."""

"""The machine contract: what comes in (events, past tense) and what goes out (effects, imperative).

    handle(event, now_us) -> list[Effect]        wake_at_us() -> int | None

`now_us` is the host's monotonic clock in microseconds; wall time comes in as the event WallClockRead. Effects are
performed in list order. Whatever may wait for a disk is an effect that completes through a later event, so nothing
can be acknowledged before it is durable, and the simulator can crash exactly in between.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from geokv.core.limits import STOP_FLUSH_BYTES_MAX
from geokv.protocol.requests import Reply, Request

if TYPE_CHECKING:
    from geokv.protocol.table import Cells

# --- events ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class WallClockRead:
    """The wall clock, in microseconds since 1970, read at `now_us`. Sent at start, at every wake, at least each 100 ms."""

    wall_us: int


@dataclass(slots=True)
class Asked:
    """A client's batch arrived. `call` is the host's name for it, given back in Reply."""

    call: int
    request: Request


@dataclass(slots=True)
class CallGone:
    """The client of `call` went away; a Reply to it would reach nobody."""

    call: int


@dataclass(slots=True)
class Delivered:
    """A peer's message arrived."""

    peer: str
    message: object


@dataclass(slots=True)
class PeerConnected:
    """A stream to or from `peer` stands (handshake done). Told again when a second one stands or one was replaced."""

    peer: str
    incarnation: int


@dataclass(slots=True)
class PeerLost:
    """No stream to `peer` stands any more. `is_refused`: the last try to connect was refused (nobody listens)."""

    peer: str
    is_refused: bool = False


@dataclass(slots=True)
class Persisted:
    """A Persist effect is done: written, and synced if that was asked. The payload begins at `offset` of `segment`."""

    token: int
    segment: int
    offset: int
    room_bytes: int


@dataclass(slots=True)
class PersistFailed:
    """The append or the sync failed. This ends the incarnation; a retry would lie."""

    token: int
    reason: str


@dataclass(slots=True)
class RoomChanged:
    """What the log can take without fail: after a preallocation, or when the disk got full or free again."""

    room_bytes: int
    reason: str = ""


@dataclass(slots=True)
class LogRead:
    """A ReadLog effect is done: the records' bytes in the order asked. None: they cannot be read, see `reason`."""

    token: int
    records: bytes | None
    reason: str = ""


@dataclass(slots=True)
class Loaded:
    """A Load effect is done; for each of its parts why it failed, empty where its cells are in memory."""

    token: int
    errors: list[str]


@dataclass(slots=True)
class Built:
    """A Build effect is done: what it made stands, unless there is an `error`; then all is as it was."""

    token: int
    error: str = ""


@dataclass(slots=True)
class SnapshotsKept:
    """A KeepSnapshots effect is done: the snapshots that there are now. With an `error` it was not done."""

    token: int
    found: list[Any]
    error: Exception | None = None


@dataclass(slots=True)
class Stopping:
    """The process is about to end in good order: a last flush may be done, where no more than so much is to be flushed."""

    flush_bytes_max: int = STOP_FLUSH_BYTES_MAX


@dataclass(slots=True)
class Woken:
    """`wake_at_us` has passed."""


Event = (
    WallClockRead
    | Asked
    | CallGone
    | Delivered
    | PeerConnected
    | PeerLost
    | Persisted
    | PersistFailed
    | RoomChanged
    | LogRead
    | Loaded
    | Built
    | SnapshotsKept
    | Stopping
    | Woken
)

# --- effects --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Send:
    """Hand a message to the transport. It may be lost; nothing is told."""

    peer: str
    message: object


@dataclass(slots=True)
class Answer:
    """Reply to a client's call."""

    call: int
    reply: Reply


@dataclass(slots=True)
class Persist:
    """Append one frame to the log; with `sync`, fdatasync it. At most one is under way at a time."""

    token: int
    payload: bytes
    sync: bool


@dataclass(slots=True)
class ReadLog:
    """Read records from the log: (segment, offset, length) each, LOG_READ_BYTES_MAX in all unless one alone is larger."""

    token: int
    places: list[tuple[int, int, int]]


@dataclass(slots=True)
class Load:
    """Read cells into the engine's memory: `cells.load(keys)` for each part, on a thread where that may wait."""

    token: int
    parts: list[tuple[Cells, list[bytes]]]


@dataclass(slots=True)
class Build:
    """Have the engine's `job` (a flush or a compaction) run where it disturbs nobody, and install what it made."""

    token: int
    job: Any


@dataclass(slots=True)
class KeepSnapshots:
    """Have an `order` about snapshots followed (`storage.snapshots`), after the builds before it and before those behind it."""

    token: int
    order: Any


@dataclass(slots=True)
class Pace:
    """From now on, also for the build that runs: write at most so fast (0: the host's own setting), or wait."""

    bytes_per_s: int = 0
    is_paused: bool = False


@dataclass(slots=True)
class Trim:
    """Remove log segments below `segment`: nobody needs them."""

    segment: int


@dataclass(slots=True)
class Note:
    """Count a rare or telling event. Hosts: a metric; simulator: proof that a branch was reached."""

    name: str
    count: int = 1


@dataclass(slots=True)
class Log:
    """Something an operator should read."""

    level: str  # "info", "warning", "error"
    text: str


@dataclass(slots=True)
class EndIncarnation:
    """This run is over, as if crashed. The host drops the node and makes a new one from the disk (with back-off)."""

    reason: str


Effect = Send | Answer | Persist | ReadLog | Load | Build | KeepSnapshots | Pace | Trim | Note | Log | EndIncarnation

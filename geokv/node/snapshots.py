"""Snapshots: when one may be taken, and what its cut means. Files and links are `storage.snapshots`.

    asked with a cut ──> clock past it ──> what was stamped so far is synced ──> flush ──> KeepSnapshots ──> answered
                         (the log is not trimmed meanwhile)

The cut is an HLC that the asker draws: the highest clock that any node told it. The node's clock is moved past it, so
whatever it stamps from then on is later; what it had stamped is on its way to the log, and when that is synced, the
flush that begins then has all of it. So a snapshot contains every record with an HLC up to the cut that this node
stamped, and with the snapshots of all nodes every such record is in one of them at least.

The snapshots of a backup are moments apart, and what all replicas have may be forgotten (a closing, `protocol.closing`)
or collected (a tombstone, `node.collector`). A snapshot taken later than that must not stand beside one from before.
So a backup first has every node hold: from then until its own snapshot is taken it forgets and collects nothing new.

    snapshot_hold on all ──> all hold ──> snapshot_create on all, each refused where its hold is over (a restart, too late)

What a node has forgotten or begun to collect before its hold, all replicas had synced before any of these snapshots.

Where a namespace was deleted between the flush and the links its tables may be gone while the flushed state still has it, as
it may be in the snapshots of all other nodes: then it is taken once more.

Invariants: one is taken at a time, with the node's state exactly of its tables' position. Writes go on meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from geokv.errors import GeokvError, InvalidRequest, Overloaded, StorageError, Unavailable
from geokv.node.upkeep import Upkeep
from geokv.protocol.context import Context
from geokv.protocol.effects import KeepSnapshots, SnapshotsKept
from geokv.protocol.retention import Retention
from geokv.storage.snapshot_orders import Look, Order, Remove, Snapshot, Take, check_name

Found = Callable[[list[Snapshot] | GeokvError], None]
LOOK_US: Final = 600_000_000
HOLD_US: Final = 600_000_000
HOLDS_MAX: Final = 8  # backups that are being begun at once
WAITING_MAX: Final = 16  # orders that are not done yet
AGAIN_S: Final = 2.0


class SnapshotKeeper:
    """Answers what is asked about the snapshots of one run of a node."""

    def __init__(self, context: Context, upkeep: Upkeep, retention: Retention) -> None:
        self._context = context
        self._upkeep = upkeep
        self._retention = retention
        self._waiting: dict[int, Found] = {}
        self._look_us = 0
        self._holds: dict[str, int] = {}  # name of a snapshot to come -> until when
        self.count = 0  # how many there were when somebody looked last

    def hold(self, name: str) -> None:
        """From now until that snapshot is taken, ten minutes at most: forget and collect nothing new. Raises GeokvError."""
        check_name(name)
        self._drop_holds()
        if len(self._holds) >= HOLDS_MAX and name not in self._holds:
            raise Overloaded(f"{HOLDS_MAX} backups are being begun already", retry_after=AGAIN_S)
        self._holds[name] = self._context.now_us + HOLD_US
        self._drop_holds()

    def _drop_holds(self, taken: str = "") -> None:
        self._holds = {name: until for name, until in self._holds.items() if name != taken and until > self._context.now_us}
        self._context.kept_until_us = max(self._holds.values(), default=0)

    def _check_hold(self, name: str) -> None:
        self._drop_holds()
        if name not in self._holds:
            raise Unavailable(
                "this node does not hold for that backup any more: it was restarted, or the others took too long. Begin again"
            )

    def take(self, name: str, cut: int, is_of_backup: bool, found: Found) -> None:
        """Take one; `found` gets what there is then. `is_of_backup`: the node was told to hold for it, and must have.

        Raises GeokvError where it is not even begun.
        """
        check_name(name)
        context = self._context
        if is_of_backup:
            self._check_hold(name)
        if self._retention.is_held:
            raise Overloaded("another snapshot is being taken", retry_after=AGAIN_S)
        if context.is_refusing:
            raise Unavailable(context.is_refusing)
        if not context.clock.observe(cut, context.wall_ms):
            raise InvalidRequest(f"the cut {cut} is further ahead of this node's clock than it follows: set the clocks right")
        self._retention.is_held = True

        def over(what: list[Snapshot] | GeokvError) -> None:
            self._retention.is_held = False
            if is_of_backup and not isinstance(what, GeokvError):
                try:
                    self._check_hold(name)
                except GeokvError as error:
                    what = error
            self._drop_holds(taken=name)
            found(what)

        context.commit.after_pending(lambda: self._begin(name, cut, over))

    def _begin(self, name: str, cut: int, over: Found) -> None:
        """Flush what is synced, and take what stands then."""
        context = self._context
        deleted = len(context.deleted)

        def flushed(error: str) -> None:
            if error:
                over(StorageError(f"nothing was taken: {error}"))
            else:
                self._order(Take(name, cut, context.wall_ms, self._retention.first_segment), taken)

        def taken(what: list[Snapshot] | GeokvError) -> None:
            if isinstance(what, GeokvError) or len(context.deleted) == deleted:
                over(what)
            else:
                context.note("snapshot.again")
                self._order(Remove(name), removed)

        def removed(what: list[Snapshot] | GeokvError) -> None:
            if isinstance(what, GeokvError):
                over(what)
            else:
                self._begin(name, cut, over)

        try:
            self._upkeep.flush_soon(flushed)
        except GeokvError as error:
            over(error)

    def remove(self, name: str, found: Found) -> None:
        """Remove one; nothing is held for it any more either."""
        self._drop_holds(taken=name)
        self._demand_room()
        self._order(Remove(check_name(name)), found)

    def look(self, found: Found) -> None:
        """What there is; too old ones go."""
        self._demand_room()
        self._order(Look(self._context.wall_ms), found)

    def tick(self) -> None:
        """Look now and then: what an earlier run left half made, and what is too old, goes."""
        if self._context.now_us >= self._look_us and len(self._waiting) < WAITING_MAX:
            self._look_us = self._context.now_us + LOOK_US
            self.look(lambda what: None)

    def _demand_room(self) -> None:
        if len(self._waiting) >= WAITING_MAX:
            raise Overloaded("too much is asked about snapshots at once", retry_after=AGAIN_S)

    def _order(self, order: Order, found: Found) -> None:
        token = self._context.next_id()
        self._waiting[token] = found
        self._context.effects.append(KeepSnapshots(token, order))

    def kept(self, event: SnapshotsKept) -> None:
        """The host has followed an order."""
        found = self._waiting.pop(event.token)
        if event.error is None:
            self.count = len(event.found)
            found(event.found)
        elif isinstance(event.error, GeokvError):
            found(event.error)
        else:
            found(StorageError(f"{type(event.error).__name__}: {event.error}"))

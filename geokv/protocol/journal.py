"""The conflict journal: every write that met another which neither had seen, with the rule that decided and what was lost; and
that a loser was brought back.

    who notes                                  what
    a node that takes records in over the WAN  the arriving one against what this datacenter held
    a co-owner that is sent a record           only against a write that it coordinated itself (two coordinators at once)
    a coordinator of siblings or registers     a write whose context, or lack of one, left other values beside it
    a coordinator of lww                       a write whose context is older than what it replaces
    a coordinator of a removal                 an update that arrives and outlives it, where nothing is left of the removal
                                               (`core.cells.outlived`); and what its context, older than that, has left

A conflict is named by the two dots, so one that several nodes, or both datacenters, have noted is told once. Each datacenter
counts it once: a co-owner that is sent what came over the WAN notes it as well (who took it in may not have had that co-owner's
write yet), but does not count it. It is bounded per namespace and in all; the oldest go first, and are counted. Entries are
noted in the log (control record `conflicts`) and kept with the node's state at a flush, so they survive a restart.

Limits: of a value LOSER_BYTES_MAX are kept. Where nothing is decided (counts, equal additions, sketches) there is no conflict,
but with what takes away. An `lww` value that stands on the disk alone, in no memtable and no cache, is not read to be compared.
Two coordinators of one datacenter that write a cell of dots in the same moment are not noted by either, unless one takes away.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from geokv.core.cell import decode_lww, is_concurrent
from geokv.core.cells.cell_type import CellType
from geokv.core.cells.contested import met_by
from geokv.core.cells.context import Dot
from geokv.core.cells.outlived import Removal
from geokv.core.cells.state import CellState
from geokv.core.cells.view import Entry as Item
from geokv.core.cells.wire import encode_operation
from geokv.core.conflict import LWW
from geokv.core.limits import CONFLICTS_MAX, CONFLICTS_PER_NAMESPACE_MAX, CONFLICTS_PER_WRITE_MAX, LOSER_BYTES_MAX, RESTORED_MAX
from geokv.core.origin import unpack_origin
from geokv.errors import InvalidRequest, RecordError
from geokv.protocol.removals import Removals

if TYPE_CHECKING:
    from geokv.protocol.table import Table

EVERYBODY: Final = b""
"""For `Intake.take`: note conflicts with whatever is stored, whoever coordinated it."""


class Party(NamedTuple):
    """One of two writes that met. `stamp`: its version or HLC, 0 where the cell does not tell. `value` None: a delete; under a
    policy without values that are put it is the operation.
    """

    origin: bytes
    number: int
    stamp: int
    value: bytes | None
    bytes_in_all: int


class Restored(NamedTuple):
    """A write that brought a loser back, as its client told: who coordinated it, and its version."""

    dc: str
    node: str
    version: int
    noted_ms: int


class Conflict(NamedTuple):
    """What was decided. `is_kept`: both values are still there; then `loser` is only the one that came later."""

    name: str
    namespace: int
    key: bytes
    policy: str
    winner: Party
    loser: Party
    is_kept: bool
    noted_ms: int
    restored: tuple[Restored, ...] = ()

    def packed(self) -> list[Any]:
        restored = [list(one) for one in self.restored]
        return [*self[:4], list(self.winner), list(self.loser), self.is_kept, self.noted_ms, restored]

    @property
    def outcome(self) -> str:
        return "kept" if self.is_kept else "discarded"

    @property
    def dcs(self) -> tuple[str, str]:
        """(the winner's datacenter, the loser's)."""
        return unpack_origin(self.winner.origin).dc, unpack_origin(self.loser.origin).dc


def unpacked(body: list[Any]) -> Conflict:
    """Inverse of `Conflict.packed`."""
    name, namespace, key, policy, winner, loser, is_kept, noted_ms, *more = body
    restored = tuple([Restored(*one) for one in more[0]]) if more else ()  # older nodes noted none
    return Conflict(name, namespace, key, policy, Party(*winner), Party(*loser), is_kept, noted_ms, restored)


class Journal:
    """The conflicts that one node has noted. `fresh`: those that are not in the log yet; `echoes`: the names of those among
    them that are not counted: another node of this datacenter does, or it was done before.
    """

    def __init__(self) -> None:
        self.fresh: list[Conflict] = []
        self.echoes: set[str] = set()
        self.dropped = 0
        self.removals = Removals()
        self._by_namespace: dict[int, dict[str, Conflict]] = {}
        self._held = 0

    # --- noting -----------------------------------------------------------------------------------------------------

    def met_lww(self, table: Table, key: bytes, stored: bytes, arriving: bytes, now_ms: int, is_echo: bool = False) -> None:
        """Two cells of a key met; noted where neither had seen the other."""
        try:
            if is_concurrent(stored, arriving):
                name = self._note_lww(table, key, max(stored, arriving), min(stored, arriving), now_ms)
                if is_echo and name:
                    self.echoes.add(name)
        except (RecordError, ValueError):
            return  # what cannot be read cannot be explained; who reads the key is told

    def overwrote_lww(self, table: Table, key: bytes, stored: bytes, written: bytes, now_ms: int) -> None:
        """A write stands above what its coordinator holds, and its context says that its client had read something older."""
        try:
            self._note_lww(table, key, written, stored, now_ms)
        except (RecordError, ValueError):
            return  # as above

    def _note_lww(self, table: Table, key: bytes, winner: bytes, loser: bytes, now_ms: int) -> str:
        parties = []
        for cell in (winner, loser):
            held = decode_lww(cell)
            parties.append(_party(held.origin, held.number, held.version, None if held.is_tombstone else held.value))
        return self._note(table, LWW, key, parties[0], parties[1], False, now_ms)

    def met_dots(self, table: Table, key: bytes, state: CellState, dot: Dot, stamp: int, now_ms: int) -> None:
        """An update was joined with the rest of its key; noted with each item that it met there."""
        kind = table.policy.kind
        assert kind is not None
        try:
            met = met_by(kind, state, dot)
            if met:
                self._met(table, kind, key, Item(*dot, state.items[dot.origin][dot.number]), met, stamp, now_ms)
        except RecordError:
            return  # as above: a payload of a type that this version does not know

    def _met(self, table: Table, kind: CellType, key: bytes, mine: Item, met: list[Item], stamp: int, now_ms: int) -> None:
        for other in met[:CONFLICTS_PER_WRITE_MAX]:
            preferred = kind.prefers(mine, other)
            winner, loser = (mine, other) if preferred else (other, mine)
            parties = [
                _party(one.origin, one.number, stamp if one is mine else 0, _told(kind, one.payload)) for one in (winner, loser)
            ]
            self._note(table, kind.name, key, parties[0], parties[1], preferred is None, now_ms)

    def took(self, table: Table, key: bytes, removal: Removal, state: CellState, now_ms: int) -> None:
        """This node took something away, and `state` is what came of it: what it left had not been seen by its client."""
        kind = table.policy.kind
        assert kind is not None
        left = []
        if removal.operation.context is not None:
            try:
                left = removal.survivors(kind, state)
            except RecordError:
                return  # as above
        for entry in left[:CONFLICTS_PER_WRITE_MAX]:
            self.outlived(table, key, removal, entry, 0, now_ms)
        if not left:
            self.removals.keep(table.definition.id, key, removal)

    def outlived(self, table: Table, key: bytes, removal: Removal, entry: Item, stamp: int, now_ms: int) -> None:
        """An update and a removal that takes what it is about had not seen each other: the update stays."""
        kind = table.policy.kind
        assert kind is not None
        try:
            payload = removal.left_of(kind, entry)
            took = encode_operation(removal.operation) if kind.told(payload) is None else None
            winner = _party(entry.origin, entry.number, stamp, _told(kind, payload))
        except (RecordError, InvalidRequest):
            return  # as above; or it has counted more than travels
        loser = _party(*removal.dot, removal.stamp, took)
        self._note(table, kind.name, key, winner, loser, False, now_ms)

    def _note(self, table: Table, policy: str, key: bytes, winner: Party, loser: Party, is_kept: bool, now_ms: int) -> str:
        """The name under which it was noted, empty where it was before."""
        namespace = table.definition.id
        dots = sorted([(winner.origin, winner.number), (loser.origin, loser.number)])
        text = b"\0".join([b"%x" % namespace, key, *[b"%b %d" % dot for dot in dots]])
        name = blake2b(text, digest_size=6).hexdigest()
        if name in self._by_namespace.get(namespace, ()):
            return ""
        self._keep_fresh(Conflict(name, namespace, key, policy, winner, loser, is_kept, now_ms))
        return name

    def restored(self, namespace: int, name: str, restored: Restored) -> bool:
        """The loser of a conflict was written again; False where the conflict is not known here (any more)."""
        known = self._by_namespace.get(namespace, {}).get(name)
        if known is None:
            return False
        if all(one.version != restored.version for one in known.restored):
            self._keep_fresh(known._replace(restored=(*known.restored, restored)[-RESTORED_MAX:]))
            self.echoes.add(name)
        return True

    # --- keeping ----------------------------------------------------------------------------------------------------

    def _keep_fresh(self, conflict: Conflict) -> None:
        self.keep(conflict)
        if len(self.fresh) < CONFLICTS_PER_NAMESPACE_MAX:
            self.fresh.append(conflict)

    def keep(self, conflict: Conflict) -> None:
        """Hold a conflict, noted now or read from the log."""
        held = self._by_namespace.setdefault(conflict.namespace, {})
        self._held += conflict.name not in held
        held[conflict.name] = conflict
        if len(held) > CONFLICTS_PER_NAMESPACE_MAX:
            self._drop_oldest(conflict.namespace)
        elif self._held > CONFLICTS_MAX:
            self._drop_oldest(max(self._by_namespace, key=lambda one: len(self._by_namespace[one])))

    def _drop_oldest(self, namespace: int) -> None:
        held = self._by_namespace[namespace]
        del held[next(iter(held))]
        self._held -= 1
        self.dropped += 1

    def forget(self, namespace: int) -> None:
        """A namespace was deleted."""
        self.removals.forget(namespace)
        self._held -= len(self._by_namespace.pop(namespace, ()))

    def of(self, namespace: int, key: bytes | None = None) -> list[Conflict]:
        """The conflicts of a namespace, or of one key in it, oldest first."""
        held = self._by_namespace.get(namespace, {}).values()
        return [conflict for conflict in held if key is None or conflict.key == key]

    def packed(self) -> list[list[Any]]:
        """All of them, for the state that a flush keeps."""
        return [conflict.packed() for held in self._by_namespace.values() for conflict in held.values()]


def _told(kind: CellType, payload: bytes) -> bytes:
    """The value, or where there is none the operation, as clients send it."""
    value = kind.told(payload)
    return encode_operation(kind.written(payload)) if value is None else value


def _party(origin: bytes, number: int, stamp: int, value: bytes | None) -> Party:
    return Party(origin, number, stamp, None if value is None else value[:LOSER_BYTES_MAX], len(value or b""))

"""Giving all rights of bounded counters away: what a node or a datacenter does before it leaves.

    every key of bounded counters ──> what earlier runs left is taken over ──> all that is here is given to one owner

A pass goes over all keys once, with other work between. What is counted up here meanwhile makes rights here again, and what
cannot be given is told: so clients go elsewhere first, and the pass is repeated until it finds nothing.

Invariants: a gift is one like any other (`protocol.rights`): nothing is lost or doubled by stopping in the middle. At most
UNDER_WAY_MAX keys are under way.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Final

from geokv.core.conflict import BOUNDED
from geokv.core.origin import Origin
from geokv.core.ring import key_hash
from geokv.errors import GeokvError, InvalidRequest
from geokv.protocol.context import Context
from geokv.protocol.rights import Rights
from geokv.protocol.table import Table

STEP_US: Final = 10_000
UNDER_WAY_MAX: Final = 64
SCOPES: Final = ("node", "dc")


class RightsDrain:
    """One pass at a time."""

    def __init__(self, context: Context, rights: Rights) -> None:
        self._context = context
        self._rights = rights
        self._scope = ""
        self._keys: Iterator[tuple[Table, bytes]] | None = None
        self._under_way = 0
        self._next_us = 0
        self._failure = ""
        self._figures = {"keys": 0, "given": 0, "rights": 0, "left": 0}

    def begin(self, scope: str) -> None:
        """Start a pass, unless one is under way. `scope`: "dc" gives to other datacenters only. Raises InvalidRequest."""
        if scope not in SCOPES:
            raise InvalidRequest(f"scope {scope!r}: choose node (co-owners take the rights) or dc (other datacenters do)")
        if not self._is_under_way:
            self._scope, self._failure = scope, ""
            self._figures = dict.fromkeys(self._figures, 0)
            self._keys = iter(self._all_keys())
            self._next_us = self._context.now_us

    def progress(self) -> dict[str, object]:
        """`left`: rights that nobody could be given, because no other owner was live or a quorum was missing."""
        return {"is_done": not self._is_under_way, "scope": self._scope, "failure": self._failure, **self._figures}

    @property
    def _is_under_way(self) -> bool:
        return self._keys is not None or self._under_way > 0

    def _all_keys(self) -> Iterator[tuple[Table, bytes]]:
        for table in list(self._context.tables.values()):
            if table.policy.name == BOUNDED:
                for key in table.cells.keys():  # noqa: SIM118  # not a dictionary
                    yield table, key

    def wake_at_us(self) -> int | None:
        return self._next_us if self._keys is not None else None

    def tick(self) -> None:
        """One step: as many keys as may be under way."""
        if self._keys is None or self._context.now_us < self._next_us:
            return
        self._next_us = self._context.now_us + STEP_US
        room = UNDER_WAY_MAX - self._under_way
        if room <= 0:
            return
        try:
            some = list(islice(self._keys, room))
        except GeokvError as error:
            self._failure, self._keys = str(error), None
            return
        if not some:
            self._keys = None
        for table, key in some:
            self._give(table, key)

    def _give(self, table: Table, key: bytes) -> None:
        partition = key_hash(key) >> table.placement.shift
        if not table.placement.is_mine[partition]:
            return
        self._figures["keys"] += 1
        self._under_way += 1
        self._rights.give_away(table, key, self._receiver(table, partition, key), self._given)

    def _given(self, amount: int, left: int) -> None:
        self._under_way -= 1
        self._figures["given"] += amount > 0
        self._figures["rights"] += amount
        self._figures["left"] += left

    def _receiver(self, table: Table, partition: int, key: bytes) -> Origin | None:
        """Who gets it: a live owner, one per key, so that all of them get some."""
        context = self._context
        owners = [one for one in table.placement.everyone(partition) if one[0] in table.definition.dcs]
        near = [name for dc, name in owners if dc == context.dc and name != context.node and self._scope == "node"]
        for names in (near, [name for dc, name in owners if dc != context.dc]):
            live = [name for name in names if context.is_live(name)]
            if live:
                name = live[key_hash(key) % len(live)]
                return Origin(context.peers[name].dc, name, context.peers[name].incarnation)
        return None

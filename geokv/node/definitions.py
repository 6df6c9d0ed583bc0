"""The agreement and the catalog on one node: their outputs become log records, messages, tables and answers.

    Agreement --ToPersist--> control record "accept" --synced--> persisted      (an answer rests on what is synced)
              --Learned----> Catalog (slots), closings (through Decided)
    Catalog   --Keep-------> control record "slot"
              --Changed----> tables

Not here: what is agreed (protocol.catalog, protocol.closing) and how (protocol.agreement).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

from geokv.core.namespace import BORN, NamespaceDefinition
from geokv.errors import GeokvError
from geokv.protocol import control
from geokv.protocol.agreement import Agreement, Decided, ItemState, Learned, Noted, ToPersist, ToSend
from geokv.protocol.catalog import CatalogMachine, Changed, Failed, Keep, Ready, place_of
from geokv.protocol.context import Context
from geokv.protocol.messages import Definitions as DefinitionsMessage
from geokv.protocol.messages import DefinitionsWanted

Outcome = Callable[[NamespaceDefinition | GeokvError], None]

SPREAD_US_MAX: Final = 1_000_000  # a change is answered when all live members say that they know it, or so much later


class _Spreading(NamedTuple):
    """A change that stands, and is to be known by all live members before its caller hears of it."""

    until_us: int
    known: int
    tell: Callable[[], None]


class Definitions:
    """What this datacenter agrees on, and the namespaces that follow from it."""

    def __init__(self, context: Context, members: Sequence[str], datacenters: Sequence[str]) -> None:
        self._context = context
        self._members = members
        self._datacenters = datacenters
        self._restored: dict[bytes, ItemState] = {}
        self._agreement: Agreement | None = None
        self.catalog_machine = CatalogMachine(context.dc, datacenters, context.rng, self._propose_slot)
        self._waiting: dict[int, Outcome] = {}
        self._spreading: list[_Spreading] = []
        self._known_by: dict[str, int] = {}  # member -> how many definitions of this datacenter it has stated to know
        self.on_defined: Callable[[NamespaceDefinition], None] = lambda definition: None
        self.on_decided: Callable[[int, dict[bytes, bytes]], None] = lambda ticket, values: None

    # --- recovery ---------------------------------------------------------------------------------------------------

    def born(self) -> list[NamespaceDefinition]:
        """The namespaces that every cluster is born with."""
        return [BORN]

    def restore_items(self, body: Iterable[Any]) -> list[NamespaceDefinition]:
        """Take in acceptor states from the disk; returns the definitions that now stand anew."""
        changed: list[NamespaceDefinition] = []
        for item, promised, accepted, chosen in body:
            value = ((accepted[0][0], accepted[0][1]), accepted[1]) if accepted else None
            self._restored[item] = ItemState(item, (promised[0], promised[1]), value, chosen)
            place = place_of(item)
            if chosen and place is not None and value is not None:
                changed += self._restore(place[0], place[1], value[1])
        return changed

    def restore_slot(self, body: Any) -> list[NamespaceDefinition]:
        """Take in a definition that was carried from another datacenter."""
        return self._restore(body[0], body[1], body[2])

    def _restore(self, dc: str, slot: int, value: bytes) -> list[NamespaceDefinition]:
        self.catalog_machine.restore(dc, slot, value)
        return [output.definition for output in self.catalog_machine.take() if isinstance(output, Changed)]

    def agreement_state(self) -> list[Any]:
        """All acceptor states, as they are kept beside flushed cells."""
        assert self._agreement is not None
        return [list(state) for state in self._agreement.state()]

    def carried_slots(self) -> list[Any]:
        """All definition slots, as they are kept beside flushed cells."""
        return [list(slot) for slot in self.catalog_machine.slots()]

    # --- running ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Recovery is over: take part in agreements."""
        context = self._context
        # Whether this disk has taken part before is said by a mark among the items themselves.
        self._agreement = Agreement(context.node, self._members, context.rng, True, list(self._restored.values()))
        self._restored = {}
        self._agreement.tick(context.now_us)
        self.perform()

    def resolve(self, name: str) -> NamespaceDefinition | None:
        """The living namespace of that name or alias."""
        return self.catalog_machine.catalog.resolve(name)

    def counts(self) -> dict[str, int]:
        return self.catalog_machine.known()

    def heard_counts(self, peer: str, counts: dict[str, int]) -> None:
        self.catalog_machine.heard(peer, counts, self._context.now_us)
        if peer in self._members:
            self._known_by[peer] = counts.get(self._context.dc, 0)
            self._tell_spread()

    def heard(self, peer: str, message: object) -> None:
        """A peer's message to the agreement or the catalog."""
        if isinstance(message, (DefinitionsWanted, DefinitionsMessage)):
            self.catalog_machine.handle(peer, message, self._context.now_us)
        elif self._agreement is not None:
            self._agreement.handle(peer, message, self._context.now_us)

    def propose(self, items: dict[bytes, bytes]) -> int:
        """Have items agreed; `on_decided` tells the outcome. Raises Overloaded."""
        assert self._agreement is not None
        return self._agreement.propose(items, self._context.now_us)

    def _propose_slot(self, items: Any, now_us: int) -> int:
        assert self._agreement is not None
        return self._agreement.propose(items, now_us)

    def change(self, begin: Callable[[CatalogMachine, int, int], int], outcome: Outcome) -> int:
        """Begin a change of the catalog; `outcome` gets the definition that stands, or the error."""
        context = self._context
        hlc = context.clock.stamp(context.wall_ms)
        ticket = begin(self.catalog_machine, hlc, context.now_us)
        self._waiting[ticket] = outcome
        return ticket

    def give_up(self, ticket: int) -> bool:
        """Nobody waits for a change any more; returns whether it was still open."""
        self.catalog_machine.forget(ticket)
        return self._waiting.pop(ticket, None) is not None

    def tick(self) -> None:
        now_us = self._context.now_us
        if self._agreement is not None:
            due = self._agreement.wake_at_us()
            if due is not None and due <= now_us:
                self._agreement.tick(now_us)
        self.catalog_machine.tick(now_us)
        self._tell_spread()

    def wake_at_us(self) -> int | None:
        wakes = [self.catalog_machine.wake_at_us()]
        if self._agreement is not None:
            wakes.append(self._agreement.wake_at_us())
        wakes.extend(spreading.until_us for spreading in self._spreading)
        return min((wake for wake in wakes if wake is not None), default=None)

    @property
    def is_member(self) -> bool:
        """Whether this node takes part in agreements (a new disk first copies from the others)."""
        return self._agreement is not None and self._agreement.is_member

    # --- outputs ----------------------------------------------------------------------------------------------------

    def perform(self) -> None:
        """Do what the agreement and the catalog want done, until they want nothing more."""
        while True:
            outputs: list[Any] = self.catalog_machine.take()
            if self._agreement is not None:
                outputs += self._agreement.take()
            if not outputs:
                return
            for output in outputs:
                self._do(output)

    def _do(self, output: Any) -> None:
        context = self._context
        match output:
            case ToSend(peer=peer, message=message):
                if context.peers[peer].is_connected:
                    context.send(peer, message)
            case ToPersist(token=token, items=items):
                self._persist(token, items)
            case Learned(item=item, value=value):
                self.catalog_machine.learned(item, value, context.now_us)
            case Decided(ticket=ticket, values=values):
                self.on_decided(ticket, values)
            case Keep(dc=dc, slot=slot, value=value):
                self._log(control.SLOT, [dc, slot, value], None)
            case Changed(definition=definition):
                self.on_defined(definition)
            case Ready(ticket=ticket, definition=definition):
                self._settle(ticket, definition)
            case Failed(ticket=ticket, error=error):
                self._settle(ticket, error)
            case Noted(name=name):
                context.note(name)

    def _settle(self, ticket: int, outcome: NamespaceDefinition | GeokvError) -> None:
        waiting = self._waiting.pop(ticket, None)
        if waiting is None:
            return
        if isinstance(outcome, GeokvError):
            waiting(outcome)
            return
        until_us = self._context.now_us + SPREAD_US_MAX
        self._spreading.append(_Spreading(until_us, self.counts()[self._context.dc], partial(waiting, outcome)))
        self._tell_spread()

    def _tell_spread(self) -> None:
        """Answer what every live member knows by now: the caller's next call may go to any of them."""
        if not self._spreading:
            return
        context = self._context
        others = [member for member in self._members if member != context.node and context.is_live(member)]
        known = min((self._known_by.get(member, 0) for member in others), default=self.counts()[context.dc])
        still, self._spreading = self._spreading, []
        for spreading in still:
            if spreading.known <= known or context.now_us >= spreading.until_us:
                spreading.tell()
            else:
                self._spreading.append(spreading)

    def _persist(self, token: int, items: list[ItemState]) -> None:
        agreement = self._agreement
        assert agreement is not None

        def synced() -> None:
            agreement.persisted(token)

        self._log(control.ACCEPT, [list(item) for item in items], synced)

    def _log(self, name: bytes, body: object, then: Callable[[], None] | None) -> None:
        raw = control.control_record(name, body)
        self._context.commit.add([(raw, None, 0)], len(raw), (), then, None)

    def forget_items(self, items: Iterable[bytes]) -> None:
        """What these agreed on is remembered elsewhere."""
        if self._agreement is not None:
            self._agreement.forget(items)

    def __iter__(self) -> Iterator[NamespaceDefinition]:
        yield from self.catalog_machine.catalog.by_id.values()

"""The catalog's machine: has namespaces created, altered and deleted in its datacenter, and carries
definitions everywhere.

In each datacenter the definitions form an agreed sequence of slots 1, 2, 3 …: slot n of dc is the agreement's
item `def/<dc>/<n as 8 bytes>`, and its value an encoded definition. A change is proposed in the first free
slot; where another value took that one, it is applied and the change is built anew upon it for the next.
Slots travel: every node says how many it knows of each datacenter, and whoever knows fewer asks.

Wiring. The node makes one CatalogMachine from all slots on its disk (`Keep`s that it logged, and
`slots_in(agreement.known())`) and the machine's `propose` from its Agreement. Then it calls

    create, alter, delete         for a client; the ticket ends as Ready or Failed, what is clear is raised
    learned(item, value, now)     for every Learned of the agreement (items of others are ignored)
    heard(peer, definitions, now) for every Statement of a peer, in any datacenter
    handle(peer, message, now)    for DefinitionsWanted and Definitions, of peers in any datacenter
    tick(now)                     when `wake_at_us()` has passed
    forget(ticket)                when nobody waits any more; the change may still happen
    known()                       for Statement.definitions

and after each of them performs `take()` in order:

    ToSend(peer, message)         send it; it may be lost
    Keep(dc, slot, value)         log it before whatever is appended later; no sync is waited for
    Changed(definition)           this now stands under its id (`catalog` says so): make or drop its table
    Ready(ticket, definition), Failed(ticket, error)
    Noted(name)                   count it

A namespace is usable as soon as `catalog.resolve` finds it.

Invariants:
- `known()[dc]` slots of a datacenter are applied, without a gap; the catalog is the merge of all applied
  definitions.
- A change is Ready only once its slot is chosen, hence synced by a majority of this datacenter, and here.

Not here: what a definition is and how catalogs merge (core.namespace); choosing (protocol.agreement).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from geokv.core.limits import KIB
from geokv.core.namespace import (
    DEFAULT_ID,
    DEFINITION_BYTES_MAX,
    Catalog,
    NamespaceDefinition,
    check_name,
    decode,
    define,
)
from geokv.errors import GeokvError, NamespaceExists, NamespaceNotFound, Overloaded, RecordError
from geokv.protocol.agreement import Noted, ToSend
from geokv.protocol.messages import Definitions, DefinitionsWanted

PREFIX: Final = b"def/"
CHANGES_MAX: Final = 256  # asked of this node and not yet done
SLOTS_MAX: Final = 100_000  # per datacenter; no change is taken beyond
SLOTS_AHEAD_MAX: Final = 1_024  # known beyond a gap, per datacenter
PAGE_SLOTS_MAX: Final = 256
PAGE_BYTES_MAX: Final = 512 * KIB
ASK_AGAIN_US: Final = 500_000
RETRY_US: Final = 100_000

assert DEFINITION_BYTES_MAX < PAGE_BYTES_MAX

Propose = Callable[[Mapping[bytes, bytes], int], int]
"""Agreement.propose: its ticket is not used, every choice comes back as Learned."""


@dataclass(slots=True)
class Keep:
    dc: str
    slot: int
    value: bytes


@dataclass(slots=True)
class Changed:
    definition: NamespaceDefinition


@dataclass(slots=True)
class Ready:
    ticket: int
    definition: NamespaceDefinition


@dataclass(slots=True)
class Failed:
    ticket: int
    error: GeokvError


Output = ToSend | Keep | Changed | Ready | Failed | Noted


@dataclass(slots=True)
class _Change:
    """`build` makes the definition from the catalog of then; None: nothing to do, `find` finds it."""

    ticket: int
    build: Callable[[], NamespaceDefinition | None]
    find: Callable[[], NamespaceDefinition | None]
    slot: int = 0
    value: bytes = b""


class CatalogMachine:
    """One per node; see the module's docstring for its wiring."""

    def __init__(
        self,
        dc: str,
        datacenters: Sequence[str],
        rng: Random,
        propose: Propose,
        slots: Iterable[tuple[str, int, bytes]] = (),
    ) -> None:
        assert dc in datacenters
        self.dc = dc
        self._rng = rng
        self._propose = propose
        self._slots: dict[str, list[bytes]] = {name: [] for name in datacenters}
        self._ahead: dict[str, dict[int, bytes]] = {name: {} for name in datacenters}
        self._asked_us: dict[str, int] = {}
        self._changes: deque[_Change] = deque()
        self._ticket = 0
        self._retry_us: int | None = None
        self._outputs: list[Output] = []
        self.catalog = Catalog()
        for name, slot, value in slots:
            self._take_slot(name, slot, value)
        self._outputs.clear()

    # --- changes ----------------------------------------------------------------------------------------------------

    def create(self, name: str, settings: Mapping[str, object], hlc: int, now_us: int, exist_ok: bool = False) -> int:
        """Create a namespace with any of namespace.SETTINGS.

        With `exist_ok` one of that name is Ready too, where its policy is the same and the settings given are.

        Raises InvalidRequest (what to change), Overloaded.
        """
        namespace_id = self._draw_id()
        wanted = define(namespace_id, name, settings, self._slots, hlc, self.dc)

        def build() -> NamespaceDefinition | None:
            held = self.catalog.resolve(name)
            if held is None:
                self.catalog.check_room()
                return wanted
            different = _different(held, wanted, settings)
            if exist_ok and not different:
                return None
            raise NamespaceExists(_exists(held, different, exist_ok), namespace=name)

        return self._enqueue(build, lambda: self.catalog.resolve(name), now_us)

    def alter(self, name: str, changes: Mapping[str, object], hlc: int, now_us: int) -> int:
        """Change any of namespace.ALTERABLE. Raises InvalidRequest, NamespaceNotFound, Overloaded."""
        namespace_id = self._living(name).id
        return self._enqueue(
            lambda: self._alive(namespace_id, name).altered(changes, hlc, self.dc, self._slots),
            lambda: self.catalog.by_id.get(namespace_id),
            now_us,
        )

    def delete(self, name: str, hlc: int, now_us: int) -> int:
        """Delete for ever; the name is free again. Raises InvalidRequest, NamespaceNotFound, Overloaded."""
        namespace_id = self._living(name).id
        return self._enqueue(
            lambda: self._alive(namespace_id, name).deleted(hlc, self.dc),
            lambda: self.catalog.by_id.get(namespace_id),
            now_us,
        )

    def forget(self, ticket: int) -> None:
        """Nobody waits for it any more. What is being proposed may still be chosen."""
        self._changes = deque(change for change in self._changes if change.ticket != ticket)

    def _draw_id(self) -> int:
        while True:
            drawn = self._rng.getrandbits(64)
            if drawn > DEFAULT_ID and drawn not in self.catalog.by_id:
                return drawn

    def _living(self, name: str) -> NamespaceDefinition:
        held = self.catalog.resolve(name)
        if held is None:
            check_name(name.split("@", maxsplit=1)[0])
            raise NamespaceNotFound(f"no namespace {name!r} here", namespace=name)
        return held

    def _alive(self, namespace_id: int, name: str) -> NamespaceDefinition:
        held = self.catalog.by_id[namespace_id]
        if held.is_deleted:
            raise NamespaceNotFound(f"namespace {name!r} was deleted meanwhile", namespace=name)
        return held

    def _enqueue(
        self,
        build: Callable[[], NamespaceDefinition | None],
        find: Callable[[], NamespaceDefinition | None],
        now_us: int,
    ) -> int:
        if len(self._changes) >= CHANGES_MAX or len(self._slots[self.dc]) >= SLOTS_MAX:
            raise Overloaded(f"{len(self._changes)} changes of namespaces wait here, at most {CHANGES_MAX} may")
        build()  # what can be said at once is raised here
        self._ticket += 1
        self._changes.append(_Change(self._ticket, build, find))
        self._go_on(now_us)
        return self._ticket

    def _go_on(self, now_us: int) -> None:
        """Settle the first change, or propose it in the first free slot; one at a time."""
        while self._changes:
            change = self._changes[0]
            slot = len(self._slots[self.dc]) + 1
            if change.slot == slot:
                return  # being agreed on
            if change.slot and self._slots[self.dc][change.slot - 1] == change.value:
                self._finish(Ready(change.ticket, decode(change.value)))
                continue
            try:
                wanted = change.build()
            except GeokvError as error:
                self._finish(Failed(change.ticket, error))
                continue
            if wanted is not None:
                self._put(change, slot, wanted.encode(), now_us)
                return
            found = change.find()
            assert found is not None
            self._finish(Ready(change.ticket, found))

    def _finish(self, outcome: Ready | Failed) -> None:
        self._changes.popleft()
        self._outputs.append(outcome)

    def _put(self, change: _Change, slot: int, value: bytes, now_us: int) -> None:
        try:
            self._propose({item_of(self.dc, slot): value}, now_us)
        except Overloaded:
            change.slot = 0
            self._retry_us = now_us + RETRY_US
        else:
            change.slot, change.value = slot, value

    # --- slots ------------------------------------------------------------------------------------------------------

    def learned(self, item: bytes, value: bytes, now_us: int) -> None:
        """An item of the agreement is chosen (and synced there, so it needs no Keep)."""
        place = place_of(item)
        if place is not None and place[0] == self.dc:
            self._take_slot(*place, value)
            self._go_on(now_us)

    def restore(self, dc: str, slot: int, value: bytes) -> None:
        """A slot of the disk, in recovery: what it changes comes as Changed, and nothing is proposed."""
        self._take_slot(dc, slot, value)

    def known(self) -> dict[str, int]:
        """Per datacenter, how many slots are known without a gap: Statement.definitions."""
        return {dc: len(values) for dc, values in self._slots.items() if values}

    def slots(self) -> Iterator[tuple[str, int, bytes]]:
        """All slots known without a gap, as they are kept beside flushed cells."""
        for dc, values in self._slots.items():
            for number, value in enumerate(values, 1):
                yield dc, number, value

    def _take_slot(self, dc: str, slot: int, value: bytes) -> bool:
        """Hold a chosen slot; False where it is known, too far ahead, or of a datacenter that is unknown."""
        values = self._slots.get(dc)
        if values is None or slot <= len(values) or slot in self._ahead[dc]:
            return False
        if len(self._ahead[dc]) >= SLOTS_AHEAD_MAX and slot != len(values) + 1:
            self._outputs.append(Noted("catalog.too_far_ahead"))
            return False
        ahead = self._ahead[dc]
        ahead[slot] = value
        while (following := ahead.pop(len(values) + 1, None)) is not None:
            values.append(following)
            self._apply(following)
        return True

    def _apply(self, value: bytes) -> None:
        try:
            definition = decode(value)
        except RecordError:
            self._outputs.append(Noted("catalog.not_a_definition"))  # a slot all the same
            return
        before, self.catalog = self.catalog, self.catalog.merged(definition)
        if self.catalog is not before:
            self._outputs.append(Changed(self.catalog.by_id[definition.id]))

    # --- carrying ---------------------------------------------------------------------------------------------------

    def heard(self, peer: str, definitions: Mapping[str, int], now_us: int) -> None:
        """A peer says how many slots it knows: ask it for what we lack, once per datacenter and pause."""
        for dc, count in definitions.items():
            lacking = dc in self._slots and count > len(self._slots[dc])
            if lacking and now_us >= self._asked_us.get(dc, now_us):
                self._ask(peer, dc, now_us)

    def _ask(self, peer: str, dc: str, now_us: int) -> None:
        self._asked_us[dc] = now_us + ASK_AGAIN_US
        self._outputs.append(ToSend(peer, DefinitionsWanted(dc, len(self._slots[dc]) + 1)))

    def handle(self, peer: str, message: object, now_us: int) -> None:
        """DefinitionsWanted or Definitions of any peer. What makes no sense is noted and dropped."""
        match message:
            case DefinitionsWanted(dc=dc, first=first) if dc in self._slots and first > 0:
                page = list(self._page(dc, first))
                if page:
                    self._outputs.append(ToSend(peer, Definitions(dc, first, page)))
            case Definitions(dc=dc, first=first, values=values) if dc in self._slots and first > 0 and values:
                self._take_page(peer, message, now_us)
            case _:
                self._outputs.append(Noted("catalog.malformed"))

    def _page(self, dc: str, first: int) -> Iterator[bytes]:
        page_bytes = 0
        for value in self._slots[dc][first - 1 : first - 1 + PAGE_SLOTS_MAX]:
            page_bytes += len(value)
            if page_bytes > PAGE_BYTES_MAX:
                return
            yield value

    def _take_page(self, peer: str, page: Definitions, now_us: int) -> None:
        before = len(self._slots[page.dc])
        if page.first > before + 1 or len(page.values) > PAGE_SLOTS_MAX:
            self._outputs.append(Noted("catalog.page_beyond_gap"))
            return
        for slot, value in enumerate(page.values, page.first):
            if len(value) <= DEFINITION_BYTES_MAX and self._take_slot(page.dc, slot, value):
                self._outputs.append(Keep(page.dc, slot, value))
        if len(self._slots[page.dc]) > before:
            self._asked_us.pop(page.dc, None)
            if len(page.values) > 1:
                self._ask(peer, page.dc, now_us)  # there may be more; without an answer the next Statement says so
        self._go_on(now_us)

    # --- time and outputs -------------------------------------------------------------------------------------------

    def tick(self, now_us: int) -> None:
        if self._retry_us is not None and self._retry_us <= now_us:
            self._retry_us = None
            self._go_on(now_us)

    def wake_at_us(self) -> int | None:
        return self._retry_us

    def take(self) -> list[Output]:
        outputs, self._outputs = self._outputs, []
        return outputs


def item_of(dc: str, slot: int) -> bytes:
    return b"%b%b/%b" % (PREFIX, dc.encode(), slot.to_bytes(8, "big"))


def place_of(item: bytes) -> tuple[str, int] | None:
    """(dc, slot) of a definition's item; None for another item."""
    dc, slash, slot = item[len(PREFIX) : -8], item[-9:-8], item[-8:]
    if not item.startswith(PREFIX) or slash != b"/" or len(slot) != 8:
        return None
    return dc[:-1].decode("utf-8", "replace"), int.from_bytes(slot, "big")


def slots_in(known: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[str, int, bytes]]:
    """The definition slots among (item, value) pairs."""
    for item, value in known:
        place = place_of(item)
        if place is not None:
            yield *place, value


def _different(held: NamespaceDefinition, wanted: NamespaceDefinition, given: Iterable[str]) -> list[str]:
    """What of the policy and the given settings is not as wanted."""
    ours, theirs = wanted.settings(), held.settings()
    named = ["policy", *(name for name in given if name != "policy")]
    return [f"{name} is {theirs[name]!r}, not {ours[name]!r}" for name in named if ours[name] != theirs[name]]


def _exists(held: NamespaceDefinition, different: list[str], exist_ok: bool) -> str:
    if not exist_ok:
        return f"namespace {held.name!r} exists; say exist_ok to take it where its settings are the same"
    return f"namespace {held.name!r} exists with other settings: {'; '.join(different)}"

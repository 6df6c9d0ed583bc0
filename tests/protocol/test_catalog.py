"""The catalog's machine: definitions are agreed in one datacenter and mean the same in all."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest

from geokv.core.namespace import Catalog, define
from geokv.errors import InvalidRequest, NamespaceExists, NamespaceNotFound, Overloaded
from geokv.protocol import catalog
from geokv.protocol.agreement import Agreement, Learned, Noted, ToPersist, ToSend
from geokv.protocol.agreement_forms import ItemState
from geokv.protocol.catalog import (
    CatalogMachine,
    Changed,
    Failed,
    Keep,
    Ready,
    item_of,
    place_of,
    slots_in,
)
from geokv.protocol.messages import Definitions, DefinitionsWanted

TICK_US = 50_000


class Node:
    """A CatalogMachine and an Agreement over one disk, wired as the docstrings say."""

    def __init__(self, world: World, dc: str, name: str) -> None:
        self.world, self.dc, self.name = world, dc, name
        self.disk: dict[bytes, ItemState] = {}
        self.kept: list[tuple[str, int, bytes]] = []
        self.outcomes: dict[int, Ready | Failed] = {}
        self.run = 0
        self.start()

    def start(self) -> None:
        """Begin a run from the disk alone."""
        self.run += 1
        rng = random.Random(self.world.rng.getrandbits(64))
        members = [f"{self.dc}-{number}" for number in range(3)]
        self.agreement = Agreement(self.name, members, rng, True, list(self.disk.values()))
        slots = [*self.kept, *slots_in(self.agreement.known(catalog.PREFIX))]
        self.machine = CatalogMachine(self.dc, self.world.dcs, rng, self.agreement.propose, slots)
        self.outcomes = {}

    def tick(self) -> None:
        now = self.world.now_us
        self.agreement.tick(now)
        self.machine.tick(now)
        for peer in self.world.nodes:
            if peer != self.name:
                self.world.carry(self.name, peer, self.machine.known())
        self.perform()

    def receive(self, sender: str, message: object) -> None:
        now = self.world.now_us
        if isinstance(message, dict):
            self.machine.heard(sender, message, now)
        elif isinstance(message, Definitions | DefinitionsWanted):
            self.machine.handle(sender, message, now)
        else:
            self.agreement.handle(sender, message, now)
        self.perform()

    def perform(self) -> None:
        while outputs := [*self.agreement.take(), *self.machine.take()]:
            for output in outputs:
                match output:
                    case ToSend(peer, message):
                        self.world.carry(self.name, peer, message)
                    case ToPersist():
                        self.sync(output)
                    case Learned(item, value):
                        self.machine.learned(item, value, self.world.now_us)
                    case Keep(dc, slot, value):
                        self.kept.append((dc, slot, value))
                    case Ready(ticket) | Failed(ticket):
                        assert ticket not in self.outcomes
                        self.outcomes[ticket] = output
                    case Noted(name):
                        assert "malformed" not in name and "two_values" not in name, name

    def sync(self, asked: ToPersist) -> None:
        run = self.run

        def done() -> None:
            if self.run == run:
                self.disk.update((state.item, state) for state in asked.items)
                self.agreement.persisted(asked.token)
                self.perform()

        self.world.later(500, done)


class World:
    """Datacenters of three nodes each; messages are lost, doubled and reordered, and none crosses a cut."""

    def __init__(self, seed: int, dcs: tuple[str, ...] = ("eu", "us"), loss: float = 0.1) -> None:
        self.rng = random.Random(seed)
        self.dcs = dcs
        self.loss = loss
        self.now_us = 0
        self.is_cut = False
        self._queue: list[tuple[int, int, Callable[[], None]]] = []
        self._events = 0
        self.nodes: dict[str, Node] = {}
        for dc in dcs:
            for number in range(3):
                self.nodes[f"{dc}-{number}"] = Node(self, dc, f"{dc}-{number}")
        for name in self.nodes:
            self.later(self.rng.randrange(TICK_US), partial(self.beat, name))
        self.until(lambda: all(node.agreement.is_member for node in self.nodes.values()))

    def beat(self, name: str) -> None:
        self.nodes[name].tick()
        self.later(TICK_US, lambda: self.beat(name))

    def later(self, delay_us: int, action: Callable[[], None]) -> None:
        self._events += 1
        heapq.heappush(self._queue, (self.now_us + delay_us, self._events, action))

    def carry(self, sender: str, peer: str, message: object) -> None:
        is_across = self.nodes[sender].dc != self.nodes[peer].dc
        if is_across and self.is_cut:
            return
        for _ in range(2 if self.rng.random() < 0.1 else 1):
            if self.rng.random() >= self.loss:
                delay_us = self.rng.randrange(60_000 if is_across else 3_000)
                self.later(delay_us, lambda: self.nodes[peer].receive(sender, message))

    def run(self, duration_us: int) -> None:
        end_us = self.now_us + duration_us
        while self._queue[0][0] <= end_us:
            self.now_us, _, action = heapq.heappop(self._queue)
            action()

    def until(self, holds: Callable[[], bool]) -> None:
        deadline_us = self.now_us + 120_000_000
        while not holds():
            assert self.now_us < deadline_us, "no progress"
            self.run(TICK_US)

    def finish(self, name: str, ticket: int) -> Ready | Failed:
        node = self.nodes[name]
        self.until(lambda: ticket in node.outcomes)
        return node.outcomes[ticket]

    def create(self, name: str, namespace: str, exist_ok: bool = False, **settings: Any) -> Ready | Failed:
        node = self.nodes[name]
        return self.finish(name, node.machine.create(namespace, settings, self.hlc(), self.now_us, exist_ok))

    def hlc(self) -> int:
        return (self.now_us // 1000) << 16

    def converge(self) -> Catalog:
        """Run until all nodes know the same slots; their catalogs must be equal then."""
        self.is_cut = False
        self.until(lambda: len({tuple(sorted(node.machine.known().items())) for node in self.nodes.values()}) == 1)
        first, *others = [node.machine.catalog for node in self.nodes.values()]
        assert all(first == other and first.names() == other.names() for other in others)
        assert all(first.conflicts() == other.conflicts() for other in others)
        return first


@pytest.mark.parametrize("seed", range(8))
def test_two_datacenters_that_create_one_name_while_cut_apart_agree_after_healing(seed: int) -> None:
    """Each uses its own meanwhile; then the earlier has the name everywhere and the other its alias."""
    world = World(seed)
    world.is_cut = True
    earlier = world.create("eu-0", "carts", ttl_ms=1)
    world.run(5_000)
    later = world.create("us-1", "carts", ttl_ms=2)
    assert isinstance(earlier, Ready) and isinstance(later, Ready)
    assert world.nodes["eu-0"].machine.catalog.resolve("carts") == earlier.definition
    assert world.nodes["us-1"].machine.catalog.resolve("carts") == later.definition
    healed = world.converge()
    assert healed.resolve("carts") == earlier.definition and healed.resolve("carts@us") == later.definition
    assert healed.conflicts() == [("carts", "carts@us")]


@pytest.mark.parametrize("seed", range(8))
def test_settings_changed_in_two_datacenters_at_once_converge(seed: int) -> None:
    """The later HLC stands everywhere; inside one datacenter two changes both happen, one upon the other."""
    world = World(seed)
    assert isinstance(world.create("eu-0", "carts"), Ready)
    world.converge()
    world.is_cut = True
    tickets = {
        name: world.nodes[name].machine.alter("carts", changes, hlc, world.now_us)
        for name, changes, hlc in (
            ("eu-1", {"ttl_ms": 1}, world.hlc() + 1),
            ("eu-2", {"value_bytes_max": 77}, world.hlc() + 1),
            ("us-0", {"ttl_ms": 3}, world.hlc() + (1 << 30)),
        )
    }
    outcomes = [world.finish(name, ticket) for name, ticket in tickets.items()]
    assert all(isinstance(outcome, Ready) for outcome in outcomes)
    here = world.nodes["eu-0"]
    world.until(lambda: here.machine.known()["eu"] == 3)
    standing = here.machine.catalog.resolve("carts")
    assert standing is not None and (standing.ttl_ms, standing.value_bytes_max, standing.version) == (
        1,
        77,
        3,
    )
    healed = world.converge().resolve("carts")
    assert healed is not None and healed.ttl_ms == 3 and healed.altered_dc == "us"


@pytest.mark.parametrize("seed", range(8))
def test_a_deletion_is_for_ever(seed: int) -> None:
    """It wins over a later alteration elsewhere; another id may take the name; restarts keep that."""
    world = World(seed)
    created = world.create("eu-0", "carts")
    assert isinstance(created, Ready)
    world.converge()
    world.is_cut = True
    deleted = world.nodes["eu-0"].machine.delete("carts", world.hlc(), world.now_us)
    altered = world.nodes["us-0"].machine.alter("carts", {"ttl_ms": 3}, world.hlc() + (1 << 40), world.now_us)
    assert isinstance(world.finish("eu-0", deleted), Ready) and isinstance(world.finish("us-0", altered), Ready)
    healed = world.converge()
    assert healed.resolve("carts") is None and healed.by_id[created.definition.id].is_deleted
    again = world.create("us-2", "carts")
    assert isinstance(again, Ready) and again.definition.id != created.definition.id
    for node in world.nodes.values():
        node.start()
    assert world.converge().resolve("carts") == again.definition


@pytest.mark.parametrize("seed", range(8))
def test_all_nodes_of_a_datacenter_creating_at_once_take_different_slots(seed: int) -> None:
    """Six names from three nodes: all Ready; one name from each: one is made, equal ones are Ready."""
    world = World(seed)
    asked = []
    for number, name in enumerate(["eu-0", "eu-1", "eu-2"] * 2):
        machine = world.nodes[name].machine
        asked.append((name, machine.create(f"own-{number}", {}, world.hlc(), world.now_us)))
        asked.append((name, machine.create("shared", {"ttl_ms": 5}, world.hlc(), world.now_us, exist_ok=True)))
    outcomes = [world.finish(name, ticket) for name, ticket in asked]
    assert all(isinstance(outcome, Ready) for outcome in outcomes)
    healed = world.converge()
    assert healed.names() == ["default", *(f"own-{number}" for number in range(6)), "shared"]
    assert len({outcome.definition.id for outcome in outcomes if isinstance(outcome, Ready)}) == 7
    assert world.nodes["us-0"].machine.known() == {"eu": 7}


def test_a_name_that_is_taken_is_refused() -> None:
    """NamespaceExists, with the difference where exist_ok was said; equal settings are Ready."""
    world = World(1)
    first = world.create("eu-0", "carts", ttl_ms=1)
    assert isinstance(first, Ready)
    world.converge()
    with pytest.raises(NamespaceExists, match="say exist_ok"):
        world.create("us-0", "carts", ttl_ms=1)
    with pytest.raises(NamespaceExists, match="ttl_ms is 1, not 2"):
        world.create("us-0", "carts", exist_ok=True, ttl_ms=2)
    assert isinstance(world.create("us-0", "carts", exist_ok=True), Ready)  # what is not given may have been altered
    same = world.create("us-0", "carts", exist_ok=True, ttl_ms=1)
    assert isinstance(same, Ready) and same.definition == first.definition


def test_a_race_for_one_name_in_a_datacenter_fails_the_second() -> None:
    """Who finds the slot taken looks again, and hears NamespaceExists."""
    world = World(2)
    asked = [
        (name, world.nodes[name].machine.create("carts", {"ttl_ms": number}, world.hlc(), world.now_us))
        for number, name in enumerate(["eu-0", "eu-1"])
    ]
    outcomes = [world.finish(name, ticket) for name, ticket in asked]
    failed = [outcome.error for outcome in outcomes if isinstance(outcome, Failed)]
    assert len(failed) == 1 and isinstance(failed[0], NamespaceExists)


def test_unknown_names_are_refused() -> None:
    """alter and delete of what is not there say so, and what can never be a name is InvalidRequest."""
    machine = World(3).nodes["eu-0"].machine
    with pytest.raises(NamespaceNotFound, match="carts"):
        machine.alter("carts", {"ttl_ms": 1}, 1, 0)
    with pytest.raises(NamespaceNotFound):
        machine.delete("carts@eu", 1, 0)
    with pytest.raises(InvalidRequest, match="1 to 63"):
        machine.delete("NO", 1, 0)
    with pytest.raises(InvalidRequest, match="cannot be deleted"):
        machine.delete("default", 1, 0)


def test_what_was_carried_survives_a_restart() -> None:
    """Slots of another datacenter are kept, and are there before any peer has spoken."""
    world = World(4)
    created = world.create("eu-0", "carts")
    world.converge()
    node = world.nodes["us-2"]
    node.start()
    assert isinstance(created, Ready) and node.machine.catalog.resolve("carts") == created.definition
    assert node.machine.known() == {"eu": 1}


def alone(propose: Callable[[Mapping[bytes, bytes], int], int] = lambda items, now: 1) -> CatalogMachine:
    return CatalogMachine("eu", ["eu", "us"], random.Random(1), propose)


def encoded(count: int) -> list[bytes]:
    return [define(number + 2, f"n{number}", {}, ["eu", "us"], number, "us").encode() for number in range(count)]


def test_a_long_history_is_carried_in_bounded_pages() -> None:
    """The receiver asks page by page, and applies each slot once, in order, whatever comes twice."""
    slots = [("us", number, value) for number, value in enumerate(encoded(600), 1)]
    giver = CatalogMachine("us", ["eu", "us"], random.Random(2), lambda items, now: 1, slots)
    taker = alone()
    taker.heard("giver", giver.known(), 0)
    kept: list[int] = []
    pages = 0
    while sent := [output for output in taker.take() if not isinstance(output, Changed)]:
        kept += [output.slot for output in sent if isinstance(output, Keep)]
        for output in sent:
            if isinstance(output, ToSend):
                giver.handle("taker", output.message, 0)
        for answer in giver.take():
            assert isinstance(answer, ToSend) and isinstance(answer.message, Definitions)
            assert len(answer.message.values) <= catalog.PAGE_SLOTS_MAX
            pages += 1
            taker.handle("giver", answer.message, 0)
            taker.handle("giver", answer.message, 0)
    assert kept == list(range(1, 601)) and pages == 3 and taker.known() == {"us": 600}
    assert len(taker.catalog.names()) == 601


def test_slots_beyond_a_gap_wait_for_it() -> None:
    """A choice that was learned early is not applied before those in front of it."""
    machine, (first, second, _) = alone(), encoded(3)
    machine.learned(item_of("eu", 2), second, 0)
    assert machine.known() == {} and machine.take() == []
    machine.learned(item_of("eu", 1), first, 0)
    assert machine.known() == {"eu": 2} and [type(output) for output in machine.take()] == [Changed, Changed]


def test_a_slot_that_is_no_definition_is_passed_over() -> None:
    """It is counted, and does not hold up those behind it."""
    machine = alone()
    machine.learned(item_of("eu", 1), b"nonsense", 0)
    machine.learned(item_of("eu", 2), encoded(1)[0], 0)
    assert machine.known() == {"eu": 2} and machine.catalog.resolve("n0") is not None
    assert Noted("catalog.not_a_definition") in machine.take()


def test_an_overloaded_agreement_is_tried_again() -> None:
    """The change waits and is proposed at the next tick that is due."""
    proposed: list[dict[bytes, bytes]] = []

    def propose(items: Mapping[bytes, bytes], now_us: int) -> int:
        if now_us < 100:
            raise Overloaded("full")
        proposed.append(dict(items))
        return 1

    machine = alone(propose)
    ticket = machine.create("carts", {}, 5, 0)
    wake = machine.wake_at_us()
    assert not proposed and wake is not None
    machine.tick(wake)
    ((item, value),) = proposed[0].items()
    machine.learned(item, value, wake)
    assert any(isinstance(output, Ready) and output.ticket == ticket for output in machine.take())


def test_changes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many at once are Overloaded; a forgotten one makes room."""
    monkeypatch.setattr(catalog, "CHANGES_MAX", 2)
    machine = alone()
    machine.create("a", {}, 1, 0)
    second = machine.create("b", {}, 1, 0)
    with pytest.raises(Overloaded, match="at most 2"):
        machine.create("c", {}, 1, 0)
    machine.forget(second)
    machine.create("c", {}, 1, 0)


@pytest.mark.parametrize(
    "message",
    [
        DefinitionsWanted("mars", 1),
        DefinitionsWanted("us", 0),
        Definitions("us", 0, [b"x"]),
        Definitions("us", 1, []),
        7,
    ],
)
def test_malformed_messages_are_noted_and_dropped(message: object) -> None:
    """Unknown datacenters, slot 0, pages beyond what was asked for: no state changes."""
    machine = alone()
    machine.handle("us-0", message, 0)
    assert machine.take() == [Noted("catalog.malformed")] and machine.known() == {}


def test_a_page_behind_a_gap_is_not_taken() -> None:
    """An answer to what an earlier run asked does not make slots that are missing in between."""
    machine = alone()
    machine.handle("us-0", Definitions("us", 9, encoded(1)), 0)
    assert machine.take() == [Noted("catalog.page_beyond_gap")] and machine.known() == {}


def test_items_name_their_slot() -> None:
    """place_of is the inverse of item_of, also where the number holds a slash, and knows other items."""
    for slot in (1, 47, 0x2F2F, 1 << 40):
        assert place_of(item_of("eu-west", slot)) == ("eu-west", slot)
    assert place_of(b"closing/whatever-else-it-is") is None and place_of(b"def/") is None

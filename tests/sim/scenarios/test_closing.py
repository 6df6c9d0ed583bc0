"""Closing what ran before: crashes at the one moment that matters, several closers, late records, lost disks."""

from __future__ import annotations

from typing import Any

from geokv.core.record import decode_records
from geokv.protocol.effects import Delivered, Send
from geokv.protocol.messages import CloseAnswer, CloseTell, Replicate
from geokv.sim.clients import Ask
from geokv.sim.history import Operation
from geokv.sim.host import Host
from geokv.sim.world import World
from tests.sim.scenes import (
    MS,
    SECOND,
    When,
    holders,
    is_restarted,
    is_serving,
    key_led_by,
    refusals,
    serving_world,
    settle,
    value_at,
)

CLOSER = "dc1-n1"
CO_OWNERS = ("dc1-n2", "dc1-n3")


def carries(message: object, key: bytes) -> bool:
    """Whether it is a Replicate with a record of that key."""
    return isinstance(message, Replicate) and any(record.key == key for record in decode_records(message.records))


def closings_of(world: World) -> dict[str, dict[Any, bytes]]:
    """Per running node the closings that it knows (forgotten ones are not among them)."""
    return {
        name: dict(host.node.assembly.closings.known)  # type: ignore[attr-defined]
        for name, host in world.hosts.items()
        if host.node is not None
    }


def assert_closings_agree(world: World) -> None:
    """No two nodes know different ends of one stream."""
    seen: dict[Any, tuple[str, bytes]] = {}
    for name, known in closings_of(world).items():
        for pair, value in known.items():
            other = seen.setdefault(pair, (name, value))
            assert other[1] == value, f"{name} and {other[0]} know different closings of {pair}"


def start_put(world: World, node: str, key: bytes, value: bytes, ask: Ask | None = None) -> Operation:
    """Ask for a put and do not wait for it."""
    batch = world.direct_client(node).write([(key, value)], ask or Ask())
    return batch.operations[0]


def write_held_by_one(world: World, key: bytes, node: str) -> Operation:
    """A put through CLOSER that reaches `node` alone: it is in that node's socket (`network.held`) and nowhere else."""
    world.network.hold = lambda source, target, message: source == CLOSER and carries(message, key)
    operation = start_put(world, CLOSER, key, b"late")
    assert world.run_until(lambda: len(world.network.held) >= len(CO_OWNERS), 1 * SECOND)
    world.network.hold = None
    world.network.held = [held for held in world.network.held if held[1] == node]
    return operation


def deliver_held(world: World) -> None:
    """What was still in a socket is read now."""
    for source, target, message in world.network.held:
        world.hosts[target].deliver(Delivered(source, message))
    world.network.held.clear()


def test_power_cut_of_the_coordinator_between_the_peers_sync_and_its_own() -> None:
    """A record that only the co-owners synced survives the coordinator: the closing takes it in, everywhere."""
    world = serving_world()
    key = key_led_by(world, CLOSER)
    host = world.hosts[CLOSER]
    host.extra_sync_us = 200 * MS

    def only_peers_have_it(_: Host) -> bool:
        return all(key in world.truth.images[name].cells for name in CO_OWNERS)

    When(world, lambda: host.cut_power(is_all_lost=True), durable=only_peers_have_it)
    operation = start_put(world, CLOSER, key, b"kept by the others")
    assert world.run_until(lambda: not host.is_listening, 5 * SECOND), "the coordinator was not cut"
    assert operation.outcome is None
    host.extra_sync_us = 0
    host.start(1 * SECOND)
    settle(world)
    for name in world.hosts:
        cell = value_at(world, name, key)
        assert cell is not None, name
        assert cell.endswith(b"kept by the others")
    assert_closings_agree(world)


def test_two_closers_at_once() -> None:
    """The node itself and a co-owner close the same streams at the same time: all replicas know one end."""
    world = serving_world()
    keys = [key_led_by(world, CLOSER, number) for number in range(6)]
    client = world.direct_client(CLOSER)
    for key in keys:
        client.put(key, b"before " + key)
    incarnation = world.hosts[CLOSER].incarnation
    world.hosts[CLOSER].kill()
    world.hosts[CLOSER].start(300 * MS)
    world.run(250 * MS)
    for name in CO_OWNERS:
        node: Any = world.hosts[name].node
        node.close_node(CLOSER)
    assert world.run_until(lambda: is_restarted(world, CLOSER, incarnation), 20 * SECOND), refusals(world)
    for _ in range(40):
        world.run(250 * MS)
        assert_closings_agree(world)
    settle(world)


def test_closer_whose_disk_is_lost_right_after_it_told_one_dc() -> None:
    """The closing was agreed before anybody was told, so another closer finds the same end and finishes it."""
    world = serving_world()
    key = key_led_by(world, CLOSER)
    world.direct_client(CLOSER).put(key, b"acknowledged")
    host = world.hosts[CLOSER]
    host.kill()
    host.start(100 * MS)

    def told_dc2(seen: Host, event: Any) -> bool:
        return (
            seen.dc == "dc2" and isinstance(event, Delivered) and event.peer == CLOSER and isinstance(event.message, CloseTell)
        )

    def lose() -> None:
        host.cut_power()
        host.replace_disk(host.storage.emptied(), "empty")

    told = When(world, lose, before_event=told_dc2)
    assert world.run_until(lambda: told.seen, 20 * SECOND), "the closer told nobody in dc2"
    node: Any = world.hosts[CO_OWNERS[0]].node
    node.close_node(CLOSER)
    others = [name for name in world.hosts if name != CLOSER]
    for _ in range(60):
        world.run(250 * MS)
        assert_closings_agree(world)
    for name in others:
        cell = value_at(world, name, key)
        assert cell is not None, name
        assert cell.endswith(b"acknowledged")
    assert is_serving(world, others), refusals(world)


def late_record_is_dropped(world: World, key: bytes, operation: Operation) -> None:
    """The record of the old run is nowhere: nobody acknowledged it, and its number is void or beyond the last one."""
    settle(world)
    assert operation.outcome is None or not operation.is_acknowledged
    assert [name for name in world.hosts if value_at(world, name, key) is not None] == []
    assert_closings_agree(world)


def test_paused_owner_that_wakes_after_it_answered_with_a_record_in_its_socket() -> None:
    """An owner that promised takes no record of the closed run, however late it reads it."""
    world = serving_world()
    key, owner = key_led_by(world, CLOSER), CO_OWNERS[0]
    # The coordinator never syncs it, and only the socket of the owner has it.
    world.hosts[CLOSER].extra_sync_us = 5 * SECOND
    operation = write_held_by_one(world, key, owner)
    incarnation = world.hosts[CLOSER].incarnation
    world.hosts[CLOSER].cut_power(is_all_lost=True)
    world.hosts[CLOSER].extra_sync_us = 0

    def answered(seen: Host, effect: Any) -> bool:
        return seen.name == owner and isinstance(effect, Send) and isinstance(effect.message, CloseAnswer)

    pause = When(world, world.hosts[owner].pause, after_effect=answered)
    world.hosts[CLOSER].start(100 * MS)
    assert world.run_until(lambda: pause.seen, 20 * SECOND), "the owner was not asked"
    deliver_held(world)
    world.run(2 * SECOND)
    world.hosts[owner].go_on()
    assert world.run_until(lambda: is_restarted(world, CLOSER, incarnation), 20 * SECOND), refusals(world)
    late_record_is_dropped(world, key, operation)


def test_owner_that_answered_crashed_and_came_back() -> None:
    """A promise outlives the crash of who gave it: it is synced before the answer leaves."""
    world = serving_world()
    key, owner = key_led_by(world, CLOSER), CO_OWNERS[0]
    world.hosts[CLOSER].extra_sync_us = 5 * SECOND
    operation = write_held_by_one(world, key, owner)
    world.hosts[CLOSER].cut_power(is_all_lost=True)
    world.hosts[CLOSER].extra_sync_us = 0

    def answered(seen: Host, effect: Any) -> bool:
        return seen.name == owner and isinstance(effect, Send) and isinstance(effect.message, CloseAnswer)

    cut = When(world, world.hosts[owner].cut_power, after_effect=answered)
    world.hosts[CLOSER].start(100 * MS)
    assert world.run_until(lambda: cut.seen, 20 * SECOND), "the owner was not asked"
    before = world.hosts[owner].boot
    world.hosts[owner].start(100 * MS)
    world.run_until(lambda: is_restarted(world, owner, 0), 10 * SECOND)
    assert world.hosts[owner].boot > before
    deliver_held(world)
    world.run(1 * SECOND)
    late_record_is_dropped(world, key, operation)


def test_coordinator_that_is_refused_while_alive() -> None:
    """Who is closed by others while it runs ends its incarnation and goes on as a new one, and loses nothing."""
    world = serving_world()
    key = key_led_by(world, CLOSER)
    client = world.direct_client(CLOSER)
    first = client.put(key, b"before")
    incarnation = world.hosts[CLOSER].incarnation
    node: Any = world.hosts[CO_OWNERS[0]].node
    node.close_node(CLOSER)
    world.run(100 * MS)
    for number in range(10):
        client.put(key, b"meanwhile %d" % number)
        world.run(100 * MS)
    assert world.run_until(lambda: is_restarted(world, CLOSER, incarnation), 20 * SECOND), refusals(world)
    last = client.put(key, b"after")
    assert first.is_acknowledged
    assert last.is_acknowledged
    settle(world)
    assert_closings_agree(world)
    assert CLOSER in holders(world, last)


def test_what_one_owner_has_is_on_every_owner_before_the_closing_is_told() -> None:
    """No last number rests on one disk: the closer first has every owner of its datacenter sync what any of them has."""
    world = serving_world()
    key, owner, other = key_led_by(world, CLOSER), *CO_OWNERS
    host = world.hosts[CLOSER]
    host.extra_sync_us = 5 * SECOND
    world.network.hold = lambda source, target, message: target == other and carries(message, key)
    start_put(world, CLOSER, key, b"on one disk")
    assert world.run_until(lambda: key in world.truth.images[owner].cells, 1 * SECOND)
    host.cut_power(is_all_lost=True)
    world.network.hold = None
    host.extra_sync_us = 0
    host.start(100 * MS)

    def is_told(_: Host, event: Any) -> bool:
        return isinstance(event, Delivered) and isinstance(event.message, CloseTell)

    have: list[str] = []
    told = When(
        world,
        lambda: have.extend(name for name in (CLOSER, *CO_OWNERS) if key in world.truth.images[name].cells),
        before_event=is_told,
    )
    assert world.run_until(lambda: told.seen, 20 * SECOND), "no closing was told"
    assert have == [CLOSER, *CO_OWNERS]
    settle(world)
    assert value_at(world, "dc3-n3", key) is not None


def test_number_that_nobody_has_is_void_and_what_follows_it_is_kept() -> None:
    """A gap in what the owners hold is closed as void: the record behind it spreads, the missing one is nowhere."""
    world = serving_world()
    first = key_led_by(world, CLOSER)
    partition = world.partition(first)
    second = next(key for key in (b"next-%d" % n for n in range(5_000)) if world.partition(key) == partition)
    host = world.hosts[CLOSER]
    host.extra_sync_us = 5 * SECOND
    world.network.hold = lambda source, target, message: carries(message, first)
    start_put(world, CLOSER, first, b"reached nobody")
    assert world.run_until(lambda: len(world.network.held) == len(CO_OWNERS), 1 * SECOND)
    start_put(world, CLOSER, second, b"reached the others")
    assert world.run_until(lambda: all(second in world.truth.images[n].cells for n in CO_OWNERS), 1 * SECOND)
    host.cut_power(is_all_lost=True)
    world.network.hold = None
    host.extra_sync_us = 0
    host.start(100 * MS)
    settle(world)
    assert [name for name in world.hosts if value_at(world, name, first) is not None] == []
    assert [name for name in world.hosts if value_at(world, name, second) is None] == []
    assert_closings_agree(world)

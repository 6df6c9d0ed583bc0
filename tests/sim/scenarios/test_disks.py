"""Disks that are old, new, failing or full."""

from __future__ import annotations

from typing import Any

import pytest

from geokv.protocol.requests import Outcome
from geokv.sim.clients import Ask
from geokv.sim.disks import StorageOptions
from geokv.sim.run import Run
from geokv.sim.world import World, WorldOptions
from tests.sim.scenes import (
    MS,
    SECOND,
    demand,
    is_restarted,
    is_serving,
    key_led_by,
    refusals,
    serving_world,
    settle,
)

NODE = "dc1-n1"
OTHERS = ("dc1-n2", "dc1-n3")


def put_many(world: World, node: str, count: int, tag: str) -> None:
    """Acknowledged puts through one node."""
    client = world.direct_client(node)
    for number in range(count):
        assert client.put(key_led_by(world, node, number), f"{tag} {number}".encode()).is_acknowledged


def test_old_copy_of_a_disk_is_refused_by_name() -> None:
    """A node that starts with a copy of its disk from before says so and serves nobody; no number is used twice."""
    world = serving_world()
    put_many(world, NODE, 3, "copied")
    host = world.hosts[NODE]
    copy = host.storage.copied()
    put_many(world, NODE, 5, "after the copy")
    world.run(3 * SECOND)
    host.kill()
    host.replace_disk(copy, "old copy")
    host.start()
    world.run(15 * SECOND)
    assert host.node is not None
    assert NODE in host.node.is_refusing, host.node.is_refusing
    asked = world.direct_client(NODE).put(key_led_by(world, NODE), b"not here")
    assert asked.outcome is Outcome.UNAVAILABLE
    assert world.direct_client(OTHERS[0]).put(key_led_by(world, NODE), b"but here").is_acknowledged
    world.run(5 * SECOND)
    demand(world)


def test_member_of_the_agreement_whose_disk_was_replaced_does_not_forget_what_was_agreed() -> None:
    """With a new disk a member has no voice before it has copied the items: what a majority agreed on cannot be lost."""
    world = serving_world()
    # carts is agreed by n1 and n2 alone.
    world.network.cut_between(["dc1-n3"], ["dc1-n1", "dc1-n2"])
    created = world.direct_client("dc1-n1").admin("namespace_create", {"name": "carts", "policy": "lww"})
    assert created is not None
    assert created.outcome is Outcome.APPLIED, created.message
    # n1 is gone for a while, n2 comes back with an empty disk: only a voice without memory would give n3 a majority.
    world.hosts["dc1-n1"].kill()
    host = world.hosts["dc1-n2"]
    host.kill()
    host.replace_disk(host.storage.emptied(), "empty")
    world.network.heal_all()
    host.start()
    world.run(8 * SECOND)
    alone = world.direct_client("dc1-n3").admin("namespace_create", {"name": "boxes", "policy": "lww"})
    assert alone is None or alone.outcome is not Outcome.APPLIED
    world.hosts["dc1-n1"].start()
    assert world.run_until(lambda: is_serving(world, ["dc1-n1", "dc1-n3"]), 20 * SECOND), refusals(world)
    world.run(5 * SECOND)
    names = names_known(world, "dc1-n3")
    assert "carts" in names, names
    assert names == names_known(world, "dc1-n1")


def names_known(world: World, node: str) -> list[str]:
    """The namespaces that a node lists."""
    listed = world.direct_client(node).admin("namespace_list", {})
    assert listed is not None
    assert listed.outcome is Outcome.APPLIED, listed.message
    namespaces: Any = listed.body["namespaces"]
    return sorted(entry["name"] for entry in namespaces)


@pytest.mark.parametrize("call", ["append", "sync"])
def test_failed_append_or_fsync_ends_the_incarnation_and_the_node_goes_on(call: str) -> None:
    """An error of the log ends the run as a crash does; the node comes back by itself, as a new incarnation."""
    world = serving_world()
    put_many(world, NODE, 3, "before")
    host = world.hosts[NODE]
    incarnation, ended = host.incarnation, host.runs_ended
    host.storage.fail_next(call)
    client = world.direct_client(NODE)
    failed = client.put(key_led_by(world, NODE), b"meets the error")
    assert not failed.is_acknowledged or failed.replicas >= 2
    assert world.run_until(lambda: is_restarted(world, NODE, incarnation), 20 * SECOND), refusals(world)
    assert host.runs_ended == ended + 1
    key = key_led_by(world, NODE)
    assert world.run_until(lambda: client.put(key, b"after").is_acknowledged, 10 * SECOND)
    settle(world)


def test_full_disk_turns_the_node_read_only_and_back() -> None:
    """A node whose disk is full refuses writes with the reason and answers reads; with room again it takes writes."""
    world = serving_world(1, WorldOptions(dcs=1, storage=StorageOptions(segment_bytes=512 << 10)))
    put_many(world, NODE, 3, "before")
    host = world.hosts[NODE]
    host.storage.fill()
    client = world.direct_client(NODE)
    key = key_led_by(world, NODE)
    refused = None
    for number in range(400):
        batch = client.write([(key, b"%d:" % number + b"x" * 8_000)], Ask(timeout_us=1 * SECOND))
        world.run_until(lambda batch=batch: batch.is_done, 2 * SECOND)  # type: ignore[misc]
        if batch.outcomes[0] in (Outcome.OVERLOADED, Outcome.UNAVAILABLE):
            refused = batch
            break
    assert refused is not None, "the full disk never refused a write"
    assert client.get(key).outcome is Outcome.APPLIED
    host.storage.make_room()
    assert world.run_until(lambda: client.put(key, b"again").is_acknowledged, 20 * SECOND)
    settle(world)


def test_full_disk_names_its_reason() -> None:
    """The refusal of a full node says what is full."""
    world = serving_world(1, WorldOptions(dcs=1, storage=StorageOptions(segment_bytes=512 << 10)))
    host = world.hosts[NODE]
    host.storage.fill()
    key = key_led_by(world, NODE)
    reasons: list[str] = []
    from geokv.protocol.requests import WriteBatch, WriteReply

    def answered(reply: Any, failure: Any) -> None:
        if isinstance(reply, WriteReply):
            reasons.extend(detail.message for detail in reply.details.values())

    client = world.direct_client(NODE)
    for _ in range(400):
        request = WriteBatch("default", [key], [b"x" * 8_000], timeout_ms=1_000)
        world.calls.call(client.name, NODE, request, 1 * SECOND, answered)
        world.run(20 * MS)
        if reasons:
            break
    assert reasons
    assert "room" in reasons[0]


def test_a_drawn_run_flushes_compacts_and_reads_what_only_the_disk_has() -> None:
    """Sizes are such that a few seconds of work meet all of that, with faults in between; steps hardly ever read a disk."""
    run = Run(5)
    assert run.run().is_ok
    nodes = [host.node for host in run.world.hosts.values() if host.node is not None]
    found: dict[str, int] = {}
    for node in nodes:
        for name, count in node.metrics().items():  # type: ignore[attr-defined]
            found[name] = found.get(name, 0) + int(count)
    assert found["events.storage.flush"] > 10 and found["events.storage.compaction"] > 5
    assert found["events.read.loaded"] > 10 and found["events.write.loaded"] > 10
    assert found["storage.tables"] > 5
    assert run.world.notes.get("host.read_in_step", 0) < 20

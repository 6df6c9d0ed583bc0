"""Shipping in few, large messages: one receiver per sender, batches at common moments, relays and acknowledgements gathered."""

from __future__ import annotations

from geokv.core.quorum import Consistency
from geokv.protocol.messages import FeedAck, FeedBatch, FeedOpen, Replicate
from tests.node.harness import MS, SECOND, Cluster


def two_by_three() -> Cluster:
    return Cluster(datacenters=2).start().serving().run(SECOND)


def load(cluster: Cluster, rounds: int, every_us: int) -> None:
    """Each node of dc1 takes a write of one key per round."""
    for at in range(rounds):
        for name in ("dc1-1", "dc1-2", "dc1-3"):
            cluster.write(name, {b"%s-%d" % (name.encode(), at): b"v"}, Consistency.QUORUM)
        cluster.run(every_us)


def test_a_node_ships_to_one_node_of_each_datacenter_where_that_owns_everything() -> None:
    """Three nodes with three copies each: every sender has one receiver, and every receiver one sender."""
    cluster = two_by_three()
    pairs = {(s, r) for s, r, m in cluster.sent if isinstance(m, FeedOpen) and m.own_only and s.startswith("dc2")}
    assert pairs == {("dc2-1", "dc1-1"), ("dc2-2", "dc1-2"), ("dc2-3", "dc1-3")}


def test_the_next_live_owner_receives_in_the_place_of_one_that_is_gone() -> None:
    """Its sender is taken over by exactly one other node, and nothing is lost."""
    cluster = two_by_three()
    cluster.crash("dc2-2")
    cluster.run(3 * SECOND)
    before = len(cluster.sent)
    for at in range(30):
        cluster.put("dc1-2", b"k%d" % at, b"v")
    cluster.run(SECOND)
    receivers = {r for s, r, m in cluster.sent[before:] if s == "dc1-2" and isinstance(m, FeedBatch) and m.payload}
    assert receivers == {"dc2-3"}
    assert cluster.are_equal()


def test_a_record_after_a_quiet_time_is_shipped_and_relayed_at_once() -> None:
    """Nobody waits for company that may not come."""
    cluster = two_by_three()
    cluster.run(SECOND)
    cluster.put("dc1-1", b"k", b"v")
    cluster.run(MS)
    assert all(b"k" in cluster.cells(name) for name in cluster.names)


def test_under_load_batches_relays_and_acknowledgements_are_few() -> None:
    """300 writes in a second from three nodes: each feed sends at most 40 batches, relayed in at most as many messages."""
    cluster = two_by_three()
    before = len(cluster.sent)
    load(cluster, rounds=100, every_us=10 * MS)
    sent = cluster.sent[before:]
    batches = [s for s, r, m in sent if isinstance(m, FeedBatch) and m.payload]
    relays = [s for s, r, m in sent if isinstance(m, Replicate) and s.startswith("dc2")]
    acknowledgements = [s for s, r, m in sent if isinstance(m, FeedAck) and s.startswith("dc2")]
    assert 3 * 30 <= len(batches) <= 3 * 42
    assert len(relays) <= 2 * len(batches)
    assert len(acknowledgements) <= len(batches) + 3 * 10
    cluster.run(SECOND)
    assert cluster.are_equal()


def test_a_large_relay_does_not_wait() -> None:
    """Gathered records leave as soon as they are many: no message grows without a bound."""
    cluster = two_by_three()
    cluster.admin("dc1-1", "namespace_create", name="large", value_bytes_max=1 << 20)
    cluster.run(SECOND)
    for at in range(4):
        cluster.put("dc1-1", b"k%d" % at, bytes(400_000), namespace="large")
    cluster.run(SECOND)
    relays = [m for s, r, m in cluster.sent if isinstance(m, Replicate) and s.startswith("dc2")]
    assert max(len(message.records) for message in relays) < 1_000_000
    assert cluster.are_equal("large")


def test_datacenters_confirm_within_a_round_trip_when_it_is_quiet() -> None:
    """A lone EACH_QUORUM write waits for the way, not for timers made for load."""
    cluster = two_by_three()
    cluster.run(SECOND)
    began_us = cluster.now_us
    call = cluster.write("dc1-1", {b"k": b"v"}, Consistency.EACH_QUORUM)
    while cluster.reply("dc1-1", call) is None:
        cluster.run(MS)
        assert cluster.now_us - began_us < 15 * MS

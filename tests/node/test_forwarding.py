"""Forwarding: who owns no copy of a key hands the operation on, and says truly what became of it."""

from __future__ import annotations

from geokv.core.quorum import Consistency
from geokv.core.ring import key_hash
from geokv.protocol.forward import cut
from geokv.protocol.messages import Forward, Forwarded
from geokv.protocol.requests import Outcome, ReadBatch, WriteBatch
from tests.node.harness import MS, SECOND, Cluster


def cluster_of_five() -> Cluster:
    """Five nodes with two copies of each key, so that every node lacks most of them."""
    return Cluster(nodes=5, replicas=2, partitions=16).start().serving()


def owners(cluster: Cluster, key: bytes) -> tuple[str, ...]:
    placement = cluster.nodes["dc1-1"].assembly.placement
    return placement.owners[key_hash(key) >> placement.shift]


def foreign_keys(cluster: Cluster, node: str, count: int) -> list[bytes]:
    """Keys that the node does not own."""
    return [key for key in (b"k%d" % at for at in range(1000)) if node not in owners(cluster, key)][:count]


def test_a_batch_is_cut_by_owner_and_its_answers_keep_their_order() -> None:
    """Operations of one batch go to several owners; each comes back at its own place, with its own outcome."""
    cluster = cluster_of_five()
    keys = [b"k%d" % at for at in range(40)] + [b""]
    call = cluster.ask("dc1-1", WriteBatch("default", keys, [b"v-" + key for key in keys]))
    cluster.run(100 * MS)
    reply = cluster.reply("dc1-1", call)
    assert reply.outcomes == [Outcome.APPLIED] * 40 + [Outcome.INVALID]
    assert len(cluster.messages(Forward)) >= 2
    call = cluster.ask("dc1-2", ReadBatch("default", list(reversed(keys[:40]))))
    cluster.run(100 * MS)
    assert cluster.reply("dc1-2", call).values == [b"v-" + key for key in reversed(keys[:40])]


def test_a_key_goes_to_the_first_live_owner() -> None:
    """With the first owner down the second one coordinates."""
    cluster = cluster_of_five()
    (key,) = foreign_keys(cluster, "dc1-1", 1)
    first, second = owners(cluster, key)
    assert cluster.put("dc1-1", key, b"v", Consistency.ONE).coordinator == first
    cluster.crash(first)
    assert cluster.put("dc1-1", key, b"w", Consistency.ONE).coordinator == second


def test_no_live_owner_is_unavailable_at_once() -> None:
    """Nothing was numbered, and the answer does not wait for a deadline."""
    cluster = cluster_of_five()
    (key,) = foreign_keys(cluster, "dc1-1", 1)
    for owner in owners(cluster, key):
        cluster.crash(owner)
    call = cluster.write("dc1-1", {key: b"v"}, Consistency.ONE)
    cluster.settle()
    assert cluster.reply("dc1-1", call).outcomes == [Outcome.UNAVAILABLE]


def test_a_write_whose_owner_dies_under_way_is_ambiguous_and_a_read_unavailable() -> None:
    """Nobody knows what became of the write; the read may simply be sent again."""
    cluster = cluster_of_five()
    (key,) = foreign_keys(cluster, "dc1-1", 1)
    cluster.is_dropped = lambda s, r, m: isinstance(m, Forwarded)
    written = cluster.write("dc1-1", {key: b"v"}, Consistency.ONE)
    read = cluster.ask("dc1-1", ReadBatch("default", [key], Consistency.ONE))
    cluster.settle()
    cluster.crash(owners(cluster, key)[0])
    assert cluster.reply("dc1-1", written).outcomes == [Outcome.AMBIGUOUS]
    assert cluster.reply("dc1-1", read).outcomes == [Outcome.UNAVAILABLE]
    assert "broke" in cluster.reply("dc1-1", written).details[0].message


def test_an_owner_that_restarts_unseen_ends_the_waiting() -> None:
    """Told only that a new run of the owner is there, the node does not wait for the old one's answer."""
    cluster = cluster_of_five()
    (key,) = foreign_keys(cluster, "dc1-1", 1)
    owner = owners(cluster, key)[0]
    cluster.is_dropped = lambda s, r, m: isinstance(m, Forwarded)
    call = cluster.write("dc1-1", {key: b"v"}, Consistency.ONE)
    cluster.settle()
    cluster.nodes.pop(owner)
    cluster.start(owner)
    assert cluster.reply("dc1-1", call).outcomes == [Outcome.AMBIGUOUS]


def test_an_owner_that_stays_silent_is_ambiguous_at_the_deadline() -> None:
    """The caller gets an answer in its own time."""
    cluster = cluster_of_five()
    (key,) = foreign_keys(cluster, "dc1-1", 1)
    cluster.is_dropped = lambda s, r, m: isinstance(m, Forwarded)
    reply = cluster.put("dc1-1", key, b"v", Consistency.ONE, timeout_ms=700)
    assert reply.outcomes == [Outcome.AMBIGUOUS]
    assert cluster.nodes["dc1-1"].assembly.forwarder.wake_at_us() is None


def test_doubled_answers_to_a_forwarded_call_are_counted_once() -> None:
    """Every message comes twice; the batch is answered once, with every operation applied once."""
    cluster = cluster_of_five()
    cluster.is_doubled = lambda s, r, m: isinstance(m, (Forward, Forwarded))
    keys = foreign_keys(cluster, "dc1-1", 10)
    call = cluster.write("dc1-1", dict.fromkeys(keys, b"v"))
    cluster.run(SECOND)
    assert cluster.reply("dc1-1", call).outcomes == [Outcome.APPLIED] * 10
    owned = sum(s.frontier for name in cluster.names for (_, o), s in cluster.streams(name).items() if name.encode() in o)
    assert owned == 10


def test_a_share_of_a_batch_carries_its_own_operations() -> None:
    """Keys, values, operation ids and contexts are cut alike; options stay."""
    batch = WriteBatch(
        "n", [b"a", b"b", b"c"], [b"1", None, b"3"], ttl_ms=5, operations=[b"x", b"y", b"z"], contexts=[b"", b"c", b"d"]
    )
    share = cut(batch, [2, 0])
    assert isinstance(share, WriteBatch)
    assert (share.keys, share.values, share.operations, share.contexts) == (
        [b"c", b"a"],
        [b"3", b"1"],
        [b"z", b"x"],
        [b"d", b""],
    )
    assert share.ttl_ms == 5


def test_more_values_than_one_answer_holds_come_in_several() -> None:
    """An answer stays within a message, over all owners that it was gathered from; every key is answered in the end."""
    cluster = cluster_of_five()
    cluster.admin("dc1-1", "namespace_create", name="large", value_bytes_max=1 << 20)
    cluster.run(SECOND)
    value = bytes(500_000)
    keys = [b"k%d" % at for at in range(20)]
    for key in keys:
        assert cluster.put("dc1-1", key, value, namespace="large").outcomes == [Outcome.APPLIED]
    rounds = 0
    while keys:
        rounds += 1
        call = cluster.ask("dc1-1", ReadBatch("large", keys, Consistency.QUORUM))
        cluster.run(100 * MS)
        reply = cluster.reply("dc1-1", call)
        assert set(reply.outcomes) <= {Outcome.APPLIED, Outcome.ASK_AGAIN}
        answered = [index for index, outcome in enumerate(reply.outcomes) if outcome == Outcome.APPLIED]
        assert all(reply.values[index] == value for index in answered)
        assert 0 < len(answered) <= 8
        keys = [key for index, key in enumerate(keys) if index not in answered]
    assert rounds == 3

"""Updates of cells of dots through whole nodes: what a put replaces, what it waits for, what it never does."""

from __future__ import annotations

from typing import Any

import pytest

from geokv.core.cells import codec
from geokv.core.cells.codec import decode_token, encode_token
from geokv.core.cells.context import CausalContext
from geokv.core.cells.operation import Operation
from geokv.core.cells.policies import type_of
from geokv.core.cells.wire import decode_value, encode_operation
from geokv.core.limits import SIBLINGS_MAX, SIBLINGS_WARN
from geokv.core.quorum import Consistency
from geokv.core.record import DELTA, decode_records, encode_record
from geokv.core.ring import key_hash
from geokv.protocol.effects import Delivered
from geokv.protocol.messages import CellsRead, FeedBatch, Replicate
from geokv.protocol.requests import Outcome, WriteBatch, WriteReply
from tests.node.harness import MS, SECOND, Cluster, Disk
from tests.node.test_forwarding import foreign_keys


def cluster_with(policy: str = "siblings", **shape: Any) -> Cluster:
    return Cluster(**shape).start().serving().create(policy, policy)


def put(cluster: Cluster, node: str, value: bytes | None, context: bytes = b"", **options: Any) -> WriteReply:
    return cluster.put(node, b"k", value, namespace="siblings", contexts=[context], **options)


def siblings(cluster: Cluster, node: str, key: bytes = b"k") -> list[bytes]:
    packed = cluster.get(node, key, namespace="siblings").values[0]
    return [] if packed is None else decode_value("siblings", packed)


def context_at(cluster: Cluster, node: str) -> bytes:
    return cluster.get(node, b"k", namespace="siblings").contexts[0]


def numbered(cluster: Cluster, node: str, namespace: str = "siblings") -> int:
    """How many records of that namespace this run of a node has numbered."""
    own = cluster.nodes[node].context.packed
    return sum(stream.received for (_, origin), stream in cluster.streams(node, namespace).items() if origin == own)


def test_a_put_replaces_what_its_context_saw_and_nothing_else() -> None:
    """Without a context it adds a sibling; with one it takes what was read; a stale one leaves what it did not see."""
    cluster = cluster_with()
    first = put(cluster, "dc1-1", b"A")
    put(cluster, "dc1-2", b"B", first.contexts[0])
    put(cluster, "dc1-3", b"late", first.contexts[0])
    assert sorted(siblings(cluster, "dc1-1")) == [b"B", b"late"]
    put(cluster, "dc1-1", b"without")
    assert sorted(siblings(cluster, "dc1-2")) == [b"B", b"late", b"without"]
    merged = put(cluster, "dc1-3", b"merged", context_at(cluster, "dc1-3"))
    assert siblings(cluster, "dc1-1") == siblings(cluster, "dc1-2") == [b"merged"]
    put(cluster, "dc1-2", None, merged.contexts[0])
    assert siblings(cluster, "dc1-1") == []


def test_what_two_datacenters_write_while_cut_apart_is_all_there_afterwards() -> None:
    """In both, in one order; and one put that saw both replaces both, everywhere."""
    cluster = cluster_with(datacenters=2)
    cluster.cut_apart()
    put(cluster, "dc1-1", b"here")
    put(cluster, "dc2-1", b"there")
    cluster.heal()
    cluster.run_until(lambda: len(siblings(cluster, "dc1-2")) == len(siblings(cluster, "dc2-3")) == 2)
    assert siblings(cluster, "dc1-2") == siblings(cluster, "dc2-3")
    put(cluster, "dc2-2", b"both", context_at(cluster, "dc2-2"))
    cluster.run_until(lambda: siblings(cluster, "dc1-1") == [b"both"])
    assert siblings(cluster, "dc2-1") == [b"both"]


def test_a_context_that_is_ahead_waits_until_what_it_names_has_come() -> None:
    """A client that read in another datacenter writes here: its put is made when that has arrived, and replaces it."""
    cluster = cluster_with(datacenters=2)
    cluster.is_held = lambda s, r, m: isinstance(m, FeedBatch)
    told = put(cluster, "dc2-1", b"there")
    call = cluster.write("dc1-1", {b"k": b"after it"}, namespace="siblings", contexts=[told.contexts[0]])
    cluster.run(300 * MS)
    assert cluster.reply("dc1-1", call) is None and numbered(cluster, "dc1-1") == 0
    cluster.release()
    cluster.run_until(lambda: cluster.reply("dc1-1", call) is not None)
    assert cluster.reply("dc1-1", call).outcomes == [Outcome.APPLIED]
    assert siblings(cluster, "dc1-2") == [b"after it"]


def test_a_context_whose_past_does_not_come_in_time_is_stale_and_nothing_is_numbered() -> None:
    """The answer says what is missing; the other items of the batch are written at once."""
    cluster = cluster_with(datacenters=2)
    cluster.is_dropped = lambda s, r, m: isinstance(m, FeedBatch)
    told = put(cluster, "dc2-1", b"there")
    items = {b"k": b"late", b"other": b"v"}
    call = cluster.write("dc1-1", items, namespace="siblings", contexts=[told.contexts[0], b""], timeout_ms=1000)
    cluster.run_until(lambda: cluster.reply("dc1-1", call) is not None)
    reply = cluster.reply("dc1-1", call)
    assert reply.outcomes == [Outcome.STALE, Outcome.APPLIED]
    assert "has not arrived here" in reply.details[0].message and "dc2-1" in reply.details[0].message
    assert numbered(cluster, "dc1-1") == 1


def test_a_forged_context_dominates_nothing() -> None:
    """A counter of 2^62 of a living origin is STALE; what that origin writes next is shown."""
    cluster = cluster_with()
    put(cluster, "dc1-1", b"A")
    packed = cluster.nodes["dc1-1"].context.packed
    for origin, counter in ((packed, 1 << 62), (packed, 100), (packed[:-8] + bytes(7) + b"\1", 5)):
        forged = encode_token(CausalContext({origin: (0, counter)}))
        for node in ("dc1-1", "dc1-2"):
            assert put(cluster, node, b"forged", forged, timeout_ms=300).outcomes == [Outcome.STALE]
    put(cluster, "dc1-1", b"B")
    assert sorted(siblings(cluster, "dc1-3")) == [b"A", b"B"]
    assert put(cluster, "dc1-1", b"v", b"no token").outcomes == [Outcome.INVALID]


def test_what_a_closed_stream_has_lost_is_ignored_and_named() -> None:
    """A write at ONE whose only disk is gone: a context that names it is heeded for the rest, and the answer says so."""
    cluster = cluster_with()
    put(cluster, "dc1-1", b"kept")
    seen = context_at(cluster, "dc1-1")
    cluster.is_dropped = lambda s, r, m: isinstance(m, Replicate) and s == "dc1-1"
    lost = put(cluster, "dc1-1", b"lost", seen, level=Consistency.ONE)
    cluster.crash("dc1-1")
    cluster.is_dropped = lambda s, r, m: False
    cluster.disks["dc1-1"] = Disk()
    cluster.start("dc1-1")
    cluster.nodes["dc1-2"].close_node("dc1-1")
    cluster.run(5 * SECOND)
    reply = put(cluster, "dc1-2", b"after", lost.contexts[0])
    assert reply.outcomes == [Outcome.APPLIED]
    assert "lost with the node" in reply.details[0].message and "dc1-1" in reply.details[0].message
    assert siblings(cluster, "dc1-3") == [b"after"]


def test_a_delete_without_a_context_takes_what_a_quorum_holds() -> None:
    """Its coordinator lacks the value, and takes it all the same; where no quorum answers, nothing is numbered."""
    cluster = cluster_with()
    cluster.is_dropped = lambda s, r, m: isinstance(m, Replicate) and r == "dc1-1"
    put(cluster, "dc1-2", b"unseen here")
    assert b"k" not in cluster.cells("dc1-1", "siblings")
    cluster.is_dropped = lambda s, r, m: isinstance(m, Replicate | CellsRead) and r == "dc1-1"
    refused = put(cluster, "dc1-1", None, timeout_ms=1000)
    assert refused.outcomes == [Outcome.UNAVAILABLE] and "nothing was written" in refused.details[0].message
    assert numbered(cluster, "dc1-1") == 0
    cluster.is_dropped = lambda s, r, m: isinstance(m, Replicate) and r == "dc1-1"
    assert put(cluster, "dc1-1", None).outcomes == [Outcome.APPLIED]
    cluster.is_dropped = lambda s, r, m: False
    cluster.run(5 * SECOND)
    assert siblings(cluster, "dc1-2") == siblings(cluster, "dc1-3") == []


def test_replicas_that_took_the_deltas_in_another_order_agree() -> None:
    """Digests are of folded cells: a read at ALL finds nothing to repair, and a restart replays the same."""
    cluster = cluster_with()
    cluster.is_held = lambda s, r, m: isinstance(m, Replicate) and r == "dc1-3"
    for at in range(5):
        put(cluster, f"dc1-{at % 2 + 1}", b"v%d" % at)
    cluster.held.reverse()
    cluster.release()
    cluster.run(SECOND)
    raw = {name: cluster.cells(name, "siblings")[b"k"] for name in cluster.names}
    assert raw["dc1-1"] != raw["dc1-3"]
    reply = cluster.get("dc1-1", b"k", Consistency.ALL, namespace="siblings")
    assert len(decode_value("siblings", reply.values[0])) == 5
    assert not cluster.nodes["dc1-1"].context.counters.get("read.digest_mismatch")
    cluster.restart("dc1-3")
    cluster.serving()
    assert codec.fold(2, cluster.cells("dc1-3", "siblings")[b"k"]) == codec.fold(2, raw["dc1-1"])


def test_a_read_repairs_a_replica_that_lacks_a_delta() -> None:
    """The whole cell goes to it, and what it shows then is the same; no dot is made for it."""
    cluster = cluster_with()
    cluster.is_dropped = lambda s, r, m: isinstance(m, Replicate) and r == "dc1-3"
    put(cluster, "dc1-1", b"A")
    put(cluster, "dc1-2", b"B")
    cluster.is_dropped = lambda s, r, m: False
    before = numbered(cluster, "dc1-1")
    assert sorted(decode_value("siblings", cluster.get("dc1-3", b"k", Consistency.ALL, namespace="siblings").values[0])) == [
        b"A",
        b"B",
    ]
    cluster.run(200 * MS)
    assert codec.fold(2, cluster.cells("dc1-3", "siblings")[b"k"]) == codec.fold(2, cluster.cells("dc1-1", "siblings")[b"k"])
    assert numbered(cluster, "dc1-1") == before


def test_bytes_that_are_no_cell_of_the_policy_are_held_up_and_spoil_nothing() -> None:
    """A record with a sound checksum and a cell of another type is not taken; the key can still be read and written."""
    cluster = cluster_with()
    put(cluster, "dc1-1", b"A")
    node = cluster.nodes["dc1-2"]
    table = node.assembly.table_named("siblings")
    assert table is not None
    partition = key_hash(b"k") >> table.placement.shift
    stranger = codec.encode(8, codec.decode(2, cluster.cells("dc1-1", "siblings")[b"k"]))
    packed = cluster.nodes["dc1-3"].context.packed
    raw = encode_record(DELTA, partition, table.definition.id, 1, 1, bytes(16), packed, b"k", stranger)
    cluster.give("dc1-2", Delivered("dc1-3", Replicate(99, raw)))
    cluster.settle()
    assert any("held up" in log.text for _, log in cluster.logs)
    assert table.streams.make(partition, packed).received == 0
    assert siblings(cluster, "dc1-2") == [b"A"]


def test_siblings_have_a_warning_and_a_limit() -> None:
    """The warning names the key, once; at the limit a put without a context is refused and says what to do."""
    cluster = cluster_with()
    for at in range(SIBLINGS_MAX):
        assert put(cluster, "dc1-1", b"v%d" % at).outcomes == [Outcome.APPLIED]
    refused = put(cluster, "dc1-1", b"one more")
    assert refused.outcomes == [Outcome.INVALID] and "write one value with the context" in refused.details[0].message
    warnings = [log.text for _, log in cluster.logs if f"has {SIBLINGS_WARN} siblings" in log.text]
    assert len(warnings) == 1 and "b'k'" in warnings[0]
    assert cluster.notes["siblings.many"] == SIBLINGS_MAX - SIBLINGS_WARN + 1
    assert put(cluster, "dc1-1", b"merged", context_at(cluster, "dc1-1")).outcomes == [Outcome.APPLIED]
    assert siblings(cluster, "dc1-2") == [b"merged"]


def test_a_key_that_comes_several_times_in_a_batch_gets_every_update() -> None:
    """Each has a dot of its own, and each sees those before it."""
    cluster = cluster_with()
    call = cluster.ask("dc1-1", _batch("siblings", [b"k"] * 3, [b"1", b"2", b"3"]))
    cluster.settle()
    assert cluster.reply("dc1-1", call).outcomes == [Outcome.APPLIED] * 3
    assert siblings(cluster, "dc1-1") == [b"1", b"2", b"3"]


def test_a_value_ends_with_its_ttl() -> None:
    """A sibling with a deadline is not shown after it."""
    cluster = cluster_with()
    put(cluster, "dc1-1", b"short", ttl_ms=500)
    put(cluster, "dc1-1", b"long")
    assert sorted(siblings(cluster, "dc1-2")) == [b"long", b"short"]
    cluster.run(2 * SECOND)
    assert siblings(cluster, "dc1-2") == [b"long"]


def test_an_update_that_finds_no_room_leaves_no_hole_and_no_trace() -> None:
    """Refused before it is numbered; when there is room again, the next one is number 1 and sees what was there."""
    cluster = cluster_with()
    room = cluster.disks["dc1-1"].room_bytes
    cluster.room("dc1-1", 20_000, "the disk is full")
    refused = put(cluster, "dc1-1", bytes(9_900))
    cluster.room("dc1-1", room)
    assert refused.outcomes == [Outcome.UNAVAILABLE] and numbered(cluster, "dc1-1") == 0
    put(cluster, "dc1-1", b"A")
    assert numbered(cluster, "dc1-1") == 1 and siblings(cluster, "dc1-2") == [b"A"]


def test_a_forwarded_batch_brings_its_contexts_back() -> None:
    """Who owns no copy hands contexts on, both ways."""
    cluster = cluster_with(nodes=5, replicas=2, partitions=16)
    keys = foreign_keys(cluster, "dc1-1", 6)
    call = cluster.ask("dc1-1", _batch("siblings", keys, [b"A"] * 6))
    cluster.run(200 * MS)
    told = cluster.reply("dc1-1", call)
    assert told.outcomes == [Outcome.APPLIED] * 6 and all(decode_token(token).spans for token in told.contexts)
    call = cluster.ask("dc1-1", _batch("siblings", keys, [b"B"] * 6, told.contexts))
    cluster.run(200 * MS)
    assert cluster.reply("dc1-1", call).outcomes == [Outcome.APPLIED] * 6
    assert [siblings(cluster, "dc1-1", key) for key in keys] == [[b"B"]] * 6


@pytest.mark.parametrize(
    ("namespace", "options", "words"),
    [
        ("default", {"has_updates": True}, "it has put and delete"),
        ("siblings", {"has_updates": True, "value": b"noise"}, "not an operation"),
        ("siblings", {"has_updates": True, "value": encode_operation(Operation("add", (b"x",)))}, "has no operation 'add'"),
        ("siblings", {"value": bytes(20_000)}, "value of 20000 bytes: at most 10240"),
    ],
)
def test_what_the_policy_does_not_have_is_refused_in_words(namespace: str, options: dict[str, Any], words: str) -> None:
    """Nothing is numbered, and the message says what there is."""
    cluster = cluster_with()
    value = options.pop("value", encode_operation(Operation("put", (b"v",))))
    reply = cluster.put("dc1-1", b"k", value, namespace=namespace, **options)
    assert reply.outcomes == [Outcome.INVALID] and words in reply.details[0].message
    assert numbered(cluster, "dc1-1") == 0


def test_records_of_an_update_carry_its_delta_only() -> None:
    """The second element of a large value's key does not bring the first one along."""
    cluster = cluster_with()
    put(cluster, "dc1-1", bytes(10_000))
    put(cluster, "dc1-1", b"small")
    last = cluster.messages(Replicate, sender="dc1-1")[-1]
    (record,) = decode_records(last.records)
    assert len(record.cell) < 100
    assert type_of("siblings").tag == record.cell[0]


def _batch(namespace: str, keys: list[bytes], values: list[bytes | None], contexts: list[bytes] | None = None) -> Any:

    return WriteBatch(namespace, keys, values, contexts=contexts or [])

"""Deletes that stay deleted: tombstones go once they are stable everywhere, and nothing that they deleted comes back."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from geokv.core.cell import decode_lww, encode_lww
from geokv.core.quorum import Consistency
from geokv.core.record import CELL, NO_OPERATION, encode_record
from geokv.core.ring import partition_of
from geokv.protocol import control
from geokv.protocol.messages import (
    CellsFetch,
    CellsPage,
    CellsRead,
    FeedBatch,
    ReadCells,
    Replicate,
    StabilityAnswer,
    StabilityAsk,
)
from geokv.protocol.requests import ReadBatch
from geokv.storage.lsm.collection import CollectionRule
from geokv.storage.position import Position
from tests.node.harness import QUICK, SECOND, Cluster

KEYS = [b"key-%d" % index for index in range(40)]
PARTITIONS = 8


def _cluster(**layout: int) -> Cluster:
    return Cluster(**{"partitions": PARTITIONS, **layout}, **QUICK).start().serving()


def _held(cluster: Cluster, name: str, key: bytes) -> bytes | None:
    return cluster.cells(name).get(key)


def _is_gone(cluster: Cluster, *keys: bytes) -> bool:
    return not any(key in cluster.cells(name) for name in cluster.nodes for key in keys)


def _write_and_delete(cluster: Cluster, keys: list[bytes]) -> None:
    name = cluster.names[0]
    for key in keys:
        cluster.put(name, key, b"v" * 100)
    for key in keys:
        cluster.put(name, key, None)


def test_deleted_keys_leave_every_replica_by_themselves() -> None:
    """Written and deleted in three nodes: after a while no replica holds a tombstone, nothing is asked any more."""
    cluster = _cluster()
    cluster.put("dc1-1", b"stays", b"v")
    _write_and_delete(cluster, KEYS)
    assert _held(cluster, "dc1-3", KEYS[-1]) is not None, "a tombstone, for now"
    cluster.run_until(lambda: _is_gone(cluster, *KEYS))
    assert all(_held(cluster, name, b"stays") for name in cluster.nodes)
    cluster.run(3 * SECOND)
    asked = len(cluster.messages(StabilityAsk))
    cluster.run(10 * SECOND)
    assert len(cluster.messages(StabilityAsk)) == asked, "a cluster that holds nothing to collect is silent"
    for name in cluster.names:
        cluster.restart(name)
    cluster.serving().run(3 * SECOND)
    assert _is_gone(cluster, *KEYS) and cluster.get("dc1-2", KEYS[0], Consistency.ALL).values == [None]


def _armed(cluster: Cluster, name: str) -> bool:
    rule = cluster.nodes[name].upkeep.rules.get(1)
    return rule is not None and rule.since <= cluster.engines[name].position


def _older_put(cluster: Cluster, key: bytes, count: int) -> bytes:
    """A repair with a cell from before the delete, as it was read from a replica then."""
    packed = cluster.nodes["dc1-1"].origin.packed()
    cell = encode_lww(1 << 16, packed, 1, False, 0, 0, b"from the past")
    return encode_record(CELL, partition_of(key, PARTITIONS), 1, count, 0, NO_OPERATION, b"", key, cell)


def test_a_repair_that_is_delayed_past_a_collection_is_dropped() -> None:
    """Read before the delete, sent as a repair, late: who has collected since takes nothing of it; who has not may."""
    cluster = _cluster()
    cluster.put("dc1-1", b"k", b"old", Consistency.ALL)
    # A repair for the third node was made by now, and is on its way for long.
    count = cluster.nodes["dc1-3"].context.tables[1].collections
    late = Replicate(77, _older_put(cluster, b"k", count))
    cluster.put("dc1-1", b"k", None, Consistency.ALL)
    cluster.run_until(lambda: _is_gone(cluster, b"k"))
    assert cluster.nodes["dc1-3"].context.tables[1].collections > count
    cluster.give_message("dc1-1", "dc1-3", late)
    cluster.run(2 * SECOND)
    assert cluster.notes["repair.collected_since"] == 1
    assert _is_gone(cluster, b"k") and cluster.get("dc1-3", b"k", Consistency.ONE).values == [None]
    # With the count that stands it is a repair like any other: the protection is the count, and nothing else.
    count = cluster.nodes["dc1-3"].context.tables[1].collections
    cluster.give_message("dc1-1", "dc1-3", Replicate(78, _older_put(cluster, b"k", count)))
    cluster.run(SECOND)
    assert _held(cluster, "dc1-3", b"k") is not None


@pytest.mark.parametrize("is_before", [False, True])
def test_a_read_whose_cells_are_older_than_a_collection_repairs_nobody(is_before: bool) -> None:
    """The cells of an old replica are held back, the key is deleted and collected, then they arrive: nothing comes back."""
    cluster = _cluster()
    cluster.is_dropped = lambda sender, receiver, message: isinstance(message, Replicate) and receiver == "dc1-3"
    cluster.put("dc1-1", b"k", b"old", Consistency.QUORUM)
    # The second node holds it, the third does not: a read by the third asks for the cell, which stays under way.
    cluster.is_held = lambda sender, receiver, message: isinstance(message, CellsRead) and bool(message.cells)
    call = cluster.ask("dc1-3", _read(b"k", repair_before=is_before, timeout_ms=60_000))
    cluster.run(100_000)
    assert cluster.held, "the old cell is on its way"
    cluster.is_dropped = lambda sender, receiver, message: False
    cluster.put("dc1-1", b"k", None, Consistency.ALL)
    cluster.run_until(lambda: _is_gone(cluster, b"k"), 60 * SECOND)
    cluster.release()
    cluster.run_until(lambda: cluster.reply("dc1-3", call) is not None, 60 * SECOND)
    cluster.run(2 * SECOND)
    assert _is_gone(cluster, b"k") and cluster.get("dc1-2", b"k", Consistency.ALL).values == [None]
    assert cluster.notes.get("repair.collected_since", 0) + cluster.notes.get("read.again_after_collection", 0) > 0


@pytest.mark.parametrize("is_own", [True, False])
def test_a_read_that_a_collection_overtakes_does_not_answer_what_was_deleted_before_it_began(is_own: bool) -> None:
    """Its own cell is from before the delete came there, the other one's from after it was collected: neither has seen it."""
    cluster = _cluster()
    cluster.put("dc1-1", b"k", b"old", Consistency.ALL)
    lags, reads = "dc1-3", "dc1-3" if is_own else "dc1-2"
    cluster.is_held = lambda sender, receiver, message: isinstance(message, Replicate) and receiver == lags
    cluster.is_dropped = lambda sender, receiver, message: isinstance(message, FeedBatch)
    cluster.put("dc1-1", b"k", None, Consistency.QUORUM)
    late, cluster.held = cluster.held, []
    cluster.is_held = lambda sender, receiver, message: (
        isinstance(message, ReadCells if is_own else CellsRead)
        and (
            is_own != message.digests and bool(is_own or message.cells)  # type: ignore[attr-defined]
        )
    )
    call = cluster.ask(reads, ReadBatch("default", [b"k"], Consistency.ALL, timeout_ms=60_000))
    cluster.run(100_000)
    assert cluster.held
    cluster.is_dropped = lambda sender, receiver, message: False
    cluster.queue.extend(late)
    cluster.run_until(lambda: _is_gone(cluster, b"k"), 50 * SECOND)
    cluster.release()
    cluster.run_until(lambda: cluster.reply(reads, call) is not None, 60 * SECOND)
    assert cluster.reply(reads, call).values == [None] and cluster.notes["read.again_after_collection"] >= 1


def _read(key: bytes, **options: Any) -> Any:
    return ReadBatch("default", [key], Consistency.QUORUM, **options)


def test_pages_of_cells_that_a_collection_overtakes_are_asked_for_anew() -> None:
    """A fetch of whole cells is under way when its receiver collects: the page is dropped, the fetch begins again."""
    cluster = _cluster()
    cluster.put("dc1-1", b"k", b"old", Consistency.ALL)
    partition = partition_of(b"k", PARTITIONS)
    node = cluster.nodes["dc1-3"]
    cluster.is_held = lambda sender, receiver, message: isinstance(message, CellsPage)
    told: list[Any] = []
    fetch = CellsFetch(0, 1, partition, cluster.nodes["dc1-1"].origin.packed(), "dc1-2")
    node.assembly.closings.cells.fetch(fetch, told.append)
    cluster.give_message("dc1-2", "dc1-3", StabilityAsk(1, 1, []))  # lets the node's effects out
    cluster.run(100_000)
    assert [type(message) for _, _, message in cluster.held] == [CellsPage]
    cluster.put("dc1-1", b"k", None, Consistency.ALL)
    cluster.run_until(lambda: _is_gone(cluster, b"k"), 60 * SECOND)
    cluster.release()
    cluster.run(5 * SECOND)
    assert cluster.notes["cells.collected_since"] == 1 and len(told) == 1
    assert _is_gone(cluster, b"k")


def test_the_delete_arrives_before_the_older_put() -> None:
    """A replica gets the delete first and flushes it, the put it deletes later: the tombstone stays until both are flushed."""
    cluster = _cluster()
    held = lambda sender, receiver, message: (  # noqa: E731
        isinstance(message, Replicate) and receiver == "dc1-3" and sender == "dc1-1"
    )
    cluster.is_held = held
    cluster.put("dc1-1", b"k", b"old")  # by the first coordinator, on its way to the third for long
    cluster.put("dc1-2", b"k", None)  # by the second one, which has it
    cluster.run(200_000)
    assert decode_lww(cluster.cells("dc1-3")[b"k"]).is_tombstone
    cluster.nodes["dc1-3"].upkeep.flush()
    cluster.give_message("dc1-2", "dc1-3", StabilityAsk(1, 1, []))
    cluster.run(300_000)
    assert cluster.disks["dc1-3"].is_flushed
    assert not _armed(cluster, "dc1-1") or _held(cluster, "dc1-3", b"k") is not None
    cluster.release()
    cluster.run_until(lambda: _is_gone(cluster, b"k"), 60 * SECOND)
    cluster.run(3 * SECOND)
    for name in cluster.names:
        cluster.restart(name)
    cluster.serving().run(2 * SECOND)
    assert _is_gone(cluster, b"k") and cluster.get("dc1-3", b"k", Consistency.ALL).values == [None]


def test_a_replica_that_lags_holds_the_collection_up_and_is_named() -> None:
    """While one replica does not get the delete, nobody collects; `gc` names it; when it has caught up, all do."""
    cluster = _cluster()
    cluster.put("dc1-1", b"k", b"v", Consistency.ALL)
    cluster.crash("dc1-3")
    cluster.put("dc1-1", b"k", None)
    cluster.run(20 * SECOND)
    assert not _is_gone(cluster, b"k")
    (told,) = cluster.admin("dc1-1", "gc", namespace="default").body["namespaces"]
    assert told["held"] == 1 and told["collected"] == 0
    assert {(wait["node"], wait["dc"], wait["reason"]) for wait in told["waits_for"]} == {("dc1-3", "dc1", "silent")}
    assert all(wait["since_ms"] > 10_000 for wait in told["waits_for"])
    cluster.start("dc1-3")
    cluster.run_until(lambda: _is_gone(cluster, b"k"), 60 * SECOND)
    (told,) = cluster.admin("dc1-1", "gc", namespace="default").body["namespaces"]
    assert (told["held"], told["collected"], told["waits_for"]) == (0, 1, [])


def test_every_datacenter_must_have_the_delete() -> None:
    """Two datacenters cut apart keep their tombstones; healed, they collect them."""
    cluster = _cluster(datacenters=2, nodes=2, replicas=2).run(SECOND)
    cluster.put("dc1-1", b"k", b"v", Consistency.EACH_QUORUM)
    cluster.cut_apart()
    cluster.put("dc1-1", b"k", None)
    cluster.run(15 * SECOND)
    assert all(decode_lww(cluster.cells(name)[b"k"]).is_tombstone for name in ("dc1-1", "dc1-2"))
    assert cluster.get("dc2-1", b"k").values == [b"v"]
    cluster.heal()
    cluster.run_until(lambda: _is_gone(cluster, b"k"), 60 * SECOND)


def test_a_slow_clock_holds_lww_tombstones_up_and_is_named() -> None:
    """A delete stamped by a clock that is 20 s ahead stays until every owner's clock has passed its stamp."""
    cluster = _cluster()
    cluster.wall_offset_us["dc1-1"] = 20 * SECOND
    cluster.run(SECOND)
    cluster.put("dc1-1", b"k", None, Consistency.ALL)
    version = decode_lww(cluster.cells("dc1-2")[b"k"]).version >> 16
    cluster.run_until(lambda: _is_gone(cluster, b"k"), 60 * SECOND)
    assert min(cluster.wall_us(name) // 1000 for name in cluster.nodes) > version, "every clock has passed it"


def test_expired_cells_are_collected_and_a_repair_with_one_does_not_bring_it_back() -> None:
    """TTL and repair: a value that expired and was collected on one replica stays absent, whatever the others still hold."""
    cluster = _cluster()
    cluster.put("dc1-1", b"k", b"v", Consistency.ALL, ttl_ms=1_500)
    cluster.put("dc1-1", b"other", b"v", Consistency.ALL)
    cluster.run(SECOND)
    assert cluster.get("dc1-2", b"k").values == [b"v"]
    cluster.run(SECOND)
    for _ in range(20):
        for name in cluster.names:  # reads repair whoever lacks what another one has
            assert cluster.get(name, b"k", Consistency.ALL).values == [None]
        cluster.run(SECOND)
        if _is_gone(cluster, b"k"):
            break
    cluster.run_until(lambda: _is_gone(cluster, b"k"), 60 * SECOND)
    assert cluster.get("dc1-1", b"other").values == [b"v"]


def test_an_earlier_run_must_be_closed_first() -> None:
    """While the streams of a crashed coordinator's run are open, nothing in its partitions is called stable."""
    cluster = _cluster()
    cluster.put("dc1-1", b"k", b"v", Consistency.ALL)
    cluster.put("dc1-1", b"k", None, Consistency.ALL)
    cluster.is_dropped = lambda sender, receiver, message: type(message).__name__.startswith("Close")
    cluster.restart("dc1-1")
    cluster.run(12 * SECOND)
    assert not _is_gone(cluster, b"k")
    (told,) = cluster.admin("dc1-2", "gc", namespace="default").body["namespaces"]
    assert any(wait["node"] == "dc1-1" and wait["reason"] == "closing" for wait in told["waits_for"])
    cluster.is_dropped = lambda sender, receiver, message: False
    cluster.run_until(lambda: _is_gone(cluster, b"k"), 60 * SECOND)


def test_the_count_of_collections_survives_a_restart_with_and_without_a_flush() -> None:
    """It is in the log first and beside the tables later, and never goes back."""
    cluster = _cluster()
    _write_and_delete(cluster, KEYS[:5])
    cluster.run_until(lambda: _is_gone(cluster, *KEYS[:5]), 60 * SECOND)
    counts = {name: node.context.tables[1].collections for name, node in cluster.nodes.items()}
    assert all(counts.values())
    for name in cluster.names:
        cluster.restart(name)
        assert cluster.nodes[name].context.tables[1].collections >= counts[name]


def test_counts_that_move_with_one_frame_are_all_in_the_state_that_is_flushed_behind_it() -> None:
    """Two namespaces are collected at once: the rule of the first wants a flush; it knows of the second one's count, too."""
    cluster = _cluster()
    cluster.admin("dc1-1", "namespace_create", name="second")
    cluster.run_until(lambda: all(node.assembly.table_named("second") for node in cluster.nodes.values()))
    node = cluster.nodes["dc1-3"]
    for name in ("default", "second"):
        cluster.put("dc1-1", b"k", None, Consistency.ALL, namespace=name)
    cluster.slow_disks.add("dc1-3")
    node.log_control(control.SEEN, {})  # the disk is busy while both are armed
    cluster.run_until(lambda: [armed.is_arming for armed in node.collector._armed.values()] == [True, True])
    while "dc1-3" in cluster.persisting:
        cluster.sync("dc1-3")
    cluster.run_until(lambda: node.upkeep.flushes > 0)
    counts = {number: table.collections for number, table in node.context.tables.items()}
    assert list(counts.values()) == [1, 1]
    cluster.slow_disks.clear()
    cluster.restart("dc1-3")
    tables = cluster.nodes["dc1-3"].context.tables
    assert {number: table.collections for number, table in tables.items()} == counts


def test_answers_say_what_is_synced_and_nothing_else() -> None:
    """Records on their way to the disk are in the heads of an answer, not in its frontiers."""
    cluster = _cluster(partitions=1)
    cluster.put("dc1-1", b"k", b"v", Consistency.ALL)
    cluster.slow_disks.add("dc1-1")
    cluster.write("dc1-1", {b"k": b"w"})
    cluster.give_message("dc1-2", "dc1-1", StabilityAsk(5, 1, [0]))
    answer = cluster.messages(StabilityAnswer, "dc1-1", "dc1-2")[-1]
    own = answer.origin
    (frontier,) = (heads.numbers for heads in answer.frontiers if heads.origin == own)
    (head,) = (heads.numbers for heads in answer.heads if heads.origin == own)
    assert (frontier, head, answer.partitions) == ([1], [2], [0])


# --- the same with a bug in it: each rule is there for a reason ---------------------------------------------------------------


def _flushed(cluster: Cluster, name: str) -> None:
    """Have a node flush, and wait until its tables stand."""
    flushes = cluster.nodes[name].upkeep.flushes
    assert cluster.nodes[name].upkeep.flush()
    cluster.give_message("dc1-2" if name != "dc1-2" else "dc1-1", name, StabilityAsk(1, 1, []))
    cluster.run_until(lambda: cluster.nodes[name].upkeep.flushes > flushes)


@pytest.mark.parametrize("is_planted", [False, True])
def test_collecting_when_two_of_three_agree_brings_the_value_back(is_planted: bool) -> None:
    """The third replica has not got the delete: asked about, it holds the collection up; left out, its old value returns."""
    cluster = _cluster()
    cluster.put("dc1-1", b"k", b"old", Consistency.ALL)
    if is_planted:
        for name in ("dc1-1", "dc1-2"):
            stability = cluster.nodes[name].assembly.stability
            stability._placement = _WithoutTheThird(stability._placement)  # type: ignore[assignment]
    cluster.crash("dc1-3")
    cluster.put("dc1-1", b"k", None)
    cluster.run(15 * SECOND)
    assert ([cluster.cells(name).get(b"k") for name in ("dc1-1", "dc1-2")] == [None, None]) == is_planted
    # Back from where it was, it is read before it has caught up.
    cluster.is_dropped = lambda sender, receiver, message: type(message).__name__ in ("FeedBatch", "Replicate", "CellsPage")
    cluster.start("dc1-3")
    cluster.run_until(lambda: cluster.is_serving("dc1-3"))
    cluster.is_dropped = lambda sender, receiver, message: type(message).__name__ == "FeedBatch"
    assert cluster.get("dc1-1", b"k", Consistency.ALL).values == ([b"old"] if is_planted else [None])


class _WithoutTheThird:
    """A placement that forgets one owner."""

    def __init__(self, placement: Any) -> None:
        self._placement = placement

    def __getattr__(self, name: str) -> Any:
        return getattr(self._placement, name)

    def everyone(self, partition: int) -> list[tuple[str, str]]:
        return [(dc, node) for dc, node in self._placement.everyone(partition) if node != "dc1-3"]


@pytest.mark.parametrize("is_planted", [False, True])
def test_a_rule_that_counts_before_the_memtable_is_flushed_brings_the_value_back(is_planted: bool) -> None:
    """The delete is in a table, the older put in the memtable: the rule waits for its flush; without that the put shows."""
    cluster = Cluster(partitions=PARTITIONS, stability_us=1 << 60).start().serving()
    cluster.is_held = lambda sender, receiver, message: (
        isinstance(message, Replicate) and (sender, receiver) == ("dc1-1", "dc1-3")
    )
    cluster.put("dc1-1", b"k", b"old")
    cluster.put("dc1-2", b"k", None)
    cluster.run(200_000)
    _flushed(cluster, "dc1-3")
    cluster.release()
    cluster.run(SECOND)
    node, engine = cluster.nodes["dc1-3"], cluster.engines["dc1-3"]
    since = Position() if is_planted else Position(*node.assembly.commit.position)
    stable = {(stream.origin, stream.partition): stream.frontier for stream in node.context.tables[1].streams}
    rule = CollectionRule(PARTITIONS, stable, node.context.wall_ms + 1_000, since)
    job = engine.full_compaction(1, rule)
    cluster.disks["dc1-3"].build(engine, job)
    held = cluster.get("dc1-3", b"k", Consistency.ONE).values
    assert held == ([b"old"] if is_planted else [None])
    if not is_planted:
        _flushed(cluster, "dc1-3")
        cluster.disks["dc1-3"].build(engine, engine.full_compaction(1, rule))
        assert _held(cluster, "dc1-3", b"k") is None


@pytest.mark.parametrize("is_planted", [False, True])
def test_collecting_what_all_have_while_an_older_put_is_on_its_way_brings_the_value_back(is_planted: bool) -> None:
    """All have the delete, one lacks the put before it: the heads hold the collection up; one round alone is too early."""
    cluster = _cluster()
    if is_planted:
        for node in cluster.nodes.values():
            node.assembly.stability._uncovered = lambda *what: None  # type: ignore[method-assign]
    cluster.is_held = lambda sender, receiver, message: (
        isinstance(message, Replicate) and (sender, receiver) == ("dc1-1", "dc1-3")
    )
    cluster.is_dropped = lambda sender, receiver, message: type(message).__name__ == "FeedBatch"
    cluster.put("dc1-1", b"k", b"old")
    cluster.put("dc1-2", b"k", None, Consistency.ALL)
    cluster.run(10 * SECOND)
    assert (_held(cluster, "dc1-3", b"k") is None) == is_planted
    cluster.release()
    cluster.is_dropped = lambda sender, receiver, message: False
    cluster.run(SECOND)
    assert cluster.get("dc1-3", b"k", Consistency.ALL).values == [b"old" if is_planted else None]


def test_a_flush_for_the_sake_of_collection_waits_as_any_other_after_a_failure() -> None:
    """The disk takes no table: it is tried after pauses that double, not at every heartbeat; once it does, the key goes."""
    cluster = _cluster()
    folder = cluster.disks["dc1-1"].folder
    folder.fail("append", errno.ENOSPC, name=".sst", times=-1)
    _write_and_delete(cluster, KEYS[:1])
    cluster.run(20 * SECOND)
    assert 3 <= cluster.notes["flush.failed"] <= 5, "at once, then after 1, 2, 4 and 8 seconds"
    folder.heal()
    cluster.run_until(lambda: _is_gone(cluster, *KEYS[:1]), 60 * SECOND)

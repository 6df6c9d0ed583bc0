"""A table that is damaged: the claim goes first, durably, then the table; what a node without its claim does, and does not."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from geokv.core.cells.operation import Operation
from geokv.core.cells.wire import decode_value, encode_operation
from geokv.core.quorum import Consistency
from geokv.core.ring import partition_of
from geokv.node.node import Node
from geokv.protocol import control
from geokv.protocol.closer import CloseRun, missing_of
from geokv.protocol.effects import CallGone
from geokv.protocol.messages import (
    CellsPage,
    CellsRead,
    CellsWanted,
    ReadCells,
    Replicate,
    Replicated,
    Statement,
    StreamHeld,
    TakenBack,
)
from geokv.protocol.requests import AdminRequest, Outcome, ReadBatch, WriteBatch
from geokv.storage.lsm.engine import LsmOptions
from geokv.storage.lsm.table_writer import TableOptions
from tests.node.harness import MS, SECOND, Cluster
from tests.node.test_upkeep import flushed

HURT = "dc1-1"
OTHERS = ("dc1-2", "dc1-3")
KEYS = [b"key-%d" % number for number in range(40)]
TINY = LsmOptions(TableOptions(block_bytes=200), block_cache_bytes=0, row_cache_bytes=0)


def with_tables(**config: Any) -> Cluster:
    """Three replicas of forty keys; dc1-1 has them in one table of many blocks, and caches none."""
    cluster = Cluster(**config)
    for name in cluster.names:
        cluster.disks[name].options = TINY
    cluster.start().serving()
    for key in KEYS:
        assert cluster.put(HURT, key, b"old " + key, Consistency.ALL).outcomes == [Outcome.APPLIED]
    flushed(cluster, HURT)
    return cluster


def table_of(cluster: Cluster, name: str = HURT) -> str:
    return next(iter(cluster.engines[name]._state.all_tables())).name


def flip(cluster: Cluster, name: str = HURT, offset: int = 30) -> str:
    """Flip a bit of a node's only table; the table's name."""
    file = table_of(cluster, name)
    disk = cluster.disks[name].folder
    (byte,) = disk.read_at(file, offset, 1)
    disk.damage(file, offset, bytes([byte ^ 4]))
    return file


def hurt(**config: Any) -> tuple[Cluster, str]:
    """`with_tables`, and dc1-1 has found its damage, taken its claim back and set the table aside."""
    cluster = with_tables(**config)
    file = flip(cluster)
    for key in KEYS:
        cluster.get(HURT, key, Consistency.ONE)
    cluster.run_until(lambda: bool(cluster.engines[HURT].quarantined()))
    cluster.run(2 * SECOND)
    return cluster, file


def lost(cluster: Cluster, name: str = HURT) -> set[int]:
    return {partition for partitions in cluster.nodes[name].unserved.values() for partition in partitions}


def test_damage_found_by_a_read_takes_the_claim_back_and_then_sets_the_table_aside() -> None:
    """The read is answered by others, the note is in the log, the file is kept and named with its offset and partitions."""
    cluster, file = hurt()
    assert lost(cluster) == set(range(8))
    notes = [payload for _, _, payload in cluster.disks[HURT].frames if control.QUARANTINE in payload]
    assert len(notes) == 1
    assert cluster.disks[HURT].folder.exists(file) and not list(cluster.engines[HURT]._state.all_tables())
    status = cluster.nodes[HURT].status()["storage"]
    (told,) = status["quarantined"]
    assert (told["file"], told["offset"], told["namespace"], told["is_set_aside"]) == (file, 0, "default", True)
    assert told["partitions"] == list(range(8)) and status["partitions_unserved"] == 8
    assert any(file in log.text and "partitions 0-7" in log.text for name, log in cluster.logs if name == HURT)
    assert cluster.nodes[HURT].metrics()["storage.quarantined_tables"] == 1


def test_every_key_is_read_and_written_through_the_node_that_lost_a_table() -> None:
    """At ONE, QUORUM and for writes, whichever node is asked; and it goes on appending what others write."""
    cluster, _ = hurt()
    for node in cluster.names:
        for level in (Consistency.ONE, Consistency.QUORUM):
            assert [cluster.get(node, key, level).values for key in KEYS] == [[b"old " + key] for key in KEYS]
    reply = cluster.put(HURT, KEYS[0], b"new", Consistency.ALL)
    assert reply.outcomes == [Outcome.APPLIED] and reply.replicas == [3] and reply.coordinator != HURT
    assert cluster.get(OTHERS[0], KEYS[0], Consistency.QUORUM).values == [b"new"]
    all_of_them = cluster.get(OTHERS[0], KEYS[0], Consistency.ALL)
    assert all_of_them.outcomes == [Outcome.UNAVAILABLE]
    assert HURT in all_of_them.details[0].message and "cannot serve" in all_of_them.details[0].message


def test_it_answers_nobody_for_what_it_cannot_serve() -> None:
    """Neither the digests nor the cells that a co-owner asks for, nor pages of cells; each is told, or nothing is sent."""
    cluster, _ = hurt()
    node = cluster.nodes[HURT]
    (namespace,) = node.unserved
    for is_digest in (True, False):
        cluster.sent.clear()
        cluster.give_message(OTHERS[0], HURT, ReadCells(7, namespace, [KEYS[0]], is_digest))
        cluster.settle()
        (answer,) = cluster.messages(CellsRead, HURT)
        assert "cannot serve partition" in answer.error and not answer.cells and not answer.digests
    stream = next(iter(node.context.tables[namespace].streams))
    cluster.sent.clear()
    cluster.give_message(OTHERS[0], HURT, CellsWanted(7, *stream.key, b""))
    cluster.run(1 * SECOND)
    assert not cluster.messages(CellsPage) and cluster.notes["cells.unclaimed"] >= 1


def test_its_frontiers_are_stated_no_more_and_peers_hear_of_it() -> None:
    """Statements leave these streams out; TakenBack says how far they came through its log, and keeps being said."""
    cluster, _ = hurt()
    (namespace,) = cluster.nodes[HURT].unserved
    cluster.sent.clear()
    cluster.put(OTHERS[0], KEYS[1], b"more", Consistency.ALL)
    cluster.run(6 * SECOND)
    stated = [heads for message in cluster.messages(Statement, HURT) for heads in message.frontiers]
    assert not [heads for heads in stated if heads.namespace == namespace]
    told = cluster.messages(TakenBack, HURT)
    assert told and all(message.partitions == {namespace: list(range(8))} for message in told)
    assert any(heads.namespace == namespace for message in told for heads in message.logged)
    for name in OTHERS:
        claims = cluster.nodes[name].context.claims
        assert not claims.holds(HURT, namespace, 0) and claims.holds(OTHERS[0], namespace, 0)
        stream = next(iter(cluster.nodes[name].context.tables[namespace].streams))
        assert stream.peers[HURT] == stream.frontier  # nobody keeps a log for it for ever
    receiver = cluster.nodes[OTHERS[0]].assembly.receiver
    stream.peers[OTHERS[0]] = stream.peers[OTHERS[1]] = 0
    mine = cluster.nodes[OTHERS[0]].context.find_stream(*stream.key)
    assert mine is not None
    mine.peers[OTHERS[1]] = 0
    assert mine.frontier and receiver.dc_frontier(mine) == 0  # one owner with its claim is no quorum of three


@pytest.mark.parametrize("part", ["footer", "index", "block"])
def test_damage_found_at_the_start_is_taken_back_before_anybody_is_answered(part: str) -> None:
    """The note stands in the first frame of the run; a block's damage is found when it is read."""
    cluster = with_tables()
    size = cluster.disks[HURT].folder.size(table_of(cluster))
    file = flip(cluster, offset={"footer": size - 4, "index": size - 140, "block": 30}[part])
    first = len(cluster.disks[HURT].frames)
    cluster.restart(HURT)
    cluster.run_until(lambda: not cluster.nodes[HURT].is_refusing)
    if part != "block":
        assert control.QUARANTINE in cluster.disks[HURT].frames[first][2] and lost(cluster) == set(range(8))
    assert [cluster.get(HURT, key, Consistency.ONE).values for key in KEYS] == [[b"old " + key] for key in KEYS]
    cluster.run_until(lambda: bool(cluster.engines[HURT].quarantined()))
    assert cluster.engines[HURT].quarantined()[0].facts.name == file


def test_a_crash_at_each_step_finds_the_claim_taken_back_or_the_table_live() -> None:
    """Before the note is synced, between note and manifest, after it, and after a flush has taken it into the node's state."""
    cluster = with_tables()
    file = flip(cluster)
    cluster.is_build_slow = True
    cluster.slow_disks.add(HURT)
    for key in KEYS:
        cluster.ask(HURT, ReadBatch("default", [key], Consistency.ONE))
    cluster.settle()
    assert lost(cluster) == set(range(8)) and not cluster.builds  # in memory first; the table stays until the note is synced
    cluster.slow_disks.clear()
    cluster.restart(HURT)  # the note was not synced
    cluster.run_until(lambda: not cluster.nodes[HURT].is_refusing)
    assert not lost(cluster) and list(cluster.engines[HURT]._state.all_tables())
    for key in KEYS:
        cluster.get(HURT, key, Consistency.ONE)
    cluster.run_until(lambda: bool(cluster.builds))
    cluster.restart(HURT)  # the note is synced, the manifest is the old one
    assert lost(cluster) == set(range(8)) and list(cluster.engines[HURT]._state.all_tables())
    cluster.is_build_slow = False
    cluster.run_until(lambda: not cluster.nodes[HURT].is_refusing)
    assert [cluster.get(HURT, key, Consistency.ONE).values for key in KEYS] == [[b"old " + key] for key in KEYS]
    cluster.run_until(lambda: not list(cluster.engines[HURT]._state.all_tables()) or not cluster.engines[HURT].damaged())
    for again in range(2):
        cluster.restart(HURT)
        cluster.run_until(lambda: not cluster.nodes[HURT].is_refusing)
        assert lost(cluster) == set(range(8))
        assert cluster.disks[HURT].folder.exists(file)
        cluster.put(OTHERS[0], b"after %d" % again, b"v", Consistency.ALL)
        flushed(cluster, HURT)  # from now on the node's state says it, too
    assert len(cluster.nodes[HURT].context.claims.withdrawals) == 1


def test_peers_forget_what_an_earlier_run_had_told_and_not_noted() -> None:
    """The run ends before the note is synced, and the next one can read the table again: all three count from then on."""
    cluster = with_tables()
    file = flip(cluster)
    (flipped,) = cluster.disks[HURT].folder.read_at(file, 30, 1)
    cluster.slow_disks.add(HURT)
    for key in KEYS:
        cluster.ask(HURT, ReadBatch("default", [key], Consistency.ONE))
    cluster.run(SECOND)
    assert not any(cluster.nodes[name].context.claims.holds(HURT, 1, 0) for name in OTHERS)
    cluster.disks[HURT].folder.damage(file, 30, bytes([flipped ^ 4]))
    cluster.slow_disks.clear()
    cluster.restart(HURT)
    cluster.serving().run(SECOND)
    assert all(cluster.nodes[name].context.claims.is_whole for name in cluster.names)
    assert cluster.get(OTHERS[0], KEYS[0], Consistency.ALL).values == [b"old " + KEYS[0]]


def test_a_read_that_fails_is_no_damage() -> None:
    """An EIO is told and answered by others; the table stays, and is read again when the disk can."""
    cluster = with_tables()
    file = table_of(cluster)
    cluster.disks[HURT].folder.fail("read_at", errno.EIO, name=".sst", times=-1)
    assert cluster.get(HURT, KEYS[0], Consistency.QUORUM).values == [b"old " + KEYS[0]]
    write = cluster.put(HURT, KEYS[0], b"new")
    assert write.outcomes == [Outcome.UNAVAILABLE] and "nothing was numbered" in write.details[0].message
    cluster.run(2 * SECOND)
    assert not lost(cluster) and not cluster.engines[HURT].damaged() and not cluster.engines[HURT].quarantined()
    cluster.disks[HURT].folder.heal()
    assert cluster.get(HURT, KEYS[1], Consistency.ONE).coordinator == HURT
    assert cluster.put(HURT, KEYS[0], b"new").coordinator == HURT
    assert table_of(cluster) == file


def test_a_short_read_looks_like_damage_and_is_not_once_it_is_read_again() -> None:
    """What the second look does not find sets nothing aside."""
    cluster = with_tables()
    cluster.disks[HURT].folder.fail("read_at", 0, name=".sst", written=10)
    cluster.get(HURT, KEYS[0], Consistency.ONE)
    cluster.run(2 * SECOND)
    assert not lost(cluster) and not cluster.engines[HURT].damaged()


def test_where_every_owner_has_lost_its_table_the_answer_says_so() -> None:
    """UNAVAILABLE with node, file and offset, for reads and writes; nothing is numbered, and other keys go on."""
    cluster = with_tables(partitions=1)
    for name in OTHERS:
        flushed(cluster, name)
    for name in cluster.names:
        flip(cluster, name)
        for key in KEYS:
            cluster.get(name, key, Consistency.ONE)
        cluster.run_until(lambda name=name: bool(cluster.engines[name].quarantined()))  # type: ignore[misc]
    cluster.run(2 * SECOND)
    read, write = cluster.get(HURT, KEYS[0], Consistency.ONE), cluster.put(HURT, KEYS[0], b"new", Consistency.ONE)
    for reply in (read, write):
        assert reply.outcomes == [Outcome.UNAVAILABLE]
        assert "damaged at byte 0" in reply.details[0].message and ".sst" in reply.details[0].message


def test_few_keys_take_back_the_claims_of_their_partitions_only() -> None:
    """The facts of a table name one or two keys: all others are served as before."""
    cluster = Cluster()
    cluster.disks[HURT].options = TINY
    cluster.start().serving()
    cluster.put(HURT, b"alone", b"v", Consistency.ALL)
    flushed(cluster, HURT)
    flip(cluster)
    cluster.get(HURT, b"alone", Consistency.ONE)
    cluster.run_until(lambda: bool(cluster.engines[HURT].quarantined()))
    assert lost(cluster) == {partition_of(b"alone", 8)}
    other = next(key for key in KEYS if partition_of(key, 8) not in lost(cluster))
    assert cluster.put(HURT, other, b"v").coordinator == HURT
    assert cluster.put(HURT, b"alone", b"v").coordinator != HURT


def test_compaction_over_damage_sets_the_table_aside_and_goes_on() -> None:
    """What the worker finds is found; the next compaction has other inputs."""
    cluster = with_tables(memtable_bytes=4000)
    flip(cluster)
    for number in range(200):
        cluster.put(OTHERS[0], b"more-%d" % number, bytes(100), Consistency.ALL)
    cluster.run_until(lambda: bool(cluster.engines[HURT].quarantined()))
    for number in range(200):
        cluster.put(OTHERS[0], b"more-%d" % number, bytes(100), Consistency.ALL)
    cluster.run_until(lambda: cluster.nodes[HURT].upkeep.compactions > 0)
    assert cluster.nodes[HURT].upkeep.failure == ""


def test_the_digest_of_a_node_names_what_it_cannot_serve() -> None:
    """So that replicas are not compared where one has said that it lacks something."""
    cluster, _ = hurt()
    call = cluster.ask(HURT, AdminRequest("digest", {"namespace": "default"}))
    cluster.run_until(lambda: cluster.reply(HURT, call) is not None)
    body = cluster.reply(HURT, call).body
    assert body["partitions"] == {} and body["unserved"] == list(range(8))


def test_a_node_without_its_claim_sweeps_nothing() -> None:
    """An element went with the table; a removal that came later, swept on what is left, would take the element everywhere."""
    cluster = Cluster(partitions=1, stability_us=200_000, collect_us=500_000)
    cluster.disks[HURT].options = LsmOptions(TableOptions(block_bytes=200))
    cluster.start().serving()
    cluster.create("tags", "set_rw")

    def change(name: str, operation: str, element: bytes) -> None:
        packed = encode_operation(Operation(operation, (element,)))
        call = cluster.ask(name, WriteBatch("tags", [b"k"], [packed], Consistency.ALL, has_updates=True))
        cluster.run_until(lambda: cluster.reply(name, call) is not None)
        assert cluster.reply(name, call).outcomes == [Outcome.APPLIED]

    sweeper, table = cluster.nodes[HURT].assembly.sweeper, cluster.nodes[HURT].assembly.table_named("tags")
    assert table is not None and sweeper.is_mine(table, 0)
    change(HURT, "add", b"stays")
    change(OTHERS[0], "add", b"goes")
    flushed(cluster, HURT)
    change(OTHERS[0], "remove", b"goes")
    flip(cluster)  # the sweep finds it
    cluster.run_until(lambda: bool(cluster.engines[HURT].quarantined()))
    cluster.run(15 * SECOND)  # another rule is made meanwhile
    for name in OTHERS:
        (shown,) = cluster.get(name, b"k", Consistency.QUORUM, namespace="tags").values
        assert shown is not None and decode_value("set_rw", shown) == frozenset({b"stays"})


# --- closings -------------------------------------------------------------------------------------------------------


def test_a_closing_counts_what_the_log_of_such_a_node_holds_and_not_what_it_once_covered() -> None:
    """Numbers below its log are nobody's by its word; those in its log are present."""
    held = {
        "a": StreamHeld(1, 0, b"o", 3, [], 1),
        "b": StreamHeld(1, 0, b"o", 9, [12], 6, is_unclaimed=True),
    }
    last, beyond, frontier = CloseRun._present(None, held)  # type: ignore[arg-type]
    assert (last, beyond, frontier) == (12, {6, 7, 8, 9, 12}, 3)
    assert list(missing_of(held["a"], frontier, beyond)) == [6, 7, 8, 9, 12]
    assert list(missing_of(held["b"], frontier, beyond)) == []


def test_a_node_without_its_claim_restarts_and_its_streams_are_closed() -> None:
    """Its earlier runs come to their end, and others' as well."""
    cluster, _ = hurt()
    for name in (HURT, OTHERS[0]):
        cluster.restart(name)
        cluster.run_until(lambda name=name: any(run.is_done for run in cluster.nodes[name].runs), 60 * SECOND)  # type: ignore[misc]
    assert cluster.put(OTHERS[0], KEYS[0], b"after").outcomes == [Outcome.APPLIED]


def test_a_record_that_went_with_the_table_is_acknowledged_no_more() -> None:
    """Sent again, what is neither in its log nor in its cells does not count as held there."""
    cluster, _ = hurt()
    node = cluster.nodes[HURT]
    (namespace,) = node.unserved
    stream = next(s for s in node.context.tables[namespace].streams if s.frontier)
    raw = cluster.nodes[OTHERS[0]].context.find_stream(*stream.key)
    assert raw is not None
    place = raw.place(1)
    assert place is not None
    record = cluster.disks[OTHERS[0]].read([place])
    assert record is not None
    stream.drop_places(1 << 20)  # as the log would, once it was trimmed
    cluster.sent.clear()
    cluster.give_message(OTHERS[0], HURT, Replicate(77, record))
    cluster.settle()
    (answer,) = [message for message in cluster.messages(Replicated, HURT) if message.batch == 77]
    assert not answer.contiguous


# --- reads of the disk that fail elsewhere --------------------------------------------------------------------------


def test_a_cell_that_was_loaded_and_cannot_be_read_again_refuses_the_write_before_a_number_is_given() -> None:
    """A cache let go of it and then the disk failed: UNAVAILABLE, the run goes on, and the stream has no hole."""
    cluster = with_tables()
    node: Node = cluster.nodes[HURT]
    table = node.context.tables[next(iter(node.context.tables))]
    heads = {stream.key: stream.received for stream in table.streams}
    cluster.disks[HURT].folder.fail("read_at", errno.EIO, name=".sst", times=-1)
    replies: list[Any] = []
    node.assembly.write.start(WriteBatch("default", [KEYS[0], b"fresh"], [b"v", b"v"]), replies.append)
    assert replies and set(replies[0].outcomes) == {Outcome.UNAVAILABLE}
    assert "nothing was numbered" in replies[0].details[0].message
    assert heads == {stream.key: stream.received for stream in table.streams}
    assert not cluster.ended


def test_loads_whose_callers_are_gone_are_not_run() -> None:
    """Reads whose time has passed, or whose client went away, are dropped before the disk is asked."""
    cluster = with_tables(partitions=1)
    cluster.slow_loads.add(HURT)
    calls = [cluster.ask(HURT, ReadBatch("default", [key], Consistency.ONE, timeout_ms=1000)) for key in KEYS[:4]]
    write = cluster.ask(HURT, WriteBatch("default", [KEYS[5]], [b"v"], timeout_ms=60_000))
    cluster.settle()
    assert len(cluster.loading) == 1  # the others wait
    cluster.give(HURT, CallGone(calls[1]))
    cluster.give(HURT, CallGone(write))
    cluster.load(HURT)
    asked = [key for _, load in cluster.loading for _, keys in load.parts for key in keys]
    assert asked == [KEYS[2], KEYS[3]]
    later = cluster.ask(HURT, ReadBatch("default", [KEYS[6]], Consistency.ONE, timeout_ms=1000))
    cluster.run(1500 * MS)
    assert cluster.reply(HURT, later) is not None
    cluster.load(HURT)
    cluster.settle()
    assert not cluster.loading and cluster.nodes[HURT].context.loading.dropped == 3


def test_nothing_is_collected_where_a_claim_was_taken_back_and_the_node_is_named() -> None:
    """What the node had synced there may be lost, a put that is older than a delete among it: its frontiers prove nothing."""
    cluster, _ = hurt(stability_us=200_000, collect_us=500_000)
    assert cluster.put(OTHERS[0], KEYS[0], None, Consistency.QUORUM).outcomes == [Outcome.APPLIED]
    cluster.run(20 * SECOND)
    assert all(KEYS[0] in cluster.cells(name) for name in OTHERS), "the tombstone stays"
    (told,) = cluster.admin(OTHERS[0], "gc", namespace="default").body["namespaces"]
    assert [(one["node"], one["reason"]) for one in told["waits_for"]] == [(HURT, "claim taken back")]

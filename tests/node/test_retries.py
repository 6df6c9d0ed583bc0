"""Operation ids: an update is applied at most once although it is tried again, here and elsewhere, early and late."""

from __future__ import annotations

import random
from typing import Any

import pytest

from geokv.core.cells.operation import Operation
from geokv.core.cells.wire import decode_value, encode_operation
from geokv.core.limits import RETRY_WINDOW_MS
from geokv.core.quorum import Consistency
from geokv.core.ring import key_hash
from geokv.protocol import operation_ids
from geokv.protocol.effects import Asked, LogRead
from geokv.protocol.messages import (
    CellsPage,
    CloseFill,
    Definitions,
    FeedBatch,
    Forward,
    OperationsAsk,
    OperationsTold,
    RecordsWanted,
    Replicate,
)
from geokv.protocol.requests import Outcome, WriteBatch, WriteReply
from tests.node.harness import MS, SECOND, Cluster
from tests.node.test_forwarding import foreign_keys
from tests.node.test_quarantine import TINY, flip
from tests.node.test_updates import cluster_with, numbered
from tests.node.test_upkeep import flushed

ONE = bytes(15) + b"\x01"
TWO = bytes(15) + b"\x02"
INCREMENT = encode_operation(Operation("increment", (5,)))


def counters(**shape: Any) -> Cluster:
    """A cluster with a namespace of counters, whose nodes have run for longer than any message is on its way."""
    return cluster_with("counter_pn", **shape).run(40 * SECOND)


def increment(key: bytes = b"k", name: bytes = ONE, **options: Any) -> WriteBatch:
    level = options.pop("level", Consistency.QUORUM)
    return WriteBatch("counter_pn", [key], [INCREMENT], level, has_updates=True, operations=[name], **options)


def retry(*tried: str, key: bytes = b"k", name: bytes = ONE, **options: Any) -> WriteBatch:
    return increment(key, name, tried=tried, first_try_ms=options.pop("first_try_ms", 100), **options)


def answer(cluster: Cluster, node: str, batch: WriteBatch) -> WriteReply:
    call = cluster.ask(node, batch)
    cluster.run_until(lambda: cluster.reply(node, call) is not None)
    reply = cluster.reply(node, call)
    assert isinstance(reply, WriteReply)
    return reply


def count(cluster: Cluster, node: str, key: bytes = b"k") -> int:
    packed = cluster.get(node, key, namespace="counter_pn").values[0]
    return 0 if packed is None else decode_value("counter_pn", packed)


def test_what_was_applied_is_answered_with_its_result_and_not_applied_again() -> None:
    """The reply of the first try was lost: a retry elsewhere finds its record and answers with its version."""
    cluster = counters()
    first = answer(cluster, "dc1-1", increment())
    again = answer(cluster, "dc1-2", retry("dc1-1"))
    assert first.outcomes == again.outcomes == [Outcome.APPLIED]
    assert again.versions == first.versions and again.replicas[0] >= 2
    assert answer(cluster, "dc1-1", retry("dc1-1")).versions == first.versions
    assert [count(cluster, node) for node in cluster.names] == [5, 5, 5]
    assert numbered(cluster, "dc1-2", "counter_pn") == 0


def test_what_was_applied_nowhere_is_applied_once() -> None:
    """The first try never arrived: who was tried says so, and the retry applies it."""
    cluster = counters()
    assert answer(cluster, "dc1-2", retry("dc1-1")).outcomes == [Outcome.APPLIED]
    assert answer(cluster, "dc1-3", retry("dc1-1", "dc1-2")).outcomes == [Outcome.APPLIED]
    assert count(cluster, "dc1-1") == 5 and numbered(cluster, "dc1-3", "counter_pn") == 0


def test_a_first_try_that_arrives_after_the_retry_is_refused_before_it_is_numbered() -> None:
    """Who said that it never will apply an operation keeps its word, also in the next run; so does who applied the retry."""
    cluster = counters()
    assert answer(cluster, "dc1-2", retry("dc1-1")).outcomes == [Outcome.APPLIED]
    late = answer(cluster, "dc1-1", increment())
    assert late.outcomes == [Outcome.AMBIGUOUS] and "nothing was written here" in late.details[0].message
    assert answer(cluster, "dc1-2", increment()).outcomes == [Outcome.AMBIGUOUS]
    for node in ("dc1-1", "dc1-2"):
        cluster.restart(node)
        cluster.run_until(lambda node=node: cluster.is_serving(node))  # type: ignore[misc]
        assert answer(cluster, node, increment()).outcomes == [Outcome.AMBIGUOUS]
    assert count(cluster, "dc1-3") == 5


def test_a_first_try_that_waits_in_the_coordinator_is_refused_when_its_turn_comes() -> None:
    """A removal waits for a read quorum; meanwhile it was tried again elsewhere."""
    cluster = cluster_with("set_aw").run(40 * SECOND)
    for element in (b"a", b"b"):
        batch = WriteBatch("set_aw", [b"k"], [encode_operation(Operation("add", (element,)))], has_updates=True)
        assert answer(cluster, "dc1-1", batch).outcomes == [Outcome.APPLIED]
    remove = encode_operation(Operation("remove", (b"a",)))
    cluster.is_held = lambda sender, receiver, message: type(message).__name__ == "CellsRead" and receiver == "dc1-1"
    first = cluster.ask("dc1-1", WriteBatch("set_aw", [b"k"], [remove], has_updates=True, operations=[ONE]))
    cluster.settle()
    again = WriteBatch("set_aw", [b"k"], [remove], has_updates=True, operations=[ONE], tried=("dc1-1",), first_try_ms=50)
    assert answer(cluster, "dc1-2", again).outcomes == [Outcome.APPLIED]
    cluster.release()
    cluster.run_until(lambda: cluster.reply("dc1-1", first) is not None)
    assert cluster.reply("dc1-1", first).outcomes == [Outcome.AMBIGUOUS]
    assert cluster.notes["write.tried_late"] == 1


def test_a_coordinator_that_is_gone_leaves_doubt_and_nothing_is_applied() -> None:
    """Whoever was tried cannot be asked, and no log has the record: AMBIGUOUS, who does not answer is named."""
    cluster = counters()
    cluster.crash("dc1-1")
    reply = answer(cluster, "dc1-2", retry("dc1-1", timeout_ms=1000))
    assert reply.outcomes == [Outcome.AMBIGUOUS]
    assert "dc1-1 (it cannot be reached)" in reply.details[0].message
    assert numbered(cluster, "dc1-2", "counter_pn") == 0 == count(cluster, "dc1-3")


def test_a_record_on_one_owner_only_is_found_completed_and_answered() -> None:
    """The coordinator died with its disk after one other owner had the record: it is brought to the level as it is."""
    cluster = counters()
    cluster.slow_disks.add("dc1-1")
    cluster.is_dropped = lambda sender, receiver, message: isinstance(message, Replicate) and receiver == "dc1-2"
    cluster.ask("dc1-1", increment())
    cluster.settle()
    cluster.crash("dc1-1")
    cluster.is_dropped = lambda sender, receiver, message: False
    reply = answer(cluster, "dc1-2", retry("dc1-1"))
    assert reply.outcomes == [Outcome.APPLIED] and reply.replicas == [2]
    assert [count(cluster, node) for node in ("dc1-2", "dc1-3")] == [5, 5]
    assert numbered(cluster, "dc1-2", "counter_pn") == numbered(cluster, "dc1-3", "counter_pn") == 0


def test_the_next_run_answers_once_the_old_streams_are_closed() -> None:
    """A tried coordinator restarted: it says nothing for its earlier run before the closing, and then what became of it."""
    cluster = counters()
    cluster.crash("dc1-1")
    cluster.crash("dc1-3")
    cluster.start("dc1-1")  # no closing without the third owner
    call = cluster.ask("dc1-2", retry("dc1-1", timeout_ms=8_000))
    cluster.run(3 * SECOND)
    assert cluster.reply("dc1-2", call) is None
    told = cluster.messages(OperationsTold, "dc1-1")
    assert told and {message.states for message in told} == {bytes([operation_ids.UNSURE])}
    assert "not closed yet" in told[-1].reason
    cluster.start("dc1-3")
    cluster.run_until(lambda: cluster.reply("dc1-2", call) is not None)
    assert cluster.reply("dc1-2", call).outcomes == [Outcome.APPLIED]
    assert count(cluster, "dc1-1") == 5


def test_what_an_earlier_run_numbered_is_found_in_the_log_of_the_next() -> None:
    """Once, and again after its streams were closed and forgotten, and once more after a second restart."""
    cluster = counters()
    first = answer(cluster, "dc1-1", increment())
    for _ in range(3):
        cluster.restart("dc1-1")
        cluster.run_until(lambda: cluster.is_serving("dc1-1"))
        reply = answer(cluster, "dc1-2", retry("dc1-1"))
        assert reply.outcomes == [Outcome.APPLIED] and reply.versions == first.versions
        cluster.run(5 * SECOND)
        assert not cluster.nodes["dc1-1"].runs[0].open_pairs
    assert count(cluster, "dc1-3") == 5


def with_the_record_at_a_co_owner_only() -> Cluster:
    """The coordinator lost power before its own sync, and one of the two others never heard of the increment."""
    cluster = counters()
    cluster.slow_disks.add("dc1-1")
    cluster.is_dropped = lambda sender, receiver, message: isinstance(message, Replicate) and receiver == "dc1-2"
    cluster.ask("dc1-1", increment())
    cluster.settle()
    cluster.crash("dc1-1")
    cluster.slow_disks.clear()
    cluster.is_dropped = lambda sender, receiver, message: False
    return cluster


def test_a_record_that_only_the_closing_brings_back_is_found() -> None:
    """The coordinator lost power before its own sync; a co-owner has the record, and the next run gets it with the closing."""
    cluster = with_the_record_at_a_co_owner_only()
    cluster.start("dc1-1")
    cluster.run_until(lambda: cluster.is_serving("dc1-1")).run(5 * SECOND)
    assert cluster.messages(CloseFill)
    cluster.crash("dc1-3")
    reply = answer(cluster, "dc1-1", retry("dc1-1"))
    assert reply.outcomes == [Outcome.APPLIED]
    assert count(cluster, "dc1-2") == 5 and numbered(cluster, "dc1-1", "counter_pn") == 0


def test_of_two_retries_one_applies_it() -> None:
    """The client gave up the first retry while it waited, and tries a third coordinator: the second does nothing."""
    cluster = counters()
    cluster.is_held = lambda sender, receiver, message: isinstance(message, OperationsTold) and receiver == "dc1-2"
    second = cluster.ask("dc1-2", retry("dc1-1"))
    cluster.settle()
    third = answer(cluster, "dc1-3", retry("dc1-1", "dc1-2"))
    assert third.outcomes == [Outcome.APPLIED]
    cluster.release()
    cluster.run_until(lambda: cluster.reply("dc1-2", second) is not None)
    reply = cluster.reply("dc1-2", second)
    assert reply.outcomes in ([Outcome.APPLIED], [Outcome.AMBIGUOUS])
    assert numbered(cluster, "dc1-2", "counter_pn") == 0 and count(cluster, "dc1-1") == 5


def test_a_retry_behind_a_forward_asks_every_owner_of_the_key() -> None:
    """Who owns no copy has handed the operation on, nobody remembers to whom: all owners of its datacenter answer for it."""
    cluster = cluster_with("counter_pn", nodes=5, replicas=3, partitions=16).run(40 * SECOND)
    (key,) = foreign_keys(cluster, "dc1-1", 1)
    placement = cluster.nodes["dc1-1"].assembly.placement
    owners = placement.owners[key_hash(key) >> placement.shift]
    cluster.is_dropped = lambda sender, receiver, message: type(message).__name__ == "Forwarded"
    cluster.ask("dc1-1", increment(key))
    cluster.settle()
    assert cluster.messages(Forward)
    cluster.is_dropped = lambda sender, receiver, message: False
    again = answer(cluster, owners[1], retry("dc1-1", key=key))
    assert again.outcomes == [Outcome.APPLIED] and count(cluster, owners[2], key) == 5
    other = answer(cluster, owners[2], retry("dc1-1", key=key, name=TWO))
    assert other.outcomes == [Outcome.APPLIED] and count(cluster, owners[0], key) == 10
    asked = {receiver for _, receiver, message in cluster.sent if isinstance(message, OperationsAsk) and message.ids == TWO}
    assert asked == set(owners) - {owners[2]}
    cluster.crash(owners[0])
    third = bytes(15) + b"\x03"
    reply = answer(cluster, owners[1], retry("dc1-1", key=key, name=third, timeout_ms=1000))
    assert reply.outcomes == [Outcome.AMBIGUOUS]


def test_a_retry_that_is_forwarded_itself_takes_along_who_was_tried() -> None:
    """The node that is asked owns no copy: the owner gets the whole question."""
    cluster = cluster_with("counter_pn", nodes=5, replicas=3, partitions=16).run(40 * SECOND)
    (key,) = foreign_keys(cluster, "dc1-1", 1)
    placement = cluster.nodes["dc1-1"].assembly.placement
    first, second, _ = placement.owners[key_hash(key) >> placement.shift]
    assert answer(cluster, second, increment(key)).outcomes == [Outcome.APPLIED]
    reply = answer(cluster, "dc1-1", retry(second, key=key))
    assert reply.outcomes == [Outcome.APPLIED] and reply.coordinator == first
    assert count(cluster, first, key) == 5


def test_only_what_is_in_doubt_of_a_batch_is_applied() -> None:
    """Of a batch one operation was applied and one was not: each is settled by itself, in its own place."""
    cluster = counters()
    first = answer(cluster, "dc1-1", increment(b"a", ONE))
    batch = WriteBatch(
        "counter_pn",
        [b"b", b"a"],
        [INCREMENT, INCREMENT],
        has_updates=True,
        operations=[TWO, ONE],
        tried=("dc1-1",),
        first_try_ms=100,
    )
    reply = answer(cluster, "dc1-3", batch)
    assert reply.outcomes == [Outcome.APPLIED] * 2 and reply.versions[1] == first.versions[0] != reply.versions[0]
    assert count(cluster, "dc1-1", b"a") == count(cluster, "dc1-1", b"b") == 5


def test_past_the_window_nothing_is_applied() -> None:
    """Nobody remembers for longer: AMBIGUOUS at once."""
    cluster = counters()
    call = cluster.ask("dc1-2", retry("dc1-1", first_try_ms=RETRY_WINDOW_MS + 1))
    cluster.settle()
    reply = cluster.reply("dc1-2", call)
    assert reply.outcomes == [Outcome.AMBIGUOUS] and "nobody remembers" in reply.details[0].message
    assert count(cluster, "dc1-1") == 0


def test_who_has_numbered_too_much_to_remember_is_not_sure(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is remembered is bounded; where the window is shorter for it, a retry of an older try is left alone."""
    monkeypatch.setattr(operation_ids, "OPERATIONS_REMEMBERED_MAX", 16)
    monkeypatch.setattr(operation_ids, "CHUNK_OPERATIONS", 8)
    cluster = counters()
    for number in range(40):
        name = (100 + number).to_bytes(16, "big")
        assert answer(cluster, "dc1-1", increment(b"many", name)).outcomes == [Outcome.APPLIED]
    assert cluster.nodes["dc1-1"].context.operation_ids.remembered <= 24
    reply = answer(cluster, "dc1-2", retry("dc1-1", timeout_ms=1000))
    assert reply.outcomes == [Outcome.AMBIGUOUS] and "too much" in reply.details[0].message
    cluster.run(60 * SECOND)
    assert answer(cluster, "dc1-2", retry("dc1-1", name=TWO)).outcomes == [Outcome.APPLIED]


def test_nothing_is_promised_that_there_is_no_room_to_remember(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who cannot hold another id does not say that it never will apply it."""
    monkeypatch.setattr(operation_ids, "OPERATIONS_HELD_MAX", 1)
    cluster = counters()
    assert answer(cluster, "dc1-2", retry("dc1-1")).outcomes == [Outcome.APPLIED]
    reply = answer(cluster, "dc1-3", retry("dc1-1", name=TWO, timeout_ms=1000))
    assert reply.outcomes == [Outcome.AMBIGUOUS] and "no room" in reply.details[0].message
    cluster.run(2 * RETRY_WINDOW_MS * MS)
    assert answer(cluster, "dc1-3", retry("dc1-1", name=bytes(16))).outcomes == [Outcome.APPLIED]


def test_in_another_datacenter_a_retry_is_recognised_once_the_record_has_arrived() -> None:
    """Found there it is answered; else the tried coordinator is asked over the WAN, and cut off from it nothing is applied."""
    cluster = counters(datacenters=2)
    first = answer(cluster, "dc1-1", increment())
    cluster.run(2 * SECOND)
    cluster.cut_apart()
    reply = answer(cluster, "dc2-2", retry("dc1-1"))
    assert reply.outcomes == [Outcome.APPLIED] and reply.versions == first.versions
    began_us = cluster.now_us
    assert answer(cluster, "dc2-2", retry("dc1-1", name=TWO, timeout_ms=30_000)).outcomes == [Outcome.AMBIGUOUS]
    assert cluster.now_us - began_us < 2 * SECOND  # a lost datacenter is not waited for
    cluster.heal()
    cluster.run(3 * SECOND)
    third = bytes(15) + b"\x03"
    assert answer(cluster, "dc2-2", retry("dc1-1", name=third)).outcomes == [Outcome.APPLIED]
    cluster.run(2 * SECOND)
    assert count(cluster, "dc1-2") == count(cluster, "dc2-3") == 10


def test_a_put_that_was_overwritten_meanwhile_is_not_written_again() -> None:
    """The first try was applied, another client wrote after it: the retry says SUPERSEDED and takes nothing back."""
    cluster = Cluster().start().serving().run(40 * SECOND)
    first = cluster.put("dc1-1", b"k", b"old", operations=[ONE])
    second = cluster.put("dc1-2", b"k", b"new")
    reply = cluster.put("dc1-3", b"k", b"old", operations=[ONE], tried=("dc1-1",), first_try_ms=200)
    assert reply.outcomes == [Outcome.SUPERSEDED] and reply.versions == first.versions < second.versions
    assert cluster.get("dc1-2", b"k").values == [b"new"]


def test_a_sibling_is_not_doubled_and_its_context_comes_back() -> None:
    """What the writer has seen comes with the result of the earlier try: a put with it replaces the value."""
    cluster = cluster_with("siblings").run(40 * SECOND)
    first = cluster.put("dc1-1", b"k", b"a", namespace="siblings", operations=[ONE])
    again = cluster.put("dc1-2", b"k", b"a", namespace="siblings", operations=[ONE], tried=("dc1-1",), first_try_ms=200)
    assert again.contexts == first.contexts and again.outcomes == [Outcome.APPLIED]
    cluster.put("dc1-3", b"k", b"b", namespace="siblings", contexts=again.contexts)
    packed = cluster.get("dc1-1", b"k", namespace="siblings").values[0]
    assert packed is not None and decode_value("siblings", packed) == [b"b"]


def test_an_id_that_was_given_to_another_operation_is_refused() -> None:
    """A client that names two operations alike is told so, instead of being answered with the result of the other one."""
    cluster = counters(partitions=1)
    assert answer(cluster, "dc1-1", increment(b"a")).outcomes == [Outcome.APPLIED]
    reply = answer(cluster, "dc1-2", retry("dc1-1", key=b"b"))
    assert reply.outcomes == [Outcome.INVALID] and "another operation" in reply.details[0].message


@pytest.mark.parametrize("was_delete", [False, True])
def test_a_delete_is_not_answered_with_a_put_of_its_id(was_delete: bool) -> None:
    """A record of `lww` tells which of the two it was: the other one under its id is refused, and nothing is written."""
    cluster = Cluster().start().serving().run(40 * SECOND)
    values = [None, b"v"] if was_delete else [b"v", None]
    first = cluster.put("dc1-1", b"k", values[0], operations=[ONE])
    wrong = cluster.put("dc1-2", b"k", values[1], operations=[ONE], tried=("dc1-1",), first_try_ms=200)
    assert wrong.outcomes == [Outcome.INVALID] and "another operation" in wrong.details[0].message
    again = cluster.put("dc1-2", b"k", values[0], operations=[ONE], tried=("dc1-1",), first_try_ms=200)
    assert again.outcomes == [Outcome.APPLIED] and again.versions == first.versions


def test_any_owner_may_have_been_tried() -> None:
    """A client that does not know who was tried (another process did) needs the word of every owner, everywhere."""
    cluster = counters(datacenters=2)
    assert answer(cluster, "dc1-2", retry("*")).outcomes == [Outcome.APPLIED]
    assert answer(cluster, "dc1-3", retry("*")).outcomes == [Outcome.APPLIED]
    cluster.run(2 * SECOND)
    assert count(cluster, "dc2-1") == 5
    cluster.crash("dc2-3")
    reply = answer(cluster, "dc1-3", retry("*", name=TWO, timeout_ms=1000))
    assert reply.outcomes == [Outcome.AMBIGUOUS] and "dc2-3" in reply.details[0].message


def test_a_call_that_comes_in_is_answered_when_the_run_ends() -> None:
    """A retry in progress is told that nobody knows when its coordinator's log fails."""
    cluster = counters()
    cluster.crash("dc1-1")
    cluster.give("dc1-2", Asked(77, retry("dc1-1")))
    cluster.nodes["dc1-2"]._end("the disk failed")
    effects = cluster.nodes["dc1-2"].assembly.effects
    replies = [effect.reply for effect in effects if type(effect).__name__ == "Answer"]
    assert [reply.outcomes for reply in replies] == [[Outcome.AMBIGUOUS]]


def test_what_is_too_late_is_refused_before_it_is_numbered() -> None:
    """Of a batch the operation whose caller has no time left is refused, also where another node forwards it."""
    cluster = cluster_with("counter_pn", nodes=5, replicas=3, partitions=16)
    (key,) = foreign_keys(cluster, "dc1-1", 1)
    for node in cluster.names:
        batch = WriteBatch(
            "counter_pn", [key, key], [INCREMENT] * 2, has_updates=True, operations=[ONE, TWO], remaining_ms=[0, 4000]
        )
        reply = answer(cluster, node, batch)
        assert reply.outcomes == [Outcome.DEADLINE, Outcome.APPLIED] and "nothing was written" in reply.details[0].message
    assert count(cluster, "dc1-1", key) == 25


def test_what_becomes_too_late_while_it_waits_is_not_numbered() -> None:
    """A removal waits for a read quorum for longer than its caller does; another one of its batch has the time."""
    cluster = cluster_with("set_aw")
    add = [encode_operation(Operation("add", (element,))) for element in (b"a", b"b")]
    assert answer(cluster, "dc1-1", WriteBatch("set_aw", [b"k"] * 2, add, has_updates=True)).outcomes == [Outcome.APPLIED] * 2
    remove = [encode_operation(Operation("remove", (element,))) for element in (b"a", b"b")]
    cluster.is_held = lambda sender, receiver, message: type(message).__name__ == "CellsRead"
    call = cluster.ask("dc1-1", WriteBatch("set_aw", [b"k"] * 2, remove, has_updates=True, remaining_ms=[100, 4000]))
    cluster.run(120 * MS)
    cluster.release()
    cluster.run_until(lambda: cluster.reply("dc1-1", call) is not None)
    assert cluster.reply("dc1-1", call).outcomes == [Outcome.DEADLINE, Outcome.APPLIED]
    packed = cluster.get("dc1-2", b"k", namespace="set_aw").values[0]
    assert packed is not None and set(decode_value("set_aw", packed)) == {b"a"}


def test_who_has_handed_an_operation_on_without_its_claim_does_not_answer_for_it_alone() -> None:
    """An owner whose table is in quarantine forwards; the retry asks those who may have got it, and applies nothing twice."""
    cluster = Cluster()
    for name in cluster.names:
        cluster.disks[name].options = TINY
    cluster.start().serving()
    cluster.create("counter_pn", "counter_pn")
    keys = [b"key-%d" % number for number in range(40)]
    for key in keys:
        assert answer(cluster, "dc1-1", increment(key, key.ljust(16))).outcomes == [Outcome.APPLIED]
    flushed(cluster, "dc1-1")
    flip(cluster, "dc1-1")
    for key in keys:
        cluster.get("dc1-1", key, Consistency.ONE, namespace="counter_pn")
    cluster.run_until(lambda: bool(cluster.engines["dc1-1"].quarantined())).run(40 * SECOND)
    cluster.is_dropped = lambda sender, receiver, message: type(message).__name__ == "Forwarded"
    cluster.sent.clear()
    cluster.ask("dc1-1", increment(keys[3]))
    cluster.run(200 * MS)
    (to,) = [receiver for _, receiver, message in cluster.sent if isinstance(message, Forward)]
    cluster.is_dropped = lambda sender, receiver, message: False
    other = "dc1-3" if to == "dc1-2" else "dc1-2"
    assert answer(cluster, other, retry("dc1-1", key=keys[3])).outcomes == [Outcome.APPLIED]
    assert [count(cluster, node, keys[3]) for node in (to, other)] == [10, 10]
    assert answer(cluster, other, retry("dc1-1", key=keys[3], name=TWO)).outcomes == [Outcome.APPLIED]
    assert count(cluster, to, keys[3]) == 15


def test_what_was_lost_but_counts_in_a_later_total_is_not_counted_again() -> None:
    """The record of the first try is void, the next one's totals contain it: a retry does nothing."""
    cluster = counters()
    cluster.slow_disks.add("dc1-1")
    cluster.is_dropped = lambda sender, receiver, message: isinstance(message, Replicate)
    cluster.ask("dc1-1", increment())
    cluster.settle()
    cluster.is_dropped = lambda sender, receiver, message: False
    cluster.ask("dc1-1", increment(name=TWO))
    cluster.settle()
    cluster.crash("dc1-1")
    cluster.slow_disks.clear()
    cluster.start("dc1-1")
    cluster.run_until(lambda: cluster.is_serving("dc1-1")).run(5 * SECOND)
    assert count(cluster, "dc1-2") == 10
    reply = answer(cluster, "dc1-2", retry("dc1-1", timeout_ms=1000))
    assert reply.outcomes == [Outcome.AMBIGUOUS] and "contain what it counted" in reply.details[0].message
    assert answer(cluster, "dc1-2", retry("dc1-1", name=TWO)).outcomes == [Outcome.APPLIED]
    assert [count(cluster, node) for node in cluster.names] == [10] * 3


def test_a_decrement_of_rights_that_is_found_is_brought_to_a_quorum_whatever_was_asked() -> None:
    """At ONE too: with it on one disk alone the next run of its origin could sell the same right again."""
    cluster = cluster_with("counter_bounded").run(40 * SECOND)

    def sale(name: bytes, operation: str, **options: Any) -> WriteBatch:
        packed = encode_operation(Operation(operation, (5,)))
        return WriteBatch("counter_bounded", [b"k"], [packed], Consistency.ONE, has_updates=True, operations=[name], **options)

    assert answer(cluster, "dc1-1", sale(bytes(16), "increment")).outcomes == [Outcome.APPLIED]
    cluster.slow_disks.add("dc1-1")
    cluster.is_dropped = lambda sender, receiver, message: isinstance(message, Replicate) and receiver == "dc1-3"
    cluster.ask("dc1-1", sale(ONE, "decrement"))
    cluster.settle()
    cluster.crash("dc1-1")
    again = sale(ONE, "decrement", tried=("dc1-1",), first_try_ms=100, timeout_ms=1000)
    short = answer(cluster, "dc1-2", again)
    assert short.outcomes == [Outcome.PARTIAL] and short.details[0].replicas == ("dc1-2",)
    cluster.is_dropped = lambda sender, receiver, message: False
    assert answer(cluster, "dc1-2", again).replicas == [2]


def test_a_put_under_way_is_not_stamped_above_what_followed_its_retry() -> None:
    """It hears of a newer version only after the retry was answered and the client has put again: that one stands."""
    cluster = Cluster().start().serving().run(40 * SECOND)
    cluster.slow_disks.add("dc1-1")
    cluster.is_held = lambda sender, receiver, message: (
        receiver == "dc1-3" and isinstance(message, Replicate) and sender == "dc1-1"
    )
    first = cluster.write("dc1-1", {b"k": b"old"}, operations=[ONE])
    cluster.settle()
    cluster.cut("dc1-1", "dc1-2")
    assert cluster.put("dc1-2", b"k", b"old", operations=[ONE], tried=("dc1-1",), first_try_ms=200).outcomes == [
        Outcome.APPLIED
    ]
    assert cluster.put("dc1-2", b"k", b"new").outcomes == [Outcome.APPLIED]
    cluster.heal()
    cluster.release()
    cluster.slow_disks.clear()
    cluster.run(5 * SECOND)
    assert cluster.reply("dc1-1", first).outcomes == [Outcome.SUPERSEDED]
    assert [cluster.get(node, b"k").values for node in cluster.names] == [[b"new"]] * 3


def test_what_is_closed_and_forgotten_while_a_retry_waits_for_it_is_answered_once() -> None:
    """What was found is refused here, because it is being closed; by the next look every replica has had it."""
    cluster = with_the_record_at_a_co_owner_only()
    cluster.is_held = lambda sender, receiver, message: isinstance(message, CloseFill | RecordsWanted | FeedBatch | CellsPage)
    cluster.start("dc1-1").run(SECOND)
    call = cluster.ask("dc1-2", retry("dc1-1", level=Consistency.ONE))
    cluster.run(300 * MS)
    assert cluster.reply("dc1-2", call) is None and cluster.nodes["dc1-2"].context.promised
    cluster.release()
    cluster.run_until(lambda: cluster.reply("dc1-2", call) is not None)
    assert cluster.reply("dc1-2", call).outcomes == [Outcome.APPLIED]
    assert [count(cluster, node) for node in cluster.names] == [5] * 3


def test_how_far_the_log_reaches_is_not_told_by_what_a_closing_brought_late() -> None:
    """Its oldest record came back long after; what was numbered in between is gone from it, and is found with a co-owner."""
    cluster = Cluster(partitions=1)
    for name in cluster.names:
        cluster.disks[name].segment_bytes = 16_000
    cluster.start().serving()
    cluster.create("counter_pn", "counter_pn")
    cluster.slow_disks.add("dc1-1")
    cluster.is_dropped = lambda sender, receiver, message: isinstance(message, Replicate) and receiver == "dc1-2"
    cluster.ask("dc1-1", increment(b"late", TWO))
    cluster.settle()
    cluster.crash("dc1-1")
    cluster.crash("dc1-3")  # who alone has it
    cluster.slow_disks.clear()
    cluster.is_dropped = lambda sender, receiver, message: False
    cluster.start("dc1-1").run_until(lambda: cluster.is_serving("dc1-1")).run(50 * SECOND)
    began_us = cluster.now_us
    first = answer(cluster, "dc1-1", increment())
    while cluster.disks["dc1-1"]._segment == 1:
        assert answer(cluster, "dc1-2", increment(b"many", cluster.now_us.to_bytes(16, "big"))).outcomes == [Outcome.APPLIED]
    cluster.start("dc1-3").run(8 * SECOND)
    for name in cluster.names:
        flushed(cluster, name)
    cluster.run(3 * SECOND)
    assert cluster.trimmed["dc1-1"] == 2
    for _ in range(2):
        cluster.restart("dc1-1")
        cluster.run_until(lambda: cluster.is_serving("dc1-1")).run(3 * SECOND)
        flushed(cluster, "dc1-1")
    age_ms = (cluster.now_us - began_us) // 1000 + 10
    reply = answer(cluster, "dc1-2", retry("dc1-1", first_try_ms=age_ms))
    assert reply.outcomes == [Outcome.APPLIED] and reply.versions == first.versions
    assert "does not reach back" in cluster.messages(OperationsTold, "dc1-1")[0].reason
    assert count(cluster, "dc1-3") == 5


def test_what_is_found_counts_here_only_once_it_was_taken_in_here() -> None:
    """While it is refused, because it is being closed, this log does not have it: no level is met by it."""
    cluster = with_the_record_at_a_co_owner_only()
    cluster.is_held = lambda sender, receiver, message: isinstance(message, CloseFill | RecordsWanted | FeedBatch | CellsPage)
    cluster.start("dc1-1").run(SECOND)
    reply = answer(cluster, "dc1-2", retry("dc1-1", level=Consistency.ONE, timeout_ms=1500))
    assert reply.outcomes == [Outcome.AMBIGUOUS] and "0 of 1 replicas" in reply.details[0].message
    assert cluster.cells("dc1-2", "counter_pn") == {}


def test_a_node_that_has_not_heard_of_a_change_of_policy_does_not_misread_what_it_finds() -> None:
    """The first try was applied under the new policy: its record is not taken in here, and its version is no lww version."""
    cluster = cluster_with("lww").run(40 * SECOND)
    cluster.put("dc1-1", b"k", b"old", namespace="lww")
    for name in ("dc1-1", "dc1-2"):
        cluster.cut(name, "dc1-3")
    cluster.admin("dc1-1", "namespace_alter", name="lww", policy="siblings")
    cluster.is_held = lambda sender, receiver, message: isinstance(message, Definitions)
    cluster.heal()
    cluster.run(SECOND)
    first = cluster.put("dc1-1", b"k", b"new", namespace="lww", operations=[ONE])
    again = {"namespace": "lww", "operations": [ONE], "tried": ("dc1-1",), "first_try_ms": 100}
    reply = cluster.put("dc1-3", b"k", b"new", timeout_ms=1000, **again)
    assert reply.outcomes == [Outcome.PARTIAL] and set(reply.details[0].replicas) == {"dc1-1", "dc1-2"}
    cluster.release()
    cluster.run(3 * SECOND)
    reply = cluster.put("dc1-3", b"k", b"new", **again)
    assert reply.outcomes == [Outcome.APPLIED] and reply.versions == first.versions and reply.contexts == first.contexts


def test_a_process_that_goes_on_after_another_took_its_operation_over_applies_nothing_twice() -> None:
    """Every owner has promised the second one; a retry of the first, which names only whom it had tried, asks it too."""
    cluster = counters()
    second = answer(cluster, "dc1-2", retry("*"))
    first = answer(cluster, "dc1-3", retry("dc1-1"))
    assert first.outcomes == [Outcome.APPLIED] and first.versions == second.versions
    assert answer(cluster, "dc1-2", retry("*", name=TWO)).outcomes == [Outcome.APPLIED]
    cluster.restart("dc1-3")
    cluster.run_until(lambda: cluster.is_serving("dc1-3")).run(5 * SECOND)
    assert answer(cluster, "dc1-3", retry("dc1-1", name=TWO)).outcomes == [Outcome.APPLIED]
    assert [count(cluster, node) for node in cluster.names] == [10] * 3


@pytest.mark.parametrize("raw", [None, b"no record"])
def test_a_record_that_the_log_cannot_give_is_not_said_to_be_everywhere(raw: bytes | None) -> None:
    """It stands on one disk, and cannot be read: nobody says that it was applied; once it is gone from there all have it."""
    cluster = counters()
    cluster.is_dropped = lambda sender, receiver, message: isinstance(message, Replicate)
    cluster.ask("dc1-1", increment())
    cluster.settle()
    cluster.slow_reads.add("dc1-1")
    call = cluster.ask("dc1-2", retry("dc1-1", timeout_ms=500))

    def fail() -> None:
        cluster.settle()
        for _, effect in cluster.reading:
            cluster.give("dc1-1", LogRead(effect.token, raw, "the disk gives nothing"))
        cluster.reading.clear()

    while cluster.reply("dc1-2", call) is None:
        cluster.run(20 * MS)
        fail()
    reply = cluster.reply("dc1-2", call)
    assert reply.outcomes == [Outcome.AMBIGUOUS] and "dc1-1 cannot read its record of it" in reply.details[0].message
    cluster.is_dropped = lambda sender, receiver, message: False
    call = cluster.ask("dc1-2", retry("dc1-1"))
    cluster.run_until(lambda: bool(cluster.reading))
    for stream in cluster.streams("dc1-1", "counter_pn").values():
        stream.drop_places(99)  # as when a segment goes
    fail()
    cluster.run_until(lambda: cluster.reply("dc1-2", call) is not None)
    reply = cluster.reply("dc1-2", call)
    assert reply.outcomes == [Outcome.APPLIED] and reply.replicas == [3]


def test_what_every_log_has_let_go_of_is_in_every_datacenter() -> None:
    """The place of its record is gone, for which all had to cover it: EACH_QUORUM is met, and nothing is pending."""
    cluster = counters(datacenters=2)
    answer(cluster, "dc1-1", increment())
    cluster.run(2 * SECOND)
    for stream in cluster.streams("dc1-1", "counter_pn").values():
        stream.drop_places(99)  # as when a segment goes
    reply = answer(cluster, "dc1-1", retry("dc1-1", level=Consistency.EACH_QUORUM))
    assert reply.outcomes == [Outcome.APPLIED] and reply.dcs == [2]


def test_a_batch_of_keys_that_are_all_of_others_is_answered_at_once() -> None:
    """Who handed it on saw another ring: nothing is to be asked, and nobody waits for that."""
    cluster = cluster_with("counter_pn", nodes=5, replicas=3, partitions=16).run(40 * SECOND)
    (key,) = foreign_keys(cluster, "dc1-1", 1)
    replies: list[WriteReply] = []
    cluster.nodes["dc1-1"].assembly.retries.start(retry("dc1-2", key=key), replies.append)
    assert [reply.outcomes for reply in replies] == [[Outcome.WRONG_NODE]]


def test_ids_are_found_alone_and_together() -> None:
    """Of any number of ids asked for at once those that were numbered are found, each with its newest record."""
    names = cluster_with("lww", nodes=1, replicas=1).nodes["dc1-1"].context.operation_ids
    rng = random.Random(1)
    ids = [bytes(rng.choices(b"\0\1", k=16)) for _ in range(3 * operation_ids.CHUNK_OPERATIONS)]
    for at in range(0, len(ids), 1000):
        some = ids[at : at + 1000]
        names.numbered(some, list(range(at, at + len(some))), [0] * len(some))
    newest = {name: (number, 0) for number, name in enumerate(ids)}
    asked = [bytes(rng.choices(b"\0\1", k=16)) for _ in range(100)]
    expected = {name: newest[name] for name in asked if name in newest}
    assert 10 < len(expected) < 90
    assert names.find_all(asked) == expected
    assert {name: found for name in asked for found in names.find_all([name]).values()} == expected

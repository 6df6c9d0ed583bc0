"""Closing the streams of earlier runs: late records, promises, deleted namespaces, standing, several closers."""

from __future__ import annotations

from typing import Any

import pytest

from geokv.core.quorum import Consistency
from geokv.core.record import decode_records
from geokv.errors import Overloaded
from geokv.protocol import closer
from geokv.protocol.effects import Delivered
from geokv.protocol.messages import (
    Accept,
    Accepted,
    CellsPage,
    CloseAnswer,
    CloseAsk,
    CloseFill,
    CloseFilled,
    CloseForget,
    Prepare,
    Promised,
    RecordsWanted,
    Replicate,
    Replicated,
)
from geokv.protocol.requests import Outcome
from tests.node.harness import MS, SECOND, Cluster


def is_closed(cluster: Cluster, node: str, origin: bytes) -> bool:
    """Whether a node remembers of that origin only that it is closed, in all partitions."""
    context = cluster.nodes[node].context
    return len(context.closed.get(origin, ())) == len(cluster.nodes[node].assembly.placement.mine)


def is_closed_everywhere(cluster: Cluster, origin: bytes) -> bool:
    return all(is_closed(cluster, node, origin) for node in cluster.nodes)


def late_replicate(cluster: Cluster, coordinator: str, receiver: str, key: bytes) -> Replicate:
    """A record of this run that is in the socket of `receiver` and nowhere else; the coordinator has crashed since."""
    cluster.slow_disks.add(coordinator)
    cluster.is_held = lambda s, r, m: isinstance(m, Replicate) and r == receiver
    cluster.is_dropped = lambda s, r, m: isinstance(m, Replicate) and r != receiver
    cluster.write(coordinator, {key: b"late"})
    cluster.settle()
    (held,) = [m for _, _, m in cluster.held if isinstance(m, Replicate)]
    cluster.held.clear()
    cluster.is_held = cluster.is_dropped = lambda s, r, m: False
    cluster.slow_disks.clear()
    return held


def test_a_late_record_of_a_closed_run_is_not_taken_by_one_replica_alone() -> None:
    """A record that was in an owner's socket while its stream was closed is dropped, before and after the closing came."""
    cluster = Cluster().start().serving()
    cluster.put("dc1-1", b"k", b"v")
    old = cluster.nodes["dc1-1"].origin.packed()
    late = late_replicate(cluster, "dc1-1", "dc1-2", b"k")
    cluster.is_dropped = lambda s, r, m: isinstance(m, CloseForget)
    cluster.restart("dc1-1")
    partition = decode_records(late.records)[0].partition
    cluster.run_until(lambda: cluster.streams("dc1-2")[partition, old].last is not None)
    cluster.give("dc1-2", Delivered("dc1-1", late))
    cluster.run(SECOND)
    assert cluster.are_equal()
    assert cluster.streams("dc1-2")[partition, old].frontier == 1


def test_closings_end_and_are_only_remembered() -> None:
    """After a restart every replica in every datacenter has dropped the streams of the run before."""
    cluster = Cluster(datacenters=2).start().serving()
    cluster.put("dc1-1", b"k", b"v")
    old = cluster.nodes["dc1-1"].origin.packed()
    cluster.run(2 * SECOND)
    cluster.restart("dc1-1")
    cluster.run_until(lambda: is_closed_everywhere(cluster, old))
    assert cluster.are_equal()
    assert all(old not in [origin for _, origin in cluster.streams(node)] for node in cluster.nodes)


def test_a_lost_forget_heals() -> None:
    """A replica that missed that a closing is over is told again, and drops the stream."""
    cluster = Cluster().start().serving()
    cluster.put("dc1-1", b"k", b"v")
    old = cluster.nodes["dc1-1"].origin.packed()
    cluster.is_dropped = lambda s, r, m: isinstance(m, CloseForget) and r == "dc1-3"
    cluster.restart("dc1-1")
    cluster.run_until(lambda: is_closed(cluster, "dc1-1", old))
    assert not is_closed(cluster, "dc1-3", old)
    cluster.is_dropped = lambda s, r, m: False
    cluster.restart("dc1-1")
    cluster.run_until(lambda: not [o for _, o in cluster.streams("dc1-3") if o == old], 30 * SECOND)


def test_a_closer_that_crashed_before_it_remembered_still_ends() -> None:
    """The others have forgotten the closing, the closer's own note of that is lost: it comes to the same end."""
    cluster = Cluster().start().serving()
    cluster.put("dc1-1", b"k", b"v")
    old = cluster.nodes["dc1-1"].origin.packed()
    forgets: list[Any] = []

    def is_held(sender: str, receiver: str, message: object) -> bool:
        if isinstance(message, CloseForget):
            forgets.append(message)
            cluster.slow_disks.add("dc1-1")
        return False

    cluster.is_held = is_held
    cluster.restart("dc1-1")
    cluster.run_until(lambda: bool(forgets))
    cluster.run(100 * MS)
    cluster.is_held = lambda s, r, m: False
    cluster.slow_disks.clear()
    cluster.restart("dc1-1")
    assert not is_closed(cluster, "dc1-1", old)
    cluster.run_until(lambda: is_closed(cluster, "dc1-1", old), 30 * SECOND)


def test_numbers_that_nobody_holds_are_void_and_what_follows_is_kept() -> None:
    """Of two batches only the second reached an owner: the first's number is void, the second's record spreads."""
    cluster = Cluster().start().serving()
    old = cluster.nodes["dc1-1"].origin.packed()
    cluster.slow_disks.add("dc1-1")
    cluster.is_dropped = lambda s, r, m: isinstance(m, Replicate)
    cluster.write("dc1-1", {b"k": b"first"})
    cluster.is_dropped = lambda s, r, m: isinstance(m, Replicate) and r == "dc1-3"
    cluster.write("dc1-1", {b"k": b"second"})
    cluster.settle()
    cluster.slow_disks.clear()
    cluster.is_dropped = lambda s, r, m: False
    cluster.restart("dc1-1")
    cluster.run_until(lambda: is_closed_everywhere(cluster, old))
    assert cluster.are_equal()
    assert cluster.get("dc1-3", b"k").values == [b"second"]


def test_records_that_fill_a_closing_come_in_messages_of_bounded_size() -> None:
    """An owner that lacks more than one message can hold gets it in several."""
    cluster = Cluster(partitions=1).start().serving()
    cluster.admin("dc1-1", "namespace_create", name="large", value_bytes_max=1 << 20)
    cluster.cut("dc1-1", "dc1-3")
    cluster.cut("dc1-2", "dc1-3")
    for at in range(12):
        assert cluster.put("dc1-1", b"k%d" % at, bytes(900_000), namespace="large").outcomes == [Outcome.APPLIED]
    old = cluster.nodes["dc1-1"].origin.packed()
    for node in ("dc1-1", "dc1-2"):
        cluster.disks[node].room_bytes = 32 << 20
    cluster.crash("dc1-1")
    # Nobody may catch up by a feed: the closing alone brings it.
    cluster.nodes["dc1-3"].assembly.receiver.stated = lambda peer, frontiers: None  # type: ignore[method-assign]
    cluster.heal()
    cluster.start("dc1-1")
    cluster.run_until(lambda: is_closed_everywhere(cluster, old), 60 * SECOND)
    assert cluster.are_equal("large")
    assert max(len(m.records) for m in cluster.messages(CloseFill)) <= 2 << 20


def test_records_wanted_are_answered_in_messages_of_bounded_size() -> None:
    """Whoever asks for many large records gets as many as fit one message; it asks again for the rest."""
    cluster = Cluster(partitions=1).start().serving()
    cluster.admin("dc1-1", "namespace_create", name="large", value_bytes_max=1 << 20)
    for at in range(6):
        cluster.put("dc1-1", b"k%d" % at, bytes(900_000), namespace="large")
    (stream,) = cluster.streams("dc1-2", "large").values()
    wanted = RecordsWanted(1, stream.namespace, 0, stream.origin, list(range(1, 7)))
    cluster.give("dc1-2", Delivered("dc1-1", wanted))
    cluster.settle()
    (fill,) = cluster.messages(CloseFill)
    assert 900_000 < len(fill.records) <= 2 << 20


def test_a_deleted_namespace_does_not_hold_up_a_closing() -> None:
    """Streams of a namespace that was deleted before the closing are nobody's any more."""
    cluster = Cluster().start().serving()
    cluster.admin("dc1-1", "namespace_create", name="gone")
    cluster.run(SECOND)
    cluster.put("dc1-1", b"k", b"v", namespace="gone")
    old = cluster.nodes["dc1-1"].origin.packed()
    cluster.admin("dc1-1", "namespace_delete", name="gone")
    cluster.run(SECOND)
    cluster.restart("dc1-1")
    cluster.run_until(lambda: is_closed_everywhere(cluster, old))


def test_a_namespace_deleted_while_its_streams_are_being_closed_does_not_hold_up_the_closing() -> None:
    """An owner that has dropped the namespace takes none of its records; the closer stops bringing them."""
    cluster = Cluster().start().serving()
    cluster.admin("dc1-1", "namespace_create", name="gone")
    cluster.run(SECOND)
    old = cluster.nodes["dc1-1"].origin.packed()
    cluster.is_dropped = lambda s, r, m: isinstance(m, Replicate) and r == "dc1-3"
    cluster.put("dc1-1", b"k", b"v", namespace="gone")
    cluster.is_dropped = lambda s, r, m: isinstance(m, CloseFill | CellsPage)
    cluster.nodes["dc1-3"].assembly.receiver.stated = lambda peer, frontiers: None  # type: ignore[method-assign]
    cluster.restart("dc1-1")
    cluster.run(3 * SECOND)
    assert cluster.nodes["dc1-1"].runs[0].open_pairs
    cluster.admin("dc1-1", "namespace_delete", name="gone")
    cluster.is_dropped = lambda s, r, m: False
    cluster.run_until(lambda: is_closed_everywhere(cluster, old))


def test_a_closer_proposes_again_what_the_agreement_had_no_room_for() -> None:
    """With too much in flight a closing is put off, not forgotten."""
    cluster = Cluster().start().serving()
    cluster.put("dc1-1", b"k", b"v")
    old = cluster.nodes["dc1-1"].origin.packed()
    cluster.crash("dc1-1")
    cluster.start("dc1-1")
    definitions = cluster.nodes["dc1-1"].assembly.definitions
    refusals = 0
    real = definitions.propose

    def propose(items: dict[bytes, bytes]) -> int:
        nonlocal refusals
        if cluster.now_us < busy_until:
            refusals += 1
            raise Overloaded("too much is being agreed")
        return real(items)

    busy_until = cluster.now_us + SECOND
    definitions.propose = propose  # type: ignore[method-assign]
    cluster.run_until(lambda: is_closed_everywhere(cluster, old))
    assert refusals


def old_copy_after_acknowledged_writes(cluster: Cluster) -> None:
    """dc1-1 has acknowledged writes, and now runs from a copy of its disk that lacks them."""
    cluster.put("dc1-1", b"k", b"old")
    cluster.run(SECOND)
    copy = cluster.disks["dc1-1"].copy()
    for at in range(5):
        cluster.put("dc1-1", b"k", b"v%d" % at)
        cluster.run(300 * MS)
    cluster.run(SECOND)
    cluster.crash("dc1-1")
    cluster.disks["dc1-1"] = copy
    cluster.start("dc1-1")


def test_an_old_copy_of_a_disk_closes_nothing_and_serves_nobody() -> None:
    """Told that peers have seen more of it, a node proposes no end of its earlier streams."""
    cluster = Cluster().start().serving()
    old_copy_after_acknowledged_writes(cluster)
    cluster.run(8 * SECOND)
    node = cluster.nodes["dc1-1"]
    assert "its disk holds less" in node.is_refusing
    assert not node.assembly.closings.known
    assert not cluster.nodes["dc1-2"].assembly.closings.known
    assert cluster.put("dc1-1", b"k", b"x").outcomes == [Outcome.UNAVAILABLE]
    assert cluster.get("dc1-2", b"k").values == [b"v4"]


def test_an_old_copy_of_a_disk_has_no_voice_in_the_agreement() -> None:
    """It has forgotten what it accepted: it neither promises nor accepts, from its first moment on."""
    cluster = Cluster().start().serving()
    old_copy_after_acknowledged_writes(cluster)
    begun = len(cluster.sent)
    ballot = (1_000_000, "dc1-2")
    cluster.give("dc1-1", Delivered("dc1-2", Prepare(ballot, [b"close/x"])))
    cluster.run(8 * SECOND)
    cluster.give("dc1-1", Delivered("dc1-2", Accept(ballot, [b"close/x"], [b"1"])))
    cluster.settle()
    votes = [m for s, _, m in cluster.sent[begun:] if s == "dc1-1" and isinstance(m, (Promised, Accepted))]
    assert not votes


def test_an_old_copy_of_a_disk_changes_no_namespace() -> None:
    """Administration is refused, by name, as reads and writes are."""
    cluster = Cluster().start().serving()
    old_copy_after_acknowledged_writes(cluster)
    cluster.run(2 * SECOND)
    reply = cluster.admin("dc1-1", "namespace_create", name="carts")
    assert reply.outcome is Outcome.UNAVAILABLE
    assert "its disk holds less" in reply.message


def test_a_node_that_restarted_more_often_than_it_tells_is_not_taken_for_an_old_copy() -> None:
    """A peer that was away for hundreds of its runs judges its disk by the log's length, not by a list that was cut."""
    cluster = Cluster().start().serving()
    cluster.put("dc1-1", b"k", b"v")
    cluster.run(SECOND)
    run = cluster.nodes["dc1-1"].incarnation
    sequence = cluster.disks["dc1-1"].sequence
    closings = cluster.nodes["dc1-2"].assembly.closings
    assert closings.seen["dc1-1"][0] == run
    later = cluster.nodes["dc1-1"].origin._replace(incarnation=run + 300).packed()
    answers: list[Any] = []
    ask = CloseAsk(5, "dc1-1", later, [], [0], list(range(run + 45, run + 301)), sequence + 600)
    closings.asked("dc1-1", ask, answers.append)
    cluster.run(100 * MS)
    assert [answer.seen_more for answer in answers] == [""]
    forged = CloseAsk(6, "dc1-1", later, [], [0], [run + 300], sequence + 600)
    closings.asked("dc1-1", forged, answers.append)
    cluster.run(100 * MS)
    assert "does not know of" in answers[1].seen_more


def test_a_closing_of_another_node_before_this_one_started_is_refused() -> None:
    """`close_node` has to wait until this node knows about its own disk."""
    cluster = Cluster()
    cluster.slow_disks.add("dc1-1")
    cluster.start()
    reply = cluster.admin("dc1-1", "close_node", node="dc1-2")
    assert reply.outcome is Outcome.UNAVAILABLE
    cluster.slow_disks.clear()
    cluster.serving()
    assert cluster.nodes["dc1-1"].runs[0].node == "dc1-1"


def test_a_node_closed_while_alive_goes_on_as_a_new_run() -> None:
    """It promises, ends its incarnation, and nothing of the ended run leaves after that."""
    cluster = Cluster().start().serving()
    cluster.put("dc1-2", b"k", b"v")
    old = cluster.nodes["dc1-2"].origin.packed()
    cluster.admin("dc1-1", "close_node", node="dc1-2")
    cluster.run_until(lambda: bool(cluster.ended))
    assert cluster.ended[0][0] == "dc1-2"
    assert not cluster.after_end
    cluster.restart("dc1-2")
    cluster.run_until(lambda: is_closed_everywhere(cluster, old))
    assert cluster.put("dc1-2", b"k", b"w").outcomes == [Outcome.APPLIED]
    assert cluster.are_equal()


def test_nothing_leaves_after_the_end_of_a_run() -> None:
    """Callbacks that still stood in the last frame's list have no effect once the incarnation has ended."""
    cluster = Cluster().start().serving()
    cluster.put("dc1-2", b"k", b"u")
    cluster.slow_disks.add("dc1-2")
    cluster.admin("dc1-1", "close_node", node="dc1-2")
    cluster.settle()
    cluster.put("dc1-1", b"k", b"v")  # dc1-2 owes an acknowledgement, in a frame with the promise or behind it
    node = cluster.nodes["dc1-2"]
    cluster.slow_disks.clear()
    cluster.settle()
    assert [name for name, _ in cluster.ended] == ["dc1-2"]
    assert not cluster.after_end
    assert node.wake_at_us() is None


def test_a_refused_write_is_answered_ambiguous_and_never_applied_twice() -> None:
    """Records in flight when the owners promised are not acknowledged; what became of them is the closing's to say."""
    cluster = Cluster().start().serving()
    node = cluster.nodes["dc1-2"]
    for owner in ("dc1-1", "dc1-3"):
        ask = CloseAsk(9, "dc1-2", b"", [node.origin.packed()], list(range(8)), [], 0)
        cluster.give(owner, Delivered("dc1-1" if owner != "dc1-1" else "dc1-3", ask))
    cluster.settle()
    call = cluster.write("dc1-2", {b"k": b"v"})
    cluster.settle()
    assert cluster.reply("dc1-2", call).outcomes[0] in (Outcome.AMBIGUOUS, Outcome.PARTIAL)
    assert any(m.refused for m in cluster.messages(Replicated))
    assert cluster.ended


def test_the_item_of_a_closing_names_its_pair() -> None:
    """The agreement's item and the pair that it stands for are one to one."""
    pair = (b"dc\0node\0" + bytes(8), 513)
    assert closer.pair_of_item(closer.closing_item(*pair)) == pair


@pytest.mark.parametrize(
    ("has", "frontier", "beyond", "expected"),
    [
        (None, 2, {4}, [1, 2, 4]),
        ((1, [3]), 4, set(), [2, 4]),
        ((4, []), 4, {6}, [6]),
        ((2, [4, 6]), 2, {4, 6}, []),
    ],
)
def test_what_a_replica_lacks_of_what_all_have(
    has: tuple[int, list[int]] | None, frontier: int, beyond: set[int], expected: list[int]
) -> None:
    """The numbers up to the highest frontier and beyond it that one replica does not have."""
    held = None if has is None else closer.StreamHeld(1, 0, b"o", has[0], has[1], 1)
    assert list(closer.missing_of(held, frontier, beyond)) == expected


def test_a_promise_outlives_a_crash_and_a_flush() -> None:
    """What was promised is refused after a restart too, whether it is read from the log or from beside the tables."""
    cluster = Cluster(memtable_bytes=1).start().serving()
    cluster.put("dc1-1", b"k", b"v")
    origin = cluster.nodes["dc1-1"].origin.packed()
    ask = CloseAsk(9, "dc1-1", b"", [origin], list(range(8)), [], 0)
    cluster.give("dc1-2", Delivered("dc1-3", ask))
    cluster.settle()
    assert cluster.messages(CloseAnswer, "dc1-2")[-1].origins == [origin]
    for _ in range(2):
        cluster.restart("dc1-2")
        assert all(s.is_refused for (_, o), s in cluster.streams("dc1-2").items() if o == origin)
        assert cluster.nodes["dc1-2"].context.promised[origin] == set(range(8))
        cluster.put("dc1-3", b"other", b"v")
        cluster.run(100 * MS)
        assert cluster.disks["dc1-2"].is_flushed


def test_an_answer_leaves_only_after_the_promise_is_synced() -> None:
    """A slow disk holds the answer back; a crash before the sync leaves neither answer nor promise."""
    cluster = Cluster().start().serving()
    origin = cluster.nodes["dc1-1"].origin.packed()
    begun = len(cluster.messages(CloseAnswer, "dc1-2"))
    cluster.slow_disks.add("dc1-2")
    cluster.give("dc1-2", Delivered("dc1-3", CloseAsk(9, "dc1-1", b"", [origin], [0, 1], [], 0)))
    cluster.settle()
    assert len(cluster.messages(CloseAnswer, "dc1-2")) == begun
    cluster.slow_disks.clear()
    cluster.settle()
    assert len(cluster.messages(CloseAnswer, "dc1-2")) == begun + 1


def test_a_run_that_another_datacenter_alone_refuses_ends() -> None:
    """A closer that died after it had asked one remote owner leaves a promise there; the refused run gives way to a new one."""
    cluster = Cluster(datacenters=2).start().serving().run(SECOND)
    cluster.put("dc1-1", b"k", b"v")
    cluster.run(SECOND)
    origin = cluster.nodes["dc1-1"].origin.packed()
    for owner in ("dc2-1", "dc2-2", "dc2-3"):
        ask = CloseAsk(9, "dc1-1", b"", [origin], list(range(8)), [], 0)
        cluster.give(owner, Delivered("dc1-2", ask))
    cluster.settle()
    assert cluster.put("dc1-1", b"k", b"w").outcomes == [Outcome.APPLIED]
    cluster.run(SECOND)
    assert [name for name, _ in cluster.ended] == ["dc1-1"]
    cluster.restart("dc1-1")
    cluster.run_until(cluster.are_equal)
    assert cluster.get("dc2-2", b"k").values == [b"w"]


def test_an_owner_that_has_forgotten_a_closing_says_so_when_it_is_asked() -> None:
    """A closer that does not know yet that it is over hears it from every owner, in a word that it cannot miss."""
    cluster = Cluster().start().serving()
    cluster.put("dc1-1", b"k", b"v")
    old = cluster.nodes["dc1-1"].origin.packed()
    cluster.restart("dc1-1")
    cluster.run_until(lambda: is_closed_everywhere(cluster, old))
    answers: list[Any] = []
    ask = CloseAsk(5, "dc1-1", b"", [old], [0, 1], [], 0)
    cluster.nodes["dc1-2"].assembly.closings.asked("dc1-3", ask, answers.append)
    cluster.run(100 * MS)
    assert answers[0].closings == [(old, 0, b""), (old, 1, b"")]


def test_a_closer_that_was_overtaken_is_done() -> None:
    """Two closers at once, and one is faster by everything: the other finds all over and ends."""
    cluster = Cluster().start().serving()
    cluster.put("dc1-1", b"k", b"v")
    old = cluster.nodes["dc1-1"].origin.packed()
    cluster.crash("dc1-1")
    cluster.is_dropped = lambda s, r, m: isinstance(m, CloseAnswer) and r == "dc1-2" and s == "dc1-3"
    cluster.admin("dc1-2", "close_node", node="dc1-1")
    cluster.start("dc1-1")
    cluster.run_until(lambda: is_closed_everywhere(cluster, old))
    cluster.is_dropped = lambda s, r, m: False
    cluster.run_until(lambda: all(run.is_done for run in cluster.nodes["dc1-2"].runs))


def test_a_run_that_one_owner_alone_refuses_ends() -> None:
    """Also where that owner gets its records from a co-owner only: whoever holds a promise against a live run tells it."""
    for partition in range(4):
        cluster = Cluster(datacenters=2, partitions=4).start().serving().run(SECOND)
        receiver = cluster.nodes["dc2-1"].assembly.placement.owners[partition][0]
        owner = next(name for name in ("dc2-1", "dc2-2", "dc2-3") if name != receiver)
        origin = cluster.nodes["dc1-1"].origin.packed()
        cluster.give(owner, Delivered("dc1-2", CloseAsk(9, "dc1-1", b"", [origin], list(range(4)), [], 0)))
        cluster.settle()
        call = cluster.write("dc1-1", {b"k%d" % at: b"w" for at in range(20)})
        cluster.settle()
        assert cluster.reply("dc1-1", call).outcomes == [Outcome.APPLIED] * 20
        cluster.run_until(lambda cluster=cluster: bool(cluster.ended))
        assert cluster.ended[0][0] == "dc1-1"
        cluster.restart("dc1-1")
        cluster.run_until(cluster.are_equal)


def test_what_the_closer_has_and_its_log_no_longer_holds_is_passed_on() -> None:
    """A record that one owner lacks comes to it from the other's log, through the closer, and is not asked for all the time."""
    cluster = Cluster(partitions=1).start().serving()
    cluster.is_dropped = lambda s, r, m: isinstance(m, Replicate) and r == "dc1-3"
    assert cluster.put("dc1-1", b"k", b"v").outcomes == [Outcome.APPLIED]
    old = cluster.nodes["dc1-1"].origin.packed()
    cluster.crash("dc1-1")
    cluster.is_dropped = lambda s, r, m: False
    cluster.is_held = lambda s, r, m: isinstance(m, CloseAnswer)
    cluster.start("dc1-1")
    cluster.settle()
    for stream in cluster.streams("dc1-1").values():
        stream.drop_places(1 << 20)
    cluster.release()
    cluster.run_until(lambda: is_closed_everywhere(cluster, old))
    assert cluster.are_equal()
    assert len(cluster.messages(RecordsWanted)) <= 2
    assert 1 <= len(cluster.messages(CloseFill, "dc1-1", "dc1-3")) <= 2


def test_a_closer_with_an_old_picture_of_what_the_others_hold_gets_a_new_one() -> None:
    """An answer was lost while all logs were trimmed: who is asked for a record says that it has it no more."""
    cluster = Cluster(datacenters=2, partitions=1, memtable_bytes=1500)
    for disk in cluster.disks.values():
        disk.segment_bytes = 2000
    cluster.start().serving().run(2 * SECOND)
    cluster.is_dropped = lambda s, r, m: isinstance(m, Replicate) and r in ("dc1-3", "dc2-2")
    assert cluster.put("dc1-1", b"b", b"v").outcomes == [Outcome.APPLIED]
    cluster.run(100 * MS)
    old = cluster.nodes["dc1-1"].origin.packed()
    cluster.crash("dc1-1")
    cluster.is_dropped = lambda s, r, m: isinstance(m, CloseFilled) and s == "dc1-3"
    cluster.start("dc1-1").serving()
    for at in range(80):
        cluster.write(f"dc1-{2 + at % 2}", {b"x%d" % at: bytes(100)})
        cluster.write("dc1-1", {b"y%d" % at: bytes(100)})
        cluster.run(100 * MS)
    cluster.is_dropped = lambda s, r, m: False
    cluster.run_until(lambda: is_closed_everywhere(cluster, old), 30 * SECOND)
    cluster.run_until(cluster.are_equal)
    assert cluster.nodes["dc1-1"].runs[0].waiting == ""


@pytest.mark.parametrize("bad", ["dc1-1", "dc1-2"])
def test_a_log_that_cannot_be_read_does_not_hold_up_a_closing_that_others_can_fill(bad: str) -> None:
    """The closer's own log, or the first owner's, has a bad place: the record comes from another one."""
    cluster = Cluster(partitions=1).start().serving()
    cluster.put("dc1-1", b"a", b"v", Consistency.ALL)
    cluster.run(2 * SECOND)
    old = cluster.nodes["dc1-1"].origin.packed()
    if bad == "dc1-1":
        cluster.is_dropped = lambda s, r, m: isinstance(m, Replicate) and r == "dc1-3"
        cluster.put("dc1-1", b"b", b"v")
    else:
        cluster.slow_disks.add("dc1-1")
        cluster.write("dc1-1", {b"b": b"v"})
        cluster.settle()
    cluster.crash("dc1-1")
    cluster.slow_disks.clear()
    cluster.is_dropped = lambda s, r, m: False
    cluster.disks[bad].read = lambda places: None  # type: ignore[method-assign]
    cluster.start("dc1-1")
    cluster.run_until(lambda: is_closed_everywhere(cluster, old), 30 * SECOND)
    cluster.run_until(cluster.are_equal)
    assert all(b"b" in cluster.cells(name) for name in cluster.names)

"""Read coordination: levels, digests, repair, silent and dying replicas, and what a replica may show."""

from __future__ import annotations

import pytest

from geokv.core.quorum import Consistency
from geokv.protocol.messages import CellsRead, ReadCells, Replicate
from geokv.protocol.requests import Outcome, ReadBatch
from tests.node.harness import MS, SECOND, Cluster


def one_dc() -> Cluster:
    return Cluster().start().serving()


def with_a_stale_replica(stale: str = "dc1-3") -> Cluster:
    """Key k: old on one replica, new on the two others, and nobody catches up."""
    cluster = one_dc()
    cluster.put("dc1-1", b"k", b"old", Consistency.ALL)
    cluster.is_dropped = lambda s, r, m: isinstance(m, Replicate) and r == stale
    for node in cluster.nodes.values():
        node.assembly.receiver.stated = lambda peer, frontiers: None  # type: ignore[method-assign]
    cluster.put("dc1-1" if stale != "dc1-1" else "dc1-2", b"k", b"new")
    cluster.run(7 * SECOND)
    cluster.is_dropped = lambda s, r, m: False
    return cluster


def test_a_quorum_read_sees_every_write_acknowledged_before_it() -> None:
    """Through every coordinator, also the stale one, the newest acknowledged value is read."""
    for reader in ("dc1-1", "dc1-2", "dc1-3"):
        cluster = with_a_stale_replica()
        reply = cluster.get(reader, b"k")
        assert (reply.values, reply.outcomes, reply.replicas) == ([b"new"], [Outcome.APPLIED], [2])


def test_a_read_at_one_tells_what_this_replica_has() -> None:
    """ONE asks nobody else: a stale replica answers with its own cell."""
    cluster = with_a_stale_replica()
    begun = len(cluster.messages(ReadCells))
    assert cluster.get("dc1-3", b"k", Consistency.ONE).values == [b"old"]
    assert len(cluster.messages(ReadCells)) == begun


def test_a_stale_replica_that_was_asked_is_repaired_after_the_reply() -> None:
    """Read repair carries the cell as it is."""
    cluster = with_a_stale_replica()
    cluster.get("dc1-1", b"k", Consistency.ALL)
    cluster.run(100 * MS)
    assert cluster.are_equal()
    assert cluster.notes["read.repaired"] == 1


def test_a_stale_coordinator_repairs_itself() -> None:
    """What the others know better is taken in by the coordinator, too."""
    cluster = with_a_stale_replica("dc1-1")
    assert cluster.get("dc1-1", b"k").values == [b"new"]
    cluster.run(100 * MS)
    assert cluster.are_equal()


def test_repair_before_answers_only_what_a_quorum_holds() -> None:
    """A value that one replica alone has is on a quorum's disks before it is returned."""
    cluster = one_dc()
    cluster.is_dropped = lambda s, r, m: isinstance(m, Replicate)
    assert cluster.put("dc1-1", b"k", b"v", timeout_ms=300).outcomes == [Outcome.PARTIAL]
    cluster.run(7 * SECOND)
    cluster.is_dropped = lambda s, r, m: False
    for node in cluster.nodes.values():
        node.assembly.receiver.stated = lambda peer, frontiers: None  # type: ignore[method-assign]
    holders_before = [name for name in cluster.names if b"k" in cluster.cells(name)]
    cluster.slow_disks |= {"dc1-2", "dc1-3"}
    call = cluster.ask("dc1-1", ReadBatch("default", [b"k"], repair_before=True))
    cluster.run(300 * MS)
    if holders_before == ["dc1-1"]:
        assert cluster.reply("dc1-1", call) is None
    cluster.slow_disks.clear()
    cluster.run(300 * MS)
    assert cluster.reply("dc1-1", call).values == [b"v"]
    assert sum(b"k" in cluster.cells(name) for name in cluster.names) >= 2


def test_a_repair_that_is_never_acknowledged_is_not_kept_for_ever() -> None:
    """A read whose replica died while it was repaired ends at its deadline and leaves nothing behind."""
    cluster = with_a_stale_replica()
    cluster.is_dropped = lambda s, r, m: isinstance(m, Replicate)
    reply = cluster.get("dc1-1", b"k", Consistency.ALL, repair_before=True, timeout_ms=1000)
    assert reply.outcomes == [Outcome.UNAVAILABLE]
    cluster.crash("dc1-3")
    cluster.run(10 * SECOND)
    assert len(cluster.nodes["dc1-1"].assembly.replication) == 0
    assert cluster.nodes["dc1-1"].assembly.read.calls == 0


def test_a_silent_replica_is_replaced_by_another() -> None:
    """A replica that does not answer costs a moment, not the read."""
    cluster = one_dc()
    cluster.put("dc1-1", b"k", b"v", Consistency.ALL)
    silent = []

    def is_dropped(sender: str, receiver: str, message: object) -> bool:
        if isinstance(message, ReadCells) and (not silent or receiver in silent):
            silent[:] = [receiver]
            return True
        return False

    cluster.is_dropped = is_dropped
    begun_us = cluster.now_us
    assert cluster.get("dc1-1", b"k").values == [b"v"]
    assert cluster.now_us - begun_us < 500 * MS
    assert cluster.notes["read.asked_more"] >= 1


def test_a_replica_that_dies_between_its_digest_and_its_cells_is_replaced() -> None:
    """The read goes on with the third replica instead of waiting for its deadline."""
    cluster = with_a_stale_replica("dc1-1")
    died = []

    def is_dropped(sender: str, receiver: str, message: object) -> bool:
        if isinstance(message, ReadCells) and not message.digests and not died:
            died.append(receiver)
        return bool(died) and receiver in died

    cluster.is_dropped = is_dropped
    call = cluster.ask("dc1-1", ReadBatch("default", [b"k"], timeout_ms=5_000))
    cluster.settle()
    assert died
    cluster.crash(died[0])
    cluster.run(500 * MS)
    reply = cluster.reply("dc1-1", call)
    assert reply is not None
    assert (reply.outcomes, reply.values) == ([Outcome.APPLIED], [b"new"])


def test_a_replica_that_goes_silent_between_its_digest_and_its_cells_is_replaced() -> None:
    """No connection breaks and no cells come: a third replica's answer is enough."""
    cluster = with_a_stale_replica("dc1-1")
    silent: list[str] = []

    def is_dropped(sender: str, receiver: str, message: object) -> bool:
        if isinstance(message, ReadCells) and not message.digests and not silent:
            silent.append(receiver)
        return isinstance(message, ReadCells) and receiver in silent

    cluster.is_dropped = is_dropped
    begun_us = cluster.now_us
    assert cluster.get("dc1-1", b"k").values == [b"new"]
    assert cluster.now_us - begun_us < SECOND


def test_a_replica_that_answers_with_an_error_is_replaced_at_once() -> None:
    """A replica that refuses (it has just started) does not hold up the read."""
    cluster = one_dc()
    cluster.put("dc1-1", b"k", b"v", Consistency.ALL)
    refusing = []

    def is_dropped(sender: str, receiver: str, message: object) -> bool:
        if isinstance(message, CellsRead) and (not refusing or sender in refusing):
            refusing[:] = [sender]
            message.error, message.digests = "just started", b""
        return False

    cluster.is_dropped = is_dropped
    call = cluster.ask("dc1-1", ReadBatch("default", [b"k"]))
    cluster.settle()
    assert cluster.reply("dc1-1", call).values == [b"v"]


def test_too_few_replicas_is_unavailable_with_the_numbers() -> None:
    """What is needed and what is live stands in the answer, at once."""
    cluster = one_dc()
    cluster.crash("dc1-2")
    cluster.crash("dc1-3")
    reply = cluster.get("dc1-1", b"k")
    assert reply.outcomes == [Outcome.UNAVAILABLE]
    assert (reply.details[0].required, reply.details[0].achieved) == (2, 1)


def test_nobody_answers_in_time_is_unavailable() -> None:
    """At the deadline the read says how many have answered."""
    cluster = one_dc()
    cluster.is_dropped = lambda s, r, m: isinstance(m, ReadCells)
    reply = cluster.get("dc1-1", b"k", timeout_ms=600)
    assert reply.outcomes == [Outcome.UNAVAILABLE]
    assert "1 of 2" in reply.details[0].message
    assert reply.elapsed_us <= 600 * MS


def test_a_replica_never_shows_what_it_has_not_synced() -> None:
    """A read of a key that is on its way to the disk waits for that sync."""
    cluster = one_dc()
    cluster.put("dc1-1", b"k", b"old", Consistency.ALL)
    cluster.slow_disks.add("dc1-1")
    cluster.write("dc1-1", {b"k": b"new"})
    call = cluster.ask("dc1-1", ReadBatch("default", [b"k"], Consistency.ONE))
    other = cluster.ask("dc1-1", ReadBatch("default", [b"absent"], Consistency.ONE))
    cluster.settle()
    assert cluster.reply("dc1-1", call) is None
    assert cluster.reply("dc1-1", other).values == [None]
    cluster.slow_disks.clear()
    cluster.settle()
    assert cluster.reply("dc1-1", call).values == [b"new"]


def test_a_read_that_waits_for_a_sync_ends_at_its_deadline() -> None:
    """A disk that does not come back does not hold the caller."""
    cluster = one_dc()
    cluster.slow_disks.add("dc1-1")
    cluster.write("dc1-1", {b"k": b"new"})
    reply = cluster.get("dc1-1", b"k", Consistency.ONE, timeout_ms=500)
    assert reply.outcomes == [Outcome.UNAVAILABLE]


def test_many_large_cells_that_differ_come_in_several_answers() -> None:
    """A stale replica is read with a whole batch of large values: no answer is too large, and all that fits is found."""
    cluster = Cluster(partitions=1).start().serving()
    for name in cluster.names:
        cluster.room(name, 1 << 30)
    keys = [b"k%03d" % at for at in range(900)]
    for node in cluster.nodes.values():
        node.assembly.receiver.stated = lambda peer, frontiers: None  # type: ignore[method-assign]
    cluster.is_dropped = lambda s, r, m: isinstance(m, Replicate) and r == "dc1-3"
    for at in range(0, 900, 100):
        call = cluster.write("dc1-1", {key: key * 2000 for key in keys[at : at + 100]})
        cluster.settle()
        assert set(cluster.reply("dc1-1", call).outcomes) == {Outcome.APPLIED}
    cluster.run(7 * SECOND)
    begun = len(cluster.messages(CellsRead))
    call = cluster.ask("dc1-3", ReadBatch("default", keys))
    cluster.run(SECOND)
    reply = cluster.reply("dc1-3", call)
    assert reply is not None
    held = [key * 2000 if outcome == Outcome.APPLIED else None for key, outcome in zip(keys, reply.outcomes, strict=True)]
    assert reply.values == held
    assert set(reply.outcomes) == {Outcome.APPLIED, Outcome.ASK_AGAIN}
    assert 4_180_000 < sum(len(value) for value in reply.values if value) <= 4 << 20
    sizes = [sum(map(len, m.cells)) for m in cluster.messages(CellsRead)[begun:]]
    assert max(sizes) <= 4 << 20


def test_doubled_answers_change_nothing() -> None:
    """Every answer comes twice; the cells belong to the keys that were asked."""
    cluster = with_a_stale_replica("dc1-1")
    cluster.is_doubled = lambda s, r, m: isinstance(m, (ReadCells, CellsRead))
    call = cluster.ask("dc1-1", ReadBatch("default", [b"absent", b"k", b"other"]))
    cluster.run(200 * MS)
    reply = cluster.reply("dc1-1", call)
    assert reply.values == [None, b"new", None]
    assert reply.versions[0] == reply.versions[2] == 0


def test_absent_deleted_expired_and_empty_are_told_apart() -> None:
    """Absent has version 0; a tombstone and an expired value have a version and no value; empty is a value."""
    cluster = one_dc()
    cluster.put("dc1-1", b"empty", b"")
    cluster.put("dc1-1", b"deleted", b"v")
    cluster.put("dc1-1", b"deleted", None)
    cluster.put("dc1-1", b"expired", b"v", ttl_ms=100)
    assert cluster.get("dc1-2", b"expired").values == [b"v"]
    cluster.run(SECOND)
    call = cluster.ask("dc1-2", ReadBatch("default", [b"absent", b"empty", b"deleted", b"expired"]))
    cluster.settle()
    reply = cluster.reply("dc1-2", call)
    assert reply.values == [None, b"", None, None]
    assert [version > 0 for version in reply.versions] == [False, True, True, True]


@pytest.mark.parametrize(
    ("batch", "outcome", "words"),
    [
        (ReadBatch("nowhere", [b"k"]), Outcome.NOT_FOUND, "create it"),
        (ReadBatch("default", [b"k"], Consistency.EACH_QUORUM), Outcome.INVALID, "level of writes"),
        (ReadBatch("default", [b""]), Outcome.INVALID, "key of 0 bytes"),
        (ReadBatch("default", [b"k"], r=4), Outcome.INVALID, "needs 4 replicas"),
        (ReadBatch("default", [b"k"], timeout_ms=0), Outcome.INVALID, "timeout"),
        (ReadBatch("default", [b"k"] * 1025), Outcome.INVALID, "1024"),
    ],
)
def test_bad_requests_say_what_to_change(batch: ReadBatch, outcome: Outcome, words: str) -> None:
    """The message names the limit or the way out."""
    cluster = one_dc()
    call = cluster.ask("dc1-1", batch)
    cluster.settle()
    reply = cluster.reply("dc1-1", call)
    assert set(reply.outcomes) == {outcome}
    assert words in reply.details[0].message


def test_explicit_r_asks_that_many() -> None:
    """r=3 reads all three, r=1 one, whatever the level says."""
    cluster = one_dc()
    cluster.put("dc1-1", b"k", b"v", Consistency.ALL)
    assert cluster.get("dc1-1", b"k", Consistency.ONE, r=3).replicas == [3]
    assert cluster.get("dc1-1", b"k", Consistency.ALL, r=1).replicas == [1]

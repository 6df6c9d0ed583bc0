"""Write coordination: every outcome, what it says, and that it is true."""

from __future__ import annotations

import pytest

from geokv.core.cell import decode_lww, is_concurrent, lww_version
from geokv.core.hlc import hlc_ms
from geokv.core.limits import BATCH_ITEMS_MAX, PENDING_PARTS_MAX, TIMEOUT_MS_MAX
from geokv.core.quorum import Consistency
from geokv.core.record import decode_records
from geokv.protocol.effects import Delivered, PersistFailed
from geokv.protocol.messages import Forward, Replicate, Replicated
from geokv.protocol.requests import Outcome, WriteBatch
from tests.node.harness import MS, SECOND, Cluster


def one_dc() -> Cluster:
    return Cluster().start().serving()


def test_a_write_is_answered_only_when_the_own_log_has_it() -> None:
    """Two acknowledgements of co-owners do not make a quorum without the coordinator's own sync."""
    cluster = one_dc()
    cluster.slow_disks.add("dc1-1")
    call = cluster.write("dc1-1", {b"k": b"v"})
    cluster.run(100 * MS)
    assert len(cluster.messages(Replicated)) >= 2
    assert cluster.reply("dc1-1", call) is None
    cluster.slow_disks.clear()
    cluster.settle()
    assert cluster.reply("dc1-1", call).outcomes == [Outcome.APPLIED]


def test_a_write_is_answered_only_when_a_quorum_has_synced_it() -> None:
    """The coordinator's sync alone is not QUORUM; one co-owner's sync makes it so."""
    cluster = one_dc()
    cluster.slow_disks |= {"dc1-2", "dc1-3"}
    call = cluster.write("dc1-1", {b"k": b"v"})
    cluster.run(100 * MS)
    assert cluster.reply("dc1-1", call) is None
    cluster.slow_disks.discard("dc1-3")
    cluster.settle()
    reply = cluster.reply("dc1-1", call)
    assert reply.outcomes == [Outcome.APPLIED]
    assert reply.replicas == [2]
    assert reply.coordinator == "dc1-1"


@pytest.mark.parametrize(
    ("level", "w", "replicas"),
    [
        (Consistency.ONE, 0, 1),
        (Consistency.TWO, 0, 2),
        (Consistency.QUORUM, 0, 2),
        (Consistency.ALL, 0, 3),
        (Consistency.ONE, 3, 3),
    ],
)
def test_each_level_waits_for_its_replicas(level: Consistency, w: int, replicas: int) -> None:
    """The answer comes with the replica that the level asks for, and not before."""
    cluster = one_dc()
    cluster.slow_disks |= {"dc1-1", "dc1-2", "dc1-3"}
    call = cluster.write("dc1-1", {b"k": b"v"}, level, w=w)
    cluster.settle()
    for at, name in enumerate(("dc1-1", "dc1-2", "dc1-3")):
        assert (cluster.reply("dc1-1", call) is not None) == (at >= replicas)
        while name in cluster.persisting:
            cluster.sync(name)
        cluster.settle()
    assert cluster.reply("dc1-1", call).replicas == [replicas]


def test_unreachable_level_is_refused_before_anything_is_numbered() -> None:
    """UNAVAILABLE with what is needed and what is live; no record exists."""
    cluster = one_dc()
    cluster.crash("dc1-2")
    cluster.crash("dc1-3")
    reply = cluster.put("dc1-1", b"k", b"v")
    assert reply.outcomes == [Outcome.UNAVAILABLE]
    assert (reply.details[0].required, reply.details[0].achieved) == (2, 1)
    assert not cluster.streams("dc1-1")
    assert cluster.put("dc1-1", b"k", b"v", Consistency.ONE).outcomes == [Outcome.APPLIED]


def test_too_few_answers_is_partial_and_says_who_has_it() -> None:
    """At the deadline the replicas that said so are named; the write may still spread."""
    cluster = one_dc()
    cluster.is_dropped = lambda s, r, m: isinstance(m, Replicate)
    reply = cluster.put("dc1-1", b"k", b"v", timeout_ms=1000)
    assert reply.outcomes == [Outcome.PARTIAL]
    detail = reply.details[0]
    assert (detail.required, detail.achieved, detail.replicas) == (2, 1, ("dc1-1",))
    assert "deadline" in detail.message
    cluster.is_dropped = lambda s, r, m: False
    cluster.run(5 * SECOND)
    assert cluster.are_equal()


def test_nobody_knows_is_ambiguous() -> None:
    """No sync was told before the deadline, not even the own one: the outcome says that nobody knows."""
    cluster = one_dc()
    cluster.slow_disks |= set(cluster.names)
    reply = cluster.put("dc1-1", b"k", b"v", timeout_ms=500)
    assert reply.outcomes == [Outcome.AMBIGUOUS]
    assert reply.elapsed_us <= 500 * MS


def test_a_failed_sync_ends_the_run_and_answers_ambiguous() -> None:
    """What was in progress when the log failed is neither applied nor refused."""
    cluster = one_dc()
    cluster.slow_disks.add("dc1-1")
    call = cluster.write("dc1-1", {b"k": b"v"})
    cluster.is_dropped = lambda s, r, m: isinstance(m, Replicated)
    token = cluster.persisting.pop("dc1-1").token
    cluster.give("dc1-1", PersistFailed(token, "EIO"))
    assert cluster.reply("dc1-1", call).outcomes == [Outcome.AMBIGUOUS]
    assert [name for name, _ in cluster.ended] == ["dc1-1"]


def test_a_coordinator_that_is_behind_stamps_again_above_what_a_replica_holds() -> None:
    """A replica knows a newer version: the write is stamped once more, and wins."""
    cluster = one_dc()
    cluster.wall_offset_us["dc1-2"] = 30 * SECOND
    cluster.run(SECOND)
    cluster.is_dropped = lambda s, r, m: isinstance(m, Replicate) and r == "dc1-1"
    first = cluster.put("dc1-2", b"k", b"ahead")
    clock = cluster.nodes["dc1-1"].context.clock
    clock.last = cluster.wall_us("dc1-1") // 1000 << 16  # as if it had not been told
    second = cluster.put("dc1-1", b"k", b"behind")
    assert second.outcomes == [Outcome.APPLIED]
    assert second.versions[0] > first.versions[0]
    assert cluster.notes["write.stamped_again"] == 1
    cluster.is_dropped = lambda s, r, m: False
    cluster.run(8 * SECOND)
    assert cluster.are_equal()
    assert cluster.get("dc1-3", b"k").values == [b"behind"]


def test_a_put_that_was_deleted_while_it_was_under_way_does_not_come_back() -> None:
    """The delete held it; the put hears of the tombstone from a replica, and is not stamped above it."""
    cluster = one_dc()
    cluster.is_held = lambda s, r, m: isinstance(m, Replicate) and (s, r) == ("dc1-1", "dc1-3")
    cluster.is_dropped = lambda s, r, m: isinstance(m, Replicated) and (s, r) == ("dc1-2", "dc1-1")
    call = cluster.write("dc1-1", {b"k": b"v", b"other": b"v"})
    cluster.settle()
    assert cluster.get("dc1-2", b"k", Consistency.ONE).values == [b"v"]
    assert cluster.put("dc1-2", b"k", None).outcomes == [Outcome.APPLIED]
    cluster.release()
    cluster.run_until(lambda: cluster.reply("dc1-1", call) is not None)
    assert cluster.reply("dc1-1", call).outcomes == [Outcome.SUPERSEDED, Outcome.APPLIED]
    assert [cluster.get(node, b"k").values for node in cluster.names] == [[None]] * 3
    assert "write.stamped_again" not in cluster.notes


def test_losing_twice_is_superseded() -> None:
    """A replica holds a newer version again at the second attempt: the outcome says that the write lost."""
    cluster = one_dc()

    def newer(sender: str, receiver: str, message: object) -> bool:
        if isinstance(message, Replicated) and receiver == "dc1-1":
            message.newer = [(0, 1 << 62)]
        return False

    cluster.is_dropped = newer
    reply = cluster.put("dc1-1", b"k", b"v")
    assert reply.outcomes == [Outcome.SUPERSEDED]
    assert cluster.notes["write.stamped_again"] == 1


def test_only_the_operation_that_lost_is_written_again() -> None:
    """Of a batch of three the two others keep their first version, and every operation has its own outcome."""
    cluster = Cluster(partitions=1).start().serving()
    lost = []

    def newer(sender: str, receiver: str, message: object) -> bool:
        if isinstance(message, Replicated) and receiver == "dc1-1" and len(lost) < 2:
            lost.append(message)
            message.newer = [(1, 1 << 62)]
        return False

    cluster.is_dropped = newer
    call = cluster.write("dc1-1", {b"a": b"1", b"b": b"2", b"c": b"3"})
    cluster.run(100 * MS)
    reply = cluster.reply("dc1-1", call)
    assert reply.outcomes == [Outcome.APPLIED] * 3
    assert reply.versions[1] == (1 << 62) + 1
    (stream,) = cluster.streams("dc1-1").values()
    assert stream.frontier == 4


def test_a_second_attempt_reserves_what_it_writes() -> None:
    """A large value that lost is not stamped again where the log has no room for it: it lost, and the log did not fail."""
    cluster = Cluster(partitions=1).start().serving()
    cluster.admin("dc1-1", "namespace_create", name="large", value_bytes_max=1 << 20)
    cluster.run(SECOND)
    large = bytes(800_000)

    def newer(sender: str, receiver: str, message: object) -> bool:
        if isinstance(message, Replicated) and receiver == "dc1-1":
            message.newer = [(0, 1 << 60)]
        return False

    cluster.is_dropped = newer
    cluster.slow_disks.add("dc1-1")
    call = cluster.write("dc1-1", {b"k": large}, namespace="large")
    cluster.disks["dc1-1"].room_bytes = 1_100_000
    cluster.slow_disks.clear()
    cluster.run(300 * MS)
    reply = cluster.reply("dc1-1", call)
    assert reply.outcomes == [Outcome.SUPERSEDED]
    assert cluster.disks["dc1-1"].room_bytes > 0


def test_the_word_that_a_write_lost_survives_a_lost_acknowledgement() -> None:
    """A replica that is asked a second time says again that it holds a newer version."""
    cluster = one_dc()
    cluster.wall_offset_us["dc1-2"] = 30 * SECOND
    cluster.run(SECOND)
    cluster.is_dropped = lambda s, r, m: isinstance(m, Replicate) and r != "dc1-2"
    cluster.put("dc1-2", b"k", b"ahead", Consistency.ONE)
    cluster.nodes["dc1-1"].context.clock.last = cluster.wall_us("dc1-1") // 1000 << 16
    cluster.is_dropped = lambda s, r, m: (
        (isinstance(m, Replicate) and s == "dc1-1" and r == "dc1-3") or (isinstance(m, Replicated) and s == "dc1-2")
    )
    call = cluster.write("dc1-1", {b"k": b"behind"})
    cluster.run(100 * MS)
    cluster.is_dropped = lambda s, r, m: isinstance(m, Replicate) and r == "dc1-3"
    cluster.run_until(lambda: cluster.reply("dc1-1", call) is not None)
    assert cluster.notes["write.stamped_again"] == 1


def test_each_quorum_waits_for_the_other_datacenter_and_pending_names_it() -> None:
    """Past the deadline the reply says written here, pending there; with the other DC back the next one is applied."""
    cluster = Cluster(datacenters=2).start().serving().run(SECOND)
    cluster.cut_apart()
    reply = cluster.put("dc1-1", b"k", b"v", Consistency.EACH_QUORUM, timeout_ms=1000)
    assert reply.outcomes == [Outcome.PENDING]
    assert reply.dcs == [1]
    assert "dc2" in reply.details[0].message
    assert not cluster.nodes["dc1-1"].assembly.write._awaiting_dcs, "nobody waits any more, nothing is kept"
    cluster.heal()
    reply = cluster.put("dc1-1", b"k", b"w", Consistency.EACH_QUORUM)
    assert reply.outcomes == [Outcome.APPLIED]
    assert reply.dcs == [2]


def test_replicated_to_counts_datacenters() -> None:
    """`replicated_to=2` of three is met by whichever other datacenter comes first."""
    cluster = Cluster(datacenters=3, nodes=1, replicas=1).start().serving().run(SECOND)
    cluster.cut("dc1-1", "dc2-1")
    reply = cluster.put("dc1-1", b"k", b"v", Consistency.ONE, replicated_to=2)
    assert reply.outcomes == [Outcome.APPLIED]
    assert reply.dcs == [2]
    assert cluster.put("dc1-1", b"k", b"v", Consistency.ONE, replicated_to=4).outcomes == [Outcome.INVALID]


def test_a_datacenter_counts_only_when_a_quorum_of_it_has_the_write() -> None:
    """EACH_QUORUM is not met while the receiving node alone has synced the record."""
    cluster = Cluster(datacenters=2).start().serving().run(SECOND)
    cluster.is_dropped = lambda s, r, m: isinstance(m, Replicate) and s.startswith("dc2")
    call = cluster.write("dc1-1", {b"k": b"v"}, Consistency.EACH_QUORUM, timeout_ms=30_000)
    cluster.run(350 * MS)
    assert sum(b"k" in cluster.cells(name) for name in cluster.names if name.startswith("dc2")) == 1
    assert cluster.reply("dc1-1", call) is None
    cluster.run(10 * SECOND)  # catching up inside dc2 brings it, and the frontiers tell of it
    assert cluster.reply("dc1-1", call).outcomes == [Outcome.APPLIED]


def test_the_next_put_of_a_client_wins_through_another_coordinator_with_a_slow_clock() -> None:
    """The highest HLC that the client was told moves the second coordinator's clock before it stamps."""
    cluster = one_dc()
    cluster.wall_offset_us["dc1-1"] = 20 * SECOND
    cluster.run(SECOND)
    cluster.is_dropped = lambda s, r, m: type(m).__name__ == "Statement" or (isinstance(m, Replicate) and r == "dc1-2")
    first = cluster.put("dc1-1", b"k", b"first")
    second = cluster.put("dc1-2", b"k", b"second", Consistency.ONE, seen_hlc=first.hlc)
    assert second.versions[0] > first.versions[0]
    cluster.is_dropped = lambda s, r, m: False
    cluster.run(8 * SECOND)
    assert cluster.get("dc1-3", b"k").values == [b"second"]


def test_a_seen_hlc_beyond_the_drift_limit_does_not_drag_the_clock() -> None:
    """A stamp from far in the future is not followed."""
    cluster = one_dc()
    reply = cluster.put("dc1-1", b"k", b"v", seen_hlc=(cluster.wall_us("dc1-1") // 1000 + 3_600_000) << 16)
    assert hlc_ms(reply.versions[0]) - cluster.wall_us("dc1-1") // 1000 < 1000
    assert cluster.nodes["dc1-1"].metrics()["clock.refused"] == 1


def test_nothing_is_stamped_above_the_durable_bound() -> None:
    """Whatever moves the clock forward, no record leaves before the bound above its stamp is synced."""
    cluster = one_dc()
    cluster.run(SECOND)
    cluster.slow_disks.add("dc1-1")
    ahead = (cluster.wall_us("dc1-1") // 1000 + 50_000) << 16
    begun = len(cluster.sent)
    call = cluster.write("dc1-1", {b"k": b"v"}, seen_hlc=ahead)
    cluster.settle()
    assert not [m for s, _, m in cluster.sent[begun:] if isinstance(m, Replicate) and s == "dc1-1"]
    cluster.slow_disks.clear()
    cluster.run(100 * MS)
    assert cluster.reply("dc1-1", call).outcomes == [Outcome.APPLIED]
    assert cluster.reply("dc1-1", call).versions[0] > ahead


def test_the_clock_does_not_run_backwards_across_a_power_cut() -> None:
    """A record that only the co-owners have synced carries a stamp below everything that the next run stamps."""
    cluster = one_dc()
    cluster.run(SECOND)
    ahead = (cluster.wall_us("dc1-1") // 1000 + 50_000) << 16
    cluster.put("dc1-1", b"other", b"v", seen_hlc=ahead)
    cluster.slow_disks.add("dc1-1")
    cluster.write("dc1-1", {b"k": b"lost here"})
    cluster.settle()
    sent = decode_records(cluster.messages(Replicate, "dc1-1")[-1].records)[-1]
    cluster.slow_disks.clear()
    cluster.restart("dc1-1")
    cluster.serving()
    assert cluster.put("dc1-1", b"new", b"v").versions[0] > sent.hlc


def test_a_put_with_a_context_is_stamped_above_what_it_saw() -> None:
    """A version that was handed back is exceeded, also by a coordinator whose clock is behind it."""
    cluster = one_dc()
    ahead = (cluster.wall_us("dc1-1") // 1000 + 30_000) << 16
    reply = cluster.put("dc1-1", b"k", b"v", contexts=[ahead.to_bytes(8, "big")])
    assert reply.versions[0] > ahead


def test_a_record_names_the_version_that_its_writer_had_seen() -> None:
    """What the coordinator held or what the client had read, whichever is newer: so what is concurrent can be told."""
    cluster = Cluster(datacenters=2).start().serving()
    cluster.cut_apart()
    first = cluster.put("dc1-1", b"k", b"here")
    other = cluster.put("dc2-1", b"k", b"there")
    here, there = cluster.cells("dc1-1")[b"k"], cluster.cells("dc2-1")[b"k"]
    assert is_concurrent(here, there)
    cluster.put("dc1-1", b"k", b"after both", contexts=[other.versions[0].to_bytes(8, "big")])
    after = cluster.cells("dc1-1")[b"k"]
    assert decode_lww(after).replaced == max(first.versions[0], other.versions[0])
    assert not is_concurrent(after, here) and not is_concurrent(after, there)


def test_a_context_that_this_cluster_did_make_is_taken_however_far_ahead() -> None:
    """A version that stands in the cell is a version of ours, though a clock was hours ahead when it was made."""
    cluster = one_dc()
    first = cluster.put("dc1-2", b"k", b"in time")
    cluster.nodes["dc1-2"].context.clock.last += 3_600_000 << 16
    first = cluster.put("dc1-2", b"k", b"from the future", contexts=[first.versions[0].to_bytes(8, "big")])
    cluster.run(SECOND)
    second = cluster.put("dc1-1", b"k", b"after it", contexts=[first.versions[0].to_bytes(8, "big")])
    assert second.outcomes == [Outcome.APPLIED]
    assert second.versions[0] > first.versions[0]
    assert cluster.get("dc1-3", b"k").values == [b"after it"]


def test_a_context_from_nowhere_is_refused() -> None:
    """A token far in the future that no cell bears out cannot poison the key."""
    cluster = one_dc()
    token = (1 << 62).to_bytes(8, "big")
    assert cluster.put("dc1-1", b"k", b"v", contexts=[token]).outcomes == [Outcome.INVALID]
    assert cluster.put("dc1-1", b"k", b"v", contexts=[b"short"]).outcomes == [Outcome.INVALID]


def test_the_same_key_twice_in_one_batch_keeps_the_later_one() -> None:
    """Operations of a batch are ordered as they stand in it."""
    cluster = one_dc()
    call = cluster.ask("dc1-1", WriteBatch("default", [b"k", b"k", b"k"], [b"1", None, b"3"], Consistency.ALL))
    cluster.run(100 * MS)
    versions = cluster.reply("dc1-1", call).versions
    assert versions == sorted(set(versions))
    assert all(decode_lww(cluster.cells(name)[b"k"]).value == b"3" for name in cluster.names)


def test_a_record_names_the_version_that_it_replaced() -> None:
    """So a concurrent overwrite can be told from one that saw what it replaced."""
    cluster = one_dc()
    first = cluster.put("dc1-1", b"k", b"1", Consistency.ALL)
    cluster.put("dc1-2", b"k", b"2", Consistency.ALL)
    cell = decode_lww(cluster.cells("dc1-3")[b"k"])
    assert cell.replaced == first.versions[0]
    assert cell.version == lww_version(cluster.cells("dc1-1")[b"k"])


@pytest.mark.parametrize(
    ("batch", "outcome", "words"),
    [
        (WriteBatch("nowhere", [b"k"], [b"v"]), Outcome.NOT_FOUND, "create it"),
        (WriteBatch("default", [b""], [b"v"]), Outcome.INVALID, "empty key"),
        (WriteBatch("default", [b"k" * 2000], [b"v"]), Outcome.INVALID, "at most 1024"),
        (WriteBatch("default", [b"k"], [bytes(20_000)]), Outcome.INVALID, "--value-bytes-max"),
        (WriteBatch("default", [b"k"], [b"v"], w=4), Outcome.INVALID, "needs 4 replicas"),
        (WriteBatch("default", [b"k"], [b"v"], timeout_ms=0), Outcome.INVALID, f"{TIMEOUT_MS_MAX}"),
        (WriteBatch("default", [b"k"], [b"v"], ttl_ms=-2), Outcome.INVALID, "ttl"),
        (WriteBatch("default", [b"k"], []), Outcome.INVALID, "1 keys with 0 values"),
        (
            WriteBatch("default", [b"k"] * (BATCH_ITEMS_MAX + 1), [b"v"] * (BATCH_ITEMS_MAX + 1)),
            Outcome.INVALID,
            f"{BATCH_ITEMS_MAX}",
        ),
    ],
)
def test_bad_requests_say_what_to_change(batch: WriteBatch, outcome: Outcome, words: str) -> None:
    """Nothing is numbered, and the message names the limit and the way out."""
    cluster = one_dc()
    call = cluster.ask("dc1-1", batch)
    cluster.settle()
    reply = cluster.reply("dc1-1", call)
    assert set(reply.outcomes) == {outcome}
    assert words in reply.details[0].message
    assert not cluster.streams("dc1-1")


def test_a_bad_operation_does_not_spoil_its_batch_mates() -> None:
    """Each item has its own outcome."""
    cluster = one_dc()
    call = cluster.write("dc1-1", {b"good": b"v", b"": b"v", b"better": b"v"})
    cluster.settle()
    assert cluster.reply("dc1-1", call).outcomes == [Outcome.APPLIED, Outcome.INVALID, Outcome.APPLIED]


def test_a_full_log_refuses_writes_with_the_reason_and_goes_on_with_its_own_notes() -> None:
    """Read-only: nothing is numbered; promises, votes and bounds still find the room that is kept for them."""
    cluster = Cluster(partitions=1, control_room_bytes=100_000).start().serving()
    cluster.room("dc1-1", 140_000, "the disk is full")
    refused = 0
    for at in range(400):
        reply = cluster.put("dc1-1", b"k%d" % at, b"v" * 100)
        refused += reply.outcomes == [Outcome.UNAVAILABLE]
        cluster.nodes["dc1-1"].context.commit.room_reason = "the disk is full"
    assert refused
    assert "the disk is full" in reply.details[0].message
    cluster.run(60 * SECOND)
    assert cluster.disks["dc1-1"].room_bytes > 50_000
    assert not cluster.ended
    assert cluster.get("dc1-1", b"k0").values in ([b"v" * 100], [None])


def test_parts_that_nobody_waits_for_are_bounded() -> None:
    """With a silent replica what is kept to be sent again has a limit in bytes as well, and writes go on."""
    cluster = Cluster(partitions=1).start().serving()
    for name in cluster.names:
        cluster.room(name, 1 << 30)
    cluster.is_dropped = lambda s, r, m: isinstance(m, Replicate) and r == "dc1-3"
    large = bytes(9_000)
    items = {b"k%d" % at: large for at in range(100)}
    for _ in range(100):
        call = cluster.write("dc1-1", dict(items))
        cluster.settle()
        assert cluster.reply("dc1-1", call).outcomes[0] is Outcome.APPLIED
    replication = cluster.nodes["dc1-1"].assembly.replication
    assert sum(len(part.records) for part in replication._pending.values()) <= 70 << 20
    assert len(replication) < PENDING_PARTS_MAX


def test_a_doubled_forward_is_coordinated_once() -> None:
    """A forwarded write that comes again later does not overwrite what was written in between."""
    cluster = Cluster(nodes=4, replicas=3).start().serving()
    owners = cluster.nodes["dc1-1"].assembly.placement.owners
    key, outsider = next(
        (key, name)
        for key in (b"k%d" % at for at in range(99))
        for name in cluster.names
        if name not in owners[partition(cluster, key)]
    )
    assert cluster.put(outsider, key, b"first").outcomes == [Outcome.APPLIED]
    (forward,) = cluster.messages(Forward)
    owner = next(r for _, r, m in cluster.sent if m is forward)
    assert cluster.put(owner, key, b"second").outcomes == [Outcome.APPLIED]
    cluster.give(owner, Delivered(outsider, forward))
    cluster.run(SECOND)
    assert cluster.get(outsider, key).values == [b"second"]


def partition(cluster: Cluster, key: bytes) -> int:
    from geokv.core.ring import key_hash

    return key_hash(key) >> cluster.nodes[cluster.names[0]].assembly.placement.shift


def test_interval_durability_answers_before_the_sync_and_loses_only_what_was_not_synced() -> None:
    """The write is answered at once; after a crash of all its stream ends where some log ends, and replicas are equal."""
    cluster = one_dc()
    cluster.admin("dc1-1", "namespace_create", name="fast", durability="interval", interval_ms=200)
    cluster.run(SECOND)
    cluster.put("dc1-1", b"kept", b"v", namespace="fast")
    cluster.run(SECOND)
    call = cluster.write("dc1-1", {b"k": b"v"}, namespace="fast")
    for _ in range(50):  # messages only: no time passes, no disk syncs
        if cluster.queue:
            sender, receiver, message = cluster.queue.popleft()
            cluster.give(receiver, Delivered(sender, message))
    assert cluster.reply("dc1-1", call).outcomes == [Outcome.APPLIED]
    assert cluster.persisting == {}
    for name in cluster.names:
        cluster.crash(name)
    cluster.start()
    cluster.serving().run(3 * SECOND)
    assert cluster.are_equal("fast")
    assert list(cluster.cells("dc1-1", "fast")) == [b"kept"]


def test_a_promise_flushes_what_an_interval_namespace_still_holds_back() -> None:
    """An owner's answer to a closer rests on its disk, whatever the namespace's durability."""
    cluster = one_dc()
    cluster.admin("dc1-1", "namespace_create", name="fast", durability="interval", interval_ms=60_000)
    cluster.run(SECOND)
    call = cluster.write("dc1-1", {b"k": b"v"}, namespace="fast")
    cluster.settle()
    assert cluster.reply("dc1-1", call).outcomes == [Outcome.APPLIED]
    cluster.restart("dc1-1")
    cluster.run(3 * SECOND)
    assert cluster.are_equal("fast")
    assert list(cluster.cells("dc1-1", "fast")) == [b"k"], "two owners had it"


def test_an_answer_that_comes_after_the_level_was_met_changes_nothing() -> None:
    """A write that waits for the other datacenters is not stamped again because a third replica knows something newer."""
    cluster = Cluster(datacenters=2).start().serving()
    cluster.slow_disks |= {"dc1-3", "dc2-1", "dc2-2", "dc2-3"}

    def newer(sender: str, receiver: str, message: object) -> bool:
        if sender == "dc1-3" and isinstance(message, Replicated):
            message.newer = [(1, 1 << 60)]
        return False

    cluster.is_dropped = newer
    call = cluster.write("dc1-1", {b"a": b"1", b"b": b"2", b"c": b"3"}, Consistency.EACH_QUORUM, timeout_ms=20_000)
    cluster.run(300 * MS)
    assert cluster.reply("dc1-1", call) is None  # met here, not in dc2
    cluster.slow_disks.clear()
    cluster.run_until(lambda: cluster.reply("dc1-1", call) is not None)
    assert cluster.reply("dc1-1", call).outcomes == [Outcome.APPLIED] * 3
    assert cluster.reply("dc1-1", call).dcs == [2] * 3

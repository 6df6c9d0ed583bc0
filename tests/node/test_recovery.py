"""Recovery: engine and frames give back the state that was synced, however the two overlap and wherever the run ended."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from geokv.core.limits import FRAME_BYTES_MAX
from geokv.core.quorum import Consistency
from geokv.core.record import DELTA, decode_records
from geokv.errors import CorruptLog, StorageError
from geokv.protocol import control
from geokv.protocol.effects import Built, Delivered, PersistFailed
from geokv.protocol.requests import Outcome
from geokv.storage.wal_format import FRAME_HEADER_BYTES
from tests.node.harness import MS, SECOND, Cluster, Disk
from tests.node.test_upkeep import flushed


def state_of(cluster: Cluster, node: str) -> dict[str, Any]:
    """Everything that a disk stands for: cells, frontiers, promises, closings, definitions."""
    context = cluster.nodes[node].context
    closings = cluster.nodes[node].assembly.closings
    return {
        "cells": {ns: dict(table.cells.items()) for ns, table in context.tables.items()},
        "frontiers": {
            stream.key: (stream.frontier, frozenset(stream.synced_beyond), stream.last, stream.voids)
            for table in context.tables.values()
            for stream in table.streams
            if stream.frontier or stream.synced_beyond or stream.last
        },
        "promised": {origin: set(partitions) for origin, partitions in context.promised.items() if partitions},
        "closed": {origin: set(partitions) for origin, partitions in context.closed.items()},
        "known": dict(closings.known),
        "definitions": cluster.nodes[node].assembly.definitions.counts(),
    }


def busy(cluster: Cluster, rng: random.Random, steps: int) -> None:
    """Writes, deletes, a namespace, restarts of others: something of everything."""
    for at in range(steps):
        node = rng.choice(sorted(cluster.nodes))
        key = b"k%d" % rng.randrange(30)
        cluster.put(node, key, None if rng.random() < 0.2 else b"v%d" % at, rng.choice((Consistency.ONE, Consistency.QUORUM)))
        if rng.random() < 0.05:
            cluster.restart(rng.choice(sorted(cluster.nodes)))
            cluster.serving()
        cluster.run(rng.randrange(100) * MS)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("memtable_bytes", [1 << 40, 3_000, 1])
def test_a_restart_gives_back_the_state_that_was_synced(seed: int, memtable_bytes: int) -> None:
    """With no flush, some or one at every frame: what was there before the crash is there after it."""
    cluster = Cluster(seed=seed, memtable_bytes=memtable_bytes, stability_us=1 << 60).start().serving()
    for disk in cluster.disks.values():
        disk.segment_bytes = 8_000
    cluster.admin("dc1-1", "namespace_create", name=f"ns-{seed}")
    busy(cluster, random.Random(seed), 60)
    cluster.settle()
    before = {name: state_of(cluster, name) for name in cluster.names}
    assert (memtable_bytes > 1 << 30) != any(disk.is_flushed for disk in cluster.disks.values())
    for name in cluster.names:
        cluster.crash(name)
    cluster.slow_disks |= set(cluster.names)  # look before anything new is synced
    cluster.start()
    assert {name: state_of(cluster, name) for name in cluster.names} == before
    cluster.slow_disks.clear()
    cluster.serving().run_until(cluster.are_equal)


def test_replaying_frames_twice_is_harmless() -> None:
    """Frames that are in tables already change nothing when they are read again."""
    cluster = Cluster(memtable_bytes=1).start().serving()
    busy(cluster, random.Random(5), 40)
    cluster.settle()
    before = state_of(cluster, "dc1-2")
    cluster.crash("dc1-2")
    disk = cluster.disks["dc1-2"]
    position = disk.engine().position
    assert any((segment, at) < position for segment, at, _ in disk.frames)
    disk.frames = [frame for frame in disk.frames for _ in range(2)]
    cluster.slow_disks.add("dc1-2")
    cluster.start("dc1-2")
    assert state_of(cluster, "dc1-2") == before


def test_a_crash_in_the_midst_of_a_flush_loses_nothing() -> None:
    """Until it stands nothing is trimmed; the log alone gives everything back."""
    cluster = Cluster(memtable_bytes=1).start().serving()
    cluster.is_build_slow = True
    cluster.builds.clear()
    for at in range(30):
        cluster.put("dc1-1", b"k%d" % at, b"v", Consistency.ALL)
    before = state_of(cluster, "dc1-1")["cells"]
    cluster.restart("dc1-1")
    assert state_of(cluster, "dc1-1")["cells"] == before


def test_a_flush_between_two_frames_of_one_batch_is_whole() -> None:
    """A batch that needs two frames: no flush has the frontier of the first without its cells."""
    cluster = Cluster(partitions=1, memtable_bytes=1).start().serving()
    cluster.admin("dc1-1", "namespace_create", name="large", value_bytes_max=1 << 20)
    cluster.run(SECOND)
    cluster.is_build_slow = True
    cluster.slow_disks.add("dc1-1")
    cluster.write("dc1-1", {b"first": b"v"}, namespace="large")
    for at in range(7):
        cluster.write("dc1-1", {b"k%d" % at: bytes(900_000)}, namespace="large")
    frames = 0
    while "dc1-1" in cluster.persisting and frames < 10:
        builds = len(cluster.builds)
        assert len(cluster.persisting["dc1-1"].payload) <= FRAME_BYTES_MAX
        cluster.sync("dc1-1")
        frames += 1
        for name, effect in cluster.builds[builds:]:
            assert_whole(effect.job, cluster.disks[name])
            assert name == "dc1-1"
    assert frames >= 3
    cluster.slow_disks.clear()
    cluster.run(SECOND)
    for name in cluster.names:
        cluster.crash(name)
    cluster.start().serving().run(3 * SECOND)
    assert len(cluster.cells("dc1-1", "large")) == 8


def assert_whole(job: Any, disk: Disk) -> None:
    """As many records stand before the flush's end as the frontiers beside it say."""
    synced: dict[int, int] = {}
    for stream in control.unpack(job.meta)["streams"]:
        synced[stream[0]] = synced.get(stream[0], 0) + stream[3]
    records = [r for at in disk.frames if at[:2] < job.end for r in decode_records(at[2]) if r.kind == DELTA]
    assert Counter(record.namespace for record in records) == {n: count for n, count in synced.items() if count}


def test_a_node_that_restarts_often_flushes_nevertheless() -> None:
    """What earlier runs wrote counts: the log of a node that never runs long does not grow for ever."""
    cluster = Cluster(memtable_bytes=40_000).start().serving()
    for at in range(20):
        cluster.put("dc1-1", b"k%d" % at, bytes(5_000), Consistency.ALL)
        cluster.restart("dc1-2")
        cluster.serving()
    assert cluster.disks["dc1-2"].is_flushed


def test_a_new_run_draws_a_new_incarnation_and_keeps_quiet_until_that_is_synced() -> None:
    """Nothing leaves a starting node before its run is in its log."""
    cluster = Cluster().start().serving()
    first = cluster.nodes["dc1-1"].incarnation
    cluster.crash("dc1-1")
    cluster.slow_disks.add("dc1-1")
    begun = len(cluster.sent)
    cluster.start("dc1-1")
    cluster.run(SECOND)
    assert not [m for s, _, m in cluster.sent[begun:] if s == "dc1-1"]
    assert cluster.put("dc1-1", b"k", b"v").outcomes == [Outcome.UNAVAILABLE]
    assert cluster.nodes["dc1-1"].incarnation != first
    cluster.slow_disks.clear()
    cluster.run(SECOND)
    assert [m for s, _, m in cluster.sent[begun:] if s == "dc1-1"]


def test_a_failed_append_ends_the_run_and_the_next_closes_its_streams() -> None:
    """The run ends as by a crash; nothing acknowledged is lost, and the node takes writes again."""
    cluster = Cluster().start().serving()
    cluster.put("dc1-1", b"kept", b"v")
    cluster.slow_disks.add("dc1-1")
    cluster.write("dc1-1", {b"k": b"v"})
    cluster.settle()
    token = cluster.persisting.pop("dc1-1").token
    cluster.give("dc1-1", PersistFailed(token, "EIO"))
    assert [name for name, _ in cluster.ended] == ["dc1-1"]
    cluster.slow_disks.clear()
    cluster.restart("dc1-1")
    cluster.serving().run_until(lambda: cluster.nodes["dc1-1"].runs[0].is_done)
    assert cluster.put("dc1-1", b"after", b"v").outcomes == [Outcome.APPLIED]
    cluster.run_until(cluster.are_equal)
    assert cluster.get("dc1-3", b"kept").values == [b"v"]


def test_a_frame_that_is_no_record_is_refused_with_instructions() -> None:
    """Damage that the frame's checksum did not catch is named with its place, never skipped."""
    cluster = Cluster().start().serving()
    cluster.crash("dc1-1")
    disk = cluster.disks["dc1-1"]
    disk.frames.append((1, disk._at + FRAME_HEADER_BYTES, b"garbage" * 20))
    with pytest.raises(CorruptLog, match=r"segment 1.*Keep the directory as it is"):
        cluster.start("dc1-1")


def test_a_note_of_a_newer_version_is_refused_by_name() -> None:
    """An older program does not go on over notes that it cannot read."""
    cluster = Cluster().start().serving()
    cluster.crash("dc1-1")
    cluster.disks["dc1-1"].append(control.control_record(b"novelty", [1]))
    with pytest.raises(StorageError, match=r"b'novelty'.*newer geokv"):
        cluster.start("dc1-1")


def test_segments_go_when_they_are_flushed_and_everybody_has_them() -> None:
    """A silent co-owner holds the log; back again it gets everything, and the log is trimmed."""
    cluster = Cluster(memtable_bytes=20_000).start().serving()
    for disk in cluster.disks.values():
        disk.segment_bytes = 20_000
    cluster.crash("dc1-3")
    for at in range(60):
        cluster.put("dc1-1", b"k%d" % at, bytes(2_000))
    cluster.run(3 * SECOND)
    assert cluster.disks["dc1-1"].is_flushed
    assert cluster.nodes["dc1-1"].assembly.retention.held_by.keys() == {"dc1-3"}
    held = [frame for frame in cluster.disks["dc1-1"].frames if b"k0" in frame[2]]
    assert held, "the first write is still in the log"
    cluster.start("dc1-3")
    cluster.run_until(cluster.are_equal)
    cluster.run(12 * SECOND)
    assert cluster.trimmed.get("dc1-1", 0) > 1
    cluster.restart("dc1-1")
    cluster.serving().run(5 * SECOND)
    assert cluster.are_equal()


def test_a_log_past_its_budget_refuses_writes_and_names_who_holds_it() -> None:
    """The reason names the replica that is waited for; with it back writes go on."""
    cluster = Cluster(memtable_bytes=20_000, log_bytes_max=3 * (32 << 20)).start().serving()
    for disk in cluster.disks.values():
        disk.segment_bytes = 20_000
    cluster.crash("dc1-3")
    cluster.run(SECOND)
    for at in range(60):
        reply = cluster.put("dc1-1", b"k%d" % at, bytes(2_000))
        cluster.run(300 * MS)
    assert reply.outcomes == [Outcome.UNAVAILABLE]
    assert "waiting for dc1-3" in reply.details[0].message
    cluster.start("dc1-3")
    cluster.run(15 * SECOND)
    assert cluster.put("dc1-1", b"again", b"v").outcomes == [Outcome.APPLIED]


def test_a_small_budget_is_kept_where_nobody_is_away() -> None:
    """Flushes come early enough for the budget, and again where one has failed."""
    cluster = Cluster(segment_bytes=20_000, log_bytes_max=160_000).start().serving()
    for disk in cluster.disks.values():
        disk.segment_bytes = 20_000
    cluster.is_build_slow = True
    for at in range(25):
        assert cluster.put("dc1-1", b"k%d" % at, bytes(2_000)).outcomes == [Outcome.APPLIED]
    for name in cluster.nodes:
        failed = next(effect for node, effect in cluster.builds if node == name)
        cluster.give(name, Built(failed.token, "no room"))
    cluster.builds.clear()
    cluster.is_build_slow = False
    for at in range(100):
        assert cluster.put("dc1-1", b"k%d" % at, bytes(2_000)).outcomes == [Outcome.APPLIED]
        cluster.run(SECOND)
    assert cluster.nodes["dc1-1"].assembly.retention.log_bytes() <= 160_000


def test_segments_wait_for_the_other_datacenter() -> None:
    """What the other datacenter lacks stays in the log of its coordinator and of the co-owners."""
    cluster = Cluster(datacenters=2, nodes=2, replicas=2, memtable_bytes=10_000).start().serving().run(SECOND)
    for disk in cluster.disks.values():
        disk.segment_bytes = 10_000
    cluster.cut_apart()
    for at in range(30):
        cluster.put("dc1-1", b"k%d" % at, bytes(2_000))
    cluster.run(12 * SECOND)
    assert "dc2" in cluster.nodes["dc1-1"].assembly.retention.held_by
    assert any("dc1-1" in who for who in cluster.nodes["dc1-2"].assembly.retention.held_by)
    cluster.heal()
    cluster.run_until(cluster.are_equal)
    cluster.run(15 * SECOND)
    for name in ("dc1-1", "dc1-2"):
        assert cluster.trimmed.get(name, 0) > 1


def test_frontiers_of_others_restored_from_an_old_flush_are_never_newer_than_true() -> None:
    """After a restart from what was flushed, what is believed of peers is what they have, or less."""
    cluster = Cluster(memtable_bytes=2_000).start().serving()
    for at in range(40):
        cluster.put("dc1-1", b"k%d" % at, bytes(200), Consistency.ALL)
        if at % 10 == 5:
            cluster.run(400 * MS)
            cluster.restart("dc1-2")
            cluster.serving()
        for name in cluster.names:
            for key, stream in cluster.streams(name).items():
                for peer, number in stream.peers.items():
                    has = cluster.streams(peer).get(key)
                    closed = key[0] in cluster.nodes[peer].context.closed.get(key[1], ())
                    assert closed or (has is not None and has.frontier >= number)


def test_a_lost_tail_of_the_log_is_found_by_those_who_saw_it() -> None:
    """Frames that were synced and stated are gone: the node refuses by name instead of taking back what it acknowledged."""
    cluster = Cluster().start().serving()
    for at in range(10):
        cluster.put("dc1-1", b"k%d" % at, b"v")
    cluster.run(2 * SECOND)
    cluster.crash("dc1-1")
    disk = cluster.disks["dc1-1"]
    del disk.frames[-6:]
    disk.sequence -= 6
    cluster.start("dc1-1")
    cluster.run(8 * SECOND)
    assert "its disk holds less" in cluster.nodes["dc1-1"].is_refusing
    assert cluster.get("dc1-2", b"k9").values == [b"v"]


def test_a_log_that_ends_before_its_tables_is_refused() -> None:
    """A log put back from an older copy than the tables: what is written next would count as flushed, and be lost."""
    cluster = Cluster(nodes=1, replicas=1, partitions=1).start().serving()
    disk = cluster.disks["dc1-1"]
    older = disk.copy()
    for at in range(10):
        cluster.put("dc1-1", b"k%d" % at, bytes(500))
    flushed(cluster, "dc1-1")
    before = state_of(cluster, "dc1-1")["cells"]
    cluster.crash("dc1-1")
    older.folder = disk.folder
    cluster.disks["dc1-1"] = older
    with pytest.raises(CorruptLog, match=r"the log ends at byte \d+ of segment 1, .* put the newest log back"):
        cluster.start("dc1-1")
    cluster.disks["dc1-1"] = disk
    cluster.start("dc1-1")
    assert state_of(cluster, "dc1-1")["cells"] == before


def test_messages_to_a_node_that_has_not_started_change_nothing() -> None:
    """Until its run is synced a node neither answers nor takes."""
    cluster = Cluster()
    cluster.slow_disks.add("dc1-1")
    cluster.start().run(SECOND)
    for _, _, message in list(cluster.sent):
        assert cluster.nodes["dc1-1"].handle(Delivered("dc1-2", message), cluster.now_us) == []

"""A node over its engine: what is on the disk only is loaded, flushes fail and are tried again, writers are held back."""

from __future__ import annotations

import errno
import random

from geokv.core.cell import decode_lww, lww_version
from geokv.core.limits import MIB
from geokv.core.lww import encode_lww_record
from geokv.core.origin import Origin
from geokv.core.quorum import Consistency
from geokv.core.record import NO_OPERATION, decode_records
from geokv.node.digests import STEP_CELLS
from geokv.protocol.effects import Built, Loaded
from geokv.protocol.loading import LOADS_WAITING_MAX, Loading
from geokv.protocol.messages import CellsPage, CellsWanted, Replicate, Replicated
from geokv.protocol.requests import AdminRequest, Outcome, ReadBatch, WriteBatch
from geokv.storage.crash_disk import CrashDisk
from geokv.storage.lsm.engine import LsmEngine, LsmOptions
from geokv.storage.lsm.jobs import Compaction
from tests.node.harness import MS, SECOND, Cluster

ORIGIN = Origin("dc1", "dc1-2", 77).packed()


def flushed(cluster: Cluster, name: str) -> None:
    """Have all that a node holds in tables, and nothing of it in a cache."""
    cluster.settle()
    begin_flush(cluster, name)
    cluster.settle()
    assert cluster.engines[name].figures()["memtable_pairs"] == 0


def begin_flush(cluster: Cluster, name: str) -> None:
    """Have a node ask for a flush now."""
    assert cluster.nodes[name].upkeep.flush()
    for effect in list(cluster.nodes[name].assembly.effects):
        cluster._perform(name, effect)
    cluster.nodes[name].assembly.effects.clear()


def one_flushed(*keys: bytes) -> Cluster:
    """Three replicas; dc1-1 has these keys on its disk only, and its loads wait for `load`."""
    cluster = Cluster(partitions=1).start().serving()
    for key in keys:
        cluster.put("dc1-1", key, b"old", Consistency.ALL)
    flushed(cluster, "dc1-1")
    cluster.slow_loads.add("dc1-1")
    return cluster


def test_a_read_of_what_is_on_the_disk_waits_and_holds_up_nobody() -> None:
    """While the one waits for its load, others are answered; then it is, with the cell."""
    cluster = one_flushed(b"cold")
    cold = cluster.ask("dc1-1", ReadBatch("default", [b"cold"], Consistency.ONE))
    cluster.settle()
    assert cluster.reply("dc1-1", cold) is None and len(cluster.loading) == 1
    cluster.put("dc1-1", b"hot", b"v")
    assert cluster.get("dc1-1", b"hot", Consistency.ONE).values == [b"v"]
    assert cluster.get("dc1-1", b"absent", Consistency.ONE).values == [None]
    cluster.load("dc1-1")
    assert cluster.reply("dc1-1", cold).values == [b"old"]
    assert cluster.get("dc1-1", b"cold", Consistency.ONE).values == [b"old"], "it is cached now"


def test_reads_that_wait_go_to_the_disk_together() -> None:
    """What is asked while a load is under way stands in the next one, all of it."""
    cluster = one_flushed(*(b"%d" % at for at in range(20)))
    calls = [cluster.ask("dc1-1", ReadBatch("default", [b"%d" % at], Consistency.ONE)) for at in range(20)]
    cluster.settle()
    cluster.load("dc1-1")
    assert [len(effect.parts) for _, effect in cluster.loading] == [19]
    cluster.load("dc1-1")
    assert [cluster.reply("dc1-1", call).values for call in calls] == [[b"old"]] * 20


def test_a_write_over_what_is_on_the_disk_builds_upon_it() -> None:
    """The coordinator loads the stored cell first, so that its record names the version that it replaces."""
    cluster = one_flushed(b"k")
    stored = lww_version(cluster.cells("dc1-2")[b"k"])
    call = cluster.write("dc1-1", {b"k": b"new"})
    cluster.settle()
    assert cluster.reply("dc1-1", call) is None
    cluster.load("dc1-1")
    cluster.settle()
    assert cluster.reply("dc1-1", call).outcomes == [Outcome.APPLIED]
    assert decode_lww(cluster.cells("dc1-1")[b"k"]).replaced == stored


def test_a_write_whose_load_does_not_come_is_answered_in_time() -> None:
    """By its deadline it is told that nothing was numbered; the load that comes later changes nothing."""
    cluster = one_flushed(b"k")
    heads = {key: stream.received for key, stream in cluster.streams("dc1-1").items()}
    call = cluster.write("dc1-1", {b"k": b"new"}, timeout_ms=1000)
    cluster.run(990 * MS)
    assert cluster.reply("dc1-1", call) is None
    cluster.run(20 * MS)
    reply = cluster.reply("dc1-1", call)
    assert reply.outcomes == [Outcome.UNAVAILABLE]
    assert reply.details[0].message == "the disk did not answer in time; nothing was numbered"
    cluster.load("dc1-1")
    cluster.run(SECOND)
    assert {key: stream.received for key, stream in cluster.streams("dc1-1").items()} == heads
    cluster.slow_loads.clear()
    assert cluster.get("dc1-1", b"k", Consistency.ALL).values == [b"old"]


def test_a_write_has_for_its_replicas_what_its_load_has_left_of_the_time() -> None:
    """Loaded shortly before its deadline, and replicas stay silent: its caller is answered before that deadline still."""
    cluster = one_flushed(b"k")
    cluster.is_dropped = lambda sender, receiver, message: isinstance(message, Replicated)
    begun_us = cluster.now_us
    call = cluster.write("dc1-1", {b"k": b"new"}, timeout_ms=1000)
    cluster.run(850 * MS)
    cluster.load("dc1-1")
    cluster.run_until(lambda: cluster.reply("dc1-1", call) is not None)
    assert cluster.now_us - begun_us <= 1000 * MS
    assert cluster.reply("dc1-1", call).outcomes == [Outcome.PARTIAL]


def test_a_read_whose_files_went_after_it_was_loaded_is_answered() -> None:
    """Its namespace is deleted, and a flush removes the files, while its load is on the way back: no end of the run."""
    cluster = Cluster(nodes=1, replicas=1, partitions=1)
    cluster.disks["dc1-1"].options = LsmOptions(block_cache_bytes=0, row_cache_bytes=0)
    cluster.start().serving()
    cluster.admin("dc1-1", "namespace_create", name="gone")
    cluster.put("dc1-1", b"k", b"v", namespace="gone")
    flushed(cluster, "dc1-1")
    cluster.slow_loads.add("dc1-1")
    call = cluster.ask("dc1-1", ReadBatch("gone", [b"k"], Consistency.ONE))
    cluster.settle()
    ((name, effect),) = cluster.loading
    cluster.loading.clear()
    for cells, keys in effect.parts:
        cells.load(keys)
    cluster.admin("dc1-1", "namespace_delete", name="gone")
    flushed(cluster, "dc1-1")
    cluster.give(name, Loaded(effect.token, [""]))
    assert cluster.reply("dc1-1", call).outcomes == [Outcome.UNAVAILABLE]
    assert cluster.put("dc1-1", b"k", b"v").outcomes == [Outcome.APPLIED]


def test_what_waits_for_the_disk_is_bounded() -> None:
    """A disk that hangs collects no more than so many calls, whose callers may be gone; the next is told at once."""
    loading = Loading([])
    cells = LsmEngine(CrashDisk()).create(1)
    told: list[str] = []
    for _ in range(LOADS_WAITING_MAX + 1):  # one is under way
        loading.load(cells, [b"k"], told.append)
    assert told == []
    loading.load(cells, [b"k"], told.append)
    assert told == [f"{LOADS_WAITING_MAX} calls wait for the disk already"]
    loading.loaded(1, [""])
    loading.loaded(2, [""] * LOADS_WAITING_MAX)
    loading.load(cells, [b"k"], told.append)
    loading.loaded(3, [""])
    assert told[1:] == [""] * (LOADS_WAITING_MAX + 2)


def test_a_replica_takes_writes_without_a_look_at_its_disk() -> None:
    """No load is asked for a record that is newer than all that was flushed, and it is what is read then."""
    cluster = one_flushed(b"k")
    assert cluster.put("dc1-2", b"k", b"new", Consistency.ALL).outcomes == [Outcome.APPLIED]
    assert not cluster.loading
    assert cluster.get("dc1-1", b"k", Consistency.ONE).values == [b"new"]
    assert not cluster.loading


def record(key: bytes, version: int, number: int = 1) -> bytes:
    """A record of a run that nobody here knows, with a version of choice."""
    return encode_lww_record(0, 1, number, version, NO_OPERATION, ORIGIN, key, version, 0, 0, b"late")[0]


def test_a_replica_that_holds_a_newer_version_on_its_disk_says_so() -> None:
    """An older record is taken at once, its acknowledgement waits for the look, and names the newer version."""
    cluster = one_flushed(b"k")
    version = lww_version(cluster.cells("dc1-2")[b"k"])
    message = Replicate(9, record(b"k", 5) + record(b"other", 6, number=2))
    begun = len(cluster.messages(Replicated, "dc1-1"))
    cluster.give_message("dc1-2", "dc1-1", message)
    cluster.settle()
    assert len(cluster.messages(Replicated, "dc1-1")) == begun
    cluster.load("dc1-1")
    cluster.settle()
    (answer,) = cluster.messages(Replicated, "dc1-1")[begun:]
    assert answer.newer == [(0, version)]
    cluster.slow_loads.clear()
    assert cluster.get("dc1-1", b"k", Consistency.ONE).values == [b"old"]
    assert cluster.get("dc1-1", b"other", Consistency.ONE).values == [b"late"]


def test_what_came_late_is_merged_wherever_it_lies() -> None:
    """An older record over a newer table, in memtable, flushed behind it and compacted: the newer stays."""
    cluster = one_flushed(b"k", b"l")
    cluster.slow_loads.clear()
    cluster.give_message("dc1-2", "dc1-1", Replicate(9, record(b"k", 5)))
    cluster.settle()
    for _ in range(3):
        assert cluster.cells("dc1-1")[b"k"].endswith(b"old")
        assert cluster.get("dc1-1", b"k", Consistency.ONE).values == [b"old"]
        flushed(cluster, "dc1-1")
    cluster.restart("dc1-1")
    assert cluster.cells("dc1-1")[b"k"].endswith(b"old")


def fail_loads(cluster: Cluster, call: tuple[str, int]) -> None:
    """Let every load of dc1-1 fail until a call is answered."""
    for _ in range(1000):
        if cluster.reply(*call) is not None:
            return
        if cluster.loading:
            cluster.load("dc1-1", "lsm/0000000000010000.sst: damaged at byte 0")
        cluster.run(10 * MS)
    raise AssertionError("it is not answered")


def test_a_copy_that_cannot_be_read_is_an_error_and_the_others_answer() -> None:
    """At QUORUM who was asked and fails is replaced; a write that builds upon it numbers nothing and says why."""
    cluster = one_flushed(b"k")
    for level, values in ((Consistency.ALL, [None]), (Consistency.QUORUM, [b"old"])):
        read = ("dc1-2", cluster.ask("dc1-2", ReadBatch("default", [b"k"], level)))
        fail_loads(cluster, read)
        assert cluster.reply(*read).values == values
    for level, values in ((Consistency.ONE, [b"old"]), (Consistency.QUORUM, [b"old"]), (Consistency.ALL, [None])):
        read = ("dc1-1", cluster.ask("dc1-1", ReadBatch("default", [b"k", b"absent"], level)))
        fail_loads(cluster, read)
        reply = cluster.reply(*read)
        assert reply.values == [*values, None]
        assert reply.replicas[0] == {Consistency.ONE: 1, Consistency.QUORUM: 2, Consistency.ALL: 0}[level]
    assert "no other replica is left" in reply.details[0].message
    assert cluster.notes["read.own_copy_unreadable"] == 3
    assert "damaged at byte 0" in cluster.nodes["dc1-1"].status()["storage"]["unreadable"]
    assert sum("damaged at byte 0" in effect.text for name, effect in cluster.logs if name == "dc1-1") == 1, "told once"
    heads = {key: stream.received for key, stream in cluster.streams("dc1-1").items()}
    call = ("dc1-1", cluster.write("dc1-1", {b"k": b"new"}))
    fail_loads(cluster, call)
    reply = cluster.reply(*call)
    assert reply.outcomes == [Outcome.UNAVAILABLE]
    assert "damaged at byte 0" in reply.details[0].message and "nothing was numbered" in reply.details[0].message
    assert {key: stream.received for key, stream in cluster.streams("dc1-1").items()} == heads


def test_a_flush_that_fails_is_tried_again_and_nothing_is_trimmed_meanwhile() -> None:
    """The reason is told; the pause doubles; the one that succeeds covers what the failed ones left."""
    cluster = Cluster(partitions=1, memtable_bytes=4_000).start().serving().run(SECOND)
    cluster.is_build_slow = True
    for disk in cluster.disks.values():
        disk.segment_bytes = 4_000
    name = "dc1-1"
    failures = 0
    for at in range(40):
        cluster.put(name, b"k%d" % at, bytes(500), Consistency.ALL)
        for one, effect in list(cluster.builds):
            cluster.builds.remove((one, effect))
            failures += one == name
            cluster.give(one, Built(effect.token, "No space left on device"))
        cluster.run(200 * MS)
    assert 2 <= failures <= 5, "at once, then after 1, 2 and 4 seconds"
    upkeep = cluster.nodes[name].upkeep
    assert "No space left" in upkeep.failure and cluster.engines[name].position.segment == 0
    assert cluster.notes["flush.failed"] >= failures
    assert cluster.disks[name].frames[0][0] == 1, "the log is there from its first segment on"
    before = cluster.cells(name)
    cluster.is_build_slow = False
    cluster.run(20 * SECOND)
    assert upkeep.failure == "" and upkeep.unflushed_bytes < 4_000
    cluster.restart(name)
    assert cluster.cells(name) == before


def test_a_flush_that_fails_for_long_adds_no_memtable() -> None:
    """Every try is the same flush again: a read has not one more place to look at for each of them."""
    cluster = Cluster(partitions=1, memtable_bytes=4_000).start().serving()
    folder = cluster.disks["dc1-1"].folder
    folder.fail("append", errno.ENOSPC, name=".sst", times=-1)
    for at in range(60):
        cluster.put("dc1-2", b"k%d" % at, bytes(500), Consistency.ALL)
        cluster.run(SECOND)
    assert cluster.notes["flush.failed"] >= 5
    assert cluster.engines["dc1-1"].figures()["memtables"] == 2
    assert folder.list("lsm") == ["MANIFEST"]
    before = cluster.cells("dc1-1")
    folder.heal()
    cluster.run(61 * SECOND)
    assert cluster.nodes["dc1-1"].upkeep.unflushed_bytes < 4_000
    assert cluster.engines["dc1-1"].figures()["memtables"] == 1
    cluster.restart("dc1-1")
    assert cluster.cells("dc1-1") == before and len(before) == 60


def test_a_try_that_finds_half_a_batch_on_the_disk_is_not_lost() -> None:
    """Its time comes between two frames of one batch, after which writers are held back: nothing else would flush."""
    limits = {"memtable_bytes": 8 * MIB, "unflushed_bytes_warn": 12 * MIB}
    cluster = Cluster(nodes=1, replicas=1, partitions=1, **limits).start().serving()
    cluster.disks["dc1-1"].segment_bytes = 64 * MIB
    cluster.room("dc1-1", 256 * MIB)
    cluster.admin("dc1-1", "namespace_create", name="large", value_bytes_max=MIB)
    cluster.disks["dc1-1"].folder.fail("append", errno.ENOSPC, name=".sst")
    upkeep, commit = cluster.nodes["dc1-1"].upkeep, cluster.nodes["dc1-1"].assembly.commit
    for at in range(10):
        cluster.put("dc1-1", b"first-%d" % at, bytes(900_000), namespace="large")
    assert "the flush failed" in upkeep.failure
    cluster.slow_disks.add("dc1-1")
    for at in range(7):
        cluster.write("dc1-1", {b"k%d" % at: bytes(900_000)}, namespace="large", timeout_ms=60_000)
    while commit.is_whole:
        cluster.sync("dc1-1")
    cluster.run(3 * SECOND)
    assert not commit.is_whole, "it was time in the midst of the batch"
    cluster.slow_disks.clear()
    cluster.run(3 * SECOND)
    assert upkeep.flushes == 1 and not upkeep.refusal()
    assert cluster.put("dc1-1", b"again", b"v").outcomes == [Outcome.APPLIED]
    before = cluster.cells("dc1-1", "large")
    cluster.restart("dc1-1")
    assert cluster.cells("dc1-1", "large") == before and len(before) == 17


def test_writers_wait_where_flushes_do_not_keep_up() -> None:
    """Above the first bound clients are told to come again, and why; with the flush done they may write on."""
    limits = {"memtable_bytes": 2_000, "unflushed_bytes_warn": 10_000, "unflushed_bytes_max": 20_000}
    cluster = Cluster(partitions=1, **limits).start().serving().run(SECOND)
    cluster.is_build_slow = True
    replies = [cluster.put("dc1-1", b"k%d" % at, bytes(1_000), Consistency.ALL) for at in range(20)]
    reply = replies[-1]
    assert reply.outcomes == [Outcome.OVERLOADED] and reply.details[0].retry_after_ms == 250
    assert "wait to be flushed" in reply.details[0].message
    node = cluster.nodes["dc1-1"]
    assert node.upkeep.unflushed_bytes < 20_000 and node.status()["storage"]["refusing"]
    assert node.status()["storage"]["running"] == "flush"
    cluster.is_build_slow = False
    cluster.run(SECOND)
    assert cluster.put("dc1-1", b"again", b"v", Consistency.ALL).outcomes == [Outcome.APPLIED]
    assert node.status()["storage"]["running"] == ""


def test_nothing_is_taken_of_others_above_the_second_bound() -> None:
    """What is in memory only is bounded, whoever wrote it; the records come again later."""
    cluster = Cluster(partitions=1, memtable_bytes=2_000, unflushed_bytes_warn=4_000, unflushed_bytes_max=6_000)
    cluster.start().serving().run(SECOND)
    cluster.is_build_slow = True
    number = 0
    while cluster.nodes["dc1-1"].upkeep.refusal_of_peers() == "":
        number += 1
        raw = encode_lww_record(0, 1, number, number, NO_OPERATION, ORIGIN, b"k%d" % number, number, 0, 0, bytes(500))[0]
        cluster.give_message("dc1-2", "dc1-1", Replicate(number, raw))
        cluster.settle()
        assert number < 50
    raw = encode_lww_record(0, 1, number + 1, 999, NO_OPERATION, ORIGIN, b"more", 999, 0, 0, bytes(500))[0]
    cluster.give_message("dc1-2", "dc1-1", Replicate(99, raw))
    cluster.settle()
    assert b"more" not in cluster.cells("dc1-1")
    cluster.is_build_slow = False
    cluster.run(SECOND)
    cluster.give_message("dc1-2", "dc1-1", Replicate(100, raw))
    cluster.settle()
    assert b"more" in cluster.cells("dc1-1")


def test_the_tables_of_a_deleted_namespace_go() -> None:
    """With the next flush its files are removed; after a restart it is not there either."""
    cluster = Cluster(partitions=1).start().serving()
    cluster.admin("dc1-1", "namespace_create", name="gone")
    cluster.run(SECOND)
    cluster.put("dc1-1", b"k", bytes(1_000), Consistency.ALL, namespace="gone")
    flushed(cluster, "dc1-1")
    assert cluster.engines["dc1-1"].figures()["tables"] == 1
    cluster.admin("dc1-1", "namespace_delete", name="gone")
    cluster.run(SECOND)
    flushed(cluster, "dc1-1")
    assert cluster.engines["dc1-1"].figures()["tables"] == 0
    assert [name for name in cluster.disks["dc1-1"].folder.list("lsm") if name.endswith(".sst")] == []
    cluster.restart("dc1-1")
    cluster.serving()
    assert cluster.engines["dc1-1"].figures()["tables"] == 0


def with_a_large_namespace() -> Cluster:
    """One node, whose tables are nearly all of namespace "large"."""
    cluster = Cluster(nodes=1, replicas=1, partitions=1, memtable_bytes=20_000).start().serving()
    cluster.admin("dc1-1", "namespace_create", name="large")
    for at in range(10):
        cluster.put("dc1-1", b"k%d" % at, random.Random(at).randbytes(1_000), namespace="large")
    cluster.put("dc1-1", b"k", b"v")
    flushed(cluster, "dc1-1")
    assert table_bytes(cluster) > 10_000
    return cluster


def table_bytes(cluster: Cluster) -> int:
    folder = cluster.disks["dc1-1"].folder
    return sum(folder.size(f"lsm/{name}") for name in folder.list("lsm") if name.endswith(".sst"))


def test_the_space_of_a_deleted_namespace_comes_back_though_nothing_is_written() -> None:
    """Soon after it is deleted, not with a flush that may be days away; also where the node ended in between."""
    for is_ended in (False, True):
        cluster = with_a_large_namespace()
        cluster.is_build_slow = is_ended
        cluster.admin("dc1-1", "namespace_delete", name="large")
        if is_ended:
            cluster.settle()
            assert table_bytes(cluster) > 10_000
            cluster.restart("dc1-1")
            cluster.is_build_slow = False
        cluster.run(5 * SECOND)
        assert table_bytes(cluster) < 1_000 and cluster.engines["dc1-1"].figures()["tables"] == 1
        assert cluster.nodes["dc1-1"].upkeep.flushes == (0 if is_ended else 1)
        assert cluster.get("dc1-1", b"k").values == [b"v"]


def test_the_space_of_a_deleted_namespace_comes_back_on_a_full_disk() -> None:
    """Flushes fail for want of room: deleting something is what makes it, as anybody would try."""
    cluster = with_a_large_namespace()
    cluster.disks["dc1-1"].folder.fail("append", errno.ENOSPC, name=".sst", times=-1)
    for at in range(30):
        cluster.put("dc1-1", b"k%d" % at, bytes(1_000))
    cluster.run(5 * SECOND)
    upkeep = cluster.nodes["dc1-1"].upkeep
    assert "the flush failed" in upkeep.failure and table_bytes(cluster) > 10_000
    cluster.admin("dc1-1", "namespace_delete", name="large")
    cluster.run(5 * SECOND)
    assert "the flush failed" in upkeep.failure and table_bytes(cluster) < 1_000
    cluster.disks["dc1-1"].folder.heal()
    cluster.run(60 * SECOND)
    assert upkeep.failure == "" and len(cluster.cells("dc1-1")) == 31


def test_a_table_that_cannot_be_compacted_does_not_keep_others_from_being_written() -> None:
    """While compactions fail and wait, flushes go on."""
    cluster = Cluster(partitions=1, memtable_bytes=2_000).start().serving().run(SECOND)
    cluster.is_build_slow = True
    upkeep = cluster.nodes["dc1-1"].upkeep
    for at in range(120):
        cluster.put("dc1-1", b"k%d" % (at % 50), bytes(500), Consistency.ALL)
        for name, effect in list(cluster.builds):
            if isinstance(effect.job, Compaction):
                cluster.builds.remove((name, effect))
                cluster.give(name, Built(effect.token, "damaged"))
            else:
                cluster.build(name)
    assert upkeep.flushes > 10 and upkeep.compactions == 0
    assert "compaction failed: damaged" in upkeep.failure
    assert upkeep.unflushed_bytes < 10_000
    cluster.is_build_slow = False
    cluster.run(30 * SECOND)
    assert upkeep.compactions and upkeep.failure == ""


def test_a_digest_walks_in_steps_and_is_the_same_on_every_replica() -> None:
    """Over memtable and tables, with other work between the steps; a namespace of some steps gives equal sums."""
    cluster = Cluster(partitions=4).start().serving()
    for at in range(0, 2 * STEP_CELLS + 100, 500):
        reply = cluster.ask("dc1-1", WriteBatch("default", keys := [b"k%d" % n for n in range(at, at + 500)], keys))
        cluster.run_until(lambda call=reply: cluster.reply("dc1-1", call) is not None)  # type: ignore[misc]
        if at == 1000:
            flushed(cluster, "dc1-2")
    calls = {name: cluster.ask(name, AdminRequest("digest", {"namespace": "default"})) for name in cluster.names}
    assert all(cluster.reply(*call) is None for call in calls.items()), "it takes more than one step"
    cluster.run(SECOND)
    first, *others = [cluster.reply(*call).body["partitions"] for call in calls.items()]
    assert others == [first, first]
    assert sum(partition["cells"] for partition in first.values()) == 4500
    assert sum(partition["live"] for partition in first.values()) == 4500


def test_cells_are_given_from_tables_too() -> None:
    """Who lacks what no log holds any more gets it from the giver's disk: listed in order, read before it is sent."""
    cluster = Cluster(partitions=1, memtable_bytes=5_000).start().serving()
    for disk in cluster.disks.values():
        disk.segment_bytes = 5_000
    for at in range(60):
        cluster.put("dc1-1", b"k%d" % at, bytes(500), Consistency.ALL)
    cluster.run(15 * SECOND)
    assert cluster.trimmed.get("dc1-1", 0) > 1
    for name in ("dc1-1", "dc1-2"):
        flushed(cluster, name)
    cluster.crash("dc1-3")
    cluster.disks["dc1-3"] = type(cluster.disks["dc1-3"])()
    giver = cluster.nodes["dc1-1"]
    stream = next(s for s in cluster.streams("dc1-1").values() if s.origin == giver.origin.packed())
    pages = len(cluster.messages(CellsPage))
    message = CellsWanted(7, stream.namespace, stream.partition, stream.origin, b"")
    cluster.give_message("dc1-2", "dc1-1", message)
    cluster.run(SECOND)
    records = decode_records(b"".join(page.records for page in cluster.messages(CellsPage)[pages:]))
    assert [record.key for record in records] == sorted(b"k%d" % at for at in range(60))

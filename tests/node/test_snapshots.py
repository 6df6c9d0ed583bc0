"""When a node takes a snapshot, and what is in it; and its storage worker, paused and slowed down."""

from __future__ import annotations

from geokv.core.limits import PAUSE_MS_MAX
from geokv.core.record import DELTA, decode_records
from geokv.node.snapshots import HOLD_US, HOLDS_MAX
from geokv.protocol import control
from geokv.protocol.effects import Built, Pace
from geokv.protocol.requests import AdminRequest, Outcome
from geokv.storage.lsm.cache import BlockCache
from geokv.storage.lsm.manifest import decode_manifest
from geokv.storage.lsm.meta import decode_meta
from geokv.storage.lsm.table_reader import TableReader
from tests.node.harness import MS, SECOND, Cluster, Disk


def taken(cluster: Cluster, name: str, cut: int) -> int:
    """Ask for a snapshot; the call's number."""
    return cluster.ask(name, AdminRequest("snapshot_create", {"name": "one", "cut": str(cut)}))


def keys_in(disk: Disk) -> set[bytes]:
    """What a snapshot holds in its tables."""
    state = decode_manifest(disk.folder.read_at("snapshots/one/lsm/MANIFEST", 0, 1 << 20))
    tables = [TableReader(disk.folder, facts.number, BlockCache(0)) for facts in state.all_tables()]
    return {key for table in tables for key, _ in table.all_pairs()}


def test_what_was_stamped_up_to_the_cut_is_in_it_and_what_comes_later_is_stamped_above() -> None:
    """Also a record that is on its way to a slow disk when the snapshot is asked for."""
    cluster = Cluster(partitions=1).start().serving()
    cluster.put("dc1-1", b"before", b"v")
    cluster.slow_disks.add("dc1-1")
    cluster.write("dc1-1", {b"on its way": b"v"})
    node = cluster.nodes["dc1-1"]
    cut = node.context.clock.last + (500 << 16)  # another node's clock is ahead
    call = taken(cluster, "dc1-1", cut)
    cluster.write("dc1-1", {b"later": b"v"})
    while "dc1-1" in cluster.persisting:
        cluster.sync("dc1-1")
    cluster.slow_disks.clear()
    cluster.run_until(lambda: cluster.reply("dc1-1", call) is not None)
    assert cluster.reply("dc1-1", call).outcome == Outcome.APPLIED
    assert {b"before", b"on its way"} <= keys_in(cluster.disks["dc1-1"])
    records = [record for _, _, payload in cluster.disks["dc1-1"].frames for record in decode_records(payload)]
    (later,) = [record for record in records if record.kind == DELTA and record.key == b"later"]
    assert later.hlc > cut


def test_the_log_stays_while_a_snapshot_is_taken_and_one_is_taken_at_a_time() -> None:
    """From the asking to the answer nothing is trimmed; a second one is told to come back."""
    cluster = Cluster(partitions=1, segment_bytes=4096).start().serving()
    cluster.put("dc1-1", b"k", b"v")
    cluster.is_build_slow = True
    call = taken(cluster, "dc1-1", cluster.nodes["dc1-1"].context.clock.last)
    cluster.settle()
    retention = cluster.nodes["dc1-1"].assembly.retention
    assert retention.is_held and cluster.reply("dc1-1", call) is None
    again = cluster.admin("dc1-1", "snapshot_create", name="two", cut="1")
    assert again.outcome == Outcome.OVERLOADED
    cluster.is_build_slow = False
    cluster.run_until(lambda: cluster.reply("dc1-1", call) is not None)
    assert not retention.is_held and cluster.nodes["dc1-1"].snapshots.count == 1
    assert [one["name"] for one in cluster.admin("dc1-1", "snapshot_list").body["snapshots"]] == ["one"]
    assert cluster.admin("dc1-1", "snapshot_remove", name="one").body["snapshots"] == []
    assert cluster.admin("dc1-1", "snapshot_show", name="one").outcome == Outcome.INVALID


def test_one_during_which_a_namespace_was_deleted_is_taken_once_more() -> None:
    """Its tables go at once, and the state of the flush has it still: no snapshot is without cells that its state covers."""
    cluster = Cluster(partitions=1).start().serving()
    assert cluster.admin("dc1-1", "namespace_create", name="doomed").outcome == Outcome.APPLIED
    cluster.put("dc1-1", b"k", b"v")
    cluster.put("dc1-1", b"doomed", b"v", namespace="doomed")
    cluster.is_build_slow = True
    call = taken(cluster, "dc1-1", 1)
    cluster.settle()
    assert cluster.admin("dc1-2", "namespace_delete", name="doomed").outcome == Outcome.APPLIED
    cluster.run(2 * SECOND)
    cluster.is_build_slow = False
    cluster.run_until(lambda: cluster.reply("dc1-1", call) is not None)
    assert cluster.reply("dc1-1", call).outcome == Outcome.APPLIED and cluster.notes["snapshot.again"] == 1
    folder = cluster.disks["dc1-1"].folder
    state = decode_manifest(folder.read_at("snapshots/one/lsm/MANIFEST", 0, 1 << 20))
    meta = control.unpack(decode_meta(folder.read_at(f"snapshots/one/{state.meta_file.name}", 0, 1 << 20), state.meta_file.job))
    assert {stream[0] for stream in meta["streams"]} == set(state.tables) and keys_in(cluster.disks["dc1-1"]) == {b"k"}


def test_a_flush_that_fails_and_a_cut_that_is_far_ahead_are_told() -> None:
    """Nothing is taken, the log goes again, and the next one works."""
    cluster = Cluster(partitions=1).start().serving()
    cluster.put("dc1-1", b"k", b"v")
    node = cluster.nodes["dc1-1"]
    cluster.is_build_slow = True
    call = taken(cluster, "dc1-1", node.context.clock.last)
    cluster.settle()
    _, effect = cluster.builds.pop()
    cluster.give("dc1-1", Built(effect.token, "no room"))
    assert "no room" in cluster.reply("dc1-1", call).message and not node.assembly.retention.is_held
    cluster.is_build_slow = False
    assert cluster.admin("dc1-1", "storage_flush").outcome == Outcome.UNAVAILABLE, "it is tried again soon"
    cluster.run(3 * SECOND)
    far = cluster.admin("dc1-1", "snapshot_create", name="one", cut=str(node.context.clock.last + (1 << 60)))
    assert far.outcome == Outcome.INVALID and "set the clocks right" in far.message
    for cut in ("", "-1", "1e5", str(1 << 64), "٣"):
        assert cluster.admin("dc1-1", "snapshot_create", name="one", cut=cut).outcome == Outcome.INVALID
    assert cluster.admin("dc1-1", "snapshot_create", name="one", cut="1").outcome == Outcome.APPLIED


def test_a_flush_asked_for_during_a_compaction_comes_after_it() -> None:
    """One job at a time; what was written meanwhile is in it."""
    cluster = Cluster(partitions=1).start().serving()
    for at in range(3):
        cluster.put("dc1-1", b"k%d" % at, b"v")
        cluster.run(SECOND)
        assert cluster.admin("dc1-1", "storage_flush").outcome == Outcome.APPLIED
    cluster.is_build_slow = True
    compaction = cluster.ask("dc1-1", AdminRequest("storage_compact", {}))
    flush = cluster.ask("dc1-1", AdminRequest("storage_flush", {}))
    assert cluster.admin("dc1-1", "storage_compact").outcome == Outcome.OVERLOADED
    cluster.put("dc1-1", b"meanwhile", b"v")
    assert cluster.reply("dc1-1", compaction) is None and cluster.reply("dc1-1", flush) is None
    cluster.is_build_slow = False
    cluster.run_until(lambda: cluster.reply("dc1-1", flush) is not None and cluster.reply("dc1-1", compaction) is not None)
    assert cluster.reply("dc1-1", flush).body["memtable_pairs"] == 0
    assert cluster.admin("dc1-1", "storage_compact", namespace="none").outcome == Outcome.NOT_FOUND


def test_a_pause_ends_by_itself_and_is_shown() -> None:
    """The host is told at once, both times; a pause without an end is refused."""
    cluster = Cluster(partitions=1).start().serving()
    assert cluster.admin("dc1-1", "storage_throttle", bytes_per_s=100_000).outcome == Outcome.APPLIED
    assert cluster.admin("dc1-1", "storage_pause", duration_ms=2000).outcome == Outcome.APPLIED
    assert cluster.paces["dc1-1"] == Pace(100_000, True)
    assert 0 < cluster.nodes["dc1-1"].status()["storage"]["paused_ms_left"] <= 2000
    assert cluster.admin("dc1-1", "storage_flush").outcome == Outcome.UNAVAILABLE
    cluster.run(2500 * MS)
    assert cluster.paces["dc1-1"] == Pace(100_000, False)
    assert cluster.nodes["dc1-1"].status()["storage"]["paused_ms_left"] == 0
    for duration in (0, -1, PAUSE_MS_MAX + 1, None, True, "5"):
        assert cluster.admin("dc1-1", "storage_pause", duration_ms=duration).outcome == Outcome.INVALID
    assert cluster.admin("dc1-1", "storage_throttle", bytes_per_s=5).outcome == Outcome.INVALID


def test_a_node_that_holds_for_a_backup_forgets_no_closing_and_makes_no_rule_until_its_snapshot_is_taken() -> None:
    """A snapshot of another node, taken before, could lack what all have by now."""
    cluster = Cluster(partitions=1, stability_us=200 * MS, collect_us=500 * MS).start().serving()
    cluster.put("dc1-1", b"k", b"v")
    for name in cluster.names:
        assert cluster.admin(name, "snapshot_hold", name="one").outcome == Outcome.APPLIED
    cluster.put("dc1-1", b"k", None)
    earlier = cluster.nodes["dc1-2"].context.packed
    cluster.restart("dc1-2")
    cluster.serving().run(5 * SECOND)
    holding = cluster.nodes["dc1-1"]
    assert (earlier, 0) in holding.assembly.closings.known and 0 not in holding.context.closed.get(earlier, ())
    assert all(table.collections == 0 for table in holding.context.tables.values())
    for name in ("dc1-1", "dc1-3"):
        cut = str(cluster.nodes[name].context.clock.last)
        assert cluster.admin(name, "snapshot_create", name="one", cut=cut, held=True).outcome == Outcome.APPLIED
    cluster.run(5 * SECOND)
    assert 0 in holding.context.closed[earlier] and (earlier, 0) not in holding.assembly.closings.known
    assert any(table.collections for table in holding.context.tables.values())


def test_a_node_that_was_restarted_or_held_too_long_takes_no_snapshot_for_that_backup() -> None:
    """It may have forgotten what the others' snapshots lack; the answer says to begin again."""
    cluster = Cluster(partitions=1).start().serving()
    for name in cluster.names:
        assert cluster.admin(name, "snapshot_hold", name="one").outcome == Outcome.APPLIED
    cluster.restart("dc1-1")
    cluster.serving()
    cut = str(cluster.nodes["dc1-1"].context.clock.last)
    again = cluster.admin("dc1-1", "snapshot_create", name="one", cut=cut, held=True)
    assert again.outcome == Outcome.UNAVAILABLE and "Begin again" in again.message
    cluster.run(HOLD_US)
    late = cluster.admin("dc1-2", "snapshot_create", name="one", cut=cut, held=True)
    assert late.outcome == Outcome.UNAVAILABLE
    assert cluster.admin("dc1-2", "snapshot_create", name="one", cut=cut).outcome == Outcome.APPLIED


def test_a_hold_goes_with_its_snapshot_and_no_more_than_a_few_are_kept() -> None:
    """A backup that is broken off lets go; what nobody lets go ends by itself."""
    cluster = Cluster(partitions=1).start().serving()
    context = cluster.nodes["dc1-1"].context
    for number in range(HOLDS_MAX):
        assert cluster.admin("dc1-1", "snapshot_hold", name=f"n{number}").outcome == Outcome.APPLIED
    assert cluster.admin("dc1-1", "snapshot_hold", name="more").outcome == Outcome.OVERLOADED
    for number in range(HOLDS_MAX):
        assert context.is_keeping
        cluster.admin("dc1-1", "snapshot_remove", name=f"n{number}")
    assert not context.is_keeping

"""Snapshots under every fault of the menu: no checker complains, and each that is there is one with which a node starts."""

from __future__ import annotations

import random

import pytest

from geokv.sim.disks import ENGINE, StorageOptions
from geokv.sim.faults import FaultOptions
from geokv.sim.run import Run, RunOptions
from geokv.sim.world import WorldOptions
from geokv.storage.crash_disk import CrashDisk
from geokv.storage.encryption.keys import Keys
from geokv.storage.lsm.engine import LsmEngine
from geokv.storage.lsm.verify import verify as verify_tables
from geokv.storage.snapshot_orders import Look, Snapshot
from geokv.storage.snapshots import Snapshots
from geokv.storage.wal import Log
from geokv.storage.wal_verify import SegmentFigures, verify_log
from tests.conftest import Samples


def unpacked(snapshots: Snapshots, snapshot: Snapshot, keys: Keys) -> CrashDisk:
    """A node's folder made of nothing but what the snapshot gives away."""
    disk = CrashDisk(keys=keys)
    for folder in ("lsm", "log"):
        disk.make_folder(folder)
    for file in snapshot.files:
        content = b"".join(snapshots.read(snapshot.name, file.path, start, 1 << 16) for start in range(0, file.used, 1 << 16))
        disk.append(file.path, content + bytes(file.nbytes - file.used))
        disk.sync(file.path)
    return disk


@pytest.mark.timeout(120)
@pytest.mark.parametrize("is_encrypted", [False, True], ids=["plain", "encrypted"])
def test_snapshots_taken_in_a_storm_are_whole(is_encrypted: bool, samples: Samples) -> None:
    """Machines lose power and disks fail while they are taken and removed. No bit rots: a snapshot shares its files with
    the engine. Takes seconds: whole runs.
    """
    seen = taken = 0
    for seed in range(1, samples.of(test=2, check=6, soak=400) + 1):
        world = WorldOptions(storage=StorageOptions(is_encrypted=is_encrypted))
        run = Run(seed, RunOptions(world=world, faults=FaultOptions(count=(20, 40), snapshot=20.0, bit_rot=0.0)))
        result = run.run()
        failed = {name: verdict for name, verdict in result.checkers.items() if verdict != "ok"}
        assert not failed, f"seed {seed}: {failed}"
        taken += run.faults.struck["snapshot"]
        for host in run.world.hosts.values():
            disk = host.storage.disk.crash_clone(random.Random(seed))
            snapshots = Snapshots(disk, LsmEngine(disk, ENGINE))
            for snapshot in snapshots.do(Look(0)):
                seen += 1
                copy = unpacked(snapshots, snapshot, disk.keys)
                engine = LsmEngine(copy, ENGINE)
                assert list(verify_tables(copy)) == []
                assert all(isinstance(one, SegmentFigures) for one in verify_log(copy, engine.position))
                log = Log.open(copy, run.options.world.storage.segment_bytes, engine.position.segment)
                last = list(log.replay())[-1]
                assert (last[0], last[1] + len(last[2])) == engine.position == (snapshot.segment, snapshot.offset)
                assert engine.meta
    assert taken > 5 and seen > 0

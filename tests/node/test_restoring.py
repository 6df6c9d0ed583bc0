"""Copies of all disks, taken one after the other while the cluster lives on, start together as one cluster again."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from geokv.core.namespace import LMDB, ROCKSDB
from geokv.core.quorum import Consistency
from geokv.node.node import Node
from geokv.node.restoring import Meta, Places, reconciled
from geokv.protocol import control
from geokv.protocol.requests import Outcome
from geokv.storage.disk import RealDisk
from geokv.storage.lsm.manifest import read_manifest, write_manifest
from geokv.storage.lsm.meta import write_meta
from geokv.storage.node_engine import NodeEngine
from geokv.storage.position import Position
from tests.node.harness import MS, SECOND, WALL_US, Cluster, Disk
from tests.node.test_upkeep import begin_flush

KEYS = [b"k%02d" % at for at in range(12)]


class Story:
    """A cluster that is written to, restarted, given namespaces and copied, in an order drawn from a seed."""

    def __init__(self, seed: int, datacenters: int) -> None:
        self.rng = random.Random(seed)
        self.datacenters = datacenters
        self.cluster = Cluster(datacenters, partitions=4, seed=seed).start().serving()
        self.allowed: dict[bytes, set[bytes | None]] = {key: {None} for key in KEYS}
        self.namespaces: list[str] = []
        self.is_cut = False
        self.found: dict[str, Disk] = {}
        self.number = 0

    def put(self) -> None:
        """A write; once the first copy is taken, both the value before and this one are fine."""
        self.number += 1
        key, name = self.rng.choice(KEYS), self.rng.choice(self.cluster.names)
        value = None if self.rng.random() < 0.2 else b"v%d" % self.number
        reply = self.cluster.put(name, key, value)
        is_sure = reply.outcomes[0] == Outcome.APPLIED and not self.is_cut
        self.allowed[key] = {value} if is_sure else self.allowed[key] | {value}

    def restart(self) -> None:
        names = [name for name in self.cluster.names if not self.is_cut or name in self.found]
        if not names:
            return  # a node that is restarted before its snapshot is taken fails the backup
        self.cluster.restart(self.rng.choice(names))
        self.cluster.run(self.rng.choice((0, 50, 500, 3000)) * MS)
        if self.rng.random() < 0.7:
            self.cluster.serving()

    def create(self) -> None:
        name = f"n{len(self.namespaces)}"
        self.cluster.serving()
        if self.cluster.admin(self.rng.choice(self.cluster.names), "namespace_create", name=name).outcome == Outcome.APPLIED:
            self.namespaces.append(name)

    def act(self, count: int) -> None:
        for _ in range(count):
            self.rng.choice((self.put, self.put, self.put, self.put, self.restart, self.create))()
            self.cluster.run(self.rng.choice((0, 5, 200)) * MS)

    def copy(self, name: str) -> Disk:
        """What a snapshot of that node would hold now."""
        cluster = self.cluster
        cluster.run_until(lambda: cluster.nodes[name].started_us is not None)
        cluster.settle()
        begin_flush(cluster, name)
        cluster.settle()
        disk = cluster.disks[name].copy()
        position = cluster.engines[name].position
        kept = [frame for frame in disk.frames if frame[:2] < position]
        disk.sequence -= len(disk.frames) - len(kept)
        disk.frames = kept
        return disk

    def copies(self) -> dict[str, Disk]:
        """Of all nodes, with life going on in between."""
        self.cluster.serving()
        self.is_cut = True
        for name in self.cluster.names:
            assert self.cluster.admin(name, "snapshot_hold", name="story").outcome == Outcome.APPLIED
        for name in self.rng.sample(self.cluster.names, len(self.cluster.names)):
            assert self.cluster.nodes[name].context.is_keeping
            self.found[name] = self.copy(name)
            self.cluster.nodes[name].context.kept_until_us = 0  # as when its snapshot is taken
            self.act(self.rng.randint(0, 3))
        return self.found


def metas_of(disks: dict[str, Disk]) -> dict[str, Meta]:
    return {name: control.unpack(read_manifest(disk.folder).meta) for name, disk in disks.items()}


def places_of(cluster: Cluster) -> Places:
    owners: dict[str, Any] = cluster.nodes[cluster.names[0]].assembly.placement.by_dc
    return Places(cluster.dc_of, owners)


def restored(story: Story, disks: dict[str, Disk]) -> Cluster:
    """Another cluster, on these copies."""
    cut_ms = (WALL_US + story.cluster.now_us) // 1000
    metas = reconciled(metas_of(disks), places_of(story.cluster), cut_ms)
    for name, disk in disks.items():
        state = read_manifest(disk.folder)
        packed = control.pack(metas[name])
        file = write_meta(disk.folder, state.next_job, packed)
        write_manifest(disk.folder, replace(state, next_job=state.next_job + 1, meta=packed, meta_file=file))
    again = Cluster(story.datacenters, partitions=4, seed=story.number + 1)
    again.now_us = story.cluster.now_us
    again.disks = {name: disks[name] for name in again.names}
    return again.start().serving()


def _is_all_closed(cluster: Cluster) -> bool:
    """Whether every stream of what ran before has come to its end."""
    return all(node.runs[0].is_done for node in cluster.nodes.values())


@pytest.mark.timeout(180)
@pytest.mark.parametrize("datacenters", [1, 2])
def test_copies_taken_at_different_moments_start_as_one_cluster(datacenters: int, samples) -> None:
    """With restarts, closings and new namespaces between the copies: all replicas become equal, what was acknowledged
    before the first copy is there, every earlier stream comes to its end, and writes go on. Takes seconds: many clusters.
    """
    for seed in range(samples.of(test=8, check=30, soak=1000)):
        story = Story(seed, datacenters)
        story.act(8)
        again = restored(story, story.copies())
        again.run_until(partial(_is_all_closed, again), 120 * SECOND)
        for key in KEYS:
            found = again.get(story.rng.choice(again.names), key, Consistency.QUORUM).values[0]
            assert found in story.allowed[key], f"seed {seed}: {key!r} is {found!r}"
        known = {name: sorted(found["name"] for found in again.nodes[name].admin.namespaces()) for name in again.names}
        assert all(names == known[again.names[0]] for names in known.values()), f"seed {seed}: {known}"
        for name in again.names:
            reply = again.put(name, b"new-" + name.encode(), b"value")
            assert reply.outcomes == [Outcome.APPLIED]
        again.run_until(again.are_equal, 60 * SECOND)
        assert again.admin(again.names[0], "namespace_create", name="after").outcome == Outcome.APPLIED


def test_states_that_fit_already_stay_as_they_are_but_for_what_was_seen() -> None:
    """A cluster at rest: nothing but what peers had seen of each other, and the clocks' bound, changes."""
    story = Story(1, 2)
    story.put()
    story.cluster.run(10 * SECOND)
    disks = {name: story.copy(name) for name in story.cluster.names}
    metas = metas_of(disks)
    fixed = reconciled(metas, places_of(story.cluster), 7)
    bound_ms = max(meta["bound_ms"] for meta in metas.values())
    for name, meta in metas.items():
        assert fixed[name]["seen"] == {} and fixed[name]["bound_ms"] == bound_ms and meta["seen"]
        assert sorted(fixed[name]["agreement"]) == sorted(meta["agreement"])
        assert fixed[name]["slots"] == sorted(meta["slots"]) and fixed[name]["closings"] == meta["closings"]
        assert [stream[:4] for stream in fixed[name]["streams"]] == [stream[:4] for stream in meta["streams"]]


def test_a_name_that_only_a_later_copy_knows_keeps_its_place_in_the_order_of_names() -> None:
    """One datacenter was copied before a namespace was created there, the other after: both have it, and the next one
    that is created does not take its place.
    """
    story = Story(7, 2)
    cluster = story.cluster
    disks = {name: story.copy(name) for name in cluster.names if cluster.dc_of[name] == "dc1"}
    assert cluster.admin("dc1-1", "namespace_create", name="late").outcome == Outcome.APPLIED
    cluster.run(5 * SECOND)
    cluster.put("dc2-1", b"k", b"v", namespace="late")
    disks |= {name: story.copy(name) for name in cluster.names if name not in disks}
    again = restored(story, disks)
    assert again.get("dc1-1", b"k", Consistency.ALL, namespace="late").outcomes is not None
    assert again.admin("dc1-2", "namespace_create", name="next").outcome == Outcome.APPLIED
    again.run(5 * SECOND)
    for name in again.names:
        assert [found["name"] for found in again.nodes[name].admin.namespaces()] == ["default", "late", "next"]
    again.run_until(lambda: again.are_equal("late"), 60 * SECOND)


def test_what_only_the_other_datacenter_s_copies_have_comes_back_to_the_one_that_wrote_it() -> None:
    """Its stream was closed by the time of the later copies, so no feed of its own datacenter ever brings it."""
    story = Story(3, 2)
    cluster = story.cluster
    for name in cluster.names:
        assert cluster.admin(name, "snapshot_hold", name="story").outcome == Outcome.APPLIED
    disks = {name: story.copy(name) for name in cluster.names if cluster.dc_of[name] == "dc1"}
    cluster.put("dc1-1", b"k", b"v")
    cluster.run(2 * SECOND)
    cluster.restart("dc1-1")
    cluster.serving().run(2 * SECOND)
    disks |= {name: story.copy(name) for name in cluster.names if name not in disks}
    again = restored(story, disks)
    again.run_until(partial(_is_all_closed, again), 60 * SECOND)
    assert again.get("dc1-2", b"k", Consistency.ALL).values == [b"v"]
    again.run_until(again.are_equal)
    assert [run.waiting for node in again.nodes.values() for run in node.runs] == [""] * len(again.names)


def test_a_tree_that_only_a_later_copy_knows_of_is_not_missed(tmp_path: Path) -> None:
    """The engine of the node that was copied before is opened with what its own state knows; the rest it learns then."""
    story = Story(7, 1)
    cluster = story.cluster
    for engine in cluster.engines.values():
        engine.check_holds = lambda engine: None  # type: ignore[method-assign]  # tables do for what is tried here
    disks = {"dc1-1": story.copy("dc1-1")}
    for engine_name in (LMDB, ROCKSDB):
        made = cluster.admin("dc1-2", "namespace_create", name=engine_name, engine=engine_name)
        assert made.outcome == Outcome.APPLIED
    disks |= {name: story.copy(name) for name in cluster.names if name not in disks}
    meta = reconciled(metas_of(disks), places_of(cluster), 7)["dc1-1"]
    disk = RealDisk(tmp_path)
    engine = NodeEngine(disk)
    engine.load((), Position(*disks["dc1-1"].frames[-1][:2]), control.pack(meta))
    config = cluster.nodes["dc1-1"].assembly.config
    node = Node.recover(config, story.rng, 0, WALL_US, None, disks["dc1-1"].frames, 1 << 20, disks["dc1-1"].sequence, engine)
    assert sorted(found["name"] for found in node.admin.namespaces()) == ["default", LMDB, ROCKSDB]
    engine.close()
    disk.close()


def test_the_order_of_nodes_does_not_matter() -> None:
    """Restored node by node in different places, all come to the same states."""
    story = Story(5, 2)
    story.act(6)
    metas, places = metas_of(story.copies()), places_of(story.cluster)
    backwards = dict(reversed(metas.items()))
    assert reconciled(metas, places, 7) == reconciled(backwards, places, 7)

"""One process, several runs of a node: a tree that was open in one is open in the next."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from geokv.core.namespace import define
from geokv.core.record import DELTA, NO_OPERATION, encode_record
from geokv.node.config import NodeConfig
from geokv.node.node import Node
from geokv.runtime.recovery import opener
from geokv.storage.disk import RealDisk
from geokv.storage.position import Position
from tests.node.harness import topology_of
from tests.storage.lsm.little_node import ORIGIN, cell_of
from tests.storage.tree.real_node import TREES


@pytest.mark.parametrize("engine", TREES)
def test_a_run_after_another_finds_the_tree(engine: str, tmp_path: Path) -> None:
    """LMDB and RocksDB may be opened once in a process: each run closes what it had."""
    disk = RealDisk(tmp_path / "node")
    config = NodeConfig("test", "dc1", "dc1-1", topology_of(1, 1, 1, 1))
    begin = opener(disk, config, random.Random(1))
    definition = define(7, "trees", {"engine": engine}, ["dc1"], 1, "dc1")
    opened = begin()
    assert isinstance(opened.machine, Node)
    opened.machine.assembly.define(definition)
    record = encode_record(DELTA, 0, 7, 1, 1, NO_OPERATION, ORIGIN, b"k", cell_of(1, b"v"))
    segment, offset = opened.log.append(record)
    held = opened.machine.assembly.engine
    opened.build(held.begin_flush(Position(segment, offset + len(record)), b""))  # in the worker process, or here
    opened.stop_building()
    opened.close()
    for _ in range(2):
        opened = begin()
        assert isinstance(opened.machine, Node)
        opened.machine.assembly.define(definition)
        assert opened.machine.context.tables[7].cells.get(b"k") == cell_of(1, b"v")
        opened.stop_building()
        opened.close()
    disk.close()

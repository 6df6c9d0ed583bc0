"""What version 0.1 left on a disk opens for ever."""

from __future__ import annotations

import hashlib
import io
import json
import random
import tarfile
from pathlib import Path

import zstandard

from geokv.core.cell import live_value
from geokv.core.topology import parse_topology
from geokv.node.config import NodeConfig
from geokv.node.node import Node
from geokv.runtime.recovery import opener
from geokv.storage.disk import RealDisk

GOLDEN = Path(__file__).parents[1] / "storage" / "golden" / "node-0.1.tar.zst"
SEGMENT_BYTES = 16 << 10
TOPOLOGY = """
cluster = "old"
partitions = 4
[[datacenter]]
name = "dc1"
replicas = 1
[[datacenter.node]]
name = "n1"
rack = "r1"
address = "127.0.0.1:7001"
"""
# Of the cells as version 0.1 itself had them in memory when it was stopped.
CELLS = {
    "default": (146, "68c228210e93258e10a0c427c479787c6452673aba71b159a27ba87cbe69b3f8"),
    "carts": (80, "a4d8cd9328f7f10ef6fc9b74d592480de1cc45801a11690022db31f3c22e6109"),
}


def opened(disk: RealDisk, seed: int) -> Node:
    config = NodeConfig("old", "dc1", "n1", parse_topology(TOPOLOGY, "old"), control_room_bytes=2048)
    node = opener(disk, config, random.Random(seed), SEGMENT_BYTES)().machine
    assert isinstance(node, Node)
    return node


def cells_of(node: Node) -> dict[str, tuple[int, str]]:
    """(how many, a digest of all) per namespace."""
    found = {}
    for table in node.context.tables.values():
        cells = {key.decode(): cell.hex() for key, cell in table.cells.items()}
        found[table.definition.name] = (len(cells), hashlib.sha256(json.dumps(cells).encode()).hexdigest())
    return found


def test_the_directory_of_a_node_of_version_0_1_opens_with_all_its_cells(tmp_path: Path) -> None:
    """Checkpoint, trimmed log and the frames behind: everything is there, the second time too, when the checkpoint is gone."""
    with tarfile.open(fileobj=io.BytesIO(zstandard.ZstdDecompressor().decompress(GOLDEN.read_bytes()))) as archive:
        archive.extractall(tmp_path, filter="data")
    disk = RealDisk(tmp_path)
    assert disk.list("checkpoint") == ["00000005.checkpoint"]
    for seed in range(3):
        node = opened(disk, seed)
        assert cells_of(node) == CELLS
        assert disk.list("checkpoint") == []
        assert node.assembly.engine.position.segment == 8
    table = node.assembly.table_named("default")
    assert table is not None
    cell = table.cells.get(b"key-001")
    assert cell is not None and live_value(cell, 0) == b"value 1 of run 0 " * 40
    assert any(stream.frontier for stream in table.streams)
    disk.close()

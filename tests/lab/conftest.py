"""A small lab: two datacenters, two nodes in one and one in the other, so that its tests cost little."""

from pathlib import Path

import pytest

SMALL = """
cluster = "small"
partitions = 16

[[datacenter]]
name = "here"
replicas = 2
node = [
  { name = "here-1", rack = "a", address = "127.0.0.1:7101" },
  { name = "here-2", rack = "b", address = "127.0.0.1:7102" },
]

[[datacenter]]
name = "there"
replicas = 1
node = [{ name = "there-1", rack = "a", address = "127.0.0.1:7201" }]

[[link]]
from = "here"
to = "there"
round_trip_ms = 40
"""


@pytest.fixture
def small_topology(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(SMALL, encoding="utf-8")
    return path

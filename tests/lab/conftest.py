"""A small lab: two datacenters, two nodes in one and one in the other, so that its tests cost little."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from geokv.lab.lab import Lab, read_topology
from geokv.lab.state import LabDirectory

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


@pytest.fixture(scope="module")
def lab_of_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    directory = tmp_path_factory.mktemp("shared")
    (directory / "small.toml").write_text(SMALL, encoding="utf-8")
    with Lab(read_topology(directory / "small.toml"), LabDirectory(directory / "lab")) as running:
        yield running


@pytest.fixture
def lab(lab_of_module: Lab) -> Iterator[Lab]:
    """A running lab that the tests of a file share: with all links healed, and keys and namespaces of those before."""
    yield lab_of_module
    lab_of_module.links.heal_all()

"""A crash or an error at every disk operation: what was acknowledged is there, and nothing half-made is."""

import random
from collections.abc import Callable, Iterator

import pytest

from tests.conftest import Samples
from tests.storage.lsm.little_node import FailingDisk, LittleNode, PowerCut, cell_of, sealed_files
from tests.storage.modes import CrashDisk
from tests.tally import Tally

pytestmark = pytest.mark.usefixtures("mode")

Step = Callable[[LittleNode], None]


class Workload:
    """Puts, overwrites, deletes, flushes and compactions; remembers what was acknowledged and what was under way."""

    def __init__(self) -> None:
        self.acknowledged: dict[bytes, bytes] = {}
        self.under_way: dict[bytes, bytes] = {}

    def put(self, node: LittleNode, version: int, keys: range) -> None:
        self.under_way = {
            b"%03d" % key: cell_of(version * 1000 + key, None if (key + version) % 7 == 0 else bytes([version]) * 20)
            for key in keys
        }
        if version % 2:
            node.put(1, self.under_way)
        else:
            node.put_unread(1, self.under_way)
        self.acknowledged |= self.under_way
        self.under_way = {}

    def steps(self) -> Iterator[Step]:
        for version in range(1, 6):
            yield lambda node, version=version: self.put(node, version, range(0, 40, version))  # type: ignore[misc]
            yield lambda node, version=version: self.put(node, version, range(40, 50))  # type: ignore[misc]
            yield lambda node, version=version: node.flush(b"state %d" % version)  # type: ignore[misc]
            yield _compact
        yield lambda node: self.put(node, 6, range(10))
        yield lambda node: node.compact_all()

    def check(self, node: LittleNode) -> None:
        found = dict(node.engine.scan(1))
        for key in self.acknowledged.keys() | self.under_way.keys() | found.keys():
            allowed = {self.acknowledged.get(key)}
            if key in self.under_way:
                allowed.add(max(self.under_way[key], self.acknowledged.get(key, b"")))
            assert found.get(key) in allowed, f"{key!r} holds {found.get(key)!r}"
            assert node.engine.get(1, key) == found.get(key)

    def settle(self, node: LittleNode) -> None:
        """What was under way and is there now counts from here on."""
        self.acknowledged = dict(node.engine.scan(1))
        self.under_way = {}


def _compact(node: LittleNode) -> None:
    node.compact()


def _run(disk: object, work: Workload) -> bool:
    """Whether it came to its end."""
    try:
        node = LittleNode(disk)  # type: ignore[arg-type]
        for step in work.steps():
            step(node)
    except PowerCut:
        return False
    return True


def _operations() -> int:
    disk = FailingDisk(CrashDisk(), 0, PowerCut)
    assert _run(disk, Workload())
    return disk.count


@pytest.mark.timeout(120)
def test_a_power_cut_at_every_disk_operation_loses_nothing(samples: Samples, tally: Tally) -> None:
    """Every operation of the workload in turn is the one before which the power goes; then all goes on as usual.

    Takes seconds: a few hundred operations, each with a run, recoveries and a second run.
    """
    operations = _operations()
    assert operations > 150
    with tally.of("power cuts: every disk operation of a workload, what was not synced lost, kept or torn") as count:
        for at in range(1, operations + 1):
            disk, work = CrashDisk(random.Random(at)), Workload()
            assert not _run(FailingDisk(disk, at, PowerCut), work)
            for seed in range(samples.of(test=1, check=3, soak=100)):
                crashed = disk.crash_clone(random.Random(at * 1000 + seed))
                node = LittleNode(crashed)
                work.check(node)
                assert len(sealed_files(crashed)) == 1 + len(node.engine.tables(1)), "an orphan stays"
                count.add()
            again = Workload()
            again.settle(node)
            node.flush()
            node.compact_all()
            again.check(node)
            again.check(LittleNode(crashed.crash_clone(random.Random(at))))


@pytest.mark.timeout(120)
def test_a_kill_and_then_a_power_cut_lose_nothing(samples: Samples, tally: Tally) -> None:
    """The process ends at every disk operation, the next one opens what the page cache shows, then the power goes.

    Takes seconds: a few hundred operations, each with a run and recoveries.
    """
    with tally.of("a kill at every disk operation, and then a power cut") as count:
        for at in range(1, _operations() + 1):
            disk, work = CrashDisk(random.Random(at)), Workload()
            assert not _run(FailingDisk(disk, at, PowerCut), work)
            work.check(LittleNode(disk))
            for seed in range(samples.of(test=1, check=3, soak=200)):
                work.check(LittleNode(disk.crash_clone(random.Random(at * 1000 + seed))))
                count.add()


def test_power_cuts_at_random(samples: Samples, tally: Tally) -> None:
    """Several crashes in one life, also while recovering, with the disk losing what it may."""
    operations = _operations()
    with tally.of("crash-and-recover cycles of one disk in process") as count:
        for seed in range(samples.of(test=20, check=50, soak=5000)):
            rng = random.Random(seed)
            disk, work = CrashDisk(rng), Workload()
            for _ in range(5):
                is_done = _run(FailingDisk(disk, rng.randint(1, operations), PowerCut), work)
                disk = disk.crash_clone(rng)
                node = LittleNode(disk)
                work.check(node)
                work.settle(node)
                count.add()
                # A later life begins again with lower versions: what is newer stays.
                disk = disk.crash_clone(rng)
                if is_done:
                    break
                work = _Continued(work.acknowledged)


class _Continued(Workload):
    """A workload over what an earlier life left: its cells win where they are newer."""

    def __init__(self, held: dict[bytes, bytes]) -> None:
        super().__init__()
        self.acknowledged = dict(held)

    def put(self, node: LittleNode, version: int, keys: range) -> None:
        before = dict(self.acknowledged)
        super().put(node, version, keys)
        self.acknowledged = {key: max(cell, before.get(key, b"")) for key, cell in self.acknowledged.items()}

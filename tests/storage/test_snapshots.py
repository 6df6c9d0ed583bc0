"""A snapshot is what the node held at its position, whole, or it is not there; whatever becomes of the node meanwhile."""

import errno
import random

import pytest

from geokv.core.limits import SNAPSHOT_AGE_MS_MAX, SNAPSHOTS_MAX
from geokv.errors import InvalidRequest, SnapshotNotFound, StorageError
from geokv.storage.snapshot_orders import Look, Remove, Take
from geokv.storage.snapshots import Snapshots
from geokv.storage.wal_verify import SegmentFigures, verify_log
from tests.storage.lsm.little_node import FailingDisk, LittleNode, PowerCut, cell_of
from tests.storage.modes import CrashDisk

pytestmark = pytest.mark.usefixtures("mode")
NOW_MS = 1_000_000


def _filled(disk: object) -> tuple[LittleNode, dict[bytes, bytes]]:
    """A node with tables, several segments of log, and a flush just done."""
    node = LittleNode(disk)  # type: ignore[arg-type]
    model: dict[bytes, bytes] = {}
    for version in range(1, 5):
        cells = {b"%03d" % key: cell_of(version * 1000 + key, bytes([version]) * 60) for key in range(60)}
        node.put(1, cells)
        model |= cells
        node.build(node.engine.begin_flush(node.end, b"state %d" % version))
        node.compact()
    return node, model


def _take(node: LittleNode, name: str = "one", now_ms: int = NOW_MS) -> Snapshots:
    snapshots = Snapshots(node.disk, node.engine)
    snapshots.do(Take(name, 7, now_ms, 1))
    return snapshots


def _unpacked(snapshots: Snapshots, name: str = "one") -> CrashDisk:
    """A node's folder made of nothing but what the snapshot gives away."""
    disk = CrashDisk()
    for folder in ("lsm", "log"):
        disk.make_folder(folder)
    for file in snapshots.find(name).files:
        content = b""
        while len(content) < file.used:
            content += snapshots.read(name, file.path, len(content), 1000)
        disk.append(file.path, content + bytes(file.nbytes - file.used))
        disk.sync(file.path)
    return disk


def _live(snapshots: Snapshots) -> None:
    snapshots.do(Take("one", 7, NOW_MS, 1))
    snapshots.do(Remove("one"))


def _tear_down(node: LittleNode) -> None:
    """Whatever a living node does to its files."""
    node.put(1, {b"%03d" % key: cell_of(90_000 + key, None) for key in range(60)})
    node.flush(b"a later state")
    node.compact_all()


def test_a_node_that_starts_from_a_snapshot_has_what_it_held() -> None:
    """Cells, state and position; what the node did later is not in it, and took nothing from it."""
    node, model = _filled(CrashDisk())
    snapshots = _take(node)
    position = node.engine.position
    _tear_down(node)
    assert not any(value for key, value in node.engine.scan(1) if key in model and value == model[key])
    unpacked = _unpacked(snapshots)
    assert all(isinstance(one, SegmentFigures) for one in verify_log(unpacked, position)), "its last frame is whole"
    again = LittleNode(unpacked)
    assert dict(again.engine.scan(1)) == model
    assert (again.engine.position, again.engine.meta, again.end) == (position, b"state 4", position)
    again.put(1, {b"new": cell_of(99_999, b"v")})
    assert again.engine.get(1, b"new") is not None


def test_files_that_stay_keep_their_identity() -> None:
    """Tables and closed segments of two snapshots that are the same are told by name and identity; others are never."""
    node, _ = _filled(CrashDisk())
    snapshots = _take(node)
    node.put(1, {b"x": cell_of(1, b"v")})
    node.build(node.engine.begin_flush(node.end, b"state"))
    _take(node, "two")
    one, two = ({f.path: f for f in snapshots.find(name).files} for name in ("one", "two"))
    same = [path for path in one.keys() & two.keys() if one[path].identity and one[path] == two[path]]
    assert any(path.endswith(".sst") for path in same) and any(path.endswith(".wal") for path in same)
    for path in same:
        assert node.disk.read_at(f"snapshots/one/{path}", 0, 1 << 20) == node.disk.read_at(f"snapshots/two/{path}", 0, 1 << 20)


def test_a_power_cut_at_every_disk_operation_leaves_a_whole_one_or_none(samples) -> None:
    """Takes seconds: some hundred operations. After each the node is as it was, and the next start cleans up."""
    counting = FailingDisk(_filled(CrashDisk())[0].disk, 0, PowerCut)
    node = LittleNode(counting)  # type: ignore[arg-type]
    counting.count = 0
    _take(node)
    Snapshots(counting, node.engine).do(Remove("one"))  # type: ignore[arg-type]
    operations, is_found = counting.count, set()
    assert operations > 40
    for at in range(1, operations + 1):
        node, model = _filled(CrashDisk(random.Random(at)))
        failing = FailingDisk(node.disk, at, PowerCut)  # type: ignore[arg-type]
        taking = Snapshots(failing, node.engine)  # type: ignore[arg-type]
        node.engine._disk = failing  # type: ignore[assignment]
        with pytest.raises(PowerCut):
            _live(taking)
        for seed in range(samples.of(test=2, check=8, soak=200)):
            crashed = node.disk.crash_clone(random.Random(seed))  # type: ignore[attr-defined]
            again = LittleNode(crashed)
            assert dict(again.engine.scan(1)) == model
            snapshots = Snapshots(crashed, again.engine)
            found = snapshots.do(Look(NOW_MS))
            is_found.add(bool(found))
            if found:
                assert dict(LittleNode(_unpacked(snapshots)).engine.scan(1)) == model
            else:
                assert crashed.folders("snapshots") == []
    assert is_found == {True, False}


def test_one_that_cannot_be_made_leaves_nothing() -> None:
    """An error of the disk, or a full one: told, nothing half-made stays, and the next try works."""
    for call in ("link", "append", "sync", "rename", "sync_dir"):
        node, model = _filled(CrashDisk())
        node.disk.fail(call, errno.ENOSPC, name="snapshots")  # type: ignore[attr-defined]
        with pytest.raises(StorageError):
            _take(node)
        assert node.disk.folders("snapshots") == [], call
        assert dict(LittleNode(_unpacked(_take(node))).engine.scan(1)) == model


def test_there_are_few_and_none_grows_old() -> None:
    """Beyond the limit it is refused with what there is; one that is a day old goes."""
    node, _ = _filled(CrashDisk())
    for number in range(SNAPSHOTS_MAX):
        snapshots = _take(node, f"s{number}", NOW_MS + number)
    with pytest.raises(InvalidRequest, match=r"there are 4 snapshots \(s0, s1, s2, s3\)"):
        _take(node, "more")
    with pytest.raises(InvalidRequest, match="there is a snapshot 's1' already"):
        _take(node, "s1")
    found = snapshots.do(Look(NOW_MS + SNAPSHOT_AGE_MS_MAX + 1))
    assert [one.name for one in found] == ["s2", "s3"]
    assert [one.name for one in snapshots.do(Remove("s2"))] == ["s3"]
    with pytest.raises(SnapshotNotFound):
        snapshots.do(Remove("s2"))


@pytest.mark.parametrize("name", ["", ".", "..", "../log", "a/b", "/etc", "x" * 65, "a\0", "-x", ".hidden", "é"])
def test_a_name_is_no_path(name: str) -> None:
    """Nothing that could lead out of the folder is taken for a name."""
    node, _ = _filled(CrashDisk())
    snapshots = _take(node)
    for order in (Take(name, 7, NOW_MS, 1), Remove(name)):
        with pytest.raises(InvalidRequest):
            snapshots.do(order)
    with pytest.raises(InvalidRequest):
        snapshots.read(name, "lsm/MANIFEST", 0, 10)


@pytest.mark.parametrize("path", ["", "SNAPSHOT", "../one/lsm/MANIFEST", "lsm/../../../log/00000001.wal", "/etc/passwd", "lsm"])
def test_only_its_own_files_are_read(path: str) -> None:
    """What it does not list is refused, and so are places beyond a file."""
    snapshots = _take(_filled(CrashDisk())[0])
    with pytest.raises(InvalidRequest, match="holds no file"):
        snapshots.read("one", path, 0, 10)
    for offset, length in ((-1, 5), (1 << 40, 5), (0, 0), (0, 1 << 30)):
        with pytest.raises(InvalidRequest, match=r"bytes at"):
            snapshots.read("one", "lsm/MANIFEST", offset, length)


def test_a_read_that_fails_costs_no_snapshot() -> None:
    """An EIO says nothing about what stands on the disk."""
    node, _ = _filled(CrashDisk())
    snapshots = _take(node)
    node.disk.fail("read_at", errno.EIO, name="SNAPSHOT")  # type: ignore[attr-defined]
    assert [one.name for one in snapshots.do(Look(NOW_MS))] == ["one"]


def test_a_damaged_marker_is_told_and_cleaned_up() -> None:
    """Every flipped bit of SNAPSHOT: never a snapshot that states something else."""
    node, _ = _filled(CrashDisk())
    snapshots = _take(node)
    size = node.disk.size("snapshots/one/SNAPSHOT")
    for offset in range(size):
        copy = node.disk.copy()  # type: ignore[attr-defined]
        byte = copy.read_at("snapshots/one/SNAPSHOT", offset, 1)[0]
        copy.damage("snapshots/one/SNAPSHOT", offset, bytes([byte ^ 1 << offset % 8]))
        with pytest.raises(StorageError, match="damaged"):
            Snapshots(copy, node.engine).find("one")
        assert Snapshots(copy, node.engine).do(Look(NOW_MS)) == []
    assert snapshots.find("one").name == "one"

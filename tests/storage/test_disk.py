"""The real disk and the crashable one: the same calls, the same answers, the same errors."""

import errno
import os
import random
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geokv.errors import DiskFull, StorageError
from geokv.storage.crash_disk import SECTOR_BYTES, CrashDisk
from geokv.storage.disk import OPEN_FILES_MAX, Disk, RealDisk


@pytest.fixture(params=["real", "crash"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    if request.param == "crash":
        yield CrashDisk()
        return
    real = RealDisk(tmp_path / "node")
    yield real
    real.close()


def test_what_is_written_is_read(disk: Disk) -> None:
    """append, write_at, allocate and read_at agree on contents, ends and sizes."""
    disk.append("a", b"one")
    disk.append("a", b"two")
    assert disk.read_at("a", 0, 100) == b"onetwo" and disk.read_at("a", 2, 2) == b"et"
    assert disk.read_at("a", 6, 1) == b"" and disk.size("a") == 6
    disk.write_at("a", 1, b"NE")
    disk.write_at("a", 8, b"gap")
    assert disk.read_at("a", 0, 100) == b"oNEtwo\0\0gap"
    disk.allocate("z", 3_000_001)
    assert disk.size("z") == 3_000_001 and disk.read_at("z", 2_999_999, 10) == b"\0\0"
    disk.write_at("z", 10, b"x")
    disk.allocate("z", 20)
    assert disk.read_at("z", 0, 100) == bytes(20)
    disk.sync("a")
    assert disk.free_bytes() > 0


def test_a_link_is_a_second_name_of_one_file(disk: Disk) -> None:
    """What is written shows under both names; one of them removed leaves the other; a taken name is refused."""
    disk.make_folder("a/b")
    disk.append("a/one", b"12")
    disk.link("a/one", "a/b/two")
    disk.append("a/one", b"3")
    assert disk.read_at("a/b/two", 0, 9) == b"123"
    with pytest.raises(StorageError, match="linking"):
        disk.link("a/one", "a/b/two")
    with pytest.raises(StorageError, match="linking"):
        disk.link("a/none", "a/b/three")
    disk.remove("a/one")
    assert disk.read_at("a/b/two", 0, 9) == b"123" and not disk.exists("a/one")


def test_folders_are_listed_and_removed_when_they_are_empty(disk: Disk) -> None:
    """Only folders, sorted; one that holds something stays."""
    disk.make_folder("a/c")
    disk.make_folder("a/b")
    disk.append("a/b/file", b"x")
    assert disk.folders("a") == ["b", "c"]
    with pytest.raises(StorageError, match="removing"):
        disk.remove_folder("a/b")
    disk.remove("a/b/file")
    disk.remove_folder("a/b")
    assert disk.folders("a") == ["c"]


def test_a_link_is_durable_with_its_folder_and_takes_no_space() -> None:
    """Without a sync of the folder it may be lost, with it it is there; the space comes back with the last name."""
    disk = CrashDisk(capacity_bytes=100)
    disk.make_folder("a")
    disk.make_folder("b")
    disk.append("a/f", b"0123456789")
    disk.sync("a/f")
    disk.sync_dir("a")
    disk.link("a/f", "b/f")
    assert disk.free_bytes() == 90
    found = {disk.crash_clone(random.Random(seed)).exists("b/f") for seed in range(30)}
    assert found == {True, False}
    disk.sync_dir("b")
    for seed in range(30):
        crashed = disk.crash_clone(random.Random(seed))
        assert crashed.read_at("b/f", 0, 99) == b"0123456789" and crashed.free_bytes() == 90
    disk.remove("a/f")
    assert disk.free_bytes() == 90
    disk.remove("b/f")
    assert disk.free_bytes() == 100


def test_names_follow_renames_and_removals(disk: Disk) -> None:
    """A rename takes the content along, over another file too; a removed name is free; lists are sorted."""
    disk.make_folder("log/deep")
    disk.make_folder("log")
    disk.append("log/b", b"b")
    disk.append("log/a", b"a")
    disk.append("log/deep/c", b"c")
    assert disk.list("log") == ["a", "b"] and disk.list("log/deep") == ["c"]
    disk.rename("log/b", "log/a")
    assert disk.list("log") == ["a"] and disk.read_at("log/a", 0, 9) == b"b"
    disk.append("log/a", b"+")
    disk.rename("log/a", "log/deep/c")
    assert disk.read_at("log/deep/c", 0, 9) == b"b+" and disk.list("log") == []
    disk.sync_dir("log")
    disk.sync_dir("log/deep")
    disk.remove("log/deep/c")
    assert not disk.exists("log/deep/c") and disk.exists("log/deep")
    disk.append("log/deep/c", b"new")
    assert disk.read_at("log/deep/c", 0, 9) == b"new"


@pytest.mark.parametrize(
    "attempt",
    [
        lambda disk: disk.read_at("gone", 0, 1),
        lambda disk: disk.write_at("gone", 0, b"x"),
        lambda disk: disk.size("gone"),
        lambda disk: disk.sync("gone"),
        lambda disk: disk.remove("gone"),
        lambda disk: disk.rename("gone", "new"),
        lambda disk: disk.list("gone"),
        lambda disk: disk.sync_dir("gone"),
        lambda disk: disk.append("gone/x", b"x"),
        lambda disk: disk.allocate("gone/x", 10),
    ],
)
def test_what_is_not_there_is_a_storage_error_with_its_path(disk: Disk, attempt) -> None:
    """Every call on a missing file or folder raises StorageError and names the path."""
    with pytest.raises(StorageError, match=r"gone.*: No such file"):
        attempt(disk)


# --- the real one ------------------------------------------------------------------------------------------


def test_a_full_disk_is_told_from_other_errors(tmp_path: Path) -> None:
    """ENOSPC from the operating system becomes DiskFull, and says what to do."""
    disk = RealDisk(tmp_path)
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(DiskFull, match=r"no room left while writing .*full: .*free some space"):
        disk.write_at("full", 0, b"x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match=r"writing .*folder failed: Is a directory") as caught:
        disk.write_at("folder", 0, b"x")
    assert not isinstance(caught.value, DiskFull) and caught.value.details["path"].endswith("folder")
    disk.close()


def test_a_second_process_is_refused_and_told_who_has_it(tmp_path: Path) -> None:
    """The root belongs to one process at a time; the other one learns its process id."""
    opening = (
        "import sys; from pathlib import Path; from geokv.storage.disk import RealDisk\n"
        "RealDisk(Path(sys.argv[1])); print('got it')"
    )
    disk = RealDisk(tmp_path)
    command = [sys.executable, "-c", opening, str(tmp_path)]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 1 and f"in use by process {os.getpid()}: stop it first" in refused.stderr
    with pytest.raises(StorageError, match="in use by process"):
        RealDisk(tmp_path)
    disk.close()
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "got it\n"


def test_a_folder_that_may_only_be_read_can_be_looked_into_and_stays_as_it_is(tmp_path: Path) -> None:
    """Also where it has no LOCK, like a copy; while a node runs there it is refused as ever."""
    (tmp_path / "file").write_bytes(b"content")
    looking = (
        "import os, sys; from pathlib import Path; from geokv.storage.disk import RealDisk\n"
        "if os.getuid() == 0: os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"  # whom permissions bind
        "disk = RealDisk(Path(f'/proc/self/fd/{sys.argv[1]}'), is_read_only=True)\n"
        "print(disk.read_at('file', 0, 7)); disk.close()\n"
    )
    folder = os.open(tmp_path, os.O_RDONLY)

    def looked() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", looking, str(folder)]
        return subprocess.run(command, capture_output=True, text=True, check=False, pass_fds=[folder])

    for has_lock in (False, True):
        if has_lock:
            RealDisk(tmp_path).close()
        for path in tmp_path.iterdir():
            path.chmod(0o444)
        tmp_path.chmod(0o555)
        before = sorted(path.name for path in tmp_path.iterdir())
        found = looked()
        tmp_path.chmod(0o755)
        assert found.stdout == "b'content'\n", found.stderr
        assert sorted(path.name for path in tmp_path.iterdir()) == before
    (tmp_path / "LOCK").chmod(0o644)
    disk = RealDisk(tmp_path)
    assert f"in use by process {os.getpid()}" in looked().stderr
    disk.close()
    os.close(folder)


def test_a_closed_disk_refuses(tmp_path: Path) -> None:
    """After close no file is opened any more; closing twice is harmless."""
    disk = RealDisk(tmp_path)
    disk.append("a", b"x")
    disk.close()
    disk.close()
    with pytest.raises(StorageError, match="was closed"):
        disk.read_at("a", 0, 1)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors in /proc, which is not there")
def test_open_files_are_bounded_and_unsynced_ones_stay_open(tmp_path: Path) -> None:
    """Many files share few descriptors, but none with unsynced writes is closed before its sync."""
    disk = RealDisk(tmp_path)
    disk.append("unsynced", b"x")
    for index in range(3 * OPEN_FILES_MAX):
        disk.append(f"{index}", b"y")
        disk.sync(f"{index}")
    descriptors = [
        target.name
        for link in Path("/proc/self/fd").iterdir()
        if (target := _target(link)) is not None and target.parent == tmp_path
    ]
    assert "unsynced" in descriptors and OPEN_FILES_MAX - 1 <= len(descriptors) <= OPEN_FILES_MAX + 1
    assert all(disk.read_at(f"{index}", 0, 9) == b"y" for index in range(3 * OPEN_FILES_MAX))
    disk.close()


def _target(link: Path) -> Path | None:
    try:
        return link.readlink()
    except OSError:
        return None


def test_a_short_write_is_carried_on_until_its_error(tmp_path: Path) -> None:
    """What the system writes only in part is written on; the error that stops it is the one that is told."""
    script = (
        "import resource, signal, sys; from pathlib import Path; from geokv.storage.disk import RealDisk\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "disk = RealDisk(Path(sys.argv[1]))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))\n"
        "try:\n    disk.append('a', b'x' * 1500)\n"
        "except Exception as error:\n    print(type(error).__name__, error)\n"
        "try:\n    disk.allocate('b', 1500)\n"
        "except Exception as error:\n    print(type(error).__name__, error)\n"
        "print(disk.size('a'), disk.exists('b'))\n"
    )
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 1000
    command = [sys.executable, "-c", script, str(tmp_path)]
    first, second, third = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert first.startswith("StorageError writing") and first.endswith("File too large")
    assert second.startswith("StorageError allocating") and third == "1000 False"


# --- the crashable one -------------------------------------------------------------------------------------


@given(
    writes=st.lists(st.tuples(st.integers(0, 4000), st.binary(min_size=1, max_size=1500), st.booleans()), max_size=12),
    seed=st.integers(0, 2**32),
)
def test_a_power_cut_changes_only_what_was_not_synced(writes: list[tuple[int, bytes, bool]], seed: int) -> None:
    """Each byte after a crash is the synced one, or one of those written since."""
    disk = CrashDisk()
    disk.append("a", b"")
    disk.sync("a")
    disk.sync_dir("")
    synced, possible = bytearray(8000), [{0} for _ in range(8000)]
    length = 0
    for offset, payload, is_synced in writes:
        disk.write_at("a", offset, payload)
        for index, byte in enumerate(payload, start=offset):
            possible[index].add(byte)
        length = max(length, offset + len(payload))
        if is_synced:
            disk.sync("a")
            synced[:length] = disk.read_at("a", 0, length)
            possible = [{byte} for byte in synced]
    visible = disk.read_at("a", 0, length)
    crashed = disk.crash_clone(random.Random(seed))
    assert all(byte in possible[index] for index, byte in enumerate(crashed.read_at("a", 0, 8000)))
    assert disk.read_at("a", 0, 8000) == visible, "the disk that was cloned stays as it is"
    assert crashed.crash_clone(random.Random(seed)).read_at("a", 0, 8000) == crashed.read_at("a", 0, 8000)


def test_every_fate_of_an_unsynced_write_happens() -> None:
    """Over the seeds a write is lost, kept, cut to a prefix, or without some whole sectors in the middle."""
    payload = b"\1" * (6 * SECTOR_BYTES)
    disk = CrashDisk()
    disk.allocate("a", len(payload))
    disk.sync_dir("")
    disk.write_at("a", 0, payload)
    fates = set()
    for seed in range(200):
        after = disk.crash_clone(random.Random(seed)).read_at("a", 0, len(payload))
        kept = after.count(1)
        is_prefix = after == b"\1" * kept + bytes(len(payload) - kept)
        fate = "lost" if not kept else "kept" if after == payload else "prefix" if is_prefix else "middle"
        if fate == "middle":
            assert after.index(b"\0") % SECTOR_BYTES == 0 and kept % SECTOR_BYTES == 0
        fates.add(fate)
    assert fates == {"lost", "kept", "prefix", "middle"}


def test_names_are_lost_without_a_sync_of_their_folder() -> None:
    """A new, renamed or removed file has its old or its new name after a crash; once synced, the new one."""
    base = CrashDisk()
    base.append("old", b"old")
    base.append("doomed", b"doomed")
    for name in ("old", "doomed"):
        base.sync(name)
    base.sync_dir("")
    disk = base.copy()
    disk.append("made", b"made")
    disk.sync("made")
    disk.rename("old", "new")
    disk.remove("doomed")
    seen = {tuple(disk.crash_clone(random.Random(seed)).list("")) for seed in range(200)}
    assert ("doomed", "old") in seen and ("made", "new") in seen and len(seen) == 8
    disk.sync_dir("")
    for seed in range(20):
        crashed = disk.crash_clone(random.Random(seed))
        assert crashed.list("") == ["made", "new"] and crashed.read_at("new", 0, 9) == b"old"


def test_a_failed_sync_is_not_made_good_by_the_next_one() -> None:
    """After a failed sync another sync makes nothing durable, though the content shows; a new write does."""
    lost = 0
    for seed in range(40):
        disk = CrashDisk(random.Random(seed))
        disk.allocate("a", 10)
        disk.sync_dir("")
        disk.write_at("a", 0, b"lost?")
        disk.fail("sync", errno.EIO)
        with pytest.raises(StorageError):
            disk.sync("a")
        disk.sync("a")
        assert disk.read_at("a", 0, 5) == b"lost?"
        lost += disk.crash_clone(random.Random(seed)).read_at("a", 0, 5) != b"lost?"
        disk.write_at("a", 0, b"again")
        disk.sync("a")
        assert disk.crash_clone(random.Random(seed)).read_at("a", 0, 5) == b"again"
    assert lost > 5


def test_the_same_seed_gives_the_same_crash() -> None:
    """Crashes depend on the disk's history and the seed alone."""
    disk = CrashDisk()
    disk.append("a", b"x" * 5000)
    disk.sync_dir("")
    for seed in range(30):
        one, two = (disk.crash_clone(random.Random(seed)).read_at("a", 0, 5000) for _ in range(2))
        assert one == two


def test_injected_errors_strike_as_told() -> None:
    """`after` calls pass, `times` fail, only names that match count, and `heal` ends it."""
    disk = CrashDisk()
    disk.append("a", b"x")
    disk.append("b", b"x")
    disk.fail("read_at", errno.EIO, name="a", after=1, times=2)
    assert disk.read_at("b", 0, 1) == disk.read_at("a", 0, 1) == b"x"
    for _ in range(2):
        with pytest.raises(StorageError, match="Input/output"):
            disk.read_at("a", 0, 1)
    assert disk.read_at("a", 0, 1) == b"x"
    disk.fail("append", errno.ENOSPC, times=-1, written=2)
    for _ in range(3):
        with pytest.raises(DiskFull):
            disk.append("a", b"1234")
    disk.heal()
    disk.append("a", b"!")
    assert disk.read_at("a", 0, 99) == b"x121212!"


def test_a_capacity_is_kept_and_given_back() -> None:
    """Writes stop at the capacity, with what fitted written; removing a file makes room again."""
    disk = CrashDisk(capacity_bytes=1000)
    disk.allocate("a", 600)
    with pytest.raises(DiskFull):
        disk.allocate("b", 500)
    assert not disk.exists("b") and disk.free_bytes() == 400
    with pytest.raises(DiskFull):
        disk.append("c", bytes(500))
    assert disk.size("c") == 400 and disk.free_bytes() == 0
    disk.write_at("a", 0, b"inside")
    disk.remove("a")
    disk.append("c", bytes(600))
    assert disk.free_bytes() == 0 and disk.copy().free_bytes() == 0


def test_a_copy_is_a_disk_of_its_own() -> None:
    """An image of a disk holds all that was visible, durably, and does not change with the disk."""
    disk = CrashDisk()
    disk.append("a", b"then")
    image = disk.copy()
    disk.append("a", b"now")
    assert image.read_at("a", 0, 99) == b"then"
    assert image.crash_clone(random.Random(1)).read_at("a", 0, 99) == b"then"

"""Gets of other threads see every put, never an older one, while flushes and compactions switch what they read."""

import random
import sys
import threading
from collections.abc import Iterator

import pytest

from geokv.core.cell import lww_version
from geokv.storage.crash_disk import CrashDisk
from tests.storage.lsm.little_node import LittleNode, cell_of


@pytest.fixture
def _eager_switches() -> Iterator[None]:
    """Let threads take turns far more often than usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_eager_switches")
def test_no_get_goes_back_while_tables_are_switched(samples) -> None:
    """A key's version, once put, is the least that any thread reads from then on.

    Takes a second: threads need some hundred switches to meet.
    """
    node = LittleNode(CrashDisk())
    cells = node.engine.table(1)
    keys = [b"%02d" % index for index in range(40)]
    node.put(1, dict.fromkeys(keys, cell_of(1, b"v")))
    put = dict.fromkeys(keys, 1)  # raised after the put, so a reader may see more, never less
    failures: list[str] = []
    is_over = threading.Event()

    def read(seed: int) -> None:
        rng = random.Random(seed)
        while not is_over.is_set() and not failures:
            key = rng.choice(keys)
            least = put[key]
            if rng.random() < 0.2:
                cells.load([key])
            found = cells.get(key)
            if found is None or lww_version(found) < least:
                failures.append(f"{key!r}: {found!r}, version {least} was put")

    readers = [threading.Thread(target=read, args=(seed,)) for seed in range(3)]
    for reader in readers:
        reader.start()
    rng = random.Random(9)
    try:
        for version in range(2, samples.of(test=500, check=2000, soak=40_000)):
            some = rng.sample(keys, 12)
            pairs = dict.fromkeys(some, cell_of(version, bytes(rng.randrange(40))))
            (node.put if version % 2 else node.put_unread)(1, pairs)
            put.update(dict.fromkeys(some, version))
            if version % 3 == 0:
                node.flush()
            if version % 5 == 0:
                node.compact()
            if version % 11 == 0:
                node.compact_all()
    finally:
        is_over.set()
        for reader in readers:
            reader.join()
    assert not failures


def test_a_get_in_the_midst_of_a_freeze_finds_what_was_put() -> None:
    """Before, while and after the view takes in the frozen memtable, the cell is in one of the two places."""
    node = LittleNode(CrashDisk())
    cells = node.engine.table(1)
    node.put(1, {b"k": cell_of(1, b"v")})
    seen: list[bytes | None] = []

    class Looking:
        def __enter__(self) -> None:
            seen.append(cells.get(b"k"))

        def __exit__(self, *_: object) -> None:
            seen.append(cells.get(b"k"))

    cells._lock = Looking()  # type: ignore[assignment]
    node.flush()
    assert len(seen) == 4 and set(seen) == {cell_of(1, b"v")}, "two switches: frozen, then in a table"

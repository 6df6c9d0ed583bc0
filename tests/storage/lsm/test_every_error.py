"""Each disk call of a script of 200 operations fails once: nothing that was acknowledged is lost, and the node goes on."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from typing import Any

import pytest

from geokv.errors import StorageError
from geokv.storage.crash_disk import CrashDisk
from geokv.storage.disk import storage_error
from tests.conftest import Samples
from tests.storage.lsm.little_node import FailingDisk, LittleNode, cell_of
from tests.tally import Tally

OPERATIONS = 200
ERRORS = {"EIO": errno.EIO, "ENOSPC": errno.ENOSPC, "EINTR": errno.EINTR, "short": errno.EIO}


class Script:
    """Puts, deletes, gets, flushes, compactions and restarts, the same in each run of a seed."""

    def __init__(self, disk: FailingDisk, seed: int) -> None:
        self._disk = disk
        self._rng = random.Random(seed)
        self._node: LittleNode | None = None
        self.held: dict[bytes, bytes] = {}
        self.failures = 0

    def run(self) -> None:
        for number in range(1, OPERATIONS + 1):
            self._operation(number)
        self._tried(self.check)

    def _operation(self, number: int) -> None:
        rng = self._rng
        what = rng.choices(("put", "get", "flush", "compact", "restart"), (60, 20, 8, 8, 4))[0]
        if what == "put":
            pairs = {b"%02d" % rng.randrange(50): self._cell(number) for _ in range(rng.randrange(1, 6))}
            self._put(pairs, is_read=rng.random() < 0.5)
        elif what == "get":
            key = b"%02d" % rng.randrange(60)
            assert self._tried(lambda node: node.engine.get(1, key)) == self.held.get(key)
        elif what == "flush":
            self._tried(lambda node: node.flush(b"%d" % number))
        elif what == "compact":
            self._tried(LittleNode.compact)
        else:
            self._node = None

    def _cell(self, version: int) -> bytes:
        rng = self._rng
        return cell_of(version, None if rng.random() < 0.2 else rng.randbytes(rng.randrange(120)))

    def _put(self, pairs: dict[bytes, bytes], is_read: bool) -> None:
        """A put that failed may be there or not, until it is done again: what failed once is never acknowledged."""
        self._tried(lambda node: node.put(1, pairs) if is_read else node.put_unread(1, pairs), ends_the_run=True)
        self.held |= pairs

    def _tried(self, step: Callable[[LittleNode], Any], ends_the_run: bool = False) -> Any:
        """Do it, and once more where it failed: one call fails, so the second time it must be done.

        `ends_the_run`: as a log that failed does; then the disk is opened anew.
        """
        for _ in range(2):
            try:
                if self._node is None:
                    self._node = LittleNode(self._disk)  # type: ignore[arg-type]
                return step(self._node)
            except StorageError:
                self.failures += 1
                if ends_the_run:
                    self._node = None
        raise AssertionError(f"{self._disk.failed} failed once, what needed it twice")

    def check(self, node: LittleNode) -> None:
        assert dict(node.engine.scan(1)) == self.held


def _calls(seed: int) -> int:
    disk = FailingDisk(CrashDisk(random.Random(seed)), 0, StorageError)
    Script(disk, seed).run()
    return disk.count


@pytest.mark.timeout(120)  # a run of the script takes some 30 ms, and there is one for each call and error
@pytest.mark.parametrize("error", ERRORS)
def test_a_disk_call_that_fails_once_loses_nothing(error: str, samples: Samples, tally: Tally) -> None:
    """Every call in turn, with each error: an error or a short result is told, never acknowledged, and what follows works."""
    seed = list(ERRORS).index(error)
    calls = range(1, _calls(seed) + 1)
    wanted = min(len(calls), samples.of(test=25, check=50, soak=len(calls)))
    unnoticed = 0
    with tally.of("disk calls of a script of 200 operations that failed once: EIO, ENOSPC, EINTR, a short result") as count:
        for at in random.Random(seed).sample(calls, wanted):
            platter = CrashDisk(random.Random(at))
            disk = FailingDisk(
                platter, at, lambda: storage_error(OSError(ERRORS[error], "injected"), "doing", "it"), error == "short"
            )
            script = Script(disk, seed)
            script.run()
            assert disk.failed and script.failures <= 1
            unnoticed += not script.failures
            # What one call left behind must not show after a power cut either.
            script.check(LittleNode(platter.crash_clone(random.Random(at))))
            count.add()
    # A file that could not be removed is removed later; a short list or size of a spare changes nothing.
    assert unnoticed < wanted / 2, f"{unnoticed} of {wanted} failures were told to nobody"

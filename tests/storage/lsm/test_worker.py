"""The worker process does what the same call does here, and ends with the node."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import geokv
from geokv.core.record import DELTA, NO_OPERATION, encode_record
from geokv.errors import StorageError
from geokv.node.config import NodeConfig
from geokv.node.node import Node
from geokv.runtime.recovery import opener
from geokv.storage.disk import RealDisk
from geokv.storage.lsm.facts import TableFacts
from geokv.storage.lsm.pacing import Pacer, Throttle
from geokv.storage.lsm.worker import Worker
from geokv.storage.position import Position
from tests.node.harness import topology_of
from tests.storage.lsm.little_node import ORIGIN, LittleNode, cell_of, sealed_files


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[RealDisk]:
    disk = RealDisk(tmp_path / "node")
    yield disk
    disk.close()


@pytest.fixture
def worker(disk: RealDisk) -> Iterator[Worker]:
    worker = Worker(disk.root)
    yield worker
    worker.close()


def _wait(until: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not until():
        assert time.monotonic() < deadline, "it did not come to pass in 20 s"
        threading.Event().wait(0.01)


def _put(node: LittleNode, version: int) -> dict[bytes, bytes]:
    pairs = {b"%04d" % index: cell_of(version * 10_000 + index, os.urandom(100)) for index in range(500)}
    node.put(1, pairs)
    return pairs


def test_flush_and_compaction_in_the_worker(disk: RealDisk, worker: Worker) -> None:
    """Tables made from the log, and from tables, by another process at low priority, under the node's lock.

    Takes a second: it starts an interpreter.
    """
    node = LittleNode(disk)
    model: dict[bytes, bytes] = {}
    assert worker.process_id is None
    for version in (1, 2, 3):
        model |= _put(node, version)
        flush = node.engine.begin_flush(node.end, b"state")
        node.engine.install(flush, worker.run(flush))
    process = worker.process_id
    assert process is not None and process != os.getpid()
    assert os.getpriority(os.PRIO_PROCESS, process) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 10)
    job = node.engine.full_compaction(1)
    assert job is not None
    node.engine.install(job, worker.run(job))
    assert worker.process_id == process, "one process for all jobs"
    if Path("/proc").is_dir():
        opened = [str(path.readlink()) for path in Path(f"/proc/{process}/fd").iterdir()]
        assert not [path for path in opened if str(disk.root) in path], "the files of a job are closed after it"
    assert dict(node.engine.scan(1)) == model
    assert sum(facts.pairs for facts in node.engine.tables(1)) == 500


def test_the_error_of_a_job_comes_back_as_it_was(disk: RealDisk, worker: Worker) -> None:
    """A damaged input is named with its offset, and the worker takes the next job."""
    node = LittleNode(disk)
    model = _put(node, 1)
    node.flush()
    name = node.engine.tables(1)[0].name
    byte = disk.read_at(name, 30, 1)
    job = node.engine.full_compaction(1)
    assert job is not None
    disk.write_at(name, 30, bytes([byte[0] ^ 1]))
    with pytest.raises(StorageError, match=f"{name}: damaged at byte 0") as caught:
        worker.run(job)
    assert (caught.value.details["path"], caught.value.details["offset"]) == (name, 0)
    disk.write_at(name, 30, byte)
    node.engine.install(job, worker.run(job))
    assert dict(node.engine.scan(1)) == model


def test_a_worker_that_is_killed_fails_its_job_and_the_next_one_starts_another(disk: RealDisk, worker: Worker) -> None:
    """SIGKILL in the midst of a job: an error, what it had written is removed, and the flush is done again."""
    node = LittleNode(disk)
    model = _put(node, 1)
    worker.throttle(is_paused=True)
    flush = node.engine.begin_flush(node.end, b"")
    failures: list[StorageError] = []

    def run() -> None:
        try:
            worker.run(flush)
        except StorageError as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    state = [f"META-{flush.number - 1:016x}"] if node.engine.meta else []
    _wait(lambda: disk.list("lsm") != ["MANIFEST", *state])
    process = worker.process_id
    assert process is not None
    os.kill(process, signal.SIGKILL)
    thread.join(20)
    assert len(failures) == 1 and "ended during job" in str(failures[0])
    worker.throttle()
    assert disk.list("lsm") == [f"{flush.number << 16:016x}.sst", "MANIFEST", *state]
    node.engine.discard(flush)
    assert disk.list("lsm") == ["MANIFEST", *state]
    flush = node.engine.flush_again(flush)
    node.engine.install(flush, worker.run(flush))
    assert worker.process_id != process and dict(node.engine.scan(1)) == model
    assert len(sealed_files(disk)) == 1 + len(node.engine.tables(1))
    assert dict(LittleNode(disk).engine.scan(1)) == model


class _Refusing(RealDisk):
    """Syncs only the first table of a job while it refuses."""

    is_refusing = True

    def sync(self, name: str) -> None:
        if self.is_refusing and name.endswith(".sst") and not name.endswith("0000.sst"):
            raise StorageError("injected")
        super().sync(name)


def test_the_host_removes_what_a_job_that_failed_has_left(tmp_path: Path) -> None:
    """As a node runs it: however often a flush is tried, there is not one file more; then it stands."""
    disk = _Refusing(tmp_path / "node")
    config = NodeConfig("test", "dc1", "dc1-1", topology_of(1, 1, 1, 1))
    opened = opener(disk, config, random.Random(1))()
    opened.stop_building()  # jobs run here
    assert isinstance(opened.machine, Node)
    engine = opened.machine.assembly.engine
    for namespace in (2, 3):
        engine.create(namespace)
    records = [encode_record(DELTA, 0, one, 1, 1, NO_OPERATION, ORIGIN, b"k", cell_of(1, b"v")) for one in (2, 3)]
    segment, offset = opened.log.append(b"".join(records))
    job = engine.begin_flush(Position(segment, offset + sum(map(len, records))), b"state")
    for _ in range(3):
        with pytest.raises(StorageError, match="injected"):
            opened.build(job)
        assert disk.list("lsm") == ["MANIFEST"]
        job = engine.flush_again(job)
    disk.is_refusing = False
    opened.build(job)
    assert len(sealed_files(disk)) == 3 and engine.meta == b"state"
    opened.close()
    disk.close()


def test_pausing_and_going_on_counts_in_the_midst_of_a_job(disk: RealDisk, worker: Worker) -> None:
    """A paused job waits before its next write, and ends once it may go on, at whatever rate."""
    node = LittleNode(disk)
    _put(node, 1)
    worker.throttle(is_paused=True)
    flush = node.engine.begin_flush(node.end, b"")
    done: list[object] = []
    thread = threading.Thread(target=lambda: done.append(worker.run(flush)))
    thread.start()
    _wait(lambda: disk.list("lsm") != ["MANIFEST"])
    thread.join(0.3)
    assert thread.is_alive() and not done
    worker.throttle(bytes_per_s=10_000_000)
    thread.join(20)
    assert len(done) == 1


class _Between:
    """A lock that has something happen, on another thread, before or while a job's writer holds it for the first time."""

    def __init__(self, happens: Callable[[], None], is_held: bool) -> None:
        self._lock = threading.Lock()
        self._happens = [happens]
        self._is_held = is_held

    def acquire(self, blocking: bool = True) -> bool:
        if not self._is_held:
            self._happen()
        return self._lock.acquire(blocking)

    def release(self) -> None:
        self._lock.release()

    def __enter__(self) -> None:
        self.acquire()
        self._happen()

    def __exit__(self, *error: object) -> None:
        self.release()

    def _happen(self) -> None:
        while self._happens:
            thread = threading.Thread(target=self._happens.pop())
            thread.start()
            thread.join(20)
            assert not thread.is_alive(), "it waits for the lock"


@pytest.mark.parametrize("is_held", [False, True])
def test_going_on_while_the_process_starts_is_not_undone_by_what_held_before(
    disk: RealDisk, worker: Worker, is_held: bool
) -> None:
    """What was said last counts, whichever thread writes it to the pipe first, and saying it waits for nobody.

    Takes a second: an interpreter starts.
    """
    node = LittleNode(disk)
    model = _put(node, 1)
    flush = node.engine.begin_flush(node.end, b"")
    worker.throttle(is_paused=True)
    worker._ordering = _Between(worker.throttle, is_held)  # type: ignore[assignment]
    found: list[tuple[TableFacts, ...]] = []
    thread = threading.Thread(target=lambda: found.append(worker.run(flush)), daemon=True)
    thread.start()
    thread.join(20)
    assert found, "it is still paused"
    node.engine.install(flush, found[0])
    assert dict(node.engine.scan(1)) == model


class _Root(type(Path())):  # type: ignore[misc]
    """A path that has something happen when the process is about to be started there."""

    happens: Callable[[], None]

    def absolute(self) -> Path:
        self.happens()
        return Path(str(self)).absolute()


def test_one_that_is_closed_while_its_process_starts_runs_no_job(disk: RealDisk) -> None:
    """Nothing of it writes any more when the folder is opened anew. Takes a second: an interpreter starts."""
    root = _Root(str(disk.root))
    worker = Worker(root)
    root.happens = worker.close
    node = LittleNode(disk)
    _put(node, 1)
    with pytest.raises(StorageError, match="closed"):
        worker.run(node.engine.begin_flush(node.end, b""))
    assert worker.process_id is None and not [name for name in disk.list("lsm") if name.endswith(".sst")]


def test_the_worker_dies_with_its_node(tmp_path: Path) -> None:
    """SIGKILL of the node, in the midst of a paused job too: the worker is gone at once.

    Takes a second: it starts two interpreters.
    """
    program = """if True:
        import sys, threading
        from pathlib import Path
        from geokv.storage.disk import RealDisk
        from geokv.storage.lsm.worker import Worker
        from tests.storage.lsm.little_node import LittleNode, cell_of
        disk = RealDisk(Path(sys.argv[1]))
        node = LittleNode(disk)
        node.put(1, {b"k": cell_of(1, b"v")})
        worker = Worker(disk.root)
        worker.throttle(is_paused=True)
        flush = node.engine.begin_flush(node.end, b"")
        threading.Thread(target=worker.run, args=(flush,), daemon=True).start()
        while worker.process_id is None or disk.list("lsm") == ["MANIFEST"]:
            threading.Event().wait(0.01)
        print(worker.process_id, flush=True)
        threading.Event().wait()
    """
    root = Path(geokv.__file__).parents[1]
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "node")],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(root)},
    ) as node:
        assert node.stdout is not None
        process = int(node.stdout.readline())
        os.kill(process, 0)
        node.kill()
    _wait(lambda: not _is_running(process))


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    # Without an init that reaps, what has ended stays a zombie.
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True, check=False).stdout
    return not state.strip().startswith("Z") and bool(state.strip())


def test_closing_ends_a_process_that_hangs(disk: RealDisk, worker: Worker) -> None:
    """It was stopped and reads no more, and a job stands half in its pipe: `close` kills it, and the job fails.

    Takes half a second: it starts an interpreter.
    """
    node = LittleNode(disk)
    worker.run(node.engine.begin_flush(node.end, b""))
    process = worker.process_id
    assert process is not None
    os.kill(process, signal.SIGSTOP)
    failures: list[StorageError] = []

    def run() -> None:
        try:
            worker.run(node.engine.begin_flush(node.end, bytes(1 << 20)))  # more than a pipe holds
        except StorageError as error:
            failures.append(error)

    running = threading.Thread(target=run, daemon=True)
    running.start()
    _wait(worker._ordering.locked)
    closing = threading.Thread(target=worker.close, daemon=True)
    closing.start()
    closing.join(10)
    is_closed = not closing.is_alive()
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
    running.join(10)
    assert is_closed and len(failures) == 1 and "ended during job" in str(failures[0])


def test_the_worker_imports_nothing_of_where_the_node_was_started(
    disk: RealDisk, worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module in the current directory that has the name of one of the standard library is not taken for it.

    Takes half a second: it starts an interpreter.
    """
    (tmp_path / "queue.py").write_text("raise SystemExit('not the standard one')\n")
    monkeypatch.chdir(tmp_path)
    node = LittleNode(disk)
    model = _put(node, 1)
    flush = node.engine.begin_flush(node.end, b"")
    node.engine.install(flush, worker.run(flush))
    assert dict(node.engine.scan(1)) == model


def test_a_closed_worker_takes_no_job(disk: RealDisk, worker: Worker) -> None:
    """Closing twice is fine; a job after it is refused."""
    node = LittleNode(disk)
    worker.close()
    worker.close()
    with pytest.raises(StorageError, match="was closed"):
        worker.run(node.engine.begin_flush(node.end, b""))


def test_the_pacer_holds_to_its_rate() -> None:
    """A hundredth of a second's worth of bytes takes that long at least; without a rate nothing waits."""
    pacer = Pacer()
    pacer(1 << 40)
    pacer.set(Throttle(bytes_per_s=1_000_000))
    begun = time.monotonic()
    pacer(20_000)
    assert time.monotonic() - begun > 0.018


def test_a_process_that_hangs_is_found_out_killed_and_replaced(disk: RealDisk) -> None:
    """It was stopped in the midst of its work: its job fails after the time stated, and the same job is run by another.

    Takes some ten seconds: it starts two interpreters, and waits for one that hangs.
    """
    worker = Worker(disk.root, stalled_s=4.0)
    node = LittleNode(disk)
    worker.run(node.engine.begin_flush(node.end, b""))  # the interpreter is there
    model = _put(node, 1)
    job = node.engine.begin_flush(node.end, b"")
    worker.throttle(is_paused=True)
    failures: list[StorageError] = []

    def run() -> None:
        try:
            worker.run(job)
        except StorageError as error:
            failures.append(error)

    running = threading.Thread(target=run, daemon=True)
    running.start()
    _wait(lambda: worker.process_id)
    hanging = worker.process_id
    assert hanging is not None
    threading.Event().wait(5.0)  # a job that is held up goes on saying so
    assert running.is_alive() and not failures
    os.kill(hanging, signal.SIGSTOP)
    running.join(20)
    assert len(failures) == 1 and "made no progress for 4 s" in str(failures[0])
    _wait(lambda: not _is_running(hanging))
    worker.throttle()
    again = node.engine.flush_again(job)
    node.engine.install(again, worker.run(again))
    assert worker.process_id not in (None, hanging)
    assert {key: node.engine.get(1, key) for key in model} == model
    worker.close()

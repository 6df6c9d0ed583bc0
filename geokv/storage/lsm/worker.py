"""The node's side of its worker process: started on first need, asked one job at a time, ended with the node.

The process is spawned anew, as a program of its own, never forked: what threads and gRPC hold in the node does not
survive a fork. It shares nothing with the node but the folder and two pipes, and costs neither its event loop nor its
interpreter lock. `run` waits, so it is called on a thread.

Keys of an encrypted node go over the pipe, apart from the jobs: when the process starts and before the first job after they
were rotated. The pipe is nobody else's, and nothing that crosses it is logged or stored.

A process that works says so, at least each second: whenever a call of the disk returns or it is about to write, and while it
is paused. One that says nothing for STALLED_S hangs (a disk that never answers, a bug): it is killed.

Invariants: at most one process. A process that ended or was killed in the midst of a job makes that job fail, and the node
runs it again; the next job starts another. Only jobs, throttles and facts of tables cross, no cells. The worker is closed
before an engine is opened anew on the same folder: a job of the old one could otherwise still write.
"""

from __future__ import annotations

import pickle
import queue
import subprocess
import threading
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Final

from geokv.errors import StorageError
from geokv.storage.child import command, environment
from geokv.storage.encryption.keys import KeyRing, Keys
from geokv.storage.lsm.facts import TableFacts
from geokv.storage.lsm.jobs import Job, KeyOrder
from geokv.storage.lsm.pacing import Throttle

NICENESS: Final = 10
STALLED_S: Final = 120.0
_END_S_MAX: Final = 5.0


_ENDED: Final = object()


class Worker:
    """See the module. Any thread may call anything."""

    def __init__(self, root: Path, niceness: int = NICENESS, keys: Keys | None = None, stalled_s: float = STALLED_S) -> None:
        """`niceness`: how much less the process is than the node when both want the processor (`os.nice`).

        `stalled_s`: a process that makes no progress for so long is killed.
        """
        self._stalled_s = stalled_s
        self._said: queue.SimpleQueue[Any] = queue.SimpleQueue()  # what the process answers; _ENDED when it is no more
        self._root = root
        self._keys = keys or Keys()
        self._told: KeyRing | None = None  # the keys that the process has
        self._niceness = niceness
        self._process: subprocess.Popen[bytes] | None = None
        self._throttle = Throttle()
        self._told_throttle: tuple[subprocess.Popen[bytes], Throttle] | None = None  # which process has which
        self._running = threading.Lock()  # one job
        self._ordering = threading.Lock()  # one order written
        self._is_closed = False

    def run(self, job: Job) -> tuple[TableFacts, ...]:
        """Have the job done. Raises what it raised, and StorageError where the process ended meanwhile."""
        with self._running:
            process = self._started()
            try:
                self._tell_keys(process)
                self._order(process, job)
                answer = self._answer()
            except (OSError, EOFError) as error:
                self._end(process)
                raise StorageError(f"the storage worker ended during job {job.number}; it is tried again") from error
            except queue.Empty:
                self._end(process)
                raise StorageError(
                    f"the storage worker made no progress for {self._stalled_s:g} s during job {job.number}: it was killed, and"
                    " the job is tried again"
                ) from None
        if isinstance(answer, Exception):
            raise answer
        tables: tuple[TableFacts, ...] = answer
        return tables

    def _answer(self) -> Any:
        """What the process answers in the end. Raises EOFError where it ends before, queue.Empty where it hangs."""
        while (said := self._said.get(timeout=self._stalled_s)) is None:
            pass  # it works
        if said is _ENDED:
            raise EOFError
        return said

    def throttle(self, bytes_per_s: int = 0, is_paused: bool = False) -> None:
        """From now on, also for the job that runs: write at most so fast (0: no limit), or wait."""
        self._throttle = Throttle(bytes_per_s, is_paused)
        process = self._process
        if process is not None:
            self._tell_throttle(process)

    def close(self) -> None:
        """End the process; a job that runs fails. Idempotent."""
        self._is_closed = True
        process = self._process
        if process is not None:
            self._end(process)

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    @property
    def process_id(self) -> int | None:
        """Of the process that runs; None where none was needed yet, or the last one failed."""
        process = self._process
        return None if process is None else process.pid

    def _started(self) -> subprocess.Popen[bytes]:
        if self._is_closed:
            raise StorageError("the storage worker was closed")
        if self._process is not None and self._process.poll() is None:
            return self._process
        process = subprocess.Popen(
            command("geokv.storage.lsm.worker_process", str(self._root.absolute()), str(self._niceness)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(),
        )
        self._process = process
        self._told = None
        said: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._said = said
        threading.Thread(target=_listen, args=(process, said), name="geokv-worker-answers", daemon=True).start()
        self._tell_throttle(process)
        if self.is_closed:  # meanwhile, by somebody who saw no process yet
            self._end(process)
            raise StorageError("the storage worker was closed")
        return process

    def _tell_keys(self, process: subprocess.Popen[bytes]) -> None:
        ring = self._keys.ring
        if ring is not self._told and (len(ring) or self._told is not None):
            self._order(process, KeyOrder(ring.lines()))
            self._told = ring

    def _tell_throttle(self, process: subprocess.Popen[bytes]) -> None:
        """Never waits: a job may fill the pipe, and this is called by the node's event loop. Who writes it looks here next."""
        while self._told_throttle != (process, self._throttle) and self._ordering.acquire(blocking=False):
            try:
                throttle = self._throttle
                _write(process, throttle)
                self._told_throttle = process, throttle
            except (OSError, ValueError):
                return  # it has ended; the next one is told when it starts
            finally:
                self._ordering.release()

    def _order(self, process: subprocess.Popen[bytes], order: object) -> None:
        """Raises OSError where the process has ended, or does not read: then it is killed."""
        stalled = threading.Timer(self._stalled_s, process.kill)
        stalled.daemon = True
        stalled.start()
        try:
            with self._ordering:
                _write(process, order)
        finally:
            stalled.cancel()
        self._tell_throttle(process)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        self._process = None
        process.kill()  # as the end of its pipe would; but somebody may be stuck in writing to that
        with suppress(OSError):
            _pipe(process.stdin).close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_END_S_MAX)  # one that is stuck in the kernel ends when that lets go of it, and writes no more


def _write(process: subprocess.Popen[bytes], order: object) -> None:
    pipe = _pipe(process.stdin)
    pickle.dump(order, pipe)
    pipe.flush()


def _listen(process: subprocess.Popen[bytes], said: queue.SimpleQueue[Any]) -> None:
    """Hand on what a process says until it ends."""
    pipe = _pipe(process.stdout)
    try:
        while True:
            said.put(pickle.load(pipe))
    except (OSError, EOFError, ValueError, pickle.UnpicklingError):
        said.put(_ENDED)
    finally:
        pipe.close()


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None, "started with pipes"
    return pipe

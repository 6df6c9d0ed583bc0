"""The process that `geokv lab up` leaves: it runs a lab until it is told to stop, and everything of the lab ends with it.

    lab up ── starts ──> supervisor ── starts ──> nodes, proxy server
       ^                     │
       └── "ready" or why not ── through a pipe; then `lab up` ends and the supervisor stays

Whatever becomes of the supervisor, also kill -9, its children see their pipe close and end. The kernel lets its
lock go, so the next `lab up` in the directory just works.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from geokv.errors import GeokvError, LabError
from geokv.lab.lab import Lab, read_topology
from geokv.lab.state import LabDirectory, LabState
from geokv.lab.wan.server import Kind

UP_S_MAX: Final = 120.0
DOWN_S_MAX: Final = 30.0
LEFTOVERS_S_MAX: Final = 15.0
POLL_S: Final = 0.02
STATE_CHECK_S: Final = 1.0


def bring_up(directory: LabDirectory, topology: str | None, proxy_kind: Kind | None = None) -> LabState:
    """Start a supervisor and return when its lab is up. Raises LabError with the reason where it does not come up."""
    read_topology(topology)  # a fault in it is told here, not in a log
    directory.make()
    with directory.lock():
        pass  # raises where a lab runs already; the supervisor takes the lock for itself
    read_fd, write_fd = os.pipe()
    command = [sys.executable, "-m", "geokv.lab.supervisor", "--directory", str(directory.path), "--ready-fd", str(write_fd)]
    if topology is not None:
        command += ["--topology", str(Path(topology).absolute())]
    if proxy_kind is not None:
        command += ["--proxies", proxy_kind]
    with directory.log_path.open("ab") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[write_fd], start_new_session=True
        )
    os.close(write_fd)
    try:
        _wait_up(process, read_fd, directory)
    finally:
        os.close(read_fd)
    state = directory.read()
    if state is None:
        raise LabError(f"the lab came up and ended at once; see {directory.log_path}")
    process.returncode = 0  # it is meant to outlive this process: no warning that it still runs
    return state


def bring_down(directory: LabDirectory) -> bool:
    """End the lab of this directory and wait until it is gone. False where none ran."""
    pid = directory.holder()
    if pid is None:
        directory.clear()
        return False
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return True
    deadline_s = time.monotonic() + DOWN_S_MAX
    while directory.holder() is not None:
        if time.monotonic() > deadline_s:
            raise LabError(f"the lab's supervisor (process {pid}) does not end; kill -9 it, and its nodes end by themselves")
        time.sleep(POLL_S)
    return True


def _wait_up(process: subprocess.Popen[bytes], read_fd: int, directory: LabDirectory) -> None:
    """Wait for the supervisor's word through the pipe: empty for ready, else what is wrong."""
    said = b""
    deadline_s = time.monotonic() + UP_S_MAX
    while True:
        readable, _, _ = select.select([read_fd], [], [], max(0.0, deadline_s - time.monotonic()))
        if not readable:
            process.terminate()
            process.wait()
            raise LabError(f"the lab is not up after {UP_S_MAX:g} s; see {directory.log_path}")
        chunk = os.read(read_fd, 65_536)
        if not chunk:
            break
        said += chunk
    try:
        answer = json.loads(said)
    except ValueError:
        raise LabError(f"the lab's supervisor ended early, exit code {process.wait()}; see {directory.log_path}") from None
    if answer["error"]:
        process.wait()
        raise LabError(answer["error"])


class Supervisor:
    """Runs one lab until SIGTERM, SIGINT, or the loss of its directory."""

    def __init__(self, directory: LabDirectory, topology: str | None, proxy_kind: Kind | None) -> None:
        self._directory = directory
        self._topology = topology
        self._proxy_kind = proxy_kind
        self._must_stop = False

    def run(self, ready_fd: int) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._told_to_stop)
        try:
            with self._directory.lock():
                self._directory.clear()
                return self._run_locked(ready_fd)
        except GeokvError as error:
            _answer(ready_fd, str(error))
            return 1

    def _run_locked(self, ready_fd: int) -> int:
        _wait_for_leftovers(self._directory)
        lab = Lab(read_topology(self._topology), self._directory, proxy_kind=self._proxy_kind, say=_say)
        with lab:
            self._directory.write(lab.state(os.getpid()))
            _answer(ready_fd, "")
            _say(f"up: {len(lab.nodes)} nodes")
            try:
                self._until_told(lab)
            finally:
                self._directory.clear()
        _say("down")
        return 0

    def _until_told(self, lab: Lab) -> None:
        gone: set[str] = set()
        while self._directory.path.exists():
            for name, node in lab.nodes.items():
                if name not in gone and not node.is_alive():
                    gone.add(name)
                    _say(f"node {name} has ended; its log is {node.log_path}")
            time.sleep(STATE_CHECK_S)

    def _told_to_stop(self, number: int, _: object) -> None:
        """The first signal ends whatever goes on, also half a start; while it cleans up, others change nothing."""
        if not self._must_stop:
            self._must_stop = True
            raise _Stop


class _Stop(BaseException):
    """Raised out of whatever the supervisor is doing when it is told to stop."""


def _wait_for_leftovers(directory: LabDirectory) -> None:
    """Nodes of a supervisor that was killed hold their directories for a moment longer, until they see that it is gone."""
    deadline_s = time.monotonic() + LEFTOVERS_S_MAX
    for folder in sorted(path for path in directory.nodes.iterdir() if path.is_dir()):
        while not _is_unlocked(folder):
            if time.monotonic() > deadline_s:
                raise LabError(f"a node of an earlier lab still holds {folder}; end that process, then try again")
            time.sleep(POLL_S)


def _is_unlocked(folder: Path) -> bool:
    from geokv.storage.disk import RealDisk

    try:
        RealDisk(folder).close()
    except GeokvError:
        return False
    return True


def _answer(ready_fd: int, error: str) -> None:
    if ready_fd >= 0:
        os.write(ready_fd, json.dumps({"error": error}).encode())
        os.close(ready_fd)


def _say(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m geokv.lab.supervisor", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--directory", required=True)
    parser.add_argument("--topology")
    parser.add_argument("--proxies", choices=("real", "embedded"))
    parser.add_argument("--ready-fd", type=int, default=-1)
    options = parser.parse_args(arguments)
    try:
        return Supervisor(LabDirectory(options.directory), options.topology, options.proxies).run(options.ready_fd)
    except _Stop:
        return 0


if __name__ == "__main__":
    sys.exit(main())

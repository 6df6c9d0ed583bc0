"""One node as a child process: `python -m geokv serve`, which ends when whoever started it is gone.

All nodes of a lab watch one pipe; only the starter holds its writing end, so it closes however the starter goes.

    NodeProcess.start() ──> the node writes its ready file ──> is_ready() ──> kill() | stop() ──> start() again
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from geokv.errors import LabError

START_S_MAX: Final = 30.0
STOP_S_MAX: Final = 10.0
POLL_S: Final = 0.02
LOG_TAIL_BYTES: Final = 3_000


class ParentPipe:
    """The pipe whose closing tells children that their starter is gone."""

    def __init__(self) -> None:
        self.read_fd, self._write_fd = os.pipe()

    def close(self) -> None:
        """Tell them. A second time does nothing."""
        for descriptor in (self.read_fd, self._write_fd):
            if descriptor >= 0:
                os.close(descriptor)
        self.read_fd = self._write_fd = -1


class NodeProcess:
    """One node. Its directory and log outlive its process, so it can be killed and started again."""

    def __init__(
        self,
        name: str,
        topology: Path,
        directory: Path,
        pipe: ParentPipe,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.directory = directory
        self.log_path = directory.with_suffix(".log")
        self.ready_path = directory.with_suffix(".ready")
        self._topology = topology
        self._pipe = pipe
        self._settings = dict(settings or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Begin; `is_ready` tells when it serves."""
        if self.is_alive():
            raise LabError(f"node {self.name} runs already")
        self.ready_path.unlink(missing_ok=True)
        self.directory.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[self._pipe.read_fd],
                start_new_session=True,  # a Ctrl-C is for the lab, which ends its nodes itself
                env=_environment(),
            )

    def is_ready(self) -> bool:
        """Whether it listens and has read its log. Raises LabError where it ended instead."""
        if self.ready_path.exists():
            return True
        if not self.is_alive():
            raise LabError(f"{self._how_it_ended()}; its log {self.log_path} ends with:\n{self.log_tail()}")
        return False

    def log_tail(self) -> str:
        """The end of what this run of it has logged."""
        try:
            with self.log_path.open("rb") as log:
                log.seek(max(self._log_start, self.log_path.stat().st_size - LOG_TAIL_BYTES))
                return log.read().decode(errors="replace").strip()
        except OSError:
            return ""

    def signal(self, number: int) -> None:
        """Send a signal to the process, if there is one."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """kill -9, as a crash of the process: what the system has cached of its files stays."""
        self.signal(signal.SIGKILL)
        self.signal(signal.SIGCONT)
        if self._process is not None:
            self._process.wait()

    def stop(self) -> int:
        """SIGTERM: it drains and ends. Its exit code; kill -9 where it takes too long."""
        self.signal(signal.SIGTERM)
        return self.wait(STOP_S_MAX)

    def wait(self, timeout_s: float) -> int:
        """Wait until it has ended, by force after `timeout_s`; the exit code."""
        if self._process is None:
            return 0
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(timeout_s)
        self._process.kill()
        return self._process.wait()

    def _command(self) -> list[str]:
        flags = {
            "topology": str(self._topology),
            "node": self.name,
            "directory": str(self.directory),
            "ready-file": str(self.ready_path),
            "parent-pipe-fd": str(self._pipe.read_fd),
            **self._settings,
        }
        pairs = [part for name, value in flags.items() for part in (f"--{name}", value)]
        return [sys.executable, "-m", "geokv", "serve", *pairs]

    def _how_it_ended(self) -> str:
        code = None if self._process is None else self._process.poll()
        return f"node {self.name} " + ("was never started" if code is None else f"ended with exit code {code}")


def _environment() -> dict[str, str]:
    """Without the caller's own settings of a node: what a lab's node does must not depend on them."""
    return {name: value for name, value in os.environ.items() if not name.startswith("GEOKV_")}


def wait_ready(nodes: Iterable[NodeProcess], timeout_s: float = START_S_MAX) -> None:
    """Wait until all of them listen. Raises LabError, with the end of the log of one that does not."""
    deadline_s = time.monotonic() + timeout_s
    waiting = list(nodes)
    while waiting:
        waiting = [node for node in waiting if not node.is_ready()]
        if waiting and time.monotonic() > deadline_s:
            late = waiting[0]
            raise LabError(
                f"node {late.name} is not ready after {timeout_s:g} s; its log {late.log_path} ends with:\n{late.log_tail()}"
            )
        if waiting:
            time.sleep(POLL_S)


def stop_all(nodes: Iterable[NodeProcess]) -> None:
    """SIGTERM to all at once, then wait for each."""
    running = [node for node in nodes if node.is_alive()]
    for node in running:
        node.signal(signal.SIGTERM)
    deadline_s = time.monotonic() + STOP_S_MAX
    for node in running:
        node.wait(max(0.0, deadline_s - time.monotonic()))

"""What every benchmark here needs: facts of the machine, percentiles, servers as own children, tables.

A figure without its machine says nothing, and on a machine of few cores a server left over from the run
before spoils the next one. So the facts are read from the machine itself, and every process that is started
here is ended here.

Invariants:
- Only processes that this one started are ever signalled, each by its own pid and before it was reaped.
- A server dies with the benchmark that started it, also when that is ended by kill -9 (on Linux).
- What could not be measured is None, never 0.
"""

from __future__ import annotations

import contextlib
import math
import os
import platform
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

PORT_FIRST, PORT_LAST = 20_000, 32_000  # below what Linux hands to outgoing connections (32768 and up)
MEMORY_FILE_SYSTEMS = frozenset({"tmpfs", "ramfs", "devtmpfs"})
FDATASYNC_SAMPLES = 300
STOP_TIMEOUT_S = 10.0
LOG_TAIL_CHARS = 1_200

# The child asks the kernel to be killed when its parent dies, then becomes the server. Done in the child and
# not by a preexec_fn, which is not safe in a process with threads (gRPC has some). Only Linux has the call.
_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the benchmark that started this server is gone")
os.execvp(sys.argv[2], sys.argv[2:])
"""


class BenchmarkError(Exception):
    """The benchmark cannot go on; the message says what to do. The one who runs it must act."""


# --- numbers ------------------------------------------------------------------------------------------------


def percentile(ordered: Sequence[float], percent: float) -> float | None:
    """The nearest-rank percentile of an ascending sequence, None of an empty one."""
    if not 0 < percent <= 100:
        raise ValueError(f"percent must be above 0 and at most 100, not {percent}")
    if not ordered:
        return None
    return ordered[math.ceil(len(ordered) * percent / 100) - 1]


def median(figures: Iterable[float | None]) -> float | None:
    """The median of what was measured; None where nothing was."""
    measured = [figure for figure in figures if figure is not None]
    return statistics.median(measured) if measured else None


def quotient(dividend: float | None, divisor: float | None) -> float | None:
    """dividend / divisor, None where either was not measured or the divisor is 0."""
    if dividend is None or not divisor:
        return None
    return dividend / divisor


# --- the machine --------------------------------------------------------------------------------------------


def machine_facts(directory: Path) -> dict[str, Any]:
    """What figures from this machine depend on; `directory` is where the servers write."""
    return {
        "cpu": _cpu_model(),
        "cores": usable_cores(),
        "memory_mib": _memory_mib(),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "filesystem": file_system(directory),
        "fdatasync_us": fdatasync_us(directory),
        "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def usable_cores() -> int:
    """The cores that this process may run on, which a container may limit."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_mib() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20
    except (ValueError, OSError):
        return None


def file_system(directory: Path) -> str | None:
    """The type of the file system that holds `directory` ("ext4"), None where the system does not say."""
    try:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return file_system_among(mounts, directory.resolve())


def file_system_among(mounts: Iterable[str], directory: Path) -> str | None:
    """The type of the innermost mount over a directory, by the lines of /proc/mounts; of equals the last."""
    innermost, kind = -1, None
    for line in mounts:
        _, mount_point, mount_kind = line.split()[:3]
        point = Path(mount_point.encode().decode("unicode_escape"))
        if directory.is_relative_to(point) and len(point.parts) >= innermost:
            innermost, kind = len(point.parts), mount_kind
    return kind


def fdatasync_us(directory: Path) -> float | None:
    """Median microseconds of writing 512 bytes into a file preallocated with zeros, and fdatasync."""
    if not hasattr(os, "fdatasync"):
        return None
    took_us = []
    with tempfile.TemporaryFile(dir=directory) as file:
        file.write(bytes(512 * FDATASYNC_SAMPLES))
        file.flush()
        os.fsync(file.fileno())
        for index in range(FDATASYNC_SAMPLES):
            started_ns = time.perf_counter_ns()
            os.pwrite(file.fileno(), b"\xa5" * 512, index * 512)
            os.fdatasync(file.fileno())
            took_us.append((time.perf_counter_ns() - started_ns) / 1_000)
    return round(statistics.median(took_us), 1)


def disk_directory(wanted: Path | None) -> Path:
    """A directory on a real disk for the servers' files: the one asked for, or the first of the usual."""
    if wanted is not None:
        wanted.mkdir(parents=True, exist_ok=True)
        if file_system(wanted) in MEMORY_FILE_SYSTEMS:
            raise BenchmarkError(f"{wanted} is in memory ({file_system(wanted)}), where a sync is free; name one on a disk")
        return wanted
    for place in (Path(tempfile.gettempdir()), Path("/var/tmp"), Path.cwd()):
        if place.is_dir() and os.access(place, os.W_OK) and file_system(place) not in MEMORY_FILE_SYSTEMS:
            return place
    raise BenchmarkError("no usual directory is on a real disk; name one with --directory")


# --- processes ----------------------------------------------------------------------------------------------


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on, all different."""
    with contextlib.ExitStack() as held:
        ports: list[int] = []
        for _ in range(1_000):
            if len(ports) == count:
                return ports
            holder = held.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                holder.bind(("127.0.0.1", random.randint(PORT_FIRST, PORT_LAST)))
                ports.append(holder.getsockname()[1])
    raise BenchmarkError(f"found no {count} free ports between {PORT_FIRST} and {PORT_LAST}")


class Server:
    """One server process, a child of this one, that writes what it prints into a log file.

    To be started from the main thread: Linux kills the child when the *thread* that started it ends.
    """

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self.log = log
        self._name = Path(command[0]).name
        trampoline = [sys.executable, "-S", "-c", _DIE_WITH_PARENT, str(os.getpid())]
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [*trampoline, *command], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def check(self) -> None:
        """Raises, with the end of its log, when the server has ended."""
        code = self._process.poll()
        if code is not None:
            tail = self.log.read_text(encoding="utf-8", errors="replace")[-LOG_TAIL_CHARS:]
            raise BenchmarkError(f"{self._name} ended by itself with code {code}; its last words:\n{tail}")

    def stop(self) -> None:
        """Ends the server and reaps it; returns only when it is gone."""
        if self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def servers(commands: Sequence[Sequence[str]], directory: Path) -> Iterator[list[Server]]:
    """Starts a server per command, logs into `directory`, and stops them all at the end, whatever happens."""
    with contextlib.ExitStack() as started:
        running: list[Server] = []
        for index, command in enumerate(commands):
            server = Server(command, directory / f"node-{index}.log")
            started.callback(server.stop)
            running.append(server)
        yield running


def descendants(root: int) -> set[int]:
    """The pids of all living children of `root`, theirs, and so on; empty where there is no /proc."""
    children: dict[int, list[int]] = {}
    for pid in _all_pids():
        with contextlib.suppress(OSError, IndexError, ValueError):
            children.setdefault(int(_stat_fields(pid)[1]), []).append(pid)
    found: set[int] = set()
    waiting = [root]
    while waiting:
        for child in children.get(waiting.pop(), ()):
            found.add(child)
            waiting.append(child)
    return found


def _all_pids() -> list[int]:
    proc = Path("/proc")
    return [int(entry.name) for entry in proc.iterdir() if entry.name.isdigit()] if proc.is_dir() else []


def _stat_fields(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name, which may hold blanks and brackets: state, parent, ..."""
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()


def cpu_seconds_of(pids: Iterable[int]) -> float | None:
    """User and system time of these processes; None when one cannot be read (it has ended, or no /proc)."""
    ticks = 0
    for pid in pids:
        try:
            fields = _stat_fields(pid)
        except OSError:
            return None
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def machine_cpu_seconds() -> float | None:
    """What all processes, the kernel and a thieving host used so far; None where there is no /proc."""
    try:
        first = Path("/proc/stat").read_text(encoding="utf-8").partition("\n")[0].split()[1:]
    except OSError:
        return None
    user, nice, system, _idle, _waiting, interrupts, soft_interrupts, stolen = map(int, first[:8])
    return (user + nice + system + interrupts + soft_interrupts + stolen) / os.sysconf("SC_CLK_TCK")


# --- tables -------------------------------------------------------------------------------------------------


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns as wide as their widest cell; the first is flush left, the others flush right."""
    lines = [list(header), *(list(row) for row in rows)]
    if any(len(line) != len(header) for line in lines):
        raise ValueError("every row needs as many cells as the header")
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines)


def cell(figure: float | None, digits: int = 0) -> str:
    """A figure for a table: thousands apart, a dash for what was not measured."""
    return "-" if figure is None else f"{figure:,.{digits}f}"

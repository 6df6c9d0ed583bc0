"""Starting a proxy server: the real Toxiproxy where `toxiproxy-server` is on the PATH, otherwise the
embedded one.

Either is a child process that ends with this one, also after kill -9: it (or its guard) watches a pipe
whose other end only this process holds.

Not here: what is then asked of the server (proxies.py).
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from geokv.errors import LabError
from geokv.lab.wan.proxies import Proxies

REAL_COMMAND = "toxiproxy-server"
START_TIMEOUT_S = 15.0
STOP_TIMEOUT_S = 10.0
REAL_ATTEMPTS = 5
POLL_S = 0.02
HOST = "127.0.0.1"

Kind = Literal["real", "embedded"]


@dataclass
class ProxyServer:
    """A running proxy server that this process started."""

    kind: Kind
    version: str
    host: str
    port: int
    process: subprocess.Popen[bytes]
    pipe_fd: int
    log_path: Path

    def proxies(self) -> Proxies:
        """Return the interface to its proxies."""
        return Proxies(self.host, self.port)

    def close(self) -> None:
        """End the server and wait until it is gone; a second time does nothing."""
        if self.pipe_fd >= 0:
            os.close(self.pipe_fd)
            self.pipe_fd = -1
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> "ProxyServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def has_real() -> bool:
    """Whether the real Toxiproxy is on the PATH."""
    return shutil.which(REAL_COMMAND) is not None


def start_server(directory: Path, kind: Kind | None = None) -> ProxyServer:
    """Start a proxy server and wait until it answers; its log and port file go into `directory`.

    `kind` chooses one; None takes the real one where it is there. LabError with the end of
    its log where it fails.
    """
    directory.mkdir(parents=True, exist_ok=True)
    chosen = kind or ("real" if has_real() else "embedded")
    if chosen == "embedded":
        return _start_embedded(directory)
    return _start_real(directory)


def _start_embedded(directory: Path) -> ProxyServer:
    port_file = directory / "wan.port"
    port_file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "geokv.lab.wan.embedded", "--host", HOST, "--port", "0"]
    server = _spawn("embedded", [*command, "--port-file", str(port_file)], directory)
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while not port_file.exists():
        _still_starting(server, deadline_s)
    server.port = int(port_file.read_text())
    return _ready(server, deadline_s)


def _start_real(directory: Path) -> ProxyServer:
    """Start Toxiproxy. It cannot choose a free port itself, so another process may snatch ours: then try
    another one.
    """
    for attempt in range(1, REAL_ATTEMPTS + 1):
        port = _free_port()
        program = [REAL_COMMAND, "-host", HOST, "-port", str(port), "-proxy-metrics"]
        server = _spawn("real", [sys.executable, "-m", "geokv.lab.wan.guarded"], directory, program)
        server.port = port
        try:
            return _ready(server, time.monotonic() + START_TIMEOUT_S)
        except LabError:
            server.close()
            if attempt == REAL_ATTEMPTS:
                raise
    raise AssertionError("the loop returns or raises")


def _spawn(kind: Kind, command: list[str], directory: Path, program: list[str] | None = None) -> ProxyServer:
    log_path = directory / "wan.log"
    read_fd, write_fd = os.pipe()
    tail = [] if program is None else ["--", *program]
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            [*command, "--parent-fd", str(read_fd), *tail],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[read_fd],
            start_new_session=True,  # a Ctrl-C is for the lab, which ends its servers last
        )
    os.close(read_fd)
    return ProxyServer(kind, "", HOST, 0, process, write_fd, log_path)


def _ready(server: ProxyServer, deadline_s: float) -> ProxyServer:
    """Wait until the server answers GET /version, and keep the answer."""
    while True:
        try:
            server.version = server.proxies().probe()
            return server
        except LabError:
            _still_starting(server, deadline_s)


def _still_starting(server: ProxyServer, deadline_s: float) -> None:
    """Wait a moment, or raise where the server has ended or takes too long."""
    code = server.process.poll()
    if code is None and time.monotonic() < deadline_s:
        time.sleep(POLL_S)
        return
    what = f"ended with code {code}" if code is not None else f"did not answer within {START_TIMEOUT_S} s"
    server.close()
    log = server.log_path.read_text(errors="replace")[-2_000:].strip()
    raise LabError(f"the proxy server ({server.kind}) {what}; its log {server.log_path} ends with: {log}")


def _free_port() -> int:
    with socket.create_server((HOST, 0)) as listener:
        return int(listener.getsockname()[1])

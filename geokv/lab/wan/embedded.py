"""The embedded proxy server: what a lab uses where `toxiproxy-server` is not installed.

    python -m geokv.lab.wan.embedded --port 0 --port-file wan.port --parent-fd 7

It speaks Toxiproxy's HTTP interface (control.py) and carries the traffic (relay.py, toxics.py), in a
process of its own so that a busy node does not delay the network. It ends when the pipe behind
`--parent-fd` closes, that is when the process that holds the other end is gone, however it went.

Not here: starting it and talking to it (proxies.py).
"""

import argparse
import asyncio
import contextlib
import os
import random
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from geokv.lab.wan.control import VERSION, Control
from geokv.lab.wan.http_server import HttpServer

FILES_WANTED = 65_536


def main(arguments: list[str] | None = None) -> int:
    """Serve until told to stop; 0, or 1 where the port is taken."""
    options = _parser().parse_args(arguments)
    _allow_many_files()
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(serve(options.host, options.port, options.port_file, options.parent_fd))
    except OSError as error:
        sys.stderr.write(f"cannot listen on {options.host}:{options.port}: {error}\n")
        return 1
    return 0


async def serve(host: str, port: int, port_file: Path | None, parent_fd: int | None) -> None:
    """Serve until SIGTERM or SIGINT, or until the pipe of the parent closes."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if parent_fd is not None:
        loop.add_reader(parent_fd, _drain_pipe, parent_fd, stop.set)
    control = Control(random.Random())
    server = HttpServer(control.answer)
    real_port = await server.start(host, port)
    if port_file is not None:
        publish(port_file, real_port)
    sys.stdout.write(f"proxy server (Toxiproxy {VERSION} interface) on http://{host}:{real_port}" + "\n")
    sys.stdout.flush()
    await stop.wait()
    if parent_fd is not None:
        loop.remove_reader(parent_fd)
    await control.close()
    await server.close()


def publish(port_file: Path, port: int) -> None:
    """Write the port so that a reader sees either no file or all of it."""
    unfinished = port_file.with_name(f"{port_file.name}.{os.getpid()}.tmp")
    unfinished.write_text(f"{port}\n")
    unfinished.replace(port_file)


def _drain_pipe(parent_fd: int, closed: Callable[[], None]) -> None:
    """What the parent writes means nothing; that it can write no more means that it is gone."""
    try:
        if not os.read(parent_fd, 4096):
            closed()
    except BlockingIOError:
        pass
    except OSError:
        closed()


def _allow_many_files() -> None:
    """Each connection takes two files, and the usual limit is 1,024."""
    _, highest = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_WANTED if highest == resource.RLIM_INFINITY else min(highest, FILES_WANTED)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, highest))


def _loop_factory() -> Callable[[], Any] | None:
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], Any] = uvloop.new_event_loop
    return factory


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m geokv.lab.wan.embedded", description=__doc__.partition("\n")[0])
    parser.add_argument("--host", default="127.0.0.1", help="where the HTTP interface listens (default 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8474, help="its port; 0 takes a free one (default 8474)")
    parser.add_argument("--port-file", type=Path, help="file to write the port into once it listens")
    parser.add_argument("--parent-fd", type=int, help="file descriptor of a pipe; the server ends when it closes")
    return parser


if __name__ == "__main__":
    sys.exit(main())

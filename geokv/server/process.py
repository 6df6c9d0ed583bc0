"""One server in one event loop: bind, recover, say "ready", live, drain, end.

The port is bound before the recovery: a second node on it fails at once, and health says NOT_SERVING while the log is
read, instead of a connection that hangs.

Not here: settings, directories and what a run is recovered from (boot.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import grpc.aio

from geokv.core.topology import NodeSpec, Topology
from geokv.errors import ConfigurationError, GeokvError
from geokv.runtime import credentials
from geokv.runtime.counters import Counters
from geokv.runtime.host import Host
from geokv.runtime.machine import Opener
from geokv.runtime.supervisor import Supervisor
from geokv.runtime.wire.peer import Hello
from geokv.server.config import Config
from geokv.server.health import Health
from geokv.server.keys import KeyKeeper
from geokv.server.metrics import MetricsServer, render
from geokv.server.services import implementations, make_server

HEALTH_S: Final = 0.1
STOP_GRACE_S: Final = 0.5  # for calls that a drain did not wait for
PARENT_GONE_S: Final = 20.0  # for an orderly end without a parent
_log = logging.getLogger("geokv.server")


class Server:
    """The process's one server. `run` is its whole life."""

    def __init__(
        self, config: Config, topology: Topology, spec: NodeSpec, begin: Opener, cluster: str, keeper: KeyKeeper
    ) -> None:
        """`cluster`: as nodes name it to each other."""
        self._cluster = cluster
        self._keeper = keeper
        self._config = config
        self._topology = topology
        self._spec = spec
        self._begin = begin
        self._counters = Counters()
        self._stop_reason = ""

    async def run(self) -> None:
        self._stopped = asyncio.Event()
        self._supervisor = Supervisor(self._counters, self._task_failed)
        hello = Hello(self._cluster, self._spec.dc, self._spec.name, 0)
        host = Host(hello, self._topology, self._begin, self._counters)
        health = Health()
        handlers = implementations(host, self._counters, self._topology, self._spec.name, health, self._keeper)
        server = make_server(handlers)
        metrics = MetricsServer(lambda: render(host.metrics, self._spec.name, self._spec.dc))
        with self._signals(host), self._parent_watched():
            try:
                address = self._bind(server)
                await server.start()
                metrics_address = await self._start_metrics(metrics)
                if await self._started(host):
                    self._supervisor.keep("health", lambda: self._keep_health(host, health))
                    self._say_ready(address, metrics_address)
                    await self._until_stopped(host)
                health.set_serving(False)
                await self._drain(host)
            finally:
                await self._supervisor.close()
                await metrics.close()
                await server.stop(STOP_GRACE_S)
                await host.close(is_in_good_order="parent" not in self._stop_reason)
        if host.failed.done():
            raise GeokvError(f"the node cannot go on: {host.failed.result()!r}")

    # --- begin

    def _bind(self, server: grpc.aio.Server) -> str:
        wanted = self._config.listen or self._spec.address
        port = credentials.listen(server, wanted, self._config.allow_plaintext_network)
        return f"{credentials.split_address(wanted)[0]}:{port}"

    async def _start_metrics(self, metrics: MetricsServer) -> str:
        wanted = self._config.metrics_listen
        if not wanted:
            return ""
        credentials.check_listen(wanted, self._config.allow_plaintext_network)
        return await metrics.start(wanted)

    async def _started(self, host: Host) -> bool:
        """Recover; False where the process was told to stop meanwhile."""
        starting = asyncio.ensure_future(host.start())
        stopping = asyncio.ensure_future(self._stopped.wait())
        try:
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
        await starting  # a recovery cannot be cancelled half way: its thread goes on
        return not self._stopped.is_set()

    def _say_ready(self, address: str, metrics_address: str) -> None:
        line = {
            "ready": True,
            "cluster": self._topology.cluster,
            "dc": self._spec.dc,
            "node": self._spec.name,
            "address": address,
            "metrics": metrics_address,
            "pid": os.getpid(),
        }
        text = json.dumps(line)
        if self._config.ready_file is not None:
            _write_whole(self._config.ready_file, text + "\n")
        with contextlib.suppress(BrokenPipeError):  # nobody reads: no reason to fail
            sys.stdout.write(text + "\n")
            sys.stdout.flush()
        _log.info("%s of %s serves at %s", self._spec.name, self._spec.dc, address)

    # --- live

    async def _keep_health(self, host: Host, health: Health) -> None:
        reason = ""
        while True:
            health.set_serving(not host.why_not_serving)
            if host.why_not_serving != reason:
                reason = host.why_not_serving
                _log.log(logging.WARNING if reason else logging.INFO, "%s", reason or "serving")
            await asyncio.sleep(HEALTH_S)

    async def _until_stopped(self, host: Host) -> None:
        stopping = asyncio.ensure_future(self._stopped.wait())
        try:
            waiting: list[asyncio.Future[Any]] = [stopping, host.failed]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()

    def _rotate_keys(self, host: Host) -> None:
        """The operator says that the keys have changed."""

        async def rotate() -> None:
            try:
                await asyncio.to_thread(self._keeper.rotate)
                host.keys_rotated()
            except GeokvError as error:
                _log.error("got SIGHUP, and the keys stay as they were: %s", error)

        self._supervisor.once("rotation of keys", rotate())

    def _stop(self, reason: str) -> None:
        if not self._stopped.is_set():
            self._stop_reason = reason
            _log.info("stopping: %s", reason)
            self._stopped.set()

    @contextlib.contextmanager
    def _signals(self, host: Host) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        wanted = [signal.SIGTERM, signal.SIGINT]
        for number in wanted:
            loop.add_signal_handler(number, self._stop, f"got {number.name}")
        if self._keeper.has_source:
            loop.add_signal_handler(signal.SIGHUP, self._rotate_keys, host)
            wanted.append(signal.SIGHUP)
        try:
            yield
        finally:
            for number in wanted:
                loop.remove_signal_handler(number)

    @contextlib.contextmanager
    def _parent_watched(self) -> Iterator[None]:
        """End with the parent: the reading end of a pipe that it holds tells when it is gone, however it went."""
        descriptor = self._config.parent_pipe_fd
        if descriptor < 0:
            yield
            return
        loop = asyncio.get_running_loop()
        try:
            loop.add_reader(descriptor, self._parent_gone, descriptor)
        except OSError as error:
            raise ConfigurationError(f"--parent-pipe-fd {descriptor} is no open pipe: {error}") from error
        try:
            yield
        finally:
            loop.remove_reader(descriptor)

    def _parent_gone(self, descriptor: int) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(descriptor)  # it would be ready for ever
        self._stop("the parent is gone")
        loop.call_later(PARENT_GONE_S, os._exit, 1)  # as good as a crash, and nobody is there to end it

    def _task_failed(self, name: str, error: BaseException) -> None:
        self._stop(f"{name} ended: {error!r}")

    # --- end

    async def _drain(self, host: Host) -> None:
        seconds = 0.0 if "parent" in self._stop_reason else self._config.drain_seconds
        if not await host.drain(seconds):
            _log.warning("stopped with calls in progress after %g s", seconds)


def _write_whole(path: Path, text: str) -> None:
    """So that a reader sees all of it or nothing."""
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)

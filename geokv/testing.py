"""A real cluster for tests, yours and ours: nodes as child processes on free ports, in about two seconds.

    from geokv.testing import Cluster

    with Cluster() as cluster, cluster.client() as kv:
        kv.put("user:1", b"Ada")

    with Cluster(nodes=3) as cluster:
        cluster.kill("node-2")           # kill -9
        ...
        cluster.restart("node-2")

As a pytest fixture: put `pytest_plugins = ["geokv.testing"]` into conftest.py and take `geokv_cluster` (one node
for the whole session; every test that wants keys of its own makes a namespace).

All nodes stand in one datacenter `dc1`, with a replica on up to three of them. The directory is temporary, unless
one is given; a given one is kept, so that a second Cluster on it finds what the first wrote. Where a `with` block
ends by an exception, the end of every node's log goes to the logger `geokv.testing`.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from geokv.core.topology import Datacenter, NodeSpec, Topology, render_topology
from geokv.errors import GeokvError, LabError
from geokv.lab.ask import ask, why_not_serving
from geokv.lab.ports import HOST, Ports
from geokv.lab.process import NodeProcess, ParentPipe, stop_all, wait_ready

if TYPE_CHECKING:
    from geokv.client import AsyncClient, Client

DC: Final = "dc1"
REPLICAS_MAX: Final = 3
SERVING_S_MAX: Final = 30.0
_SETTINGS: Final = {"log-segment-bytes": str(16 * 1024 * 1024)}  # the smallest: nothing here waits for zeros
_log = logging.getLogger("geokv.testing")


class Cluster:
    """`nodes` real nodes, `node-1` and so on, started by `start()` or a `with` block.

    `directory`: where they keep their logs; None: a temporary one, removed at the end. `settings`: flags of `geokv
    serve` for all nodes, without the dashes. `encryption_key_file`: the keys with which they encrypt what they store.
    """

    def __init__(
        self,
        nodes: int = 1,
        directory: str | Path | None = None,
        *,
        settings: Mapping[str, str] | None = None,
        encryption_key_file: str | Path | None = None,
    ) -> None:
        if nodes < 1:
            raise LabError(f"nodes = {nodes}: a cluster has at least one")
        self.names = [f"node-{number}" for number in range(1, nodes + 1)]
        self._settings = {**_SETTINGS, **(settings or {})}
        if encryption_key_file is not None:
            self._settings["encryption-key-file"] = str(Path(encryption_key_file).absolute())
        self._given = Path(directory).absolute() if directory is not None else None
        self._directory: Path | None = None
        self._ports = Ports()
        self._pipe: ParentPipe | None = None
        self._nodes: dict[str, NodeProcess] = {}
        self.topology: Topology | None = None

    # --- whole life

    def start(self) -> Self:
        """Start all nodes and return when all of them serve. Raises LabError with the log of one that does not."""
        if self._pipe is not None:
            raise LabError("the cluster runs already")
        self._pipe = ParentPipe()
        try:
            self._start(self._pipe)
        except BaseException:
            self._log_tails()
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop all nodes; a temporary directory is removed. A second time does nothing."""
        stop_all(self._nodes.values())
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        self._nodes.clear()
        self._ports.close()
        if self._directory is not None and self._given is None:
            shutil.rmtree(self._directory, ignore_errors=True)
        self._directory = None

    def close(self) -> None:
        """As `stop`: for `contextlib.closing`."""
        self.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None:
            self._log_tails()
        self.stop()

    # --- what a test asks

    @property
    def address(self) -> str:
        """The address of the first node."""
        return self.addresses[0]

    @property
    def addresses(self) -> list[str]:
        """The addresses of all nodes, running or not."""
        return [self.address_of(name) for name in self.names]

    @property
    def directory(self) -> Path:
        """Where topology, logs and the nodes' directories are."""
        if self._directory is None:
            raise LabError("the cluster was not started")
        return self._directory

    def address_of(self, node: str) -> str:
        if self.topology is None:
            raise LabError("the cluster was not started")
        return self.topology.node(node).address

    def client(self, **settings: Any) -> Client:
        """A Client of this cluster; `settings` are those of Client. Close it, or use it in a `with` block."""
        from geokv.client import Client

        return Client(self.addresses, **settings)

    def async_client(self, **settings: Any) -> AsyncClient:
        """An AsyncClient of this cluster."""
        from geokv.client import AsyncClient

        return AsyncClient(self.addresses, **settings)

    def node(self, name: str) -> NodeProcess:
        """The process of a node. Raises LabError with the names that there are."""
        if name not in self._nodes:
            raise LabError(f"no node {name!r} runs here; there are: {', '.join(self.names)}")
        return self._nodes[name]

    def kill(self, name: str) -> None:
        """kill -9 of one node."""
        self.node(name).kill()

    def restart(self, *names: str) -> None:
        """Start nodes that were killed or stopped, or stop and start those that run; return when all of them serve."""
        nodes = [self.node(name) for name in names]
        stop_all(nodes)
        for node in nodes:
            node.start()
        self._wait(nodes)

    def log(self, name: str) -> str:
        """The end of a node's log."""
        return self.node(name).log_tail()

    # --- inside

    def _start(self, pipe: ParentPipe) -> None:
        self._directory = self._given or Path(tempfile.mkdtemp(prefix="geokv-cluster-"))
        self._directory.mkdir(parents=True, exist_ok=True)
        path = self._directory / "topology.toml"
        self.topology = self._make_topology()
        path.write_text(render_topology(self.topology), encoding="utf-8")
        for name in self.names:
            self._nodes[name] = NodeProcess(name, path, self._directory / name, pipe, self._settings)
            self._nodes[name].start()
        self._wait(list(self._nodes.values()))

    def _make_topology(self) -> Topology:
        specs = tuple(
            NodeSpec(name, DC, f"rack-{number}", 1, f"{HOST}:{self._ports.reserve()}")
            for number, name in enumerate(self.names, start=1)
        )
        replicas = min(REPLICAS_MAX, len(specs))
        return Topology("testing", 256, (Datacenter(DC, replicas, specs),))

    def _wait(self, nodes: list[NodeProcess]) -> None:
        wait_ready(nodes)
        deadline_s = time.monotonic() + SERVING_S_MAX
        for node in nodes:
            while reason := self._why_not_serving(node):
                if time.monotonic() > deadline_s:
                    raise LabError(f"{node.name} does not serve after {SERVING_S_MAX:g} s: {reason}")
                time.sleep(0.02)

    def _why_not_serving(self, node: NodeProcess) -> str:
        node.is_ready()  # raises where it has ended
        try:
            return why_not_serving(ask(self.address_of(node.name), "status", timeout_s=2.0))
        except GeokvError as error:
            return why_not_serving(error)

    def _log_tails(self) -> None:
        for name, node in self._nodes.items():
            _log.error("the log of %s ends with:\n%s", name, node.log_tail())


with contextlib.suppress(ImportError):  # the rest is of use without pytest
    import pytest

    @pytest.fixture(scope="session")
    def geokv_cluster() -> Iterator[Cluster]:
        """One real node for the whole test session."""
        with Cluster() as cluster:
            yield cluster

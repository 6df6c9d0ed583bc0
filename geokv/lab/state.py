"""The lab directory: where a running lab says what it is, and how a stale one is told from a live one.

    .geokv-lab/
        lock              held, with the supervisor's process id in it, for as long as the supervisor lives
        state.json        written when everything is up, removed at the end
        topology.toml     the topology with the real addresses of every viewpoint
        supervisor.log, wan.log, nodes/NAME.log, nodes/NAME/
        .gitignore        so that none of this is ever committed

Invariants: a lab runs if and only if the lock is held. A state file without a held lock is left over from a
supervisor that was killed, and means nothing: its children have ended by themselves.
"""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from geokv.core.topology import OUTSIDE, Topology, clients_of, parse_topology
from geokv.errors import LabError, LabExists

FORMAT: Final = 1
DIRECTORY_DEFAULT: Final = ".geokv-lab"
LOCK: Final = "lock"
STATE: Final = "state.json"
TOPOLOGY: Final = "topology.toml"


@dataclass(frozen=True, slots=True)
class LabState:
    """What a running lab is. Addresses are in its topology file."""

    cluster: str
    supervisor_pid: int
    proxy_kind: str
    proxy_host: str
    proxy_port: int
    node_pids: dict[str, int]
    started_at: str
    format: int = FORMAT
    topology: str = field(default=TOPOLOGY)


class LabDirectory:
    """One lab directory, seen from any process."""

    def __init__(self, path: str | Path = DIRECTORY_DEFAULT) -> None:
        self.path = Path(path).absolute()

    @property
    def nodes(self) -> Path:
        return self.path / "nodes"

    @property
    def topology_path(self) -> Path:
        return self.path / TOPOLOGY

    @property
    def log_path(self) -> Path:
        return self.path / "supervisor.log"

    def make(self) -> None:
        self.nodes.mkdir(parents=True, exist_ok=True)
        (self.path / ".gitignore").write_text("*\n", encoding="utf-8")

    def lock(self) -> DirectoryLock:
        """Hold the directory, as a supervisor does. Raises LabExists where a lab runs there already."""
        self.make()
        descriptor = os.open(self.path / LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise LabExists(
                f"a lab runs in {self.path} already (process {self.holder()}); `geokv lab down` ends it, or choose another "
                "place with --directory"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        return DirectoryLock(descriptor)

    def holder(self) -> int | None:
        """The process id of the supervisor that holds the lock; None where none does."""
        try:
            descriptor = os.open(self.path / LOCK, os.O_RDWR)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            text = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            return int(text) if text.isdecimal() else None
        finally:
            os.close(descriptor)
        return None

    def write(self, state: LabState) -> None:
        """Publish the state, whole or not at all."""
        temporary = self.path / (STATE + ".new")
        temporary.write_text(json.dumps(asdict(state), indent=2) + "\n", encoding="utf-8")
        temporary.replace(self.path / STATE)

    def clear(self) -> None:
        (self.path / STATE).unlink(missing_ok=True)

    def read(self) -> LabState | None:
        """The state of the lab that runs here; None where none runs, or is not up yet."""
        if self.holder() is None:
            return None
        try:
            tree: dict[str, Any] = json.loads((self.path / STATE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise LabError(f"{self.path / STATE} cannot be read: {error}; `geokv lab down` and up again") from error
        if tree.get("format") != FORMAT:
            raise LabError(f"{self.path / STATE} is of format {tree.get('format')}; this version of geokv reads {FORMAT}")
        return LabState(**tree)

    def topology(self) -> Topology:
        """The topology of the lab, with all addresses."""
        try:
            return parse_topology(self.topology_path.read_text(encoding="utf-8"), str(self.topology_path))
        except OSError as error:
            raise LabError(f"{self.topology_path} cannot be read: {error}") from error

    def addresses(self, dc: str = "") -> list[str]:
        """Where clients of `dc` (empty: somebody outside) reach the nodes, through the proxies."""
        topology = self.topology()
        viewpoint = clients_of(dc) if dc in topology.dc_names else OUTSIDE
        return [topology.address(node, viewpoint) for node in topology.nodes]


class DirectoryLock:
    """A held lock; it goes with the process, too."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def release(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

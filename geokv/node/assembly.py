"""All machines of one run of a node, made and connected. What they share stands in one place, so `Node` only dispatches."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from geokv.core.hlc import HybridClock
from geokv.core.namespace import MEMORY, NamespaceDefinition
from geokv.core.origin import Origin, draw_incarnation
from geokv.core.ring import Member, Ring
from geokv.errors import InvalidRequest, NamespaceNotFound
from geokv.node.config import NodeConfig
from geokv.node.definitions import Definitions
from geokv.node.digests import Digests
from geokv.protocol.clock_guard import ClockGuard
from geokv.protocol.closing import RUNS_TOLD_MAX, Closings
from geokv.protocol.commit import Commit
from geokv.protocol.context import Context
from geokv.protocol.effects import Effect
from geokv.protocol.feed_receiver import FeedReceiver
from geokv.protocol.feed_sender import FeedSender
from geokv.protocol.forward import Forwarder
from geokv.protocol.intake import Intake
from geokv.protocol.peers import Peers
from geokv.protocol.placement import Placement
from geokv.protocol.quarantine import Quarantine
from geokv.protocol.read import ReadCoordinator
from geokv.protocol.replication import Replication
from geokv.protocol.retention import Retention
from geokv.protocol.retries import Retries
from geokv.protocol.rights import Rights
from geokv.protocol.rights_drain import RightsDrain
from geokv.protocol.stability import Stability
from geokv.protocol.statements import Statements
from geokv.protocol.sweeper import Sweeper
from geokv.protocol.table import Cells, Table
from geokv.protocol.write import WriteCoordinator
from geokv.storage.engine import Engine
from geokv.storage.memory import MemoryCells


def placement_of(config: NodeConfig) -> Placement:
    """Who owns what, from the topology."""
    topology = config.topology
    rings = {
        dc.name: Ring(topology.partitions, [Member(n.name, n.rack, float(n.weight)) for n in dc.nodes])
        for dc in topology.datacenters
    }
    return Placement(rings, {dc.name: dc.replicas for dc in topology.datacenters}, config.dc, config.node)


class Assembly:
    """The machines, by name."""

    def __init__(
        self,
        config: NodeConfig,
        rng: random.Random,
        now_us: int,
        wall_us: int,
        room_bytes: int,
        log_sequence: int,
        engine: Engine,
    ) -> None:
        topology = config.topology
        origin = Origin(config.dc, config.node, draw_incarnation(wall_us // 1000, rng))
        self.config = config
        self.engine = engine
        self.effects: list[Effect] = []
        self.placement = placement_of(config)
        self.members = [node.name for node in topology.datacenter(config.dc).nodes]
        others = [(node.name, node.dc) for node in topology.nodes if node.name != config.node]
        self.peers = Peers(others)
        self.commit = Commit(self.effects, room_bytes, log_sequence, config.control_room_bytes)
        clock = HybridClock(0, config.drift_ms_max)
        self.context = Context(
            config.cluster, origin, topology.partitions, self.peers, clock, self.commit, self.effects, rng, now_us, wall_us
        )
        self.definitions = Definitions(self.context, self.members, topology.dc_names)
        self.intake = Intake(self.context)
        self.replication = Replication(self.context)
        self.read = ReadCoordinator(self.context, self.replication, self.intake, self.table_named)
        self.rights = Rights(self.context)
        self.rights_drain = RightsDrain(self.context, self.rights)
        self.write = WriteCoordinator(self.context, self.replication, self.table_named, self.read.quorum, self.rights)
        self.sender = FeedSender(self.context)
        remote = {name: dc for name, dc in others if dc != config.dc}
        self.receiver = FeedReceiver(self.context, self.placement, self.intake, self.replication, remote)
        self.coordinate: Callable[[Any, Callable[[Any], None]], None] = lambda batch, respond: None
        self.forwarder = Forwarder(self.context, self.placement, self._coordinate_later, self.table_named)
        self.retries = Retries(
            self.context, self.placement, self.intake, self.replication, self.table_named, self._coordinate_later
        )
        self.clock_guard = ClockGuard(self.context, config.drift_ms_max)
        self.digests = Digests(self.context)
        self.closings = Closings(self.context, self.placement, self.intake)
        self.unheld: dict[int, str] = {}  # namespaces that this node cannot keep: it takes and answers nothing of them
        self.closings.on_forgotten = self.context.operation_ids.forgotten
        self.statements = Statements(
            self.context,
            self.receiver,
            self.definitions.counts,
            self.definitions.heard_counts,
            [name for name in self.members if name != config.node],
            list(remote),
            config.statement_us,
            config.frontiers_us,
            config.full_statement_us,
            config.remote_statement_us,
        )
        neighbours = [name for name in self.members if name != config.node]
        self.quarantine = Quarantine(self.context, self.placement, engine, neighbours)
        self.sweeper = Sweeper(self.context, self.placement, self.replication)
        self.stability = Stability(self.context, self.placement, self.closings, config.stability_us)
        self.retention = Retention(self.context, self.placement, config.segment_bytes)

    def _coordinate_later(self, batch: Any, respond: Callable[[Any], None]) -> None:
        self.coordinate(batch, respond)  # the node puts itself there once it is made

    # --- namespaces -------------------------------------------------------------------------------------------------

    def table_named(self, name: str) -> Table | None:
        """The table of a live namespace by its name."""
        definition = self.definitions.resolve(name)
        return self.context.tables.get(definition.id) if definition is not None else None

    def demand_table(self, name: str) -> Table:
        """As `table_named`. Raises NamespaceNotFound."""
        table = self.table_named(name)
        if table is None:
            raise NamespaceNotFound(f"no namespace {name!r} here", namespace=name)
        return table

    def define(self, definition: NamespaceDefinition) -> None:
        """Let a definition stand: make its table, change it, or drop it."""
        tables = self.context.tables
        definition = replace(definition, dcs=definition.dcs or self.config.topology.dc_names)
        if definition.is_deleted:
            self.context.deleted.add(definition.id)
            self.context.journal.forget(definition.id)
            tables.pop(definition.id, None)
            self.unheld.pop(definition.id, None)
            self.engine.drop(definition.id)
            return
        table = tables.get(definition.id)
        if table is not None:
            if definition.policy_now() is not table.policy:
                self.engine.define(definition.id, definition.policy_now().stored_as)
                self.context.decoded.forget(definition.id)
                self.context.journal.removals.forget(definition.id)
                self.context.note("policy.changed")
            table.define(definition)
            if isinstance(table.cells, MemoryCells):
                table.cells.resize(definition.memory_bytes_max)
            else:
                self.engine.set_dictionary(definition.id, definition.dictionary)
            return
        try:
            cells: Cells = (
                MemoryCells(definition.memory_bytes_max)
                if definition.engine == MEMORY
                else self.engine.create(definition.id, definition.policy_now().stored_as, definition.engine)
            )
        except InvalidRequest as error:
            self._cannot_hold(definition, str(error))
            return
        self.engine.set_dictionary(definition.id, definition.dictionary)
        tables[definition.id] = Table(definition, self.placement, cells, self.context.partitions)

    def _cannot_hold(self, definition: NamespaceDefinition, why: str) -> None:
        """Go on without a namespace: its records wait with those who have them, until this node can take them."""
        if definition.id not in self.unheld:
            self.unheld[definition.id] = f"namespace {definition.name!r} is not kept on this node: {why}"
            self.context.log("error", self.unheld[definition.id])

    # --- flushes ----------------------------------------------------------------------------------------------------

    def meta(self, recovered: Any, bound_ms: int) -> dict[str, Any]:
        """What stands beside the flushed cells: all that control records and frontiers have said so far."""
        context, closings = self.context, self.closings
        return {
            "format": 1,
            "runs": recovered.runs[-RUNS_TOLD_MAX:],
            "bound_ms": bound_ms,
            "promised": [[origin, sorted(partitions)] for origin, partitions in context.promised.items()],
            # None: in all of this node's partitions
            "closed": [
                [origin, None if len(partitions) == len(self.placement.mine) else sorted(partitions)]
                for origin, partitions in context.closed.items()
            ],
            "closings": [[origin, partition, value] for (origin, partition), value in closings.known.items()],
            "agreement": self.definitions.agreement_state(),
            "slots": self.definitions.carried_slots(),
            "seen": {node: list(what) for node, what in closings.seen.items()},
            "conflicts": context.journal.packed(),
            "quarantine": [one.packed() for one in context.claims.withdrawals.values()],
            "collections": {number: table.collections for number, table in context.tables.items() if table.collections},
            "held": context.operation_ids.packed_held(),
            "streams": [
                [s.namespace, s.partition, s.origin, s.frontier, sorted(s.synced_beyond), s.dcs, s.peers]
                for table in context.tables.values()
                for s in table.streams
            ],
        }

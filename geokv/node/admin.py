"""Administration of one node: verbs with arguments in, trees of plain values out.

    namespace_create name policy dcs write_level read_level ttl_ms value_bytes_max key_bytes_max durability interval_ms
    engine memory_bytes_max exist_ok
    namespace_list | namespace_show name | namespace_alter name … | namespace_delete name
    status                 this node: itself, its peers, lag per datacenter pair, log, closings, namespaces
    metrics                all counters
    digest namespace       per partition of this node alone that it serves: how many cells it holds, dead ones among them, how
                           many of them live, and a hash over these
    conflicts [namespace] [key_base64] [limit]   the newest of the conflicts that this node has noted
    rights_drain [scope] [begin]                give all rights of bounded counters away; or how far that is
    gc [namespace]         what waits to be collected, what of it is stable, and who holds that up
    close_node node        close the streams of another node of this datacenter
    snapshot_hold name     forget and collect nothing new until that snapshot is taken
    snapshot_create name cut [held]   take a snapshot that holds all that was stamped up to the HLC `cut`, in decimal;
                           `held`: refuse where the node does not hold for it any more
    snapshot_list | snapshot_show name | snapshot_remove name
    storage_pause duration_ms | storage_resume | storage_throttle bytes_per_s (0: as configured)
    storage_flush | storage_compact [namespace]

Every number in `status` is true or older than true, never newer. A figure that is not known is None.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from geokv.core.hlc import hlc_ms
from geokv.core.limits import CONFLICTS_PER_NAMESPACE_MAX
from geokv.core.namespace import ENGINES, NamespaceDefinition
from geokv.core.origin import unpack_origin
from geokv.core.topology import is_name
from geokv.errors import GeokvError, InvalidRequest, NamespaceNotFound, Unavailable
from geokv.node.answers import Respond, Verb, number_of, reply_of, text_of
from geokv.node.storage_verbs import StorageVerbs
from geokv.protocol.feed_receiver import LAG_BUCKETS_MS
from geokv.protocol.journal import Conflict, Party, Restored
from geokv.protocol.requests import AdminReply, AdminRequest, Outcome
from geokv.storage.memory import MemoryCells

if TYPE_CHECKING:
    from geokv.node.node import Node


class Admin:
    """Answers AdminRequests for its node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._deadlines: list[tuple[int, int, Respond]] = []
        self._verbs: dict[str, Verb] = {
            "namespace_create": self._create,
            "namespace_alter": self._alter,
            "namespace_delete": self._delete,
            "namespace_list": lambda a, q, r: r(AdminReply(Outcome.APPLIED, {"namespaces": self.namespaces()})),
            "namespace_show": self._show,
            "status": lambda a, q, r: r(AdminReply(Outcome.APPLIED, self.status())),
            "metrics": lambda a, q, r: r(AdminReply(Outcome.APPLIED, dict(self.metrics()))),
            "digest": self._digest,
            "close_node": self._close_node,
            "conflicts": self._conflicts,
            "conflict_restored": self._conflict_restored,
            "rights_drain": self._rights_drain,
            "gc": self._gc,
            **StorageVerbs(node).verbs,
        }

    def asked(self, request: AdminRequest, respond: Respond) -> None:
        """Do `request`; answers through `respond`, once."""
        verb = self._verbs.get(request.verb)
        try:
            if verb is None:
                raise InvalidRequest(f"unknown verb {request.verb!r}: one of {', '.join(sorted(self._verbs))}")
            verb(request.arguments, request, respond)
        except GeokvError as error:
            respond(reply_of(error))

    # --- namespaces -------------------------------------------------------------------------------------------------

    def _change(self, request: AdminRequest, respond: Respond, begin: Callable[..., int]) -> None:
        node = self._node
        definitions = node.assembly.definitions
        no_room = node.assembly.commit.reserve(node.config.control_room_bytes // 4, is_control=True)
        if no_room:
            raise Unavailable(no_room)
        if node.context.distrusted or not node.has_standing:
            raise Unavailable(node.context.is_refusing or "no majority of this datacenter has answered about this node's disk")
        if not definitions.is_member:
            raise Unavailable(
                "this node does not take part in agreements yet: its disk is new, and it waits for the other nodes of"
                f" {node.config.dc} to answer"
            )

        def outcome(result: NamespaceDefinition | GeokvError) -> None:
            if isinstance(result, GeokvError):
                respond(reply_of(result))
            else:
                respond(AdminReply(Outcome.APPLIED, {"namespace": self._describe(result)}))

        ticket = definitions.change(begin, outcome)
        self._deadlines.append((node.context.now_us + request.timeout_ms * 1000, ticket, respond))

    def tick(self) -> None:
        """Answer changes of namespaces whose time has passed."""
        now_us = self._node.context.now_us
        for deadline in [deadline for deadline in self._deadlines if deadline[0] <= now_us]:
            self._deadlines.remove(deadline)
            if self._node.assembly.definitions.give_up(deadline[1]):
                text = f"no majority of {self._node.config.dc} agreed in time; the change may still happen"
                deadline[2](AdminReply(Outcome.AMBIGUOUS, {}, text))

    def _create(self, arguments: Mapping[str, Any], request: AdminRequest, respond: Respond) -> None:
        settings = {k: v for k, v in arguments.items() if k not in ("name", "exist_ok") and v is not None}
        if settings.get("replicas"):
            raise InvalidRequest("replicas: the number of copies comes from the topology; leave it out")
        name = text_of(arguments, "name")
        exist_ok = bool(arguments.get("exist_ok"))
        if settings.get("engine") in ENGINES:  # else the definition's own check says what there is
            self._node.assembly.engine.check_holds(str(settings["engine"]))
        self._change(request, respond, lambda catalog, hlc, now: catalog.create(name, settings, hlc, now, exist_ok))

    def _alter(self, arguments: Mapping[str, Any], request: AdminRequest, respond: Respond) -> None:
        changes = {k: v for k, v in arguments.items() if k != "name" and v is not None}
        name = text_of(arguments, "name")
        self._change(request, respond, lambda catalog, hlc, now: catalog.alter(name, changes, hlc, now))

    def _delete(self, arguments: Mapping[str, Any], request: AdminRequest, respond: Respond) -> None:
        name = text_of(arguments, "name")
        self._change(request, respond, lambda catalog, hlc, now: catalog.delete(name, hlc, now))

    def _show(self, arguments: Mapping[str, Any], request: AdminRequest, respond: Respond) -> None:
        name = text_of(arguments, "name")
        definition = self._node.assembly.definitions.resolve(name)
        if definition is None:
            raise NamespaceNotFound(f"no namespace {name!r} here", namespace=name)
        respond(AdminReply(Outcome.APPLIED, {"namespace": self._describe(definition)}))

    def namespaces(self) -> list[dict[str, Any]]:
        catalog = self._node.assembly.definitions.catalog_machine.catalog
        found = [catalog.resolve(name) for name in catalog.names()]
        return [self._describe(definition) for definition in found if definition is not None]

    def _describe(self, definition: NamespaceDefinition) -> dict[str, Any]:
        catalog = self._node.assembly.definitions.catalog_machine.catalog
        topology = self._node.config.topology
        table = self._node.context.tables.get(definition.id)
        return {
            **definition.settings(),
            "name": catalog.name_of(definition.id) or definition.name,
            "id": f"{definition.id:016x}",
            "version": definition.version,
            "earlier_policies": list(definition.earlier),
            "policy_changed_ms": hlc_ms(definition.policy_hlc) if definition.earlier else None,
            "policy_changed_dc": definition.policy_dc or None,
            "dcs": list(definition.dcs or topology.dc_names),
            "replicas": {dc.name: dc.replicas for dc in topology.datacenters},
            "created_dc": definition.created_dc,
            "is_deleted": definition.is_deleted,
            "cells_here": len(table.cells) if table is not None else None,
            "cache_here": table.cells.figures() if table is not None and isinstance(table.cells, MemoryCells) else None,
        }

    # --- status -----------------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Everything an operator asks of one node."""
        node = self._node
        context, machines = node.context, node.assembly
        return {
            "node": node.config.node,
            "dc": node.config.dc,
            "cluster": node.config.cluster,
            "generation": node.config.generation,
            "incarnation": f"{node.incarnation:016x}",
            "refusing": context.is_refusing,
            "uptime_ms": (context.now_us - node.started_us) // 1000 if node.started_us is not None else 0,
            "peers": [self._peer(name) for name in sorted(machines.peers.by_name)],
            "lag": self.lag(),
            "incoming": self.incoming(),
            "log": self._log(),
            "storage": self.storage(),
            "closing": self._closing(),
            "namespaces": [[table.definition.name, len(table.cells)] for table in context.tables.values()],
            "names_in_conflict": machines.definitions.catalog_machine.catalog.conflicts(),
            "takes_part_in_agreements": machines.definitions.is_member,
            "calls": machines.write.calls + machines.read.calls,
            "hlc": str(context.clock.last),
            "clock_ahead_ms": max(0, hlc_ms(context.clock.last) - context.wall_ms),
            "clock_off_median_ms": machines.clock_guard.off_ms,
            "refuses_lww": machines.clock_guard.refusal or None,
            "rights": self._rights(),
            "lww_stamped_while_off": machines.clock_guard.stamped_while_off,
        }

    def _rights(self) -> dict[str, int]:
        """What moves of bounded counters' rights now, and what has moved in this run."""
        counters = self._node.context.counters
        names = ("asked", "given", "moved", "taken_over", "refused", "silent")
        return self._node.assembly.rights.status() | {name: counters.get(f"rights.{name}", 0) for name in names}

    def storage(self) -> dict[str, Any]:
        """What the engine holds, and how far it is behind."""
        upkeep = self._node.upkeep
        return {
            **self._node.assembly.engine.figures(),
            "unflushed_bytes": max(0, upkeep.unflushed_bytes),
            "running": upkeep.running,
            "flushes": upkeep.flushes,
            "compactions": upkeep.compactions,
            "failure": upkeep.failure,
            "unreadable": self._node.context.loading.unreadable,
            "quarantined": self.quarantined(),
            "quarantined_tables": len(self._node.context.claims.withdrawals),
            "partitions_unserved": sum(
                len(partitions) for name, partitions in self._node.unserved.items() if name in self._node.context.tables
            ),
            "refusing": upkeep.refusal(),
            "unheld": sorted(self._node.assembly.unheld.values()),
            "paused_ms_left": upkeep.paused_ms_left,
            "bytes_per_s_max": upkeep.bytes_per_s,
            "snapshots": self._node.snapshots.count,
        }

    def quarantined(self) -> list[dict[str, Any]]:
        """The tables that were found damaged: where, and which partitions this node cannot serve because of each."""
        node, found = self._node, []
        aside = {one.facts.number for one in node.assembly.engine.quarantined()}
        for one in node.context.claims.withdrawals.values():
            table = node.context.tables.get(one.namespace)
            found.append(
                {
                    "namespace": table.definition.name if table is not None else None,  # None: it was deleted since
                    "file": one.path,
                    "offset": one.offset,
                    "what": one.what,
                    "noted_ms": one.noted_ms,
                    "is_set_aside": one.table in aside,
                    "partitions": list(one.partitions) if table is not None else [],
                }
            )
        return found

    def _peer(self, name: str) -> dict[str, Any]:
        context = self._node.context
        peer = context.peers[name]
        return {
            "node": name,
            "dc": peer.dc,
            "live": context.is_live(name),
            "silent_ms": (context.now_us - peer.heard_us) // 1000 if peer.heard_us else None,
            "clock_skew_ms": peer.skew_ms if peer.echo_us else None,
        }

    def lag(self) -> dict[str, dict[str, int | None]]:
        """Per other DC: what this node originated that its frontier is not known to cover: lost if this DC dies now."""
        node = self._node
        lag: dict[str, dict[str, int | None]] = {}
        own = list(self._own_streams())
        for dc in node.config.topology.dc_names:
            if dc == node.config.dc:
                continue
            records = nbytes = 0
            for stream in own:
                covered = stream.dcs.get(dc, 0)
                table = node.context.tables[stream.namespace]
                if dc in table.definition.dcs and stream.frontier > covered:
                    records += stream.frontier - covered
                    start = max(0, covered + 1 - stream.first)
                    nbytes += sum(stream.sizes[start : stream.frontier + 1 - stream.first])
            lag[dc] = {"records": records, "bytes": nbytes}
        return lag

    def _own_streams(self) -> Any:
        node = self._node
        for table in node.context.tables.values():
            for stream in table.streams:
                origin = unpack_origin(stream.origin)
                if origin.node == node.config.node and origin.dc == node.config.dc:
                    yield stream

    def incoming(self) -> dict[str, dict[str, Any]]:
        """Per node of another DC: how far behind this node is, on its own clock, and what is announced and not here."""
        node = self._node
        context = node.context
        found: dict[str, dict[str, Any]] = {}
        for peer, link in sorted(node.assembly.receiver.shipping.items()):
            missing = 0
            for (namespace, partition, origin), number in link.heads.items():
                table = context.tables.get(namespace)
                stream = table.streams.get(partition, origin) if table is not None else None
                missing += max(0, number - (stream.frontier if stream is not None else 0))
            found[peer] = {
                "dc": context.peers[peer].dc,
                "partitions": len(link.partitions),
                "staleness_ms": (context.now_us - link.echoed_us) // 1000 if link.echoed_us else None,
                "silent_ms": (context.now_us - link.heard_us) // 1000,
                "records_announced_and_missing": missing,
                "partitions_behind": len(link.behind),
            }
        return found

    def _rights_drain(self, arguments: Mapping[str, Any], request: AdminRequest, respond: Respond) -> None:
        """Begin to give all rights away, and say how far it is."""
        drain = self._node.assembly.rights_drain
        if arguments.get("begin", True):
            drain.begin(str(arguments.get("scope", "node")))
        respond(AdminReply(Outcome.APPLIED, drain.progress()))

    def _log(self) -> dict[str, Any]:
        machines = self._node.assembly
        return {
            "bytes": machines.retention.log_bytes(),
            "bytes_max": self._node.config.log_bytes_max,
            "is_above_warn": machines.retention.log_bytes() > self._node.config.log_bytes_warn,
            "first_segment": machines.retention.first_segment,
            "segment": machines.commit.segment,
            "frames": machines.commit.log_sequence,
            "room_bytes": machines.commit.room_bytes,
            "room_reason": machines.commit.room_reason,
            "held_by": machines.retention.held_by,
            "refusing_writes": machines.write.log_refuses,
        }

    def _closing(self) -> list[dict[str, Any]]:
        return [
            {
                "node": run.node,
                "answered": sorted(run.answered),
                "open": run.open_pairs,
                "is_done": run.is_done,
                "waiting": run.waiting,
            }
            for run in self._node.runs
        ]

    # --- metrics ----------------------------------------------------------------------------------------------------

    def metrics(self) -> dict[str, int | float]:
        """Every counter and gauge of the machines, by name."""
        machines, context = self._node.assembly, self._node.context
        sender, receiver, commit = machines.sender, machines.receiver, machines.commit
        found: dict[str, int | float] = {f"events.{name}": n for name, n in sorted(context.counters.items())}
        found |= {
            "log.frames": commit.frames,
            "log.records": commit.records,
            "log.appended_bytes": commit.appended_bytes,
            "log.bytes": machines.retention.log_bytes(),
            "log.room_bytes": commit.room_bytes,
            "cells": sum(len(table.cells) for table in context.tables.values()),
            "calls.writing": machines.write.calls,
            "calls.reading": machines.read.calls,
            "replication.pending_parts": len(machines.replication),
            "storage.loading_keys": context.loading.keys,
            "storage.loads_dropped": context.loading.dropped,
            "ship.records": sender.records,
            "ship.raw_bytes": sender.raw_bytes,
            "ship.wire_bytes": sender.wire_bytes,
            "ship.received_records": receiver.received_records,
            "ship.received_wire_bytes": receiver.wire_bytes,
            "ship.received_raw_bytes": receiver.raw_bytes,
            "ship.lag_ms_max": receiver.lag_ms_max,
            "clock.refused": context.clock.refused,
            "peers.lost": machines.peers.lost,
            "peers.live": sum(1 for name in machines.peers.by_name if context.is_live(name)),
        }
        caches = [table.cells for table in context.tables.values() if isinstance(table.cells, MemoryCells)]
        found["cache.bytes"] = sum(cells.nbytes for cells in caches)
        found["cache.evicted"] = sum(cells.evicted for cells in caches)
        found |= {f"storage.{name}": value for name, value in self.storage().items() if isinstance(value, int)}
        found |= self._node.collector.metrics()
        for at, count in enumerate(receiver.lag_counts):
            limit = str(LAG_BUCKETS_MS[at]) if at < len(LAG_BUCKETS_MS) else "more"
            found[f"ship.lag_ms_bucket.{limit}"] = count
        for dc, lag in self.lag().items():
            found[f"ship.unshipped_records.{dc}"] = lag["records"] or 0
            found[f"ship.unshipped_bytes.{dc}"] = lag["bytes"] or 0
        return found

    # --- inspection -------------------------------------------------------------------------------------------------

    def _digest(self, arguments: Mapping[str, Any], request: AdminRequest, respond: Respond) -> None:
        """Order-free sums over this node's own synced cells, per partition: equal replicas answer equally."""
        table = self._node.assembly.demand_table(text_of(arguments, "namespace"))

        def made(found: dict[str, Any] | GeokvError) -> None:
            if isinstance(found, GeokvError):
                respond(reply_of(found))
            else:
                lost = self._node.context.claims.mine(table.definition.id)
                held = {partition: sums for partition, sums in found.items() if int(partition) not in lost}
                body: dict[str, object] = {"node": self._node.config.node, "partitions": held, "unserved": sorted(lost)}
                respond(AdminReply(Outcome.APPLIED, body))

        self._node.assembly.digests.start(table, made)

    def _conflicts(self, arguments: Mapping[str, Any], request: AdminRequest, respond: Respond) -> None:
        """The newest of the journal, oldest first."""
        most = CONFLICTS_PER_NAMESPACE_MAX
        limit = number_of({"limit": most, **arguments}, "limit", 1, most)
        tables = self._node.context.tables
        if arguments.get("namespace") is not None:
            table = self._node.assembly.demand_table(text_of(arguments, "namespace"))
            tables = {table.definition.id: table}
        journal, key = self._node.context.journal, None
        if "key_base64" in arguments:
            key = _from_base64(arguments["key_base64"])
        found = [conflict for number in tables for conflict in journal.of(number, key)]
        found.sort(key=lambda conflict: conflict.noted_ms)
        body: dict[str, object] = {
            "node": self._node.config.node,
            "conflicts": [conflict_tree(tables[one.namespace].definition.name, one) for one in found[-limit:]],
            "dropped": journal.dropped,
        }
        respond(AdminReply(Outcome.APPLIED, body))

    def _conflict_restored(self, arguments: Mapping[str, Any], request: AdminRequest, respond: Respond) -> None:
        """A client has written the loser of a conflict again: it is told with the conflict. Twice is once."""
        context, version = self._node.context, text_of(arguments, "version")
        table = self._node.assembly.demand_table(text_of(arguments, "namespace"))
        dc, node = text_of(arguments, "dc"), text_of(arguments, "node")
        if not is_name(dc) or not is_name(node):
            raise InvalidRequest(f"dc = {dc[:60]!r}, node = {node[:60]!r}: names of the topology, of who coordinated the write")
        if not version.isascii() or not version.isdecimal() or int(version) >= 1 << 64:
            raise InvalidRequest(f"version = {version!r}: that of a write, in digits")
        restored = Restored(dc, node, int(version), context.wall_ms)
        is_known = context.journal.restored(table.definition.id, text_of(arguments, "id"), restored)
        respond(AdminReply(Outcome.APPLIED, {"node": self._node.config.node, "is_known": is_known}))

    def _gc(self, arguments: Mapping[str, Any], request: AdminRequest, respond: Respond) -> None:
        """What waits to be collected on this node."""
        node, number = self._node, None
        if arguments.get("namespace") is not None:
            number = node.assembly.demand_table(text_of(arguments, "namespace")).definition.id
        namespaces = node.collector.status(number)
        body: dict[str, object] = {"node": node.config.node, "dc": node.config.dc, "namespaces": namespaces}
        respond(AdminReply(Outcome.APPLIED, body))

    def _close_node(self, arguments: Mapping[str, Any], request: AdminRequest, respond: Respond) -> None:
        name = text_of(arguments, "node")
        if name not in self._node.assembly.members or name == self._node.config.node:
            raise InvalidRequest(f"{name!r} is not another node of {self._node.config.dc}")
        if self._node.context.distrusted or not self._node.has_standing:
            raise Unavailable(self._node.is_refusing or "this node does not know yet whether its own disk is complete")
        run = self._node.close_node(name)
        respond(AdminReply(Outcome.APPLIED, {"node": name, "close": run.close}))


def conflict_tree(namespace: str, conflict: Conflict) -> dict[str, object]:
    """A conflict as plain values. `apart_ms`: between the stamps of the two, where both are known."""
    stamps = [conflict.winner.stamp, conflict.loser.stamp]
    return {
        "id": conflict.name,
        "namespace": namespace,
        "key_base64": b64encode(conflict.key).decode(),
        "policy": conflict.policy,
        "outcome": conflict.outcome,
        "winner": _party_tree(conflict.winner),
        "loser": _party_tree(conflict.loser),
        "noted_ms": conflict.noted_ms,
        "apart_ms": abs(hlc_ms(stamps[0]) - hlc_ms(stamps[1])) if all(stamps) else None,
        "restored": [one._asdict() | {"version": str(one.version)} for one in conflict.restored],
    }


def _party_tree(party: Party) -> dict[str, object]:
    origin = unpack_origin(party.origin)
    return {
        "dc": origin.dc,
        "node": origin.node,
        "run": f"{origin.incarnation:016x}",
        "number": party.number,
        "version": str(party.stamp) if party.stamp else None,
        "value_base64": None if party.value is None else b64encode(party.value).decode(),
        "value_bytes": party.bytes_in_all,
        "is_delete": party.value is None,
    }


def _from_base64(text: object) -> bytes:
    try:
        return b64decode(str(text), validate=True)
    except ValueError:
        raise InvalidRequest(f"key_base64 = {text!r} is not base64") from None

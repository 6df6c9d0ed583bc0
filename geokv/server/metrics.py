"""Counters as Prometheus text over HTTP, on a port of its own that is off unless asked for.

    GET /metrics  ->  geokv_transport_dropped_full_total{node="eu-west-1",dc="eu-west"} 3

The names are the node's own with dots made underscores, and `_total` behind those that only grow: what `geokv status
--metrics` shows, this shows. Conflicts are one metric, `geokv_conflicts_total`, with `namespace`, `winner_dc`, `loser_dc` and
`outcome` as labels. A scrape is answered on the loop's thread, where the node's counters live, so it needs no lock.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from geokv.errors import ConfigurationError
from geokv.runtime import credentials

REQUEST_BYTES_MAX: Final = 8 * 1024
REQUEST_S_MAX: Final = 5.0
CONNECTIONS_MAX: Final = 16
_UNNAMEABLE: Final = re.compile(r"[^a-zA-Z0-9_]")
# What can go down again, by name or by the beginning of it. Everything else is counted since the process or the run began.
_GAUGES: Final = {
    "log.bytes": "Size of the write-ahead log, in bytes.",
    "log.room_bytes": "Room that is left for the write-ahead log, in bytes.",
    "cells": "Keys that this node holds, tombstones included.",
    "calls.writing": "Writes that this node coordinates now.",
    "calls.reading": "Reads that this node coordinates now.",
    "calls.in_progress": "Calls of clients that wait for their answer now.",
    "replication.pending_parts": "Parts of writes that wait for replicas now.",
    "ship.lag_ms_max": "Longest time from a write in another datacenter to its arrival here, in milliseconds.",
    "ship.unshipped_records.": "Records of this node that the other datacenter is not known to have.",
    "ship.unshipped_bytes.": "Bytes of records that the other datacenter is not known to have.",
    "peers.live": "Nodes that this node hears from now.",
    "transport.queued_bytes": "Bytes that wait to be sent to other nodes.",
    "transport.peers_connected": "Nodes that this node is connected to.",
    "storage.tables": "Sorted tables on disk.",
    "storage.table_bytes": "Size of the sorted tables on disk, in bytes.",
    "storage.table_pairs": "Pairs in the sorted tables; a key counts in each table that has it.",
    "storage.tables_of_other_keys": "Tables that are not written with the key that new ones are; they are rewritten by and by.",
    "storage.quarantined_tables": "Damaged tables that were set aside, or are about to be.",
    "storage.partitions_unserved": "Partitions, of all namespaces, that this node owns and cannot serve: a table was damaged.",
    "storage.memtables": "Memtables of the namespace that has most: one, and those that wait to be flushed.",
    "storage.memtable_pairs": "Pairs in memtables.",
    "storage.trees": "Trees of namespaces with the engine lmdb or rocksdb.",
    "storage.tree_bytes": "Size of the trees on disk, in bytes.",
    "storage.tree_pairs": "Pairs in the trees, about.",
    "storage.unflushed_bytes": "Bytes of records that are in memtables, and in the log, only.",
    "storage.debt_bytes": "Bytes that compaction is behind by.",
    "storage.paused_ms_left": "Milliseconds for which flushes and compactions are paused still.",
    "storage.bytes_per_s_max": "Bytes per second that flushes and compactions may write, as set live; 0: as configured.",
    "storage.snapshots": "Snapshots that keep the space of tables, as last looked at.",
    "storage.cache_bytes": "Memory that cached blocks take, in bytes.",
    "collection.held": "Tombstones and expired cells that wait to be collected, about.",
    "collection.tombstones": "Tombstones in sorted tables.",
    "collection.blockers": "Who, and for which reasons, holds up what waits to be collected.",
    "cache.bytes": "Memory that namespaces of the engine memory take, in bytes.",
    "loop.stall_ms_max": "Longest time for which the event loop stood still, in milliseconds.",
}
_COUNTERS: Final = {
    "calls.write": "Batches of writes that clients sent.",
    "calls.read": "Batches of reads that clients sent.",
    "calls.admin": "Administration requests that clients sent.",
    "calls.": "Calls of clients that were turned away, by why.",
    "log.frames": "Frames appended to the write-ahead log in this run.",
    "log.records": "Records appended to the write-ahead log in this run.",
    "log.appended_bytes": "Bytes appended to the write-ahead log in this run.",
    "ship.lag_ms_bucket.": "Records that took up to so many milliseconds from elsewhere, and more than the bucket below.",
    "ship.": "Records and bytes shipped to and received from other datacenters in this run.",
    "storage.cache_misses": "Blocks of tables, and values of trees, that were read from disk in this run.",
    "storage.flushes": "Flushes in this run.",
    "storage.compactions": "Compactions in this run.",
    "storage.loads_dropped": "Loads that were given up since nobody waited for them any more, in this run.",
    "storage.loading_keys": "Keys that reads and writes waited for while they were read from disk, in this run.",
    "collection.collected": "Tombstones and expired cells that were collected in this run, about.",
    "cache.evicted": "Keys that namespaces of the engine memory have let go, in this run.",
    "clock.refused": "Stamps refused because their clock was too far ahead.",
    "peers.lost": "How often a peer went silent.",
    "loop.": "How often, and for how long, the event loop stood still.",
    "events.": "How often this happened in the node's machines in this run.",
    "transport.": "What happened to messages between nodes.",
    "agreement.": "Steps of agreements in this datacenter.",
    "close.": "Steps of closings of streams.",
    "log.": "Failures of the write-ahead log, by what failed.",
    "supervisor.": "Background tasks that failed, and that were begun anew.",
    "node.": "Beginnings of runs of the node, and failures of them.",
}
_CONFLICTS: Final = "events.conflicts."
_log = logging.getLogger("geokv.metrics")

Source = Callable[[], Mapping[str, int | float]]


class NodeCollector:
    """All counters of one node at the moment of a scrape."""

    def __init__(self, source: Source, node: str, dc: str) -> None:
        self._source = source
        self._labels = {"node": node, "dc": dc}

    def collect(self) -> Iterable[Metric]:
        counted = self._source()
        yield self._conflicts(counted)
        for name, value in sorted(counted.items()):
            if name.startswith(_CONFLICTS):
                continue
            kind, text = described(name)
            family = kind(metric_name(name), f"{text} ({name})", labels=list(self._labels))
            family.add_metric(list(self._labels.values()), float(value))
            yield family

    def _conflicts(self, counted: Mapping[str, int | float]) -> Metric:
        """One family for all, as its parts are names that people choose."""
        parts = ("namespace", "winner_dc", "loser_dc", "outcome")
        text = "Conflicts that this node has noted and counts, in this run."
        family = CounterMetricFamily("geokv_conflicts", text, labels=[*self._labels, *parts])
        for name, value in sorted(counted.items()):
            if name.startswith(_CONFLICTS):  # of these names only that of a namespace may have dots
                family.add_metric([*self._labels.values(), *name[len(_CONFLICTS) :].rsplit(".", 3)], float(value))
        return family


def described(name: str) -> tuple[type[CounterMetricFamily | GaugeMetricFamily], str]:
    """The type of a metric and what it is: by its name, else by the longest beginning that is known."""
    known = _GAUGES | _COUNTERS
    fitting = [one for one in known if one == name or (one.endswith(".") and name.startswith(one))]
    if not fitting:
        return CounterMetricFamily, "How often this happened."
    longest = max(fitting, key=len)
    return GaugeMetricFamily if longest in _GAUGES else CounterMetricFamily, known[longest]


def metric_name(name: str) -> str:
    return "geokv_" + _UNNAMEABLE.sub("_", name)


def render(source: Source, node: str, dc: str) -> bytes:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(NodeCollector(source, node, dc))
    return generate_latest(registry)


class MetricsServer:
    """A small HTTP/1.1 responder: one request per connection, a few connections at a time."""

    def __init__(self, body: Callable[[], bytes]) -> None:
        self._body = body
        self._server: asyncio.Server | None = None
        self._open = 0

    async def start(self, address: str) -> str:
        """Listen; the address that was bound. Raises ConfigurationError."""
        host, port = credentials.split_address(address)
        try:
            self._server = await asyncio.start_server(self._serve, host.strip("[]"), port, limit=REQUEST_BYTES_MAX)
        except OSError as error:
            raise ConfigurationError(f"cannot serve metrics on {address}: {error.strerror or error}") from error
        return f"{host}:{self._server.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open > CONNECTIONS_MAX:
                writer.write(_response("503 Service Unavailable", b"too many scrapes at once\n"))
            else:
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), REQUEST_S_MAX)
                writer.write(self._answer(head))
            await asyncio.wait_for(writer.drain(), REQUEST_S_MAX)
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError) as error:
            _log.debug("a scrape ended early: %r", error)
        finally:
            self._open -= 1
            writer.close()

    def _answer(self, head: bytes) -> bytes:
        method, _, rest = head.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        if path != b"/metrics":
            return _response("404 Not Found", b"metrics are at /metrics\n")
        if method != b"GET":
            return _response("405 Method Not Allowed", b"only GET\n")
        return _response("200 OK", self._body(), CONTENT_TYPE_LATEST)


def _response(status: str, body: bytes, content_type: str = "text/plain; charset=utf-8") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body

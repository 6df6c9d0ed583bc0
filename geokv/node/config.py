"""What a node is told about itself: its name, the topology, and its limits and timings."""

from __future__ import annotations

from dataclasses import dataclass

from geokv.core.limits import (
    DEBT_BYTES_MAX,
    DRIFT_MS_MAX,
    KIB,
    LOG_BYTES_MAX,
    LOG_BYTES_WARN,
    MEMTABLE_BYTES,
    SEGMENT_BYTES,
    UNFLUSHED_BYTES_MAX,
    UNFLUSHED_BYTES_WARN,
)
from geokv.core.topology import Topology


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """Times in microseconds or milliseconds as named; sizes in bytes."""

    cluster: str
    dc: str
    node: str
    topology: Topology
    generation: str = ""  # of a cluster that was restored: what sets it apart from the former one
    statement_us: int = 250_000
    frontiers_us: int = 1_000_000  # how often statements carry the frontiers that have moved
    full_statement_us: int = 5_000_000
    remote_statement_us: int = 1_000_000
    stability_us: int = 2_000_000  # between two questions to all owners of a namespace that holds something to collect
    collect_us: int = 10_000_000  # at least so long between two moments from which on it is collected
    segment_bytes: int = SEGMENT_BYTES
    memtable_bytes: int = MEMTABLE_BYTES  # records logged between two flushes
    unflushed_bytes_warn: int = UNFLUSHED_BYTES_WARN
    unflushed_bytes_max: int = UNFLUSHED_BYTES_MAX
    debt_bytes_max: int = DEBT_BYTES_MAX
    log_bytes_warn: int = LOG_BYTES_WARN
    log_bytes_max: int = LOG_BYTES_MAX
    control_room_bytes: int = 256 * KIB  # of the log, kept free of data for the node's own notes
    drift_ms_max: int = DRIFT_MS_MAX
    unchecked_us: int = 5_000_000  # serve without a majority's word on this disk after so long

"""From settings to a running node, and back: what `geokv serve` calls.

    settings -> topology -> directory (locked, and this node's) -> Server -> the directory is let go

Not here: parsing of flags (geokv.cli), the life of the process (process.py), anything about stored values.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from typing import Any

from geokv.core.topology import NodeSpec, Topology, parse_topology
from geokv.errors import ConfigurationError
from geokv.node.config import NodeConfig
from geokv.runtime.host import tune_interpreter
from geokv.runtime.machine import Opener
from geokv.runtime.offline import flush as flush_folder
from geokv.runtime.recovery import opener
from geokv.server.config import Config
from geokv.server.identity import claim_directory, demand_whole, generation_of, told_to_peers
from geokv.server.keys import KeyKeeper
from geokv.server.logs import set_up_logging
from geokv.server.process import Server
from geokv.storage.disk import RealDisk
from geokv.storage.encryption.keys import Keys
from geokv.storage.encryption.source import KeySource
from geokv.storage.key_use import demand_keys
from geokv.storage.lsm.engine import LsmOptions
from geokv.storage.lsm.strategy import STRATEGIES
from geokv.storage.lsm.table_writer import TableOptions

_log = logging.getLogger("geokv.server")


def serve(config: Config) -> None:
    """Run one node until SIGTERM or SIGINT, or until the parent's pipe closes. Raises GeokvError where it cannot."""
    set_up_logging(config.node, config.log_format, config.log_level)
    topology, spec = read_place(config)
    for warning in topology.warnings():
        _log.warning("%s", warning)
    tune_interpreter()
    source = KeySource(config.encryption_key_file, config.encryption_key_command)
    disk = RealDisk(config.directory, Keys(source.read()))
    try:
        begin = _opener(config, topology, spec, disk)
        cluster = told_to_peers(topology.cluster, generation_of(disk))
        with asyncio.Runner(loop_factory=_loop_factory(config)) as runner:
            runner.run(Server(config, topology, spec, begin, cluster, KeyKeeper(disk, source)).run())
    finally:
        disk.close()


def flush(config: Config) -> None:
    """Have all that a stopped node's log holds in tables. Raises GeokvError where that cannot be."""
    topology, spec = read_place(config)
    disk = RealDisk(config.directory, Keys(KeySource(config.encryption_key_file, config.encryption_key_command).read()))
    try:
        flush_folder(_opener(config, topology, spec, disk))
    finally:
        disk.close()


def _opener(config: Config, topology: Topology, spec: NodeSpec, disk: RealDisk) -> Opener:
    """What begins a run of that node on `disk`. Raises ConfigurationError where it is another's."""
    demand_keys(disk)
    demand_whole(disk)
    claim_directory(disk, topology.cluster, spec.dc, spec.name)
    node = NodeConfig(
        topology.cluster,
        spec.dc,
        spec.name,
        topology,
        generation=generation_of(disk),
        segment_bytes=config.log_segment_bytes,
        log_bytes_warn=config.log_bytes_max // 2,
        log_bytes_max=config.log_bytes_max,
        memtable_bytes=config.memtable_bytes,
        drift_ms_max=config.drift_ms_max,
        collect_us=int(config.collection_seconds * 1_000_000),
        stability_us=int(config.collection_seconds * 200_000),
    )
    rng = random.Random(int.from_bytes(os.urandom(16), "big"))
    return opener(disk, node, rng, config.log_segment_bytes, engine_options(config), config.storage_bytes_per_s)


def engine_options(config: Config) -> LsmOptions:
    """How the engine `lsm` of a node with these settings works."""
    return LsmOptions(
        tables=TableOptions(bits_per_key=config.filter_bits_per_key),
        strategy=STRATEGIES[config.compaction](),
        block_cache_bytes=config.block_cache_bytes,
        row_cache_bytes=config.row_cache_bytes,
    )


def read_place(config: Config) -> tuple[Topology, NodeSpec]:
    """The topology, and this node in it. Raises ConfigurationError."""
    try:
        text = config.topology.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the topology {config.topology} cannot be read: {error}") from error
    topology = parse_topology(text, str(config.topology))
    try:
        return topology, topology.node(config.node)
    except KeyError as error:
        raise ConfigurationError(f"{config.topology}: {error.args[0]}") from error


def _loop_factory(config: Config) -> Any:
    """uvloop's, where it is installed and wanted; None is asyncio's own."""
    if not config.uvloop:
        return None
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop

"""From a folder to a running node: the disk, the log, the engine, and the machine recovered from them.

Blocking and slow by nature; the host calls it off the loop, at boot and after each incarnation that ended.
"""

from __future__ import annotations

import contextlib
import logging
import random
import time
from typing import Any

from geokv.core.limits import SEGMENT_BYTES
from geokv.errors import DiskFull, GeokvError, StorageError
from geokv.node.config import NodeConfig
from geokv.node.node import Node
from geokv.runtime.clock import monotonic_us, wall_us
from geokv.runtime.machine import Opened, Opener
from geokv.storage.checkpoint import read_checkpoint, remove_checkpoints
from geokv.storage.disk import RealDisk
from geokv.storage.key_use import demand_keys
from geokv.storage.lsm.engine import LsmOptions
from geokv.storage.lsm.jobs import Quarantine
from geokv.storage.lsm.worker import Worker
from geokv.storage.node_engine import NodeEngine
from geokv.storage.snapshots import Snapshots
from geokv.storage.wal import Log

_log = logging.getLogger("geokv.runtime")


def opener(
    disk: RealDisk,
    config: NodeConfig,
    rng: random.Random,
    segment_bytes: int = SEGMENT_BYTES,
    options: LsmOptions | None = None,
    storage_bytes_per_s: int = 0,
) -> Opener:
    """What the host calls to begin a run on `disk`."""

    def open_node() -> Opened:
        demand_keys(disk)  # before anything is touched
        engine = NodeEngine(disk, options, is_encrypted=len(disk.keys.ring) > 0)
        try:
            return open_on(engine)
        except BaseException:
            engine.close()  # a tree can be opened once in a process
            raise

    def open_on(engine: NodeEngine) -> Opened:
        begun = time.monotonic()
        checkpoint = None if engine.meta else read_checkpoint(disk)
        first_segment = engine.position.segment if checkpoint is None else checkpoint[0]
        log = Log.open(disk, segment_bytes, first_segment)
        try:
            log.prepare()
        except DiskFull as error:
            # Reads can still be served; writes are refused until there is room.
            _log.error("%s", error)
        node = Node.recover(
            config=config,
            rng=rng,
            now_us=monotonic_us(),
            wall_us=wall_us(),
            checkpoint=checkpoint,
            frames=log.replay(0),  # those below the engine's position are indexed, for cursors
            room_bytes=log.room_bytes(),
            log_sequence=log.sequence,
            engine=engine,
        )
        remove_checkpoints(disk)  # of version 0.1: its cells are in the engine now
        _log.info("recovered in %.3f s: %d frames in the log", time.monotonic() - begun, log.sequence)
        worker = Worker(disk.root, keys=disk.keys)
        worker.throttle(storage_bytes_per_s)

        def build(job: Any) -> None:
            # A node that is about to stop has nobody to disturb any more, and a process takes long to start.
            is_here = worker.is_closed or isinstance(job, Quarantine)
            try:
                tables = engine.do(job) if is_here else worker.run(job)
            except GeokvError as error:
                engine.noticed(error)
                engine.discard(job)
                raise
            engine.install(job, tables)

        def pace(bytes_per_s: int, is_paused: bool) -> None:
            worker.throttle(bytes_per_s or storage_bytes_per_s, is_paused)

        def close() -> None:
            with contextlib.suppress(StorageError):  # a log that failed is why the run has ended
                log.sync()
            engine.close()

        low = segment_bytes * 3 // 2
        return Opened(node, log, build, worker.close, pace, Snapshots(disk, engine), close, room_bytes_low=low)

    return open_node

"""From a folder to a running node: the disk, the log, the newest checkpoint, and the machine recovered from them.

Blocking and slow by nature; the host calls it off the loop, at boot and after each incarnation that ended.
"""

from __future__ import annotations

import contextlib
import logging
import random
import time
from collections.abc import Iterator

from geokv.core.limits import SEGMENT_BYTES
from geokv.errors import DiskFull, StorageError
from geokv.node.config import NodeConfig
from geokv.node.node import Node
from geokv.runtime.clock import monotonic_us, wall_us
from geokv.runtime.machine import Opened, Opener
from geokv.storage.checkpoint import read_checkpoint, write_checkpoint
from geokv.storage.disk import Disk
from geokv.storage.engine import MemoryEngine
from geokv.storage.wal import Log

_log = logging.getLogger("geokv.runtime")

_Pairs = Iterator[tuple[int, list[tuple[bytes, bytes]]]]


def opener(disk: Disk, config: NodeConfig, rng: random.Random, segment_bytes: int = SEGMENT_BYTES) -> Opener:
    """What the host calls to begin a run on `disk`."""

    def open_node() -> Opened:
        begun = time.monotonic()
        found = read_checkpoint(disk)
        first_segment = 0 if found is None else found[0]
        checkpoint = None if found is None else (found[1], found[2])
        log = Log.open(disk, segment_bytes, first_segment)
        try:
            log.prepare()
        except DiskFull as error:
            # Reads can still be served; writes are refused until there is room.
            _log.error("%s", error)
        node = _recover(config, rng, checkpoint, log)
        _log.info("recovered in %.3f s: %d frames in the log", time.monotonic() - begun, log.sequence)

        def checkpoint_to_disk(meta: bytes, tables: dict[int, dict[bytes, bytes]], segment: int) -> None:
            write_checkpoint(disk, meta, tables, segment)

        def close() -> None:
            with contextlib.suppress(StorageError):  # a log that failed is why the run has ended
                log.sync()

        return Opened(node, log, checkpoint_to_disk, close, room_bytes_low=segment_bytes * 3 // 2)

    return open_node


def _recover(config: NodeConfig, rng: random.Random, checkpoint: tuple[bytes, _Pairs] | None, log: Log) -> Node:
    return Node.recover(
        config=config,
        rng=rng,
        now_us=monotonic_us(),
        wall_us=wall_us(),
        checkpoint=checkpoint,
        frames=log.replay(0),  # those below the checkpoint are indexed, for cursors
        room_bytes=log.room_bytes(),
        log_sequence=log.sequence,
        engine=MemoryEngine(),
    )

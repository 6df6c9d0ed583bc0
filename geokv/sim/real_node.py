"""The machine that a simulated host runs: the real node, made from the topology and what its disk holds."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Final

from geokv.core.topology import Topology
from geokv.node.config import NodeConfig
from geokv.node.node import Node
from geokv.node.recovery import Checkpoint
from geokv.sim.host import Machine, Recover
from geokv.storage.lsm.engine import LsmEngine

# Small, so that a short run flushes and compacts, trims its log and recovers from both.
MEMTABLE_BYTES: Final = 48 << 10
CONTROL_ROOM_BYTES: Final = 8 << 10  # in proportion to the small segments here
# Short, so that what was deleted is collected while faults still strike.
STABILITY_US: Final = 200_000
COLLECT_US: Final = 500_000


def keeping_node(topology: Topology) -> Recover:
    """As `real_node`, of nodes that never ask whether anything may be collected."""
    return real_node(topology, stability_us=1 << 60)


def real_node(topology: Topology, stability_us: int = STABILITY_US) -> Recover:
    """Return what recovers the node of a given name."""

    def recover(
        name: str,
        rng: random.Random,
        now_us: int,
        wall_us: int,
        checkpoint: Checkpoint | None,
        frames: Iterable[tuple[int, int, bytes]],
        room_bytes: int,
        log_sequence: int,
        engine: LsmEngine,
    ) -> Machine:
        dc = topology.node(name).dc
        config = NodeConfig(
            topology.cluster,
            dc,
            name,
            topology,
            memtable_bytes=MEMTABLE_BYTES,
            control_room_bytes=CONTROL_ROOM_BYTES,
            stability_us=stability_us,
            collect_us=COLLECT_US,
        )
        return Node.recover(config, rng, now_us, wall_us, checkpoint, frames, room_bytes, log_sequence, engine)

    return recover

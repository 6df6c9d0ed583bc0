"""The machine that a simulated host runs: the real node, made from the topology and what its disk holds."""

from __future__ import annotations

import random
from collections.abc import Iterable

from geokv.core.topology import Topology
from geokv.sim.host import Checkpointed, Machine, Recover
from geokv.storage.engine import MemoryEngine


def real_node(topology: Topology) -> Recover:
    """Return what recovers the node of a given name."""
    from geokv.node.config import NodeConfig
    from geokv.node.node import Node

    def recover(
        name: str,
        rng: random.Random,
        now_us: int,
        wall_us: int,
        checkpoint: Checkpointed | None,
        frames: Iterable[tuple[int, int, bytes]],
        room_bytes: int,
        log_sequence: int,
        engine: MemoryEngine,
    ) -> Machine:
        config = NodeConfig(topology.cluster, topology.node(name).dc, name, topology)
        return Node.recover(config, rng, now_us, wall_us, checkpoint, frames, room_bytes, log_sequence, engine)

    return recover

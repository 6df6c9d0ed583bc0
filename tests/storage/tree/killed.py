"""A process that writes until it is killed: `python -m tests.storage.tree.killed ROOT ENGINE SEED`.

It prints a line for every batch that is synced in the log, flushes now and then in its worker process (LMDB) or itself
(RocksDB), and never ends by itself.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

from geokv.storage.lsm.worker import Worker
from tests.storage.lsm.little_node import cell_of
from tests.storage.tree.real_node import RealNode

KEYS = 300


def pairs_of(version: int, seed: int) -> dict[bytes, bytes]:
    """What batch `version` of a run puts."""
    rng = random.Random(seed * 1_000_003 + version)
    return {b"key-%03d" % rng.randrange(KEYS): cell_of(version, rng.choice([None, rng.randbytes(60)])) for _ in range(40)}


def main() -> None:
    root, engine, seed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    node = RealNode(root, {1: (engine, "lww"), 2: ("lsm", "lww")})
    worker = Worker(root, niceness=0)
    rng = random.Random(seed)
    first = seed * 100_000
    for version in range(first + 1, first + 100_000):
        pairs = pairs_of(version, seed)
        for namespace in (1, 2):
            node.put_unread(namespace, pairs)
        sys.stdout.write(f"{version}\n")
        sys.stdout.flush()
        if rng.random() < 0.1:
            job = node.engine.begin_flush(node.end, b"meta")
            node.engine.install(job, worker.run(job))
            node.log.trim(node.engine.position.segment)


if __name__ == "__main__":
    main()

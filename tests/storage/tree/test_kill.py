"""A real kill -9, again and again, in the midst of writing, flushing and opening: nothing that was acknowledged is lost."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from geokv.storage.child import environment
from tests.storage.tree.killed import pairs_of
from tests.storage.tree.real_node import DURABLE, RealNode

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("engine", DURABLE)
@pytest.mark.timeout(180)
def test_a_killed_process_loses_nothing_that_was_acknowledged(engine: str, tmp_path: Path, samples) -> None:
    """Several lives of one folder, each ended by SIGKILL after a random number of batches; the next one finds them all.

    Takes some seconds: interpreters are started.
    """
    root = tmp_path / "node"
    models: dict[int, dict[bytes, bytes]] = {1: {}, 2: {}}
    for seed in range(1, 1 + samples.of(test=2, check=8, soak=200)):
        rng = random.Random(seed)
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.storage.tree.killed", str(root), engine, str(seed)],
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=environment(),
        )
        assert process.stdout is not None
        told = [int(process.stdout.readline()) for _ in range(rng.randrange(5, 80))]
        os.kill(process.pid, 9)
        told += map(int, process.stdout.read().split(b"\n")[:-1])
        process.wait()
        process.stdout.close()
        node = RealNode(root, {1: (engine, "lww"), 2: ("lsm", "lww")})
        for namespace, model in models.items():
            for version in told:
                model.update(pairs_of(version, seed))
            at_most = model | pairs_of(told[-1] + 1, seed)  # was perhaps on its way
            found = node.scan(namespace)
            assert all(found[key] in (cell, at_most[key]) for key, cell in model.items())
            assert found.keys() <= at_most.keys()
            model.update(found)
        node.close()

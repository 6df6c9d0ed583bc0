"""Encrypted disks under the simulator: keys change at starts and in between, and nothing else does."""

from __future__ import annotations

import pytest

from geokv.sim.disks import KEYS, StorageOptions
from geokv.sim.run import Run, RunOptions, drawn_options
from geokv.sim.schedule import SECOND
from geokv.sim.world import WorldOptions
from geokv.storage.key_use import key_use

SHORT = RunOptions(world=WorldOptions(storage=StorageOptions(is_encrypted=True)), faulty_us=3 * SECOND)


@pytest.mark.timeout(180)
def test_a_run_on_encrypted_disks_is_sound_and_repeats_itself() -> None:
    """All checkers hold, both keys and plain files are met, and the same seed gives the same run, salts and nonces included.

    Some seconds: two whole runs.
    """
    runs = [Run(7, SHORT), Run(7, SHORT)]
    first, second = (run.run() for run in runs)
    assert first.is_ok, first.checkers
    assert first.digest == second.digest
    used = [key_use(host.storage.disk) for host in runs[0].world.hosts.values()]
    assert {key_id for one in used for key_id in one} == {"", *KEYS.ids}
    assert used == [key_use(host.storage.disk) for host in runs[1].world.hosts.values()]


def test_some_seeds_are_encrypted_and_most_are_not() -> None:
    """Every fifth, as drawn."""
    encrypted = sum(drawn_options(seed).world.storage.is_encrypted for seed in range(500))
    assert 60 < encrypted < 140

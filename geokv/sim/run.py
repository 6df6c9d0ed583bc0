"""One run of the simulator, and many: drawn work under drawn faults, a calm phase that demands recovery, the checkers.

    0 s          start           `warm_up_us`: all nodes start, clients find the ring
    1 s          faults          `faulty_us`: what the menu draws
    9 s          calm            everything heals; until all replicas are equal, `calm_us_max` at most
                 last round      every client writes at EACH_QUORUM and reads, which must work
    end          checkers

The same seed and options give the same run, event for event; `digest` is the proof. `soak` runs many seeds on all cores and
says for each that failed how to repeat it.
"""

from __future__ import annotations

import gc
import os
import random
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from multiprocessing import get_context

from geokv.core.topology import Topology
from geokv.protocol.requests import Outcome
from geokv.sim.checkers import OK, check_all, converged, probe
from geokv.sim.disks import StorageOptions
from geokv.sim.faults import FaultOptions, Faults
from geokv.sim.host import Recover
from geokv.sim.schedule import MS, SECOND, derived_rng
from geokv.sim.workload import Workload, WorkloadOptions
from geokv.sim.world import World, WorldOptions

ENCRYPTED_SHARE = 0.2  # of the seeds


@dataclass(frozen=True, slots=True)
class RunOptions:
    """A whole run. `probes`: how often, at drawn moments, the disks are asked what a power cut would leave."""

    world: WorldOptions = field(default_factory=WorldOptions)
    workload: WorkloadOptions = field(default_factory=WorkloadOptions)
    faults: FaultOptions = field(default_factory=FaultOptions)
    warm_up_us: int = 1 * SECOND
    faulty_us: int = 8 * SECOND
    calm_us_max: int = 40 * SECOND
    probes: int = 2


@dataclass(slots=True)
class SimResult:
    """What a run was and how it ended. `checkers`: name to "ok" or to what failed."""

    seed: int
    digest: str
    operations: int
    virtual_seconds: float
    real_seconds: float
    checkers: dict[str, str]
    outcomes: dict[str, int]
    faults: dict[str, int]
    notes: dict[str, int]

    @property
    def is_ok(self) -> bool:
        return all(verdict == OK for verdict in self.checkers.values())

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class SoakFailure:
    """A seed that failed, why, and the command that repeats it."""

    seed: int
    failed: dict[str, str]
    command: str


def drawn_options(seed: int) -> RunOptions:
    """What a run of that seed is unless it is told: half of them with a second namespace, half of these of the loose kind.

    Every fifth has its disks encrypted.
    """
    drawn = derived_rng(seed, "options").random()
    is_encrypted = derived_rng(seed, "encryption").random() < ENCRYPTED_SHARE
    world = WorldOptions(storage=StorageOptions(is_encrypted=is_encrypted))
    if drawn < 0.5:
        return RunOptions(world=world)
    loose = ("second",) if drawn < 0.75 else ()
    return RunOptions(world=world, workload=WorkloadOptions(namespaces=("default", "second"), interval=loose))


class Run:
    """One run, step by step, so that a test can look at the world afterwards."""

    def __init__(
        self, seed: int, options: RunOptions | None = None, recover: Callable[[Topology], Recover] | None = None
    ) -> None:
        self.options = options or drawn_options(seed)
        self.world = World(seed, self.options.world, recover)
        self.workload = Workload(self.world, derived_rng(seed, "workload"), self.options.workload)
        self.faults = Faults(self.world, derived_rng(seed, "faults"), self.options.faults)
        self.verdicts: dict[str, str] = {}
        self._rng = derived_rng(seed, "probes")
        self._probed: list[str] = []
        self._real_start = time.perf_counter()

    def run(self) -> SimResult:
        # A run is short and keeps little: collecting cycles in between would cost a tenth of it.
        was_collecting = gc.isenabled()
        gc.disable()
        try:
            return self._run()
        finally:
            if was_collecting:
                gc.enable()

    def _run(self) -> SimResult:
        self._storm()
        self._calm()
        recovered = self._last_round()
        self.verdicts = check_all(self.world, self._probed)
        self.verdicts["recovered"] = recovered
        return self._result()

    def _storm(self) -> None:
        world, options = self.world, self.options
        world.start()
        world.run(options.warm_up_us)
        self.workload.start()
        until_us = world.now_us + options.faulty_us
        self.faults.plan(world.now_us, until_us)
        for _ in range(options.probes):
            world.schedule.at(self._rng.randrange(world.now_us, until_us), self._probe)
        world.run(options.faulty_us)

    def _probe(self) -> None:
        self._probed.append(probe(self.world, random.Random(self._rng.getrandbits(64))))

    def _calm(self) -> None:
        self.workload.stop()
        self.world.heal()
        del self.world.observers[1:]
        self._until_equal()

    def _until_equal(self) -> None:
        """Go on until all nodes run, are connected and hold the same, seen several times in a row."""
        world = self.world
        deadline_us = world.now_us + self.options.calm_us_max
        seen = 0
        while seen < 3 and world.now_us < deadline_us:
            world.run(250 * MS)
            is_up = all(host.node is not None for host in world.hosts.values())
            is_told = not any(o.ended_us == 0 for o in world.history.operations)
            seen = seen + 1 if is_up and is_told and world.is_connected() and converged(world) == OK else 0

    def _last_round(self) -> str:
        """Everything works again: clients' writes reach every datacenter, reads are answered."""
        batches = self.workload.last_round()
        self.world.run_until(lambda: all(batch.is_done for batch in batches), 12 * SECOND)
        self._until_equal()
        for batch in batches:
            for index, operation in enumerate(batch.operations):
                if operation.outcome not in (Outcome.APPLIED, Outcome.SUPERSEDED):
                    return f"after everything healed: {operation}: {batch.errors.get(index)}"
        return OK

    def _result(self) -> SimResult:
        world = self.world
        outcomes: dict[str, int] = {}
        for operation in world.history.operations:
            name = "none" if operation.outcome is None else operation.outcome.name
            outcomes[f"{operation.kind}.{name}"] = outcomes.get(f"{operation.kind}.{name}", 0) + 1
        return SimResult(
            world.seed,
            world.digest(),
            len(world.history.operations),
            world.now_us / SECOND,
            time.perf_counter() - self._real_start,
            self.verdicts,
            dict(sorted(outcomes.items())),
            dict(sorted(self.faults.struck.items())),
            dict(sorted(world.notes.items())),
        )


def run(seed: int, options: RunOptions | None = None) -> SimResult:
    """One run with the real nodes and the real SDK."""
    return Run(seed, options).run()


# --- many -----------------------------------------------------------------------------------------------------------


def drawn_seeds(count: int, text: str) -> list[int]:
    """Seeds that follow from a text (the hash of a commit): others for each, the same for the same."""
    return [int.from_bytes(blake2b(f"{text}/{index}".encode(), digest_size=6).digest(), "big") for index in range(count)]


def _soaked(seed: int) -> SoakFailure | None:
    command = f"geokv sim run --seed {seed}"
    try:
        result = run(seed)
    except Exception as error:
        return SoakFailure(seed, {"run": f"{type(error).__name__}: {error}"}, command)
    failed = {name: verdict for name, verdict in result.checkers.items() if verdict != OK}
    return SoakFailure(seed, failed, command) if failed else None


def soak(
    fixed: int,
    drawn: int = 0,
    drawn_from: str = "",
    processes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[SoakFailure]:
    """Run the seeds 1..`fixed` and `drawn` ones that follow from `drawn_from`; return those that failed.

    `progress` is called with (runs done, runs in all) after each.
    """
    seeds = [*range(1, fixed + 1), *drawn_seeds(drawn, drawn_from)]
    failures: list[SoakFailure] = []
    for done, failure in enumerate(_all(seeds, processes or os.cpu_count() or 1), start=1):
        if failure is not None:
            failures.append(failure)
        if progress is not None:
            progress(done, len(seeds))
    return failures


def _all(seeds: list[int], processes: int) -> Iterable[SoakFailure | None]:
    if processes == 1 or len(seeds) < 2:
        yield from map(_soaked, seeds)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        yield from pool.map(_soaked, seeds, chunksize=4)

"""Each checker is trusted because it caught a planted bug: an honest store passes, the same store with a bug fails.

The bugs are overrides of one method of the honest store (tests/sim/fake_node.py) or a disk that lies; the worlds, faults and
checkers are the simulator's own.
"""

from __future__ import annotations

import errno
import random
from typing import Any

import pytest

from geokv.core.cell import decode_lww
from geokv.core.record import Record, decode_records
from geokv.protocol.effects import Effect, Event, RoomChanged, Send
from geokv.protocol.messages import Replicated, Statement
from geokv.sim.checkers import OK
from geokv.sim.faults import FaultOptions
from geokv.sim.run import Run, RunOptions
from geokv.sim.schedule import SECOND
from geokv.sim.workload import WorkloadOptions
from geokv.storage.crash_disk import CrashDisk
from tests.sim.fake_node import FakeNode, Writing, fake

NO_FAULTS = FaultOptions(count=(0, 0))
ONLY = dict.fromkeys(
    (
        "kill",
        "kill_at_effect",
        "power_cut",
        "power_cut_at_effect",
        "power_cut_dc",
        "power_cut_all",
        "slow_disk",
        "pause",
        "cut_node",
        "cut_one_way",
        "cut_dcs",
        "isolate_dc",
        "noise",
        "clock_step",
        "clock_freeze",
        "failed_append",
        "failed_sync",
        "full_disk",
        "old_disk",
        "wiped_disk",
    ),
    0.0,
)


def only(count: int, **weights: float) -> FaultOptions:
    return FaultOptions(count=(count, count), **{**ONLY, **weights})  # type: ignore[arg-type]


def verdicts(
    kind: type[FakeNode],
    faults: FaultOptions = NO_FAULTS,
    seed: int = 1,
    disk: type[CrashDisk] | None = None,
    workload: WorkloadOptions | None = None,
) -> dict[str, str]:
    """Run the store under these faults and return what the checkers say."""
    workload = workload or WorkloadOptions(hot_keys=3, cold_keys=20, deletes=0.1)
    options = RunOptions(workload=workload, faults=faults, faulty_us=5 * SECOND, calm_us_max=8 * SECOND)
    run = Run(seed, options, fake(kind))
    if disk is not None:
        for index, host in enumerate(run.world.hosts.values()):
            host.storage.disk = disk(random.Random(index))
    run.run()
    return run.verdicts


def is_caught(
    checker: str, kind: type[FakeNode], faults: FaultOptions = NO_FAULTS, workload: WorkloadOptions | None = None
) -> bool:
    """Whether one of a few seeds makes that checker complain."""
    return any(checker in failed(verdicts(kind, faults, seed, workload=workload)) for seed in range(1, 9))


def failed(checks: dict[str, str]) -> set[str]:
    return {name for name, verdict in checks.items() if verdict != OK}


@pytest.mark.parametrize("seed", range(1, 6))
def test_honest_store_passes(seed: int) -> None:
    """Without a bug no checker complains, under every fault of the menu that the store can live with."""
    assert failed(verdicts(FakeNode, FaultOptions(), seed)) == set()


# --- planted bugs ----------------------------------------------------------------------------------------------------------


class SyncsNothing(CrashDisk):
    """A disk whose sync does nothing."""

    def sync(self, name: str) -> None:
        self.size(name)


class AnswersBeforeSync(FakeNode):
    def spread(self, batch: int, records: bytes) -> None:
        writing = self.writing[batch]
        super().spread(batch, records)
        writing.have.add(self.name)
        self.settle(batch, writing)


class AcknowledgesBeforeSync(FakeNode):
    def take(self, peer: str, batch: int, records: bytes) -> None:
        if batch:
            self.out.append(Send(peer, Replicated(batch)))
        super().take(peer, batch, records)


class LastArrivalWins(FakeNode):
    def merge(self, known: bytes, incoming: bytes) -> bytes:
        return incoming

    def log_if_new(self, records: bytes) -> None:
        other = [r.raw for r in decode_records(records) if self.table.get(r.key) != r.cell]
        if other:
            self.log(b"".join(other), lambda: None)


class KeepsInMemory(FakeNode):
    """A replica that shows what it was sent and says that it has it, without a log."""

    def take(self, peer: str, batch: int, records: bytes) -> None:
        for record in decode_records(records):
            self.show(record)
        self.out.append(Send(peer, Replicated(batch)))


class ForgetsItsTail(FakeNode):
    """A recovery that leaves out what came last."""

    def replay(self, payload: bytes) -> None:
        self.replayed = getattr(self, "replayed", 0) + 1
        if self.replayed < 20:
            super().replay(payload)

    def exchange(self) -> None:
        pass


class StampsByWallClock(FakeNode):
    def stamp(self, key: bytes) -> int:
        return self.wall_ms << 16

    def observe(self, hlc: int) -> None:
        pass


class NumbersFromDisk(FakeNode):
    """Its incarnation never changes, and it counts on from what the disk says."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.incarnation = 7
        self.origin = self.origin._replace(incarnation=7)

    def learn(self, record: Record) -> None:
        super().learn(record)
        if record.origin == self.origin.packed():
            self.numbers[record.partition] = max(self.numbers.get(record.partition, 0), record.number)


class ReadsItself(FakeNode):
    """A quorum read that asks nobody else."""

    def settle_read(self, query: int, reading: Any) -> None:
        reading.wanted = 1
        super().settle_read(query, reading)


class CollectsAtOnce(FakeNode):
    """Tombstones are dropped when they are applied."""

    def show(self, record: Record) -> None:
        super().show(record)
        if decode_lww(self.table[record.key]).is_tombstone:
            del self.table._hot[record.key]
            self.table._memtable._order.clear()


class ForgetsDeadlines(FakeNode):
    def shown(self, cell: bytes) -> bytes | None:
        return decode_lww(cell).value if cell and not decode_lww(cell).is_tombstone else None


class GarblesValues(FakeNode):
    def shown(self, cell: bytes) -> bytes | None:
        value = super().shown(cell)
        return value and value[:-1] + b"?"


class CountsOneMore(FakeNode):
    def claimed(self, writing: Writing) -> int:
        return len(writing.have) + 1


class StatesOneMore(FakeNode):
    """Its frontier counts what is not there."""

    def frontier(self, numbers: set[int]) -> int:
        return max(numbers, default=0)

    def take(self, peer: str, batch: int, records: bytes) -> None:
        if batch % 5:
            super().take(peer, batch, records)


class NeverReconnects(FakeNode):
    def delivered(self, peer: str, message: object) -> None:
        super().delivered(peer, message)
        if self.now_us % 50 == 0:
            for other in self.peers_here():
                self.connected[other] = False


class KeepsToItself(FakeNode):
    """Exchanges nothing: what another missed, it never gets."""

    def exchange(self) -> None:
        pass


class ChangesWhatItSent(FakeNode):
    sent: Any = None

    def handle(self, event: Event, now_us: int) -> list[Effect]:
        if self.sent is not None:
            self.sent.hlc += 1
        effects = super().handle(event, now_us)
        for effect in effects:
            if isinstance(effect, Send) and isinstance(effect.message, Statement):
                self.sent = effect.message
        return effects


def test_disk_that_lies_is_caught() -> None:
    """A host that tells Persisted before the bytes are safe fails claims and levels_honest."""
    found = failed(verdicts(FakeNode, only(1, power_cut_all=1), disk=SyncsNothing))
    assert {"claims", "levels_honest"} <= found


def test_answer_before_sync_is_caught() -> None:
    """A coordinator that counts itself before its own sync fails levels_honest."""
    assert is_caught("levels_honest", AnswersBeforeSync)


def test_acknowledgement_before_sync_is_caught() -> None:
    """A replica that tells Replicated before its sync fails claims."""
    assert is_caught("claims", AcknowledgesBeforeSync)


def test_write_kept_in_memory_is_caught() -> None:
    """A write whose replicas only remember it fails acknowledged_survives: a power cut and one disk would take it."""
    assert is_caught("acknowledged_survives", KeepsInMemory)


def test_forgotten_tail_is_caught() -> None:
    """A recovery that leaves out what was acknowledged fails acknowledged_survives at the end."""
    assert is_caught("acknowledged_survives", ForgetsItsTail, only(1, power_cut_all=1))


def test_last_arrival_wins_is_caught() -> None:
    """A merge that depends on the order of arrival loses what was acknowledged to what came before it."""
    assert is_caught("acknowledged_survives", LastArrivalWins, only(3, noise=1))


def test_replicas_that_stay_apart_are_caught() -> None:
    """Replicas that never catch up fail converged."""
    assert is_caught("converged", KeepsToItself)


def test_stamps_by_wall_clock_are_caught() -> None:
    """A coordinator that stamps by its wall clock alone orders a client's second write before its first."""
    assert is_caught("causal_on_key", StampsByWallClock, only(4, clock_step=1))


def test_clock_that_goes_back_is_caught() -> None:
    """A node that forgets its clock at a restart fails hlc_rises when its wall clock was set back."""
    assert is_caught("hlc_rises", StampsByWallClock, only(5, clock_step=1))


def test_reused_numbers_are_caught() -> None:
    """Numbers counted on from an old copy of a disk name two records."""
    assert is_caught("numbers_unique", NumbersFromDisk, only(3, old_disk=1))


def test_quorum_read_of_one_is_caught() -> None:
    """A quorum read that asks only its coordinator misses acknowledged writes."""
    assert is_caught("read_your_quorum", ReadsItself, only(4, cut_node=1))


def test_early_collection_is_caught() -> None:
    """A tombstone that is collected at once lets the value come back."""
    assert is_caught("no_resurrection", CollectsAtOnce, only(3, noise=1, cut_node=1))


def test_forgotten_deadline_is_caught() -> None:
    """A value that is shown after its deadline fails no_resurrection."""
    workload = WorkloadOptions(hot_share=0.0, puts=0.3, ttl_share=0.5, ttl_ms=(50, 200))
    assert is_caught("no_resurrection", ForgetsDeadlines, workload=workload)


def test_invented_value_is_caught() -> None:
    """A value that nobody wrote fails reads_are_written."""
    assert is_caught("reads_are_written", GarblesValues)


def test_overstated_level_is_caught() -> None:
    """A reply that counts a replica too many fails levels_honest."""
    assert is_caught("levels_honest", CountsOneMore, only(3, cut_node=1))


def test_overstated_frontier_is_caught() -> None:
    """A frontier that runs over a gap fails claims."""
    assert is_caught("claims", StatesOneMore)


def test_store_that_does_not_come_back_is_caught() -> None:
    """A store that refuses for ever after the faults are healed fails recovered."""
    assert is_caught("recovered", NeverReconnects)


def test_changed_message_is_caught() -> None:
    """A machine that changes a message after it was sent is stopped at the delivery."""
    run = Run(1, RunOptions(faults=NO_FAULTS), fake(ChangesWhatItSent))
    run.world.network.is_checking_mutation = True
    with pytest.raises(AssertionError, match="was changed after it was sent"):
        run.run()


def test_host_tells_of_a_full_disk() -> None:
    """The host says RoomChanged with the reason when nothing can be allocated, and again when there is room."""
    told: list[str] = []

    class Hears(FakeNode):
        def handle(self, event: Event, now_us: int) -> list[Effect]:
            if isinstance(event, RoomChanged) and self.name == "dc1-n1":
                told.append(event.reason)
            return super().handle(event, now_us)

    run = Run(1, RunOptions(faults=NO_FAULTS), fake(Hears))
    run.world.hosts["dc1-n1"].storage.disk.fail("allocate", errno.ENOSPC, times=3)
    run.world.start()
    run.world.run(6 * SECOND)
    assert "no room left" in told[0]
    assert told[-1] == ""

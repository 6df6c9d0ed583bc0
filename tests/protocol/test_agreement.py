"""Agreement: whatever is lost, doubled or crashed, one item has one value, and calm gets there."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import pytest

from geokv.errors import InvalidRequest, Overloaded
from geokv.protocol import agreement
from geokv.protocol.agreement import (
    Agreement,
    Decided,
    Learned,
    Noted,
    ToPersist,
    ToSend,
)
from geokv.protocol.agreement_forms import MEMBER, PAGE_BYTES_MAX, ItemState, mark
from geokv.protocol.messages import Accept, Accepted, CopyItems, Prepare, Promised

Machine = type[Agreement]


class TwoValues(AssertionError):
    """What must never be."""


@dataclass
class Seat:
    """A member's place: its disk outlives the machine that sits on it."""

    name: str
    disk: dict[bytes, ItemState] = field(default_factory=dict)
    machine: Agreement | None = None
    run: int = 0


@dataclass
class Faults:
    loss: float = 0.0
    doubled: float = 0.0
    delay_us_max: int = 1_000
    disk_us_max: int = 1_000


class Cluster:
    """Members, a network that loses, doubles and reorders, disks that keep what was synced; one seed."""

    def __init__(self, count: int, seed: int, kind: Machine = Agreement, faults: Faults | None = None) -> None:
        self.rng = random.Random(seed)
        self.kind = kind
        self.faults = faults or Faults()
        self.now_us = 0
        self.names = [f"n{number}" for number in range(count)]
        self.seats = {name: Seat(name) for name in self.names}
        self.standing: dict[bytes, bytes] = {}
        self.decided: dict[tuple[str, int, int], dict[bytes, bytes]] = {}
        self.asked: dict[tuple[str, int, int], dict[bytes, bytes]] = {}
        self.learned: set[tuple[str, int, bytes]] = set()
        self.notes: list[str] = []
        self._queue: list[tuple[int, int, Callable[[], None]]] = []
        self._events = 0

    def later(self, delay_us: int, action: Callable[[], None]) -> None:
        self._events += 1
        heapq.heappush(self._queue, (self.now_us + delay_us, self._events, action))

    def start(self, name: str) -> None:
        seat = self.seats[name]
        seat.run += 1
        rng = random.Random(self.rng.getrandbits(64))
        seat.machine = self.kind(name, self.names, rng, True, list(seat.disk.values()))
        for item, value in seat.machine.known():
            self.stands(item, value)
        seat.machine.tick(self.now_us)
        self.perform(seat)

    def crash(self, name: str, loses_disk: bool = False) -> None:
        """Nothing that was not synced survives: the machine is gone, and its syncs under way never happen."""
        self.seats[name].machine = None
        if loses_disk:
            self.seats[name].disk.clear()

    def propose(self, name: str, items: dict[bytes, bytes]) -> tuple[str, int, int]:
        seat = self.seats[name]
        assert seat.machine is not None
        key = (name, seat.run, seat.machine.propose(items, self.now_us))
        self.asked[key] = items
        self.perform(seat)
        return key

    def stands(self, item: bytes, value: bytes) -> None:
        if self.standing.setdefault(item, value) != value:
            raise TwoValues(f"{item!r}: {self.standing[item]!r} and {value!r}")

    def perform(self, seat: Seat) -> None:
        assert seat.machine is not None
        for output in seat.machine.take():
            match output:
                case ToSend(peer, message):
                    self.carry(seat.name, peer, message)
                case ToPersist():
                    self.sync(seat, output)
                case Decided(ticket, values):
                    key = (seat.name, seat.run, ticket)
                    assert key not in self.decided and values.keys() == self.asked.get(key, values).keys()
                    self.decided[key] = values
                    for item, value in values.items():
                        self.stands(item, value)
                case Learned(item, value):
                    self.stands(item, value)
                    assert (seat.name, seat.run, item) not in self.learned, "each item once"
                    assert seat.machine.chosen(item) == value
                    self.learned.add((seat.name, seat.run, item))
                case Noted(name):
                    self.notes.append(name)

    def carry(self, sender: str, peer: str, message: object) -> None:
        assert peer != sender
        copies = 2 if self.rng.random() < self.faults.doubled else 1
        for _ in range(copies):
            if self.rng.random() >= self.faults.loss:
                self.later(self.rng.randrange(self.faults.delay_us_max), lambda: self.deliver(sender, peer, message))

    def deliver(self, sender: str, peer: str, message: object) -> None:
        seat = self.seats[peer]
        if seat.machine is not None:
            seat.machine.handle(sender, message, self.now_us)
            self.perform(seat)

    def sync(self, seat: Seat, asked: ToPersist) -> None:
        """A log syncs in order: a later token never before an earlier one."""
        machine = seat.machine

        def done() -> None:
            if seat.machine is machine and machine is not None:
                seat.disk.update((state.item, state) for state in asked.items)
                machine.persisted(asked.token)
                self.perform(seat)

        ready = getattr(machine, "disk_free_us", 0)
        ready = max(ready, self.now_us) + self.rng.randrange(self.faults.disk_us_max)
        machine.disk_free_us = ready  # type: ignore[union-attr]
        self.later(ready - self.now_us, done)

    def run(self, duration_us: int, until: Callable[[], bool] = lambda: False) -> bool:
        """Let virtual time pass; True as soon as `until` holds."""
        end_us = self.now_us + duration_us
        while self.now_us < end_us:
            if until():
                return True
            wakes = [(seat.machine.wake_at_us(), seat.name) for seat in self.seats.values() if seat.machine is not None]
            due = min(((wake, name) for wake, name in wakes if wake is not None), default=None)
            event_us = self._queue[0][0] if self._queue else end_us
            if due is not None and due[0] < min(event_us, end_us):
                self.now_us = max(self.now_us, due[0])
                seat = self.seats[due[1]]
                assert seat.machine is not None
                seat.machine.tick(self.now_us)
                self.perform(seat)
            elif event_us >= end_us:
                self.now_us = end_us
            else:
                self.now_us, _, action = heapq.heappop(self._queue)
                action()
        return until()

    def members(self) -> list[str]:
        return [s.name for s in self.seats.values() if s.machine is not None and s.machine.is_member]

    def boot(self) -> None:
        for name in self.names:
            self.start(name)
        assert self.run(20_000_000, lambda: len(self.members()) == len(self.names)), "first boot"

    def settle(self) -> None:
        """The calm phase: no faults, everybody up; every proposal of a machine that still lives ends."""
        self.faults = Faults()
        for seat in self.seats.values():
            if seat.machine is None:
                self.start(seat.name)

        def is_done() -> bool:
            live = {(seat.name, seat.run) for seat in self.seats.values()}
            open_ones = [key for key in self.asked if key[:2] in live and key not in self.decided]
            return not open_ones and len(self.members()) == len(self.names)

        assert self.run(60_000_000, is_done), "no progress in a calm network"
        self.run(2_000_000)  # what a crashed proposer still had under way arrives


def storm(count: int, seed: int, kind: Machine = Agreement, loses_disks: bool = True) -> Cluster:
    """Two or three proposers on the same items; a minority is away or without its disk at any time."""
    cluster = Cluster(count, seed, kind)
    cluster.boot()
    rng = cluster.rng
    delay_us_max, disk_us_max = rng.choice((2_000, 60_000, 600_000)), rng.choice((5_000, 60_000, 600_000))
    cluster.faults = Faults(rng.choice((0.0, 0.1, 0.3)), 0.2, delay_us_max, disk_us_max)
    proposers = rng.sample(cluster.names, min(count, rng.choice((2, 3))))
    for step in range(rng.randrange(6, 24)):
        for name in proposers:
            machine = cluster.seats[name].machine
            if machine is not None and rng.random() < 0.7:
                items = [b"item-%d" % rng.randrange(1 + step // 2) for _ in range(rng.randrange(1, 4))]
                cluster.propose(name, {item: b"%b of %b by %d" % (item, name.encode(), step) for item in items})
        cluster.run(rng.randrange(1_000, 300_000))
        away = [name for name in cluster.names if name not in cluster.members()]
        if len(away) < (count - 1) // 2 and rng.random() < 0.7:
            cluster.crash(rng.choice(cluster.members()), loses_disks and rng.random() < 0.6)
        for name in away:
            if cluster.seats[name].machine is None and rng.random() < 0.8:
                cluster.start(name)
    cluster.settle()
    # Whoever asks now must find what stands.
    asker = rng.choice(cluster.names)
    found = cluster.propose(asker, dict.fromkeys(cluster.standing or {b"none": b""}, b"too late"))
    cluster.settle()
    assert cluster.decided[found].items() >= cluster.standing.items() - {(b"none", b"")}
    return cluster


@pytest.mark.timeout(120)
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_one_value_per_item_whatever_happens(count: int, samples) -> None:  # type: ignore[no-untyped-def]
    """Loss, doubles, reordering, crashes, replaced disks: never two values, and progress in calm."""
    notes: set[str] = set()
    for seed in range(samples.of(test=60, check=400, soak=30_000)):
        notes.update(storm(count, seed).notes)
    assert "agreement.two_values_chosen" not in notes
    assert "agreement.malformed" not in notes
    if count >= 3:
        assert {"agreement.refused", "agreement.asked_while_fresh", "agreement.member"} <= notes


def test_two_replaced_disks_that_copy_from_each_other_both_come_in() -> None:
    """A source that lost its own disk after it had answered is asked again (this storm once stood still for ever)."""
    storm(5, 2735)


class AnswersBeforeItPersists(Agreement):
    """Planted: the acceptor's answer does not wait for its disk."""

    def _when_durable(self, action: Callable[[], None]) -> None:
        action()


class TakesPartWhileFresh(Agreement):
    """Planted: a member with a new disk votes at once."""

    def __init__(self, node: str, members: list[str], rng: random.Random, is_fresh: bool, state: list[ItemState]):
        super().__init__(node, members, rng, False, state)


class CountsVotesOfEarlierLives(Agreement):
    """Planted: votes of a disk that was replaced since still count."""

    def _life_of_vote(self, peer: str, items: Iterable[bytes]) -> int | None:
        return 0


@pytest.mark.parametrize("kind", [AnswersBeforeItPersists, TakesPartWhileFresh])
def test_the_storm_catches_a_planted_bug(kind: Machine) -> None:
    """The harness is worth something: it finds two values where the acceptor forgets what it said."""
    for seed in range(2_000):
        try:
            storm(3, seed, kind)
        except AssertionError as found:
            if isinstance(found, TwoValues):
                return
    pytest.fail(f"{kind.__name__} was not caught")


def take_messages(machine: Agreement) -> list[ToSend]:
    """Perform what a machine put out, its disk being instant, and return what it sent."""
    sent: list[ToSend] = []
    while outputs := machine.take():
        for output in outputs:
            if isinstance(output, ToSend):
                sent.append(output)
            elif isinstance(output, ToPersist):
                machine.persisted(output.token)
    return sent


@pytest.mark.parametrize(("kind", "is_chosen"), [(Agreement, False), (CountsVotesOfEarlierLives, True)])
def test_a_vote_of_a_replaced_disk_does_not_count_beside_newer_votes(kind: Machine, is_chosen: bool) -> None:
    """One of five accepted, lost its disk, copied before others accepted: its old vote is dropped."""
    names = ["a", "b", "c", "d", "e"]
    proposer, voter = (kind(name, names, random.Random(1), False) for name in ("a", "b"))
    # Everybody promised to `a`; the old `e` has also accepted, and its vote is under way.
    proposer.propose({b"item": b"value"}, 0)
    prepare = next(sent.message for sent in take_messages(proposer) if sent.peer == "b")
    assert isinstance(prepare, Prepare)
    for peer in ("c", "e"):
        proposer.handle(peer, Promised(prepare.ballot, [b"item"], [None], [False]), 1)
    accept = next(sent.message for sent in take_messages(proposer) if sent.peer == "b")
    assert isinstance(accept, Accept)
    # The new `e` registers its life with `b` (and `c`, `d`) and copies: nothing is accepted there yet.
    voter.handle("e", CopyItems(7, mark("e", 1)), 2)
    take_messages(voter)
    voter.handle("a", accept, 3)
    vote = next(sent.message for sent in take_messages(voter) if isinstance(sent.message, Accepted))
    proposer.handle("e", Accepted(accept.ballot, [b"item"]), 4)
    proposer.handle("b", vote, 5)
    take_messages(proposer)
    assert (proposer.chosen(b"item") is not None) == is_chosen


def test_nothing_leaves_before_it_is_synced() -> None:
    """Promise, acceptance and choice each wait for their own persist; so does the proposer's first word."""
    acceptor = Agreement("b", ["a", "b", "c"], random.Random(1), False)
    acceptor.handle("a", Prepare((1, "a"), [b"x"]), 0)
    (persist,) = acceptor.take()
    assert isinstance(persist, ToPersist) and persist.items == [ItemState(b"x", (1, "a"), None, False)]
    acceptor.handle("a", Prepare((1, "a"), [b"x"]), 1)
    assert acceptor.take() == [], "a repeated question waits for the same sync"
    acceptor.persisted(persist.token)
    assert [type(output.message) for output in acceptor.take() if isinstance(output, ToSend)] == [
        Promised,
        Promised,
    ]
    proposer = Agreement("a", ["a", "b", "c"], random.Random(1), False)
    proposer.propose({b"x": b"1"}, 0)
    (persist,) = proposer.take()
    assert isinstance(persist, ToPersist)
    proposer.persisted(persist.token)
    assert {output.peer for output in proposer.take() if isinstance(output, ToSend)} == {"b", "c"}


def test_a_round_is_never_used_again_after_a_restart() -> None:
    """A machine made from the disk begins above every round that the one before may have used."""
    first = Agreement("a", ["a", "b", "c"], random.Random(1), False)
    first.propose({b"x": b"1"}, 0)
    (persist,) = first.take()
    assert isinstance(persist, ToPersist)
    second = Agreement("a", ["a", "b", "c"], random.Random(1), False, persist.items)
    second.propose({b"x": b"2"}, 0)
    (again,) = second.take()
    assert isinstance(again, ToPersist) and again.items[0].promised > persist.items[0].promised


def test_first_boot_needs_everybody_and_a_restart_is_not_fresh() -> None:
    """With one of three silent nobody takes part; with it all do, and a restart takes part at once."""
    cluster = Cluster(3, 5)
    cluster.start("n0")
    cluster.start("n1")
    key = cluster.propose("n0", {b"x": b"1"})
    assert not cluster.run(5_000_000, lambda: bool(cluster.members()))
    cluster.start("n2")
    assert cluster.run(5_000_000, lambda: key in cluster.decided and len(cluster.members()) == 3)
    cluster.crash("n0")
    cluster.start("n0")
    assert "n0" in cluster.members() and MEMBER in cluster.seats["n0"].disk


@pytest.mark.timeout(60)
def test_first_boot_leaves_nobody_behind() -> None:
    """Members start at any time, crash, and propose at once: in the end all take part."""
    for seed in range(150):
        cluster = Cluster(3, seed, faults=Faults(0.3, 0.2, 300_000, 100_000))
        for name in cluster.names:
            cluster.start(name)
            cluster.propose(name, {b"boot": name.encode()})
            cluster.run(cluster.rng.randrange(2_000_000))
            victim = cluster.rng.choice(cluster.names)
            if cluster.seats[victim].machine is not None and cluster.rng.random() < 0.5:
                cluster.crash(victim)
                cluster.run(cluster.rng.randrange(1_000_000))
                cluster.start(victim)
        cluster.settle()


def test_a_replaced_disk_copies_all_items_in_pages() -> None:
    """More items than a page holds: it knows every choice before it votes, and learns each once."""
    cluster = Cluster(3, 9)
    cluster.boot()
    items = {b"item-%05d" % number: b"v%d" % number for number in range(3_000)}
    key = cluster.propose("n0", items)
    assert cluster.run(10_000_000, lambda: key in cluster.decided)
    cluster.crash("n2", loses_disk=True)
    cluster.start("n2")
    assert cluster.run(20_000_000, lambda: len(cluster.members()) == 3)
    machine = cluster.seats["n2"].machine
    assert machine is not None and dict(machine.known()) == items
    assert len([1 for name, run, _ in cluster.learned if (name, run) == ("n2", 2)]) == 3_000


def test_messages_are_bounded() -> None:
    """Large values are cut into messages and persists of half a MiB, and still agreed on."""
    cluster = Cluster(3, 3)
    cluster.boot()
    sizes: list[int] = []
    carry = cluster.carry

    def measured(sender: str, peer: str, message: object) -> None:
        values = getattr(message, "values", [])
        sizes.append(sum(map(len, getattr(message, "items", []))) + sum(map(len, values)))
        carry(sender, peer, message)

    cluster.carry = measured  # type: ignore[method-assign]
    items = {b"big-%d" % number: bytes([number]) * 200_000 for number in range(12)}
    key = cluster.propose("n1", items)
    assert cluster.run(10_000_000, lambda: key in cluster.decided)
    assert cluster.decided[key] == items and 200_000 < max(sizes) <= PAGE_BYTES_MAX


def test_what_is_chosen_is_decided_at_once() -> None:
    """A second proposal of a chosen item ends without a message, with the value that stands."""
    cluster = Cluster(3, 4)
    cluster.boot()
    first = cluster.propose("n0", {b"x": b"1"})
    assert cluster.run(5_000_000, lambda: first in cluster.decided)
    assert cluster.decided[cluster.propose("n0", {b"x": b"2"})] == {b"x": b"1"}


def test_a_forgotten_item_is_gone() -> None:
    """forget drops a finished item from memory and the next checkpoint, not one that is under way."""
    cluster = Cluster(1, 4)
    cluster.boot()
    done = cluster.propose("n0", {b"x": b"1"})
    assert cluster.run(5_000_000, lambda: done in cluster.decided)
    machine = cluster.seats["n0"].machine
    assert machine is not None
    cluster.propose("n0", {b"y": b"2"})
    machine.forget([b"x", b"y"])
    assert machine.chosen(b"x") is None and not {b"x"} & {state.item for state in machine.state()}
    assert machine.in_flight == 1


def test_too_much_is_refused_with_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Items in flight are bounded: Overloaded; what can never be is InvalidRequest."""
    monkeypatch.setattr(agreement, "ITEMS_IN_FLIGHT_MAX", 10)
    machine = Agreement("a", ["a", "b", "c"], random.Random(1), False)
    machine.propose({b"%d" % number: b"" for number in range(8)}, 0)
    machine.propose({b"1": b"", b"2": b""}, 0)
    with pytest.raises(Overloaded, match="at most 10"):
        machine.propose({b"x": b"", b"y": b"", b"z": b""}, 0)
    for wrong in ({b"": b""}, {b"\0member": b""}, {b"x" * 300: b""}, {b"x": bytes(300_000)}):
        with pytest.raises(InvalidRequest):
            machine.propose(wrong, 0)


@pytest.mark.parametrize(
    "message",
    [
        Prepare((1, "c"), [b"x"]),
        Prepare((1, "b"), []),
        Prepare((1 << 64, "b"), [b"x"]),
        Prepare((1, "b"), [b"\0member"]),
        Accept((1, "b"), [b"x"], []),
        Promised((1, "a"), [b"\0life/"], [None], [False]),
        CopyItems(1, b"\0x"),
        "nonsense",
    ],
)
def test_malformed_messages_are_noted_and_dropped(message: object) -> None:
    """Another's ballot, empty or reserved items, columns of different length: no state changes."""
    machine = Agreement("a", ["a", "b", "c"], random.Random(1), False)
    machine.handle("b", message, 0)
    assert machine.take() == [Noted("agreement.malformed")]
    machine.handle("z", Prepare((1, "z"), [b"x"]), 0)
    assert machine.take() == [Noted("agreement.stranger")]
    assert list(machine.state()) == []

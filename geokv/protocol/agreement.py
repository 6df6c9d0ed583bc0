"""Agreement: single-decree Paxos per item among the members of a datacenter, in batches, durable before it
answers.

An item is a name (bytes), and what is agreed is its value, once and for ever. Each member is acceptor and
proposer:

    propose --> own acceptor promises, durable --> Prepare --> Promised by a majority
            --> Accept, own acceptor too       --> Accepted by a majority
            --> Chosen, durable here           --> Decided, Learned          (refused: back off, higher round)

Wiring. The node makes one Agreement from the item states of its disk, calls `tick(now)` once at the start and
whenever `wake_at_us()` has passed, hands peers' messages to `handle`, and after each of these calls performs
`take()` in order:

    ToSend(peer, message)        send it; it may be lost
    ToPersist(token, items)      log and sync these, the later state of an item replaces it; then `persisted`
    Decided(ticket, values)      every item of that `propose` is chosen: these values stand
    Learned(item, value)         told once per run for each item whose choice this run came to know and synced
    Noted(name)                  count it

After a restart all states that were synced go into `state`; what they say is chosen is not Learned again:
ask `known()`.

A member with a new disk has forgotten its votes, and must neither vote nor let its old votes count beside new
ones. It asks all others, takes a *life* number above all that they know of it, has it registered durably by
so many of them that no majority could do without one (`_others_needed`), and copies from these all items. A
voter names the lives it knows beside each vote; the proposer drops votes of earlier lives. So an old vote
counts only beside votes that were given before the copy, and those the copy contains. Where nobody has ever
taken part (first boot), all ask all; each notes durably that nobody had (`FIRST`), and takes part once all
have noted that: nobody can be left behind, taking its peers' progress for its own lost disk.

Items of this machine's own begin with NUL: FIRST, MEMBER (takes part), and LIFE marks (`promised` is (life,
node)); a vote carries them among its items as `LIFE node NUL life`. CopyItems with `after` empty asks for the
marks alone; with `after` such a mark it registers that life and begins to copy.

Invariants:
- No answer of the acceptor leaves before the state that it rests on was persisted; no ballot is used before
  the proposer's own acceptor promised it durably, so a restart begins above every round that it may have
  used.
- A vote that is counted belongs to the newest life that any counted voter knows of its giver.
- What is chosen never changes: `Decided`, `Learned`, `chosen` and every peer's say the same.

Not here: what items mean; carrying definitions to other datacenters (protocol.catalog). After Lamport, "Paxos
Made Simple".
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final

from geokv.errors import InvalidRequest, Overloaded
from geokv.protocol.agreement_forms import (
    FIRST,
    LIFE,
    MEMBER,
    NO_BALLOT,
    OWN,
    PAGE_ITEMS_MAX,
    PAST_OWN,
    AcceptedValue,
    ItemState,
    check_proposal,
    copied,
    is_well_formed,
    mark,
    pages,
    pair_bytes,
    read_mark,
    state_bytes,
)
from geokv.protocol.messages import (
    Accept,
    Accepted,
    Ballot,
    Chosen,
    CopyItems,
    ItemsCopied,
    Prepare,
    Promised,
)

__all__ = ["Agreement", "Decided", "ItemState", "Learned", "Noted", "Output", "ToPersist", "ToSend"]

ITEMS_IN_FLIGHT_MAX: Final = 8192  # proposed here and not yet chosen
ITEMS_HELD_MAX: Final = 1_000_000  # acceptor states; beyond them new items get no vote
RESEND_US_MIN: Final = 200_000
RESEND_US_MAX: Final = 2_000_000
ENTRY_RESEND_US_MAX: Final = 500_000  # a cluster's first boot waits for it
BACK_OFF_US_MIN: Final = 20_000  # after a refusal, doubling, with as much jitter again


@dataclass(slots=True)
class ToSend:
    peer: str
    message: object


@dataclass(slots=True)
class ToPersist:
    token: int
    items: list[ItemState]


@dataclass(slots=True)
class Decided:
    ticket: int
    values: dict[bytes, bytes]


@dataclass(slots=True)
class Learned:
    item: bytes
    value: bytes


@dataclass(slots=True)
class Noted:
    name: str


Output = ToSend | ToPersist | Decided | Learned | Noted


@dataclass(slots=True)
class _Item:
    promised: Ballot = NO_BALLOT
    accepted: AcceptedValue = None
    chosen: bool = False


@dataclass(slots=True)
class _Wish:
    """An item on its way: our choice, the highest accepted value heard of, and who voted, in which life."""

    value: bytes
    best: AcceptedValue = None
    votes: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Attempt:
    """Items that travel together under one ballot. Phase 0 waits for its next try."""

    wishes: dict[bytes, _Wish]
    wake_us: int
    ballot: Ballot = NO_BALLOT
    phase: int = 0
    tries: int = 0
    refusals: int = 0


@dataclass(slots=True)
class _Barrier:
    """Outputs that wait for a token, behind those that wait for earlier ones."""

    token: int
    is_done: bool = False
    actions: list[Callable[[], None]] = field(default_factory=list)


@dataclass(slots=True)
class _Entry:
    """A fresh member's asking: `life` 0 while it learns what is known of it."""

    nonce: int
    life: int
    wake_us: int
    tries: int = 0
    told: dict[str, str] = field(default_factory=dict)  # "fresh", "first" or "member"
    after: dict[str, bytes] = field(default_factory=dict)
    done: dict[str, int] = field(default_factory=dict)  # with the life in which it answered
    life_seen: int = 0


class Agreement:
    """The agreement machine of one member; see the module's docstring for its wiring."""

    def __init__(self, node: str, members: Sequence[str], rng: Random, is_fresh: bool, state: Iterable[ItemState] = ()) -> None:
        """`members` includes `node`. `is_fresh`: the disk may be new; a MEMBER mark tells better."""
        assert node in members and len(set(members)) == len(members)
        self.node = node
        self._others = sorted(set(members) - {node})
        self._majority = len(members) // 2 + 1
        # With this many of the others every majority that counts us shares a member besides us.
        self._others_needed = min(self._majority, len(self._others))
        self._rng = rng
        self._items: dict[bytes, _Item] = {}
        self._told: set[bytes] = set()
        self._lives: dict[str, int] = {}
        self._round = 0
        for one in state:
            self._restore(one)
        self.is_member = not is_fresh or MEMBER in self._items
        self._entry: _Entry | None = None
        self._now_us = 0
        self._token = 0
        self._ticket = 0
        self._barriers: deque[_Barrier] = deque()
        self._outputs: list[Output] = []
        self._waiting: dict[Ballot, _Attempt] = {}  # by ballot, once begun
        self._resting: list[_Attempt] = []  # phase 0
        self._in_flight: dict[bytes, list[int]] = {}  # item -> tickets that wait for it
        self._tickets: dict[int, tuple[set[bytes], dict[bytes, bytes]]] = {}

    def _restore(self, one: ItemState) -> None:
        self._items[one.item] = _Item(one.promised, one.accepted, one.chosen)
        if one.item.startswith(LIFE):
            self._lives[one.item[len(LIFE) :].decode()] = one.promised[0]
            return
        self._round = max(self._round, one.promised[0], one.accepted[0][0] if one.accepted else 0)
        if one.chosen:
            self._told.add(one.item)

    # --- asked by the node ------------------------------------------------------------------------------------------

    def propose(self, items: Mapping[bytes, bytes], now_us: int) -> int:
        """Have each item chosen, with this value unless another one is or gets chosen. Ends as Decided.

        Raises InvalidRequest for an item or value that is too large, Overloaded with too many in flight.
        """
        self._now_us = max(self._now_us, now_us)
        check_proposal(items)
        fresh = {item: value for item, value in items.items() if self._needs_attempt(item)}
        self._check_room(len(fresh))
        self._ticket += 1
        self._open_ticket(self._ticket, items)
        for page in pages(fresh.items(), pair_bytes):
            self._resting.append(_Attempt({item: _Wish(value) for item, value in page}, self._now_us))
        if self.is_member:
            self._begin_due()
        return self._ticket

    def chosen(self, item: bytes) -> bytes | None:
        """The value that stands, as far as this member knows and has synced."""
        return self._value_of(item) if item in self._told else None

    def known(self, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """All items with a known choice, and their values."""
        for item in sorted(self._told):
            if item.startswith(prefix):
                yield item, self._value_of(item)

    def state(self) -> Iterator[ItemState]:
        """Everything to remember, beside flushed cells (replaces all that was persisted before)."""
        return (self._state_of(item) for item in self._items)

    def forget(self, items: Iterable[bytes]) -> None:
        """Drop items that nobody will ever propose or need again: whoever did could choose otherwise.

        They leave the disk with the next flush. A message under way may bring one back, harmlessly.
        """
        for item in items:
            if item not in self._in_flight and not item.startswith(OWN):
                self._items.pop(item, None)
                self._told.discard(item)

    def handle(self, peer: str, message: object, now_us: int) -> None:
        """A message of `peer`, whom the transport knows. What makes no sense is noted and dropped."""
        self._now_us = max(self._now_us, now_us)
        if peer not in self._others:
            self._note("agreement.stranger")
        elif not is_well_formed(peer, message):
            self._note("agreement.malformed")
        else:
            self._dispatch(peer, message)

    def persisted(self, token: int) -> None:
        """This token's states are synced, and those of every earlier token before them or with them."""
        for barrier in self._barriers:
            if barrier.token == token:
                barrier.is_done = True
        while self._barriers and self._barriers[0].is_done:
            for action in self._barriers.popleft().actions:
                action()

    def tick(self, now_us: int) -> None:
        self._now_us = max(self._now_us, now_us)
        if not self.is_member:
            self._enter()
            return
        self._begin_due()
        for attempt in list(self._waiting.values()):
            if attempt.wake_us <= self._now_us:
                self._resend(attempt)

    def wake_at_us(self) -> int | None:
        if not self.is_member:
            return self._entry.wake_us if self._entry else self._now_us
        wakes = [attempt.wake_us for attempt in self._resting]
        wakes += [attempt.wake_us for attempt in self._waiting.values()]
        return min(wakes, default=None)

    def take(self) -> list[Output]:
        outputs, self._outputs = self._outputs, []
        return outputs

    @property
    def in_flight(self) -> int:
        return len(self._in_flight)

    # --- outputs, and what waits for the disk -----------------------------------------------------------------------

    def _note(self, name: str) -> None:
        self._outputs.append(Noted(name))

    def _send(self, peer: str, message: object) -> None:
        if peer == self.node:
            self._dispatch(peer, message)
        else:
            self._outputs.append(ToSend(peer, message))

    def _persist(self, items: Iterable[bytes]) -> None:
        for page in pages((self._state_of(item) for item in items), state_bytes):
            self._token += 1
            self._barriers.append(_Barrier(self._token))
            self._outputs.append(ToPersist(self._token, page))

    def _when_durable(self, action: Callable[[], None]) -> None:
        """Do it once everything that the acceptor holds now is synced."""
        if self._barriers:
            self._barriers[-1].actions.append(action)
        else:
            action()

    def _answer(self, peer: str, message: object) -> None:
        self._when_durable(lambda: self._send(peer, message))

    def _state_of(self, item: bytes) -> ItemState:
        held = self._items[item]
        return ItemState(item, held.promised, held.accepted, held.chosen)

    def _value_of(self, item: bytes) -> bytes:
        accepted = self._items[item].accepted
        assert accepted is not None
        return accepted[1]

    def _dispatch(self, peer: str, message: object) -> None:
        match message:
            case Prepare():
                self._on_prepare(peer, message)
            case Promised():
                self._on_promised(peer, message)
            case Accept():
                self._on_accept(peer, message)
            case Accepted():
                self._on_accepted(peer, message)
            case Chosen():
                self._learn(zip(message.items, message.values, strict=True))
            case CopyItems():
                self._on_copy_items(peer, message)
            case ItemsCopied():
                self._on_items_copied(peer, message)
            case _:
                self._note("agreement.malformed")

    # --- acceptor ---------------------------------------------------------------------------------------------------

    def _on_prepare(self, peer: str, asked: Prepare) -> None:
        if not self._may_vote(asked.items):
            return
        higher = self._higher(asked.ballot, asked.items)
        if higher:
            self._send(peer, Promised(asked.ballot, [], [], [], True, higher))
            return
        changed = [item for item in asked.items if self._promise(item, asked.ballot)]
        self._persist(changed)
        states = [self._state_of(item) for item in asked.items]
        for page in pages(states, state_bytes):
            marks = self._marks()
            items = [one.item for one in page] + marks
            accepted = [one.accepted for one in page] + [None] * len(marks)
            chosen = [one.chosen for one in page] + [False] * len(marks)
            self._answer(peer, Promised(asked.ballot, items, accepted, chosen))

    def _on_accept(self, peer: str, asked: Accept) -> None:
        if not self._may_vote(asked.items):
            return
        standing = [item for item in asked.items if self._is_chosen(item)]
        if standing and peer != self.node:
            self._tell_chosen([peer], standing)
        wanted = {item: v for item, v in zip(asked.items, asked.values, strict=True) if not self._is_chosen(item)}
        if not wanted:
            return
        higher = self._higher(asked.ballot, wanted)
        if higher:
            self._send(peer, Accepted(asked.ballot, [], True, higher))
            return
        self._persist([item for item, value in wanted.items() if self._accept(item, asked.ballot, value)])
        self._answer(peer, Accepted(asked.ballot, [*wanted, *self._marks()]))

    def _may_vote(self, items: Sequence[bytes]) -> bool:
        if not self.is_member:
            self._note("agreement.asked_while_fresh")
            return False
        if len(self._items) > ITEMS_HELD_MAX and any(item not in self._items for item in items):
            self._note("agreement.items_full")
            return False
        return True

    def _higher(self, ballot: Ballot, items: Iterable[bytes]) -> Ballot | None:
        """The highest promise above `ballot` among items that are still open; None where there is none."""
        held = (self._items.get(item) for item in items)
        higher = max((one.promised for one in held if one and not one.chosen), default=NO_BALLOT)
        return higher if higher > ballot else None

    def _promise(self, item: bytes, ballot: Ballot) -> bool:
        held = self._items.setdefault(item, _Item())
        if held.chosen or held.promised == ballot:
            return False
        held.promised = ballot
        return True

    def _accept(self, item: bytes, ballot: Ballot, value: bytes) -> bool:
        held = self._items.setdefault(item, _Item())
        if held.accepted is not None and held.accepted[0] == ballot:
            return False
        held.promised, held.accepted = ballot, (ballot, value)
        return True

    def _is_chosen(self, item: bytes) -> bool:
        held = self._items.get(item)
        return held is not None and held.chosen

    def _marks(self) -> list[bytes]:
        """The lives that we know, as they stand beside a vote."""
        return [mark(node, life) for node, life in self._lives.items()]

    # --- proposer ---------------------------------------------------------------------------------------------------

    def _needs_attempt(self, item: bytes) -> bool:
        return item not in self._in_flight and not self._is_chosen(item)

    def _check_room(self, added: int) -> None:
        if added > ITEMS_IN_FLIGHT_MAX:
            raise InvalidRequest(f"{added} items in one proposal, at most {ITEMS_IN_FLIGHT_MAX}: propose them in parts")
        if len(self._in_flight) + added > ITEMS_IN_FLIGHT_MAX or len(self._tickets) >= ITEMS_IN_FLIGHT_MAX:
            raise Overloaded(f"{len(self._in_flight)} items are being agreed on, at most {ITEMS_IN_FLIGHT_MAX} may be")
        if len(self._items) + added > ITEMS_HELD_MAX:
            raise Overloaded(f"the agreement holds {len(self._items)} items, at most {ITEMS_HELD_MAX}", retry_after=1.0)

    def _open_ticket(self, ticket: int, items: Mapping[bytes, bytes]) -> None:
        values = {item: self._value_of(item) for item in items if item in self._told}
        missing = items.keys() - values.keys()
        if not missing:
            self._outputs.append(Decided(ticket, values))
            return
        for item in missing:
            self._in_flight.setdefault(item, []).append(ticket)
        self._tickets[ticket] = missing, values

    def _begin_due(self) -> None:
        due = [attempt for attempt in self._resting if attempt.wake_us <= self._now_us]
        self._resting = [attempt for attempt in self._resting if attempt.wake_us > self._now_us]
        for attempt in due:
            self._begin(attempt)

    def _begin(self, attempt: _Attempt) -> None:
        """Phase 1, from our own acceptor on; the others hear of it once that is durable (`_on_promised`)."""
        attempt.wishes = {item: wish for item, wish in attempt.wishes.items() if not self._is_chosen(item)}
        if not attempt.wishes:
            return
        held = (self._items.get(item) for item in attempt.wishes)
        self._round = max(self._round, max((one.promised[0] for one in held if one), default=0)) + 1
        attempt.ballot, attempt.phase, attempt.tries = (self._round, self.node), 1, 0
        for wish in attempt.wishes.values():
            wish.best = None
            wish.votes.clear()
        self._waiting[attempt.ballot] = attempt
        self._rest_until_resend(attempt)
        self._on_prepare(self.node, Prepare(attempt.ballot, list(attempt.wishes)))

    def _rest_until_resend(self, attempt: _Attempt) -> None:
        pause = min(RESEND_US_MIN << min(attempt.tries, 8), RESEND_US_MAX)
        attempt.wake_us = self._now_us + pause + self._rng.randrange(pause // 4)

    def _resend(self, attempt: _Attempt) -> None:
        attempt.tries += 1
        self._rest_until_resend(attempt)
        if attempt.phase == 1 and not all(self.node in wish.votes for wish in attempt.wishes.values()):
            return  # our own disk is not done yet
        self._ask(attempt, self._others)

    def _ask(self, attempt: _Attempt, peers: Iterable[str]) -> None:
        """Send the phase's question to those whose votes are missing."""
        for peer in peers:
            lacking = {item: wish for item, wish in attempt.wishes.items() if peer not in wish.votes}
            if attempt.phase == 1 and lacking:
                self._send(peer, Prepare(attempt.ballot, list(lacking)))
            elif attempt.phase == 2:
                for page in pages(((item, wish.value) for item, wish in lacking.items()), pair_bytes):
                    self._send(peer, Accept(attempt.ballot, [item for item, _ in page], [value for _, value in page]))

    def _on_promised(self, peer: str, answer: Promised) -> None:
        attempt = self._attempt_of(answer)
        life = self._life_of_vote(peer, answer.items)
        known = zip(answer.items, answer.accepted, answer.chosen, strict=True)
        self._learn([(item, held[1]) for item, held, chosen in known if chosen and held and item[:1] != OWN])
        if attempt is None or attempt.phase != 1 or life is None or attempt.ballot not in self._waiting:
            return
        for item, accepted in zip(answer.items, answer.accepted, strict=True):
            wish = attempt.wishes.get(item)
            if wish is not None:
                wish.votes[peer] = life
                wish.best = max((best for best in (wish.best, accepted) if best), default=None)
        if peer == self.node and all(self.node in wish.votes for wish in attempt.wishes.values()):
            self._ask(attempt, self._others)
        self._advance(attempt)

    def _on_accepted(self, peer: str, answer: Accepted) -> None:
        attempt = self._attempt_of(answer)
        life = self._life_of_vote(peer, answer.items)
        if attempt is None or attempt.phase != 2 or life is None:
            return
        for item in answer.items:
            wish = attempt.wishes.get(item)
            if wish is not None:
                wish.votes[peer] = life
        self._advance(attempt)

    def _attempt_of(self, answer: Promised | Accepted) -> _Attempt | None:
        """The attempt that is answered; None for one that is over, or is now, being refused."""
        attempt = self._waiting.get(answer.ballot)
        if not answer.refused or attempt is None:
            return attempt
        if answer.higher <= answer.ballot:
            self._note("agreement.malformed")
            return None
        self._round = max(self._round, answer.higher[0])
        del self._waiting[attempt.ballot]
        pause = min(BACK_OFF_US_MIN << min(attempt.refusals, 8), RESEND_US_MAX)
        attempt.phase, attempt.refusals = 0, attempt.refusals + 1
        attempt.wake_us = self._now_us + pause + self._rng.randrange(pause)
        self._resting.append(attempt)
        self._note("agreement.refused")
        return None

    def _life_of_vote(self, peer: str, items: Iterable[bytes]) -> int | None:
        """Note the lives that stand beside a vote; the voter's own, or None where it has a later one."""
        life = 0
        for item in items:
            if item.startswith(LIFE):
                name, number = read_mark(item)
                life = number if name == peer else life
                self._hear_of_life(name, number)
        if life >= self._lives.get(peer, 0):
            return life
        self._note("agreement.old_life_vote_dropped")
        return None

    def _hear_of_life(self, node: str, life: int) -> None:
        if life <= self._lives.get(node, 0) or node not in self._others:
            return
        self._lives[node] = life
        for attempt in self._waiting.values():
            for wish in attempt.wishes.values():
                if wish.votes.get(node, life) < life:
                    del wish.votes[node]
                    self._note("agreement.old_life_vote_dropped")

    def _advance(self, attempt: _Attempt) -> None:
        if attempt.phase == 1:
            if all(len(wish.votes) >= self._majority for wish in attempt.wishes.values()):
                self._enter_phase_2(attempt)
        else:
            agreed = [item for item, wish in attempt.wishes.items() if len(wish.votes) >= self._majority]
            if agreed:
                pairs = [(item, attempt.wishes[item].value) for item in agreed]
                self._learn(pairs)
                self._tell_chosen(self._others, agreed)

    def _enter_phase_2(self, attempt: _Attempt) -> None:
        attempt.phase, attempt.tries = 2, 0
        for wish in attempt.wishes.values():
            wish.votes.clear()
            if wish.best is not None:
                wish.value = wish.best[1]
        self._rest_until_resend(attempt)
        self._ask(attempt, [*self._others, self.node])

    def _tell_chosen(self, peers: Iterable[str], items: Iterable[bytes]) -> None:
        pairs = [(item, self._value_of(item)) for item in items if self._is_chosen(item)]
        for page in pages(pairs, pair_bytes):
            for peer in peers:
                self._send(peer, Chosen([item for item, _ in page], [value for _, value in page]))

    # --- what is chosen ---------------------------------------------------------------------------------------------

    def _learn(self, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        """These stand. Told to the node once that is synced here."""
        learned = [item for item, value in pairs if self._mark_chosen(item, value)]
        if not learned:
            return
        self._persist(learned)
        self._when_durable(lambda: self._tell(learned))
        for attempt in [one for one in self._waiting.values() if one.wishes.keys() & set(learned)]:
            for item in learned:
                attempt.wishes.pop(item, None)
            if attempt.wishes:
                self._advance(attempt)
            else:
                del self._waiting[attempt.ballot]

    def _mark_chosen(self, item: bytes, value: bytes) -> bool:
        held = self._items.setdefault(item, _Item())
        if held.chosen:
            if self._value_of(item) != value:
                self._note("agreement.two_values_chosen")  # cannot be, unless a disk or a message lies
            return False
        # The ballot says nothing any more, but the forms on disk and wire take round 0 for "no value".
        held.promised = max(held.promised, (1, ""))
        held.accepted, held.chosen = (held.promised, value), True
        return True

    def _tell(self, items: Iterable[bytes]) -> None:
        for item in items:
            if item in self._told or not self._is_chosen(item):
                continue  # told, or forgotten, while the disk was at work
            value = self._value_of(item)
            self._told.add(item)
            self._outputs.append(Learned(item, value))
            for ticket in self._in_flight.pop(item, ()):
                self._settle(ticket, item, value)

    def _settle(self, ticket: int, item: bytes, value: bytes) -> None:
        missing, values = self._tickets[ticket]
        missing.discard(item)
        values[item] = value
        if not missing:
            del self._tickets[ticket]
            self._outputs.append(Decided(ticket, values))

    # --- coming in with a new disk ----------------------------------------------------------------------------------

    def _enter(self) -> None:
        """Ask, or ask again, those who owe us an answer."""
        if self._entry is None:
            self._ask_copies()
            self._judge_first_boot()
        elif self._entry.wake_us <= self._now_us:
            self._entry.tries += 1
            self._rest_entry(self._entry)
            self._drop_old_lives(self._entry)
            for peer in self._others:
                if peer not in self._entry.done:
                    self._ask_copy(peer, self._entry)

    def _drop_old_lives(self, entry: _Entry) -> None:
        """Who was done and has a new disk since forgot us: it is asked once more from the start."""
        for peer in [peer for peer, life in entry.done.items() if life < self._lives.get(peer, 0)]:
            del entry.done[peer]
            entry.after[peer] = mark(self.node, entry.life) if entry.life else b""

    def _ask_copies(self, life: int = 0) -> None:
        """Begin to ask for marks (life 0), or to register that life and copy."""
        start = mark(self.node, life) if life else b""
        entry = _Entry(self._rng.getrandbits(63), life, self._now_us, after=dict.fromkeys(self._others, start))
        self._entry = entry
        self._rest_entry(entry)
        for peer in self._others:
            self._ask_copy(peer, entry)

    def _rest_entry(self, entry: _Entry) -> None:
        pause = min(RESEND_US_MIN << min(entry.tries, 8), ENTRY_RESEND_US_MAX)
        entry.wake_us = self._now_us + pause + self._rng.randrange(pause // 4)

    def _ask_copy(self, peer: str, entry: _Entry) -> None:
        self._send(peer, CopyItems(entry.nonce, entry.after[peer]))

    def _on_copy_items(self, peer: str, asked: CopyItems) -> None:
        if not self.is_member:
            marks = [FIRST] if FIRST in self._items else []
            self._answer(peer, copied(asked.copy, [self._state_of(item) for item in marks], True, True))
            return
        after = asked.after
        if after.startswith(LIFE):
            name, life = read_mark(after)
            after = PAST_OWN if name == peer and self._register(peer, life) else b""
        page, is_last = self._page_after(after) if after else ([], False)
        # Marks stand on each page: the asker sees whether we have its life registered, and others' lives.
        marks = [item for item in self._items if item.startswith(LIFE)]
        self._answer(peer, copied(asked.copy, [*map(self._state_of, marks), *page], False, is_last))

    def _register(self, peer: str, life: int) -> bool:
        """Remember durably that `peer` lives anew; False where a later life is known."""
        mark = LIFE + peer.encode()
        held = self._items.get(mark)
        if held is not None and held.promised[0] >= life:
            return held.promised[0] == life
        self._items[mark] = _Item((life, peer))
        self._hear_of_life(peer, life)
        self._persist([mark])
        return True

    def _page_after(self, after: bytes) -> tuple[list[ItemState], bool]:
        following = heapq.nsmallest(PAGE_ITEMS_MAX + 1, (item for item in self._items if item > after))
        page = next(iter(pages((self._state_of(item) for item in following), state_bytes)), [])
        return page, len(page) == len(following)

    def _on_items_copied(self, peer: str, answer: ItemsCopied) -> None:
        entry = self._entry
        if entry is None or answer.copy != entry.nonce or self.is_member:
            return
        if answer.is_fresh:
            entry.told[peer] = "first" if FIRST in answer.items else "fresh"
            self._judge_first_boot()
            return
        entry.told[peer] = "member"
        columns = zip(answer.items, answer.promised, answer.accepted, answer.chosen, strict=True)
        states = [ItemState(*column) for column in columns]
        lives = {one.promised[1]: one.promised[0] for one in states if one.item.startswith(LIFE)}
        self._hear_marks([one for one in states if one.item.startswith(LIFE)])
        entry.life_seen = max(entry.life_seen, lives.get(self.node, 0))
        if FIRST in self._items:
            self._judge_first_boot()
        elif entry.life == 0:
            entry.done[peer] = lives.get(peer, 0)
            if self._has_enough(entry):
                self._ask_copies(entry.life_seen + 1)
        elif entry.life_seen > entry.life:
            self._ask_copies(entry.life_seen + 1)
        else:
            page = [one for one in states if not one.item.startswith(OWN)]
            self._take_page(peer, entry, lives, page, answer.is_last)

    def _hear_marks(self, marks: list[ItemState]) -> None:
        """Hold what others registered here, or would have, had we been there."""
        for one in marks:
            life, peer = one.promised
            self._hear_of_life(peer, life)
            if peer in self._others and self._register(peer, life):
                self._note("agreement.life_copied")

    def _has_enough(self, entry: _Entry) -> bool:
        current = [peer for peer, life in entry.done.items() if life >= self._lives.get(peer, 0)]
        return len(current) >= self._others_needed

    def _take_page(self, peer: str, entry: _Entry, lives: Mapping[str, int], page: list[ItemState], is_last: bool) -> None:
        if lives.get(self.node, 0) != entry.life:  # it has a new disk itself and forgot us: once more from the start
            entry.after[peer] = mark(self.node, entry.life)
            self._ask_copy(peer, entry)
            return
        if page and page[-1].item <= entry.after[peer]:
            return  # an earlier page once more
        changed = [one.item for one in page if self._merge_copied(one)]
        learned = [item for item in changed if self._is_chosen(item)]
        self._persist(changed)
        self._when_durable(lambda: self._tell(learned))
        if is_last:
            entry.done[peer] = lives.get(peer, 0)
            if self._has_enough(entry):
                self._finish_copy(entry)
        elif page:
            entry.after[peer] = page[-1].item
            self._ask_copy(peer, entry)

    def _finish_copy(self, entry: _Entry) -> None:
        mark = LIFE + self.node.encode()
        self._lives[self.node] = entry.life
        self._items[mark] = _Item((entry.life, self.node))
        self._become_member([mark])

    def _merge_copied(self, one: ItemState) -> bool:
        """Hold what the copied state holds as well; False where nothing is new."""
        held = self._items.setdefault(one.item, _Item())
        if held.chosen:
            return False
        before = (held.promised, held.accepted)
        if one.chosen and one.accepted:
            return self._mark_chosen(one.item, one.accepted[1])
        held.promised = max(held.promised, one.promised, one.accepted[0] if one.accepted else NO_BALLOT)
        held.accepted = max((best for best in (held.accepted, one.accepted) if best), default=None)
        self._round = max(self._round, held.promised[0])
        return before != (held.promised, held.accepted)

    def _judge_first_boot(self) -> None:
        """Step on to FIRST where nobody took part, and to membership where all know that."""
        assert self._entry is not None
        told = [self._entry.told.get(peer, "") for peer in self._others]
        if FIRST in self._items:
            if "member" in told or all(answer == "first" for answer in told):
                self._become_member([])
        elif all(answer in ("fresh", "first") for answer in told):
            self._items[FIRST] = _Item()
            self._persist([FIRST])
            # The others' FIRST must be told after ours stands, by asking anew.
            self._when_durable(self._ask_again)

    def _ask_again(self) -> None:
        if not self.is_member:
            self._ask_copies()
            self._judge_first_boot()

    def _become_member(self, marks: list[bytes]) -> None:
        if MEMBER in self._items:
            return
        self._items[MEMBER] = _Item()
        self._persist([*marks, MEMBER])
        self._when_durable(self._take_part)

    def _take_part(self) -> None:
        self.is_member = True
        self._entry = None
        self._note("agreement.member")
        self._begin_due()

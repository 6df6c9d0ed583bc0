"""What a toxic does to one direction of one connection, as values: bytes in, bytes out, time as an argument.

A *lane* is one direction of one connection. Its bytes go through a chain of *stages*, one for each toxic
of that direction, in the order in which the toxics were added:

    source socket -> push -> [latency] -> [bandwidth] -> take -> destination socket

The behaviour is that of Toxiproxy 2.12, read from its source and held to it by the tests in tests/lab/wan:

- latency: each chunk leaves `latency` +/- `jitter` ms after it arrived, never before an earlier one. It is
  a delay line, not stop-and-wait: throughput stays. The end of the stream follows the last byte at once.
- bandwidth: `rate` KB/s, a KB being 1,000 bytes; rate 0 holds everything back.
- timeout: drops everything. Above 0, the lane ends when nothing arrived for so long; at 0 it stays silent
  until the toxic is removed, which ends the lane.
- reset_peer: `timeout` ms after the first byte (or end) the lane ends, with a TCP reset.

Toxicity is drawn anew for every lane, and again when the toxic changes: who misses it gets a stage that
does nothing.

Invariants: bytes leave in the order in which they came; only timeout and reset_peer drop any. `held_bytes`
counts what is inside, so that the owner can stop reading.

Not here: sockets, timers and back-pressure (relay.py) and the HTTP interface (control.py).
"""

import random
from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

PIECE_BYTES = 32_768
MILLISECOND_S = 0.001

Chunk = tuple[float, bytes]  # when it arrived at the stage, by the owner's clock, and what


@dataclass(slots=True, eq=False)
class Toxic:
    """One toxic of a proxy, known by identity since it changes.

    All lanes of its direction share it, so that a change reaches them all.
    """

    name: str
    type: str
    stream: str
    toxicity: float
    attributes: dict[str, int] = field(default_factory=dict)


class Stage(Protocol):
    """One toxic at work on one lane."""

    is_over: bool  # nothing comes out any more
    held_bytes: int

    def push(self, arrived_s: float, piece: bytes) -> None:
        """Take bytes in."""

    def push_end(self, now_s: float) -> None:
        """Take in that the stream ends here."""

    def take(self, now_s: float) -> list[Chunk]:
        """Give out what is due."""

    def wake_at_s(self) -> float | None:
        """When something is due next."""

    def changed(self, now_s: float) -> None:
        """The attributes of the toxic were changed."""

    def flush(self) -> list[Chunk]:
        """The toxic is going away: give out everything."""


class _Queue:
    """What the stages have in common: the chunks inside, and whether the end follows them."""

    def __init__(self, toxic: Toxic) -> None:
        self.toxic = toxic
        self.is_over = False
        self.held_bytes = 0
        self._chunks: deque[Chunk] = deque()
        self._is_ending = False

    def push(self, arrived_s: float, piece: bytes) -> None:
        self._chunks.append((arrived_s, piece))
        self.held_bytes += len(piece)

    def push_end(self, now_s: float) -> None:
        self._is_ending = True
        self._end_if_empty()

    def changed(self, now_s: float) -> None:
        pass

    def flush(self) -> list[Chunk]:
        left = list(self._chunks)
        self._chunks.clear()
        self.held_bytes = 0
        self._end_if_empty()
        return left

    def wake_at_s(self) -> float | None:
        return None

    def _pop(self, leaves_s: float) -> Chunk:
        piece = self._chunks.popleft()[1]
        self.held_bytes -= len(piece)
        return leaves_s, piece

    def _end_if_empty(self) -> None:
        if self._is_ending and not self._chunks:
            self.is_over = True


class Untouched(_Queue):
    """The stage of a lane that the toxicity spared."""

    def take(self, now_s: float) -> list[Chunk]:
        return self.flush()


class Latency(_Queue):
    """A delay line. The delay of a chunk is drawn when it comes to the head, so a change reaches what
    waits.
    """

    def __init__(self, toxic: Toxic, rng: random.Random) -> None:
        super().__init__(toxic)
        self._rng = rng
        self._head_due_s: float | None = None

    def take(self, now_s: float) -> list[Chunk]:
        due: list[Chunk] = []
        while (leaves_s := self.wake_at_s()) is not None and leaves_s <= now_s:
            due.append(self._pop(leaves_s))
            self._head_due_s = None
        self._end_if_empty()
        return due

    def wake_at_s(self) -> float | None:
        if not self._chunks:
            return None
        if self._head_due_s is None:
            self._head_due_s = self._chunks[0][0] + self._delay_s()
        return self._head_due_s

    def changed(self, now_s: float) -> None:
        """The chunk that was being delayed leaves at once, those behind it get the new delay."""
        if self._chunks:
            self._head_due_s = now_s

    def flush(self) -> list[Chunk]:
        self._head_due_s = None
        return super().flush()

    def _delay_s(self) -> float:
        delay_ms = self.toxic.attributes["latency"]
        if (jitter_ms := self.toxic.attributes["jitter"]) > 0:
            delay_ms += self._rng.randrange(-jitter_ms, jitter_ms)
        return delay_ms * MILLISECOND_S


class Bandwidth(_Queue):
    """Lets pieces out when they would have been transmitted; one piece is at most what 100 ms carry."""

    def __init__(self, toxic: Toxic) -> None:
        super().__init__(toxic)
        self._sent_until_s = float("-inf")
        self._piece_due_s: float | None = None

    def take(self, now_s: float) -> list[Chunk]:
        due: list[Chunk] = []
        while (leaves_s := self.wake_at_s()) is not None and leaves_s <= now_s:
            due.append(self._pop(leaves_s))
            self._sent_until_s = leaves_s
            self._piece_due_s = None
        self._end_if_empty()
        return due

    def wake_at_s(self) -> float | None:
        rate = self.toxic.attributes["rate"]
        if not self._chunks or rate <= 0:
            return None
        if self._piece_due_s is None:
            self._cut_head(rate)
            arrived_s, piece = self._chunks[0]
            self._piece_due_s = max(self._sent_until_s, arrived_s) + len(piece) * MILLISECOND_S / rate
        return self._piece_due_s

    def changed(self, now_s: float) -> None:
        """The piece under way leaves at once, as in Toxiproxy; the rest goes at the new rate."""
        self._piece_due_s = now_s if self._chunks and self.toxic.attributes["rate"] > 0 else None
        self._sent_until_s = now_s

    def flush(self) -> list[Chunk]:
        self._piece_due_s = None
        return super().flush()

    def _cut_head(self, rate: int) -> None:
        """Cut the chunk at the head so that it is one piece: small enough to flow, large enough to need
        few timers.
        """
        piece_bytes = min(rate * 100, max(PIECE_BYTES, rate * 10))
        arrived_s, chunk = self._chunks[0]
        if len(chunk) > piece_bytes:
            self._chunks[0] = (arrived_s, chunk[piece_bytes:])
            self._chunks.appendleft((arrived_s, chunk[:piece_bytes]))


class Timeout(_Queue):
    """Drops everything that comes; ends after `timeout` ms of silence, or never at 0."""

    def __init__(self, toxic: Toxic, now_s: float) -> None:
        super().__init__(toxic)
        self._silent_since_s = now_s

    def push(self, arrived_s: float, piece: bytes) -> None:
        self._silent_since_s = arrived_s

    def take(self, now_s: float) -> list[Chunk]:
        ends_s = self.wake_at_s()
        self.is_over = self.is_over or (ends_s is not None and ends_s <= now_s)
        return []

    def wake_at_s(self) -> float | None:
        timeout_ms = self.toxic.attributes["timeout"]
        return None if timeout_ms <= 0 or self.is_over else self._silent_since_s + timeout_ms * MILLISECOND_S

    def changed(self, now_s: float) -> None:
        self._silent_since_s = now_s


class ResetPeer(_Queue):
    """Ends the lane `timeout` ms after the first thing that came, and drops it; the owner resets the
    sockets.
    """

    def __init__(self, toxic: Toxic) -> None:
        super().__init__(toxic)
        self._resets_s: float | None = None

    def push(self, arrived_s: float, piece: bytes) -> None:
        if self._resets_s is None:
            self._resets_s = arrived_s + max(0, self.toxic.attributes["timeout"]) * MILLISECOND_S

    def push_end(self, now_s: float) -> None:
        self.push(now_s, b"")

    def take(self, now_s: float) -> list[Chunk]:
        self.is_over = self.is_over or (self._resets_s is not None and self._resets_s <= now_s)
        return []

    def wake_at_s(self) -> float | None:
        return None if self.is_over else self._resets_s

    def flush(self) -> list[Chunk]:
        """A reset that has begun is not called off by removing the toxic."""
        self.is_over = self.is_over or self._resets_s is not None
        return []


# Every toxic that is known here, with its attributes; all are whole numbers and 0 where they are not given.
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "latency": ("latency", "jitter"),
    "bandwidth": ("rate",),
    "timeout": ("timeout",),
    "reset_peer": ("timeout",),
}


def make_stage(toxic: Toxic, rng: random.Random, now_s: float) -> Stage:
    """Make the stage of one lane for a toxic, or an untouched one where the toxicity spares this lane."""
    return _touched(toxic, rng, now_s) if rng.random() < toxic.toxicity else Untouched(toxic)


def _touched(toxic: Toxic, rng: random.Random, now_s: float) -> Stage:
    match toxic.type:
        case "latency":
            return Latency(toxic, rng)
        case "bandwidth":
            return Bandwidth(toxic)
        case "timeout":
            return Timeout(toxic, now_s)
        case "reset_peer":
            return ResetPeer(toxic)
    raise ValueError(f"no toxic of type {toxic.type!r}")


class Chain:
    """The stages of one lane, in the order of the toxics."""

    def __init__(self, toxics: list[Toxic], rng: random.Random, now_s: float) -> None:
        self._rng = rng
        self._toxics = list(toxics)
        self._stages = [make_stage(toxic, rng, now_s) for toxic in toxics]
        self._end_passed = 0  # how many stages have been told that the stream ends
        self._input_ended = False
        self.is_over = False

    @property
    def is_empty(self) -> bool:
        """Whether bytes pass as if there were nothing here."""
        return not self._stages

    @property
    def has_delay(self) -> bool:
        """Whether bytes wait here by design, so that much must fit in."""
        return any(toxic.type == "latency" for toxic in self._toxics)

    @property
    def held_bytes(self) -> int:
        """How much is inside."""
        return sum(stage.held_bytes for stage in self._stages)

    def push(self, piece: bytes, now_s: float) -> None:
        """Take bytes in."""
        self._stages[0].push(now_s, piece)

    def push_end(self) -> None:
        """Take in that the source has ended."""
        self._input_ended = True

    def take(self, now_s: float) -> list[bytes]:
        """Move what is due from stage to stage and return what leaves the last; sets `is_over` behind the
        last byte.
        """
        if self.is_over:
            return []
        chunks: list[Chunk] = []
        upstream_over = self._input_ended
        for index, stage in enumerate(self._stages):
            for arrived_s, piece in chunks:
                stage.push(arrived_s, piece)
            if upstream_over and self._end_passed == index:
                self._end_passed = index + 1
                stage.push_end(now_s)
            chunks = stage.take(now_s)
            if stage.is_over:
                self._end_passed = max(self._end_passed, index + 1)
            upstream_over = stage.is_over
        self.is_over = upstream_over
        return [piece for _, piece in chunks]

    def wake_at_s(self) -> float | None:
        """When `take` has something to do next."""
        times = [time_s for stage in self._stages if (time_s := stage.wake_at_s()) is not None]
        return min(times, default=None)

    def add(self, toxic: Toxic, now_s: float) -> None:
        """A toxic was added to the proxy: it goes behind the others."""
        self._toxics.append(toxic)
        self._stages.append(make_stage(toxic, self._rng, now_s))

    def change(self, toxic: Toxic, now_s: float) -> None:
        """The attributes or the toxicity of a toxic were changed: draw again who is touched."""
        index = self._toxics.index(toxic)
        old = self._stages[index]
        was_touched, is_touched = not isinstance(old, Untouched), self._rng.random() < toxic.toxicity
        if old.is_over or was_touched == is_touched:
            old.changed(now_s)
            return
        self._replace(index, now_s)

    def _replace(self, index: int, now_s: float) -> None:
        """Put a fresh stage in the place of one, with what waits in it."""
        old, toxic = self._stages[index], self._toxics[index]
        fresh = _touched(toxic, self._rng, now_s) if isinstance(old, Untouched) else Untouched(toxic)
        for arrived_s, piece in old.flush():
            fresh.push(arrived_s, piece)
        if self._end_passed > index:
            fresh.push_end(now_s)
        self._stages[index] = fresh

    def remove(self, toxic: Toxic, now_s: float) -> list[bytes]:
        """A toxic was removed: what waited in it goes on at once; removing a timeout ends the lane (as in
        Toxiproxy).
        """
        index = self._toxics.index(toxic)
        stage = self._stages[index]
        chunks = stage.flush()
        ends = stage.is_over or toxic.type == "timeout"
        del self._toxics[index], self._stages[index]
        self._end_passed = min(self._end_passed, index)
        if index == len(self._stages):
            self.is_over = ends
            return [piece for _, piece in chunks]
        for arrived_s, piece in chunks:
            self._stages[index].push(arrived_s, piece)
        if ends:
            self._stages[index].push_end(now_s)
            self._end_passed = index + 1
        return self.take(now_s)

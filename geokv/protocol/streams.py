"""Streams and frontiers: what this replica has of every origin's records, and what it knows that others have.

A stream is the records of one origin for one partition of one namespace, numbered 1, 2, 3 … without a gap:

    number      1  2  3  4  5  6  7  8  9
    here        s  s  s  s  s  r  r     r        s: synced     r: taken in, on its way to the disk
    frontier = 5     received = 7     beyond = {9}

Numbers enter at `take` (before the disk) and move the frontier at `synced`. A closed stream has a last number; its
void numbers exist nowhere and count as present.

Invariants: frontier <= received; a number is taken at most once, so replay, duplicates and repair cannot move anything
twice; `frontier` covers only what is synced here.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from typing import Final

BEYOND_MAX: Final = 65_536  # numbers taken ahead of a gap; further ones are refused and come again from a log
HOLE_MAX: Final = 65_536  # the index of places is as long as its holes
AHEAD_MAX: Final = 1 << 22  # how far ahead: the index of places is as long as that


class Stream:
    """One stream as one replica sees it."""

    __slots__ = (
        "beyond",
        "dcs",
        "first",
        "frontier",
        "is_mixed",
        "is_refused",
        "key",
        "last",
        "namespace",
        "origin",
        "partition",
        "peers",
        "places",
        "received",
        "shipped",
        "sizes",
        "synced_beyond",
        "voids",
    )

    def __init__(self, namespace: int, partition: int, origin: bytes) -> None:
        self.key = (namespace, partition, origin)
        self.namespace = namespace
        self.partition = partition
        self.origin = origin
        self.received = 0
        self.frontier = 0
        self.beyond: set[int] = set()
        self.synced_beyond: set[int] = set()
        self.last: int | None = None
        self.voids: frozenset[int] = frozenset()
        self.is_refused = False
        self.is_mixed = False  # some number came ahead of others: it may stand in an older segment than they do
        self.first = 1
        self.places: array[int] = array("Q")
        self.sizes: array[int] = array("I")
        self.peers: dict[str, int] = {}
        self.dcs: dict[str, int] = {}
        self.shipped = 0

    # --- taking in --------------------------------------------------------------------------------------------------

    def take(self, number: int) -> bool:
        """Whether `number` is new here and may be taken in now."""
        received = self.received
        if number == received + 1 and self.last is None:
            self.received = number
            if self.beyond:
                self._absorb()
            return True
        if number <= received or number in self.beyond:
            return False
        if self.last is not None and (number > self.last or number in self.voids):
            return False
        if len(self.beyond) >= BEYOND_MAX or number - received > AHEAD_MAX:
            return False
        self.beyond.add(number)
        self._absorb()
        return True

    def _absorb(self) -> None:
        following = self.received + 1
        while following in self.beyond or following in self.voids:
            self.beyond.discard(following)
            following += 1
        self.received = following - 1

    def has(self, number: int) -> bool:
        """Whether `number` is synced here (a void number counts)."""
        return number <= self.frontier or number in self.synced_beyond

    def synced(self, number: int, segment: int, offset: int, size: int) -> None:
        """`number` is durable at that place of the log."""
        places = self.places
        if number == self.first + len(places):
            places.append(segment << 32 | offset)
            self.sizes.append(size)
        else:
            self._place(number, segment << 32 | offset, size)
        if number == self.frontier + 1 and not self.synced_beyond and not self.voids:
            self.frontier = number
            return
        if number > self.frontier:
            self.synced_beyond.add(number)
            self._advance()

    def _advance(self) -> None:
        following = self.frontier + 1
        while following in self.synced_beyond or following in self.voids:
            self.synced_beyond.discard(following)
            following += 1
        self.frontier = following - 1

    def cover(self, number: int) -> None:
        """Everything up to `number` is here in cells, in no log of this node."""
        if number <= self.frontier:
            return
        if number - self.first - len(self.places) > HOLE_MAX:
            del self.places[:], self.sizes[:]  # who wants what stands below the hole gets cells, too
        self.is_mixed = bool(self.places)  # there is a hole in them now
        self.synced_beyond = {beyond for beyond in self.synced_beyond if beyond > number}
        self.beyond = {beyond for beyond in self.beyond if beyond > number}
        self.frontier = number
        self._advance()
        self.received = max(self.received, self.frontier)
        self._absorb()

    def _place(self, number: int, place: int, size: int) -> None:
        """Note a place out of order: gaps are zero places until filled."""
        self.is_mixed = True
        if number < self.first:
            gap = self.first - number - 1
            self.places = array("Q", [place, *([0] * gap)]) + self.places
            self.sizes = array("I", [size, *([0] * gap)]) + self.sizes
            self.first = number
            return
        if not self.places:
            self.first = number
        missing = number - self.first - len(self.places)
        if missing > HOLE_MAX and number - 1 <= self.frontier + HOLE_MAX:
            # nearly all of it is covered by cells (a flush stands between): do not stretch the index over it
            del self.places[:], self.sizes[:]
            self.first, missing = number, 0
        if missing >= 0:
            self.places.extend([0] * missing)
            self.sizes.extend([0] * missing)
            self.places.append(place)
            self.sizes.append(size)
        else:
            self.places[number - self.first] = place
            self.sizes[number - self.first] = size

    # --- the log ----------------------------------------------------------------------------------------------------

    def place(self, number: int) -> tuple[int, int, int] | None:
        """(segment, offset, length) of the record in this node's log; None where the log does not hold it."""
        index = number - self.first
        if not 0 <= index < len(self.places) or not self.sizes[index]:
            return None
        place = self.places[index]
        return place >> 32, place & 0xFFFFFFFF, self.sizes[index]

    def log_from(self) -> int:
        """The first number that the log surely still holds from there on; below it numbers are covered, but in no log here."""
        if not self.places:
            return self.frontier + 1
        if not self.is_mixed:
            return min(self.first, self.frontier + 1)
        at = self.frontier - self.first
        if at >= len(self.sizes):
            return self.frontier + 1
        while at >= 0 and self.sizes[at]:
            at -= 1
        return self.first + at + 1

    def drop_places(self, below_segment: int) -> None:
        """Forget the places in log segments below that one: they are about to be removed."""
        keep = 0
        limit = below_segment << 32
        while keep < len(self.places) and self.places[keep] < limit:
            keep += 1
        if keep:
            del self.places[:keep]
            del self.sizes[:keep]
            self.first += keep
        if self.is_mixed:
            for at, place in enumerate(self.places):
                if place < limit:
                    self.sizes[at] = 0

    # --- closing ----------------------------------------------------------------------------------------------------

    def close(self, last: int, voids: Iterable[int]) -> None:
        """The agreed end: nothing above `last`, and `voids` exist nowhere."""
        self.last = last
        self.voids = frozenset(voids)
        self.is_refused = False
        self.beyond = {number for number in self.beyond if number <= last}
        self._absorb()
        self._advance()

    @property
    def is_complete(self) -> bool:
        """Closed, and covered to its last number."""
        return self.last is not None and self.frontier >= self.last

    def missing(self, upto: int, limit: int) -> list[int]:
        """The first `limit` numbers up to `upto` that are not synced here."""
        found: list[int] = []
        for number in range(self.frontier + 1, upto + 1):
            if number not in self.synced_beyond and number not in self.voids:
                found.append(number)
                if len(found) >= limit:
                    break
        return found


class StreamTable:
    """All streams of one namespace on this node, by partition and origin."""

    __slots__ = ("namespace", "partitions")

    def __init__(self, namespace: int, partitions: int) -> None:
        self.namespace = namespace
        self.partitions: list[dict[bytes, Stream]] = [{} for _ in range(partitions)]

    def get(self, partition: int, origin: bytes) -> Stream | None:
        return self.partitions[partition].get(origin)

    def make(self, partition: int, origin: bytes) -> Stream:
        stream = self.partitions[partition].get(origin)
        if stream is None:
            stream = self.partitions[partition][origin] = Stream(self.namespace, partition, origin)
        return stream

    def drop(self, partition: int, origin: bytes) -> None:
        self.partitions[partition].pop(origin, None)

    def __iter__(self) -> Iterator[Stream]:
        for streams in self.partitions:
            yield from streams.values()

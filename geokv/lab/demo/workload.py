"""Clients in every datacenter: they load the data set, then write and read it and generated records at a steady rate.

    55 %  records of their own, each key written once: a lost one cannot hide behind a later write
    15 %  time zones of the data set, updated from every datacenter
     5 %  a few keys that all datacenters write all the time: conflicts
    25 %  reads of what was written, at QUORUM or ONE

Operations begin when it is their time, whether or not earlier ones were answered, as with real users: so what
clients see while a datacenter is lost is what they would see.

Invariants: at most `IN_FLIGHT_MAX` operations of one datacenter's clients are under way; what would be more is
counted as shed. Every value written is unlike every other.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from geokv.client import AsyncClient, AsyncNamespace, ClientEvent
from geokv.errors import Ambiguous, DeadlineExceeded, GeokvError, Partial
from geokv.lab.datasets import Zone
from geokv.lab.demo.journal import Journal, Key, Write

IN_FLIGHT_MAX: Final = 512
TICK_S: Final = 0.01
TIMEOUT_S: Final = 5.0
FAILBACK_S: Final = 2.0
HOT_KEYS: Final = 8
RECENT_MAX: Final = 256
RECORDS: Final = "records"
ZONES: Final = "zones"
_WORDS: Final = (
    *("order", "basket", "parcel", "harbour", "invoice", "window", "garden", "letter", "station", "bridge", "market"),
    *("ticket", "winter", "summer", "river", "mountain", "engine", "signal", "carpet", "bottle", "copper", "silver"),
)


@dataclass(frozen=True, slots=True)
class Sample:
    """One operation that was answered well: when, how long, of which kind, by which datacenter."""

    phase: str
    is_write: bool
    milliseconds: float
    served_by: str


@dataclass(slots=True)
class Seen:
    """A client event and when it came (monotonic)."""

    at_s: float
    event: ClientEvent


@dataclass(slots=True)
class Served:
    """An acknowledged write: when, and by which datacenter."""

    at_s: float
    dc: str


@dataclass(slots=True)
class _Recent:
    """The keys written last, to be read again."""

    keys: list[Key] = field(default_factory=list)

    def add(self, key: Key, rng: random.Random) -> None:
        if len(self.keys) < RECENT_MAX:
            self.keys.append(key)
        else:
            self.keys[rng.randrange(RECENT_MAX)] = key


class DcClients:
    """The clients near one datacenter."""

    def __init__(
        self,
        dc: str,
        addresses: Sequence[str],
        failover: Sequence[str],
        rate: int,
        zones: Sequence[Zone],
        journal: Journal,
        rng: random.Random,
    ) -> None:
        self.dc = dc
        self.events: list[Seen] = []
        self.served: list[Served] = []
        self.samples: list[Sample] = []
        self.shed = 0
        self.failed_reads = 0
        self.is_writing = True
        self.phase = "before"
        self.client = AsyncClient(
            addresses, dc=dc, failover=failover, timeout=TIMEOUT_S, failback_after=FAILBACK_S, on_event=self._on_event
        )
        self._rate = rate
        self._zones = zones
        self._journal = journal
        self._rng = rng
        self._recent = _Recent()
        self._serial = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._spaces: dict[str, AsyncNamespace] = {name: self.client.namespace(name) for name in (RECORDS, ZONES)}

    # --- whole life

    async def load(self, mine: Sequence[Zone]) -> None:
        """Write this datacenter's share of the data set."""
        await asyncio.gather(*(self._write((ZONES, zone.name.encode()), self._zone_value(zone)) for zone in mine))

    async def run(self) -> None:
        """Begin operations at the rate, until cancelled."""
        began_s = time.monotonic()
        begun = 0
        while True:
            due = int((time.monotonic() - began_s) * self._rate)
            for _ in range(due - begun):
                self._begin_one()
            begun = due
            await asyncio.sleep(TICK_S)

    async def finish(self) -> None:
        """Wait for what is under way."""
        while self._tasks:
            await asyncio.gather(*self._tasks)

    # --- one operation

    def _begin_one(self) -> None:
        if len(self._tasks) >= IN_FLIGHT_MAX:
            self.shed += 1
            return
        drawn = self._rng.random()
        if drawn < 0.25:
            work = self._read()
        elif not self.is_writing:
            return
        elif drawn < 0.80:
            work = self._write((RECORDS, f"{self.dc}/{self._next():08}".encode()), self._record_value())
        elif drawn < 0.95:
            zone = self._rng.choice(self._zones)
            work = self._write((ZONES, zone.name.encode()), self._zone_value(zone))
        else:
            work = self._write((RECORDS, f"hot/{self._rng.randrange(HOT_KEYS)}".encode()), self._record_value())
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _write(self, key: Key, value: bytes) -> None:
        phase, began_s = self.phase, time.monotonic()
        try:
            done = await self._spaces[key[0]].put(key[1], value)
        except (Ambiguous, Partial):
            self._journal.note_unknown(key, value)
            return
        except DeadlineExceeded as error:
            if error.may_have_happened:
                self._journal.note_unknown(key, value)
            else:
                self._journal.note_refused()
            return
        except GeokvError:
            self._journal.note_refused()
            return
        ended_s = time.monotonic()
        self._journal.note_acknowledged(Write(key, done.version, value, done.dc, began_s, ended_s))
        self._recent.add(key, self._rng)
        self.served.append(Served(ended_s, done.dc))
        self.samples.append(Sample(phase, True, (ended_s - began_s) * 1000, done.dc))

    async def _read(self) -> None:
        if not self._recent.keys:
            return
        namespace, key = self._rng.choice(self._recent.keys)
        level = "QUORUM" if self._rng.random() < 0.5 else "ONE"
        phase, began_s = self.phase, time.monotonic()
        try:
            got = await self._spaces[namespace].get(key, consistency=level)
        except GeokvError:
            self.failed_reads += 1
            return
        self.samples.append(Sample(phase, False, (time.monotonic() - began_s) * 1000, got.dc))

    def _on_event(self, event: ClientEvent) -> None:
        self.events.append(Seen(time.monotonic(), event))

    # --- what is written

    def _next(self) -> int:
        self._serial += 1
        return self._serial

    def _record_value(self) -> bytes:
        words = " ".join(self._rng.choices(_WORDS, k=24))
        return json.dumps({"by": self.dc, "serial": self._next(), "note": words}, separators=(",", ":")).encode()

    def _zone_value(self, zone: Zone) -> bytes:
        return zone.as_json(checked_by=self.dc, serial=self._next())


def shares(zones: Sequence[Zone], dcs: Sequence[str]) -> dict[str, list[Zone]]:
    """Which datacenter loads which zones: whole regions (Europe, America …), turn by turn by their size."""
    regions: dict[str, list[Zone]] = {}
    for zone in zones:
        regions.setdefault(zone.region, []).append(zone)
    found: dict[str, list[Zone]] = {dc: [] for dc in dcs}
    for region in sorted(regions, key=lambda name: (-len(regions[name]), name)):
        smallest = min(dcs, key=lambda dc: len(found[dc]))
        found[smallest].extend(regions[region])
    return found

"""The network: packets that are late, lost, doubled or out of order, and links that are cut, in one direction or both.

An endpoint is a node or a client; each stands in a datacenter. A packet takes the delay of its pair of datacenters plus jitter.
Packets of one pair arrive in the order in which they left, unless `reorder` strikes: what it strikes comes late, alone.
A packet that meets a cut when it leaves or when it would arrive is gone.

Invariants: what was sent is what arrives; with `is_checking_mutation` a message that somebody changed after sending it raises.
Not here: connections between nodes and what breaks them (`peers`); bandwidth, which is not simulated.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from geokv.sim.schedule import Schedule, Timer

Pair = tuple[str, str]


@dataclass(slots=True)
class NetworkOptions:
    """Delays are one way. Probabilities are per packet and apply while `is_faulty`; the calm phase turns them off."""

    near_us: tuple[int, int] = (80, 400)  # inside a datacenter
    far_us: tuple[int, int] = (12_000, 45_000)  # between two; each pair draws its base from this
    far_jitter_us: int = 3_000
    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    reorder_us_max: int = 1_000_000


class Network:
    """Carries packets between endpoints; knows which pairs are cut."""

    def __init__(self, schedule: Schedule, rng: random.Random, options: NetworkOptions) -> None:
        self._schedule = schedule
        self._rng = rng
        self.options = options
        self.is_faulty = False
        self.is_checking_mutation = False
        self.counts = {"sent": 0, "lost": 0, "doubled": 0, "reordered": 0, "cut": 0}
        self._dc_of: dict[str, str] = {}
        self._base_us: dict[Pair, int] = {}
        self._cuts: dict[Pair, int] = {}
        self._arrival_us: dict[Pair, int] = {}
        self.changed: Callable[[], None] = lambda: None
        self.hold: Callable[[str, str, object], bool] | None = None  # what it says True to stays in `held`
        self.held: list[tuple[str, str, object]] = []

    def attach(self, endpoint: str, dc: str) -> None:
        self._dc_of[endpoint] = dc

    def dc_of(self, endpoint: str) -> str:
        return self._dc_of[endpoint]

    # --- links ------------------------------------------------------------------------------------------------------

    def base_us(self, source: str, target: str) -> int:
        """The delay between two endpoints without jitter; the same in both directions."""
        first, second = sorted((self._dc_of[source], self._dc_of[target]))
        if first == second:
            return self.options.near_us[0]
        known = self._base_us.get((first, second))
        if known is None:
            known = self._base_us[first, second] = self._rng.randint(*self.options.far_us)
        return known

    def delay_us(self, source: str, target: str) -> int:
        if self._dc_of[source] == self._dc_of[target]:
            low, high = self.options.near_us
            return low + int(self._rng.random() * (high - low))
        return self.base_us(source, target) + int(self._rng.random() * self.options.far_jitter_us)

    def is_cut(self, source: str, target: str) -> bool:
        if not self._cuts:
            return False
        dcs = (self._dc_of[source], self._dc_of[target])
        return (source, target) in self._cuts or dcs in self._cuts

    def cut(self, source: str, target: str) -> None:
        """Nothing gets from `source` to `target` any more; both are endpoints, or both are datacenters. Cuts nest."""
        self._cuts[source, target] = self._cuts.get((source, target), 0) + 1
        self.changed()

    def heal(self, source: str, target: str) -> None:
        """Take one cut back."""
        count = self._cuts.get((source, target), 0)
        if count > 1:
            self._cuts[source, target] = count - 1
        else:
            self._cuts.pop((source, target), None)
        self.changed()

    def cut_between(self, some: Iterable[str], others: Iterable[str]) -> None:
        """Cut both directions between each of `some` and each of `others` (all endpoints, or all datacenters)."""
        others = list(others)
        for one in some:
            for other in others:
                if one != other:
                    self.cut(one, other)
                    self.cut(other, one)

    def heal_between(self, some: Iterable[str], others: Iterable[str]) -> None:
        others = list(others)
        for one in some:
            for other in others:
                if one != other:
                    self.heal(one, other)
                    self.heal(other, one)

    def heal_all(self) -> None:
        self._cuts.clear()
        self.changed()

    # --- packets ----------------------------------------------------------------------------------------------------

    def carry(self, source: str, target: str, payload: object, arrive: Callable[..., object], *arguments: Any) -> Timer | None:
        """Have `arrive(*arguments, payload)` called when the packet arrives; None where it is lost at once."""
        self.counts["sent"] += 1
        if self.is_cut(source, target):
            self.counts["cut"] += 1
            return None
        if self.hold is not None and self.hold(source, target, payload):
            self.held.append((source, target, payload))
            return None
        if self.is_faulty and self._is_lost_or_doubled(source, target, payload, arrive, arguments):
            return None
        return self._launch(source, target, payload, arrive, arguments)

    def _is_lost_or_doubled(
        self, source: str, target: str, payload: object, arrive: Callable[..., object], arguments: tuple[Any, ...]
    ) -> bool:
        options = self.options
        chance = self._rng.random()
        if chance < options.loss:
            self.counts["lost"] += 1
            return True
        if chance < options.loss + options.duplicate:
            self.counts["doubled"] += 1
            self._launch(source, target, payload, arrive, arguments)
        return False

    def _launch(
        self, source: str, target: str, payload: object, arrive: Callable[..., object], arguments: tuple[Any, ...]
    ) -> Timer:
        when_us = self._schedule.now_us + self.delay_us(source, target)
        pair = (source, target)
        if self.is_faulty and self._rng.random() < self.options.reorder:
            self.counts["reordered"] += 1
            when_us += self._rng.randrange(self.options.reorder_us_max)
        else:
            when_us = max(when_us, self._arrival_us.get(pair, 0))
            self._arrival_us[pair] = when_us
        seal = repr(payload) if self.is_checking_mutation else ""
        return self._schedule.at(when_us, self._arrive, pair, seal, payload, arrive, arguments)

    def _arrive(
        self, pair: Pair, seal: str, payload: object, arrive: Callable[..., object], arguments: tuple[Any, ...]
    ) -> None:
        if self.is_cut(*pair):
            self.counts["cut"] += 1
            return
        if seal and repr(payload) != seal:
            raise AssertionError(f"a message from {pair[0]} to {pair[1]} was changed after it was sent: {seal[:200]}")
        arrive(*arguments, payload)

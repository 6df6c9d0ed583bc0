"""Samples of the lag, taken while everything runs: how far behind each datacenter says it is, for each that it hears from.

A node states, on its own clock, how long ago the other side's newest word was sent (`incoming`). What a pair of
datacenters shows is its worst node. While a datacenter cannot be asked, what it would say is not known, and left
out.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from geokv.lab.demo.replicas import Replicas

EVERY_S: Final = 0.5
ANSWER_S_MAX: Final = 0.45
SAMPLES_MAX: Final = 2_000

Pair = tuple[str, str]
"""(datacenter that originates, datacenter that is behind)"""


@dataclass(frozen=True, slots=True)
class LagSample:
    """One look at all nodes. `unshipped`: records that an origin has and the other is not known to have."""

    at_s: float
    behind_ms: Mapping[Pair, int | None]
    unshipped: Mapping[Pair, int | None]
    dead: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Per node that answered: the nodes that it holds for dead."""


class LagSampler:
    """Samples on a thread of its own between `start` and `close`."""

    def __init__(self, replicas: Replicas, dc_of: Mapping[str, str]) -> None:
        self.samples: list[LagSample] = []
        self._replicas = replicas
        self._dc_of = dc_of
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lag-sampler", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stop, and wait for the last sample."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(EVERY_S):
            at_s = time.monotonic()
            said = self._replicas.statuses(ANSWER_S_MAX)
            if len(self.samples) < SAMPLES_MAX:
                self.samples.append(take_sample(at_s, said, self._dc_of))


def take_sample(at_s: float, said: Mapping[str, dict[str, Any] | None], dc_of: Mapping[str, str]) -> LagSample:
    """Put together what the nodes said."""
    dcs = sorted(set(dc_of.values()))
    pairs = [(origin, target) for origin in dcs for target in dcs if origin != target]
    return LagSample(
        at_s,
        {pair: _behind(pair, said, dc_of) for pair in pairs},
        {pair: _unshipped(pair, said, dc_of) for pair in pairs},
        {
            node: frozenset(peer["node"] for peer in one["peers"] if not peer["live"])
            for node, one in said.items()
            if one is not None
        },
    )


def _behind(pair: Pair, said: Mapping[str, dict[str, Any] | None], dc_of: Mapping[str, str]) -> int | None:
    values = [
        feed["staleness_ms"]
        for node, one in said.items()
        if one is not None and dc_of[node] == pair[1]
        for feed in one["incoming"].values()
        if feed["dc"] == pair[0] and feed["partitions"]
    ]
    known = [value for value in values if value is not None]
    return max(known) if known else None


def _unshipped(pair: Pair, said: Mapping[str, dict[str, Any] | None], dc_of: Mapping[str, str]) -> int | None:
    nodes = [one for node, one in said.items() if dc_of[node] == pair[0]]
    if any(one is None for one in nodes):
        return None
    values = [one["lag"].get(pair[1], {}).get("records") for one in nodes if one is not None]
    return None if any(value is None for value in values) else sum(values)

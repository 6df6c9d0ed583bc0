"""How a client finds the cluster: it asks the addresses it was given for the ring, until one tells.

The first address is asked alone; the next one too when there is no answer soon, or at once when nobody listens there.
After the last one it begins anew, with back-off, for as long as somebody waits. It is used again when every known node
is down: the cluster may have moved. Where nobody told and a node said that it never will (there is no such datacenter),
those who wait are refused: asking again would only use up their time.

Invariants: at most one question per address is under way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from geokv.errors import InvalidRequest
from geokv.protocol.client.batching import Call
from geokv.protocol.client.desk import Desk
from geokv.protocol.client.messages import Failure, RingAsk

_FOR_EVER: Final = frozenset({Failure.REJECTED, Failure.UNWRITABLE})


class Bootstrap:
    """`is_wanted` says whether anybody still waits for a ring; `refuse` tells them that they will get none."""

    def __init__(self, desk: Desk, is_wanted: Callable[[], bool], refuse: Callable[[InvalidRequest], None]) -> None:
        self._desk = desk
        self._is_wanted = is_wanted
        self._refuse = refuse
        self._calls: dict[str, Call] = {}
        self._next = 0
        self._rounds = 0
        self._epoch = 0  # a timer of an earlier one is not meant for this one
        self.is_active = False
        self.reasons: dict[str, str] = {}  # address -> why it did not tell
        self._refusals: set[str] = set()  # addresses whose reason stands for ever
        self._asked = 0  # questions since it began

    def begin(self) -> None:
        if not self.is_active:
            self.is_active = True
            self._rounds = self._asked = 0
            self._begin_round()

    def end(self) -> None:
        self.is_active = False
        self._epoch += 1
        for call in list(self._calls.values()):
            self._desk.cancel(call)
        self._calls.clear()

    def failed(self, call: Call, failure: Failure, message: str) -> None:
        """An address did not tell."""
        del self._calls[call.address]
        self.reasons[call.address] = message
        if failure in _FOR_EVER:
            self._refusals.add(call.address)
        self._desk.note("client.bootstrap_failed")
        if not self.is_active:
            return
        if self._next < len(self._desk.settings.addresses):
            self._ask_next()
        elif not self._calls and self._refusals:
            reasons = "; ".join(f"{address}: {self.reasons[address]}" for address in sorted(self._refusals))
            self.end()
            self._refuse(InvalidRequest(f"the cluster refuses this client: {reasons}"))
        elif not self._calls:
            settings = self._desk.settings
            delay = self._desk.backoff_us(settings.probe_again_us, settings.probe_again_us_max, self._rounds)
            self._rounds += 1
            self._desk.at(self._desk.now_us + delay, self._again, self._epoch)

    def told(self, call: Call) -> None:
        del self._calls[call.address]
        self.reasons.clear()

    def describe(self) -> str:
        """Why there is no ring, for an error message, and how often it was asked for."""
        asked = f"asked {self._asked} times" if self._asked != 1 else "asked once"
        if not self.reasons:
            return f"no answer from {', '.join(self._desk.settings.addresses)}; {asked}"
        return "; ".join([*(f"{address}: {reason}" for address, reason in self.reasons.items()), asked])

    def _again(self, epoch: int) -> None:
        if epoch != self._epoch or not self.is_active:
            return
        if self._is_wanted():
            self._begin_round()
        else:
            self.end()

    def _begin_round(self) -> None:
        self._epoch += 1
        self._next = 0
        self._refusals.clear()
        self._ask_next()

    def _ask_next(self) -> None:
        desk = self._desk
        addresses = desk.settings.addresses
        address = addresses[self._next]
        self._next += 1
        if address not in self._calls:
            self._asked += 1
            deadline_us = desk.now_us + desk.settings.bootstrap_timeout_us
            self._calls[address] = desk.start(None, address, None, [], RingAsk(desk.settings.dc), deadline_us)
        if self._next < len(addresses):
            desk.at(desk.now_us + desk.settings.bootstrap_stagger_us, self._stagger, (self._epoch, self._next))

    def _stagger(self, due: tuple[int, int]) -> None:
        if self.is_active and due == (self._epoch, self._next):
            self._ask_next()

"""How the rights of one bounded counter stand, as one node may trust them: what it reads in the cell, and what it was told.

    here     what this run may spend: its own balance, and of what it was given that which is certain
    left     what earlier runs of this node left behind: to be taken over, if this run is their heir
    nodes    what others hold, and what they have given to this node that is not certain yet: whom to ask

A gift is certain once its record cannot get lost: its giver has said that a quorum of its datacenter has synced it (`Words`),
or the giver's stream is closed and covered here. Before that the giver's crash could make the record void, and the giver's heir
would hold again what the receiver has spent. And a giver's books must balance here, so that nothing is spent in a datacenter
that has not seen where it came from.

Invariants: what is said here never exceeds what the origin may spend; what was certain once stays so.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from geokv.core.cells.counter_bounded import NO_ACCOUNT, Account, accounts, origins_in, rights
from geokv.core.cells.state import CellState
from geokv.core.cells.view import View
from geokv.core.origin import unpack_origin

KEYS_REMEMBERED_MAX: Final = 16_384
Place = tuple[int, bytes]
"""(namespace id, key)."""


class Words:
    """What givers have said is certain: totals per (giver, receiver). What is forgotten is asked for again."""

    def __init__(self) -> None:
        self._told: OrderedDict[Place, dict[tuple[bytes, bytes], int]] = OrderedDict()

    def note(self, place: Place, giver: bytes, receiver: bytes, total: int) -> bool:
        """Whether that is more than was known."""
        told = self._told.setdefault(place, {})
        self._told.move_to_end(place)
        if len(self._told) > KEYS_REMEMBERED_MAX:
            self._told.popitem(last=False)
        if total <= told.get((giver, receiver), 0):
            return False
        told[giver, receiver] = total
        return True

    def of(self, place: Place) -> Mapping[tuple[bytes, bytes], int]:
        return self._told.get(place, {})


class Sheet(NamedTuple):
    """See the module. `total`: the value; `arriving`: something certain is told, and its record is still on its way here."""

    here: int
    received: int  # of `here`, what others gave
    left: dict[bytes, int]
    nodes: dict[str, int]
    total: int
    arriving: bool

    @property
    def elsewhere(self) -> int:
        return max(self.total - max(self.here, 0), 0)


class _Reckoning:
    """The books of one key, read by one run of one node."""

    def __init__(self, state: CellState, told: Mapping[tuple[bytes, bytes], int], is_over: Callable[[bytes], bool]) -> None:
        self.books = accounts(View(state))
        self._told = told
        self._is_over = is_over
        self._balances: dict[bytes, bool] = {}

    def is_balanced(self, giver: bytes) -> bool:
        known = self._balances.get(giver)
        if known is None:
            known = self._balances[giver] = rights(self.books, giver) >= 0
        return known

    def certain(self, giver: bytes, account: Account, receiver: bytes) -> int:
        """What of the giver's gifts to `receiver` may be spent."""
        given = account.given.get(receiver, 0)
        if not given or not self.is_balanced(giver):
            return 0
        return given if self._is_over(giver) else min(given, self._told.get((giver, receiver), 0))

    def received(self, origin: bytes) -> int:
        """What `origin` was given for certain, less what its heirs took from it."""
        return sum(
            self.certain(giver, account, origin) - account.taken.get(origin, 0)
            for giver, account in self.books.items()
            if giver != origin
        )


def reckon(
    state: CellState,
    own: bytes,
    told: Mapping[tuple[bytes, bytes], int],
    is_over: Callable[[bytes], bool],
    is_heir: Callable[[bytes], bool],
) -> Sheet:
    """The sheet of a key for the run `own`. `is_over`: whether an origin's stream is closed and covered here."""
    reckoning = _Reckoning(state, told, is_over)
    books, name = reckoning.books, unpack_origin(own)[:2]
    received = reckoning.received(own)
    left: dict[bytes, int] = {}
    nodes: dict[str, int] = {}
    for origin in sorted(origins_in(books)):
        if origin == own:
            continue
        dc, node, _ = unpack_origin(origin)
        if (dc, node) == name:
            held = books.get(origin, NO_ACCOUNT).balance + reckoning.received(origin)
            if held > 0 and is_heir(origin):
                left[origin] = held
        else:
            held = max(rights(books, origin), 0) + _uncertain(reckoning, origin, name)
            if held > 0:
                nodes[node] = nodes.get(node, 0) + held
    total = max(sum(account.up - account.down for account in books.values()), 0)
    arriving = any(
        receiver == own and books.get(giver, NO_ACCOUNT).given.get(own, 0) < t for (giver, receiver), t in told.items()
    )
    return Sheet(books.get(own, NO_ACCOUNT).balance + received, received, left, nodes, total, arriving)


def _uncertain(reckoning: _Reckoning, giver: bytes, name: tuple[str, str]) -> int:
    """What `giver` has given to runs of this node that may not be spent yet: it is asked whether it is certain."""
    account = reckoning.books.get(giver, NO_ACCOUNT)
    return sum(
        given - reckoning.certain(giver, account, receiver)
        for receiver, given in account.given.items()
        if unpack_origin(receiver)[:2] == name
    )

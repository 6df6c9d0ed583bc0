"""`counter_bounded`: a counter that is never below 0 anywhere, because each origin spends only rights of its own.

    payload = up, down, then for each kind (given, taken): how many, and of each: origin's length, origin, total
    rights of an origin = up - down - given by it + given to it + taken by it - taken from it

An increment makes rights for its origin, a decrement spends them, and `give` moves them to another. No two origins can spend
the same right, so no order of arrival takes the sum below 0 (the escrow of Balegas et al., SRDS 2015). What is left of a closed
origin is taken over by the next run of its node, and by nobody else. Another bound than 0 is an offset of whoever counts.

Invariants: all totals of an origin only rise, and only it writes them. `give` and `take_over` are for nodes, not for clients
(`protocol.rights`): a gift counts for its receiver once the giver cannot lose it any more; `take_over` is done only by a later
run of the same node, on a state that covers the closed streams of all runs before. There is no reset and no delete: a
concurrent decrement could then spend what is gone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final, NamedTuple

from geokv.core.cells.cell_type import CellType
from geokv.core.cells.counter_pn import TOTAL_MAX, newest_by_origin
from geokv.core.cells.operation import Operation, Signature, is_amount
from geokv.core.cells.varint import append_varint, read_varint
from geokv.core.cells.view import Draft, Entry, View
from geokv.core.origin import is_origin, unpack_origin
from geokv.errors import InvalidRequest, NotEnoughRights, RecordError


class Account(NamedTuple):
    """What one origin has done, in running totals."""

    up: int
    down: int
    given: dict[bytes, int]
    taken: dict[bytes, int]

    @property
    def balance(self) -> int:
        """What it may spend, but for what others gave to it or took from it."""
        return self.up - self.down - sum(self.given.values()) + sum(self.taken.values())


NO_ACCOUNT: Final = Account(0, 0, {}, {})


class BoundedValue(int):
    """The value of a bounded counter, and who may spend it: `rights`, per datacenter."""

    rights: Mapping[str, int]

    def __new__(cls, value: int, rights: Mapping[str, int] | None = None) -> BoundedValue:
        made = super().__new__(cls, value)
        made.rights = dict(rights or {})
        return made

    def __reduce__(self) -> tuple[type[BoundedValue], tuple[int, Mapping[str, int]]]:
        return BoundedValue, (int(self), self.rights)


def _is_packed_origin(what: str, argument: object) -> None:
    if not isinstance(argument, bytes) or not is_origin(argument):
        raise InvalidRequest(f"{what}: {argument!r} is no origin")


class CounterBounded(CellType):
    """A whole number of 0 or more."""

    name = "counter_bounded"
    tag = 16
    is_deletable = False
    has_totals = True
    signature: ClassVar[Signature] = {
        "increment": (is_amount,),
        "decrement": (is_amount,),
        "give": (_is_packed_origin, is_amount),
        "take_over": (_is_packed_origin, is_amount),
    }
    for_nodes: ClassVar[frozenset[str]] = frozenset({"give", "take_over"})

    def apply(self, view: View, operation: Operation, draft: Draft) -> None:
        origin = draft.dot.origin
        before = view.of_origin(origin)
        own = account_of(before)
        amount: int = operation.arguments[-1]
        if operation.name == "increment":
            own = own._replace(up=own.up + amount)
        elif operation.name == "take_over":
            closed: bytes = operation.arguments[0]
            if closed == origin:
                raise InvalidRequest("counter_bounded.take_over: an origin has its own rights already")
            _check_held(rights(accounts(view), closed), amount)
            own = own._replace(taken=_raised(own.taken, closed, amount))
        else:
            if amount > own.balance:
                _check_held(rights(accounts(view), origin), amount)
            own = _spent(own, operation)
        if max(own.up, own.down) > TOTAL_MAX:
            raise InvalidRequest(f"this counter has counted {max(own.up, own.down)}: at most {TOTAL_MAX}")
        draft.replace(before)
        draft.put(view, encode_account(own))

    def value(self, view: View) -> BoundedValue:
        """Never below 0, also where a decrement has come before the increment whose rights it spent."""
        books = accounts(view)
        total = max(sum(account.up - account.down for account in books.values()), 0)
        return BoundedValue(total, rights_by_dc(books))

    def place(self, payload: bytes) -> bytes | None:
        return None


def _check_held(held: int, amount: int) -> None:
    """Raises NotEnoughRights."""
    if amount > held:
        raise NotEnoughRights(f"not enough rights here: {amount} needed, {max(held, 0)} here", needed=amount, here=max(held, 0))


def _spent(own: Account, operation: Operation) -> Account:
    """The account after a decrement or a gift."""
    amount: int = operation.arguments[-1]
    if operation.name == "decrement":
        return own._replace(down=own.down + amount)
    return own._replace(given=_raised(own.given, operation.arguments[0], amount))


def _raised(totals: dict[bytes, int], origin: bytes, amount: int) -> dict[bytes, int]:
    return totals | {origin: totals.get(origin, 0) + amount}


def rights(books: Mapping[bytes, Account], origin: bytes) -> int:
    """What `origin` may spend, as far as these accounts tell: never more than it may."""
    held = books.get(origin, NO_ACCOUNT).balance
    for account in books.values():
        held += account.given.get(origin, 0) - account.taken.get(origin, 0)
    return held


def origins_in(books: Mapping[bytes, Account]) -> set[bytes]:
    """All origins that have counted here, or were given something."""
    return set(books).union(*[account.given for account in books.values()])


def rights_by_dc(books: Mapping[bytes, Account]) -> dict[str, int]:
    """What the origins of each datacenter may spend together, as far as these accounts tell."""
    found: dict[str, int] = {}
    for origin in sorted(origins_in(books)):
        held = rights(books, origin)
        if held > 0:
            dc = unpack_origin(origin).dc
            found[dc] = found.get(dc, 0) + held
    return found


def account_of(entries: list[Entry]) -> Account:
    """The account of the one origin whose items these are: totals run on, so the newest contains the others."""
    return decode_account(max(entries, key=lambda entry: entry.number).payload) if entries else NO_ACCOUNT


def accounts(view: View) -> dict[bytes, Account]:
    """The account of every origin."""
    return {origin: decode_account(newest.payload) for origin, newest in newest_by_origin(view.entries()).items()}


def encode_account(account: Account) -> bytes:
    out = bytearray()
    append_varint(out, account.up)
    append_varint(out, account.down)
    for totals in (account.given, account.taken):
        append_varint(out, len(totals))
        for origin in sorted(totals):
            append_varint(out, len(origin))
            out += origin
            append_varint(out, totals[origin])
    return bytes(out)


def decode_account(payload: bytes) -> Account:
    """Raises RecordError."""
    up, offset = read_varint(payload, 0)
    down, offset = read_varint(payload, offset)
    given, offset = _read_totals(payload, offset)
    taken, offset = _read_totals(payload, offset)
    if offset != len(payload):
        raise RecordError(f"an account of {len(payload)} bytes, {offset} of which are understood")
    return Account(up, down, given, taken)


def _read_totals(payload: bytes, offset: int) -> tuple[dict[bytes, int], int]:
    count, offset = read_varint(payload, offset)
    totals: dict[bytes, int] = {}
    for _ in range(count):
        length, offset = read_varint(payload, offset)
        origin = payload[offset : offset + length]
        if not is_origin(origin):
            raise RecordError(f"an account that names {origin!r}, which is no origin")
        totals[origin], offset = read_varint(payload, offset + length)
    return totals, offset

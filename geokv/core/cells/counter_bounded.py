"""`counter_bounded`: a counter that is never below 0 anywhere, because each origin spends only rights of its own.

    payload = up, down, then for each kind (given, taken): how many, and of each: origin's length, origin, total
    rights of an origin = up - down - given by it + given to it + taken by it - taken from it

An increment makes rights for its origin, a decrement spends them, and `give` moves them to another. No two origins can spend
the same right, so no order of arrival takes the sum below 0 (the escrow of Balegas et al., SRDS 2015). A bound other than 0 is
an offset of the namespace. What is left of a closed origin may be taken over, by one successor only.

Invariants: all totals of an origin only rise, and only it writes them. `take_over` is called only by the successor that the
closing names, on a state that covers the closed stream: then nobody else can spend what it takes. There is no reset and no
delete: a concurrent decrement could then spend what is gone.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

from geokv.core.cells.cell_type import CellType
from geokv.core.cells.counter_pn import TOTAL_MAX, newest_by_origin
from geokv.core.cells.operation import Operation, Signature, is_amount
from geokv.core.cells.varint import append_varint, read_varint
from geokv.core.cells.view import Draft, View
from geokv.core.origin import is_origin
from geokv.errors import InvalidRequest, NotEnoughRights, RecordError


class Account(NamedTuple):
    """What one origin has done, in running totals."""

    up: int
    down: int
    given: dict[bytes, int]
    taken: dict[bytes, int]


def _is_packed_origin(what: str, argument: object) -> None:
    if not isinstance(argument, bytes) or not is_origin(argument):
        raise InvalidRequest(f"{what}: {argument!r} is no origin")


class CounterBounded(CellType):
    """A whole number of 0 or more."""

    name = "counter_bounded"
    tag = 16
    is_deletable = False
    signature: ClassVar[Signature] = {
        "increment": (is_amount,),
        "decrement": (is_amount,),
        "give": (_is_packed_origin, is_amount),
        "take_over": (_is_packed_origin,),
    }

    def apply(self, view: View, operation: Operation, draft: Draft) -> None:
        origin = draft.dot.origin
        books = accounts(view)
        own = books.get(origin, Account(0, 0, {}, {}))
        if operation.name == "take_over":
            closed: bytes = operation.arguments[0]
            left = max(rights(books, closed), 0)
            own = own._replace(taken=_raised(own.taken, closed, left)) if left and closed != origin else own
        else:
            own = _spent(own, operation, rights(books, origin))
        if max(own.up, own.down) > TOTAL_MAX:
            raise InvalidRequest(f"this counter has counted {max(own.up, own.down)}: at most {TOTAL_MAX}")
        draft.replace(view.of_origin(origin))
        draft.put(view, encode_account(own))

    def value(self, view: View) -> int:
        """Never below 0, also where a decrement has come before the increment whose rights it spent."""
        return max(sum(account.up - account.down for account in accounts(view).values()), 0)

    def place(self, payload: bytes) -> bytes | None:
        return None


def _spent(own: Account, operation: Operation, held: int) -> Account:
    """The account after an increment, a decrement or a gift. Raises NotEnoughRights."""
    amount: int = operation.arguments[-1]
    if operation.name == "increment":
        return own._replace(up=own.up + amount)
    if amount > held:
        raise NotEnoughRights(
            f"not enough rights here: {amount} needed, {max(held, 0)} held; rights that other nodes hold may be moved here",
            needed=amount,
            available=max(held, 0),
        )
    if operation.name == "decrement":
        return own._replace(down=own.down + amount)
    return own._replace(given=_raised(own.given, operation.arguments[0], amount))


def _raised(totals: dict[bytes, int], origin: bytes, amount: int) -> dict[bytes, int]:
    return totals | {origin: totals.get(origin, 0) + amount}


def rights(books: dict[bytes, Account], origin: bytes) -> int:
    """What `origin` may spend, as far as these accounts tell: never more than it may."""
    own = books.get(origin)
    held = 0 if own is None else own.up - own.down - sum(own.given.values()) + sum(own.taken.values())
    for account in books.values():
        held += account.given.get(origin, 0) - account.taken.get(origin, 0)
    return held


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
        totals[origin], offset = read_varint(payload, offset + length)
    return totals, offset

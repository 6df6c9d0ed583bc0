"""What the agreement's machine works with: an acceptor's state, bounds, marks of lives, and which messages
make sense.

Not here: the machine itself, and what the marks are for (protocol.agreement).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple, TypeVar

from geokv.core.limits import KIB
from geokv.errors import InvalidRequest
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

PAGE_ITEMS_MAX: Final = 512  # items in one message and in one ToPersist
PAGE_BYTES_MAX: Final = 512 * KIB
ITEM_BYTES_MAX: Final = 256
VALUE_BYTES_MAX: Final = 256 * KIB
ROUND_MAX: Final = (1 << 63) - 1

assert ITEM_BYTES_MAX + VALUE_BYTES_MAX < PAGE_BYTES_MAX

NO_BALLOT: Final[Ballot] = (0, "")
FIRST: Final = b"\0first"
MEMBER: Final = b"\0member"
LIFE: Final = b"\0life/"
OWN: Final = b"\0"
PAST_OWN: Final = b"\0\xff"  # our own items sort below, all others above

AcceptedValue = tuple[Ballot, bytes] | None
_Entries = TypeVar("_Entries")


class ItemState(NamedTuple):
    """What an acceptor must not forget of one item."""

    item: bytes
    promised: Ballot
    accepted: AcceptedValue
    chosen: bool


def check_proposal(items: Mapping[bytes, bytes]) -> None:
    for item, value in items.items():
        if not item or item.startswith(OWN) or len(item) > ITEM_BYTES_MAX:
            raise InvalidRequest(f"an item's name has 1 to {ITEM_BYTES_MAX} bytes and does not begin with NUL: {item[:80]!r}")
        if len(value) > VALUE_BYTES_MAX:
            raise InvalidRequest(f"the value of {item!r} has {len(value)} bytes, at most {VALUE_BYTES_MAX}: make it smaller")


def is_well_formed(peer: str, message: object) -> bool:
    """Bounded, and as many values as items; items of our own only where they belong."""
    match message:
        case Prepare(ballot=ballot, items=items):
            return _is_ballot_of(peer, ballot) and _are_items(items)
        case Accept(ballot=ballot, items=items, values=values):
            return _is_ballot_of(peer, ballot) and _are_items(items) and _are_values(items, values)
        case Chosen(items=items, values=values):
            return _are_items(items) and _are_values(items, values)
        case Promised(items=items, accepted=accepted, chosen=chosen, higher=higher):
            same_length = len(items) == len(accepted) == len(chosen)
            return same_length and _have_sound_marks(items) and higher[0] <= ROUND_MAX
        case Accepted(items=items, higher=higher):
            return _have_sound_marks(items) and higher[0] <= ROUND_MAX
        case CopyItems(after=after):
            return _have_sound_marks([after])
        case ItemsCopied(items=items, promised=promised, accepted=accepted, chosen=chosen):
            return len(items) == len(promised) == len(accepted) == len(chosen)
    return False


def _is_ballot_of(peer: str, ballot: Ballot) -> bool:
    return ballot[1] == peer and 0 < ballot[0] <= ROUND_MAX


def _are_values(items: Sequence[bytes], values: Sequence[bytes]) -> bool:
    return len(items) == len(values) and all(len(value) <= VALUE_BYTES_MAX for value in values)


def _are_items(items: Sequence[bytes]) -> bool:
    return 0 < len(items) <= PAGE_ITEMS_MAX and all(
        0 < len(item) <= ITEM_BYTES_MAX and not item.startswith(OWN) for item in items
    )


def _have_sound_marks(items: Iterable[bytes]) -> bool:
    return all(item[-9:-8] == b"\0" and len(item) > len(LIFE) + 9 for item in items if item.startswith(OWN))


def mark(node: str, life: int) -> bytes:
    return LIFE + node.encode() + b"\0" + life.to_bytes(8, "big")


def read_mark(mark: bytes) -> tuple[str, int]:
    return mark[len(LIFE) : -9].decode("utf-8", "replace"), int.from_bytes(mark[-8:], "big")


def copied(copy: int, states: list[ItemState], is_fresh: bool, is_last: bool) -> ItemsCopied:
    return ItemsCopied(
        copy,
        is_fresh,
        [one.item for one in states],
        [one.promised for one in states],
        [one.accepted for one in states],
        [one.chosen for one in states],
        is_last,
    )


def pair_bytes(pair: tuple[bytes, bytes]) -> int:
    return len(pair[0]) + len(pair[1])


def state_bytes(one: ItemState) -> int:
    return len(one.item) + (len(one.accepted[1]) if one.accepted else 0)


def pages(entries: Iterable[_Entries], size: Callable[[_Entries], int]) -> Iterator[list[_Entries]]:
    """Cut into lists of at most PAGE_ITEMS_MAX entries and PAGE_BYTES_MAX bytes."""
    page: list[_Entries] = []
    page_bytes = 0
    for entry in entries:
        if page and (len(page) == PAGE_ITEMS_MAX or page_bytes + size(entry) > PAGE_BYTES_MAX):
            yield page
            page, page_bytes = [], 0
        page.append(entry)
        page_bytes += size(entry)
    if page:
        yield page

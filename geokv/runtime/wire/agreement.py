"""Agreement as protobuf: single-decree Paxos per item, in batches of items as columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

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
from geokv.runtime.wire import checks

_AcceptedValue = tuple[Ballot, bytes] | None


def _fill_ballot(message: Any, ballot: Ballot) -> None:
    message.round, message.node = ballot


def _take_ballot(message: Any) -> Ballot:
    return message.round, message.node


def _fill_accepted_values(column: Any, values: Sequence[_AcceptedValue]) -> None:
    for value in values:
        added = column.add()
        if value is not None:
            _fill_ballot(added.ballot, value[0])
            added.value = value[1]


def _take_accepted_values(column: Iterable[Any]) -> list[_AcceptedValue]:
    return [(_take_ballot(entry.ballot), entry.value) if entry.ballot.round else None for entry in column]


def fill_prepare(message: Any, value: Prepare) -> None:
    _fill_ballot(message.ballot, value.ballot)
    message.items.extend(value.items)


def take_prepare(message: Any, count: int) -> Prepare:
    return Prepare(_take_ballot(message.ballot), list(message.items))


def fill_promised(message: Any, value: Promised) -> None:
    _fill_ballot(message.ballot, value.ballot)
    message.items.extend(value.items)
    _fill_accepted_values(message.accepted, value.accepted)
    message.chosen = bytes(value.chosen)
    message.refused = value.refused
    _fill_ballot(message.higher, value.higher)


def take_promised(message: Any, count: int) -> Promised:
    """All columns as long as the items, or empty where the promise was refused."""
    items = list(message.items)
    accepted = _take_accepted_values(message.accepted)
    chosen = checks.flags(message.chosen, "promised")
    if not message.refused or accepted or chosen:
        checks.same_length("promised", len(items), accepted=accepted, chosen=chosen)
    higher = _take_ballot(message.higher)
    return Promised(_take_ballot(message.ballot), items, accepted, chosen, message.refused, higher)


def fill_accept(message: Any, value: Accept) -> None:
    _fill_ballot(message.ballot, value.ballot)
    message.items.extend(value.items)
    message.values.extend(value.values)


def take_accept(message: Any, count: int) -> Accept:
    items, values = list(message.items), list(message.values)
    checks.same_length("accept", len(items), values=values)
    return Accept(_take_ballot(message.ballot), items, values)


def fill_accepted(message: Any, value: Accepted) -> None:
    _fill_ballot(message.ballot, value.ballot)
    message.items.extend(value.items)
    message.refused = value.refused
    _fill_ballot(message.higher, value.higher)


def take_accepted(message: Any, count: int) -> Accepted:
    higher = _take_ballot(message.higher)
    return Accepted(_take_ballot(message.ballot), list(message.items), message.refused, higher)


def fill_chosen(message: Any, value: Chosen) -> None:
    message.items.extend(value.items)
    message.values.extend(value.values)


def take_chosen(message: Any, count: int) -> Chosen:
    items, values = list(message.items), list(message.values)
    checks.same_length("chosen", len(items), values=values)
    return Chosen(items, values)


def fill_copy_items(message: Any, value: CopyItems) -> None:
    message.copy = value.copy
    message.after = value.after


def take_copy_items(message: Any, count: int) -> CopyItems:
    return CopyItems(message.copy, message.after)


def fill_items_copied(message: Any, value: ItemsCopied) -> None:
    message.copy = value.copy
    message.is_fresh = value.is_fresh
    message.items.extend(value.items)
    for ballot in value.promised:
        _fill_ballot(message.promised.add(), ballot)
    _fill_accepted_values(message.accepted, value.accepted)
    message.chosen = bytes(value.chosen)
    message.is_last = value.is_last


def take_items_copied(message: Any, count: int) -> ItemsCopied:
    items = list(message.items)
    promised = [_take_ballot(entry) for entry in message.promised]
    accepted = _take_accepted_values(message.accepted)
    chosen = checks.flags(message.chosen, "items copied")
    checks.same_length("items copied", len(items), promised=promised, accepted=accepted, chosen=chosen)
    return ItemsCopied(message.copy, message.is_fresh, items, promised, accepted, chosen, message.is_last)

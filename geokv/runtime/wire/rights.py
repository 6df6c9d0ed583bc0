"""Rights of bounded counters, as protobuf. Amounts are big-endian bytes, without leading zeros: they may pass 64 bits."""

from __future__ import annotations

from typing import Any, Final

from geokv.errors import WireError
from geokv.protocol.messages import RightsAsk, RightsGiven
from geokv.runtime.wire import checks

AMOUNT_BYTES_MAX: Final = 18


def amount_bytes(amount: int) -> bytes:
    """An amount of 0 or more."""
    return amount.to_bytes((amount.bit_length() + 7) // 8, "big")


def amount_of(packed: bytes) -> int:
    """Raises WireError."""
    if len(packed) > AMOUNT_BYTES_MAX:
        raise WireError(f"an amount of {len(packed)} bytes: at most {AMOUNT_BYTES_MAX}")
    return int.from_bytes(packed, "big")


def fill_rights_ask(message: Any, value: RightsAsk) -> None:
    message.ask = value.ask
    message.namespace = value.namespace
    message.key = value.key
    message.origin = value.origin
    message.amount = amount_bytes(value.amount)
    message.here = amount_bytes(value.here)
    message.demand = amount_bytes(value.demand)


def take_rights_ask(message: Any, count: int) -> RightsAsk:
    origin = checks.origin(message.origin)
    amounts = [amount_of(one) for one in (message.amount, message.here, message.demand)]
    return RightsAsk(message.ask, message.namespace, message.key, origin, *amounts)


def fill_rights_given(message: Any, value: RightsGiven) -> None:
    message.ask = value.ask
    message.namespace = value.namespace
    message.key = value.key
    message.origin = value.origin
    message.receivers.extend(value.receivers)
    message.totals.extend([amount_bytes(total) for total in value.totals])
    message.left = amount_bytes(value.left)


def take_rights_given(message: Any, count: int) -> RightsGiven:
    receivers = checks.origins(message.receivers)
    totals = [amount_of(total) for total in message.totals]
    checks.same_length("rights given", len(receivers), totals=totals)
    origin, left = checks.origin(message.origin), amount_of(message.left)
    return RightsGiven(message.ask, message.namespace, message.key, origin, receivers, totals, left)

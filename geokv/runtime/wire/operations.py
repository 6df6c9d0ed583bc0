"""Questions and answers about operations that are tried again, as protobuf.

Invariants: see the package.
"""

from __future__ import annotations

from typing import Any

from geokv.errors import WireError
from geokv.protocol.messages import OperationsAsk, OperationsTold
from geokv.protocol.operation_ids import ID_BYTES, OTHER
from geokv.runtime.wire import checks


def fill_operations_ask(message: Any, value: OperationsAsk) -> None:
    message.ask = value.ask
    message.namespace = value.namespace
    message.partitions.extend(value.partitions)
    message.ids = value.ids
    message.age_ms = value.age_ms
    message.nodes.extend(value.nodes)


def take_operations_ask(message: Any, count: int) -> OperationsAsk:
    partitions = checks.partitions(message.partitions, count)
    if len(message.ids) != ID_BYTES * len(partitions):
        raise WireError(f"operations ask: {len(message.ids)} bytes of ids for {len(partitions)} operations")
    return OperationsAsk(message.ask, message.namespace, partitions, message.ids, message.age_ms, list(message.nodes))


def fill_operations_told(message: Any, value: OperationsTold) -> None:
    message.ask = value.ask
    message.states = value.states
    message.records = value.records
    message.versions.extend(value.versions)
    message.reason = value.reason


def take_operations_told(message: Any, count: int) -> OperationsTold:
    if message.states and max(message.states) > OTHER:
        raise WireError(f"operations told: state {max(message.states)} is not known here")
    return OperationsTold(message.ask, message.states, message.records, list(message.versions), message.reason)

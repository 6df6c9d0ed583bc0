"""What replicas say of how far they are, as protobuf: the rounds that find out what may be collected."""

from __future__ import annotations

from typing import Any

from geokv.protocol.messages import StabilityAnswer, StabilityAsk
from geokv.runtime.wire import checks, feeds


def fill_stability_ask(message: Any, value: StabilityAsk) -> None:
    message.round = value.round
    message.namespace = value.namespace
    message.partitions.extend(value.partitions)


def take_stability_ask(message: Any, count: int) -> StabilityAsk:
    return StabilityAsk(message.round, message.namespace, checks.partitions(message.partitions, count))


def fill_stability_answer(message: Any, value: StabilityAnswer) -> None:
    message.round = value.round
    message.namespace = value.namespace
    message.origin = value.origin
    message.partitions.extend(value.partitions)
    message.unclaimed.extend(value.unclaimed)
    message.closing.extend(value.closing)
    message.clock_ms = value.clock_ms
    feeds.fill_heads(message.frontiers, value.frontiers)
    feeds.fill_heads(message.heads, value.heads)


def take_stability_answer(message: Any, count: int) -> StabilityAnswer:
    return StabilityAnswer(
        message.round,
        message.namespace,
        checks.origin(message.origin),
        checks.partitions(message.partitions, count),
        checks.partitions(message.unclaimed, count),
        checks.partitions(message.closing, count),
        message.clock_ms,
        feeds.take_heads(message.frontiers, count),
        feeds.take_heads(message.heads, count),
    )

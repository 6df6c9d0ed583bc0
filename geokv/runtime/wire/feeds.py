"""Feeds and definitions as protobuf: catching up from a co-owner's log, shipping between datacenters.

`payload` of a batch stays the compressed frame that it is: it is opened by whoever takes it in, up to the limit that is
checked here against what the batch says of itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from geokv.core.limits import WAN_BATCH_RAW_BYTES_MAX
from geokv.protocol.messages import (
    Definitions,
    DefinitionsWanted,
    FeedAck,
    FeedBatch,
    FeedClose,
    FeedHoles,
    FeedOpen,
    FeedRefused,
    StreamHeads,
)
from geokv.runtime.wire import checks


def fill_heads(column: Any, heads: list[StreamHeads]) -> None:
    for entry in heads:
        added = column.add(namespace=entry.namespace, origin=entry.origin)
        added.partitions.extend(entry.partitions)
        added.numbers.extend(entry.numbers)


def take_heads(column: Iterable[Any], count: int) -> list[StreamHeads]:
    heads = []
    for entry in column:
        partitions = checks.partitions(entry.partitions, count)
        numbers = list(entry.numbers)
        checks.same_length("stream heads", len(partitions), numbers=numbers)
        heads.append(StreamHeads(entry.namespace, checks.origin(entry.origin), partitions, numbers))
    return heads


def fill_feed_open(message: Any, value: FeedOpen) -> None:
    message.feed = value.feed
    message.own_only = value.own_only
    message.partitions.extend(value.partitions)
    fill_heads(message.frontiers, value.frontiers)


def take_feed_open(message: Any, count: int) -> FeedOpen:
    partitions = checks.partitions(message.partitions, count)
    return FeedOpen(message.feed, message.own_only, partitions, take_heads(message.frontiers, count))


def fill_feed_batch(message: Any, value: FeedBatch) -> None:
    message.feed = value.feed
    message.sequence = value.sequence
    message.raw_bytes = value.raw_bytes
    message.payload = value.payload
    message.sent_hlc = value.sent_hlc
    if value.behind:
        message.behind_partitions.extend(value.behind)
        message.behind_hlcs.extend(value.behind.values())
    if value.heads:
        fill_heads(message.heads, value.heads)
    message.sent_us = value.sent_us
    message.echo_us = value.echo_us


def take_feed_batch(message: Any, count: int) -> FeedBatch:
    behind = checks.partitions(message.behind_partitions, count)
    return FeedBatch(
        feed=message.feed,
        sequence=message.sequence,
        raw_bytes=checks.at_most(WAN_BATCH_RAW_BYTES_MAX, message.raw_bytes, "raw_bytes"),
        payload=message.payload,
        sent_hlc=message.sent_hlc,
        behind=checks.pairs_to_dict(behind, message.behind_hlcs, "behind"),
        heads=take_heads(message.heads, count),
        sent_us=message.sent_us,
        echo_us=message.echo_us,
    )


def fill_feed_ack(message: Any, value: FeedAck) -> None:
    message.feed = value.feed
    message.synced = value.synced
    message.quorum = value.quorum
    fill_heads(message.covered, value.covered)
    message.sent_us = value.sent_us
    message.echo_us = value.echo_us


def take_feed_ack(message: Any, count: int) -> FeedAck:
    covered = take_heads(message.covered, count)
    return FeedAck(message.feed, message.synced, message.quorum, covered, message.sent_us, message.echo_us)


def fill_feed_close(message: Any, value: FeedClose) -> None:
    message.feed = value.feed


def take_feed_close(message: Any, count: int) -> FeedClose:
    return FeedClose(message.feed)


def fill_feed_refused(message: Any, value: FeedRefused) -> None:
    message.feed = value.feed
    message.reason = value.reason


def take_feed_refused(message: Any, count: int) -> FeedRefused:
    return FeedRefused(message.feed, message.reason)


def fill_feed_holes(message: Any, value: FeedHoles) -> None:
    message.feed = value.feed
    fill_heads(message.heads, value.heads)


def take_feed_holes(message: Any, count: int) -> FeedHoles:
    return FeedHoles(message.feed, take_heads(message.heads, count))


def fill_definitions_wanted(message: Any, value: DefinitionsWanted) -> None:
    message.dc = value.dc
    message.first = value.first


def take_definitions_wanted(message: Any, count: int) -> DefinitionsWanted:
    return DefinitionsWanted(message.dc, message.first)


def fill_definitions(message: Any, value: Definitions) -> None:
    message.dc = value.dc
    message.first = value.first
    message.values.extend(value.values)


def take_definitions(message: Any, count: int) -> Definitions:
    return Definitions(message.dc, message.first, list(message.values))

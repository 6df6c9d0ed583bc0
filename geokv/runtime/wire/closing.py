"""Closing the streams of what ran before, as protobuf."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from geokv.protocol.messages import (
    CellsFetch,
    CellsPage,
    CellsWanted,
    CloseAnswer,
    CloseAsk,
    CloseFill,
    CloseFilled,
    CloseForget,
    CloseTell,
    CloseTold,
    RecordsWanted,
    StreamHeld,
)
from geokv.runtime.wire import checks

_Closing = tuple[bytes, int, bytes]


def _fill_held(column: Any, held: list[StreamHeld]) -> None:
    for stream in held:
        column.add(
            namespace=stream.namespace,
            partition=stream.partition,
            origin=stream.origin,
            frontier=stream.frontier,
            beyond=stream.beyond,
            log_from=stream.log_from,
            is_unclaimed=stream.is_unclaimed,
        )


def _take_held(column: Iterable[Any], count: int) -> list[StreamHeld]:
    return [
        StreamHeld(
            entry.namespace,
            checks.partition(entry.partition, count),
            checks.origin(entry.origin),
            entry.frontier,
            list(entry.beyond),
            entry.log_from,
            entry.is_unclaimed,
        )
        for entry in column
    ]


def _fill_closings(column: Any, closings: list[_Closing]) -> None:
    for origin, partition, value in closings:
        column.add(origin=origin, partition=partition, value=value)


def _take_closings(column: Iterable[Any], count: int) -> list[_Closing]:
    return [(checks.origin(entry.origin), checks.partition(entry.partition, count), entry.value) for entry in column]


def _take_pairs(origins: Iterable[bytes], partitions: Iterable[int], count: int) -> list[tuple[bytes, int]]:
    names, numbers = checks.origins(origins), checks.partitions(partitions, count)
    checks.same_length("closed streams", len(names), partitions=numbers)
    return list(zip(names, numbers, strict=True))


def _fill_stream(message: Any, value: RecordsWanted | CellsFetch | CellsWanted | CellsPage) -> None:
    """The closing, and the stream that a message is about."""
    message.close = value.close
    message.namespace = value.namespace
    message.partition = value.partition
    message.origin = value.origin


def _take_stream(message: Any, count: int) -> tuple[int, int, int, bytes]:
    return message.close, message.namespace, checks.partition(message.partition, count), checks.origin(message.origin)


def fill_close_ask(message: Any, value: CloseAsk) -> None:
    message.close = value.close
    message.node = value.node
    message.current = value.current
    message.origins.extend(value.origins)
    message.partitions.extend(value.partitions)
    message.runs.extend(value.runs)
    message.log_sequence = value.log_sequence


def take_close_ask(message: Any, count: int) -> CloseAsk:
    return CloseAsk(
        close=message.close,
        node=message.node,
        current=checks.origin(message.current) if message.current else b"",
        origins=checks.origins(message.origins),
        partitions=checks.partitions(message.partitions, count),
        runs=list(message.runs),
        log_sequence=message.log_sequence,
    )


def fill_close_answer(message: Any, value: CloseAnswer) -> None:
    message.close = value.close
    message.origins.extend(value.origins)
    message.partitions.extend(value.partitions)
    _fill_held(message.held, value.held)
    _fill_closings(message.closings, value.closings)
    message.seen_more = value.seen_more


def take_close_answer(message: Any, count: int) -> CloseAnswer:
    return CloseAnswer(
        close=message.close,
        origins=checks.origins(message.origins),
        partitions=checks.partitions(message.partitions, count),
        held=_take_held(message.held, count),
        closings=_take_closings(message.closings, count),
        seen_more=message.seen_more,
    )


def fill_records_wanted(message: Any, value: RecordsWanted) -> None:
    _fill_stream(message, value)
    message.numbers.extend(value.numbers)


def take_records_wanted(message: Any, count: int) -> RecordsWanted:
    return RecordsWanted(*_take_stream(message, count), list(message.numbers))


def fill_close_fill(message: Any, value: CloseFill) -> None:
    message.close = value.close
    message.records = value.records


def take_close_fill(message: Any, count: int) -> CloseFill:
    return CloseFill(message.close, message.records)


def fill_close_filled(message: Any, value: CloseFilled) -> None:
    message.close = value.close
    _fill_held(message.held, value.held)


def take_close_filled(message: Any, count: int) -> CloseFilled:
    return CloseFilled(message.close, _take_held(message.held, count))


def fill_cells_fetch(message: Any, value: CellsFetch) -> None:
    _fill_stream(message, value)
    message.holder = value.holder


def take_cells_fetch(message: Any, count: int) -> CellsFetch:
    return CellsFetch(*_take_stream(message, count), message.holder)


def fill_cells_wanted(message: Any, value: CellsWanted) -> None:
    _fill_stream(message, value)
    message.after = value.after
    message.collections = value.collections


def take_cells_wanted(message: Any, count: int) -> CellsWanted:
    return CellsWanted(*_take_stream(message, count), message.after, message.collections)


def fill_cells_page(message: Any, value: CellsPage) -> None:
    _fill_stream(message, value)
    message.after = value.after
    message.frontier = value.frontier
    message.records = value.records
    message.is_last = value.is_last


def take_cells_page(message: Any, count: int) -> CellsPage:
    stream = _take_stream(message, count)
    return CellsPage(*stream, message.after, message.frontier, message.records, message.is_last)


def fill_close_tell(message: Any, value: CloseTell) -> None:
    message.close = value.close
    _fill_closings(message.closings, value.closings)


def take_close_tell(message: Any, count: int) -> CloseTell:
    return CloseTell(message.close, _take_closings(message.closings, count))


def fill_close_told(message: Any, value: CloseTold) -> None:
    message.close = value.close
    message.covered_origins.extend([origin for origin, _ in value.covered])
    message.covered_partitions.extend([partition for _, partition in value.covered])


def take_close_told(message: Any, count: int) -> CloseTold:
    return CloseTold(message.close, _take_pairs(message.covered_origins, message.covered_partitions, count))


def fill_close_forget(message: Any, value: CloseForget) -> None:
    message.origins.extend([origin for origin, _ in value.closings])
    message.partitions.extend([partition for _, partition in value.closings])


def take_close_forget(message: Any, count: int) -> CloseForget:
    return CloseForget(_take_pairs(message.origins, message.partitions, count))

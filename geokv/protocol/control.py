"""Control records: a node's notes to itself, in the same log and frames as the data, so that one sync covers both.

A control record has kind CONTROL; its key names it, its cell is MessagePack. Recovery reads them in log order.

    run        [incarnation]                       this disk was started
    bound      [hlc ms]                            no stamp above this was given before the next bound
    promise    [origin, [partitions]]              no more of that origin is taken but with its closing
    closing    [origin, partition, value]          agreed; value: see `protocol.closing`
    forgotten  [origin, [partitions]]              every replica covers these closings; only that they are closed is remembered
    covered    [namespace, partition, origin, number]   the cells of another owner, who covers up to there, are here
    accept     [[item, promised, accepted, chosen]…]   states of the agreement
    slot       [dc, slot, value]                   a definition carried from another datacenter
    conflicts  [conflict …]                        entries of the conflict journal, see `protocol.journal`
    collected  [namespace, count]                  tombstones of it may be collected from here on: its count of collections
    held       ids, 16 bytes each                  operations that only one retry, or nobody, may still number here
    seen       {node: [incarnation, log sequence]} the newest that peers have stated of themselves
    quarantine [namespace, table, path, offset, what, [partitions], ms]  claims taken back, see `protocol.claims`

Format page: docs/formats/record.md.
"""

from __future__ import annotations

from typing import Any, Final

import msgpack

from geokv.core.record import CONTROL, NO_OPERATION, Record, encode_record
from geokv.errors import RecordError

RUN: Final = b"run"
BOUND: Final = b"bound"
PROMISE: Final = b"promise"
CLOSING: Final = b"closing"
FORGOTTEN: Final = b"forgotten"
COVERED: Final = b"covered"
ACCEPT: Final = b"accept"
SLOT: Final = b"slot"
SEEN: Final = b"seen"
CONFLICTS: Final = b"conflicts"
QUARANTINE: Final = b"quarantine"
COLLECTED: Final = b"collected"
HELD: Final = b"held"


def control_record(name: bytes, body: object) -> bytes:
    """The record that notes `body` (lists, dicts, ints, bytes, str) under `name`."""
    return encode_record(CONTROL, 0, 0, 0, 0, NO_OPERATION, b"", name, msgpack.packb(body))


def control_body(record: Record) -> Any:
    """What a control record notes. Raises RecordError when it is not MessagePack."""
    return unpack(record.cell)


def pack(body: object) -> bytes:
    packed: bytes = msgpack.packb(body)
    return packed


def unpack(packed: bytes) -> Any:
    """Inverse of `pack`. Raises RecordError for other bytes."""
    try:
        return msgpack.unpackb(packed, strict_map_key=False)
    except Exception as error:
        raise RecordError(f"not a control value: {packed[:24]!r} ({error})") from error

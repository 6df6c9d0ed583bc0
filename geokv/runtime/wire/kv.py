"""Client batches and their replies as protobuf: the public API's wire form, both ways, for server and SDK.

A batch is columns on both sides, so an operation costs one entry in a few lists: keys and values go over as they are,
outcomes and counts as one byte each, versions as fixed 64 bits.

Invariants: see the package. A request that decodes obeys the limits on batch size and time.
Format page: docs/formats/api.md.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from geokv.core.limits import BATCH_BYTES_MAX, BATCH_ITEMS_MAX, MESSAGE_BYTES_MAX, TIMEOUT_MS_MAX
from geokv.core.quorum import Consistency
from geokv.errors import WireError
from geokv.protocol.requests import (
    AdminReply,
    AdminRequest,
    Detail,
    Outcome,
    ReadBatch,
    ReadReply,
    WriteBatch,
    WriteReply,
)
from geokv.runtime.wire import checks, rights
from geokv.v1 import admin_pb2, kv_pb2

OPERATION_BYTES: Final = 16
TRIED_MAX: Final = 256
TIMEOUT_MS_DEFAULT: Final = 5_000
_OUTCOMES: Final = bytes(Outcome)
_LEVELS: Final = {int(level): level for level in Consistency}
_COUNT_MAX: Final = 255  # replicas and datacenters are one byte each on the wire


# --- write ----------------------------------------------------------------------------------------------------------


def fill_write_request(message: kv_pb2.WriteRequest, batch: WriteBatch) -> None:
    message.namespace = batch.namespace
    message.keys.extend(batch.keys)
    values = batch.values
    if None in values:
        message.values.extend([b"" if value is None else value for value in values])
        message.deletes.extend([index for index, value in enumerate(values) if value is None])
    else:
        message.values.extend(values)  # type: ignore[arg-type]
    message.level = batch.level
    message.w = batch.w
    message.ttl_ms = batch.ttl_ms
    message.replicated_to = batch.replicated_to
    message.timeout_ms = batch.timeout_ms
    message.seen_hlc = batch.seen_hlc
    if batch.operations:
        message.operations = b"".join(batch.operations)
    message.contexts.extend(batch.contexts)
    message.ring_version = batch.ring_version
    if batch.has_updates:
        message.has_updates = True
    if batch.remaining_ms:
        message.remaining_ms.extend(batch.remaining_ms)
    if batch.tried:
        message.tried.extend(batch.tried)
        message.first_try_ms = batch.first_try_ms


def take_write_request(message: kv_pb2.WriteRequest) -> WriteBatch:
    keys = list(message.keys)
    count = len(keys)
    values: list[bytes | None] = list(message.values)
    if len(values) != count:
        raise WireError(f"values has {len(values)} entries for {count} keys: one per key, also for deletes")
    contexts = _one_per_key("contexts", message.contexts, count)
    _check_batch(count, sum(map(len, keys)) + sum(map(len, message.values)))
    for index in checks.indexes(message.deletes, count, "deletes"):
        values[index] = None
    return WriteBatch(
        namespace=message.namespace,
        keys=keys,
        values=values,
        level=_level(message.level),
        w=checks.at_most(_COUNT_MAX, message.w, "w"),
        ttl_ms=_ttl_ms(message.ttl_ms),
        replicated_to=checks.at_most(_COUNT_MAX, message.replicated_to, "replicated_to"),
        timeout_ms=_timeout_ms(message.timeout_ms),
        seen_hlc=message.seen_hlc,
        operations=_operations(message.operations, count),
        contexts=contexts,
        ring_version=message.ring_version,
        has_updates=message.has_updates,
        remaining_ms=_one_per_key("remaining_ms", message.remaining_ms, count),
        tried=_tried(message.tried),
        first_try_ms=message.first_try_ms,
    )


def encode_write_request(batch: WriteBatch) -> bytes:
    message = kv_pb2.WriteRequest()
    fill_write_request(message, batch)
    return message.SerializeToString()


def decode_write_request(payload: bytes) -> WriteBatch:
    return take_write_request(checks.parse(kv_pb2.WriteRequest, payload))


def fill_write_reply(message: kv_pb2.WriteReply, reply: WriteReply) -> None:
    message.outcomes = bytes(reply.outcomes)
    message.versions.extend(reply.versions)
    message.replicas = bytes(reply.replicas)
    message.dcs = bytes(reply.dcs)
    message.coordinator = reply.coordinator
    message.hlc = reply.hlc
    message.elapsed_us = reply.elapsed_us
    if reply.details:
        _fill_details(message.details, reply.details)
    if reply.contexts:
        message.contexts.extend(reply.contexts)


def take_write_reply(message: kv_pb2.WriteReply) -> WriteReply:
    outcomes = _outcomes(message.outcomes)
    versions, replicas, dcs = list(message.versions), list(message.replicas), list(message.dcs)
    checks.same_length("write reply", len(outcomes), versions=versions, replicas=replicas, dcs=dcs)
    details = _details(message.details, len(outcomes))
    contexts = _contexts(message.contexts, len(outcomes), "write reply")
    return WriteReply(
        outcomes, versions, replicas, dcs, message.coordinator, message.hlc, message.elapsed_us, details, contexts
    )


def encode_write_reply(reply: WriteReply, ring_version: int = 0) -> bytes:
    message = kv_pb2.WriteReply(ring_version=ring_version)
    fill_write_reply(message, reply)
    return message.SerializeToString()


def decode_write_reply(payload: bytes) -> tuple[WriteReply, int]:
    """The reply, and the version of the server's ring."""
    message = checks.parse(kv_pb2.WriteReply, payload)
    return take_write_reply(message), message.ring_version


# --- read -----------------------------------------------------------------------------------------------------------


def fill_read_request(message: kv_pb2.ReadRequest, batch: ReadBatch) -> None:
    message.namespace = batch.namespace
    message.keys.extend(batch.keys)
    message.level = batch.level
    message.r = batch.r
    message.timeout_ms = batch.timeout_ms
    message.seen_hlc = batch.seen_hlc
    message.repair_before = batch.repair_before
    message.ring_version = batch.ring_version


def take_read_request(message: kv_pb2.ReadRequest) -> ReadBatch:
    keys = list(message.keys)
    _check_batch(len(keys), sum(map(len, keys)))
    return ReadBatch(
        namespace=message.namespace,
        keys=keys,
        level=_level(message.level),
        r=checks.at_most(_COUNT_MAX, message.r, "r"),
        timeout_ms=_timeout_ms(message.timeout_ms),
        seen_hlc=message.seen_hlc,
        repair_before=message.repair_before,
        ring_version=message.ring_version,
    )


def encode_read_request(batch: ReadBatch) -> bytes:
    message = kv_pb2.ReadRequest()
    fill_read_request(message, batch)
    return message.SerializeToString()


def decode_read_request(payload: bytes) -> ReadBatch:
    return take_read_request(checks.parse(kv_pb2.ReadRequest, payload))


def fill_read_reply(message: kv_pb2.ReadReply, reply: ReadReply) -> None:
    values = reply.values
    message.outcomes = bytes(reply.outcomes)
    message.values.extend([b"" if value is None else value for value in values])
    message.found = bytes([value is not None for value in values])
    message.versions.extend(reply.versions)
    message.replicas = bytes(reply.replicas)
    message.coordinator = reply.coordinator
    message.hlc = reply.hlc
    message.elapsed_us = reply.elapsed_us
    if reply.details:
        _fill_details(message.details, reply.details)
    if reply.policy:
        message.policy = reply.policy
        message.contexts.extend(reply.contexts)


def take_read_reply(message: kv_pb2.ReadReply) -> ReadReply:
    outcomes = _outcomes(message.outcomes)
    values: list[bytes | None] = list(message.values)
    versions, replicas, found = list(message.versions), list(message.replicas), message.found
    checks.same_length("read reply", len(outcomes), values=values, versions=versions, replicas=replicas, found=found)
    if b"\0" in found or found.strip(b"\1"):
        is_found = checks.flags(found, "read reply")
        values = [value if there else None for value, there in zip(values, is_found, strict=True)]
    details = _details(message.details, len(outcomes))
    reply = ReadReply(outcomes, values, versions, replicas, message.coordinator, message.hlc, message.elapsed_us, details)
    if message.policy:
        reply.policy, reply.contexts = message.policy, _contexts(message.contexts, len(outcomes), "read reply")
    return reply


def encode_read_reply(reply: ReadReply, ring_version: int = 0) -> bytes:
    message = kv_pb2.ReadReply(ring_version=ring_version)
    fill_read_reply(message, reply)
    return message.SerializeToString()


def decode_read_reply(payload: bytes) -> tuple[ReadReply, int]:
    """The reply, and the version of the server's ring."""
    message = checks.parse(kv_pb2.ReadReply, payload)
    return take_read_reply(message), message.ring_version


# --- administration and the ring ------------------------------------------------------------------------------------


def encode_admin_request(request: AdminRequest) -> bytes:
    return admin_pb2.AdminRequest(
        verb=request.verb, arguments_json=_to_json(request.arguments), timeout_ms=request.timeout_ms
    ).SerializeToString()


def decode_admin_request(payload: bytes) -> AdminRequest:
    message = checks.parse(admin_pb2.AdminRequest, payload)
    if not message.verb:
        raise WireError("verb is empty: name what to do, status for example")
    arguments = _from_json(message.arguments_json, "arguments_json")
    return AdminRequest(message.verb, arguments, _timeout_ms(message.timeout_ms))


def encode_admin_reply(reply: AdminReply) -> bytes:
    body = _to_json(reply.body) if reply.body else b""
    return admin_pb2.AdminReply(outcome=reply.outcome, body_json=body, message=reply.message).SerializeToString()


def decode_admin_reply(payload: bytes) -> AdminReply:
    message = checks.parse(admin_pb2.AdminReply, payload)
    try:
        outcome = Outcome(message.outcome)
    except ValueError:
        raise WireError(f"outcome {message.outcome} is not known here") from None
    return AdminReply(outcome, _from_json(message.body_json, "body_json"), message.message)


class Fetch(NamedTuple):
    """A piece of a file of a snapshot that is asked for."""

    snapshot: str
    path: str
    offset: int
    length: int


def encode_fetch_request(fetch: Fetch) -> bytes:
    return admin_pb2.FetchRequest(**fetch._asdict()).SerializeToString()


def decode_fetch_request(payload: bytes) -> Fetch:
    message = checks.parse(admin_pb2.FetchRequest, payload)
    return Fetch(message.snapshot, message.path, message.offset, message.length)


def encode_fetch_reply(content: bytes) -> bytes:
    return admin_pb2.FetchReply(content=content).SerializeToString()


def decode_fetch_reply(payload: bytes) -> bytes:
    return checks.parse(admin_pb2.FetchReply, payload).content


@dataclass(slots=True)
class RingNodeSeen:
    """One node as a client sees it; `address` is for the viewpoint that asked."""

    name: str
    dc: str
    rack: str
    weight: float
    address: str


@dataclass(slots=True)
class RingSeen:
    """All that a client needs to route: `replicas` per datacenter, and the nodes with addresses for one viewpoint."""

    cluster: str
    partitions: int
    version: int
    answered_by: str
    nodes: list[RingNodeSeen] = field(default_factory=list)
    replicas: dict[str, int] = field(default_factory=dict)


def encode_ring_request(viewpoint: str) -> bytes:
    return admin_pb2.RingRequest(viewpoint=viewpoint).SerializeToString()


def decode_ring_request(payload: bytes) -> str:
    return checks.parse(admin_pb2.RingRequest, payload).viewpoint


def encode_ring_reply(ring: RingSeen) -> bytes:
    message = admin_pb2.RingReply(
        cluster=ring.cluster,
        partitions=ring.partitions,
        version=ring.version,
        answered_by=ring.answered_by,
        datacenters=[admin_pb2.RingDatacenter(name=name, replicas=count) for name, count in ring.replicas.items()],
    )
    for node in ring.nodes:
        message.nodes.add(name=node.name, dc=node.dc, rack=node.rack, weight=node.weight, address=node.address)
    return message.SerializeToString()


def decode_ring_reply(payload: bytes) -> RingSeen:
    message = checks.parse(admin_pb2.RingReply, payload)
    names = [dc.name for dc in message.datacenters]
    replicas = checks.pairs_to_dict(names, [dc.replicas for dc in message.datacenters], "ring reply")
    nodes = [RingNodeSeen(node.name, node.dc, node.rack, node.weight, node.address) for node in message.nodes]
    if strangers := {node.dc for node in nodes} - set(names):
        raise WireError(f"ring reply: nodes of datacenters that it does not list: {sorted(strangers)}")
    return RingSeen(message.cluster, message.partitions, message.version, message.answered_by, nodes, replicas)


# --- parts ----------------------------------------------------------------------------------------------------------


def _check_batch(items: int, size: int) -> None:
    if items > BATCH_ITEMS_MAX:
        raise WireError(f"{items} operations in one batch: at most {BATCH_ITEMS_MAX}; cut it")
    # A single pair may be larger than a batch where a namespace raised its limit; the machine knows that limit.
    if size > BATCH_BYTES_MAX and items > 1:
        raise WireError(f"{size} bytes of keys and values in one batch: at most {BATCH_BYTES_MAX}; cut it")


def _level(number: int) -> Consistency:
    level = _LEVELS.get(number)
    if level is None:
        names = ", ".join(f"{member.value} {member.name}" for member in Consistency)
        raise WireError(f"level {number} is not known: {names}")
    return level


def _ttl_ms(ttl_ms: int) -> int:
    if ttl_ms < -1:
        raise WireError(f"ttl_ms = {ttl_ms}: a time in milliseconds, 0 for the namespace's, -1 for none")
    return ttl_ms


def _timeout_ms(timeout_ms: int) -> int:
    return checks.at_most(TIMEOUT_MS_MAX, timeout_ms, "timeout_ms") or TIMEOUT_MS_DEFAULT


def _one_per_key(name: str, column: Any, count: int) -> list[Any]:
    if column and len(column) != count:
        raise WireError(f"{name} has {len(column)} entries for {count} keys: one per key, or none")
    return list(column)


def _tried(column: Any) -> tuple[str, ...]:
    if len(column) > TRIED_MAX:
        raise WireError(f"tried names {len(column)} nodes: at most {TRIED_MAX}")
    return tuple(column)


def _operations(column: bytes, count: int) -> list[bytes]:
    if not column:
        return []
    if len(column) != OPERATION_BYTES * count:
        raise WireError(f"operations has {len(column)} bytes for {count} keys: {OPERATION_BYTES} per key, or none")
    return [column[start : start + OPERATION_BYTES] for start in range(0, len(column), OPERATION_BYTES)]


def _outcomes(column: bytes) -> list[int]:
    if column.translate(None, _OUTCOMES):
        raise WireError(f"outcome {column.translate(None, _OUTCOMES)[0]} is not known here")
    return list(column)


def _contexts(column: Any, count: int, what: str) -> list[bytes]:
    contexts = list(column)
    if contexts:
        checks.same_length(what, count, contexts=contexts)
    return contexts


def _fill_details(column: Any, details: dict[int, Detail]) -> None:
    for index, detail in details.items():
        column.add(
            index=index,
            message=detail.message,
            required=detail.required,
            achieved=detail.achieved,
            replicas=detail.replicas,
            behind_ms=detail.behind_ms,
            retry_after_ms=detail.retry_after_ms,
            **_fill_rights(detail),
        )


def _fill_rights(detail: Detail) -> dict[str, bytes]:
    if detail.rights is None:
        return {}
    return dict(zip(("needed", "here", "elsewhere"), map(rights.amount_bytes, detail.rights), strict=True))


def _rights(detail: Any) -> tuple[int, int, int] | None:
    """Nothing is lacking where nothing is needed."""
    if not detail.needed:
        return None
    return rights.amount_of(detail.needed), rights.amount_of(detail.here), rights.amount_of(detail.elsewhere)


def _details(column: Any, count: int) -> dict[int, Detail]:
    if not column:
        return {}
    indexes = checks.indexes([detail.index for detail in column], count, "details")
    found = [
        Detail(
            message=detail.message,
            required=detail.required,
            achieved=detail.achieved,
            replicas=tuple(detail.replicas),
            behind_ms=detail.behind_ms,
            retry_after_ms=detail.retry_after_ms,
            rights=_rights(detail),
        )
        for detail in column
    ]
    return checks.pairs_to_dict(indexes, found, "details")


def _to_json(tree: dict[str, object]) -> bytes:
    return json.dumps(tree, separators=(",", ":"), allow_nan=False).encode()


def _from_json(payload: bytes, what: str) -> dict[str, object]:
    """A JSON object. RecursionError is a stranger's deep nesting, ValueError everything else that is not JSON."""
    if not payload:
        return {}
    if len(payload) > MESSAGE_BYTES_MAX:
        raise WireError(f"{what}: {len(payload)} bytes; at most {MESSAGE_BYTES_MAX}")
    try:
        tree = json.loads(payload, parse_constant=_refuse_constant)
        if b"\\u" in payload:  # an escaped half of a surrogate pair would be a str that cannot be written out again
            json.dumps(tree, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise WireError(f"{what} is not JSON: {error}") from None
    if not isinstance(tree, dict):
        raise WireError(f"{what} must be a JSON object, not {type(tree).__name__}")
    return tree


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")

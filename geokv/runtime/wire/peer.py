"""Frames between nodes: which message is which field of PeerMessage, and the messages of replication and reads.

    frame = encode_hello(hello)                     the first of a stream, in either direction
    frame = encode_message(message)                 one message
    b"".join([frame, frame, ...])                   is one frame with all of them (protobuf joins repeated fields)
    decode_frame(payload, partitions)               -> list of messages

So a message is encoded once, when it is queued: its exact size is known to the queue's bound, and writing many of them
at once is a join of bytes.

Invariants: see the package. Every message of geokv.protocol.messages has a field here; a test compares the two lists.
Format page: docs/formats/peer.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from geokv.core.limits import MESSAGE_BYTES_MAX
from geokv.errors import WireError
from geokv.protocol import messages
from geokv.protocol.messages import CellsRead, Forward, Forwarded, ReadCells, Replicate, Replicated, Statement, TakenBack
from geokv.protocol.requests import ReadBatch, ReadReply, WriteBatch, WriteReply
from geokv.runtime.wire import agreement, checks, closing, feeds, kv, operations, rights, stability
from geokv.v1 import peer_pb2

FORMAT: Final = 1
DIGEST_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class Hello:
    """Who speaks: the first thing on a stream, both ways. `format` is that of all messages that follow."""

    cluster: str
    dc: str
    node: str
    incarnation: int
    format: int = FORMAT


def encode_hello(hello: Hello) -> bytes:
    frame = peer_pb2.PeerFrame()
    frame.hello.cluster = hello.cluster
    frame.hello.dc = hello.dc
    frame.hello.node = hello.node
    frame.hello.incarnation = hello.incarnation
    frame.hello.format = hello.format
    return frame.SerializeToString()


def decode_hello(payload: bytes) -> Hello:
    """The hello that a stream must begin with. Raises WireError where it is anything else."""
    frame = checks.parse(peer_pb2.PeerFrame, payload)
    if not frame.HasField("hello") or frame.messages:
        raise WireError("the stream does not begin with a hello: the caller is no node of geokv, or too new")
    hello = frame.hello
    return Hello(hello.cluster, hello.dc, hello.node, hello.incarnation, hello.format)


# --- hot messages ---------------------------------------------------------------------------------------------------


def fill_replicate(message: Any, value: Replicate) -> None:
    message.batch = value.batch
    message.records = value.records


def take_replicate(message: Any, count: int) -> Replicate:
    return Replicate(message.batch, message.records)


def fill_replicated(message: Any, value: Replicated) -> None:
    message.batch = value.batch
    if not value.contiguous:
        message.has_gap = True
    if value.newer:
        message.newer_indexes.extend([index for index, _ in value.newer])
        message.newer_versions.extend([version for _, version in value.newer])
    if value.refused:
        message.refused.extend(value.refused)
    if value.unknown:
        message.unknown.extend(value.unknown)


def take_replicated(message: Any, count: int) -> Replicated:
    value = Replicated(message.batch, not message.has_gap)
    indexes = message.newer_indexes
    if indexes:
        checks.same_length("replicated", len(indexes), versions=message.newer_versions)
        value.newer = list(zip(indexes, message.newer_versions, strict=True))
    if message.refused:
        value.refused = checks.origins(message.refused)
    if message.unknown:
        value.unknown = list(message.unknown)
    return value


def fill_read_cells(message: Any, value: ReadCells) -> None:
    message.query = value.query
    message.namespace = value.namespace
    message.keys.extend(value.keys)
    message.digests = value.digests


def take_read_cells(message: Any, count: int) -> ReadCells:
    return ReadCells(message.query, message.namespace, list(message.keys), message.digests)


def fill_cells_read(message: Any, value: CellsRead) -> None:
    message.query = value.query
    message.cells.extend(value.cells)
    message.digests = value.digests
    message.error = value.error
    message.collections = value.collections


def take_cells_read(message: Any, count: int) -> CellsRead:
    digests = message.digests
    if len(digests) % DIGEST_BYTES:
        raise WireError(f"cells read: {len(digests)} bytes of digests of {DIGEST_BYTES} bytes each")
    return CellsRead(message.query, list(message.cells), digests, message.error, message.collections)


# --- forwarding and statements --------------------------------------------------------------------------------------


def fill_forward(message: Any, value: Forward) -> None:
    message.call = value.call
    if isinstance(value.write, WriteBatch):
        kv.fill_write_request(message.write, value.write)
    elif isinstance(value.read, ReadBatch):
        kv.fill_read_request(message.read, value.read)
    else:
        raise TypeError("a Forward carries a WriteBatch or a ReadBatch")


def take_forward(message: Any, count: int) -> Forward:
    kind = message.WhichOneof("request")
    if kind is None:
        raise WireError("forward: neither a write nor a read")
    if kind == "write":
        return Forward(message.call, write=kv.take_write_request(message.write))
    return Forward(message.call, read=kv.take_read_request(message.read))


def fill_forwarded(message: Any, value: Forwarded) -> None:
    message.call = value.call
    if isinstance(value.write, WriteReply):
        message.write.SetInParent()
        kv.fill_write_reply(message.write, value.write)
    elif isinstance(value.read, ReadReply):
        message.read.SetInParent()
        kv.fill_read_reply(message.read, value.read)
    else:
        raise TypeError("a Forwarded carries a WriteReply or a ReadReply")


def take_forwarded(message: Any, count: int) -> Forwarded:
    kind = message.WhichOneof("reply")
    if kind is None:
        raise WireError("forwarded: neither a write nor a read")
    if kind == "write":
        return Forwarded(message.call, write=kv.take_write_reply(message.write))
    return Forwarded(message.call, read=kv.take_read_reply(message.read))


def fill_statement(message: Any, value: Statement) -> None:
    message.sent_us = value.sent_us
    message.echo_us = value.echo_us
    message.wall_ms = value.wall_ms
    message.hlc = value.hlc
    message.log_sequence = value.log_sequence
    message.is_full = value.is_full
    feeds.fill_heads(message.frontiers, value.frontiers)
    feeds.fill_heads(message.shipped, value.shipped)
    message.definition_dcs.extend(value.definitions)
    message.definition_counts.extend(value.definitions.values())
    message.collected_namespaces.extend(value.collections)
    message.collection_counts.extend(value.collections.values())


def take_statement(message: Any, count: int) -> Statement:
    return Statement(
        sent_us=message.sent_us,
        echo_us=message.echo_us,
        wall_ms=message.wall_ms,
        hlc=message.hlc,
        log_sequence=message.log_sequence,
        is_full=message.is_full,
        frontiers=feeds.take_heads(message.frontiers, count),
        shipped=feeds.take_heads(message.shipped, count),
        definitions=checks.pairs_to_dict(message.definition_dcs, message.definition_counts, "definitions"),
        collections=checks.pairs_to_dict(message.collected_namespaces, message.collection_counts, "collections"),
    )


def fill_taken_back(message: Any, value: TakenBack) -> None:
    message.changes = value.changes
    for namespace, partitions in value.partitions.items():
        message.namespaces.add(namespace=namespace, partitions=partitions)
    feeds.fill_heads(message.logged, value.logged)


def take_taken_back(message: Any, count: int) -> TakenBack:
    partitions = {entry.namespace: checks.partitions(entry.partitions, count) for entry in message.namespaces}
    return TakenBack(message.changes, partitions, feeds.take_heads(message.logged, count))


# --- the table ------------------------------------------------------------------------------------------------------


class _Form(NamedTuple):
    """How one message goes over: its field of PeerMessage, and the two translations."""

    field: str
    fill: Callable[[Any, Any], None]
    take: checks.Decoder


FORMS: Final[dict[type, _Form]] = {
    messages.Replicate: _Form("replicate", fill_replicate, take_replicate),
    messages.Replicated: _Form("replicated", fill_replicated, take_replicated),
    messages.ReadCells: _Form("read_cells", fill_read_cells, take_read_cells),
    messages.CellsRead: _Form("cells_read", fill_cells_read, take_cells_read),
    messages.Forward: _Form("forward", fill_forward, take_forward),
    messages.Forwarded: _Form("forwarded", fill_forwarded, take_forwarded),
    messages.Statement: _Form("statement", fill_statement, take_statement),
    messages.TakenBack: _Form("taken_back", fill_taken_back, take_taken_back),
    messages.FeedOpen: _Form("feed_open", feeds.fill_feed_open, feeds.take_feed_open),
    messages.FeedBatch: _Form("feed_batch", feeds.fill_feed_batch, feeds.take_feed_batch),
    messages.FeedAck: _Form("feed_ack", feeds.fill_feed_ack, feeds.take_feed_ack),
    messages.FeedClose: _Form("feed_close", feeds.fill_feed_close, feeds.take_feed_close),
    messages.FeedRefused: _Form("feed_refused", feeds.fill_feed_refused, feeds.take_feed_refused),
    messages.FeedHoles: _Form("feed_holes", feeds.fill_feed_holes, feeds.take_feed_holes),
    messages.DefinitionsWanted: _Form("definitions_wanted", feeds.fill_definitions_wanted, feeds.take_definitions_wanted),
    messages.Definitions: _Form("definitions", feeds.fill_definitions, feeds.take_definitions),
    messages.Prepare: _Form("prepare", agreement.fill_prepare, agreement.take_prepare),
    messages.Promised: _Form("promised", agreement.fill_promised, agreement.take_promised),
    messages.Accept: _Form("accept", agreement.fill_accept, agreement.take_accept),
    messages.Accepted: _Form("accepted", agreement.fill_accepted, agreement.take_accepted),
    messages.Chosen: _Form("chosen", agreement.fill_chosen, agreement.take_chosen),
    messages.CopyItems: _Form("copy_items", agreement.fill_copy_items, agreement.take_copy_items),
    messages.ItemsCopied: _Form("items_copied", agreement.fill_items_copied, agreement.take_items_copied),
    messages.CloseAsk: _Form("close_ask", closing.fill_close_ask, closing.take_close_ask),
    messages.CloseAnswer: _Form("close_answer", closing.fill_close_answer, closing.take_close_answer),
    messages.RecordsWanted: _Form("records_wanted", closing.fill_records_wanted, closing.take_records_wanted),
    messages.CloseFill: _Form("close_fill", closing.fill_close_fill, closing.take_close_fill),
    messages.CloseFilled: _Form("close_filled", closing.fill_close_filled, closing.take_close_filled),
    messages.CellsFetch: _Form("cells_fetch", closing.fill_cells_fetch, closing.take_cells_fetch),
    messages.CellsWanted: _Form("cells_wanted", closing.fill_cells_wanted, closing.take_cells_wanted),
    messages.CellsPage: _Form("cells_page", closing.fill_cells_page, closing.take_cells_page),
    messages.CloseTell: _Form("close_tell", closing.fill_close_tell, closing.take_close_tell),
    messages.CloseTold: _Form("close_told", closing.fill_close_told, closing.take_close_told),
    messages.StabilityAsk: _Form("stability_ask", stability.fill_stability_ask, stability.take_stability_ask),
    messages.StabilityAnswer: _Form("stability_answer", stability.fill_stability_answer, stability.take_stability_answer),
    messages.CloseForget: _Form("close_forget", closing.fill_close_forget, closing.take_close_forget),
    messages.RightsAsk: _Form("rights_ask", rights.fill_rights_ask, rights.take_rights_ask),
    messages.RightsGiven: _Form("rights_given", rights.fill_rights_given, rights.take_rights_given),
    messages.OperationsAsk: _Form("operations_ask", operations.fill_operations_ask, operations.take_operations_ask),
    messages.OperationsTold: _Form("operations_told", operations.fill_operations_told, operations.take_operations_told),
}
_TAKE: Final[dict[str, checks.Decoder]] = {form.field: form.take for form in FORMS.values()}


def encode_message(message: object) -> bytes:
    """One message as a frame. Raises WireError where it is larger than any receiver takes."""
    form = FORMS[type(message)]
    frame = peer_pb2.PeerFrame()
    body = getattr(frame.messages.add(), form.field)
    body.SetInParent()  # a message whose fields are all defaults must still be there
    form.fill(body, message)
    payload = frame.SerializeToString()
    if len(payload) > MESSAGE_BYTES_MAX:
        raise WireError(f"{form.field}: {len(payload)} bytes; a message may have {MESSAGE_BYTES_MAX}")
    return payload


def decode_frame(payload: bytes, partitions: int) -> list[object]:
    """All messages of a frame, in order. `partitions`: the cluster's. Raises WireError and takes none of them otherwise."""
    if len(payload) > MESSAGE_BYTES_MAX:
        raise WireError(f"a frame of {len(payload)} bytes; at most {MESSAGE_BYTES_MAX}")
    frame = checks.parse(peer_pb2.PeerFrame, payload)
    if frame.HasField("hello"):
        raise WireError("a hello in the middle of a stream")
    return [_decode_message(message, partitions) for message in frame.messages]


def _decode_message(message: Any, partitions: int) -> object:
    kind = message.WhichOneof("body")
    if kind is None:
        raise WireError("a message of no kind that is known here")
    return _TAKE[kind](getattr(message, kind), partitions)

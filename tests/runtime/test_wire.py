"""The wire forms: what is encoded decodes to itself, and no bytes make a decoder do anything but return or raise WireError."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geokv.core.limits import BATCH_BYTES_MAX, BATCH_ITEMS_MAX, MESSAGE_BYTES_MAX, WAN_BATCH_RAW_BYTES_MAX
from geokv.core.origin import Origin
from geokv.errors import WireError
from geokv.protocol import messages as m
from geokv.protocol.requests import AdminReply, Outcome, ReadBatch, ReadReply, WriteBatch, WriteReply
from geokv.runtime.wire import kv, peer
from geokv.v1 import admin_pb2, geo_pb2, kv_pb2, peer_pb2
from tests.runtime.wire_strategies import (
    MESSAGES,
    PARTITIONS,
    admin_replies,
    admin_requests,
    any_message,
    read_batches,
    read_replies,
    u64,
    word,
    write_batches,
    write_replies,
)

DECODERS = {
    "hello": peer.decode_hello,
    "frame": lambda payload: peer.decode_frame(payload, PARTITIONS),
    "write request": kv.decode_write_request,
    "write reply": kv.decode_write_reply,
    "read request": kv.decode_read_request,
    "read reply": kv.decode_read_reply,
    "admin request": kv.decode_admin_request,
    "admin reply": kv.decode_admin_reply,
    "ring request": kv.decode_ring_request,
    "ring reply": kv.decode_ring_reply,
}


def test_every_message_has_a_wire_form_and_a_test() -> None:
    """The protocol's list of messages, the table of forms and the strategies here name the same classes."""
    assert set(peer.FORMS) == set(m.ASKS) | set(m.ANSWERS) | set(m.EITHER) == set(MESSAGES)
    fields = {field.name for field in peer_pb2.PeerMessage.DESCRIPTOR.fields}
    assert fields == {form.field for form in peer.FORMS.values()}


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
def test_message_comes_back_as_it_was(kind: type) -> None:
    """Encoded and decoded, a message of each kind equals itself."""

    @given(MESSAGES[kind])
    def check(message: object) -> None:
        assert peer.decode_frame(peer.encode_message(message), PARTITIONS) == [message]

    check()


@given(st.lists(any_message, max_size=5))
def test_joined_frames_are_one_frame_with_all_messages(messages: list[object]) -> None:
    """The bytes of frames, one behind the other, decode to their messages in order: what the outbound queue rests on."""
    joined = b"".join(map(peer.encode_message, messages))
    assert peer.decode_frame(joined, PARTITIONS) == messages


@given(st.builds(peer.Hello, word, word, word, u64, st.integers(0, 2**32 - 1)))
def test_hello_comes_back_as_it_was(hello: peer.Hello) -> None:
    """A hello equals itself after the wire."""
    assert peer.decode_hello(peer.encode_hello(hello)) == hello


@given(write_batches(), write_replies(), read_batches, read_replies(), u64)
def test_batches_and_replies_come_back_as_they_were(
    write: WriteBatch, wrote: WriteReply, read: ReadBatch, answer: ReadReply, version: int
) -> None:
    """Client batches and their replies equal themselves after the wire; None and empty values stay apart."""
    assert kv.decode_write_request(kv.encode_write_request(write)) == write
    assert kv.decode_read_request(kv.encode_read_request(read)) == read
    assert kv.decode_write_reply(kv.encode_write_reply(wrote, version)) == (wrote, version)
    assert kv.decode_read_reply(kv.encode_read_reply(answer, version)) == (answer, version)


@given(admin_requests, admin_replies)
def test_administration_comes_back_as_it_was(request: kv.AdminRequest, reply: AdminReply) -> None:
    """Verbs with their trees of plain values equal themselves after the wire."""
    assert kv.decode_admin_request(kv.encode_admin_request(request)) == request
    assert kv.decode_admin_reply(kv.encode_admin_reply(reply)) == reply


def test_ring_comes_back_as_it_was() -> None:
    """A ring reply equals itself after the wire."""
    node = kv.RingNodeSeen("eu-1", "eu", "a", 1.5, "127.0.0.1:7101")
    ring = kv.RingSeen("c", 256, 77, "eu-1", [node], {"eu": 3, "us": 1})
    assert kv.decode_ring_reply(kv.encode_ring_reply(ring)) == ring


@pytest.mark.parametrize("which", DECODERS)
def test_random_bytes_are_refused_and_nothing_else(which: str) -> None:
    """Bytes of any kind either decode or raise WireError."""

    @given(st.binary(max_size=200))
    def check(payload: bytes) -> None:
        try:
            DECODERS[which](payload)
        except WireError:
            pass

    check()


@given(st.lists(any_message, min_size=1, max_size=3), st.data())
def test_damaged_frames_are_refused_and_nothing_else(messages: list[object], data: st.DataObject) -> None:
    """Real frames with bytes changed, cut out or doubled either decode or raise WireError: near misses reach deepest."""
    payload = bytearray(b"".join(map(peer.encode_message, messages)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, len(payload) - 1)))
        how = data.draw(st.sampled_from(["change", "cut", "double"]))
        if how == "change" and payload:
            payload[at] = data.draw(st.integers(0, 255))
        elif how == "cut":
            del payload[at : at + data.draw(st.integers(1, 9))]
        else:
            payload[at:at] = payload[at : at + 9]
    try:
        peer.decode_frame(bytes(payload), PARTITIONS)
    except WireError:
        pass


@given(write_batches(), st.data())
def test_damaged_requests_are_refused_and_nothing_else(batch: WriteBatch, data: st.DataObject) -> None:
    """A client's request with one byte changed decodes to columns of one length, or raises WireError."""
    payload = bytearray(kv.encode_write_request(batch))
    if not payload:
        return
    payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = kv.decode_write_request(bytes(payload))
    except WireError:
        return
    assert len(found.values) == len(found.keys)
    assert len(found.operations) in (0, len(found.keys))


PACKED = Origin("eu", "eu-1", 7).packed()
BROKEN_MESSAGES = {
    "partition beyond the cluster's": lambda body: body.feed_open.partitions.append(PARTITIONS),
    "heads of different lengths": lambda body: body.feed_open.frontiers.add(origin=PACKED, partitions=[1], numbers=[]),
    "origin that does not unpack": lambda body: body.feed_open.frontiers.add(origin=b"eu"),
    "origin that packs otherwise": lambda body: body.feed_open.frontiers.add(origin=b"eu\0" + b"n" * 99 + b"\0" + bytes(8)),
    "accept without values": lambda body: body.accept.items.append(b"i"),
    "a third truth": lambda body: body.promised.MergeFrom(
        peer_pb2.Promised(items=[b"i"], accepted=[peer_pb2.AcceptedValue()], chosen=b"\2")
    ),
    "half a digest": lambda body: setattr(body.cells_read, "digests", b"1234567"),
    "a batch that says it is a bomb": lambda body: setattr(body.feed_batch, "raw_bytes", WAN_BATCH_RAW_BYTES_MAX + 1),
    "the same partition behind twice": lambda body: body.feed_batch.MergeFrom(
        geo_pb2.FeedBatch(behind_partitions=[1, 1], behind_hlcs=[1, 2])
    ),
    "a forward of nothing": lambda body: body.forward.SetInParent(),
    "a forwarded batch with a wild index": lambda body: body.forward.write.MergeFrom(
        kv_pb2.WriteRequest(keys=[b"k"], values=[b""], deletes=[1])
    ),
    "a message of no kind": lambda body: None,
}


@pytest.mark.parametrize("how", BROKEN_MESSAGES)
def test_broken_message_is_refused(how: str) -> None:
    """What parses as protobuf and breaks a rule of its own is a WireError."""
    frame = peer_pb2.PeerFrame()
    BROKEN_MESSAGES[how](frame.messages.add())
    with pytest.raises(WireError):
        peer.decode_frame(frame.SerializeToString(), PARTITIONS)


def test_hello_in_the_middle_and_messages_in_front_are_refused() -> None:
    """A hello stands at the beginning of a stream, alone, and nowhere else."""
    hello = peer.encode_hello(peer.Hello("c", "eu", "eu-1", 1))
    message = peer.encode_message(m.FeedClose(1))
    with pytest.raises(WireError, match="middle"):
        peer.decode_frame(hello + message, PARTITIONS)
    with pytest.raises(WireError, match="does not begin with a hello"):
        peer.decode_hello(hello + message)


def test_oversized_message_is_refused_on_both_sides() -> None:
    """More than MESSAGE_BYTES_MAX is neither sent nor taken."""
    with pytest.raises(WireError, match="replicate"):
        peer.encode_message(m.Replicate(1, bytes(MESSAGE_BYTES_MAX)))
    with pytest.raises(WireError, match="at most"):
        peer.decode_frame(bytes(MESSAGE_BYTES_MAX + 1), PARTITIONS)


REFUSED_WRITES = {
    "values has 0 entries for 1 keys": kv_pb2.WriteRequest(keys=[b"k"]),
    "index 3 of 1": kv_pb2.WriteRequest(keys=[b"k"], values=[b"v"], deletes=[3]),
    "level 9 is not known": kv_pb2.WriteRequest(keys=[b"k"], values=[b"v"], level=9),
    "ttl_ms = -2": kv_pb2.WriteRequest(keys=[b"k"], values=[b"v"], ttl_ms=-2),
    "timeout_ms = 300001": kv_pb2.WriteRequest(keys=[b"k"], values=[b"v"], timeout_ms=300_001),
    "operations has 3 bytes": kv_pb2.WriteRequest(keys=[b"k"], values=[b"v"], operations=b"123"),
    "contexts has 2 entries": kv_pb2.WriteRequest(keys=[b"k"], values=[b"v"], contexts=[b"", b""]),
    f"{BATCH_ITEMS_MAX + 1} operations": kv_pb2.WriteRequest(
        keys=[b"k"] * (BATCH_ITEMS_MAX + 1), values=[b""] * (BATCH_ITEMS_MAX + 1)
    ),
    "cut it": kv_pb2.WriteRequest(keys=[b"k", b"l"], values=[bytes(BATCH_BYTES_MAX), b""]),
}


@pytest.mark.parametrize("reason", REFUSED_WRITES)
def test_refused_write_says_what_is_wrong(reason: str) -> None:
    """A request that breaks a rule is refused with the number that broke it."""
    with pytest.raises(WireError, match=reason):
        kv.decode_write_request(REFUSED_WRITES[reason].SerializeToString())


@pytest.mark.parametrize("payload", [b"[]", b"{", b"\xff", b'{"a": NaN}', b'{"a": "\\ud800"}', b'{"a":' * 100_000, b"1" * 5000])
def test_arguments_that_are_no_json_object_are_refused(payload: bytes) -> None:
    """Lists, fragments, NaN, half surrogates and bottomless nesting are refused as arguments."""
    with pytest.raises(WireError, match="arguments_json"):
        kv.decode_admin_request(admin_pb2.AdminRequest(verb="status", arguments_json=payload).SerializeToString())


def test_unknown_outcome_is_refused() -> None:
    """A reply with an outcome of a later release is not taken for something else."""
    broken = kv_pb2.WriteReply(outcomes=b"\x63", versions=[1], replicas=b"\1", dcs=b"\1")
    with pytest.raises(WireError, match="outcome 99"):
        kv.decode_write_reply(broken.SerializeToString())
    assert kv.decode_write_reply(kv.encode_write_reply(WriteReply([Outcome.STALE], [0], [0], [0], "", 0, 0)))[0].outcomes == [
        16
    ]


def test_equal_origins_are_one_object() -> None:
    """Packed origins come out interned: the same bytes object for equal bytes."""
    frame = peer.encode_message(m.RecordsWanted(1, 1, 1, PACKED, []))
    first, second = (peer.decode_frame(frame, PARTITIONS)[0] for _ in range(2))
    assert isinstance(first, m.RecordsWanted)
    assert isinstance(second, m.RecordsWanted)
    assert first.origin is second.origin

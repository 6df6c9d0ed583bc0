import asyncio
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.peers import SYSTEMS
from benchmarks.systems import Caller, etcd, nats, redis

FIELD = descriptor_pb2.FieldDescriptorProto
FIELDS = {  # of etcd's rpc.proto and kv.proto, as far as they are used: name, number, type
    "PutRequest": [("key", 1, FIELD.TYPE_BYTES), ("value", 2, FIELD.TYPE_BYTES)],
    "RangeRequest": [("key", 1, FIELD.TYPE_BYTES), ("serializable", 7, FIELD.TYPE_BOOL)],
    "Header": [("cluster_id", 1, FIELD.TYPE_UINT64), ("revision", 3, FIELD.TYPE_INT64)],
    "KeyValue": [
        ("key", 1, FIELD.TYPE_BYTES),
        ("version", 4, FIELD.TYPE_INT64),
        ("value", 5, FIELD.TYPE_BYTES),
    ],
    "RangeResponse": [("header", 1, "Header"), ("kvs", 2, "KeyValue"), ("count", 4, FIELD.TYPE_INT64)],
}


def etcd_messages() -> dict[str, type[Message]]:
    file = descriptor_pb2.FileDescriptorProto(name="peer.proto", package="peer", syntax="proto3")
    for name, fields in FIELDS.items():
        message = file.message_type.add(name=name)
        for field, number, kind in fields:
            added = message.field.add(name=field, number=number, label=FIELD.LABEL_OPTIONAL)
            if isinstance(kind, str):
                added.type, added.type_name = FIELD.TYPE_MESSAGE, f".peer.{kind}"
                added.label = FIELD.LABEL_REPEATED if field == "kvs" else FIELD.LABEL_OPTIONAL
            else:
                added.type = kind
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"peer.{name}")) for name in FIELDS}


MESSAGES = etcd_messages()


@given(st.binary(min_size=1, max_size=300), st.binary(min_size=1, max_size=300), st.booleans())
def test_etcd_requests_are_what_protobuf_would_send(key: bytes, value: bytes, is_serializable: bool) -> None:
    """Our bytes are protobuf's bytes."""
    put = MESSAGES["PutRequest"](key=key, value=value)
    assert etcd.encode_put(key, value) == put.SerializeToString(deterministic=True)
    asked = MESSAGES["RangeRequest"](key=key, serializable=is_serializable)
    assert etcd.encode_range(key, is_serializable=is_serializable) == asked.SerializeToString(deterministic=True)


@given(st.binary(max_size=300), st.integers(0, 2**63 - 1))
def test_the_value_is_found_in_etcd_replies(value: bytes, number: int) -> None:
    """Whatever stands before it; empty is told from absent."""
    pair = MESSAGES["KeyValue"](key=b"k", version=number, value=value)
    header = MESSAGES["Header"](cluster_id=number, revision=number)
    found = MESSAGES["RangeResponse"](header=header, kvs=[pair], count=1)
    assert etcd.value_of_range(found.SerializeToString()) == value
    assert etcd.value_of_range(MESSAGES["RangeResponse"](header=header).SerializeToString()) is None


REPLIES: list[tuple[bytes, object]] = [
    (b"+OK\r\n", "OK"),
    (b":2\r\n", 2),
    (b"$5\r\na\r\nbc\r\n", b"a\r\nbc"),
    (b"$0\r\n\r\n", b""),
    (b"$-1\r\n", None),
]


@pytest.mark.parametrize(("encoded", "reply"), REPLIES)
def test_redis_replies_are_taken_only_when_whole(encoded: bytes, reply: object) -> None:
    """At every cut the decoder asks for more, and it never reads into the next reply."""
    assert redis.decode_reply(encoded + b"+next\r\n", 0) == (reply, len(encoded))
    assert redis.decode_reply(b"xx" + encoded, 2) == (reply, len(encoded) + 2)
    for cut in range(len(encoded)):
        assert redis.decode_reply(encoded[:cut], 0) is None


def test_redis_errors_and_unknown_kinds() -> None:
    """An error reply is a reply; a kind that was not asked for is a fault."""
    decoded = redis.decode_reply(b"-ERR no\r\n", 0)
    assert decoded is not None
    assert isinstance(decoded[0], redis.RedisError)
    with pytest.raises(redis.RedisError, match="unexpected kind"):
        redis.decode_reply(b"*1\r\n", 0)
    assert redis.encode_command(b"GET", b"k\r\n") == b"*2\r\n$3\r\nGET\r\n$3\r\nk\r\n\r\n"


async def test_a_redis_write_without_a_replica_is_an_error() -> None:
    """WAIT that answers 0 means that one disk has it: not what is compared."""

    is_closed = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(redis.WAIT_ONE)
        writer.write(b"+OK\r\n:0\r\n")
        await reader.read()
        writer.close()
        await writer.wait_closed()
        is_closed.set()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        connection = await redis.connect_to(server.sockets[0].getsockname()[1])
        with pytest.raises(redis.RedisError, match="0 replicas"):
            await redis.BareCaller(connection, connection).put(b"k", b"v")
        connection.close()
        await asyncio.wait_for(is_closed.wait(), 10)


@pytest.mark.parametrize(
    ("stated", "version"),
    [("nats-server: v2.9.10", (2, 9, 10)), ("nats-server: v2.15.2", (2, 15, 2)), ("?", None)],
)
def test_the_version_of_nats_is_read(stated: str, version: tuple[int, int, int] | None, tmp_path: Path) -> None:
    """By running it, as a release before 2.10 cannot sync every write."""
    program = tmp_path / "nats-server"
    program.write_text(f"#!/bin/sh\necho '{stated}'\n")
    program.chmod(0o755)
    assert nats.server_version(str(program)) == version


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", list(SYSTEMS))
async def test_what_is_installed_stores_and_returns(name: str, tmp_path: Path) -> None:
    """Three real nodes each take a write and show it by both reads (seconds: a cluster elects its leader)."""
    system = SYSTEMS[name]()
    if (reason := system.missing()) is not None:
        pytest.skip(reason)
    async with system.start(tmp_path) as cluster:
        assert len(cluster.pids) >= 3
        async with cluster.connect(4) as callers:
            await asyncio.gather(*(caller.put(b"key-%d" % n, b"v%d" % n) for n, caller in enumerate(callers)))
            for n, caller in enumerate(callers):
                assert await caller.get(b"key-%d" % n) == b"v%d" % n
                async with asyncio.timeout(10):
                    while not await has_locally(caller, b"key-%d" % n, b"v%d" % n):  # noqa: ASYNC110  as below
                        await asyncio.sleep(0.02)  # one replica may be behind, and tells nobody


async def has_locally(caller: Caller, key: bytes, value: bytes) -> bool:
    try:
        return await caller.get_local(key) == value
    except Exception as error:
        if type(error).__name__ == "NotFoundError":  # how NATS says that this replica does not have it yet
            return False
        raise

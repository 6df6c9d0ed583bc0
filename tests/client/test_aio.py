"""AsyncClient against nodes over real gRPC."""

import asyncio
import gc
from collections.abc import AsyncIterator
from datetime import timedelta
from time import monotonic

import grpc
import pytest

from geokv import (
    Ambiguous,
    AsyncClient,
    ClientClosed,
    ClientEvent,
    Consistency,
    DeadlineExceeded,
    InvalidRequest,
    NamespaceExists,
    NamespaceNotFound,
    Outcome,
    Overloaded,
    PutResult,
    Unavailable,
)
from geokv.protocol.requests import Detail, ReadBatch, WriteBatch
from tests.client.fake_node import Abort, FakeCluster, refuse


async def put_for_sure(kv: AsyncClient, key: str, value: bytes) -> PutResult:
    """Put until it is known to be done: a call may be on its way just when its server is stopped."""
    while True:
        try:
            return await kv.put(key, value)
        except Ambiguous:
            continue


@pytest.fixture
async def cluster() -> AsyncIterator[FakeCluster]:
    async with FakeCluster({"eu": 3, "us": 2}) as cluster:
        yield cluster


@pytest.fixture
async def kv(cluster: FakeCluster) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(cluster.addresses("eu"), dc="eu") as client:
        yield client


async def until(condition: object, what: str, within_s: float = 10.0) -> None:
    deadline = monotonic() + within_s
    while not condition():  # type: ignore[operator]
        assert monotonic() < deadline, f"not in time: {what}"
        await asyncio.sleep(0.005)


async def test_what_was_put_is_got(kv: AsyncClient) -> None:
    """Put, get and delete, with everything that a result says."""
    put = await kv.put("user:1", b"value", consistency="QUORUM", ttl=3600)
    assert put.outcome is Outcome.APPLIED and put.error is None
    assert put.achieved == (Consistency.QUORUM, 2, 1)
    assert put.coordinator.startswith("eu-") and put.dc == "eu" and 0 < put.elapsed < 5
    got = await kv.get("user:1", consistency=Consistency.ONE)
    assert (got.value, got.found, got.version) == (b"value", True, put.version)
    assert got.achieved.replicas == 2 and got.context == put.context
    await kv.delete("user:1")
    got = await kv.get(b"user:1")
    assert (got.value, got.found) == (None, False)


async def test_absent_and_empty_are_told_apart(kv: AsyncClient) -> None:
    """An empty value is found, an absent key is not."""
    await kv.put("empty", b"")
    assert (await kv.get("empty")).found and (await kv.get("empty")).value == b""
    assert not (await kv.get("absent")).found and (await kv.get("absent")).value is None


async def test_all_options_reach_the_node(cluster: FakeCluster, kv: AsyncClient) -> None:
    """Level, w, r, ttl, replicated_to, repair, context and namespace stand in the request as given."""
    carts = kv.namespace("carts")
    await carts.put("k", b"v", w=3, ttl=timedelta(minutes=1), replicated_to=2, context=b"12345678")
    await carts.get("k", r=2, repair="before")
    batches = [batch for node in cluster.nodes.values() for batch in node.batches]
    write = next(batch for batch in batches if isinstance(batch, WriteBatch))
    read = next(batch for batch in batches if isinstance(batch, ReadBatch))
    assert (write.namespace, write.w, write.ttl_ms, write.replicated_to) == ("carts", 3, 60_000, 2)
    assert write.contexts == [b"12345678"] and len(write.operations[0]) == 16
    assert (read.namespace, read.r, read.repair_before) == ("carts", 2, True)


async def test_concurrent_puts_share_calls(cluster: FakeCluster, kv: AsyncClient) -> None:
    """500 puts at once are a handful of calls, and each goes to an owner of its key."""
    await kv.wait_ready()
    await asyncio.gather(*(kv.put(f"k{index}", b"v") for index in range(500)))
    batches = [(node, batch) for node in cluster.nodes.values() for batch in node.batches]
    assert len(batches) <= 12
    for node, batch in batches:
        assert all(node in cluster.owners(key, "eu") for key in batch.keys)


async def test_a_cancelled_caller_leaves_its_batch_mates_untouched(cluster: FakeCluster, kv: AsyncClient) -> None:
    """One of three callers in a call is cancelled; the other two get their results."""
    await kv.wait_ready()
    go_on = asyncio.Event()
    for node in cluster.nodes.values():

        async def wait(_: object) -> None:
            await go_on.wait()

        node.script = wait
    tasks = [asyncio.create_task(kv.put("same", b"%d" % index)) for index in range(3)]
    await until(lambda: any(node.batches for node in cluster.nodes.values()), "the call is under way")
    assert [len(batch.keys) for node in cluster.nodes.values() for batch in node.batches] == [3]
    tasks[1].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[1]
    go_on.set()
    for task in (tasks[0], tasks[2]):
        assert (await task).outcome is Outcome.APPLIED


async def test_a_caller_that_times_out_leaves_its_batch_mates_untouched(cluster: FakeCluster, kv: AsyncClient) -> None:
    """In one call, the caller with 100 ms learns that time is up, and that the write may have happened; the
    other is served.
    """
    await kv.wait_ready()
    go_on = asyncio.Event()
    for node in cluster.nodes.values():

        async def wait(_: object) -> None:
            await go_on.wait()

        node.script = wait
    hasty = asyncio.create_task(kv.put("same", b"1", timeout=0.1))
    patient = asyncio.create_task(kv.put("same", b"2", timeout=10))
    with pytest.raises(DeadlineExceeded) as told:
        await hasty
    assert told.value.may_have_happened
    assert not patient.done()
    go_on.set()
    assert (await patient).outcome is Outcome.APPLIED
    assert [len(batch.keys) for node in cluster.nodes.values() for batch in node.batches] == [2]


async def test_a_cancelled_caller_before_sending_is_not_sent(cluster: FakeCluster, kv: AsyncClient) -> None:
    """What waits behind a call and is cancelled never leaves."""
    await kv.wait_ready()
    go_on = asyncio.Event()
    owner = cluster.owners(b"same", "eu")[0]

    async def wait(_: object) -> None:
        await go_on.wait()

    owner.script = wait
    first = asyncio.create_task(kv.put("same", b"1"))
    await until(lambda: owner.batches, "the first call is under way")
    second = asyncio.create_task(kv.put("same", b"2"))
    third = asyncio.create_task(kv.put("same", b"3"))
    await asyncio.sleep(0)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    go_on.set()
    await asyncio.gather(first, third)
    assert [batch.values for batch in owner.batches] == [[b"1"], [b"3"]]


async def test_many_keep_their_order_and_have_their_own_errors(cluster: FakeCluster, kv: AsyncClient) -> None:
    """put_many, get_many and delete_many give one result per item, in order, and raise_first raises the first
    error.
    """
    keys = [f"k{index}" for index in range(3000)]
    results = await kv.put_many((key, key.encode()) for key in keys)
    assert len(results) == 3000 and results.errors == {} and results.raise_first() is results
    values = await kv.get_many(keys)
    assert [got.value for got in values] == [key.encode() for key in keys]
    assert max(len(batch.keys) for node in cluster.nodes.values() for batch in node.batches) <= 1024
    owner = cluster.owners(b"k7", "eu")[0]
    owner.script = refuse(Outcome.INVALID, Detail("no"))
    results = await kv.delete_many(["k7", *keys[:7], *keys[8:14]])
    assert isinstance(results[0].error, InvalidRequest)
    assert 0 < len(results.errors) < 14
    with pytest.raises(InvalidRequest, match="no"):
        results.raise_first()


async def test_an_item_that_cannot_be_sent_stops_none_of_the_others(kv: AsyncClient) -> None:
    """An empty key, half a character, a value the codec refuses: each is one item's error, the others are done."""
    json_values = kv.namespace("default", codec="json")
    puts = await json_values.put_many([("a", 1), ("", 2), ("b", {3}), ("c", 4)])
    assert set(puts.errors) == {1, 2} and all(isinstance(error, InvalidRequest) for error in puts.errors.values())
    assert puts[0].outcome is puts[3].outcome is Outcome.APPLIED
    gets = await json_values.get_many(["\ud800", "c", "", "a"])
    assert set(gets.errors) == {0, 2} and (gets[1].value, gets[3].value) == (4, 1)
    deletes = await kv.delete_many(["", "a"])
    assert set(deletes.errors) == {0} and deletes[1].error is None
    assert not (await kv.get("a")).found
    with pytest.raises(InvalidRequest, match="the key is empty"):
        deletes.raise_first()


async def test_an_item_of_a_batch_that_cannot_be_sent_stops_none_of_the_others(kv: AsyncClient) -> None:
    """The `with` block goes on, and each item has its own result or error."""
    async with kv.batch() as batch:
        batch.put("a", b"1")
        batch.put("", b"2")
        batch.put("b", b"3", ttl=-1)
        batch.get("k" * 1025)
        batch.delete("c")
    assert batch.results is not None
    assert len(batch) == len(batch.results) == 5
    assert set(batch.results.errors) == {1, 2, 3}
    assert (await kv.get("a")).value == b"1"


async def test_a_value_that_the_codec_cannot_decode_is_an_error_of_ours(kv: AsyncClient) -> None:
    """Alone it is raised, in a list it is one item's error."""
    await kv.put("raw", b"{\xff}")
    json_values = kv.namespace("default", codec="json")
    with pytest.raises(InvalidRequest, match=r"codec cannot decode the value: UnicodeDecodeError"):
        await json_values.get("raw")
    assert isinstance((await json_values.get_many(["raw"]))[0].error, InvalidRequest)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), b"x", timedelta(1)])
async def test_what_has_no_form_on_the_wire_is_refused_and_not_sent(
    cluster: FakeCluster, kv: AsyncClient, value: object, caplog: pytest.LogCaptureFixture
) -> None:
    """A setting that JSON cannot carry is InvalidRequest, not Ambiguous: no node was asked."""
    await kv.create_namespace("made")
    for node in cluster.nodes.values():
        node.batches.clear()
    for method in (kv.create_namespace, kv.alter_namespace):
        with pytest.raises(InvalidRequest, match=r"cannot be written with ttl_ms = .*; nothing was sent"):
            await method("made", ttl_ms=value)
    assert not [batch for node in cluster.nodes.values() for batch in node.batches]
    assert not caplog.records
    assert (await kv.put("k", b"v")).outcome is Outcome.APPLIED


def test_a_second_event_loop_needs_a_client_of_its_own() -> None:
    """What is used again after its loop ended says so as ClientClosed, and can still be closed."""

    async def use(client: AsyncClient) -> None:
        await client.put("k", b"v")

    async def close(client: AsyncClient) -> None:
        await client.close()

    async def first() -> tuple[FakeCluster, AsyncClient]:
        async with FakeCluster({"eu": 1}) as cluster:
            client = AsyncClient(cluster.addresses("eu"))
            await use(client)
            return cluster, client

    _, client = asyncio.run(first())
    for call in (
        client.put("k", b"v"),
        client.get("k"),
        client.delete("k"),
        client.get_many(["k"]),
        client.status(),
    ):
        with pytest.raises(ClientClosed, match="another one: make a new client in each loop"):
            asyncio.run(call)
    asyncio.run(close(client))
    with pytest.raises(ClientClosed, match="make a new one"):
        asyncio.run(use(client))


async def test_the_last_of_two_puts_of_a_key_in_one_list_wins(cluster: FakeCluster, kv: AsyncClient) -> None:
    """A key twice in one list: its puts take effect in the order given."""
    results = await kv.put_many([("k", b"1"), ("other", b"x"), ("k", b"2")])
    assert results[2].version > results[0].version
    assert (await kv.get("k")).value == b"2"
    assert not any(batch.keys.count(b"k") > 1 for node in cluster.nodes.values() for batch in node.batches)


async def test_a_batch_mixes_and_is_sent_once(kv: AsyncClient) -> None:
    """put, delete and get in one batch; results in the order added; a second send is refused."""
    await kv.put("old", b"x")
    batch = kv.batch(consistency="QUORUM")
    batch.put("new", b"1", ttl=60)
    batch.delete("gone")
    batch.get("old")
    results = await batch.send()
    assert len(batch) == 3 and results[2].value == b"x" and results[0].outcome is Outcome.APPLIED
    with pytest.raises(InvalidRequest, match="sent already"):
        await batch.send()
    async with kv.batch() as batch:
        batch.put("in-with", b"1")
    assert batch.results is not None and len(batch.results) == 1
    assert (await kv.get("in-with")).found


async def test_empty_lists_are_fine(kv: AsyncClient) -> None:
    """Nothing asked, nothing told, nothing sent."""
    assert len(await kv.put_many({})) == 0
    assert len(await kv.batch().send()) == 0


async def test_json_values(kv: AsyncClient) -> None:
    """codec="json" takes and gives any JSON value; the same key without a codec gives the bytes."""
    carts = kv.namespace("carts", codec="json")
    await carts.put("c", {"items": [1, "zwölf", None]})
    assert (await carts.get("c")).value == {"items": [1, "zwölf", None]}
    assert (await kv.namespace("carts").get("c")).value == '{"items":[1,"zwölf",null]}'.encode()
    await kv.namespace("carts").put("bad", b"{")
    results = await carts.get_many(["c", "bad"])
    assert results[0].error is None and isinstance(results[1].error, InvalidRequest)


async def test_namespaces_are_administered(kv: AsyncClient) -> None:
    """Create (twice with exist_ok), list, alter, delete; a taken name and an unknown one are errors by
    class.
    """
    carts = await kv.create_namespace("carts", policy="lww", ttl=60, read_level="ONE")
    assert carts.name == "carts"
    await kv.create_namespace("carts", exist_ok=True)
    with pytest.raises(NamespaceExists):
        await kv.create_namespace("carts")
    assert [one["name"] for one in await kv.namespaces()] == ["carts"]
    assert (await kv.alter_namespace("carts", ttl=5))["ttl_ms"] == 5_000
    with pytest.raises(NamespaceNotFound) as told:
        await kv.alter_namespace("nope", ttl=5)
    assert told.value.namespace == "nope"
    await kv.delete_namespace("carts")
    assert await kv.namespaces() == []
    assert str((await kv.status())["node"]).startswith("eu")


async def test_the_viewpoint_is_the_clients_datacenter(cluster: FakeCluster, kv: AsyncClient) -> None:
    """The ring is asked for as seen from the client's datacenter."""
    await kv.wait_ready()
    assert set(cluster.viewpoints) == {"eu"}


@pytest.mark.parametrize("is_not_begun", [True, False])
async def test_a_call_turned_away_by_the_server_is_told_from_a_broken_one(
    cluster: FakeCluster, kv: AsyncClient, is_not_begun: bool
) -> None:
    """UNAVAILABLE with our mark is repeated as it is; without it a retry says who was asked: it may be done."""
    await kv.wait_ready()
    left = [2]
    trailing = (("geokv-not-begun", "1"),) if is_not_begun else ()

    async def abort(_: object) -> None:
        if left[0]:
            left[0] -= 1
            raise Abort(grpc.StatusCode.UNAVAILABLE, "the node starts", trailing)

    for node in cluster.nodes.values():
        node.script = abort
    assert (await kv.put("k", b"v")).outcome is Outcome.APPLIED
    assert left == [0]
    tried = sorted(len(batch.tried) for node in cluster.nodes.values() for batch in node.batches)
    assert tried == ([0, 0, 0] if is_not_begun else [0, 1, 2])


async def test_an_overloaded_server_is_asked_again_when_it_said(cluster: FakeCluster, kv: AsyncClient) -> None:
    """RESOURCE_EXHAUSTED with our mark: Overloaded with its retry_after, where time does not allow to
    wait.
    """
    await kv.wait_ready()

    async def abort(_: object) -> None:
        trailing = (("geokv-not-begun", "1"), ("geokv-retry-after-ms", "60000"))
        raise Abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", trailing)

    for node in cluster.nodes.values():
        node.script = abort
    with pytest.raises(Overloaded) as told:
        await kv.put("k", b"v", timeout=1)
    assert told.value.retry_after == 60


async def test_a_node_that_is_killed_during_a_write_is_named_to_another_owner(cluster: FakeCluster, kv: AsyncClient) -> None:
    """The connection breaks under a write: another owner gets it with the same id, and is told who may have done it."""
    await kv.wait_ready()
    owner = cluster.owners(b"k", "eu")[0]

    async def hang(_: object) -> None:
        await asyncio.Event().wait()

    owner.script = hang
    write = asyncio.create_task(kv.put("k", b"v"))
    await until(lambda: owner.batches, "the call is under way")
    await owner.stop()
    put = await write
    assert put.coordinator != owner.name
    retry = cluster.nodes[put.coordinator].batches[-1]
    assert retry.tried == (owner.name,) and retry.operations == owner.batches[-1].operations and retry.first_try_ms > 0


async def test_nobody_listens(cluster: FakeCluster) -> None:
    """With no node at the address: Unavailable at the deadline, which names the address and the reason."""
    address = cluster.nodes["us-1"].address
    await cluster.nodes["us-1"].stop()
    async with AsyncClient(address) as kv:
        with pytest.raises(Unavailable, match="connection refused") as told:
            await kv.get("k", timeout=0.4)
        assert address in str(told.value) and told.value.retryable


async def test_a_black_hole_is_left_and_returned_to(cluster: FakeCluster) -> None:
    """The own datacenter stops answering: new writes are served by the other within 2.5 s; healed, the client
    returns.

    Over a second: detection takes 1.2 s by design, and it must be seen on real time once."""
    events: list[ClientEvent] = []
    async with AsyncClient(cluster.addresses("eu"), dc="eu", failover=["us"], on_event=events.append, failback_after=0.5) as kv:
        await kv.put("k", b"v")
        cluster.go_dark("eu")
        started = monotonic()
        hung = asyncio.create_task(kv.put("hung", b"v"))
        served = None
        while served is None:
            assert monotonic() - started < 5
            try:
                served = await kv.put("new", b"v", timeout=0.2)
            except DeadlineExceeded:
                pass
        assert served.dc == "us" and monotonic() - started < 2.5
        assert (await hung).dc == "us"  # these nodes know nothing of retries; who was asked stands in them
        tried = {name for node in cluster.nodes.values() for batch in node.batches for name in getattr(batch, "tried", ())}
        assert tried and all(name.startswith("eu-") for name in tried)
        cluster.come_back("eu")
        await until(lambda: events and events[-1].kind == "failback", "the return")
        assert (await kv.put("k", b"v")).dc == "eu"
    assert [event.kind for event in events if event.kind.startswith("fail")] == ["failover", "failback"]


async def test_closing(cluster: FakeCluster) -> None:
    """Twice is fine; afterwards calls raise ClientClosed, handles too; who waited is told."""
    kv = AsyncClient(cluster.addresses("eu"))
    carts = kv.namespace("carts")
    cluster.go_dark("eu")
    waiting = asyncio.create_task(kv.get("k"))
    await asyncio.sleep(0)
    await kv.close()
    await kv.close()
    with pytest.raises(ClientClosed):
        await waiting
    for call in (kv.get("k"), carts.get("k"), kv.status()):
        with pytest.raises(ClientClosed, match="new one"):
            await call


async def test_a_forgotten_client_warns(cluster: FakeCluster) -> None:
    """A connected client that is collected unclosed is a ResourceWarning; one that never connected, or was
    closed, is not.
    """
    kv = AsyncClient(cluster.addresses("eu"))
    kv.itself = kv  # type: ignore[attr-defined]  # a cycle, so that the collector decides when
    await kv.put("k", b"v")
    host = kv._connection.host
    assert host is not None
    del kv
    with pytest.warns(ResourceWarning, match="unclosed AsyncClient"):
        gc.collect()
    await until(lambda: host._is_closed and not host._closing, "its connections are closed")
    AsyncClient(cluster.addresses("eu"))
    gc.collect()


async def test_a_subscriber_that_raises_harms_nobody(cluster: FakeCluster, caplog: pytest.LogCaptureFixture) -> None:
    """An exception in on_event is logged, and the client goes on."""

    def broken(_: ClientEvent) -> None:
        raise RuntimeError("subscriber")

    async with AsyncClient(cluster.addresses("eu"), dc="eu", on_event=broken) as kv:
        await kv.put("k", b"v")
        await cluster.owners(b"k", "eu")[0].stop()
        assert (await put_for_sure(kv, "k", b"v")).outcome is Outcome.APPLIED
    assert "on_event raised" in caplog.text


async def test_logs_never_hold_keys_or_values(cluster: FakeCluster, caplog: pytest.LogCaptureFixture) -> None:
    """Through a failover with everything logged, neither the key nor the value appears."""
    caplog.set_level("DEBUG", "geokv")
    async with AsyncClient(cluster.addresses("eu"), dc="eu", failover="us") as kv:
        await kv.put("secret-key", b"secret-value")
        for name in ("eu-1", "eu-2", "eu-3"):
            await cluster.nodes[name].stop()
        await put_for_sure(kv, "secret-key", b"secret-value")
    assert "failover" in caplog.text and "secret" not in caplog.text

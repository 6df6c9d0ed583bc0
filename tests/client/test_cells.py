"""Namespaces with other policies than `lww` through the SDK, on a real cluster of three nodes."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from geokv import (
    AsyncClient,
    Client,
    Conflicting,
    InvalidRequest,
    NamespaceNotFound,
    NotEnoughRights,
    OperationId,
    Outcome,
)
from geokv.client.conflicts import history, put_together, restorable, what_if
from geokv.core.cells.operation import Operation
from geokv.core.cells.wire import encode_operation
from geokv.core.conflict import POLICIES as ALL
from geokv.core.limits import LOSER_BYTES_MAX
from geokv.testing import Cluster

POLICIES = tuple(name for name in ALL if name != "lww")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Starting nodes takes more than a second; once for all tests here."""
    with Cluster(nodes=3) as running, running.client() as client:
        for policy in POLICIES:
            client.create_namespace(policy, policy=policy)
        deadline = time.monotonic() + 10
        answers = 0
        while answers < 2 * len(running.names):  # they go round: each node knows them all
            names = {one["name"] for one in client.namespaces()}
            answers = answers + 1 if names >= set(POLICIES) else 0
            assert time.monotonic() < deadline
        yield running


@pytest.fixture
def kv(cluster: Cluster) -> Iterator[Client]:
    with Client(cluster.addresses) as client:
        yield client


def test_siblings_are_shown_and_replaced_by_a_put_with_their_context(kv: Client) -> None:
    """One value reads as itself; several raise Conflicting with all of them, until a put hands the context back."""
    docs = kv.namespace("siblings")
    first = docs.put("page", b"A")
    assert docs.get("page").value == b"A" and docs.get("page").siblings == [b"A"]
    docs.put("page", b"B", context=first.context)
    docs.put("page", b"C", context=first.context)
    got = docs.get("page")
    assert got.found and sorted(got.siblings) == [b"B", b"C"]
    with pytest.raises(Conflicting, match="2 concurrent values") as raised:
        _ = got.value
    assert sorted(raised.value.siblings) == [b"B", b"C"]
    docs.put("page", b"D", context=got.context)
    assert docs.get("page").value == b"D"
    assert docs.get("nothing").siblings == [] and docs.get("nothing").context == b""
    docs.delete("page", context=docs.get("page").context)
    assert not docs.get("page").found and docs.get("page").value is None


def test_a_resolver_and_a_codec_make_one_value_of_several(kv: Client) -> None:
    """The resolver gets decoded values; get_many goes the same way."""
    sums = kv.namespace("siblings", codec="json", resolver=sum)
    for number in (1, 2, 3):
        sums.put("sum", number)
    assert sorted(sums.get("sum").siblings) == [1, 2, 3] and sums.get("sum").value == 6
    assert [got.value for got in sums.get_many(["sum", "none"])] == [6, None]


def test_update_reads_merges_and_writes(kv: Client) -> None:
    """Concurrent updates of one key through a resolver lose nothing."""
    words = kv.namespace("siblings", codec="json", resolver=lambda lists: sorted({word for words in lists for word in words}))

    def add(word: str) -> None:
        words.update("words", lambda have: sorted({*(have or []), word}))

    threads = [threading.Thread(target=add, args=(f"w{number}",)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert words.get("words").value == sorted(f"w{number}" for number in range(12))
    assert words.update("words", lambda have: have[:1]).context
    assert words.get("words").siblings == [["w0"]]


def test_update_without_a_resolver_says_what_is_missing(kv: Client) -> None:
    """Nothing is written."""
    docs = kv.namespace("siblings")
    docs.put("torn", b"A")
    docs.put("torn", b"B")
    with pytest.raises(Conflicting, match="resolver"):
        docs.update("torn", lambda value: value)
    assert sorted(docs.get("torn").siblings) == [b"A", b"B"]


def test_update_works_on_plain_values_too(kv: Client) -> None:
    """Under lww it is read, change and write after what was read."""
    numbers = kv.namespace("default", codec="json")
    numbers.update("visits", lambda have: (have or 0) + 1)
    numbers.update("visits", lambda have: (have or 0) + 1)
    assert numbers.get("visits").value == 2


def test_the_asyncio_client_has_the_same(cluster: Cluster) -> None:
    """Siblings, contexts, resolver and update."""

    async def work() -> None:
        async with AsyncClient(cluster.addresses) as kv:
            docs = kv.namespace("siblings", resolver=b"+".join)
            first = await docs.put("async", b"A")
            await asyncio.gather(*(docs.put("async", value, context=first.context) for value in (b"B", b"C")))
            assert sorted((await docs.get("async")).value.split(b"+")) == [b"B", b"C"]
            await docs.update("async", lambda value: value + b"!")
            assert len((await docs.get("async")).siblings) == 1

    asyncio.run(work())


def test_what_a_policy_does_not_have_is_an_error_in_words(kv: Client) -> None:
    """A bounded counter where a power cut may take what was acknowledged."""
    with pytest.raises(InvalidRequest, match="needs durability"):
        kv.create_namespace("never", policy="counter_bounded", durability="interval")


def test_counters_count_and_are_reset(kv: Client) -> None:
    """Increments of many threads all count; a reset takes them."""
    likes = kv.counters("counter_pn")
    assert likes.value("post:1") == 0
    threads = [threading.Thread(target=likes.increment, args=("post:1", number)) for number in range(1, 11)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    likes.decrement("post:1")
    assert likes.value("post:1") == 54 and likes.get("post:1").found
    likes.reset("post:1")
    assert likes.value("post:1") == 0
    likes.increment("post:1")
    likes.delete("post:1")
    assert likes.value("post:1") == 0


def test_an_update_that_has_a_name_is_applied_once(kv: Client, cluster: Cluster) -> None:
    """By the object that was used, by what was kept of it, by another client: each try answers with the result of the first."""
    likes = kv.counters("counter_pn")
    name = OperationId()
    first = likes.increment("named", 5, operation_id=name)
    assert name.asked and likes.increment("named", 5, operation_id=name).version == first.version
    kept = str(name)
    with Client(cluster.addresses) as other:
        again = other.counters("counter_pn").increment("named", 5, operation_id=OperationId.parse(kept))
        assert again.version == first.version
        never = OperationId.parse(str(OperationId()))  # nobody has been asked, but nobody knows that
        assert other.counters("counter_pn").increment("named", 2, operation_id=never).version > first.version
    assert likes.value("named") == 7

    values = kv.namespace("default")
    name = OperationId()
    put = values.put("named", b"1", operation_id=name)
    values.put("named", b"2")
    again = values.put("named", b"1", operation_id=name)
    assert again.outcome is Outcome.SUPERSEDED and again.version == put.version and values.get("named").value == b"2"
    name = OperationId()
    assert values.delete("named", operation_id=name).version == values.delete("named", operation_id=name).version

    async def asynchronously() -> None:
        async with AsyncClient(cluster.addresses) as client:
            one = OperationId()
            await client.namespace("default").put("named", b"3", operation_id=one)
            await client.counters("counter_pn").increment("named", 1, operation_id=OperationId.parse(str(one)))

    with pytest.raises(InvalidRequest, match="another operation"):
        asyncio.run(asynchronously())


def test_a_name_is_one_and_for_one_update(kv: Client) -> None:
    """What is no operation id says what is one; several elements cannot have the same."""
    with pytest.raises(InvalidRequest, match="no operation id"):
        OperationId.parse("likes-1")
    with pytest.raises(TypeError, match="OperationId"):
        kv.counters("counter_pn").increment("x", operation_id=b"0123456789abcdef")
    with pytest.raises(TypeError, match="one update"):
        kv.sets("set_aw").add_many("x", ["a", "b"], operation_id=OperationId())


def test_a_name_is_under_way_in_one_call_at_a_time(cluster: Cluster) -> None:
    """Of calls at once under one name one is done, the others are refused; when it is over, the name may be used again."""

    async def at_once() -> list[object]:
        async with AsyncClient(cluster.addresses) as client:
            likes, name = client.counters("counter_pn"), OperationId()
            calls = [likes.increment("at once", 5, operation_id=name) for _ in range(8)]
            found = await asyncio.gather(*calls, return_exceptions=True)
            await likes.increment("at once", 5, operation_id=name)
            assert await likes.value("at once") == 5
            return found

    refused = [one for one in asyncio.run(at_once()) if isinstance(one, Exception)]
    assert len(refused) == 7
    assert all(isinstance(one, InvalidRequest) and "under way in another call" in str(one) for one in refused)


def test_a_name_stands_for_the_update_that_it_was_used_for_first(kv: Client, cluster: Cluster) -> None:
    """Another amount, operation, key, namespace or value under it is refused, and nothing of that is done."""
    likes, values = kv.counters("counter_pn"), kv.namespace("default")
    name = OperationId()
    likes.increment("bound", 5, operation_id=name)
    others: list[Callable[[], object]] = [
        lambda: likes.increment("bound", 6, operation_id=name),
        lambda: likes.decrement("bound", 5, operation_id=name),
        lambda: likes.increment("bound too", 5, operation_id=name),
        lambda: likes.delete("bound", operation_id=name),
        lambda: values.put("bound", b"5", operation_id=name),
    ]
    for other in others:
        with pytest.raises(InvalidRequest, match=r"stands for another operation already, on key b'bound' of 'counter_pn'"):
            other()
    assert likes.value("bound") == 5 and likes.value("bound too") == 0 and not values.get("bound").found
    parsed = OperationId.parse(str(name))  # where its first use is, it is bound
    likes.increment("bound", 5, consistency="ALL", timeout=5, operation_id=parsed)
    with pytest.raises(InvalidRequest, match="another operation"):
        likes.increment("bound", 6, operation_id=parsed)
    assert likes.value("bound") == 5

    name = OperationId()
    values.put("bound", b"1", operation_id=name)
    with pytest.raises(InvalidRequest, match="another operation"):
        values.put("bound", b"2", operation_id=name)
    with pytest.raises(InvalidRequest, match="another operation"):
        values.delete("bound", operation_id=name)
    with pytest.raises(InvalidRequest, match="another operation"):  # the record that a node finds tells that much
        values.delete("bound", operation_id=OperationId.parse(str(name)))
    assert values.get("bound").value == b"1"

    async def asynchronously() -> None:
        async with AsyncClient(cluster.addresses) as client:
            one = OperationId()
            await client.namespace("default").put("bound", b"3", operation_id=one)
            with pytest.raises(InvalidRequest, match="another operation"):
                await client.namespace("default").put("bound", b"4", operation_id=one)
            with pytest.raises(InvalidRequest, match="another operation"):
                await client.namespace("default").delete("bound", operation_id=one)
            with pytest.raises(InvalidRequest, match="another operation"):
                await client.counters("counter_pn").increment("bound", operation_id=one)

    asyncio.run(asynchronously())
    assert values.get("bound").value == b"3"


def test_a_value_that_its_codec_encodes_otherwise_each_time_is_the_same_value(kv: Client) -> None:
    """With a salt in front of it, say: what counts is what it is decoded to."""

    class Salted:
        def encode(self, value: str) -> bytes:
            return os.urandom(8) + value.encode()

        def decode(self, payload: bytes) -> str:
            return payload[8:].decode()

    values, name = kv.namespace("default", codec=Salted()), OperationId()
    first = values.put("salted", "one", operation_id=name)
    assert values.put("salted", "one", operation_id=name).version == first.version
    with pytest.raises(InvalidRequest, match="another operation"):
        values.put("salted", "other", operation_id=name)


def test_sets_keep_what_was_added(kv: Client) -> None:
    """One by one and many at once, in all three kinds of sets."""
    for name in ("set_aw", "set_rw"):
        tags = kv.sets(name)
        tags.add("page", "red")
        results = tags.add_many("page", [f"tag {number}" for number in range(200)])
        assert len(results) == 200 and not results.errors
        tags.remove("page", "red")
        tags.remove_many("page", [f"tag {number}" for number in range(198)])
        assert tags.value("page") == {b"tag 198", b"tag 199"}
    kv.sets("set_grow").add("page", b"x")
    assert kv.sets("set_grow").value("page") == {b"x"} and kv.sets("set_aw").value("nothing") == frozenset()


def test_the_other_types(kv: Client) -> None:
    """Flags, sorted sets, extremes, sketches, registers: each operation once."""
    for name in ("flag_ew", "flag_dw"):
        kv.flags(name).enable("on")
        assert kv.flags(name).value("on") is True and kv.flags(name).value("off") is False
        kv.flags(name).disable("on")
        assert kv.flags(name).value("on") is False
    board = kv.sorted_sets("sorted_set")
    for member, score in (("ada", 3), ("bob", 1.5), ("eve", 9)):
        board.add("board", member, score)
    board.remove("board", "eve")
    assert board.value("board") == [(b"bob", 1.5), (b"ada", 3)] and board.value("none") == []
    for name, expected in (("max", 7), ("min", -2)):
        for number in (3, 7, -2):
            kv.extremes(name).put("x", number)
        assert kv.extremes(name).value("x") == expected and kv.extremes(name).value("y") is None
    for number in range(50):
        kv.sketches("hll").add("visitors", f"v{number % 25}")
    assert 20 <= kv.sketches("hll").value("visitors") <= 30
    for name in ("register_lww", "register_mv"):
        register = kv.namespace(name)
        first = register.put("r", b"A")
        register.put("r", b"B", context=first.context)
        assert register.get("r").value == b"B" and register.get("r").siblings == [b"B"]


def test_maps_nest(kv: Client) -> None:
    """Fields of several types, maps in maps, and what removing a field takes."""
    user = kv.maps("map_rr").at("user:1")
    user.counter("visits").increment(3)
    user.set("tags").add("new")
    user.flag("active").enable()
    user.register("name").write("Ada")
    address = user.map("address")
    address.register("city").write("Paris")
    address.map("geo").field("height", "max").put(35)
    user.field("scores", "sorted_set").add("chess", 7)
    whole = {
        b"visits": 3,
        b"tags": {b"new"},
        b"active": True,
        b"name": b"Ada",
        b"scores": [(b"chess", 7)],
        b"address": {b"city": b"Paris", b"geo": {b"height": 35}},
    }
    assert kv.maps("map_rr").value("user:1") == user.value() == whole
    fields = [user.counter("visits"), user.set("tags"), user.register("name"), address.map("geo").field("height", "max")]
    assert [field.value() for field in fields] == [3, {b"new"}, b"Ada", 35] and user.field("address", "map_rr").value()
    assert [user.counter("none").value(), user.set("none").value(), user.register("none").value()] == [0, frozenset(), None]
    assert address.value() == whole[b"address"] and address.map("geo").value() == {b"height": 35}
    address.remove("geo")
    user.remove("tags")
    del whole[b"tags"], whole[b"address"][b"geo"]  # type: ignore[attr-defined]
    assert user.value() == whole and address.map("geo").value() == {}


def test_a_wrong_type_or_operation_is_told_in_words(kv: Client) -> None:
    """The namespace, what it holds, and what to use instead."""
    kv.sets("set_aw").add("wrong", "x")
    for act, words in (
        (lambda: kv.counters("set_aw").increment("wrong"), "'set_aw' holds set_aw: set_aw has no operation 'increment'"),
        (lambda: kv.counters("set_aw").value("wrong"), r"holds set_aw, not counter_pn: use kv.sets\(\"set_aw\"\)"),
        (lambda: kv.counters("set_aw").value("not there"), r"holds set_aw, not counter_pn: use kv.sets\(\"set_aw\"\)"),
        (lambda: kv.counters("default").value("not there"), r"holds lww, not counter_pn: use kv.namespace"),
        (lambda: kv.counters("counter_pn").increment("k", 1 << 70), "increment: a whole number has 64 bits at most"),
        (lambda: kv.namespace("counter_pn").put("k", b"v"), "it has no put, but decrement, delete, increment, reset"),
        (lambda: kv.sets("default").add("k", "x"), r"holds plain values \(lww\): it has put and delete"),
        (lambda: kv.counters("counter_pn").increment("k", -1), "-1 is not from 1 to"),
        (lambda: kv.sets("set_aw").add("k", b"x" * 2000), "2000 bytes, at most 1024"),
        (lambda: kv.namespace("counter_pn").delete("k", context=b"x"), "not a context"),
        (lambda: kv.maps("map_rr").at("k").field("f", "siblings").write("x"), "a field cannot be of type 'siblings'"),
        (lambda: kv.create_namespace("ttl", policy="set_aw", ttl=5), "'set_aw' has no TTL"),
    ):
        with pytest.raises(InvalidRequest, match=words):
            act()
    with pytest.raises(TypeError, match=r"namespace\(\"...\"\).put"):
        kv.set("k", "v")
    for number in ("3", None, b"3"):
        with pytest.raises(TypeError, match="an amount is a number, not"):
            kv.counters("counter_pn").increment("k", number)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="unknown option 'ttl'"):
        kv.counters("counter_pn").increment("k", ttl=3)


def test_the_asyncio_client_has_the_same_handles(cluster: Cluster) -> None:
    """What a method returns is awaited."""

    async def work() -> None:
        async with AsyncClient(cluster.addresses) as kv:
            await asyncio.gather(*(kv.counters("counter_pn").increment("async") for _ in range(50)))
            assert await kv.counters("counter_pn").value("async") == 50
            results = await kv.sets("set_aw").add_many("async", ["a", "b"])
            assert len(results) == 2 and await kv.sets("set_aw").value("async") == {b"a", b"b"}
            await kv.maps("map_rr").at("async").map("m").counter("c").increment()
            assert await kv.maps("map_rr").at("async").value() == {b"m": {b"c": 1}}

    asyncio.run(work())


def test_conflicts_are_told_restored_and_replayed(kv: Client, cluster: Cluster) -> None:
    """All nodes are asked; a loser is a new write; another policy is tried on the journal."""
    docs = kv.namespace("siblings")
    first = docs.put("met", b"A")
    docs.put("met", b"B", context=first.context)
    docs.put("met", b"C", context=first.context)
    noted = kv.conflicts("siblings", "met")
    (conflict,) = noted["conflicts"]
    assert noted["silent"] == [] and conflict["key"] == b"met" and conflict["outcome"] == "kept"
    assert "neither had seen the other" in conflict["words"] and conflict in kv.conflicts("siblings")["conflicts"]
    assert kv.restore(conflict).outcome is Outcome.APPLIED
    assert docs.get("met").value == conflict["loser"]["value"]
    assert what_if(conflict, "siblings")["lost"] == [] and len(what_if(conflict, "register_mv")["shown"]) == 2
    with pytest.raises(InvalidRequest, match=r"values that were put: .*choose one of lww"):
        what_if(conflict, "counter_pn")
    with pytest.raises(NamespaceNotFound):
        kv.conflicts("nowhere")

    async def work() -> None:
        async with AsyncClient(cluster.addresses) as other:
            assert (await other.conflicts("siblings", "met"))["conflicts"][0]["id"] == conflict["id"]
            assert (await other.restore(conflict)).outcome is Outcome.APPLIED

    assert kv.restore({name: one for name, one in conflict.items() if name != "noted_by"}).outcome is Outcome.APPLIED
    asyncio.run(work())
    told = history(kv.conflicts("siblings", "met")["conflicts"])
    assert [one["kind"] for one in told] == ["conflict", "restore", "restore"]
    assert "It was brought back since" not in told[0]["words"]  # both were kept
    assert all("b'" not in one["words"] and "was brought back by a new write of" in one["words"] for one in told[1:])
    assert {one["value"] for one in told[1:]} == {conflict["loser"]["value"]}


def _conflict(policy: str, versions: tuple[str | None, str | None]) -> dict[str, Any]:
    parties = [
        {"dc": "eu", "node": "n", "version": version, "value": value, "value_bytes": 1, "is_delete": False}
        for version, value in zip(versions, (b"W", b"L"), strict=True)
    ]
    return {"id": "x", "key": b"k", "policy": policy, "winner": parties[0], "loser": parties[1]}


def test_another_policy_is_tried_on_what_the_journal_knows() -> None:
    """Under lww the later version stands; where it does not know both stamps it says so; a long or other loser stays lost."""
    met = _conflict("lww", ("9", "5"))
    assert what_if(met, "lww") == {"id": "x", "key": b"k", "shown": [b"W"], "lost": [b"L"]}
    assert what_if(met, "siblings") == {"id": "x", "key": b"k", "shown": [b"W", b"L"], "lost": []}
    assert what_if(_conflict("siblings", ("5", "9")), "lww")["shown"] == [b"L"]
    assert what_if(_conflict("siblings", (None, "9")), "lww")["lost"] is None
    assert restorable(met) == (b"k", b"L", False)
    met["loser"]["value_bytes"] = 2000
    with pytest.raises(InvalidRequest, match="cannot come back"):
        restorable(met)


def _told(policy: str, winner: Operation, loser: Operation, stamps: tuple[str | None, str | None] = (None, None)) -> Any:
    """A conflict of two operations, as a node tells it."""
    parties = [
        {"dc": dc, "node": f"{dc}-1", "run": dc, "number": 1, "version": stamp, "value_bytes": len(packed), "is_delete": False}
        | {"value_base64": b64encode(packed[:LOSER_BYTES_MAX]).decode()}
        for dc, packed, stamp in zip(("eu", "us"), (encode_operation(winner), encode_operation(loser)), stamps, strict=True)
    ]
    told = {
        "id": "x",
        "namespace": "ns",
        "key_base64": "aw==",
        "policy": policy,
        "outcome": "discarded",
        "winner": parties[0],
        "loser": parties[1],
    }
    return {"conflicts": [told | {"noted_ms": 1, "apart_ms": None}], "dropped": 0}


@pytest.mark.parametrize(
    ("policy", "winner", "loser", "words"),
    [
        ("set_rw", Operation("remove", (b"milk",)), Operation("add", (b"milk",)), ("remove milk", "add milk")),
        ("flag_dw", Operation("disable"), Operation("enable"), ("disable", "enable")),
        ("sorted_set", Operation("add", (b"m", 2)), Operation("add", (b"m", 1.5)), ("add m 2", "add m 1.5")),
        (
            "map_rr",
            Operation("write", (b"Rome",), ((b"home", "map_rr"), (b"city", "register_lww"))),
            Operation("write", (b"Bonn",), ((b"home", "map_rr"), (b"city", "register_lww"))),
            ("home.city: write Rome", "home.city: write Bonn"),
        ),
    ],
)
def test_conflicts_of_operations_are_told_in_words_and_done_again(
    policy: str, winner: Operation, loser: Operation, words: tuple[str, str]
) -> None:
    """Which operation won, in which field; the loser is the operation that is done again."""
    (conflict,) = put_together({"n": _told(policy, winner, loser)})["conflicts"]
    assert f"So '{words[0]}' of eu (eu-1) won, and '{words[1]}' of us (us-1) is hidden." in conflict["words"]
    assert restorable(conflict) == (b"k", encode_operation(loser), True)


def test_operations_are_replayed_under_the_other_policy_of_their_kind() -> None:
    """Under adding wins the addition stands; what is no such policy is refused, with those that are."""
    told = _told("set_rw", Operation("remove", (b"x",)), Operation("add", (b"x",)))
    (conflict,) = put_together({"n": told})["conflicts"]
    assert what_if(conflict, "set_aw") == {"id": "x", "key": b"k", "shown": [b"add x"], "lost": [b"remove x"]}
    assert what_if(conflict, "set_rw")["shown"] == [b"remove x"]
    with pytest.raises(InvalidRequest, match=r"operations on a set_rw.*choose one of set_aw, set_rw"):
        what_if(conflict, "siblings")


def test_what_two_datacenters_know_together_tells_by_how_much_writes_missed_each_other() -> None:
    """Each knows the stamp of the write that came to it; of a conflict without a winner each may call another one the later."""
    one, other = Operation("enable"), Operation("disable")
    early, late = str(1_000 << 16), str(1_412 << 16)
    here = _told("flag_dw", one, other, (None, late))
    there = _told("flag_dw", one, other, (early, None))
    (conflict,) = put_together({"m": here, "n": there})["conflicts"]
    assert conflict["apart_ms"] == 412 and "412 ms apart" in conflict["words"]
    assert (conflict["winner"]["version"], conflict["loser"]["version"]) == (early, late)
    turned = there["conflicts"][0]
    turned["winner"], turned["loser"] = turned["loser"], turned["winner"]
    (again,) = put_together({"m": here, "n": there})["conflicts"]
    assert (again["winner"]["version"], again["loser"]["version"], again["apart_ms"]) == (early, late, 412)


@pytest.mark.parametrize(
    ("policy", "winner", "loser", "words"),
    [
        (
            "flag_ew",
            Operation("enable"),
            Operation("disable"),
            "'enable' of eu (eu-1) won over a concurrent 'disable' of us (us-1)",
        ),
        (
            "set_aw",
            Operation("add", (b"x",)),
            Operation("remove", (b"x",)),
            "'add x' of eu (eu-1) won over a concurrent 'remove x'",
        ),
        (
            "counter_pn",
            Operation("increment", (3,)),
            Operation("reset"),
            "'increment 3' of eu (eu-1) won over a concurrent 'reset'",
        ),
    ],
)
def test_a_removal_that_lost_is_told_in_words_and_done_again(
    policy: str, winner: Operation, loser: Operation, words: str
) -> None:
    """By the rule that all types have in common."""
    (conflict,) = put_together({"n": _told(policy, winner, loser)})["conflicts"]
    assert words in conflict["words"] and "what takes away leaves what it had not seen" in conflict["words"]
    assert conflict["words"].endswith("Do it again with: geokv conflicts restore x") and conflict["is_outlived"]
    assert restorable(conflict) == (b"k", encode_operation(loser), True)
    other = {"flag_ew": "flag_dw", "set_aw": "set_rw"}.get(policy)
    if other:
        assert what_if(conflict, other)["shown"] == [conflict["loser"]["value"]]
    (deleted,) = put_together({"n": _told(policy, winner, Operation("delete"))})["conflicts"]
    assert what_if(deleted, other or policy)["shown"] == [conflict["winner"]["value"]]


def test_a_write_that_brought_a_loser_back_is_told_once_whoever_noted_it() -> None:
    """With its time, its writer, the value and its version; the conflict then does not offer it again."""
    back = {"dc": "us", "node": "us-2", "version": "9", "noted_ms": 5}
    here, there = (_told("flag_dw", Operation("disable"), Operation("enable")) for _ in range(2))
    here["conflicts"][0]["restored"] = [back | {"noted_ms": 7}]
    there["conflicts"][0]["restored"] = [back]
    nobody = _told("flag_dw", Operation("disable"), Operation("enable"))
    (conflict,) = put_together({"m": here, "n": there, "o": nobody})["conflicts"]
    words = "1970-01-01 00:00:00.005 UTC: 'enable' of us (us-1) was brought back by a new write of us (us-2), version 9"
    (restored,) = conflict["restored"]
    assert restored == back | {"words": f"{words} (restored from conflict x)."}
    assert conflict["words"].endswith("It was brought back since.")
    assert [(one["kind"], one["noted_ms"]) for one in history([conflict])] == [("conflict", 1), ("restore", 5)]


def test_of_a_long_operation_the_journal_keeps_too_little() -> None:
    """It is told by its size, and cannot come back."""
    path = ((b"f", "register_lww"),)
    told = _told("map_rr", Operation("write", (b"a",), path), Operation("write", (bytes(5_000),), path))
    (conflict,) = put_together({"n": told})["conflicts"]
    assert "an operation of 50" in conflict["words"]
    with pytest.raises(InvalidRequest, match="cannot come back"):
        restorable(conflict)


def test_a_bounded_counter_sells_what_there_is_and_no_more(kv: Client) -> None:
    """Many threads at three nodes: as many succeed as there are; the others are told how many there are."""
    tickets = kv.bounded_counters("counter_bounded")
    assert tickets.value("concert") == 0 and tickets.rights("concert") == {}
    tickets.increment("concert", 30)
    assert tickets.value("concert") == 30 and tickets.rights("concert") == {"dc1": 30}
    sold: list[int] = []
    refusals: list[NotEnoughRights] = []

    def buy() -> None:
        for _ in range(10):
            try:
                tickets.decrement("concert")
            except NotEnoughRights as refused:
                refusals.append(refused)
            else:
                sold.append(1)

    threads = [threading.Thread(target=buy) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(sold) == 30 and tickets.value("concert") == 0
    assert {(one.needed, one.here, one.retryable) for one in refusals} == {(1, 0, True)} and len(refusals) == 20
    with pytest.raises(NotEnoughRights, match="5 needed, 0 here, 0 elsewhere"):
        tickets.decrement("concert", 5)


def test_every_update_of_a_bounded_counter_is_on_a_quorum(kv: Client) -> None:
    """A weaker level is raised, and the result says what was reached."""
    tickets = kv.bounded_counters("counter_bounded")
    assert tickets.increment("level", 3, consistency="ONE").achieved.replicas >= 2
    assert tickets.decrement("level", w=1).achieved.replicas >= 2
    assert tickets.get("level").value == 2


def test_a_bounded_counter_is_neither_deleted_nor_reset(kv: Client) -> None:
    """Through its own handle, the namespace's, and another type's."""
    tickets = kv.bounded_counters("counter_bounded")
    tickets.increment("kept", 3)
    with pytest.raises(InvalidRequest, match="cannot be deleted"):
        tickets.delete("kept")
    with pytest.raises(InvalidRequest, match="cannot be deleted"):
        kv.namespace("counter_bounded").delete("kept")
    with pytest.raises(InvalidRequest, match="has decrement, increment"):
        kv.counters("counter_bounded").reset("kept")
    with pytest.raises(InvalidRequest, match=r'use kv.bounded_counters\("counter_bounded"\)'):
        kv.counters("counter_bounded").value("kept")


def test_a_bounded_counter_in_asyncio(cluster: Cluster) -> None:
    """The same handle, awaited."""

    async def work() -> None:
        async with AsyncClient(cluster.addresses) as kv:
            tickets = kv.bounded_counters("counter_bounded")
            await tickets.increment("async", 2)
            results = await asyncio.gather(*(tickets.decrement("async") for _ in range(3)), return_exceptions=True)
            assert sum(isinstance(one, NotEnoughRights) for one in results) == 1
            assert await tickets.value("async") == 0 and await tickets.rights("async") == {}

    asyncio.run(work())
